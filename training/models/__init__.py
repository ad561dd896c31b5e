"""Networks. They know nothing of ranks, data or diffusion."""
