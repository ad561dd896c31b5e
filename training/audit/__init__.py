"""`ldm verify audit=N`: whether stored latents and texts are what their images and captions give.

Checksums show that bytes are those that were written. That the right numbers were written, with the
weights and the preprocessing that the manifest names, only encoding again can show.
"""

from training.audit.command import audit
from training.audit.material import Material, open_material

__all__ = ["Material", "audit", "open_material"]
