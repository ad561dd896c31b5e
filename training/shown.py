"""What a person sees of a training beside its speed, short enough for a line of a terminal."""

from collections.abc import Mapping


def shown(means: Mapping[str, float], figures: Mapping[str, float]) -> str:
    """A step's figures in a few words.

    Args:
        means: Of the step: `loss`, `lr`, `grad_norm`.
        figures: Of the last line of metrics, as there; empty before the first one.
    """
    parts = [
        f"loss {means['loss']:.4f}",
        f"lr {means['lr']:.1e}",
        f"grad {means['grad_norm']:.2g}",
    ]
    if figures:
        memory = figures.get("peak_device_memory", figures["peak_memory"])
        parts += [
            f"wait {figures['waiting_share']:.1%}",
            f"MFU {figures['mfu']:.1%}",
            f"{memory / 1e9:.1f} GB",
        ]
    return ", ".join(parts)
