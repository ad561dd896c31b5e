"""The image's recipe passes its linter and keeps the promises that a linter does not know."""

import re
import subprocess
import tomllib
from pathlib import Path

from tests.helpers.processes import installed_script

_ROOT = Path(__file__).parents[1]


def test_hadolint_finds_nothing():
    command = [installed_script("hadolint"), "--failure-threshold=style", "Dockerfile"]
    result = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_base_image_is_pinned():
    stages = set()
    for arguments in _instructions("FROM"):
        image, *name = re.split(r"\s+AS\s+", arguments, flags=re.IGNORECASE)
        _, _, tag = image.rpartition("/")[2].partition(":")
        assert image in stages or tag not in ("", "latest"), f"{image} is not pinned"
        stages.update(name)


def test_the_last_stage_does_not_run_as_root():
    last_stage = _dockerfile().rpartition("\nFROM ")[2]
    users = re.findall(r"^USER\s+(\S+)", last_stage, flags=re.MULTILINE)
    assert users, "the last stage sets no user"
    assert users[-1].split(":")[0] not in ("root", "0")


def test_the_entry_point_is_the_command():
    assert _instructions("ENTRYPOINT") == ['["ldm"]']


def test_what_is_copied_exists_and_is_not_ignored():
    ignored_but = {
        line.removeprefix("!")
        for line in (_ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {
        source
        for arguments in _instructions("COPY")
        if not arguments.startswith("--from")
        for source in arguments.split()[:-1]
    }
    assert copied == ignored_but
    assert not [source for source in copied if not (_ROOT / source).exists()]


def test_it_has_every_extra_but_those_of_developers():
    extras = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    wanted = set(extras["optional-dependencies"]) - {"dev"}
    (installed,) = re.findall(r"'/source\[([\w,]+)\]'", _dockerfile())
    assert set(installed.split(",")) == wanted


def test_torch_is_pinned_to_the_version_that_the_base_image_is_chosen_for():
    pyproject = (_ROOT / "pyproject.toml").read_text()
    version = re.search(r'"torch==([\d.]+)"', pyproject).group(1)
    assert f"torch {version} " in _dockerfile()


def _instructions(name):
    """The arguments of every instruction of that name."""
    joined = _dockerfile().replace("\\\n", " ")
    return [match.strip() for match in re.findall(rf"^{name}\s+(.+)$", joined, re.MULTILINE)]


def _dockerfile():
    return (_ROOT / "Dockerfile").read_text()
