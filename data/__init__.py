"""Datasets: storage, shards, manifests, order and reading. Works in bytes and numpy; imports no
torch.
"""
