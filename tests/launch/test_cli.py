import subprocess
import sys
from importlib import metadata

import pytest

from conf.compose import settings_help
from conf.schema import COMMANDS
from launch.cli import HANDLERS, _handler, run

# What takes from a tenth of a second to some seconds to import.
SLOW = (
    *("torch", "numpy", "fsspec", "s3fs", "obstore", "PIL", "matplotlib", "wandb", "optuna"),
    *("transformers", "accelerate", "deepspeed", "huggingface_hub", "concurrent.futures.process"),
)
JOB = ("data.url=a", "out=b", "train.samples=1000", "cluster=slurm", "cluster.render=true")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_every_setting_with_its_meaning(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "240")
    assert run([command, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for name, _, meaning in settings_help(command, []):
        assert name in shown
        assert " ".join(meaning.split()) in shown


def test_help_shows_the_settings_of_another_choice(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["shard", "source=folder", "--help"]) == 0
    assert "source.path" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_the_overview_names_every_command(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 0
    shown = capsys.readouterr().out
    assert all(f"ldm {command}" in shown for command in COMMANDS)


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.strip() == metadata.version("latent-foundry")


@pytest.mark.parametrize("arguments", [["trian"], ["train", "--samples=3"], ["cache", "-m"]])
def test_what_is_not_known_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert arguments[-1] in shown.err


@pytest.mark.parametrize("command", HANDLERS)
def test_every_command_has_its_handler(command: str) -> None:
    assert set(HANDLERS) == set(COMMANDS)
    assert callable(_handler(command))


@pytest.mark.parametrize(
    ("arguments", "unneeded"),
    [
        (["--help"], (*SLOW, "hydra", "omegaconf", "yaml")),
        (["train", "--help"], SLOW),
        (["train", *JOB], SLOW),
        (["status", "job=nothing"], SLOW),
        (["train", "optimizer.lrr=1"], (*SLOW, "rich")),
    ],
)
def test_what_only_talks_imports_nothing_slow(
    arguments: list[str], unneeded: tuple[str, ...]
) -> None:
    code = (
        "import sys; from launch.cli import run; run(sys.argv[1:]); "
        "print(*sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = done.stderr.splitlines()[-1].split()
    assert "launch.cli" in loaded
    assert not set(loaded) & set(unneeded)


def test_a_sweep_of_evaluations_is_submitted_as_one_of_trainings_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = ("checkpoint=/r", "data.url=/b", "out=/o", "images_per_caption=2", "sweep=guidance")
    job = ("cluster=slurm", "cluster.workers=2", "cluster.render=true")
    assert run(["evaluate", "-m", *told, *job]) == 0
    assert f"launch.cli evaluate -m {' '.join(told)} &" in capsys.readouterr().out
