"""Processes that do the same thing at the same moment, again and again."""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from threading import Barrier
from typing import Any

from data.process import die_with
from tests.helpers import cache_processes

_forks = get_context("forkserver")


def race(writers: int, rounds: int, act: Callable[[int, int], Any]) -> list[list[Any]]:
    """What each of some processes gave in each round, all of which begin a round together.

    Args:
        writers: How many.
        rounds: How many.
        act: Called with the round and the writer's number; can be pickled.
    """
    _forks.set_forkserver_preload(cache_processes.PRELOADED)
    barrier, results = _forks.Barrier(writers, timeout=120), _forks.Queue()
    known = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    processes = [
        _forks.Process(
            target=_take_part, args=(act, writer, rounds, barrier, results, known), daemon=True
        )
        for writer in range(writers)
    ]
    for process in processes:
        process.start()
    found: list[list[Any]] = [[None] * writers for _ in range(rounds)]
    try:
        for _ in range(writers * rounds):
            number, writer, result = results.get(timeout=120)
            assert not isinstance(result, BaseException), result
            found[number][writer] = result
    finally:
        for process in processes:
            process.kill()
            process.join()
    return found


def race_of_threads(writers: int, rounds: int, act: Callable[[int, int], Any]) -> list[list[Any]]:
    """The same with threads of this process."""
    barrier = Barrier(writers, timeout=120)

    def take_part(number: int, writer: int) -> Any:
        barrier.wait()
        return act(number, writer)

    with ThreadPoolExecutor(writers) as pool:
        return [
            list(pool.map(partial(take_part, number), range(writers))) for number in range(rounds)
        ]


def _take_part(
    act: Callable[[int, int], Any],
    writer: int,
    rounds: int,
    barrier: Any,
    results: Any,
    environment: Mapping[str, str],
) -> None:
    die_with(os.getppid())
    os.environ.update(environment)
    for number in range(rounds):
        barrier.wait()
        try:
            result = act(number, writer)
        except BaseException as error:
            result = error
        results.put((number, writer, result))
