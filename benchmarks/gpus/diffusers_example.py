"""A loop as diffusers' text-to-image example has it by default, in bf16, with averaged weights.

    python -m benchmarks.gpus.diffusers_example CASE cached|uncached

Cached inputs lie in memory: reading them costs it nothing. Uncached, each step encodes images and
token ids that lie in memory, with models of Stable Diffusion 2's sizes. Weights are random.
"""

import json
import statistics
import sys
import time

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.gpus.work import ATTENTION_LEVELS, CASES, CHANNEL_MULT, TOKENS, WIDTH, Case


def build_unet(case: Case) -> UNet2DConditionModel:
    """Stable Diffusion 2's UNet, or one of fewer channels."""
    attends = [level in ATTENTION_LEVELS for level in range(len(CHANNEL_MULT))]
    widths = [case.channels * mult for mult in CHANNEL_MULT]
    return UNet2DConditionModel(
        block_out_channels=widths,
        down_block_types=["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        up_block_types=["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        cross_attention_dim=WIDTH,
        attention_head_dim=[width // case.head_channels for width in widths],
        use_linear_projection=True,
    )


def main(name: str, way: str) -> None:
    """Prints one line of JSON."""
    case, cached = CASES[name], way == "cached"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    unet = build_unet(case).to(device)
    ema = EMAModel(unet.parameters(), model_cls=UNet2DConditionModel, model_config=unet.config)
    ema.to(device)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4)
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    )
    encode = None if cached else _encoders(case, device)
    inputs = _inputs(case, cached)

    def step() -> None:
        first, second = (one.to(device) for one in inputs)
        latents, captions = (first, second) if encode is None else encode(first, second)
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (case.batch,), device=device)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        with torch.autocast(device.type, torch.bfloat16):
            output = unet(noisy, timesteps, captions, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(output.float(), noise.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())
        loss.item()  # as the example logs it

    seconds = []
    for _ in range(case.warm_up + case.steps):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    speed = case.batch / statistics.mean(seconds[case.warm_up :])
    print(json.dumps({"images_per_second": speed}))


def _inputs(case: Case, cached: bool) -> tuple[Tensor, Tensor]:
    if cached:
        latents = torch.randn(case.batch, 4, case.places, case.places)
        return latents, torch.randn(case.batch, TOKENS, WIDTH)
    side = 8 * case.places
    return torch.randn(case.batch, 3, side, side), torch.randint(0, 49408, (case.batch, TOKENS))


def _encoders(case: Case, device: torch.device):  # type: ignore[no-untyped-def]
    """Frozen, in bf16, as the example casts them."""
    autoencoder = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=23,
            num_attention_heads=16,
            hidden_act="gelu",
        )
    )
    models = [one.to(device, torch.bfloat16).requires_grad_(False) for one in (autoencoder, text)]

    def encode(images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        drawn = models[0].encode(images.to(torch.bfloat16)).latent_dist.sample()
        latents = drawn * autoencoder.config.scaling_factor
        return latents, models[1](ids, return_dict=False)[0]

    return encode


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
