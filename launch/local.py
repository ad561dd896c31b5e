"""`cluster=local`: a command on several ranks of this machine, through torch's elastic launcher."""

import ctypes
import logging
import os
import signal
import socket
import sys

from conf.errors import UserError
from conf.schema import ClusterConfig

PARENT = "LDM_PARENT_PID"
PREEMPTED_EXIT_CODE = 75
# Those that a rank answers with a checkpoint; any other ends launcher and ranks at once.
PASSED_ON = "SIGTERM,SIGINT,SIGUSR1"
SECONDS_TO_SAVE = 900
LINUX_PR_SET_PDEATHSIG = 1


def is_rank() -> bool:
    """Whether a launcher has started this process as one of its ranks."""
    return "RANK" in os.environ


def run_ranks(arguments: list[str], cluster: ClusterConfig) -> int:
    """Run `ldm` with the same arguments on `cluster.processes` ranks.

    Returns:
        The exit code of the first rank that failed, or 0.

    Raises:
        UserError: The port is taken.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    _check_port(cluster.port)
    # A rank's failure is reported by the rank; the launcher's own report would only repeat it.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ[PARENT] = str(os.getpid())
    threads = max(1, (os.cpu_count() or 1) // cluster.processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=cluster.processes,
        rdzv_backend="c10d",
        rdzv_endpoint=f"127.0.0.1:{cluster.port}",
        run_id="ldm",
        max_restarts=0,
        monitor_interval=0.1,
        local_addr="127.0.0.1",
        signals_to_handle=PASSED_ON,
        shutdown_timeout=SECONDS_TO_SAVE,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "launch.cli", *arguments)
    except ChildFailedError as error:
        first = min(error.failures.values(), key=lambda failure: failure.timestamp)
        return first.exitcode if first.exitcode > 0 else 128 - first.exitcode
    except SignalException:  # the launcher passed it on, and the ranks have saved and gone
        return PREEMPTED_EXIT_CODE
    return 0


def die_with_parent() -> None:
    """Have the kernel kill this process when the `ldm` that started it dies, so that no rank is
    left behind to write beside the next run. Linux only; elsewhere nothing happens.
    """
    if PARENT not in os.environ or not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(LINUX_PR_SET_PDEATHSIG, signal.SIGKILL):
        raise OSError(ctypes.get_errno(), "prctl failed")
    if os.getppid() != int(os.environ[PARENT]):  # it died before the kernel was told
        os.kill(os.getpid(), signal.SIGKILL)


def _check_port(port: int) -> None:
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
