import pytest
import torch
from diffusers import AutoencoderTiny

from tests.helpers.diffusers_keys import randomize
from training.models.tiny import TinyAutoencoder, TinySizes

SMALL = TinySizes(channels=8, encoder_blocks=(1, 2, 1), decoder_blocks=(2, 1, 0))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def diffusers_twin(sizes: TinySizes) -> AutoencoderTiny:
    levels = len(sizes.encoder_blocks)
    return AutoencoderTiny(
        encoder_block_out_channels=(sizes.channels,) * levels,
        decoder_block_out_channels=(sizes.channels,) * levels,
        latent_channels=sizes.latent_channels,
        num_encoder_blocks=sizes.encoder_blocks,
        num_decoder_blocks=sizes.decoder_blocks,
    )


def assert_close_at_scale(output, expected):
    assert expected.std() > 0.01  # else the comparison would say nothing
    scale = expected.abs().max()
    torch.testing.assert_close(output / scale, expected / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "sizes", [SMALL, TinySizes(16, 8, (0, 1), (1, 2)), TinySizes(), TinySizes(latent_channels=16)]
)
def test_equals_diffusers(sizes):
    theirs = randomize(diffusers_twin(sizes))
    ours = TinyAutoencoder(sizes)
    ours.load_state_dict(
        {name.replace(".layers.", ".", 1): value for name, value in theirs.state_dict().items()}
    )
    images, latents = (
        torch.rand(2, 3, 16, 24) * 2 - 1,
        4 * torch.randn(2, ours.latent_channels, 2, 3),
    )
    with torch.no_grad():
        assert_close_at_scale(ours.encode(images), theirs.encode(images).latents)
        assert_close_at_scale(ours.decode(latents), theirs.decode(latents).sample)


@pytest.mark.parametrize("sizes", [SMALL, TinySizes(16, 4, (1, 1), (1, 1))])
def test_says_what_it_is(sizes):
    autoencoder = TinyAutoencoder(sizes)
    factor = 2 ** (len(sizes.encoder_blocks) - 1)
    assert autoencoder.downsampling == factor
    assert autoencoder.latent_channels == sizes.latent_channels
    assert not autoencoder.stochastic
    latents = autoencoder.encode(torch.zeros(1, 3, 8, 16))
    assert latents.shape == (1, sizes.latent_channels, 8 // factor, 16 // factor)
    assert autoencoder.decode(latents).shape == (1, 3, 8, 16)


def test_latents_far_out_are_bounded():
    autoencoder = TinyAutoencoder(SMALL)
    far, farther = (autoencoder.decode(torch.full((1, 4, 2, 2), size)) for size in (1e3, 1e6))
    torch.testing.assert_close(far, farther)


def test_channels_last_gives_the_same_in_its_layout():
    autoencoder = randomize(TinyAutoencoder(SMALL))
    images = torch.rand(1, 3, 16, 16)
    expected = autoencoder.decode(autoencoder.encode(images))
    autoencoder.to(memory_format=torch.channels_last)
    latents = autoencoder.encode(images.to(memory_format=torch.channels_last))
    assert latents.is_contiguous(memory_format=torch.channels_last)
    assert_close_at_scale(autoencoder.decode(latents), expected)


def test_images_that_cannot_be_made_smaller_are_refused():
    with pytest.raises(ValueError, match=r"4 times smaller.*8 x 10 pixels"):
        TinyAutoencoder(SMALL).encode(torch.zeros(1, 3, 8, 10))


def test_levels_that_do_not_lead_back_are_refused():
    with pytest.raises(ValueError, match="3 levels in the encoder, 2 in the decoder"):
        TinyAutoencoder(TinySizes(encoder_blocks=(1, 1, 1), decoder_blocks=(1, 1)))
