import json
import os
import pickle
import shutil
import time
import zipfile

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from huggingface_hub import constants

from conf.compose import compose_config
from conf.encoders import KLAutoencoderConfig, PretrainedAutoencoderConfig
from conf.errors import UserError
from tests.conf.minimum import minimum
from tests.helpers import autoencoders
from tests.helpers.autoencoders import VARIANTS, compvis, in_checkpoint, old_names, save, weights_of
from tests.helpers.hub import serve_hub
from training.models.autoencoder_sizes import sizes_from_shapes
from training.models.key_maps import Spelling
from training.models.pretrained import fingerprint, load_pretrained_autoencoder

FILE = "diffusion_pytorch_model.safetensors"
IN_THE_OTHERS_CLOTHES = {"_class_name": "AutoencoderKL", "act_fn": "silu", "norm_num_groups": 8}
TOLERANCE = 1e-5  # of the largest number


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(1)
    return autoencoders.kl()


@pytest.fixture
def folder(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


def load(path, subfolder=None, revision=None):
    return load_pretrained_autoencoder(
        PretrainedAutoencoderConfig(path=str(path), subfolder=subfolder, revision=revision)
    )


def refused(path, **arguments):
    """The one line with which `path` is refused."""
    with pytest.raises(UserError) as caught:
        load(path, **arguments)
    assert caught.value.setting == f"autoencoder.path={path}"
    assert "\n" not in str(caught.value)
    assert caught.value.remedy
    return str(caught.value)


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def apart(output, expected):
    """The largest difference, relative to the largest number."""
    assert output.shape == expected.shape
    assert expected.std() > 0.01  # else the comparison would say nothing
    return ((output - expected).abs().max() / expected.abs().max()).item()


@torch.no_grad()
def assert_equal(ours, theirs, side=32):
    images = torch.rand(2, 3, side, side + 16) * 2 - 1
    encoded = theirs.encode(images)
    expected = encoded.latent_dist.parameters if ours.stochastic else encoded.latents
    output = ours.encode(images)
    latents = torch.randn_like(output[:, : ours.latent_channels])
    distances = apart(output, expected), apart(ours.decode(latents), theirs.decode(latents).sample)
    print("apart", *distances)
    assert max(distances) < TOLERANCE


# --- what is loaded computes what diffusers computes


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_diffusers(variant, tmp_path):
    theirs = autoencoders.kl(**VARIANTS[variant])
    theirs.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert_equal(loaded.model, theirs)
    assert loaded.model.stochastic
    assert loaded.model.latent_channels == theirs.config.latent_channels
    assert loaded.scale == VARIANTS[variant].get("scaling_factor", 0.18215)
    assert loaded.shift == VARIANTS[variant].get("shift_factor", 0.0)


@pytest.mark.parametrize("latent_channels", [4, 16])
def test_tiny_equals_diffusers(latent_channels, tmp_path):
    theirs = autoencoders.tiny(latent_channels)
    theirs.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert_equal(loaded.model, theirs)
    assert not loaded.model.stochastic
    assert loaded.model.latent_channels == latent_channels
    assert (loaded.scale, loaded.shift) == (1.0, 0.0)
    alone = load(tmp_path / FILE)
    assert (alone.fingerprint, alone.scale, alone.shift) == (loaded.fingerprint, 1.0, 0.0)


def test_at_its_full_size_it_equals_diffusers_in_seconds(tmp_path):
    widths = [128, 256, 512, 512]
    theirs = autoencoders.kl(block_out_channels=widths, layers_per_block=2)
    theirs.save_pretrained(tmp_path)
    started = time.perf_counter()
    loaded = load(tmp_path)
    print("loaded in", time.perf_counter() - started)
    assert loaded.model.downsampling == 8
    assert sum(weight.numel() for weight in loaded.model.parameters()) == 83_653_863
    assert_equal(loaded.model, theirs, side=16)


def test_it_is_frozen_and_as_the_pipeline_takes_it(folder):
    model = load(folder).model
    assert not model.training
    for weight in model.parameters():
        assert not weight.requires_grad
        assert (weight.dtype, weight.device.type) == (torch.float32, "cpu")
    weight = model.encoder.levels[0][0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_what_was_loaded_stays_when_the_files_change(folder, tmp_path, theirs):
    torch.save(compvis(weights_of(theirs)), tmp_path / "vae.ckpt")
    for path in (folder, tmp_path / "vae.ckpt"):
        model = load(path).model
        file = path / FILE if path.is_dir() else path
        file.write_bytes(bytes(file.stat().st_size))
        assert_equal(model, theirs)


# --- the same weights in other files


def spelled(weights):
    """The same weights as different people keep them."""
    original = compvis(weights)
    others = {
        "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 4),
        "cond_stage_model.transformer.text_model.final_layer_norm.bias": torch.zeros(4),
    }
    return {
        "diffusers": weights,
        "old": old_names(weights),
        "compvis": original,
        "checkpoint": in_checkpoint(original, **others),
        "trained": original | {"loss.logvar": torch.zeros(()), "model_ema.decay": torch.zeros(())},
    }


def test_spellings_are_what_diffusers_takes_them_for(theirs, folder):
    """Our test data is right: diffusers reads it so too."""
    weights = weights_of(theirs)
    back = convert_ldm_vae_checkpoint(compvis(weights), dict(theirs.config))
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)
    save(old_names(weights), folder / FILE)
    assert_equal(load(folder).model, AutoencoderKL.from_pretrained(folder))


@pytest.mark.parametrize("spelling", ["diffusers", "old", "compvis", "checkpoint", "trained"])
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", ".pt"])
def test_one_file_in_any_spelling_has_the_folders_fingerprint(
    folder, theirs, tmp_path, spelling, suffix
):
    weights, path = spelled(weights_of(theirs))[spelling], tmp_path / f"file{suffix}"
    if suffix == ".safetensors":
        save(weights, path)
    else:
        inner = {"state_dict": weights, "epoch": 3} if suffix == ".ckpt" else weights
        torch.save(inner, path, _use_new_zipfile_serialization=spelling != "old")
    loaded = load(path)
    assert loaded.fingerprint == load(folder).fingerprint
    assert_equal(loaded.model, theirs)
    # An autoencoder's own weights do not tell: SDXL's look like Stable Diffusion 1's.
    known = (0.18215, 0.0) if spelling == "checkpoint" else (None, None)
    assert (loaded.scale, loaded.shift) == known


def test_old_names_in_a_folder(folder, theirs):
    before = load(folder).fingerprint
    weights = old_names(weights_of(theirs))
    assert any("proj_attn" in name for name in weights)
    save(weights, folder / FILE)
    assert load(folder).fingerprint == before


def test_shards_and_16_bits(folder, theirs, tmp_path):
    whole = load(folder).fingerprint
    (folder / FILE).unlink()
    theirs.save_pretrained(folder, max_shard_size="200KB")
    assert len([*folder.glob("*-of-*.safetensors")]) > 1
    assert load(folder).fingerprint == whole
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    half = {name: tensor.half() for name, tensor in weights_of(theirs).items()}
    save(half, folder / "diffusion_pytorch_model.fp16.safetensors")
    rounded = load(folder).fingerprint
    assert rounded != whole
    save({name: tensor.float() for name, tensor in half.items()}, folder / FILE)
    assert load(folder).fingerprint == rounded
    save(weights_of(theirs), folder / FILE)  # the better one is taken
    assert load(folder).fingerprint == whole


def test_the_fingerprint_shows_a_single_bit_a_name_and_the_groups(folder, theirs):
    seen = {load(folder).fingerprint}
    weights = weights_of(theirs)
    weights["quant_conv.bias"][0] = torch.nextafter(
        weights["quant_conv.bias"][0], torch.tensor(9.0)
    )
    save(weights, folder / FILE)
    seen.add(load(folder).fingerprint)
    names = "encoder.mid_block.resnets.0.conv1.weight", "encoder.mid_block.resnets.1.conv1.weight"
    weights[names[0]], weights[names[1]] = weights[names[1]], weights[names[0]]
    save(weights, folder / FILE)
    seen.add(load(folder).fingerprint)
    change_config(folder, norm_num_groups=16)
    seen.add(load(folder).fingerprint)
    assert len(seen) == 4


def test_the_fingerprint_is_of_names_and_shapes_too():
    numbers, sizes = torch.arange(6.0), KLAutoencoderConfig()
    seen = {
        fingerprint(sizes, weights)
        for weights in (
            {"a": numbers, "b": numbers},
            {"a": numbers, "c": numbers},
            {"a": numbers, "b": numbers.reshape(2, 3)},
            {"a": torch.cat([numbers, numbers])},
        )
    }
    assert len(seen) == 4
    laid_out = {"a": torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last)}
    assert fingerprint(sizes, laid_out) == fingerprint(sizes, {"a": torch.ones(2, 3, 4, 4)})
    assert fingerprint(sizes, {"b": numbers, "a": numbers}) in seen


