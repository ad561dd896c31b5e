"""Every engine, on 1, 2 or 4 ranks, with accumulation or without, takes the same steps."""

from pathlib import Path

import pytest
import torch

from data.storage import open_prefix
from tests.helpers.engines import train_in_turn
from tests.helpers.latents import adam_moments, assert_close, checkpoint_of
from tests.helpers.ranks import run_ranks
from training.tracking.files import read_metrics

# A large eps makes a step proportional to the gradient: with the usual one Adam hides the
# gradient's scale, and turns noise in gradients that ought to be zero into whole steps.
SETTINGS = (
    "unet.dropout=0",
    "optimizer.eps=1e-2",
    "optimizer.lr=0.1",
    "tracking.log_every_samples=8",
)
CLIP_NORMS = {"clipped": 0.2, "unclipped": 0}  # gradients have a norm of about 1
OFFLOADED = {  # beside the engines proper
    "zero2_offloaded": ("engine=zero2", "engine.offload_optimizer=true"),
    "zero3_offloaded": (
        "engine=zero3",
        "engine.offload_optimizer=true",
        "engine.offload_parameters=true",
        "engine.recompute=true",
    ),
}
KINDS = ("ddp", "zero1", "zero2", "zero3")
CASES = [
    (ranks, kind, steps, clip)
    for ranks in (1, 2)
    for kind in KINDS
    for steps, clip in ((2, "clipped"), (1, "unclipped"))
]
CASES += [(2, kind, 2, "clipped") for kind in OFFLOADED]
CASES += [(4, kind, 2, "clipped") for kind in KINDS]


def folder_of(root: Path, ranks: int, kind: str, steps: int, clip: str) -> Path:
    return root / f"{kind}-{ranks}-{steps}-{clip}"


def settings_of(ranks: int, kind: str, steps: int, clip: str) -> tuple[str, ...]:
    return (
        *SETTINGS,
        *OFFLOADED.get(kind, (f"engine={kind}",)),
        f"micro_batch_size={8 // ranks // steps}",
        f"optimizer.clip_norm={CLIP_NORMS[clip]}",
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, latents: Path) -> Path:
    """The folder of all runs."""
    root = tmp_path_factory.mktemp("runs")
    for ranks in (1, 2, 4):
        cases = [case for case in CASES if case[0] == ranks]
        if ranks == 1:
            cases += [(1, "single", 1, clip) for clip in CLIP_NORMS]
        run_ranks(
            train_in_turn,
            ranks,
            latents,
            [(folder_of(root, *case), settings_of(*case)) for case in cases],
        )
    return root


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_steps_of_any_engine_are_those_of_one_process(runs: Path, case) -> None:
    reference = checkpoint_of(folder_of(runs, 1, "single", 1, case[-1]))
    checkpoint = checkpoint_of(folder_of(runs, *case))
    assert checkpoint.progress == reference.progress
    assert checkpoint.progress.updates == 3
    assert_close(checkpoint.weights(), reference.weights())
    assert_close(checkpoint.averages(), reference.averages())
    # Adam's first moment is linear in the gradients: a wrong scale shows here.
    assert_close(adam_moments(checkpoint), adam_moments(reference))


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_logged_loss_and_gradient_norm_are_of_the_global_batch(runs: Path, case) -> None:
    reference = read_metrics(open_prefix(str(folder_of(runs, 1, "single", 1, case[-1])), "out"))
    lines = read_metrics(open_prefix(str(folder_of(runs, *case)), "out"))
    assert [line["samples_seen"] for line in lines] == [8, 16, 24]
    for line, wanted in zip(lines, reference, strict=True):
        assert line["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
        assert line["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-4)


def test_clipping_acts_in_the_clipped_runs(runs: Path) -> None:
    """Or the comparisons above would say nothing of it."""
    lines = read_metrics(open_prefix(str(folder_of(runs, 1, "single", 1, "clipped")), "out"))
    assert all(line["grad_norm"] > 0.25 for line in lines)
    weights = [
        checkpoint_of(folder_of(runs, 1, "single", 1, clip)).weights() for clip in CLIP_NORMS
    ]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
