"""The encoders alone, on batches that are in memory: the most that a cache can reach."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.encoders.work import (
    CAPTION_TOKENS,
    CASES,
    TEXT_ENCODER,
    autoencoder_of,
    images_of,
    report,
)
from conf.encoders import PretrainedAutoencoderConfig, TextEncoderConfig
from data.collate import caption_of, image_of
from data.stream import open_dataset
from training.autoencode import to_images
from training.device import pick_device
from training.encode import CAPTIONS_AT_ONCE
from training.encoders import load_autoencoder
from training.models.text import load_text_encoder


def ready(folder: Path, case: str, out: Path) -> Callable[[], int]:
    data = open_dataset(str(images_of(folder, case)), "images")
    path = str(autoencoder_of(folder, case))
    model = load_autoencoder(PretrainedAutoencoderConfig(path=path)).model
    text = load_text_encoder(TextEncoderConfig(path=TEXT_ENCODER, max_length=CAPTION_TOKENS))
    raw = [
        data.read(shard, row)
        for shard, one in enumerate(data.manifest.shards)
        for row in range(one.samples)
    ]
    images, at_once = [image_of(sample) for sample in raw], CASES[case].batch
    batches = [np.stack(images[i : i + at_once]) for i in range(0, len(images), at_once)]
    ids = text.tokenize([caption_of(sample, data) for sample in raw]).ids
    # As the cache has them: of about one length together, equal ones once.
    unique = sorted({one.tobytes(): one for one in ids}.values(), key=lambda one: one.shape[1])
    captions = [unique[i : i + CAPTIONS_AT_ONCE] for i in range(0, len(unique), CAPTIONS_AT_ONCE)]

    cpu = pick_device()  # as the cache has it

    @torch.inference_mode()
    def run() -> int:
        for batch in batches:
            model.encode(to_images(batch, cpu).contiguous(memory_format=torch.channels_last))
        for part in captions:
            text.embed(part)
        return len(images)

    return run


if __name__ == "__main__":
    report(ready)
