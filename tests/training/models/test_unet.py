import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from conf.groups import UNetConfig
from tests.helpers.diffusers_keys import norm_eps, randomize, unet_names
from training.models.unet import UNet, masked_mean

CONTEXT_WIDTH = 12


def config(**changes) -> UNetConfig:
    sizes = {
        "channels": 16,
        "channel_mult": [1, 2, 2],
        "res_blocks": 2,
        "attention_levels": [1],
        "head_channels": 8,
        "norm_groups": 8,
    }
    return UNetConfig(**(sizes | changes))


def build(**changes) -> UNet:
    torch.manual_seed(0)
    unet = UNet(config(**changes), latent_channels=4, context_width=CONTEXT_WIDTH)
    randomize(unet)
    return unet


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 8, 4, generator=generator)
    context = torch.randn(2, 5, CONTEXT_WIDTH, generator=generator)
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    return latents, torch.tensor([3, 761]), context, mask


def diffusers_twin(sizes: UNetConfig) -> UNet2DConditionModel:
    levels = range(len(sizes.channel_mult))
    attends = [level in sizes.attention_levels for level in levels]
    widths = [sizes.channels * mult for mult in sizes.channel_mult]
    return UNet2DConditionModel(
        block_out_channels=widths,
        down_block_types=["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        up_block_types=["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        layers_per_block=sizes.res_blocks,
        norm_num_groups=sizes.norm_groups,
        cross_attention_dim=CONTEXT_WIDTH,
        # diffusers' name for the number of heads
        attention_head_dim=sizes.heads or [width // sizes.head_channels for width in widths],
        transformer_layers_per_block=sizes.transformer_depth,
        use_linear_projection=True,
    )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"channel_mult": [1, 2], "res_blocks": 1, "attention_levels": [0], "transformer_depth": 2},
        {"heads": 4},
    ],
)
def test_equals_diffusers(changes, masked):
    torch.manual_seed(0)
    sizes = config(**changes)
    theirs = diffusers_twin(sizes)
    randomize(theirs)
    ours = UNet(sizes, latent_channels=4, context_width=CONTEXT_WIDTH)
    ours.load_state_dict(unet_names(theirs.state_dict()), strict=True)
    assert norm_eps(ours) == unet_names(norm_eps(theirs))

    latents, timesteps, context, mask = inputs()
    mask = mask if masked else None
    latents.requires_grad_()
    output = ours(latents, timesteps, context, mask)
    (gradient,) = torch.autograd.grad(output.square().sum(), latents)
    expected = theirs(latents, timesteps, context, encoder_attention_mask=mask).sample
    (expected_gradient,) = torch.autograd.grad(expected.square().sum(), latents)

    assert expected.std() > 0.1  # else the comparison would say nothing
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    scale = expected_gradient.abs().max()
    torch.testing.assert_close(gradient / scale, expected_gradient / scale, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pooled_text", [False, True])
def test_padding_has_no_influence(pooled_text):
    unet = build(pooled_text=pooled_text)
    latents, timesteps, context, mask = inputs()
    expected = unet(latents, timesteps, context, mask)
    changed = torch.where(mask[:, :, None], context, torch.full_like(context, 1e3))
    torch.testing.assert_close(unet(latents, timesteps, changed, mask), expected)
    shortened = unet(latents[1:], timesteps[1:], context[1:, :2])
    torch.testing.assert_close(expected[1:], shortened, rtol=1e-4, atol=1e-5)


def test_pooled_text_reaches_a_network_without_the_order_of_tokens():
    unet, plain = build(pooled_text=True), build()
    plain.load_state_dict(unet.state_dict(), strict=False)
    latents, timesteps, context, _ = inputs()
    added = unet._embed(latents, timesteps, masked_mean(context, None))
    without = plain._embed(latents, timesteps, None)
    assert not torch.allclose(added, without, atol=0.1)
    backwards = unet._embed(latents, timesteps, masked_mean(context.flip(1), None))
    torch.testing.assert_close(added, backwards)


def test_pooled_vectors_take_the_place_of_the_mean():
    latents, timesteps, context, mask = inputs()
    mean = masked_mean(context, mask)
    unet = build(pooled_text=True)
    expected = unet(latents, timesteps, context, mask)
    torch.testing.assert_close(unet(latents, timesteps, context, mask, mean), expected)
    assert not torch.allclose(unet(latents, timesteps, context, mask, 1 - 2 * mean), expected)
    plain = build()
    without = plain(latents, timesteps, context, mask)
    assert torch.equal(plain(latents, timesteps, context, mask, mean), without)


def test_masked_mean_is_the_mean_of_the_real_tokens():
    tokens = torch.randn(3, 4, 2)
    mask = torch.tensor([[True] * 4, [True, False, True, False], [False] * 4])
    expected = torch.stack([tokens[0].mean(0), tokens[1, [0, 2]].mean(0), torch.zeros(2)])
    torch.testing.assert_close(masked_mean(tokens, mask), expected)
    torch.testing.assert_close(masked_mean(tokens, None), tokens.mean(1))


def test_starts_at_zero_and_every_weight_learns_once_the_zeros_have_moved():
    torch.manual_seed(0)
    unet = UNet(config(pooled_text=True), latent_channels=4, context_width=CONTEXT_WIDTH)
    assert torch.equal(unet(*inputs()), torch.zeros(2, 4, 8, 4))
    randomize(unet)
    unet(*inputs()).square().sum().backward()
    still = [name for name, weight in unet.named_parameters() if not weight.grad.abs().sum() > 0]
    assert still == []


def test_dropout_is_in_every_residual_block_and_nowhere_else():
    unet = build(dropout=0.25)
    rates = {name: part.p for name, part in unet.named_modules() if isinstance(part, nn.Dropout)}
    assert set(rates.values()) == {0.25}
    assert all(name.endswith(".res.dropout") for name in rates)
    assert len(rates) == 3 * 2 + 2 + 3 * 3


def test_float_timesteps_equal_integer_ones():
    unet = build()
    latents, timesteps, context, mask = inputs()
    expected = unet(latents, timesteps, context, mask)
    assert torch.equal(unet(latents, timesteps.double(), context, mask), expected)
    assert not torch.allclose(unet(latents, timesteps + 0.5, context, mask), expected)


def test_channels_last_gives_the_same_in_its_layout():
    unet = build()
    latents, timesteps, context, mask = inputs()
    expected = unet(latents, timesteps, context, mask)
    unet.to(memory_format=torch.channels_last)
    output = unet(latents.to(memory_format=torch.channels_last), timesteps, context, mask)
    assert output.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


def test_bf16_weights_and_autocast():
    unet = build(pooled_text=True)
    latents, timesteps, context, mask = inputs()
    expected = unet(latents, timesteps, context, mask)
    with torch.autocast("cpu", torch.bfloat16):
        cast = unet(latents, timesteps, context, mask)
    assert (cast - expected).std() < 0.05 * expected.std()
    unet.bfloat16()
    half = unet(latents.bfloat16(), timesteps, context.bfloat16(), mask)
    assert half.dtype == torch.bfloat16
    assert (half - expected).std() < 0.05 * expected.std()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"channels": 20}, "unet.channels=20: level 0 has 20 channels.*unet.norm_groups=8"),
        ({"heads": 3}, "level 1 has 32 channels.*unet.heads=3"),
        ({"head_channels": 12}, "level 1 has 32 channels.*unet.head_channels=12"),
        ({"attention_levels": [], "head_channels": 12}, "level 2 .*unet.head_channels=12"),
        ({"attention_levels": [3]}, r"unet.attention_levels=\[3\].*levels, 0 to 2"),
        ({"attention_levels": [-1]}, r"unet.attention_levels=\[-1\]"),
        ({"channels": 15, "norm_groups": 1}, "unet.channels=15.*even"),
    ],
)
def test_sizes_that_cannot_work_are_refused_by_name(changes, named):
    with pytest.raises(ValueError, match=named):
        UNet(config(**changes), latent_channels=4, context_width=CONTEXT_WIDTH)


@pytest.mark.parametrize("size", [(6, 8), (8, 6)])
def test_latents_that_cannot_be_halved_are_refused_by_name(size):
    unet = build()
    _, timesteps, context, mask = inputs()
    with pytest.raises(ValueError, match=r"unet.channel_mult has 3 levels.*multiples of 4"):
        unet(torch.randn(2, 4, *size), timesteps, context, mask)