def test_the_rest_of_a_checkpoint_is_not_read(theirs, tmp_path, monkeypatch):
    read = []
    tensor_of = torch.Tensor.to
    others = {"model.weight": torch.zeros(1000, 1000), "cond_stage_model.x": torch.ones(7)}
    save(in_checkpoint(compvis(weights_of(theirs)), **others), tmp_path / "sd.safetensors")

    def to(tensor, *arguments, **options):
        read.append(tuple(tensor.shape))
        return tensor_of(tensor, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "to", to)
    load(tmp_path / "sd.safetensors")
    assert len(read) >= len(theirs.state_dict())
    assert (1000, 1000) not in read and (7,) not in read


@pytest.mark.parametrize(
    ("marker", "scale"),
    [
        ("conditioner.embedders.0.x", (0.13025, 0.0)),
        ("model.diffusion_model.joint_blocks.0.x", (1.5305, 0.0609)),
    ],
)
def test_a_whole_checkpoint_tells_its_family(theirs, tmp_path, marker, scale):
    weights = in_checkpoint(compvis(weights_of(theirs)), **{marker: torch.zeros(1)})
    save(weights, tmp_path / "whole.safetensors")
    loaded = load(tmp_path / "whole.safetensors")
    assert (loaded.scale, loaded.shift) == scale


