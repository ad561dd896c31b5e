"""Blocks that are computed again give the same gradients, bit for bit, and keep less."""

import torch
from torch import Tensor

from conf.groups import UNetConfig
from tests.helpers.diffusers_keys import randomize
from training.models.unet import UNet
from training.recompute import recompute_blocks


def step(recompute: bool) -> tuple[list[Tensor], int]:
    """Gradients of a step with dropout, and the bytes that were kept for them."""
    torch.manual_seed(0)
    config = UNetConfig(
        channels=16,
        channel_mult=[1, 2],
        res_blocks=1,
        attention_levels=[1],
        head_channels=8,
        norm_groups=4,
        dropout=0.3,
    )
    unet = UNet(config, 4, 12)
    randomize(unet)
    if recompute:
        recompute_blocks(unet)
    kept = 0

    def note(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    torch.manual_seed(1)
    inputs = torch.randn(2, 4, 16, 16), torch.tensor([3, 700]), torch.randn(2, 5, 12)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = unet(*inputs).square().mean()
    loss.backward()
    return [parameter.grad for parameter in unet.parameters()], kept


def test_gradients_are_the_same_bits_and_less_is_kept() -> None:
    (plain, kept), (again, kept_again) = step(recompute=False), step(recompute=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert any(gradient.any() for gradient in plain)
    assert kept_again < 0.5 * kept
