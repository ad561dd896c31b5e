"""Setting up Accelerate and DeepSpeed so that they run what was asked for, and say nothing else."""

import logging
import os
import socket
import warnings
from datetime import timedelta
from typing import Any

import torch

# Its functions have the process group as a default value: imported when there is one, they would
# keep it for ever.
import torch.distributed.nn.functional

from conf.enums import EngineKind
from conf.training import EngineConfig
from training.engine.world import current_world

ZERO_STAGES = {EngineKind.zero1: 1, EngineKind.zero2: 2, EngineKind.zero3: 3}
# After which libraries end a rank that waits for others. NCCL's own is ten minutes, which would
# come before `guards.hang_seconds`, and says nothing of who is at fault.
LONGEST_COLLECTIVE = timedelta(minutes=30)
LINEAR = torch.nn.functional.linear
LARGEST_BUCKET = 500_000_000  # elements; DeepSpeed's own default


def build_accelerator(
    config: EngineConfig, clip_norm: float, micro: int, accumulation: int, parameters: int
) -> Any:
    """An Accelerator that really runs the engine asked for, on GPUs or on gloo.

    Args:
        config: Which engine.
        clip_norm: Global norm that DeepSpeed clips gradients to; 0 is off.
        micro: Samples of a rank's micro-batch.
        accumulation: Micro-batches of an optimizer step.
        parameters: Size of the model.
    """
    zero_stage = ZERO_STAGES.get(config.kind, 0)
    if zero_stage:
        if not torch.cuda.is_available():
            os.environ["DS_ACCELERATOR"] = "cpu"
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        if current_world().size == 1:
            _single_rank_environment()
    from accelerate import Accelerator
    from accelerate.utils import (
        DeepSpeedPlugin,
        GradientAccumulationPlugin,
        InitProcessGroupKwargs,
    )

    plugin = None
    if zero_stage:
        _tame_deepspeed()
        plugin = DeepSpeedPlugin(
            hf_ds_config=_deepspeed_config(config, clip_norm, micro, accumulation, parameters)
        )
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    group = InitProcessGroupKwargs(backend=backend, timeout=LONGEST_COLLECTIVE)
    return Accelerator(
        # Without `cpu`, ranks on CPUs run side by side and never exchange a gradient; with it,
        # DeepSpeed is dropped. Neither says a word.
        cpu=not zero_stage and not torch.cuda.is_available(),
        mixed_precision="no",
        deepspeed_plugin=plugin,
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=accumulation, adjust_scheduler=False, sync_with_dataloader=False
        ),
        # Accelerate takes the handler for a process group, which one process alone has not.
        kwargs_handlers=[group] if "RANK" in os.environ else [],
    )


def leave_process_group(zero_stage: int) -> None:
    """Destroy the process group, and what DeepSpeed keeps beyond its own end.

    That is references to the group, and ZeRO-3's form of a linear layer in the place of torch's,
    whose gradients have other last bits, for all that the process does from then on.
    """
    torch.nn.functional.linear = LINEAR
    if zero_stage:
        from deepspeed.comm import destroy_process_group
    else:
        from torch.distributed import destroy_process_group
    destroy_process_group()


def _tame_deepspeed() -> None:
    """Keep DeepSpeed from compiling what training does not use, and from warning of itself."""
    import deepspeed

    # Only inference uses this operator. Compiling it takes half a minute, a compiler and a lock
    # that outlives a killed process, and then every later start waits for it without end.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    for name in ("all_gather_into_tensor", "reduce_scatter_tensor"):
        warnings.filterwarnings(
            "ignore", f"`torch.distributed.{name}` is deprecated", FutureWarning
        )


def _single_rank_environment() -> None:
    """DeepSpeed wants a process group even for one rank; give it one on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_PORT": port}.items():
        os.environ.setdefault(name, str(value))
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")


def largest_whole(parameters: int) -> int:
    """Elements of the largest parameter that stays whole on every rank under ZeRO-3.

    Args:
        parameters: Size of the model.
    """
    return min(100_000, parameters // 1000)


def bucket_size(parameters: int) -> int:
    """Elements of the buffer in which DeepSpeed exchanges gradients.

    It allocates a whole one, 2 GB by default, however small the model is, and wants it even.

    Args:
        parameters: Size of the model.
    """
    return min(-(-parameters // 1024) * 1024, LARGEST_BUCKET)


def most_gathered(parameters: int) -> int:
    """Elements of weights that a rank may keep under ZeRO-3 after it has sent for them.

    Args:
        parameters: Size of the model.
    """
    return parameters // 4


def _stage3_config(parameters: int) -> dict[str, Any]:
    """How many weights a rank may hold beyond its share."""
    return {
        # Small parameters stay whole on every rank, for a message each would cost more time than
        # they take memory. DeepSpeed's own limit is 100,000, which is all of a small model.
        "stage3_param_persistence_threshold": largest_whole(parameters),
        # By DeepSpeed's defaults, a billion, most models would stay whole once they are gathered.
        "stage3_max_live_parameters": most_gathered(parameters),
        "stage3_max_reuse_distance": most_gathered(parameters),
    }


def _offload_config(config: EngineConfig) -> dict[str, Any]:
    host = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    wanted = {
        "offload_optimizer": config.offload_optimizer,
        "offload_param": config.offload_parameters,
    }
    return {name: host for name, is_wanted in wanted.items() if is_wanted}


def _deepspeed_config(
    config: EngineConfig, clip_norm: float, micro: int, accumulation: int, parameters: int
) -> dict[str, Any]:
    stage, bucket = ZERO_STAGES[config.kind], bucket_size(parameters)
    return {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": clip_norm,
        "zero_optimization": {
            "stage": stage,
            "overlap_comm": False,
            "contiguous_gradients": True,
            # With it stages 1 and 2 put a bucket together anew, add all of it up over all ranks as
            # well, and copy this rank's part back. Without it they add the bucket up in place.
            "reduce_scatter": stage == 3,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            **_offload_config(config),
            **(_stage3_config(parameters) if stage == 3 else {}),
        },
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }
