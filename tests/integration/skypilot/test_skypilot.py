"""Our tasks and command lines, as SkyPilot itself reads them. No cloud is asked for anything."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from conf.clusters import SkyPilotCluster
from launch.jobs.skypilot import skypilot_task
from launch.jobs.skypilot_jobs import is_over, launching, listing, showing, stopping

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
PLACE = CACHE / "latent-foundry/skypilot-0.14.1"
WHY_NOT = "" if (PLACE / "whole").exists() else "needs tests/integration/skypilot/install"
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)

IMAGE = f"registry/ldm@sha256:{'0' * 64}"
FULL = SkyPilotCluster(
    image=IMAGE,
    infra="aws/us-east-1",
    accelerator="H100",
    nodes=4,
    processes=8,
    cpus=96,
    memory="900G",
    spot=True,
    interface="eth0",
    env=["NCCL_DEBUG=WARN", "ODD=$HOME `ls` 'a' \"b\" $(id)"],
)
PLAIN = SkyPilotCluster(image="image", gpus=0)
ARGUMENTS = [
    "sample",
    "prompts=['a cat''s $HOME', \"`id`\", '$(reboot)', '&& ls; # <b> | {c} [d]* ~ !1 \\ %s é 猫']",
    "checkpoint=s3://b/${LDM_JOB}",
    "",
    "--",
    "out=s3://b/it's here",
]
CODE = '{"revision": null, "files": "12", "diff": ""}'
# SkyPilot looks names of GPUs up in a list that it fetches: as much of it as is asked for here.
GPUS = 'AcceleratorName,Clouds\nH100,"[aws, gcp]"\n'
COMMANDS = [
    launching("ldm-train", ["WANDB_API_KEY"], "task.yaml"),
    listing(),
    showing(7, 50),
    stopping([7, 8]),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a user of SkyPilot."""
    folder = tmp_path_factory.mktemp("home")
    catalog = folder / ".sky/catalogs/v8/common"
    catalog.mkdir(parents=True)
    (catalog / "accelerators.csv").write_text(GPUS)
    (folder / "sky_workdir").mkdir()
    return folder


@pytest.fixture(scope="module")
def told(home: Path) -> dict[str, Any]:
    """What SkyPilot says, asked once for all tests: it takes seconds to import."""
    files = []
    for name, cluster in {"full": FULL, "plain": PLAIN}.items():
        files.append(home / f"{name}.yaml")
        files[-1].write_text(skypilot_task("ldm-train", ARGUMENTS, CODE, cluster))
    wrong = yaml.safe_load(skypilot_task("ldm-train", [], "", PLAIN))
    wrong["resources"]["job_recovery"]["recover_on_exit_codes"] = [300]
    (home / "wrong.yaml").write_text(yaml.safe_dump(wrong))
    assert {command[0] for command in COMMANDS} == {"sky"}
    asked: dict[str, Any] = {
        "tasks": [*map(str, files)],
        "commands": [list(one[1:]) for one in COMMANDS],
    }
    asked["wrong"] = str(home / "wrong.yaml")
    environment = {"HOME": str(home), "PATH": os.environ["PATH"], "WANDB_API_KEY": "of-a-test"}
    done = subprocess.run(
        [PLACE / "bin/python", Path(__file__).with_name("ask.py")],
        input=json.dumps(asked),
        env={**environment, "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"},
        cwd=home,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_its_loader_reads_every_field_as_it_is_meant(told: dict[str, Any]) -> None:
    full, plain = told["tasks"]
    assert (full["name"], full["num_nodes"]) == ("ldm-train", 4)
    wanted = {"infra": "aws/us-east-1", "accelerators": {"H100": 8}, "cpus": "96+"}
    wanted |= {"memory": "900.0+", "use_spot": True}
    assert {name: full["resources"][name] for name in wanted} == wanted
    assert [*full["resources"]["image_id"].values()] == [f"docker:{IMAGE}"]
    recovery = full["resources"]["job_recovery"]
    assert (recovery["max_restarts_on_errors"], recovery["recover_on_exit_codes"]) == (3, [75])
    assert full["envs"]["LDM_JOB"] == "skypilot"
    assert (full["envs"]["LDM_CODE"], full["envs"]["LDM_IMAGE"]) == (CODE, IMAGE)
    assert "accelerators" not in plain["resources"]
    assert not plain["resources"].get("use_spot")


def test_its_loader_refuses_what_is_no_task(told: dict[str, Any]) -> None:
    assert "300" in told["wrong"]


def test_what_it_gives_a_machine_hands_over_every_argument(
    told: dict[str, Any], home: Path
) -> None:
    (home / "bin").mkdir()
    fake = home / "bin/ldm"
    fake.write_text('#!/bin/bash\nprintf \'%s\\0\' "$ODD" "$@"\n')
    fake.chmod(0o755)
    script = home / "script"
    script.write_text(told["scripts"][0])
    environment = {"HOME": str(home), "PATH": f"{home / 'bin'}:/usr/bin:/bin"}
    done = subprocess.run(["bash", script], env=environment, capture_output=True, check=True)
    odd, *arguments = done.stdout.decode().split("\0")[:-1]
    assert arguments == ARGUMENTS
    assert odd == FULL.env[1].partition("=")[2]


def test_its_command_line_takes_ours(told: dict[str, Any]) -> None:
    launch, queue, logs, cancel = told["commands"]
    assert launch["entrypoint"] == ["task.yaml"] and launch["name"] == "ldm-train"
    assert launch["yes"] and launch["detach_run"]
    assert launch["secret"] == [["WANDB_API_KEY", "of-a-test"]]  # from the environment
    assert queue["all"] and queue["output_format"] == "json"
    assert (logs["job_id"], logs["tail"]) == (7, 50) and "follow" not in logs
    assert cancel["yes"] and cancel["job_ids"] == [7, 8]


def test_what_it_tells_of_a_job_is_what_we_read(told: dict[str, Any]) -> None:
    assert {"job_id", "job_name", "status", "recovery_count"} <= set(told["record"])
    assert {name: is_over(name) for name in told["statuses"]} == told["statuses"]
