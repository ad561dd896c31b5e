"""Text halves of open_clip's models, from open_clip_config.json and open_clip_model.safetensors."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from conf.encoders import TextModelConfig
from conf.enums import Pooled
from training.models.text.checks import Refused, check_layer, check_weights
from training.models.text.tokenizers import OpenClipTokenizer

CONFIG = "open_clip_config.json"
# Where keys of the text half have no beginning of their own, the others are told by theirs.
TEXT, VISION = "text.", "visual."
PROJECTION = "text_projection"
SCALES = {"logit_scale", "logit_bias"}
# What a text half may not be: without these it is CLIP's, which looks back only.
OTHER_KINDS = {
    "hf_model_name": None,
    "hf_tokenizer_name": None,
    "embed_cls": False,
    "no_causal_mask": False,
    "pool_type": "argmax",
}
OTHER_TOKENS = {"reduction_mask", "additional_special_tokens", "context_length"}


class OpenClipTower(nn.Module):
    """The text half of an open_clip model and which of its outputs is used; see `TextModel.tower`.

    Attributes:
        width: Width of the embeddings.
        pooled_width: Width of what is pooled; 0 where nothing is.
        most: Most tokens that it has positions for.
        num_ids: Token ids that it knows.
    """

    def __init__(self, model: Any, config: TextModelConfig) -> None:
        super().__init__()
        self.model = model  # a TextTransformer of open_clip
        self._layer, self._layer_norm = config.layer, config.layer_norm or config.layer == -1
        self._pooled = config.pooled
        self.width: int = model.width
        widths = {Pooled.none: 0, Pooled.pooled: model.width, Pooled.projected: model.output_dim}
        self.pooled_width: int = widths[config.pooled]
        self.most: int = model.context_length
        self.num_ids: int = model.vocab_size

    def forward(self, ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Embeddings (B, L, width), and what is pooled, (B, pooled_width) or None.

        The mask is not used: tokens look back only, so what follows a caption changes nothing.
        """
        length = ids.shape[1]
        hidden = self.model.token_embedding(ids) + self.model.positional_embedding[:length]
        causal = self.model.attn_mask[:length, :length]
        blocks = self.model.transformer.resblocks
        chosen = hidden
        for number, block in enumerate(blocks):
            hidden = block(hidden, attn_mask=causal)
            if number == len(blocks) + self._layer:
                chosen = hidden
                if self._pooled is Pooled.none:
                    break  # nobody looks at the layers above
        if self._layer_norm:
            chosen = self.model.ln_final(chosen)
        if self._pooled is Pooled.none:
            return chosen, None
        # The end of a text has the largest id; its first place is the caption's own end.
        ends = self.model.ln_final(hidden)[torch.arange(len(ids), device=ids.device), ids.argmax(1)]
        return chosen, self._project(ends) if self._pooled is Pooled.projected else ends

    def _project(self, pooled: Tensor) -> Tensor:
        projection = self.model.text_projection
        return projection(pooled) if isinstance(projection, nn.Module) else pooled @ projection


def load_open_clip(
    folder: Path, weights: list[Path], config: TextModelConfig
) -> tuple[OpenClipTower, OpenClipTokenizer]:
    """Loads the text half of an open_clip model, in float32, on the CPU, and its tokenizer.

    Args:
        folder: Where its config is.
        weights: The file of its weights in there.
        config: Which of its outputs is used.

    Raises:
        Refused: It is of a kind that is not CLIP's, or lacks what `config` asks for.
        Exception: Of several kinds: the files cannot be read.
    """
    from open_clip import SimpleTokenizer
    from open_clip.model import CLIPTextCfg, _build_text_tower

    sizes = _read_sizes(folder / CONFIG)
    text = sizes["text_cfg"]
    for name, usual in OTHER_KINDS.items():
        if text.get(name, usual) != usual:
            wrong = f"has a text half that is not CLIP's ({name} is {text[name]})"
            raise Refused(None, wrong, "give another open_clip model")
    options = text.get("tokenizer_kwargs") or {}
    if options.keys() & OTHER_TOKENS:
        wrong = f"has a tokenizer with {min(options.keys() & OTHER_TOKENS)}"
        raise Refused(None, wrong, "give another open_clip model")
    with torch.device("meta"):  # no random weights: they take long, and draw from global state
        quick_gelu = sizes.get("quick_gelu", False)
        model = _build_text_tower(sizes["embed_dim"], CLIPTextCfg(**text), quick_gelu)
    check_layer(config.layer, len(model.transformer.resblocks))
    if config.pooled is Pooled.projected and model.text_projection is None:
        raise Refused("pooled", "the model has no projection", "choose pooled=pooled or none")
    found = model.load_state_dict(_read_text_half(weights), strict=False, assign=True)
    unused = () if config.pooled is Pooled.projected else (PROJECTION,)
    if unused:
        model.text_projection = None  # it may be missing
    check_weights(model.requires_grad_(False).eval(), found.missing_keys, unused)
    model.register_buffer("attn_mask", _causal_mask(model.context_length), persistent=False)
    tokenizer = SimpleTokenizer(context_length=model.context_length, **options)
    return OpenClipTower(model, config), OpenClipTokenizer(tokenizer, model.context_length)


def _causal_mask(length: int) -> Tensor:
    """What is added to attention, (length, length): nothing to what came before, else -inf."""
    return torch.full((length, length), -torch.inf).triu(1)


def _read_sizes(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise Refused(None, f"has no {file.name}", "copy it from where the weights are from")
    content = json.loads(file.read_text())
    sizes = content.get("model_cfg", {}) if isinstance(content, dict) else {}
    if not isinstance(sizes.get("text_cfg"), dict) or "embed_dim" not in sizes:
        raise Refused(None, f"has a {file.name} without text_cfg", "give a whole one")
    return sizes


def _read_text_half(weights: list[Path]) -> dict[str, Tensor]:
    """The weights of the text half, by its own names; the others are not read."""
    state = {}
    for file in weights:
        with safe_open(file, "pt") as opened:
            keys = opened.keys()
            apart = any(key.startswith(TEXT) for key in keys)
            for key in keys:
                if key.startswith(TEXT):
                    state[key.removeprefix(TEXT)] = opened.get_tensor(key).float()
                elif not apart and not key.startswith(VISION) and key not in SCALES:
                    state[key] = opened.get_tensor(key).float()
    return state
