"""What every program of `benchmarks.gpu` trains: sizes, and how they are told. Imports no torch."""

from dataclasses import dataclass

WIDTH, TOKENS = 1024, 77  # of captions
CHANNEL_MULT = (1, 2, 4, 4)
ATTENTION_LEVELS = (0, 1, 2)


@dataclass(frozen=True, slots=True)
class Case:
    """A UNet of Stable Diffusion 2's shape and a batch for one GPU.

    Args:
        places: Side of the latents; an image has eight times as many pixels a side.
        batch: Samples of a step.
        steps: That are timed, after as many as `warm_up`.
        channels: Of the UNet's first level; 320 are Stable Diffusion 2's.
        head_channels: Of an attention head.
        warm_up: Steps that are not timed.
    """

    places: int
    batch: int
    steps: int
    channels: int = 320
    head_channels: int = 64
    warm_up: int = 10


CASES = {
    "64x64": Case(places=64, batch=32, steps=60),
    "32x32": Case(places=32, batch=128, steps=60),
    # For a look at the script itself, anywhere.
    "tiny": Case(places=8, batch=4, steps=6, channels=32, head_channels=32, warm_up=2),
}
