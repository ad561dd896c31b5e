"""diffusers' UNet of the same shape in a bare loop: forward, backward, AdamW."""

import torch
from diffusers import UNet2DConditionModel

from benchmarks.trainers.work import WIDTH, batch_of, tell_step_time, told_case

sizes = told_case()
levels = range(len(sizes.channel_mult))
attends = [level in sizes.attention_levels for level in levels]
widths = [sizes.channels * mult for mult in sizes.channel_mult]
torch.manual_seed(0)
model = UNet2DConditionModel(
    block_out_channels=widths,
    down_block_types=["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
    up_block_types=["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
    cross_attention_dim=WIDTH,
    # diffusers' name for the number of heads
    attention_head_dim=[width // sizes.head_channels for width in widths],
    norm_num_groups=sizes.norm_groups,
    use_linear_projection=True,
)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
noisy, timesteps, captions, target = batch_of(sizes)


def step() -> None:
    output = model(noisy, timesteps, captions).sample
    torch.nn.functional.mse_loss(output, target).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


tell_step_time(step)
