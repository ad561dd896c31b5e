import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conf.errors import RunError
from training.tracking.code import (
    CODE,
    ROOMS,
    ROOT,
    CodeState,
    code_state,
    masked,
    packed,
    unpacked,
)

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


def installed(checkout: Path, text: str = "one\n") -> Path:
    """The same program where git does not follow it."""
    root = checkout / "venv/lib"
    (root / FILE).parent.mkdir(parents=True)
    (root / FILE).write_text(text)
    return root


def test_a_clean_checkout_is_its_revision(checkout: Path) -> None:
    state = code_state(checkout, {})
    assert state.revision == git(checkout, "rev-parse", "HEAD").strip()
    assert state.dirty is False


def test_changes_are_kept_but_no_secrets(checkout: Path) -> None:
    (checkout / FILE).write_text("two\ncanary-of-a-token\nhttps://me:password@host/x\n")
    state = code_state(checkout, {"SOME_TOKEN": "canary-of-a-token"})
    assert state.dirty
    assert "+two\n+***\n+https://***@host/x\n" in state.diff


def test_a_file_that_git_does_not_follow_yet_is_a_change(checkout: Path) -> None:
    before = code_state(checkout, {})
    (checkout / "conf").mkdir()
    (checkout / "conf/my recipe.yaml").write_text("lr: 1\n")
    (checkout / "notes.txt").write_text("not of the program\n")
    state = code_state(checkout, {})
    assert state.files != before.files
    assert "b/conf/my recipe.yaml" in state.diff and "+lr: 1\n" in state.diff
    assert "notes" not in state.diff


def test_changes_outside_of_the_program_are_none(checkout: Path) -> None:
    (checkout / "README.md").write_text("one\n")
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "second")
    (checkout / "README.md").write_text("two\n")
    assert code_state(checkout, {}).dirty is False


@pytest.mark.parametrize("failing", ["diff --no-ext-diff HEAD", "--others", "--no-index"])
def test_code_whose_changes_git_does_not_tell_is_no_commits(
    failing: str,
    checkout: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (checkout / "conf").mkdir()
    (checkout / "conf/new.yaml").write_text("lr: 1\n")
    (checkout / "bin").mkdir()
    program = checkout / "bin/git"
    program.write_text(
        f'#!/bin/sh\ncase "$*" in *"{failing}"*) exit 128;; esac\nexec {shutil.which("git")} "$@"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    state = code_state(checkout, {})
    assert (state.revision, state.dirty, state.diff) == (None, None, "")
    assert capsys.readouterr().out.count("git does not tell") == 1


def test_code_that_git_does_not_follow_is_known_by_its_files_alone(checkout: Path) -> None:
    state = code_state(installed(checkout), {})
    assert state == CodeState(code_state(checkout, {}).files)
    assert state.dirty is None


def test_a_job_knows_its_submitters_code_if_its_files_are_the_same(checkout: Path) -> None:
    (checkout / FILE).write_text("two ü\n")
    told = code_state(checkout, {})
    job = {CODE: packed(told)}
    assert code_state(installed(checkout, "two ü\n"), job) == told


def test_a_job_with_other_files_does_not_claim_its_submitters_revision(checkout: Path) -> None:
    told = code_state(checkout, {})
    state = code_state(installed(checkout, "older\n"), {CODE: packed(told)})
    assert state.revision is None and state.diff == ""
    assert state.files != told.files


def test_this_program_copied_as_into_an_image_knows_where_it_came_from(tmp_path: Path) -> None:
    here = CodeState(code_state().files, "a revision", "+a change\n")
    for room in ROOMS:
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("*.pyc"))
    ask = "from training.tracking.code import *; print(packed(code_state()))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), CODE: packed(here)}

    def asked() -> CodeState:
        told = {"cwd": tmp_path, "env": environment, "check": True}
        done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, **told)
        return unpacked(done.stdout)

    assert asked() == here
    (tmp_path / "conf/cluster/mine.yaml").write_text("a: 1\n")
    assert asked().revision is None


def test_git_counts_more_than_what_a_job_was_told(checkout: Path) -> None:
    state = code_state(checkout, {})
    told = CodeState(state.files, "another", "+more")
    assert code_state(checkout, {CODE: packed(told)}) == state


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"files": 1}', '{"diff": "eA==", "files": ""}'])
def test_what_was_not_packed_is_one_line(text: str) -> None:
    with pytest.raises(RunError, match=CODE):
        unpacked(text)


def test_short_values_and_plain_names_mask_nothing() -> None:
    assert masked("a yes b", {"USE_TOKEN": "yes", "LANG": "a yes b"}) == "a yes b"
