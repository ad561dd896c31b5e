"""Whether datasets of latents can be read as one: their numbers have to mean the same."""

from collections.abc import Iterable

from data.manifest import Manifest

LATENTS_ALIKE = {
    "autoencoder": "latents of another autoencoder",
    "channels": "latents of other channels",
    "downsampling": "latents of another downsampling factor",
    "dtype": "latents in another number format",
    "stored": "means alone where the others are moments, or the other way round,",
    "views": "other views of each image",
}
TEXTS_ALIKE = {
    "encoder": "captions of another text encoder",
    "dtype": "text embeddings in another number format",
    "stored": "ids of tokens where the others are embeddings, or the other way round,",
    "padding": "captions padded in another way",
    "max_length": "captions of another greatest length",
    "models": "another number of text models",
    "captions": "another number of captions a sample",
    "pooled_width": "other pooled embeddings",
}


def means_latents(manifest: Manifest) -> bool:
    """Whether a manifest has all that training on latents needs."""
    latents, text = manifest.latents, manifest.text
    if not latents or not text:
        return False
    return {*latents.members, *text.members, *text.pooled_members} <= {*manifest.members}


def differences(first: Manifest, other: Manifest) -> Iterable[str]:
    """In what the numbers of two datasets of latents do not mean the same."""
    for one, two, fields in (
        (first.latents, other.latents, LATENTS_ALIKE),
        (first.text, other.text, TEXTS_ALIKE),
    ):
        for name, words in fields.items():
            if one and two and getattr(one, name) != getattr(two, name):
                yield words
