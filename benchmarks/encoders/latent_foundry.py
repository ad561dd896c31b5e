"""`ldm cache` from the weights in memory to the manifest."""

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.encoders.work import CAPTION_TOKENS, CASES, autoencoder_of, images_of, report
from conf.compose import compose_config
from training.cache import command


def ready(folder: Path, case: str, out: Path) -> Callable[[], int]:
    config = compose_config(
        "cache",
        [
            f"data.url={images_of(folder, case)}",
            "autoencoder=pretrained",
            f"autoencoder.path={autoencoder_of(folder, case)}",
            f"text_encoder.max_length={CAPTION_TOKENS}",
            f"micro_batch_size={CASES[case].batch}",
            f"out={out}",
        ],
    )
    # Peers load their weights before the clock runs too.
    autoencoder = command.load_autoencoder(config.autoencoder)
    text_encoder = command.load_text_encoder(config.text_encoder)
    command.load_autoencoder = lambda *_: autoencoder
    command.load_text_encoder = lambda *_: text_encoder

    def run() -> int:
        with contextlib.redirect_stdout(sys.stderr):
            return command.make_cache(config)[0].samples

    return run


if __name__ == "__main__":
    report(ready)
