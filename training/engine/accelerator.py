"""Setting up Accelerate and DeepSpeed so that they run what was asked for, and say nothing else."""

import logging
import os
import socket
import warnings
from dataclasses import dataclass
from typing import Any

import torch

# Its functions have the process group as a default value: imported when there is one, they would
# keep it for ever.
import torch.distributed.nn.functional

from training.engine.world import current_world


@dataclass(frozen=True, slots=True)
class Offload:
    """What ZeRO keeps in host memory.

    Args:
        optimizer: The optimizer's state and the float32 shares that it updates.
        parameters: The shares of the weights, with ZeRO-3.
    """

    optimizer: bool = False
    parameters: bool = False


NOTHING = Offload()
LARGEST_BUCKET = 500_000_000  # elements; DeepSpeed's own default


def build_accelerator(
    zero_stage: int,
    clip_norm: float,
    micro: int,
    accumulation: int,
    offload: Offload,
    parameters: int,
) -> Any:
    """An Accelerator that really runs the engine asked for, on GPUs or on gloo.

    Args:
        zero_stage: DeepSpeed's stage; 0 is without DeepSpeed.
        clip_norm: Global norm that DeepSpeed clips gradients to; 0 is off.
        micro: Samples of a rank's micro-batch.
        accumulation: Micro-batches of an optimizer step.
        offload: What DeepSpeed keeps in host memory.
        parameters: Size of the model.
    """
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
        config = _deepspeed_config(zero_stage, clip_norm, micro, accumulation, offload, parameters)
        plugin = DeepSpeedPlugin(hf_ds_config=config)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
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
        kwargs_handlers=[InitProcessGroupKwargs(backend=backend)] if "RANK" in os.environ else [],
    )


def leave_process_group(zero_stage: int) -> None:
    """Destroy the process group, and the references to it that DeepSpeed keeps."""
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


def _stage3_config(parameters: int) -> dict[str, Any]:
    """How many weights a rank may hold beyond its share."""
    return {
        # Small parameters stay whole on every rank, for a message each would cost more time than
        # they take memory. DeepSpeed's own limit is 100,000, which is all of a small model.
        "stage3_param_persistence_threshold": largest_whole(parameters),
    }


def _offload_config(offload: Offload) -> dict[str, Any]:
    host = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    wanted = {"offload_optimizer": offload.optimizer, "offload_param": offload.parameters}
    return {name: host for name, is_wanted in wanted.items() if is_wanted}


def _deepspeed_config(
    stage: int,
    clip_norm: float,
    micro: int,
    accumulation: int,
    offload: Offload,
    parameters: int,
) -> dict[str, Any]:
    bucket = bucket_size(parameters)
    return {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": clip_norm,
        "zero_optimization": {
            "stage": stage,
            "overlap_comm": False,
            "contiguous_gradients": True,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            **_offload_config(offload),
            **(_stage3_config(parameters) if stage == 3 else {}),
        },
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }
