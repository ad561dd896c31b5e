"""Our UNet in the same bare loop, as the engine lays it out."""

import torch

from benchmarks.trainers.work import WIDTH, batch_of, tell_step_time, told_case
from conf.groups import UNetConfig
from training.device import keep_freed_memory
from training.models.unet import UNet

sizes = told_case()
keep_freed_memory()
torch.manual_seed(0)
config = UNetConfig(
    channels=sizes.channels,
    channel_mult=list(sizes.channel_mult),
    attention_levels=list(sizes.attention_levels),
    head_channels=sizes.head_channels,
    norm_groups=sizes.norm_groups,
)
model = UNet(config, 4, WIDTH)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
noisy, timesteps, captions, target = batch_of(sizes)


def step() -> None:
    output = model(noisy, timesteps, captions)
    torch.nn.functional.mse_loss(output, target).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


tell_step_time(step)
