"""Autoencoders that others have trained, as modules of ours: Stable Diffusion's and their kin.

Owns whether weights are all there and sound, and the fingerprint that ties a cache to them. Refuses
whatever is not exactly one autoencoder: nothing is filled in or left out.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from conf.encoders import PretrainedAutoencoderConfig
from conf.errors import UserError
from training.models.autoencoder import KLAutoencoder
from training.models.autoencoder_sizes import Sizes
from training.models.key_maps import their_names
from training.models.pretrained_source import KNOWN_KINDS, Source, find_source
from training.models.tiny import TinyAutoencoder, TinySizes

ANOTHER = "fetch it again, or choose another autoencoder"


@dataclass(frozen=True, slots=True)
class PretrainedAutoencoder:
    """An autoencoder that others have trained.

    Attributes:
        model: In evaluation mode, without gradients, float32, channels_last, on the CPU.
        fingerprint: SHA-256 of its sizes and weights; the same whatever file they came in.
        scale: Published factor: final latents are (latents - shift) * scale; None is not known.
        shift: Published shift; None is not known.
    """

    model: KLAutoencoder | TinyAutoencoder
    fingerprint: str
    scale: float | None
    shift: float | None


def load_pretrained_autoencoder(config: PretrainedAutoencoderConfig) -> PretrainedAutoencoder:
    """Loads the autoencoder that `config` names, in float32, on the CPU.

    Raises:
        UserError: It is not there, is damaged or incomplete, or is of a kind that is not known.
    """
    setting = f"autoencoder.path={config.path}"
    source = find_source(config, setting)
    sizes = source.sizes
    try:
        with torch.device("meta"):  # no memory and no random numbers for what is replaced
            model = TinyAutoencoder(sizes) if isinstance(sizes, TinySizes) else KLAutoencoder(sizes)
    except ValueError as error:
        raise UserError(setting, f"{source.place}: {error}", KNOWN_KINDS) from error
    weights = _read(source, model, setting)
    model.load_state_dict(weights, assign=True)
    model.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    return PretrainedAutoencoder(model, fingerprint(sizes, weights), *source.scale)


def fingerprint(sizes: Sizes, weights: Mapping[str, Tensor]) -> str:
    """SHA-256, in hex, of sizes and of every weight's name, shape and float32 bytes, by name."""
    # Names and shapes tell all sizes but this one; and so no later setting changes fingerprints.
    groups = None if isinstance(sizes, TinySizes) else sizes.norm_groups
    digest = hashlib.sha256(json.dumps({"norm_groups": groups}).encode())
    for name in sorted(weights):
        digest.update(json.dumps([name, list(weights[name].shape)]).encode())
        digest.update(np.ascontiguousarray(weights[name].numpy(), dtype="<f4"))
    return digest.hexdigest()


def _read(
    source: Source, model: KLAutoencoder | TinyAutoencoder, setting: str
) -> dict[str, Tensor]:
    """Every weight of `model`, which itself has none, by our names; and there is nothing else."""
    wanted = model.state_dict()
    names = their_names(wanted, source.spelling, model.levels)
    if missing := [key for key in names if key not in source.keys]:
        wrong = f"lacks {len(missing)} weights, the first is {missing[0]}"
        raise UserError(setting, f"{source.place} {wrong}", ANOTHER)
    if unknown := [key for key in source.keys if key not in names]:
        wrong = f"holds {len(unknown)} weights that do not belong, the first is {unknown[0]}"
        raise UserError(setting, f"{source.place} {wrong}", ANOTHER)
    for key, name in names.items():
        shape, right = source.weights.shapes[source.keys[key]], tuple(wanted[name].shape)
        # Older files have the linear maps of attention as convolutions of one pixel.
        if shape != right and not (len(right) == 2 and shape == (*right, 1, 1)):
            wrong = f"has {key} of shape {shape}, which should be {right}"
            raise UserError(setting, f"{source.place} {wrong}", ANOTHER)
    weights, bad = {}, []
    for key, name in names.items():
        weights[name] = source.weights.read(source.keys[key]).reshape(wanted[name].shape)
        if not weights[name].isfinite().all():
            bad.append(key)
    if bad:
        wrong = f"has {len(bad)} weights that are not finite, the first is {bad[0]}"
        raise UserError(setting, f"{source.place} {wrong}", ANOTHER)
    return weights
