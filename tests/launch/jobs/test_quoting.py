"""Whatever stands in a setting reaches `ldm` as it is: through bash, and through YAML."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.clusters import KubernetesCluster, SkyPilotCluster, SlurmCluster
from launch.cli import run
from launch.jobs.kubernetes import kubernetes_manifest
from launch.jobs.skypilot import skypilot_task
from launch.jobs.slurm import slurm_script
from launch.jobs.submit import carried
from training.tracking.code import CodeState, packed

SIGNS = st.sampled_from(list("'\"\\$`!#&|;<>(){}[]*?~=%^ -@:,/"))
TEXTS = st.text(
    st.one_of(SIGNS, st.characters(exclude_categories=("C", "Zl", "Zp", "Zs"))), max_size=40
)
SKYPILOT = SkyPilotCluster(image="image", gpus=0, nodes=2)
SCRIPTS = 20  # with 50 arguments each
CODE = packed(CodeState("12ab", "34cd", "+it's $HOME `ls` ü\n"))
ARGUMENTS = st.lists(TEXTS, min_size=50, max_size=50)


def through_bash(folder: Path, script: str) -> list[str]:
    """What a script gives `srun` or `exec`, once bash has parsed it and run it.

    No other program is in its reach: what escaped its quotes would be a command.
    """
    file = folder / "script"
    file.write_text(script)
    subprocess.run(["bash", "-n", str(file)], check=True)
    fakes = 'srun() { printf \'%s\\0\' "$@"; }; exec() { srun "$@"; }; '
    fakes += "scontrol() { echo n1; }; head() { read -r n; }; "
    fakes += 'source "$1"'
    bash = [shutil.which("bash") or "bash", "-c", fakes, "bash", str(file)]
    told = {"SLURM_JOB_NODELIST": "n1", "SLURM_JOB_ID": "1", "PATH": "/nowhere"}
    done = subprocess.run(bash, cwd=folder, env=told, capture_output=True, check=True)
    assert done.stderr == b""
    return done.stdout.decode().split("\0")[:-1]


def expanded(text: str) -> str:
    """What Kubernetes makes of an argument: `$$` is a dollar, `$(NAME)` a variable's value."""
    return re.sub(r"\$\$|\$\(\w+\)", lambda found: "$" if found[0] == "$$" else "VALUE", text)


@settings(max_examples=SCRIPTS, deadline=None)
@given(arguments=ARGUMENTS, value=TEXTS)
def test_a_slurm_script_hands_over_every_argument(
    tmp_path_factory: pytest.TempPathFactory, arguments: list[str], value: str
) -> None:
    script = slurm_script("name", arguments, CODE, SlurmCluster(env=[f"LIST={value}"]))
    got = through_bash(tmp_path_factory.mktemp("script"), script)
    assert got[-len(arguments) :] == arguments
    assert got[-len(arguments) - 3 : -len(arguments)] == ["-P", "-m", "launch.cli"]


@settings(max_examples=SCRIPTS, deadline=None)
@given(arguments=ARGUMENTS, value=TEXTS)
def test_a_task_of_skypilot_hands_over_every_argument(
    tmp_path_factory: pytest.TempPathFactory, arguments: list[str], value: str
) -> None:
    text = skypilot_task("name", arguments, CODE, replace(SKYPILOT, env=[f"LIST={value}"]))
    task = yaml.safe_load(text)
    got = through_bash(tmp_path_factory.mktemp("task"), task["run"])
    assert got == ["ldm", *arguments]
    assert (task["envs"]["LIST"], task["envs"]["LDM_CODE"]) == (value, CODE)


@settings(max_examples=SCRIPTS, deadline=None)
@given(arguments=ARGUMENTS, value=TEXTS)
def test_a_manifest_hands_over_every_argument(arguments: list[str], value: str) -> None:
    cluster = KubernetesCluster(image="image", env=[f"LIST={value}"])
    job, *_ = yaml.safe_load_all(kubernetes_manifest("name", arguments, CODE, cluster))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert [expanded(one) for one in container["args"]] == arguments
    told = {pair["name"]: pair["value"] for pair in container["env"]}
    assert expanded(told["LIST"]) == value


@pytest.mark.parametrize("text", ["$(LDM_JOB)", "$$(LDM_JOB)", "a $$ b", "$", "$$$(LDM_JOB)$"])
def test_no_variable_is_put_into_a_manifest(text: str) -> None:
    cluster = KubernetesCluster(image="image", env=[f"LIST={text}"])
    job, *_ = yaml.safe_load_all(kubernetes_manifest("name", [text], CODE, cluster))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert expanded(container["args"][0]) == text
    assert text in [expanded(pair["value"]) for pair in container["env"]]


@pytest.mark.parametrize("sign", ["\n", "\r", "\t", "\0", "\x1b", "\u2028", "\udc80"])
def test_a_sign_without_a_shape_is_not_carried(sign: str) -> None:
    assert not carried(f"prompts=['a{sign}cat']")


def test_a_line_break_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sample", "cluster=slurm", "cluster.render=true", "checkpoint=s3://b/run", "out=a"]
    assert run([*words, "prompts=['a\ncat']"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("ldm: prompts=") and shown.err.count("\n") == 1
    assert "line break" in shown.err
