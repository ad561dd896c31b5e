import subprocess
from pathlib import Path

import pytest

from training.tracking.code import code_state, masked

FILE = "training/tracking/code.py"


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / FILE).parent.mkdir(parents=True)
    (tmp_path / FILE).write_text("one\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def test_a_clean_checkout_is_its_revision(checkout: Path) -> None:
    state = code_state(checkout)
    assert state is not None
    assert state.revision == git(checkout, "rev-parse", "HEAD").strip()
    assert not state.dirty


def test_changes_are_kept_but_no_secrets(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "canary-of-a-token")
    (checkout / FILE).write_text("two\ncanary-of-a-token\nhttps://me:password@host/x\n")
    state = code_state(checkout)
    assert state is not None
    assert state.dirty
    assert "+two\n+***\n+https://***@host/x\n" in state.diff


def test_code_that_git_does_not_follow_has_no_state(checkout: Path) -> None:
    installed = checkout / "venv/lib"
    (installed / FILE).parent.mkdir(parents=True)
    (installed / FILE).write_text("one\n")
    assert code_state(installed) is None


def test_short_values_and_plain_names_mask_nothing() -> None:
    assert masked("a yes b", {"USE_TOKEN": "yes", "LANG": "a yes b"}) == "a yes b"
