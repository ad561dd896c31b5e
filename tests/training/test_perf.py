"""FLOPs are those of the layers' formulas and of the published counts; peaks are by whole names."""

import time

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conf.compose import compose_config
from conf.enums import Precision
from conf.schema import TrainCommand
from training.models.unet import UNet
from training.perf import (
    Counted,
    device_peak,
    forward_flops,
    measured_peak,
    memory_of,
    meta_copy,
    peak_of,
    utilisation,
)


@pytest.fixture(scope="module")
def sd2() -> nn.Module:
    """Stable Diffusion 2's UNet, without numbers."""
    config = compose_config("train", ["experiment=sd21", "data.url=x", "out=y"])
    assert isinstance(config, TrainCommand)
    with torch.device("meta"):
        return UNet(config.unet, 4, 1024)


@pytest.mark.parametrize(("side", "giga"), [(64, 804), (32, 181)])
def test_the_unet_of_sd2_takes_its_published_flops(sd2: nn.Module, side: int, giga: float) -> None:
    def losses(model: nn.Module, batch: int, device: torch.device) -> dict[str, Tensor]:
        latents = torch.empty(batch, 4, side, side, device=device)
        text = torch.empty(batch, 77, 1024, device=device)
        mask = torch.ones(batch, 77, dtype=torch.bool, device=device)
        timesteps = torch.zeros(batch, dtype=torch.int64, device=device)
        return {"loss": model(latents, timesteps, text, mask).mean((1, 2, 3))}

    one = forward_flops(sd2, losses, 1)
    assert one / 1e9 == pytest.approx(giga, rel=0.03)
    assert forward_flops(sd2, losses, 3) == 3 * one


class Small(nn.Module):
    """A convolution, attention and a linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.linear = nn.Linear(8, 5)
        self.register_buffer("scale", torch.ones(5))

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.conv(images).flatten(2).mT
        mixed = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        answer: Tensor = self.linear(mixed) * self.scale
        return answer


def test_flops_are_those_of_the_layers_and_of_nothing_else() -> None:
    model = Small()

    def losses(wrapped: nn.Module, batch: Tensor, device: torch.device) -> dict[str, Tensor]:
        batch = (torch.ones(64, 64) @ torch.ones(64, 64)).sum() * batch  # not the model's
        return {"loss": wrapped(batch.to(device)).mean((1, 2))}

    convolution, attention, linear = 36 * 8 * 3 * 9, 2 * 36 * 36 * 8, 36 * 8 * 5
    wanted = 2 * 2 * (convolution + attention + linear)  # two images, two for a multiply-add
    assert forward_flops(meta_copy(model), losses, torch.ones(2, 3, 6, 6)) == wanted


def test_a_copy_without_numbers_leaves_the_model_alone() -> None:
    model = Small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    shapes = meta_copy(model)
    assert {value.device.type for value in shapes.state_dict().values()} == {"meta"}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    counted = Counted(model)
    assert torch.equal(counted(torch.ones(1, 3, 6, 6)), model(torch.ones(1, 3, 6, 6)))


@pytest.mark.parametrize(
    ("name", "precision", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", Precision.bf16, 989.4),
        ("NVIDIA H100 PCIe", Precision.bf16, 756),
        ("NVIDIA A100-SXM4-80GB", Precision.fp32, 156),
        ("NVIDIA L40S", Precision.bf16, 362),
        ("NVIDIA L4", Precision.bf16, 121),
    ],
)
def test_peaks_are_those_of_the_data_sheets(name: str, precision: Precision, tera: float) -> None:
    peak = peak_of(name, precision)
    assert peak is not None
    assert peak.flops == pytest.approx(tera * 1e12)
    assert str(peak) == f"{tera:,.0f} TFLOP/s ({peak.source})"


@pytest.mark.parametrize("name", ["NVIDIA RTX A1000 Laptop GPU", "NVIDIA L400", "some other"])
def test_a_name_that_only_looks_like_a_known_one_is_unknown(name: str) -> None:
    assert peak_of(name, Precision.bf16) is None
    assert memory_of(name) is None


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [
        ("NVIDIA H100 80GB HBM3", 80),
        ("NVIDIA A100-SXM4-40GB", 40),
        ("A100-80GB", 80),
        ("A100 80 GB", 80),
        ("NVIDIA H200", 141),
        ("NVIDIA H100 NVL", 94),
        ("NVIDIA L4", 24),
    ],
)
def test_memory_is_what_the_name_says_or_the_data_sheet(name: str, gigabytes: int) -> None:
    assert memory_of(name) == gigabytes * 10**9


def test_a_cpu_is_measured_in_under_a_second() -> None:
    began = time.perf_counter()
    peak = device_peak(torch.device("cpu"), Precision.fp32)
    assert time.perf_counter() - began < 1
    assert peak.source == "by a matrix product"
    # The same product by NumPy, within what a busy machine makes of it.
    factor = np.full((512, 512), 0.5, np.float32)
    tries = []
    for _ in range(10):
        began = time.perf_counter()
        factor @ factor
        tries.append(time.perf_counter() - began)
    assert 0.1 < peak.flops / (2 * 512**3 / min(tries)) < 10
    assert measured_peak(torch.device("cpu"), torch.float32) == pytest.approx(peak.flops, rel=0.9)


def test_utilisation_is_three_forward_passes_over_the_peak() -> None:
    # 804 GF at 137 images a second on one H100: the record's 34% of 989 TFLOP/s, nearly.
    assert utilisation(804e9, 137, 989e12) == pytest.approx(0.334, abs=0.001)
