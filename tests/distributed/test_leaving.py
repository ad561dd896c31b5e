"""A rank ends when its work does.

Imports no more than the engine needs: what other modules import may hide what keeps a group alive.
"""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from conf.enums import EngineKind, Precision
from conf.training import EngineConfig, OptimizerConfig
from tests.helpers.ranks import run_ranks
from training.engine.build import build_engine


def gloo_threads() -> list[str]:
    """This process's threads that serve a gloo process group."""
    names = [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]
    return sorted(name for name in names if "gloo" in name)


def threads_while_training_and_after() -> tuple[list[str], list[str]]:
    """For `run_ranks`."""
    engine = build_engine(
        EngineConfig(kind=EngineKind.ddp, precision=Precision.fp32),
        OptimizerConfig(),
        nn.Linear(8, 8),
        micro_batch_size=2,
        accumulation_steps=1,
    )
    engine.update([torch.randn(2, 8)], lambda x: {"loss": engine.model(x).mean(1)}, lr=0.1)
    during = gloo_threads()
    engine.close()
    return during, gloo_threads()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists a process's threads")
def test_no_thread_of_the_process_group_is_left_to_hang_or_abort_the_process() -> None:
    for during, after in run_ranks(threads_while_training_and_after, 2):
        assert during
        assert after == []
