"""Ranks, engines and checkpoints: the only room that imports accelerate, deepspeed or
torch.distributed.
"""
