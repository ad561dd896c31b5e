"""Small caches: an autoencoder of one step, and `ldm cache` in this process."""

from pathlib import Path

from conf.compose import compose_config
from data.manifest import Manifest
from training.autoencode import train_autoencoder
from training.cache import make_cache


def train_small(images: Path, out: Path, seed: int) -> Path:
    """`ldm autoencoder` of one step."""
    train_autoencoder(
        compose_config(
            "autoencoder",
            [
                "autoencoder=kl_emoji",
                "autoencoder.channels=8",
                f"data.url={images}",
                f"out={out}",
                "train.samples=8",
                f"train.seed={seed}",
                "batch_size=8",
                "tracking.kind=off",
                "engine.precision=fp32",
            ],
        )
    )
    return out


def cache_settings(images: Path | str, autoencoder: Path | str, out: Path | str) -> list[str]:
    """The settings of `ldm cache` without which it cannot run."""
    return [f"data.url={images}", f"autoencoder.url={autoencoder}", f"out={out}"]


def run_cache(
    images: Path | str, autoencoder: Path | str, out: Path | str, *more: str
) -> list[Manifest]:
    """`ldm cache` in this process."""
    settings = [*cache_settings(images, autoencoder, out), "micro_batch_size=8", *more]
    last = {setting.partition("=")[0]: setting for setting in settings}
    return make_cache(compose_config("cache", list(last.values())))
