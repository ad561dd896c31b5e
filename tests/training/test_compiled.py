"""`ldm train engine.compile=true` trains the real UNet as it does without."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from data.storage import open_prefix
from tests.helpers.latents import (
    assert_close,
    checkpoint_of,
    train_small,
    write_latents,
)
from training.tracking.files import read_metrics

TIMES = ("second", "memory", "share", "stall", "mfu", "left")


def lines_of(run: Path) -> list[dict[str, float]]:
    """A run's metrics, but for those that are of the machine's speed and memory."""
    return [
        {key: value for key, value in line.items() if not any(one in key for one in TIMES)}
        for line in read_metrics(open_prefix(str(run), "out"))
    ]


def test_a_compiled_run_is_the_plain_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a dry batch, validation and a recomputed UNet, but for inductor: minutes of C++."""
    torch.compiler.reset()
    write_latents(tmp_path / "latents")
    write_latents(tmp_path / "held_out", (9,), seed=1)
    compile_, calls = nn.Module.compile, []

    def eagerly(model: nn.Module) -> None:
        def backend(graph: torch.fx.GraphModule, _: object) -> Any:
            def call(*given: Any) -> Any:
                calls.append(name)
                return graph(*given)

            return call

        compile_(model, backend=backend)

    monkeypatch.setattr(nn.Module, "compile", eagerly)
    settings = (
        "unet.dropout=0",
        "optimizer.eps=1e-2",
        "tracking.log_every_samples=8",
        f"validation.url={tmp_path / 'held_out'}",
        "train.samples=16",
        "engine.recompute=true",
    )
    for name in ("true", "false"):
        train_small(tmp_path / "latents", tmp_path / name, *settings, f"engine.compile={name}")
    assert set(calls) == {"true"} and len(calls) >= 3  # two steps, and validation
    compiled, plain = (lines_of(tmp_path / name) for name in ("true", "false"))
    for one, other in zip(compiled, plain, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    after, wanted = (checkpoint_of(tmp_path / name) for name in ("true", "false"))
    assert_close(after.weights(), wanted.weights())
    assert_close(after.averages(), wanted.averages())
