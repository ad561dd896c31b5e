"""The cache stage: beside a loop as one writes it, on two ranks, and its bytes a sample.

    python -m benchmarks.cache                      # everything, half an hour on two cores
    python -m benchmarks.cache rate ranks           # some of it
    python -m benchmarks.cache --repeats 5 --keep   # also into docs/results.md

Sections: rate (the whole of `ldm cache`, a sequential loop, and the encoders alone), ranks (two
processes of one thread each beside one), bytes (of every layout).
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.encoders.work import (
    CASES,
    TEXT_ENCODER,
    autoencoder_of,
    images_of,
    make_work,
)
from benchmarks.environments import DIFFUSERS, OURS, python_of
from benchmarks.programs import Section, run_sections
from benchmarks.tables import median, spread, table
from conf.compose import compose_config
from conf.encoders import TextEncoderConfig
from data.collate import caption_of
from data.ingest import make_dataset
from data.progress import read_summary
from data.storage import open_prefix
from data.stream import open_dataset
from training.cache import make_cache
from training.models.operators import define_missing_operators
from training.models.text import load_text_encoder, resolve_folder

PROGRAMS = {
    "Latent Foundry, `ldm cache`": ("latent_foundry", OURS),
    "diffusers and transformers, one thing after another": ("sequential", DIFFUSERS),
    "the encoders alone": ("bare", OURS),
}
# Of Stable Diffusion 2.x at 512 pixels: latents 4 x 64 x 64, text 77 x 1024.
MLPERF_BYTES = 446_464
ROOT = Path(__file__).parents[1]


def rate(folder: Path, repeats: int) -> str:
    """Images a second of everybody, interleaved."""
    tables = []
    for case, told in CASES.items():
        make_work(folder, case)
        rates: dict[str, list[float]] = {name: [] for name in PROGRAMS}
        for _ in range(repeats):
            for name, (module, environment) in PROGRAMS.items():
                python = python_of(environment, folder)
                rates[name].append(_program(folder, case, module, python))
                print(f"{told.name}: {name}: {rates[name][-1]:.2f} images/s", flush=True)
        ours, loop, bare = (median(values) for values in rates.values())
        rows = [[name, spread(values, 2)] for name, values in rates.items()]
        rows.append(["share of the encoders alone", f"{ours / bare:.1%}"])
        rows.append(["times the loop", f"{ours / loop:.2f}"])
        title = f"{told.name}: {told.images} images, {told.batch} at once, two threads"
        tables.append(table(title, ["", "images/s"], rows))
    return "\n".join(tables)


def ranks(folder: Path, repeats: int) -> str:
    """One process of one thread, and two of one thread each."""
    make_work(folder, "sd")
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(repeats):
        for count in seconds:
            seconds[count].append(_ranks(folder, count))
            print(f"{count} ranks: {seconds[count][-1]:.1f} s", flush=True)
    one, two = median(seconds[1]), median(seconds[2])
    rows = [[f"{count} of one thread each", spread(values, 1)] for count, values in seconds.items()]
    rows.append(["times as fast", f"{one / two:.2f}"])
    told = CASES["sd"]
    title = f"{told.name}: {told.images} images, weights loaded and all shards written"
    return table(title, ["ranks", "seconds"], rows)


# Settings of a layout beside the usual: moments and real tokens in float16.
LAYOUTS = {
    "float32, captions padded": ("encoding.dtype=float32", "text_encoder.padding=true"),
    "float16, captions padded": ("text_encoder.padding=true",),
    "float16": (),
    "bfloat16": ("encoding.dtype=bfloat16",),
    "float16, means alone": ("encoding.store=mean",),
    "float16, ids of tokens": ("encoding.text=ids",),
    "float16, means alone, ids of tokens": ("encoding.store=mean", "encoding.text=ids"),
    "float16, equal captions once": ("deduplicate=true",),
    "float16, flipped too": ("encoding.flip=true",),
}


def sizes(folder: Path, repeats: int) -> str:
    """Bytes a sample of every layout, at the sizes of the MLPerf reference set."""
    images, settings = _reference_sizes(folder)
    rows = [["MLPerf's reference set, float32", f"{MLPERF_BYTES:,}", "100%", "44.6", ""]]
    for name, layout in LAYOUTS.items():
        out = folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        last = {one.partition("=")[0]: one for one in (*settings, f"out={out}", *layout)}
        with contextlib.redirect_stdout(sys.stderr):
            (manifest,) = make_cache(compose_config("cache", list(last.values())))
        files = [out / name for one in manifest.shards for name in (one.tar, one.index)]
        each = sum(file.stat().st_size for file in files) / manifest.samples
        spec = manifest.latents
        assert spec is not None
        terabytes = each * 1e8 / 1e12
        errors = f"{spec.rms_error:.1e}" if spec.rms_error else "0"
        rows.append(
            [name, f"{each:,.0f}", f"{each / MLPERF_BYTES:.1%}", f"{terabytes:.1f}", errors]
        )
    title = (
        "Bytes a sample with tar and index, images of 512 pixels, captions of 1,024 channels and "
        f"{_tokens(images):.1f} tokens on average, at most 77"
    )
    columns = ["layout", "bytes", "of MLPerf's", "TB for 100 million", "rounding of latents"]
    return table(title, columns, rows)


def _reference_sizes(folder: Path) -> tuple[Path, list[str]]:
    """Images and models with the sizes of Stable Diffusion 2.x; their weights do not matter."""
    import torch

    define_missing_operators()  # or diffusers cannot be imported on a CPU
    from diffusers import AutoencoderKL
    from transformers import BertConfig, BertModel

    images, autoencoder, text = (folder / f"sizes-{name}" for name in ("images", "kl", "text"))
    source = ["size=512", "shard_samples=128", f"out={images}", "source.split=held_out"]
    with contextlib.redirect_stdout(sys.stderr):
        make_dataset(compose_config("shard", source))
    torch.manual_seed(0)
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (8,) * 4,
    }
    AutoencoderKL(norm_num_groups=8, latent_channels=4, **blocks).save_pretrained(autoencoder)
    sizes = {"hidden_size": 1024, "num_hidden_layers": 1, "num_attention_heads": 16}
    BertModel(BertConfig(intermediate_size=64, **sizes)).save_pretrained(text)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(resolve_folder(TEXT_ENCODER) / name, text)
    return images, [
        f"data.url={images}",
        "autoencoder=pretrained",
        f"autoencoder.path={autoencoder}",
        f"text_encoder.path={text}",
        "text_encoder.max_length=77",
    ]


def _tokens(images: Path) -> float:
    """Tokens of a caption, on average."""
    data = open_dataset(str(images), "images")
    text = load_text_encoder(TextEncoderConfig(path=TEXT_ENCODER, max_length=77))
    captions = [
        caption_of(data.read(shard, row), data)
        for shard, one in enumerate(data.manifest.shards)
        for row in range(one.samples)
    ]
    return sum(one.shape[1] for one in text.tokenize(captions).ids) / len(captions)


def _program(folder: Path, case: str, module: str, python: str) -> float:
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    command = [python, "-m", f"benchmarks.encoders.{module}", folder, case, out]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    found = json.loads(done.stdout.splitlines()[-1])
    if found["samples"] != CASES[case].images:
        raise SystemExit(f"{module} encoded {found['samples']} of {CASES[case].images} images")
    return found["samples"] / found["seconds"]


def _ranks(folder: Path, count: int) -> float:
    """Seconds of `ldm cache` on so many ranks, from loaded libraries to the slower one's end."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    settings = [
        f"data.url={images_of(folder, 'sd')}",
        "autoencoder=pretrained",
        f"autoencoder.path={autoencoder_of(folder, 'sd')}",
        f"micro_batch_size={CASES['sd'].batch}",
        f"out={out}",
        f"world_size={count}",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "launch.cli", "cache", *settings, f"rank={rank}"],
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        for rank in range(count)
    ]
    if any([process.wait() for process in running]):
        raise SystemExit("a rank failed")
    return max(part["seconds"] for part in read_summary(open_prefix(str(out), "out")))


SECTIONS: dict[str, Section] = {"rate": rate, "ranks": ranks, "bytes": sizes}


if __name__ == "__main__":
    run_sections(__doc__, "cache", SECTIONS)
