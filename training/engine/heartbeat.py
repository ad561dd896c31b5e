"""Ends a run of several ranks that hangs, and says which rank keeps the others waiting.

Two threads a rank. One talks through the store that the ranks met at, over a connection of its
own: it may be held up for ever by a store that is gone. The other one only looks at clocks and
judges, so that nothing can hold it up; it ends the process without asking anybody, for a process
group that waits cannot be ended.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import NoReturn, TypeVar

from torch.distributed import TCPStore

from conf.errors import Preempted
from data.last_words import leave_last_words
from data.process import process_mark
from data.retry import waiting_for_store
from training.engine.pulse import Phase, Pulse, main_stack, reading_stacks, verdict
from training.engine.world import World

T = TypeVar("T")
LONGEST_PAUSE = 5.0  # seconds between two pulses
# Work without beats of its own. A main thread that is never at the same place gets on there.
LONG = (Phase.validating, Phase.saving)


class Heartbeat:
    """Watches this rank and, while it does not get on, the others; to be used as a context.

    Args:
        world: This rank.
        limit: Seconds that all ranks together may make no progress; 0 watches nothing.
    """

    def __init__(self, world: World, limit: float) -> None:
        self._world, self._limit = world, limit
        self._first = 0
        self._at = (0, Phase.starting, 0)  # replaced whole: another thread reads it
        self._progressed = self._answered = time.monotonic()
        self._read = -float("inf")  # when all pulses were read
        self._seen: dict[int, tuple[Pulse, float]] = {}  # and when it was new
        self._stop = threading.Event()
        self._done = False
        self._threads: list[threading.Thread] = []
        self._host, self._mark = socket.gethostname(), process_mark(os.getpid())
        self._pulse = self._look(0)

    def beat(self, step: int, phase: Phase) -> None:
        """Say that this rank gets on, and what it does now. Costs next to nothing."""
        self._at = (step, phase, self._at[2] + 1)

    def begin(self, step: int) -> None:
        """Say how many updates were made by earlier processes; the next one is the first here."""
        self._first = step
        self.beat(step, Phase.starting)

    @property
    def beats(self) -> int:
        """How often it got on so far."""
        return self._at[2]

    def again(self) -> None:
        """Say that this rank gets on with what it does."""
        self.beat(*self._at[:2])

    def each(self, items: Iterable[T]) -> Iterator[T]:
        """The same items; each one that is taken is a beat."""
        for item in items:
            self.again()
            yield item

    def __enter__(self) -> "Heartbeat":
        if self._world.size > 1 and self._limit:
            for work in (self._watch, self._talk):
                thread = threading.Thread(target=work, name="heartbeat", daemon=True)
                self._threads.append(thread)
                thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._done = kind in (None, Preempted)  # a rank that fails is missed by the others
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=LONGEST_PAUSE)

    @property
    def _pause(self) -> float:
        return min(LONGEST_PAUSE, self._limit / 8)

    def _watch(self) -> None:
        beats, count, looked = 0, 0, time.monotonic()
        while not self._stop.wait(self._pause):
            count += 1
            if time.monotonic() - looked > self._pause + self._limit / 4:
                # This process was stopped itself, and cannot tell what others did meanwhile.
                self._progressed = self._answered = time.monotonic()
            looked = time.monotonic()
            before, self._pulse = self._pulse, self._look(count)
            step, phase, now_beats = self._at
            moved = self._pulse.stack != before.stack and (phase in LONG or step == self._first)
            if now_beats != beats or moved or waiting_for_store():
                beats, self._progressed = now_beats, time.monotonic()
            if line := self._judge(time.monotonic()):
                give_up(line)

    def _look(self, count: int) -> Pulse:
        step, phase, _ = self._at
        stack, waits = main_stack()
        if phase is Phase.reading and (readers := reading_stacks()):
            stack = readers
        return Pulse(
            count=count,
            step=step,
            phase=phase,
            quiet=time.monotonic() - self._progressed,
            stack=stack,
            waits=waits,
            host=self._host,
            process=os.getpid(),
            mark=self._mark,
        )

    def _judge(self, now: float) -> str | None:
        """What keeps all ranks from getting on, once that has lasted too long.

        Ranks of this machine that are silent are then killed.
        """
        if now - self._progressed < self._limit:
            return None
        nothing = f"no progress for {self._limit:g} s"
        unanswered = now - self._answered
        if unanswered >= self._limit / 2:
            return (
                f"{nothing}, and no answer from {':'.join(_address())}, where the ranks meet, for "
                f"{unanswered:.0f} s: that machine is stopped or cut off"
            )
        if now - self._read > self._limit / 2:
            return None
        silent, ranks = set(), {}
        for rank, (pulse, new) in self._seen.copy().items():
            ranks[rank] = pulse
            if pulse.done:
                continue
            if self._read - new >= self._limit / 3:
                silent.add(rank)
            elif pulse.quiet + now - new < self._limit:
                return None  # it gets on, and the others may wait for it
        self._end_silent(silent)
        return f"{nothing}: {verdict(ranks, silent, self._world.size)}"

    def _talk(self) -> None:
        store = None
        own = _key(self._world.rank)
        last = False
        while not last:
            last = self._stop.is_set()
            try:
                if store is None:
                    if last:
                        return  # it would keep the process from ending
                    store = _connect(self._limit)
                store.set(own, replace(self._pulse, done=self._done).dump())
                now = time.monotonic()
                quiet = now - self._progressed >= self._limit / 4
                if quiet and now - self._read >= self._limit / 8:
                    self._read_all(store)
                    self._read = time.monotonic()
                elif not last:
                    store.check([own])  # unlike `set`, it waits for an answer
                self._answered = time.monotonic()
            except RuntimeError:  # of the connection
                store = None
            self._stop.wait(self._pause)

    def _read_all(self, store: TCPStore) -> None:
        ranks = range(self._world.size)
        there = [rank for rank in ranks if rank in self._seen or store.check([_key(rank)])]
        for rank, text in zip(there, store.multi_get([_key(rank) for rank in there]), strict=True):
            pulse = Pulse.parse(text)
            if rank not in self._seen or pulse.count != self._seen[rank][0].count:
                self._seen[rank] = (pulse, time.monotonic())

    def _end_silent(self, silent: set[int]) -> None:
        """Kill ranks of this machine that do not answer: their launcher would wait for them."""
        for rank in silent:
            pulse = self._seen[rank][0]
            if pulse.mark and process_mark(pulse.process) == pulse.mark:
                with suppress(ProcessLookupError):
                    os.kill(pulse.process, signal.SIGKILL)


def give_up(line: str) -> NoReturn:
    """End this process at once: what hangs, a collective or a disk, would hold up every other end.

    Args:
        line: Why.
    """
    leave_last_words(line, 1)
    os._exit(1)


def _address() -> tuple[str, str]:
    return os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]


def _key(rank: int) -> str:
    """Of a rank's pulse; torchrun's store outlives a restart of its ranks."""
    return f"ldm-pulse/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{rank}"


def _connect(limit: float) -> TCPStore:
    host, port = _address()
    patience = timedelta(seconds=max(1.0, limit / 8))
    return TCPStore(host, int(port), None, False, patience, wait_for_workers=False)
