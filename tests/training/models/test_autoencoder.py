import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import nn
from torch.distributions import Normal
from torch.distributions import kl_divergence as torch_kl

from conf.encoders import KLAutoencoderConfig
from tests.helpers.diffusers_keys import autoencoder_names, norm_eps, randomize
from training.models.autoencoder import (
    KLAutoencoder,
    kl_divergence,
    sample_moments,
    split_moments,
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def config(**changes) -> KLAutoencoderConfig:
    sizes = {"channels": 16, "channel_mult": [1, 2, 2], "res_blocks": 1, "norm_groups": 8}
    return KLAutoencoderConfig(**(sizes | changes))


def diffusers_twin(sizes: KLAutoencoderConfig) -> AutoencoderKL:
    levels = len(sizes.channel_mult)
    return AutoencoderKL(
        block_out_channels=[sizes.channels * mult for mult in sizes.channel_mult],
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        layers_per_block=sizes.res_blocks,
        latent_channels=sizes.latent_channels,
        norm_num_groups=sizes.norm_groups,
        mid_block_add_attention=sizes.attention,
        use_quant_conv=sizes.quant_convs,
        use_post_quant_conv=sizes.quant_convs,
    )


def assert_equal_with_gradients(ours, theirs, given):
    given.requires_grad_()
    output, expected = ours(given), theirs(given)
    assert expected.std() > 0.1  # else the comparison would say nothing
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(output.square().sum(), given)
    (expected_gradient,) = torch.autograd.grad(expected.square().sum(), given)
    scale = expected_gradient.abs().max()
    torch.testing.assert_close(gradient / scale, expected_gradient / scale, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention": False, "res_blocks": 2, "channel_mult": [1, 2]},
        {"quant_convs": False, "latent_channels": 16},
    ],
)
def test_equals_diffusers(changes):
    sizes = config(**changes)
    theirs = diffusers_twin(sizes)
    randomize(theirs)
    ours = KLAutoencoder(sizes)
    ours.load_state_dict(autoencoder_names(theirs.state_dict()), strict=True)
    assert norm_eps(ours) == autoencoder_names(norm_eps(theirs))
    images, latents = torch.randn(2, 3, 16, 8), torch.randn(2, ours.latent_channels, 4, 2)
    assert_equal_with_gradients(
        ours.encode, lambda images: theirs.encode(images).latent_dist.parameters, images
    )
    assert_equal_with_gradients(ours.decode, lambda latents: theirs.decode(latents).sample, latents)


def test_sampling_is_diffusers():
    moments, noise = 30 * torch.randn(2, 8, 4, 4), torch.randn(2, 4, 4, 4)
    theirs = DiagonalGaussianDistribution(moments)
    torch.testing.assert_close(sample_moments(moments, noise), theirs.mean + theirs.std * noise)
    torch.testing.assert_close(kl_divergence(moments), theirs.kl())


def test_without_noise_the_sample_is_the_mean():
    moments = torch.randn(2, 8, 3, 3)
    assert torch.equal(sample_moments(moments, torch.zeros(2, 4, 3, 3)), moments[:, :4])


def test_samples_have_the_moments_they_were_drawn_from():
    moments = torch.tensor([2.0, -1.0, 0.5, -3.0])[None, :, None, None].expand(1, 4, 200, 200)
    latents = sample_moments(moments, torch.randn(1, 2, 200, 200))
    torch.testing.assert_close(
        latents.mean((0, 2, 3)), torch.tensor([2.0, -1.0]), rtol=0, atol=0.02
    )
    torch.testing.assert_close(
        latents.var((0, 2, 3)).log(), torch.tensor([0.5, -3.0]), rtol=0, atol=0.05
    )


def test_log_variance_is_clamped_where_moments_are_split_and_nowhere_else():
    moments = torch.tensor([5.0, -5.0, -100.0, 100.0])[None, :, None, None]
    mean, log_variance = split_moments(moments)
    assert mean.flatten().tolist() == [5.0, -5.0]
    assert log_variance.flatten().tolist() == [-30.0, 20.0]
    autoencoder = KLAutoencoder(config())
    nn.init.constant_(autoencoder.quant_conv.bias, 100.0)
    assert autoencoder.encode(torch.zeros(1, 3, 8, 8)).min() > 50


