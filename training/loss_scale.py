"""The factor of losses in fp16, which keeps small gradients from becoming zero.

It doubles after many updates in a row that were finite and halves after one that was not, which is
not applied. Powers of two, so that scaling and undoing it change no bit.

Source: Micikevicius et al. 2018, "Mixed precision training", section 3.2.
"""

from dataclasses import dataclass

FIRST, GREATEST = 2.0**16, 2.0**24
UPDATES_TO_GROW = 2000


@dataclass(frozen=True, slots=True)
class LossScale:
    """By what losses are multiplied.

    Args:
        factor: A power of two, at least 1.
        finite: Updates in a row, at this factor, that were applied.
    """

    factor: float = FIRST
    finite: int = 0

    def after(self, applied: bool) -> "LossScale":
        """What the next update uses."""
        if not applied:
            return LossScale(max(self.factor / 2, 1.0))
        if self.finite + 1 >= UPDATES_TO_GROW:
            return LossScale(min(self.factor * 2, GREATEST))
        return LossScale(self.factor, self.finite + 1)
