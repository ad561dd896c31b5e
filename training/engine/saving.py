"""Saving checkpoints while training goes on.

After `Saver.save` a thread of each rank copies what it has to write into host memory, beside the
next step's forward and backward; the step that would change it waits for the copy. Then the thread
writes it, and beside it a small record with sizes and hashes; that of rank 0 waits for all records
and writes `commit.json` last. No thread talks to another rank but through these files: collectives
are the training's. Records bear a token of their attempt: none of a killed one is taken for this.
"""

import hashlib
import json
import math
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from conf.errors import RunError
from data.local_files import FLUSHED
from data.retry import wanted_until
from data.say import say
from data.storage import Prefix
from training.engine.checkpoint import FOLDER, Progress, file_name
from training.engine.commit import COMMIT, seal
from training.engine.lease import Lease
from training.engine.pieces import Piece
from training.engine.retention import Keep, remove_others
from training.engine.shares import whole_shapes
from training.engine.staging import CopyPoint, StagedFile, copy_point, copy_stream, stage
from training.engine.strategy import Engine

LATEST = "latest"
POLL_SECONDS = 0.05, 1.0  # between two looks for other ranks' records: at first, and at most
SUSPENDED = 2.0  # between two of its looks at a save, at the least, of a rank that was
GRACE_SECONDS = 10.0  # that a run which has failed still gives the ranks to end what they write

