"""What the meta device counts is what a real forward pass on the CPU keeps."""

import math

import pytest
import torch
from torch import Tensor, nn

from conf.compose import compose_config
from conf.enums import Precision
from conf.groups import UNetConfig
from training.device import autocast_forward
from training.models.layers import ResBlock, SpatialTransformer
from training.models.unet import UNet
from training.plan.activations import kept_bytes
from training.recompute import recompute_blocks

MICRO, SIDE, TOKENS, WIDTH = 3, 16, 9, 48


def config_of(recipe: str) -> UNetConfig:
    """The UNet of a recipe."""
    config: UNetConfig = compose_config(
        "train", [f"experiment={recipe}", "data.url=x", "out=y"]
    ).unet
    return config


def call(model: nn.Module) -> Tensor:
    """A forward pass on the device of a model."""
    device = next(model.parameters()).device
    latents = torch.ones(MICRO, 4, SIDE, SIDE, device=device)
    answer: Tensor = model(
        latents.to(memory_format=torch.channels_last),
        torch.zeros(MICRO, device=device),
        torch.ones(MICRO, TOKENS, WIDTH, device=device),
        torch.ones(MICRO, TOKENS, dtype=torch.bool, device=device),
    )
    return answer


def really_kept(model: nn.Module) -> int:
    """Bytes of the memory that a forward pass saves and that is not the model's own."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        answer = call(model)
    assert answer.requires_grad
    return sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in own)


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("recompute", [False, True])
def test_the_count_is_that_of_a_real_pass(precision: Precision, recompute: bool) -> None:
    config = config_of("emoji_tiny")
    with torch.device("meta"):
        shapes = UNet(config, 4, WIDTH).to(memory_format=torch.channels_last)
    kept = kept_bytes(shapes, call, precision, "cpu", recompute)
    model = UNet(config, 4, WIDTH).to(memory_format=torch.channels_last)
    if recompute:
        recompute_blocks(model)
    autocast_forward(model, precision, torch.device("cpu"))
    real, tolerance = really_kept(model), 0.0
    if precision is not Precision.fp32:  # autocast casts a bias or two more
        tolerance = 0.001
    if recompute:  # while a block is computed again, its inside is there too
        real += max_inside(config, precision)
    assert kept == pytest.approx(real, rel=tolerance, abs=0)


def max_inside(config: UNetConfig, precision: Precision) -> int:
    """The most that a block of a real model keeps; a tensor counts where it is first kept."""
    model = UNet(config, 4, WIDTH).to(memory_format=torch.channels_last)
    autocast_forward(model, precision, torch.device("cpu"))
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}
    inside = []

    def total() -> int:
        return sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in own)

    for module in model.modules():
        if isinstance(module, ResBlock | SpatialTransformer):
            module.register_forward_pre_hook(lambda *_: inside.append(-total()))
            module.register_forward_hook(lambda *_: inside.append(inside.pop() + total()))

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call(model)
    return max(inside)


class Two(nn.Module):
    """A norm of a group and a linear map: few enough to count by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, 8)
        self.linear = nn.Linear(8, 8)

    def forward(self, images: Tensor) -> Tensor:
        """(2, 8, 4, 4) to (2, 16, 8)."""
        answer: Tensor = self.linear(self.norm(images).flatten(2).transpose(1, 2))
        return answer


@pytest.mark.parametrize(
    ("precision", "device", "numbers"),
    [
        # What the norm was given, and its mean and deviation; what the linear map was given.
        (Precision.fp32, "cuda", 4 * 256 + 4 * 4 + 4 * 256),
        # In 16 bits the norm stays in 32 on CUDA, and the map's weights are cast, biases unsaved.
        (Precision.bf16, "cuda", 4 * 256 + 4 * 4 + 2 * 256),
    ],
)
def test_a_count_by_hand(precision: Precision, device: str, numbers: int) -> None:
    with torch.device("meta"):
        model = Two()

    def run(given: nn.Module) -> Tensor:
        answer: Tensor = given(torch.ones(2, 8, 4, 4, device="meta"))
        return answer

    kept = kept_bytes(model, run, precision, device)
    weights = 2 * math.prod(model.linear.weight.shape) if precision is Precision.bf16 else 0
    assert kept == numbers + weights


def test_attention_keeps_no_matrix() -> None:
    config = config_of("sd21")

    def run(places: int) -> int:
        def one(model: nn.Module) -> Tensor:
            tokens = torch.ones(1, places, 320, device="meta")
            answer: Tensor = model(tokens, tokens)
            return answer

        with torch.device("meta"):
            attention = UNet(config, 4, WIDTH).down[0].stages[0].transformer.blocks[0]
        return kept_bytes(attention.self_attention, one, Precision.fp32, "cuda")

    # Twice as many places take twice the bytes: tokens, queries, keys, values, result, a row's sum.
    assert run(2048) == 2 * run(1024) == 2 * 1024 * 4 * (5 * 320 + 5)
