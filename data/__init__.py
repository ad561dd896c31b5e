"""Datasets: storage, shards, manifests, order, reading. Bytes and numpy, no torch."""
