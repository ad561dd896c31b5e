"""Seconds of an update of averaged weights: diffusers' EMAModel, its foreach form, and ours."""

import json
import statistics
import time

import torch
from diffusers import UNet2DConditionModel
from diffusers.training_utils import EMAModel
from torch import nn

from training.ema import update_ema  # imports only torch

torch.set_num_threads(2)
with torch.device("meta"):  # Stable Diffusion 2's, for its parameters' sizes
    unet = UNet2DConditionModel(
        block_out_channels=(320, 640, 1280, 1280),
        attention_head_dim=(5, 10, 20, 20),
        cross_attention_dim=1024,
        use_linear_projection=True,
    )
sizes = [parameter.shape for parameter in unet.parameters()]
weights = nn.ParameterList([nn.Parameter(torch.ones(size)) for size in sizes])
plain = [parameter.detach() for parameter in weights]
averages = [parameter.clone() for parameter in plain]
theirs = {
    "EMAModel": EMAModel(weights.parameters()),
    "EMAModel, foreach": EMAModel(weights.parameters(), foreach=True),
}
seconds: dict[str, list[float]] = {name: [] for name in (*theirs, "Latent Foundry")}
for _ in range(4):
    for name in seconds:
        began = time.perf_counter()
        if name in theirs:
            theirs[name].step(weights.parameters())
        else:
            update_ema(averages, plain, 0.001)
        seconds[name].append(time.perf_counter() - began)
medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
print(json.dumps({"parameters": sum(size.numel() for size in sizes), "seconds": medians}))
