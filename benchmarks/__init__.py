"""Benchmarks: what is claimed, measured beside the peers."""
