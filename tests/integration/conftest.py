from pathlib import Path

import pytest

from tests.helpers.commands import ldm


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one undisturbed `ldm demo`; nobody may change it."""
    folder = tmp_path_factory.mktemp("demo")
    ended = ldm(folder / "log", "demo", f"out={folder / 'out'}", "recipe=emoji_tiny")
    assert ended.code == 0, ended.output
    return folder / "out"


@pytest.fixture(scope="session")
def demo_output(demo: Path) -> str:
    """What that demo printed."""
    return (demo.parent / "log").read_text()