def test_the_scale_of_16_channels_alone_is_not_known(tmp_path):
    theirs = autoencoders.kl(**VARIANTS["flux"])
    save(compvis(weights_of(theirs)), tmp_path / "ae.safetensors")
    loaded = load(tmp_path / "ae.safetensors")
    assert (loaded.scale, loaded.shift) == (None, None)
    assert_equal(loaded.model, theirs)


@pytest.mark.parametrize(
    ("changes", "scale"),
    [
        ({"scaling_factor": 2}, (2.0, 0.0)),
        ({"scaling_factor": None}, (None, None)),
        ({"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}, (None, None)),
    ],
)
def test_scales_in_a_config(folder, changes, scale):
    change_config(folder, **changes)
    loaded = load(folder)
    assert (loaded.scale, loaded.shift) == scale


def test_the_first_configs_had_no_scale(folder):
    config = json.loads((folder / "config.json").read_text())
    for name in ("scaling_factor", "shift_factor", "force_upcast", "mid_block_add_attention"):
        del config[name]
    (folder / "config.json").write_text(json.dumps(config))
    loaded = load(folder)
    assert (loaded.scale, loaded.shift) == (0.18215, 0.0)


# --- where it is


def test_a_subfolder(folder):
    assert load(folder.parent, "vae").fingerprint == load(folder).fingerprint
    assert "holds no config.json" in refused(folder.parent)
    assert "autoencoder.subfolder=vae" in refused(folder.parent)
    assert "there is no file or folder" in refused(folder.parent, subfolder="unet")
    assert "is a file, which has no folder vae" in refused(folder / FILE, subfolder="vae")


@pytest.mark.parametrize("half", [False, True])
def test_the_hub(folder, tmp_path, monkeypatch, half):
    whole = load(folder).fingerprint
    (folder / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "other.safetensors").write_bytes(b"something else")
    small = folder / "diffusion_pytorch_model.fp16.safetensors"
    if half:
        (folder / FILE).rename(small)
    else:
        small.write_bytes(b"not wanted")
    wanted = ["vae/config.json", f"vae/{small.name if half else FILE}"]
    with serve_hub("org/name", tmp_path, tmp_path.parent / f"cache_{half}") as hub:
        assert load("hf://org/name", "vae", "v1").fingerprint == whole
        assert sorted(hub.fetched) == wanted
        assert "has no revision v9" in refused("hf://org/name", subfolder="vae", revision="v9")
    # Now without it, as on a node of a cluster.
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_CACHE", str(tmp_path.parent / f"cache_{half}"))
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        (snapshot,) = (tmp_path.parent / f"cache_{half}").glob("*/snapshots/*/vae")
        (snapshot / "other.safetensors").write_bytes(b"fetched by somebody else")
        assert load("hf://org/name", "vae", "v1").fingerprint == whole
        assert "the hub cannot be reached" in refused("hf://org/other", subfolder="vae")


# --- what is refused


def test_places_that_are_none(tmp_path):
    assert "there is no file or folder" in refused(tmp_path / "nothing")
    assert "there is no file or folder" in refused(tmp_path / "nothing.safetensors")
    assert "is neither on this machine nor on the hub" in refused("s3://bucket/vae")
    assert "names no repository" in refused("hf://name")
    assert "has no revision v1" in refused(tmp_path, revision="v1")
    (tmp_path / "weights.npz").write_bytes(b"x")
    assert "is neither .safetensors nor .ckpt" in refused(tmp_path / "weights.npz")


def test_a_folder_without_weights(folder):
    shutil.move(folder / FILE, folder / "model.safetensors")
    assert f"holds no {FILE}" in refused(folder)
    (folder / "diffusion_pytorch_model.bin").write_bytes(b"x")
    assert "is a pickle, which could run code; convert it to safetensors" in refused(folder)
    assert "is a pickle" in refused(folder / "diffusion_pytorch_model.bin")


def test_missing_unknown_and_misshapen_weights_are_named(folder, theirs):
    weights = weights_of(theirs)
    first, second = weights.pop("encoder.conv_in.weight"), weights.pop("quant_conv.bias")
    save(weights, folder / FILE)
    assert "lacks 2 weights, the first is encoder.conv_in.weight" in refused(folder)
    weights |= {"encoder.conv_in.weight": first, "quant_conv.bias": second}
    save(weights | {"extra.a": torch.ones(1), "extra.b": torch.ones(1)}, folder / FILE)
    assert "holds 2 weights that do not belong, the first is extra.a" in refused(folder)
    save(weights | {"encoder.conv_in.weight": first[:, :2]}, folder / FILE)
    message = "has encoder.conv_in.weight of shape (32, 2, 3, 3), which should be (32, 3, 3, 3)"
    assert message in refused(folder)


def test_one_file_with_missing_unknown_and_misshapen_weights(theirs, tmp_path):
    path = tmp_path / "vae.safetensors"
    weights = compvis(weights_of(theirs))
    name, block = "decoder.up.0.block.1.norm1.weight", "encoder.down.1.block.0.conv1.weight"
    for changes, message in (
        ({name: None}, f"lacks 1 weights, the first is {name}"),
        ({block: None}, f"lacks weights, the first is {block}"),
        ({"encoder.conv_in.weight": None}, "the first is encoder.conv_in.weight"),
        ({block: torch.zeros(48, 32, 3, 3)}, "[32, 48, 64] channels are no multiples of 32"),
        ({block: torch.zeros(48)}, "has the shape (48,), which is no convolution's"),
        ({"encoder.down.2.attn.0.q.weight": torch.zeros(1)}, "holds 1 weights that do not belong"),
        ({name: torch.zeros(3)}, f"has {name} of shape (3,), which should be (32,)"),
        ({"encoder.mid.attn_1.q.weight": torch.zeros(64, 64, 3, 3)}, "which should be (64, 64)"),
    ):
        changed = {key: tensor for key, tensor in (weights | changes).items() if tensor is not None}
        save(changed, path)
        assert message in refused(path)
    save({f"unet.{key}": tensor for key, tensor in weights.items()}, path)
    assert "holds no autoencoder; its first weight is unet." in refused(path)
    save({}, path)
    assert "holds no autoencoder" in refused(path)


def test_a_number_of_channels_that_norms_cannot_split(tmp_path):
    theirs = autoencoders.kl(norm_num_groups=8, block_out_channels=[24, 48])
    save(compvis(weights_of(theirs)), tmp_path / "vae.safetensors")
    assert "24 channels are no multiple of 32" in refused(tmp_path / "vae.safetensors")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(folder, theirs, bad):
    weights = weights_of(theirs)
    for name in ("decoder.conv_out.bias", "decoder.conv_in.bias"):
        weights[name][1] = bad
    save(weights, folder / FILE)
    assert "has 2 weights that are not finite, the first is decoder.conv_in.bias" in refused(folder)


def test_whole_numbers_are_no_weights(folder, theirs):
    weights = weights_of(theirs)
    weights["decoder.conv_out.bias"] = weights["decoder.conv_out.bias"].to(torch.int8)
    save(weights, folder / FILE)
    assert "decoder.conv_out.bias is torch.int8" in refused(folder)


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, -1])
def test_damaged_safetensors(folder, keep):
    content = (folder / FILE).read_bytes()
    length = int(keep * len(content)) if isinstance(keep, float) else keep
    (folder / FILE).write_bytes(content[:length])
    assert f"{FILE} is damaged" in refused(folder)
    (folder / FILE).write_bytes(b"\xff" * 100)
    assert f"{FILE} is damaged" in refused(folder)


