"""Ranks, engines, checkpoints; alone imports accelerate, deepspeed, torch.distributed."""
