"""A child process that runs `ldm` commands within a fence and says of each how it ended.

It is given a file of jobs. Whatever would start a program, unpickle, reach for the network or write
outside of the allowed folders is stopped and noted: the audit hook sees it, whoever does it.
"""

import contextlib
import io
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from conf.schema import VerifyCommand
from data.collate import ImageCollator, latent_batch
from data.corpus import Corpus
from data.loader import batches
from data.stream import open_dataset
from launch import cli

FORBIDDEN = {
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn"),
    *("subprocess.Popen", "pickle.find_class", "code.__new__", "marshal.loads"),
    *("socket.connect", "socket.getaddrinfo", "socket.bind", "webbrowser.open", "shutil.move"),
}
# Of what changes files, which of the arguments are paths.
CHANGES = {
    **{f"os.{name}": (0,) for name in ("mkdir", "remove", "rmdir", "truncate", "chmod", "chown")},
    **{f"os.{name}": (0, 1) for name in ("rename", "link")},
    **{"os.symlink": (1,), "os.utime": (0,), "os.setxattr": (0,)},
}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Fence:
    """Notes and stops what no input may lead to.

    Args:
        folders: Where files may be written.
    """

    def __init__(self, folders: list[str]) -> None:
        self.folders = [os.path.realpath(folder) for folder in folders]
        self.crimes: list[str] = []
        self.closed = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook."""
        if not self.closed:
            return
        if event == "marshal.loads" and sys._getframe(1).f_code.co_filename.startswith("<frozen"):
            return  # a module of the environment is imported
        if event in FORBIDDEN:
            self._stop(event, arguments)
        paths = [arguments[number] for number in CHANGES.get(event, ())]
        if event == "open" and (arguments[2] or 0) & WRITING:
            paths = [arguments[0]]
        for path in paths:
            folder = arguments[-1] if event in ("os.remove", "os.rmdir", "os.mkdir") else -1
            place = f"/proc/self/fd/{folder}" if folder >= 0 else ""  # of a name within a folder
            if not isinstance(path, int) and not self._is_allowed(place, os.fsdecode(path)):
                self._stop(event, arguments)

    def _is_allowed(self, place: str, path: str) -> bool:
        whole = os.path.realpath(Path(place, path))
        return path == os.devnull or any(Path(whole).is_relative_to(f) for f in self.folders)

    def _stop(self, event: str, arguments: tuple[Any, ...]) -> None:
        self.crimes.append(f"{event} {arguments!r:.200}")
        raise PermissionError(f"the fence: {event}")


def read_through(config: VerifyCommand) -> None:
    """One epoch of a dataset through the loader."""
    dataset = open_dataset(config.data.url, "any")
    collate: Any = ImageCollator(0) if dataset.manifest.kind == "images" else latent_batch
    corpus = Corpus([dataset], None, seed=0, block_shards=2, batch_size=1)
    places = (range(place, place + 1) for place in range(corpus.samples))
    for batch in batches(corpus, collate, places, threads=1):
        print("read", *getattr(batch, "captions", batch.places))


def forget_peak() -> None:
    """Have the kernel begin anew with the peak, where it lets us: each job shall have its own."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_megabytes() -> int:
    """Peak resident memory of this process."""
    with open("/proc/self/status") as status:  # noqa: PTH123
        (line,) = (line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 // 1_000_000


def run_job(arguments: list[str]) -> dict[str, Any]:
    """Run a command line as `ldm` would; `read` stands for `read_through`."""
    verb = "tests.helpers.fence:read_through" if arguments[0] == "read" else "data.verify:verify"
    cli.HANDLERS["verify"] = verb
    out, err = io.StringIO(), io.StringIO()
    code, started = None, time.perf_counter()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.run([arguments[0].replace("read", "verify"), *arguments[1:]])
        except BaseException:
            traceback.print_exc()
    return {
        "code": code,
        "out": out.getvalue(),
        "err": err.getvalue(),
        "seconds": time.perf_counter() - started,
        "peak": peak_megabytes(),
    }


def main() -> None:
    """`python -m tests.helpers.fence JOBS RESULTS FOLDER...`: a line of JSON a job."""
    jobs = json.loads(Path(sys.argv[1]).read_text())
    fence = Fence(sys.argv[3:])
    sys.addaudithook(fence)
    with Path(sys.argv[2]).open("a") as results:
        for name, arguments in jobs:
            forget_peak()
            fence.crimes, fence.closed = [], True
            result = run_job(arguments)
            fence.closed = False
            line = {"name": name, **result, "crimes": fence.crimes}
            results.write(json.dumps(line) + "\n")
            results.flush()


if __name__ == "__main__":
    # As a module it has another name, under which `read_through` is looked up.
    from tests.helpers import fence

    fence.main()