Files = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One checkpoint that is being written.

    Args:
        step: Its name.
        token: The same on all ranks, and no other attempt's.
        commit: What `commit.json` says besides the files.
        before_commit: Called on rank 0 when all files are safe.
    """

    step: str
    token: str
    commit: dict[str, Any]
    before_commit: Callable[[], None]

    def record(self, rank: int) -> str:
        """The name of the file by which a rank says that its files are safe."""
        return f"record-{self.token}-{rank:05d}.json"


def _nothing() -> None:
    return None


def hash_of(content: memoryview, on_piece: Callable[[], None]) -> str:
    """SHA-256, in hex; of large files it takes seconds."""
    found = hashlib.sha256()
    for start in range(0, len(content), FLUSHED):
        found.update(content[start : start + FLUSHED])
        on_piece()
    return found.hexdigest()


def _raise(line: str) -> None:
    raise RunError(line)


def _told(error: BaseException) -> str:
    return str(error) or type(error).__name__


class Saver:
    """Saves the checkpoints of a run, one at a time.

    Every rank makes one; what is marked as collective, every rank calls at the same step.

    Args:
        out: The run.
        engine: The engine.
        keep: Which checkpoints are kept.

    Attributes:
        val_loss: Of the last validation, for the records; None before the first.
        validation: What tells it from others; None with it.
        lease: On rank 0, who may write into the run; None asks nobody.
        on_wait: Called again and again while training waits for what is being written: this is no
            hang of a rank, for writing has a limit of its own.
        hang_seconds: That limit, on a disk: so long no rank may get a piece further; 0 is for
            ever. What is sent to a store has time limits of its own.
        on_hang: Called on every rank with a line when it is passed; raises.
        on_commit: Called on rank 0, in its thread, with the name and the record of a checkpoint
            that is there.
        tracker: Where the run's record goes on, for the records: the id of its W&B run.
        stalled: Seconds that training stood still for saving.
        seconds: What the last checkpoint took from its copy to its commit, as this rank saw it.
    """

    def __init__(self, out: Prefix, engine: Engine, keep: Keep) -> None:
        self.val_loss: float | None = None
        self.validation: str | None = None
        self.lease: Lease | None = None
        self.hang_seconds = 0.0
        self.on_hang: Callable[[str], None] = _raise
        self.on_wait: Callable[[], None] = _nothing
        self.on_commit: Callable[[str, dict[str, Any]], None] = lambda *_: None
        self.tracker: str | None = None
        self.stalled = self.seconds = 0.0
        self._out, self._engine, self._keep = replace(out, on_piece=self._move), engine, keep
        self._moved, self._doing = 0, ""
        self._files: dict[str, StagedFile] = {}
        self._thread: threading.Thread | None = None
        self._copies = copy_stream(engine.device)
        self._staged = threading.Event()  # or given up
        self._staged.set()
        self._hook = engine.optimizer.register_step_pre_hook(lambda *_: self._wait_for_copy())
        self._error: BaseException | None = None
        self._abandoned = threading.Event()
        self._grace = 0.0

    @property
    def failed(self) -> bool:
        """Whether this rank could not write; `finish` then raises on all."""
        return bool(self._error or (self.lease and self.lease.lost))

    def save(
        self,
        pieces: Mapping[str, Sequence[Piece]],
        progress: Progress,
        before_commit: Callable[[], None] = _nothing,
    ) -> None:
        """Have the run's state, as it is now, copied and written from now on. Collective.

        Args:
            pieces: This rank's, by kind, as `pieces_of` has them: views of what only the
                optimizer's next step, and what follows it, changes.
            progress: Where the run is.
            before_commit: Called on rank 0, in its thread, when all files are safe.

        Raises:
            RunError: The checkpoint before this one could not be saved.
        """
        self.finish()
        began = time.perf_counter()
        token = self._engine.gather(secrets.token_hex(8))[0]
        told = {"val_loss": self.val_loss, "validation": self.validation, "tracker": self.tracker}
        if self.val_loss is not None and not math.isfinite(self.val_loss):
            told["val_loss"] = None  # JSON has no such number, and it is the best of none
        commit = {**asdict(progress), **told, "shapes": whole_shapes(self._engine)}
        attempt = _Attempt(f"{progress.updates:08d}", token, commit, before_commit)
        self._staged.clear()
        arguments = (attempt, pieces, copy_point(self._engine.device, self._copies), began)
        self._thread = threading.Thread(
            target=self._write, args=arguments, name="checkpoint", daemon=True
        )
        self._thread.start()
        self.stalled += time.perf_counter() - began

    def _wait_for_copy(self) -> None:
        """Hold the optimizer's step until nothing of what it changes is still being copied."""
        if self._staged.is_set():
            return
        began = time.perf_counter()
        self._staged.wait()
        self.stalled += time.perf_counter() - began

    def finish(self) -> None:
        """Wait until the last checkpoint is committed. Collective.

        Raises:
            RunError: It could not be, on this rank or another, or the run is another process's.
        """
        if lost := self._engine.gather(self.lease and self.lease.lost)[0]:
            self.close(grace=0)  # before any rank writes into what is no longer this process's
            raise RunError(f"{lost}; this process has stopped, and left that one's files alone")
        if self._thread is None:  # so it is on all ranks
            return
        began = time.perf_counter()
        before = None
        moved_at = looked_at = time.monotonic()
        while True:
            done = not self._thread.is_alive()  # first, for errors come before the end
            told = self._engine.gather((done, self._error and _told(self._error), self._at()))
            if failed := {rank: reason for rank, (_, reason, _) in enumerate(told) if reason}:
                self.close(grace=0)
                raise RunError(self._refusal(failed))
            if all(done for done, _, _ in told):
                break
            if (places := [place for _, _, place in told]) != before:
                before, moved_at = places, time.monotonic()
            # A rank was suspended meanwhile, and what writes was so with it: nobody is at fault.
            if time.monotonic() - looked_at > max(SUSPENDED, self.hang_seconds / 4):
                moved_at = time.monotonic()
            looked_at = time.monotonic()
            self._watch(looked_at - moved_at, told)
            self.on_wait()
            self._thread.join(POLL_SECONDS[0])
        self._thread = None
        self.stalled += time.perf_counter() - began

    def _at(self) -> tuple[int, str]:
        """How far this rank has come, and what it does; nothing while it waits for others."""
        return self._moved, self._doing

    def _move(self) -> None:
        self._moved += 1

    def _watch(self, seconds: float, told: Sequence[tuple[bool, Any, tuple[int, str]]]) -> None:
        """End a run whose disk takes nothing more: a write that hangs returns no error."""
        if self._out.local is None or not 0 < self.hang_seconds < seconds:
            return
        left = {rank: doing for rank, (done, _, (_, doing)) in enumerate(told) if not done}
        stuck = {rank: doing for rank, doing in left.items() if doing} or left
        names = "; ".join(f"rank {rank} still {doing or 'waits'}" for rank, doing in stuck.items())
        self.close(grace=0)
        self.on_hang(
            f"{self._out.url}: no progress with a checkpoint for {self.hang_seconds:g} s: {names}; "
            "look at that disk or mount; the checkpoint before it is as it was"
        )

    def close(self, grace: float = GRACE_SECONDS) -> None:
        """End without the other ranks; a checkpoint that is all but written may still come to be.

        Args:
            grace: Seconds that this rank still writes, and rank 0 waits for the others.
        """
        self._grace = grace
        self._hook.remove()
        self._abandoned.set()
        if self._thread is not None:
            # Beyond that it ends with the process: a commit that is not there was never given.
            self._thread.join(grace + POLL_SECONDS[1])
            self._thread = None

    def _refusal(self, failed: dict[int, str]) -> str:
        ranks = ", ".join(map(str, failed))
        reason = next(iter(failed.values()))
        return (
            f"{self._out.url}: a checkpoint could not be saved by rank {ranks} ({reason}); the one "
            "before it is as it was; mend that, and the same command goes on from there"
        )

    def _write(
        self,
        attempt: _Attempt,
        pieces: Mapping[str, Sequence[Piece]],
        ready: CopyPoint,
        began: float,
    ) -> None:
        """What the thread does."""
        try:
            stage(self._files, pieces, ready)
            self._staged.set()
            with wanted_until(self._abandoned):
                self._require_lease()
                own = self._write_files(attempt)
                if self._engine.world.main:
                    self._commit(attempt, own)
        except BaseException as error:  # whatever it is, training has to hear of it
            self._error = error
        finally:
            self._staged.set()
        self.seconds = time.perf_counter() - began

    def _write_files(self, attempt: _Attempt) -> Files:
        folder, rank = self._out / f"{FOLDER}/{attempt.step}", self._engine.world.rank
        if rank == 0:  # one of this name was broken, or latest_checkpoint would have taken it
            folder.remove(COMMIT)
        written: Files = {}
        for kind, file in self._files.items():
            name, content = file_name(kind, rank), file.content()
            self._write_file(folder, name, content)
            written[name] = {"bytes": len(content), "sha256": hash_of(content, self._move)}
        if rank:
            self._write_file(folder, attempt.record(rank), json.dumps(written).encode())
        return written

    @contextmanager
    def _busy(self, doing: str) -> Iterator[None]:
        self._doing = doing
        try:
            yield
        finally:
            self._move()
            self._doing = ""

    def _write_file(self, folder: Prefix, name: str, content: bytes | memoryview) -> None:
        with self._busy(f"writes {name}"):
            folder.write(name, content)

    def _require_lease(self) -> None:
        if self.lease is not None:
            with self._busy("looks whose the run is"):
                self.lease.require()

    def _commit(self, attempt: _Attempt, own: Files) -> None:
        """Wait for the other ranks' records, and make the checkpoint exist."""
        folder = self._out / f"{FOLDER}/{attempt.step}"
        files = own | self._others(folder, attempt)
        with self._busy("writes what was logged"):
            attempt.before_commit()
        commit = {"files": dict(sorted(files.items())), **attempt.commit}
        self._require_lease()
        self._write_file(folder, COMMIT, seal(commit))
        self._write_file(self._out, LATEST, attempt.step.encode())
        try:
            with self._busy("removes old checkpoints"):
                self._clean_up(attempt.step, files)
        except Exception as error:  # the new one is there, and what is too much does no harm
            say(f"{self._out.url}: old checkpoints could not be removed ({_told(error)}); going on")
        self.on_commit(attempt.step, commit)

    def _clean_up(self, step: str, files: Files) -> None:
        """Remove records, what killed attempts left, and what is not kept."""
        folder = self._out / f"{FOLDER}/{step}"
        for name in folder.names():
            if name not in files and name != COMMIT:
                folder.remove(name)
        remove_others(self._out, step, self._keep)

    def _others(self, folder: Prefix, attempt: _Attempt) -> Files:
        wanted = {attempt.record(rank) for rank in range(1, self._engine.world.size)}
        pause, most = POLL_SECONDS
        until: float | None = None
        while missing := wanted - set(folder.names() if wanted else ()):
            if self._abandoned.is_set():
                until = until or time.monotonic() + self._grace
                if time.monotonic() > until:
                    raise RunError(f"{len(missing)} ranks have not written their part")
            time.sleep(pause)
            pause = min(2 * pause, most)
        found: Files = {}
        for name in wanted:
            found |= json.loads(folder.read(name))
        return found
