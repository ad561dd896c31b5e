"""`ldm cache`: raw shards to shards of latents and text embeddings."""

from training.cache.command import make_cache

__all__ = ["make_cache"]
