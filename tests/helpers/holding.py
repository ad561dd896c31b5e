"""Another process that is at a run."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen

from data.storage import Prefix
from tests.helpers.commands import wait_until
from tests.helpers.processes import kill_process, start_process
from training.engine.lease import LEASE

HOLD = """
import sys, threading
from data.storage import open_prefix
from training.engine.lease import Lease
with Lease(open_prefix(sys.argv[1], "out"), lambda: None):
    threading.Event().wait()
"""


@contextmanager
def held_by_a_process(out: Prefix, log: Path) -> "Iterator[Popen[bytes]]":
    """Another process of this machine has the lease of a run."""
    command = [sys.executable, "-c", HOLD, out.url]
    process = start_process(command, log, {"PYTHONPATH": str(Path.cwd())})
    try:
        wait_until(lambda: out.exists(LEASE), process, log, timeout=60)
        yield process
    finally:
        kill_process(process)
