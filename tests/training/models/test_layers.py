import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.embeddings import get_timestep_embedding
from torch import nn

from tests.helpers.diffusers_keys import randomize, unet_names
from training.models.layers import (
    Attention,
    Downsample,
    FeedForward,
    ResBlock,
    SpatialTransformer,
    TransformerBlock,
    Upsample,
    image_to_tokens,
    timestep_embedding,
    tokens_to_image,
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_timestep_embedding_is_diffusers():
    timesteps = torch.tensor([0, 1, 500, 999])
    expected = get_timestep_embedding(timesteps, 32, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(timestep_embedding(timesteps, 32), expected)


def test_timestep_embedding_takes_floats_between_integers():
    between = timestep_embedding(torch.tensor([1.0, 1.5]), 8)
    torch.testing.assert_close(between[0], timestep_embedding(torch.tensor([1]), 8)[0])
    assert not torch.allclose(between[0], between[1])


@pytest.mark.parametrize(("channels_out", "has_skip"), [(8, False), (16, True)])
def test_res_block_is_its_formula(channels_out, has_skip):
    block = randomize(ResBlock(8, channels_out, 4, embedding_width=6))
    images, embedding = torch.randn(2, 8, 5, 3), torch.randn(2, 6)
    hidden = block.conv1(F.silu(F.group_norm(images, 4, block.norm1.weight, block.norm1.bias)))
    hidden = hidden + (embedding @ block.shift.weight.T + block.shift.bias)[:, :, None, None]
    hidden = F.silu(F.group_norm(hidden, 4, block.norm2.weight, block.norm2.bias))
    skip = images
    if has_skip:
        kernel = block.skip.weight[:, :, 0, 0]
        skip = torch.einsum("oc,bchw->bohw", kernel, images) + block.skip.bias[:, None, None]
    torch.testing.assert_close(block(images, embedding), skip + block.conv2(hidden))


def test_residual_blocks_start_as_the_identity():
    images, context = torch.randn(2, 8, 4, 4), torch.randn(2, 3, 6)
    torch.testing.assert_close(ResBlock(8, 8, 4)(images), images, rtol=0, atol=0)
    transformer = SpatialTransformer(8, 6, 4, 1, 4)
    torch.testing.assert_close(transformer(images, context, None), images, rtol=0, atol=0)


def test_res_block_dropout_acts_in_training_only():
    block = randomize(ResBlock(8, 8, 4, dropout=0.5))
    images = torch.randn(1, 8, 4, 4)
    assert not torch.equal(block(images), block(images))
    block.eval()
    assert torch.equal(block(images), block(images))


@pytest.mark.parametrize("head_channels", [4, 8, 16])
def test_attention_is_torch_multihead_attention(head_channels):
    ours = randomize(Attention(16, 10, head_channels, qkv_bias=True))
    theirs = nn.MultiheadAttention(16, 16 // head_channels, kdim=10, vdim=10, batch_first=True)
    weights = {
        "q_proj_weight": ours.to_q.weight,
        "k_proj_weight": ours.to_k.weight,
        "v_proj_weight": ours.to_v.weight,
        "in_proj_bias": torch.cat([ours.to_q.bias, ours.to_k.bias, ours.to_v.bias]),
        "out_proj.weight": ours.to_out.weight,
        "out_proj.bias": ours.to_out.bias,
    }
    theirs.load_state_dict(weights)
    tokens, context = torch.randn(2, 7, 16), torch.randn(2, 5, 10)
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    expected, _ = theirs(tokens, context, context, key_padding_mask=~mask)
    torch.testing.assert_close(ours(tokens, context, mask), expected)


def test_attention_has_no_bias_on_queries_keys_and_values_unless_asked():
    names = {name for name, _ in Attention(8, 8, 4).named_parameters()}
    assert names == {"to_q.weight", "to_k.weight", "to_v.weight", "to_out.weight", "to_out.bias"}


def test_masked_keys_have_no_influence():
    attention = randomize(Attention(8, 6, 4))
    tokens, context = torch.randn(2, 3, 8), torch.randn(2, 5, 6)
    mask = torch.tensor([[True, True, False, False, False], [True, True, True, True, False]])
    changed = torch.where(mask[:, :, None], context, torch.full_like(context, 1e4))
    expected = attention(tokens, context, mask)
    torch.testing.assert_close(attention(tokens, changed, mask), expected, rtol=0, atol=0)
    alone = attention(tokens[:1], context[:1, :2])
    torch.testing.assert_close(expected[:1], alone)


def test_blocks_are_diffusers_transformer_block():
    theirs = randomize(BasicTransformerBlock(16, 2, 8, cross_attention_dim=6))
    ours = TransformerBlock(16, 6, 8)
    ours.load_state_dict(unet_names(theirs.state_dict()))
    tokens, context = torch.randn(2, 9, 16), torch.randn(2, 4, 6)
    torch.testing.assert_close(ours(tokens, context, None), theirs(tokens, None, context))


def test_feed_forward_is_gated_by_gelu():
    feed_forward = randomize(FeedForward(4))
    tokens = torch.randn(1, 2, 4)
    both = tokens @ feed_forward.proj_in.weight.T + feed_forward.proj_in.bias
    gated = both[..., :16] * (both[..., 16:] * torch.special.ndtr(both[..., 16:]))
    torch.testing.assert_close(feed_forward(tokens), feed_forward.proj_out(gated))


def test_downsample_and_upsample_sizes_and_padding():
    images = torch.randn(1, 4, 6, 8)
    down, up = Downsample(4), Upsample(4)
    assert down(images).shape == (1, 4, 3, 4)
    assert up(images).shape == (1, 4, 12, 16)
    padded = F.pad(images, (0, 1, 0, 1))
    asymmetric = Downsample(4, asymmetric=True)
    expected = F.conv2d(padded, asymmetric.conv.weight, asymmetric.conv.bias, stride=2)
    torch.testing.assert_close(asymmetric(images), expected)


def test_tokens_and_image_are_views_and_each_other_s_inverse():
    images = torch.randn(2, 4, 3, 5).contiguous(memory_format=torch.channels_last)
    tokens = image_to_tokens(images)
    assert tokens.shape == (2, 15, 4)
    assert tokens.is_contiguous()
    assert tokens.data_ptr() == images.data_ptr()
    assert torch.equal(tokens[1, 1 * 5 + 2], images[1, :, 1, 2])
    assert torch.equal(tokens_to_image(tokens, 3, 5), images)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_spatial_blocks_keep_the_memory_layout(layout):
    images = torch.randn(2, 8, 4, 4).contiguous(memory_format=layout)
    context = torch.randn(2, 3, 6)
    transformer = randomize(SpatialTransformer(8, 6, 4, 2, 4)).to(memory_format=layout)
    block = randomize(ResBlock(8, 16, 4)).to(memory_format=layout)
    hidden = block(transformer(images, context, None))
    assert hidden.is_contiguous(memory_format=layout)
