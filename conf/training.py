"""The settings of training: optimizer, engine, what is kept, what is watched. Imports no torch."""

from dataclasses import dataclass

from conf.diffusion import SamplerConfig
from conf.enums import Decay, EngineKind, OnNonfinite, OptimizerKind, Precision
from conf.fields import group, setting


@dataclass(kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW with a learning rate that is a function of the samples seen."""

    kind: OptimizerKind = setting(
        "adamw, or adamw_8bit: moments in 8 bits, a quarter of their memory, by bitsandbytes; with "
        "engine=single and ddp",
        OptimizerKind.adamw,
    )
    lr: float = setting("peak learning rate", 1e-4, low=1e-12)
    betas: list[float] = setting(
        "decay of the first and second moments", [0.9, 0.999], low=0, high=0.999999
    )
    eps: float = setting("added to the denominator", 1e-8, low=0)
    weight_decay: float = setting("decoupled weight decay", 0.01, low=0)
    warmup_samples: int = setting(
        "samples over which the learning rate rises from 0", 10_000, low=0
    )
    decay: Decay = setting("what follows the warm-up", Decay.constant)
    clip_norm: float = setting(
        "gradients are scaled down to this global norm; 0 is off", 1.0, low=0
    )


@dataclass(kw_only=True, slots=True)
class EngineConfig:
    """How training is spread over ranks."""

    kind: EngineKind = setting(
        "single, ddp, or DeepSpeed's zero1 (optimizer state in shares), zero2 (gradients too) and "
        "zero3 (weights too)",
        EngineKind.single,
    )
    precision: Precision = setting(
        "in what the forward pass computes: bf16, fp16 (losses are scaled so that gradients do not "
        "vanish) or fp32; weights and optimizer stay fp32",
        Precision.bf16,
    )
    channels_last: bool | None = setting(
        "lay images out with their channels together, as the convolutions of GPUs want them; null: "
        "on GPUs",
        None,
    )
    recompute: bool = setting(
        "keep only what goes into each block, and compute its inside again on the way back: less "
        "memory, a third more work",
        False,
    )
    compile: bool = setting(
        "have torch.compile make code for the model: faster on a GPU after minutes at the start",
        False,
    )
    offload_optimizer: bool = setting(
        "with zero1 to zero3: keep the optimizer's state, and update the weights, in host memory",
        False,
    )
    offload_parameters: bool = setting(
        "with zero3: keep the shares of the weights in host memory", False
    )


@dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    """When the state of a run is kept, and for how long."""

    every_samples: int = setting("samples between checkpoints", 100_000, low=1)
    keep_last: int = setting("newest checkpoints kept; older ones are removed", 2, low=1)
    keep_every_samples: int | None = setting(
        "also keep, for good, the first checkpoint after every so many samples; null keeps none",
        None,
        low=1,
    )
    keep_best: int = setting(
        "also keep so many with the lowest validation loss; needs validation.url", 0, low=0
    )


@dataclass(kw_only=True, slots=True)
class GuardsConfig:
    """What is watched while training goes on."""

    digest_every_samples: int = setting(
        "samples between two comparisons of the weights that ranks hold in common; 0 is never",
        100_000,
        low=0,
    )
    nonfinite: OnNonfinite = setting(
        "what a loss or gradient that is not finite leads to, before the weights change: stop, or "
        "skip the batch",
        OnNonfinite.stop,
    )
    max_skipped: int = setting("with skip, most batches skipped in a run", 10, low=0)
    spike_deviations: float = setting(
        "a loss so many standard deviations above its running mean is reported; 0 is never",
        6.0,
        low=0,
    )
    hang_seconds: float = setting(
        "of several ranks without any progress, after which they name the one at fault and end; 0 "
        "is never",
        600.0,
        low=0,
        high=1200,
    )
    dry_batch: bool = setting(
        "try the first micro-batch, forward and backward, on every rank before the first step", True
    )
    free_memory_share: float = setting(
        "of a rank's memory that must be left when it has been tried", 0.05, low=0, high=1
    )


@dataclass(kw_only=True, slots=True)
class ValidationConfig:
    """What is measured and shown with the averaged weights while training goes on."""

    url: str | None = setting(
        "URL of a held-out dataset of the kind that is trained on; null measures nothing", None
    )
    samples: int = setting("samples of it that are measured; all, if it has no more", 1024, low=1)
    every_samples: int = setting("samples of training between two measurements", 100_000, low=1)
    bins: int = setting("equal parts of the times, each with a loss of its own", 10, low=1)
    seed: int = setting(
        "seed of its noise, the same every time", 0, low=0, high=4611686018427387904
    )
    prompts: list[str] = setting("captions of which sample grids are made; none makes none", [])
    grid_every_samples: int = setting("samples of training between two grids", 100_000, low=1)
    sampler: SamplerConfig = group(SamplerConfig, "how grids are sampled")


@dataclass(kw_only=True, slots=True)
class TrainingConfig:
    """How long and from what seed."""

    samples: int = setting("samples to train on, counted over all ranks and epochs", low=1)
    seed: int = setting(
        "seed of weights, noise, timesteps and caption dropout", 0, low=0, high=4611686018427387904
    )
    ema_half_life: int = setting(
        "half-life of the averaged weights in samples; at most a tenth of the samples seen so far",
        500_000,
        low=1,
    )
    ema_lengths: list[float] = setting(
        "lengths of further averages, [0.05,0.1], of which one of any length is rebuilt afterwards: "
        "standard deviations of their profiles, as shares of the training so far",
        [],
        low=0.01,
        high=0.28,
    )
    ema_snapshot_every_samples: int = setting(
        "with ema_lengths: samples between two copies of those averages, kept for good",
        1_000_000,
        low=1,
    )
