"""A real Slurm on this machine: one controller, and two nodes of one core each.

Owns the daemons, their ports and their files. Nobody else's Slurm is touched: every client is
pointed at this one by SLURM_CONF.
"""

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.helpers.processes import free_ports, kill_process, log_tail, start_process

_DAEMONS = ("munged", "slurmctld", "slurmd")
WHY_NOT = (
    ""
    if sys.platform == "linux"
    and os.geteuid() == 0
    and all(Path("/usr/sbin", name).exists() for name in _DAEMONS)
    else "needs the rights of root, and Slurm: tests/integration/slurm/install"
)
NODES = ("n1", "n2")
_JOBS = 30  # more than the tests submit
_START_LIMIT = 60.0  # seconds; 3 are usual
_REMEMBERED = 7200  # seconds after a job's end, which is longer than all tests on a busy machine
# A job that is queued again waits until its first credential has expired. Slurm takes no less.
_CREDENTIAL_SECONDS = 5
# Jobs that end stay in COMPLETING for as long as there is a file of this name.
HOLD = "hold"
_EPILOG = """\
#!/bin/sh
while [ -e {folder}/{hold} ]; do sleep 0.1; done
"""
_CONFIG = """\
ClusterName=lab
FirstJobId={first_job}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire={credential}
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
MpiDefault=none
JobRequeue=1
MinJobAge={remembered}
Epilog={folder}/epilog
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{second}] CPUs=1
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@contextmanager
def running_slurm(folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which Slurm's programs use this one.

    Args:
        folder: Empty.

    Raises:
        AssertionError: The nodes are not idle in time; with the daemons' last lines.
    """
    first, controller = _neighbours(), free_ports(1)[0]
    config = folder / "slurm.conf"
    told = {"host": socket.gethostname(), "folder": folder, "controller": controller}
    ports = {"first": first, "second": first + 1, "first_job": _first_job()}
    times = {"credential": _CREDENTIAL_SECONDS, "remembered": _REMEMBERED}
    config.write_text(_CONFIG.format(**told, **ports, **times))
    (folder / "state").mkdir()
    epilog = folder / "epilog"
    epilog.write_text(_EPILOG.format(folder=folder, hold=HOLD))
    epilog.chmod(0o755)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    environment = {"SLURM_CONF": str(config)}
    files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "seed-file": "seed"}
    munge = [f"--{option}={folder}/munge.{end}" for option, end in files.items()]
    commands = {
        "munged": ["/usr/sbin/munged", "--foreground", "--force", *munge],
        "slurmctld": ["/usr/sbin/slurmctld", "-D", "-f", str(config)],
        **{node: ["/usr/sbin/slurmd", "-D", "-N", node, "-f", str(config)] for node in NODES},
    }
    with ExitStack() as undo:
        for name, command in commands.items():
            process = start_process(command, folder / f"{name}.log", environment)
            undo.callback(kill_process, process)
            if name == "munged":
                _wait_for_socket(folder / "munge.socket", folder / "munged.log")
        _wait_until_idle(environment, [folder / f"{name}.log" for name in commands])
        yield environment


def slurm_state(job: str, environment: dict[str, str]) -> str:
    """A job's state, as RUNNING."""
    done = subprocess.run(
        ["scontrol", "--oneliner", "show", "job", job],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.partition("JobState=")[2].split()[0]


def _neighbours() -> int:
    """A free port whose next one is free too."""
    while True:
        (port,) = free_ports(1)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


def _first_job() -> int:
    """The number of a job at whose port, and those of the next ones, nobody listens.

    Ranks of a job meet at a port that follows from its number, and others test here too.
    """
    while True:
        first = secrets.randbelow(9_000) + 1
        with ExitStack() as probes:
            try:
                for job in range(first, first + _JOBS):
                    probe = probes.enter_context(socket.socket())
                    probe.bind(("127.0.0.1", 20_000 + job))
            except OSError:
                continue
        return first


def _wait_for_socket(path: Path, log: Path) -> None:
    limit = time.monotonic() + _START_LIMIT
    while not path.exists():
        assert time.monotonic() < limit, log_tail(log)
        time.sleep(0.02)


def _wait_until_idle(environment: dict[str, str], logs: list[Path]) -> None:
    limit = time.monotonic() + _START_LIMIT
    command = ["sinfo", "--noheader", "--Node", "--format=%T"]
    while True:
        done = subprocess.run(
            command, env={**os.environ, **environment}, capture_output=True, text=True
        )
        if done.stdout.split() == ["idle"] * len(NODES):
            return
        assert time.monotonic() < limit, done.stdout + "\n".join(log_tail(log) for log in logs)
        time.sleep(0.1)