def test_kl_is_the_closed_form():
    moments = torch.randn(3, 8, 2, 5)
    mean, log_variance = split_moments(moments)
    expected = torch_kl(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum((1, 2, 3))
    torch.testing.assert_close(kl_divergence(moments), expected)
    assert torch.equal(kl_divergence(torch.zeros(2, 8, 2, 2)), torch.zeros(2))


def test_kl_of_16_bit_moments_is_summed_in_32():
    moments = torch.randn(1, 8, 32, 32).bfloat16()
    torch.testing.assert_close(kl_divergence(moments), kl_divergence(moments.float()))
    assert kl_divergence(torch.full((1, 8, 4, 4), 20.0).half()).isfinite().all()


@pytest.mark.parametrize(("patch_size", "levels"), [(1, 1), (1, 3), (2, 2), (4, 1)])
def test_downsampling_and_shapes(patch_size, levels):
    autoencoder = KLAutoencoder(
        config(patch_size=patch_size, channel_mult=[1] * levels, latent_channels=5)
    )
    factor = patch_size * 2 ** (levels - 1)
    assert autoencoder.downsampling == factor
    moments = autoencoder.encode(torch.randn(2, 3, 8, 16))
    assert moments.shape == (2, 10, 8 // factor, 16 // factor)
    assert autoencoder.decode(moments[:, :5]).shape == (2, 3, 8, 16)


@pytest.mark.parametrize("quant_convs", [True, False])
def test_says_what_it_is_and_where_its_moments_come_from(quant_convs):
    autoencoder = KLAutoencoder(config(quant_convs=quant_convs, latent_channels=5))
    assert autoencoder.stochastic
    assert autoencoder.latent_channels == 5
    nn.init.constant_(autoencoder.moments_conv.bias, 100.0)
    assert autoencoder.encode(torch.zeros(1, 3, 8, 8)).min() > 50


@pytest.mark.parametrize("quant_convs", [True, False])
def test_with_a_linear_shortcut_it_starts_as_the_linear_map(quant_convs):
    autoencoder = KLAutoencoder(config(quant_convs=quant_convs, linear_shortcut=True))
    images = torch.randn(1, 3, 8, 8)
    assert torch.equal(autoencoder.encode(images), autoencoder.shortcut.encode(images))


def test_patches_stay_in_place():
    """Pixels of one patch move that patch's moments, and its latents those pixels."""
    autoencoder = KLAutoencoder(config(patch_size=4, channel_mult=[1], attention=False))
    # Without normalisation and 3x3 windows, a place sees nothing but itself.
    for module in autoencoder.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            middle = module.weight.detach()[:, :, 1:2, 1:2].clone()
            module.weight.data.zero_()[:, :, 1:2, 1:2] = middle
    autoencoder.encoder.norm_out = autoencoder.decoder.norm_out = nn.Identity()
    images = torch.zeros(1, 3, 16, 16, requires_grad=True)
    moments = autoencoder.encode(images)
    (pixels,) = torch.autograd.grad(moments[:, :, 1, 2].sum(), images)
    seen = pixels.abs().sum((0, 1)).nonzero()
    assert seen.min(0).values.tolist() == [4, 8]
    assert seen.max(0).values.tolist() == [7, 11]
    latents = torch.zeros(1, 4, 4, 4, requires_grad=True)
    patch = autoencoder.decode(latents)[:, :, 4:8, 8:12]
    (places,) = torch.autograd.grad(patch.sum(), latents)
    assert places.abs().sum((0, 1)).nonzero().tolist() == [[1, 2]]


def test_forward_is_encode_sample_decode():
    autoencoder = KLAutoencoder(config())
    images, noise = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 2, 2)
    reconstructions, moments = autoencoder(images, noise)
    torch.testing.assert_close(moments, autoencoder.encode(images))
    expected = autoencoder.decode(sample_moments(moments, noise))
    torch.testing.assert_close(reconstructions, expected)
    assert reconstructions.shape == images.shape


def test_channels_last_gives_the_same_in_its_layout():
    autoencoder = KLAutoencoder(config(patch_size=2))
    randomize(autoencoder)
    images, noise = torch.randn(2, 3, 16, 16), torch.randn(2, 4, 2, 2)
    expected, _ = autoencoder(images, noise)
    autoencoder.to(memory_format=torch.channels_last)
    images = images.to(memory_format=torch.channels_last)
    output, moments = autoencoder(images, noise)
    assert moments.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


def test_channels_that_groups_do_not_divide_are_refused_by_name():
    with pytest.raises(ValueError, match=r"autoencoder.channels=20.*autoencoder.norm_groups=8"):
        KLAutoencoder(config(channels=20))


@pytest.mark.parametrize("size", [(12, 16), (16, 12)])
def test_images_that_cannot_be_made_smaller_are_refused_by_name(size):
    autoencoder = KLAutoencoder(config(patch_size=2))
    with pytest.raises(ValueError, match=r"autoencoder.patch_size=2.*8 times.*1\d x 1\d pixels"):
        autoencoder.encode(torch.randn(1, 3, *size))
