"""Programs of `benchmarks.launch`."""
