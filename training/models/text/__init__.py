"""Text encoders: captions to embeddings, token by token, by models that others have trained; or
captions that are classes to their numbers.

Transformers encoders (BERT's kin, CLIP, T5) and open_clip's, alone or joined by width; from local
folders, folders of installed packages, and the hub. No pickle is opened and no code that comes with
a model is run. They are frozen: never trained, never wrapped.
"""

from training.models.text.classes import are_classes_there
from training.models.text.encoder import TextEncoder
from training.models.text.load import fingerprint_text_encoder, load_text_encoder
from training.models.text.records import TextEncoding, Tokens
from training.models.text.source import absolute_path, fingerprint_folder, resolve_folder

__all__ = [
    "TextEncoder",
    "TextEncoding",
    "Tokens",
    "absolute_path",
    "are_classes_there",
    "fingerprint_folder",
    "fingerprint_text_encoder",
    "load_text_encoder",
    "resolve_folder",
]
