import pytest
import torch

from conf.groups import UNetConfig
from tests.helpers.diffusers_keys import randomize
from training.models.classes import ClassEmbedding, digits_of, numbers_of
from training.models.unet import UNet

SIZES = {
    "channels": 16,
    "channel_mult": [1, 2],
    "res_blocks": 1,
    "attention_levels": [1],
    "head_channels": 8,
    "norm_groups": 8,
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_number_survives_every_format(dtype: torch.dtype) -> None:
    numbers = torch.arange(65_536)
    digits = digits_of(numbers)
    assert digits.shape == (65_536, 2)
    assert torch.equal(numbers_of(digits.to(dtype)), numbers)


@pytest.mark.parametrize("pooled", [False, True])
def test_a_unet_of_classes_is_one_of_text_that_is_given_their_vectors(pooled: bool) -> None:
    config = UNetConfig(**SIZES, class_width=12, pooled_text=pooled)
    ours = randomize(UNet(config, 4, 2, classes=300))
    of_text = UNet(config, 4, 12)
    weights = ours.state_dict()
    table = weights.pop("class_embedding.table.weight")
    assert table.shape == (301, 12)  # the last is no class
    of_text.load_state_dict(weights)
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    times, classes = torch.tensor([1, 500, 900]), torch.tensor([[0], [299], [300]])
    with torch.no_grad():
        got = ours(latents, times, digits_of(classes), torch.ones(3, 1, dtype=torch.bool))
        wanted = of_text(latents, times, table[classes])
    torch.testing.assert_close(got, wanted)
    assert got.shape == latents.shape


def test_a_number_beyond_the_table_is_no_class() -> None:
    embedding = ClassEmbedding(10, 4)
    assert embedding(digits_of(torch.tensor([[10]]))).shape == (1, 1, 4)
    with pytest.raises(IndexError):
        embedding(digits_of(torch.tensor([[11]])))


def test_variances_take_as_many_channels_again() -> None:
    latents = torch.randn(2, 4, 8, 8)
    unet = UNet(UNetConfig(**SIZES), 4, 12, out_channels=8)
    assert unet(latents, torch.tensor([1, 2]), torch.randn(2, 3, 12)).shape == (2, 8, 8, 8)
