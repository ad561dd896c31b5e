"""What is judged is the memory that training takes, where it takes it."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from conf.compose import compose_config
from conf.enums import OptimizerKind
from conf.errors import RunError
from tests.helpers.small_engine import small_engine, step
from training import headroom
from training.headroom import (
    GPU,
    HOST,
    ToCome,
    check_memory,
    copied_bytes,
    memory_left,
    to_come,
)
from training.memory import Memory

PARAMETERS = 122
COPIES = 4 * 4 * PARAMETERS  # weights, average and two moments


def config(*settings: str) -> Any:
    return compose_config("train", ["data.url=none", "out=none", "train.samples=8", *settings])


def test_a_rank_with_hardly_any_memory_is_named() -> None:
    enough, little = Memory(5, 100), Memory(4, 100)
    check_memory([{}, {HOST: enough}], 0.05)
    with pytest.raises(RunError, match=r"rank 2 will have .* of host memory left"):
        check_memory([{}, {HOST: enough}, {HOST: little}], 0.05)
    with pytest.raises(RunError, match=r"rank 0 will have .* of GPU memory left"):
        check_memory([{GPU: little, HOST: enough}], 0.05)
    with pytest.raises(RunError, match=r"rank 0 will have .* fewer ranks a machine"):
        check_memory([{GPU: enough, HOST: Memory(-4, 100)}], 0.0)


def test_moments_are_to_come_where_they_will_lie_until_they_are_there() -> None:
    engine = small_engine(0)
    sizes = [parameter.numel() for parameter in engine.module.parameters()]
    assert sum(sizes) == PARAMETERS
    assert to_come(engine, config()) == ToCome(8 * PARAMETERS, COPIES)
    offloaded = config("engine=zero1", "engine.offload_optimizer=true")
    assert to_come(engine, offloaded) == ToCome(0, 8 * PARAMETERS + COPIES)
    longer = to_come(engine, config("train.ema_lengths=[0.05,0.1]"))
    assert longer.in_host == COPIES + 4 * 4 * PARAMETERS  # in checkpoints, and for good
    step(engine)
    assert to_come(engine, config()) == ToCome(0, COPIES)
    engine.close()


def test_page_locked_memory_comes_in_powers_of_two() -> None:
    assert copied_bytes([100], OptimizerKind.adamw, 0, 1, pinned=False) == 1600
    assert copied_bytes([100], OptimizerKind.adamw, 0, 1, pinned=True) == 512 + 512 + 1024
    assert copied_bytes([128], OptimizerKind.adamw, 0, 2, pinned=True) == 256 + 256 + 512


def test_a_gpu_s_rank_has_two_memories(monkeypatch: pytest.MonkeyPatch) -> None:
    """As arithmetic: neither a GPU nor its driver is asked."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(headroom, "host_memory", lambda: Memory(1000, 2000))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (50, 100))
    gpu: Any = SimpleNamespace(device=torch.device("cuda"))
    assert memory_left(gpu, ToCome(20, 100)) == {GPU: Memory(30, 100), HOST: Memory(600, 2000)}
    cpu: Any = SimpleNamespace(device=torch.device("cpu"))
    assert memory_left(cpu, ToCome(20, 100)) == {HOST: Memory(520, 2000)}
    monkeypatch.setattr(headroom, "host_memory", lambda: None)
    assert memory_left(cpu, ToCome(20, 100)) == {}