def test_a_damaged_or_foreign_index(folder, theirs):
    (folder / FILE).unlink()
    theirs.save_pretrained(folder, max_shard_size="200KB")
    index = folder / f"{FILE}.index.json"
    content = json.loads(index.read_text())
    shards = sorted(set(content["weight_map"].values()))
    (folder / shards[0]).rename(folder / "elsewhere")
    assert f"lacks {shards[0]}" in refused(folder)
    for name in ("../vae.safetensors", "/etc/passwd", "code.bin"):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        assert f"names {name!r}, no file beside it" in refused(folder)
    for text in ('{"weight_map": 3}', "{}", '{"weight_map": {"a": 1}}'):
        index.write_text(text)
        assert "has no weight_map of files" in refused(folder)
    index.write_text("{")
    assert "is no JSON" in refused(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "AutoencoderKLWan"}, "_class_name='AutoencoderKLWan' is not known"),
        ({"_class_name": None}, "_class_name=None is not known"),
        ({"_class_name": ["AutoencoderKL"]}, "is not known"),
        ({"act_fn": "relu"}, "act_fn='relu', only 'silu' is known"),
        ({"in_channels": 4}, "in_channels=4, only 3 is known"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 3}, "down_block_types=['Attn"),
        ({"up_block_types": ["UpDecoderBlock2D"] * 2}, "up_block_types="),
        ({"block_out_channels": [32, 48, 64]}, "norm_num_groups=32 does not divide 48 channels"),
        ({"norm_num_groups": 16, "block_out_channels": [32, 48, 64]}, "no multiples of 32"),
        ({"block_out_channels": []}, "block_out_channels=[] is not from 1"),
        ({"block_out_channels": "32"}, "block_out_channels='32' is not from 1"),
        ({"layers_per_block": 10**9}, "layers_per_block=[1000000000] is not from 1"),
        ({"latent_channels": True}, "latent_channels=[True] is not from 1"),
        ({"latent_channels": 0}, "latent_channels=[0] is not from 1"),
        ({"use_quant_conv": False}, "use_post_quant_conv=True, only False is known"),
        ({"use_quant_conv": "yes"}, "use_quant_conv='yes' is neither true nor false"),
        ({"scaling_factor": "0.2"}, "scaling_factor='0.2' is no number"),
        ({"scaling_factor": 0}, "scaling_factor=0 is not above 0"),
        ({"shift_factor": float("nan")}, "shift_factor=nan is no number"),
        ({"latent_channels": 8}, "has encoder.conv_out.weight of shape"),
        ({"mid_block_add_attention": False}, "weights that do not belong"),
    ],
)
def test_a_config_that_cannot_be_expressed_or_does_not_fit(folder, changes, message):
    change_config(folder, **changes)
    assert message in refused(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"act_fn": "gelu"}, "act_fn='gelu', only 'relu' is known"),
        ({"upsample_fn": "bilinear"}, "upsample_fn='bilinear'"),
        ({"encoder_block_out_channels": [8, 16, 8]}, "levels of different widths"),
        ({"num_decoder_blocks": [1, 1]}, "3 levels in the encoder, 2 in the decoder"),
        ({"num_decoder_blocks": [2, 1, 2]}, "lacks"),
        (IN_THE_OTHERS_CLOTHES, "not of the AutoencoderKL it says"),
    ],
)
def test_a_tiny_config_that_cannot_be_expressed_or_does_not_fit(tmp_path, changes, message):
    autoencoders.tiny().save_pretrained(tmp_path)
    change_config(tmp_path, **changes)
    assert message in refused(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff", "[" * 100_000])
def test_a_config_that_is_none(folder, text):
    (folder / "config.json").write_text(text, encoding="latin-1")
    assert "config.json" in refused(folder)


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("suffix", [".ckpt", ".pt"])
def test_a_pickle_that_wants_to_run_something_is_refused(theirs, tmp_path, zipped, suffix):
    path, target = tmp_path / f"evil{suffix}", tmp_path / "pwned"
    content = {"state_dict": compvis(weights_of(theirs)), "callbacks": Evil(target)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    message = refused(path)
    assert "holds more than tensors" in message and "none of its code was run" in message
    assert "convert it to safetensors" in message
    assert not target.exists()
    torch.load(path, weights_only=False)
    assert target.exists()  # it would have


def test_pickles_that_are_no_checkpoints(tmp_path):
    path, target = tmp_path / "x.ckpt", tmp_path / "pwned"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(Evil(target), protocol))
        assert "none of its code was run" in refused(path)
        assert not target.exists()
    for content in ([torch.zeros(3)], {"state_dict": 3}, torch.zeros(3)):
        torch.save(content, path)
        assert "holds no dict of weights" in refused(path)
    torch.save({"state_dict": {"encoder.conv_in.weight": 3, 4: torch.zeros(3)}}, path)
    assert "holds no autoencoder" in refused(path)
    for content in (b"", b"x", b"\x80\x02", bytes(1000)):
        path.write_bytes(content)
        assert "cannot be read" in (message := refused(path)) or "is damaged" in message


def test_a_checkpoint_cut_short(theirs, tmp_path):
    path = tmp_path / "vae.ckpt"
    torch.save(compvis(weights_of(theirs)), path)
    content = path.read_bytes()
    for length in (10, 1000, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        assert "cannot be read" in (message := refused(path)) or "is damaged" in message
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", b"b")
    assert "cannot be read" in refused(path)


def test_sparse_weights_are_refused(theirs, tmp_path):
    weights = compvis(weights_of(theirs))
    weights["quant_conv.weight"] = weights["quant_conv.weight"].to_sparse()
    torch.save(weights, tmp_path / "vae.pt")
    assert "quant_conv.weight is torch.float32 (torch.sparse_coo)" in refused(tmp_path / "vae.pt")


# --- sizes


def test_sizes_of_the_published_ones_are_seen_in_their_shapes():
    with torch.device("meta"):
        models = {
            Spelling.diffusers: AutoencoderKL(
                block_out_channels=[128, 256, 512, 512],
                down_block_types=["DownEncoderBlock2D"] * 4,
                up_block_types=["UpDecoderBlock2D"] * 4,
                layers_per_block=2,
            ),
            Spelling.tiny: AutoencoderTiny(),
        }
    sizes = {
        spelling: sizes_from_shapes(
            {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}, spelling
        )
        for spelling, model in models.items()
    }
    kl, tiny = sizes[Spelling.diffusers], sizes[Spelling.tiny]
    assert (kl.channels, kl.channel_mult, kl.res_blocks) == (128, [1, 2, 4, 4], 2)
    assert (kl.latent_channels, kl.attention, kl.quant_convs) == (4, True, True)
    assert (tiny.encoder_blocks, tiny.decoder_blocks) == ((1, 3, 3, 3), (3, 3, 3, 1))
    assert (tiny.channels, tiny.latent_channels) == (64, 4)


@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl", "sd3", "flux", "taesd"])
def test_a_recipe_names_a_repository_and_pins_nothing_unknown(name):
    overrides = minimum("cache", f"autoencoder={name}")
    config = compose_config("cache", overrides).autoencoder
    assert isinstance(config, PretrainedAutoencoderConfig)
    assert config.path.startswith("hf://") and config.path.count("/") == 3
    assert config.subfolder in (None, "vae")
    assert config.revision is None
