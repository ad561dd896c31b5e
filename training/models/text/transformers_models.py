"""Text models of transformers: BERT and its kin, CLIP's text half, T5's encoder half."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES,
)
from transformers.utils import logging as transformers_logging

from conf.encoders import TextModelConfig
from conf.enums import Pooled
from training.models.text.checks import Refused, check_layer, check_weights
from training.models.text.padding import additive_mask, settle_mask

CLIP = {"clip", "clip_text_model"}
T5 = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
PROJECTION = "text_projection.weight"
FINAL_NORMS = ("final_layer_norm", "final_norm")


class TransformersTower(nn.Module):
    """A transformers model and which of its outputs is used; see `TextModel.tower`.

    Attributes:
        width: Width of the embeddings.
        pooled_width: Width of what is pooled; 0 where nothing is.
        most: Most tokens that it has positions for; None is any number.
        num_ids: Token ids that it knows.
        has_additive_mask: Whether its mask is given in the form that is added to attention.
    """

    def __init__(self, model: PreTrainedModel, config: TextModelConfig) -> None:
        super().__init__()
        self.model = model
        self._layer = config.layer
        self._norm = _final_norm(model) if config.layer_norm and config.layer < -1 else None
        projected = config.pooled is Pooled.projected
        self._pooled = "text_embeds" if projected else "pooler_output"
        self.width: int = model.config.hidden_size
        self.pooled_width = 0
        if config.pooled is not Pooled.none:
            self.pooled_width = model.config.projection_dim if projected else self.width
        # CLIP looks back only: what follows a caption changes nothing, and its own users of it,
        # Stable Diffusion among them, give it no mask.
        self._is_causal = model.config.model_type in CLIP
        self.has_additive_mask = True
        self.most = _positions(model)
        self.num_ids: int = model.get_input_embeddings().num_embeddings

    def forward(self, ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Embeddings (B, L, width), and what is pooled, (B, pooled_width) or None."""
        arguments = {}
        if mask is not None and not self._is_causal:
            told = additive_mask(mask) if self.has_additive_mask else mask.long()
            arguments["attention_mask"] = told
        if self._layer < -1:
            arguments["output_hidden_states"] = True
        output = self.model(input_ids=ids, **arguments)
        hidden = output.last_hidden_state
        if self._layer < -1:
            hidden = output.hidden_states[self._layer]
        if self._norm is not None:
            hidden = self._norm(hidden)
        return hidden, output[self._pooled] if self.pooled_width else None


def load_transformers(folder: Path, weights: list[Path], config: TextModelConfig) -> nn.Module:
    """Loads a model of transformers, in float32, on the CPU.

    Args:
        folder: Where its config is.
        weights: The files of its weights in there.
        config: Which of its outputs is used.

    Raises:
        Refused: It is no text encoder, or lacks what `config` asks for.
        Exception: Of many kinds, from transformers: the files cannot be read.
    """
    of_file = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    kind, sizes = of_file.model_type, getattr(of_file, "text_config", of_file)
    cls = _class_of(of_file, config.pooled)
    if kind in CLIP and config.pooled is Pooled.projected:
        sizes.projection_dim = _projection_width(weights)
    if getattr(sizes, "hidden_size", None) is None:
        raise Refused(None, f"a {kind} model is no text encoder", "name an encoder")
    check_layer(config.layer, sizes.num_hidden_layers)
    names = {file.name for file in weights}
    with quiet():
        model, loading = cls.from_pretrained(
            folder,
            config=sizes if kind in CLIP else of_file,
            local_files_only=True,
            use_safetensors=True,
            variant=_variant(names),
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
    heads = () if config.pooled is Pooled.pooled else ("pooler.",)
    # transformers fills weights that are missing with random numbers.
    check_weights(model.eval(), loading["missing_keys"], heads)
    has_pooler = kind in CLIP or getattr(model, "pooler", None) is not None
    if not has_pooler and config.pooled is Pooled.pooled:
        raise Refused("pooled", f"a {kind} model pools nothing", "choose pooled=none")
    if kind not in CLIP and config.pooled is Pooled.projected:
        raise Refused("pooled", f"a {kind} model has no projection", "choose pooled=none")
    if config.layer_norm and config.layer < -1 and _final_norm(model) is None:
        wrong = f"a {kind} model has no final norm"
        raise Refused("layer_norm", wrong, "choose layer_norm=false")
    tower = TransformersTower(model, config)
    if kind not in CLIP and kind not in T5:
        settle_mask(tower, kind, tower.num_ids, getattr(of_file, "pad_token_id", None))
    return tower


@contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers' bar over weights, and its table of those that are not used.

    What is missing is refused by us; the halves of a model that read images or write text are to
    be left out.
    """
    verbosity, had_bar = (
        transformers_logging.get_verbosity(),
        transformers_logging.is_progress_bar_enabled(),
    )
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_bar:
            transformers_logging.enable_progress_bar()


def _class_of(config: PreTrainedConfig, pooled: Pooled) -> type:
    """The class that has a model's text encoder and nothing else."""
    kind = config.model_type
    if kind in CLIP:
        projected = pooled is Pooled.projected
        name = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
        return getattr(transformers, name)
    if kind in T5:
        return getattr(transformers, T5[kind])
    known = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES or (
        kind in MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES
    )
    # A decoder reads from left to right, to write what comes next.
    if not known or config.is_encoder_decoder or getattr(config, "is_decoder", False):
        wrong = f"a {kind} model is no text encoder and nothing else"
        raise Refused(None, wrong, "name an encoder, such as BERT, CLIP or T5")
    return AutoModel


def _projection_width(weights: list[Path]) -> int:
    """Width of CLIP's projection, by its weights: whole CLIP models repeat it wrongly at times."""
    for file in weights:
        with safe_open(file, "pt") as opened:
            if PROJECTION in opened.keys():  # noqa: SIM118 - it is no dict
                return opened.get_slice(PROJECTION).get_shape()[0]
    raise Refused("pooled", "the model has no projection", "choose pooled=pooled or none")


def _variant(names: set[str]) -> str | None:
    """The `fp16` of model.fp16.safetensors, by which transformers finds it."""
    name = next(iter(names)) if len(names) == 1 else ""
    parts = name.split(".")
    return parts[1] if len(parts) == 3 and parts[0] == "model" else None


def _final_norm(model: PreTrainedModel) -> nn.Module | None:
    """The norm that follows the last layer, where a model has one."""
    for owner in (model, getattr(model, "text_model", None), getattr(model, "encoder", None)):
        for name in FINAL_NORMS:
            if isinstance(getattr(owner, name, None), nn.Module):
                return getattr(owner, name)
    return None


def _positions(model: PreTrainedModel) -> int | None:
    if model.config.model_type in T5:
        return None  # distances between tokens, not places
    most = getattr(model.config, "max_position_embeddings", None)
    embeddings = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    padding = getattr(embeddings, "padding_idx", None)
    # RoBERTa and its kin count places from behind the padding's.
    return most if most is None or padding is None else most - padding - 1
