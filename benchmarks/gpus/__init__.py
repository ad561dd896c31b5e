"""Programs that train on one GPU; see `benchmarks.gpu`."""
