"""`ldm verify`: every byte against the manifest, and on request every meaning too."""

from conf.schema import VerifyCommand
from data.verify import verify as verify_bytes


def verify(config: VerifyCommand) -> int:
    """Check a dataset; latents are also encoded again where that is asked for.

    Returns:
        0 if all is as the manifest says, else 1.

    Raises:
        UserError: There is no dataset, or what an audit needs is not there.
    """
    if not config.audit:
        return verify_bytes(config)
    from training.audit import audit, open_material  # which imports torch

    material = open_material(config)  # what is missing is named before hours of reading, not after
    broken = verify_bytes(config)
    return max(broken, audit(config, material))
