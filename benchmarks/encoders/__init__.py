"""Programs that encode the same images and captions, each its own way; see `benchmarks.cache`."""
