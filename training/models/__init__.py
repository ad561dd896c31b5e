"""Networks. They know nothing of ranks, data or diffusion."""

from training.models.operators import define_missing_operators

define_missing_operators()  # before any model of a library is imported
