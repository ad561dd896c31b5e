"""Who trains into a run: one process at a time, whatever started the others.

`settings.json` says what a run is, and lets everybody in who asks for the same. The lease says who
is at it: rank 0 keeps it anew every few seconds. Clocks of machines are never compared. A lease
whose process is known to be dead is taken at once; one of another machine, that nobody keeps any
more, once it has been watched for long enough. It is no lock: a process that was suspended, or cut
off from the store, finds its lease taken when it comes back, and writes nothing more.
"""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from conf.errors import RunError
from data.process import process_mark
from data.retry import wanted_until
from data.say import say
from data.storage import Prefix

LEASE = "lease.json"
KEPT_EVERY = 15.0  # seconds
STALE = 60.0  # seconds without being kept: four times, for a store may be slow
LOOK_EVERY = 2.0  # seconds, at a lease that may be stale


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has a lease.

    Args:
        token: Nobody else's.
        host: Name of the machine.
        process: Number of the process there.
        mark: Of the process, as `data.process.process_mark` gives it.
        kept: How often the lease was kept.
    """

    token: str
    host: str
    process: int
    mark: str
    kept: int = 0

    def __str__(self) -> str:
        return f"process {self.process} of {self.host}"

    @property
    def dead(self) -> bool | None:
        """Whether its process has ended; None if that cannot be seen from here."""
        boot_and_space = process_mark(os.getpid()).split()[:2]
        if not self.mark or self.mark.split()[:2] != boot_and_space:
            return None
        mark = process_mark(self.process)
        if not mark and _is_hidden(self.process):
            return None
        return self.process == os.getpid() or mark != self.mark


class Lease:
    """The right to write into a run, for as long as a `with` lasts; on rank 0, for all ranks.

    Args:
        out: The run.
        on_wait: Called again and again while another machine's lease is watched.

    Raises:
        RunError: When it is entered: another process has it. No mistake of the user: an evicted
            pod may still be saving when the next one starts, which has to come back later.
    """

    def __init__(self, out: Prefix, on_wait: Callable[[], None]) -> None:
        self._out, self._on_wait = out, on_wait
        host, process = socket.gethostname(), os.getpid()
        self._own = Holder(secrets.token_hex(8), host, process, process_mark(process))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._lost: str | None = None

    def __enter__(self) -> "Lease":
        while (holder := self._take()) is not None:
            if not self._given_up(holder):
                raise RunError(
                    f"{self._out.url}: {holder} is training this run; stop that one first, or "
                    "choose another out"
                )
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(timeout=KEPT_EVERY)
        if self._thread.is_alive() or self._lost is not None:
            return
        try:
            with wanted_until(self._stop):  # which is set: no store is waited for
                held = _read(self._out)
            if self._is_own(held):
                self._out.remove(LEASE)
        except Exception as thrown:  # how the run ended counts; a lease that is left costs a minute
            say(f"{self._out.url}: {LEASE} could not be given back ({thrown})")

    @property
    def lost(self) -> str | None:
        """Why this process must write nothing more, as far as is known without looking."""
        return self._lost

    def require(self) -> None:
        """Look whether this process still has it.

        Raises:
            RunError: Another one has, or had it meanwhile.
        """
        holder = _read(self._out)
        if not self._is_own(holder):
            self._lost = f"{holder or 'somebody'} has taken over {self._out.url}/{LEASE}"
            raise RunError(self._lost)

    def _is_own(self, holder: Holder | None) -> bool:
        return holder is not None and holder.token == self._own.token

    def _take(self) -> Holder | None:
        """Take it if nobody has it, or a dead process; else who has it."""
        try:
            self._out.create(LEASE, _dump(self._own))
            return None
        except FileExistsError:
            holder = _read(self._out)
        if holder is None or holder.dead:
            self._out.write(LEASE, _dump(self._own))
            holder = _read(self._out)  # of two that found a dead one, the last one to write has it
        return None if self._is_own(holder) else holder

    def _given_up(self, holder: Holder) -> bool:
        """Watch a lease of another machine; whether it is no longer kept, and then removed."""
        if holder.dead is not None:
            return False
        say(f"{self._out.url}: looking for up to {STALE:.0f} s whether {holder} still trains it")
        until = time.monotonic() + STALE
        while (now := _read(self._out)) == holder:
            if time.monotonic() > until:
                self._out.remove(LEASE)
                return True
            self._on_wait()
            time.sleep(LOOK_EVERY)
        return now is None

    def _keep(self) -> None:
        with wanted_until(self._stop):
            while not self._stop.wait(KEPT_EVERY):
                try:
                    self.require()
                    self._own = replace(self._own, kept=self._own.kept + 1)
                    self._out.write(LEASE, _dump(self._own))
                except Exception as error:
                    if self._lost is not None:
                        return
                    if not self._stop.is_set():
                        say(f"{self._out.url}: {LEASE} could not be kept ({error}); trying again")


def _is_hidden(process: int) -> bool:
    """Whether it is there, another user's, where /proc shows only one's own."""
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def _dump(holder: Holder) -> bytes:
    return json.dumps(asdict(holder)).encode()


def _read(out: Prefix) -> Holder | None:
    """Who has the lease; None if nobody has, or it is unreadable."""
    try:
        return Holder(**json.loads(out.read(LEASE)))
    except (FileNotFoundError, ValueError, TypeError):
        return None
