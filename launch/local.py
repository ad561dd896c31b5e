"""A command on the ranks of this machine, alone or in a job, through torch's elastic launcher."""

import os
import sys
from typing import Any

from conf.errors import Preempted, RunError, UserError
from conf.groups import ClusterConfig
from data.last_words import RANK_ERRORS, RankError, rank_errors
from data.process import die_with, usable_cores
from data.ranks import MACHINE, MACHINES
from launch.jobs.node import Node

# `-P`: the working folder may hold a data.py, which Python would take for our package.
LDM = ("-P", "-m", "launch.cli")
PARENT = "LDM_PARENT_PID"
# Those that a rank answers with a checkpoint; any other ends launcher and ranks at once.
PASSED_ON = "SIGTERM,SIGINT,SIGUSR1"
SECONDS_TO_SAVE = 900
# Machines of a job come up one after the other, and fetch images first.
SECONDS_TO_MEET = 1800


def is_rank() -> bool:
    """Whether a launcher has started this process as one of its ranks."""
    return "RANK" in os.environ


def run_ranks(
    arguments: list[str], cluster: ClusterConfig, node: Node | None = None, meet: bool = True
) -> int:
    """Run `ldm` with the same arguments on `cluster.processes` ranks.

    Args:
        arguments: Of `ldm`.
        cluster: Where it runs.
        node: This machine among those of a job; None is alone.
        meet: Whether ranks of all machines talk. Otherwise each machine's work by themselves, and
            one that comes late, or again, waits for nobody.

    Returns:
        The exit code of the first rank that failed, or 0.

    Raises:
        UserError: The port is taken.
        RunError: The job's machines do not meet.
    """
    import tempfile

    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    if node is None:
        _check_port(cluster.port)
    elif not meet:
        os.environ |= {MACHINE: str(node.rank), MACHINES: str(node.count)}
    _quiet_launcher()
    os.environ[PARENT] = str(os.getpid())
    threads = max(1, usable_cores() // cluster.processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    meeting = _meeting(cluster.port if node is None else 0, node if meet else None)
    config = _launch_config(cluster.processes, meeting)
    with tempfile.TemporaryDirectory() as errors:
        os.environ[RANK_ERRORS] = errors
        try:
            elastic_launch(config, sys.executable)(*LDM, *arguments)
        except ChildFailedError as error:
            if said := causes(rank_errors()):
                return said[0].code
            first = min(error.failures.values(), key=lambda failure: failure.timestamp)
            return first.exitcode if first.exitcode > 0 else 128 - first.exitcode
        except DistError as error:
            if node is None:
                raise
            raise _not_met(node, error) from None
        except SignalException:  # passed on to the ranks, which saved and went, or could not
            said = causes(rank_errors())
            return said[0].code if said else Preempted.exit_code
        finally:
            for line in dict.fromkeys(error.line for error in causes(rank_errors())):
                print(f"ldm: {line}", file=sys.stderr, flush=True)
            del os.environ[RANK_ERRORS]
    return 0


def _launch_config(processes: int, meeting: dict[str, Any]) -> Any:
    from torch.distributed.launcher.api import LaunchConfig

    return LaunchConfig(
        nproc_per_node=processes,
        **meeting,
        run_id="ldm",
        max_restarts=0,
        monitor_interval=0.1,
        signals_to_handle=PASSED_ON,
        shutdown_timeout=SECONDS_TO_SAVE,
    )


def _meeting(port: int, node: Node | None) -> dict[str, Any]:
    """Where ranks meet: at a port of this machine, or at one of the job's first machine."""
    if node is None:
        endpoint = f"127.0.0.1:{port}"
        alone = {"min_nodes": 1, "max_nodes": 1, "local_addr": "127.0.0.1"}
        return {**alone, "rdzv_backend": "c10d", "rdzv_endpoint": endpoint}
    return {
        "min_nodes": node.count,
        "max_nodes": node.count,
        "rdzv_backend": "static",
        "rdzv_endpoint": f"{node.address}:{node.port}",
        "rdzv_configs": {"rank": node.rank, "timeout": SECONDS_TO_MEET},
    }


def _not_met(node: Node, error: Exception) -> RunError:
    """What to say where the machines of a job do not meet."""
    why = str(error).partition("\n")[0].strip()
    return RunError(
        f"this machine, number {node.rank} of {node.count}, does not meet the others at "
        f"{node.address}:{node.port} ({why}); look at the first one's log, and at "
        "cluster.port, cluster.interface and (slurm) cluster.address"
    )


def _quiet_launcher() -> None:
    """A rank's failure is reported by the rank; the launcher's own report would only repeat it."""
    import logging

    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def causes(errors: list[RankError]) -> list[RankError]:
    """Those that say why a job ended: not ranks that were stopped because another had failed."""
    failed = [error for error in errors if error.code != Preempted.exit_code]
    return failed or errors


def die_with_parent() -> None:
    """Leave no rank or stage behind to write beside the next run when what started it dies."""
    if PARENT in os.environ:
        die_with(int(os.environ[PARENT]))
    elif "TORCHELASTIC_RUN_ID" in os.environ:  # a rank of torchrun, which does not see to it
        die_with(os.getppid())


def _check_port(port: int) -> None:
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(
                f"cluster.port={port}",
                f"cannot be used ({error.strerror})",
                "choose another port, or 0 for a free one",
            ) from None
