"""`ldm verify`: every byte against the manifest, and on request every meaning too."""

from conf.schema import VerifyCommand
from data.verify import verify as verify_bytes


def verify(config: VerifyCommand) -> int:
    """Check a dataset; latents are also encoded again where that is asked for.

    Returns:
        0 if all is as the manifest says, else 1.
    """
    broken = verify_bytes(config)
    if not config.audit:
        return broken
    from training.audit import audit  # which imports torch

    return max(broken, audit(config))
