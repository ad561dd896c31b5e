"""Programs that take the same training steps, each its own way; see `benchmarks.train`."""
