import fcntl
import os
from pathlib import Path

import pytest

from tests.helpers.commands import ldm


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one undisturbed `ldm demo`; nobody may change it.

    Processes that share the tests share it: the first that asks makes it.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "demo"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "out/run/report.html").exists():
            ended = ldm(folder / "log", "demo", f"out={folder / 'out'}", "recipe=emoji_tiny")
            assert ended.code == 0, ended.output
    return folder / "out"


@pytest.fixture(scope="session")
def demo_output(demo: Path) -> str:
    """What that demo printed."""
    return (demo.parent / "log").read_text()
