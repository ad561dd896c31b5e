"""`ldm COMMAND [group=choice] [key=value] ...`: composes, dispatches, says what is wrong.

What only some commands need is imported where they need it: `ldm --help` shall not take a second.
"""

import gc
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from types import FrameType
from typing import Any

from conf.clusters import RemoteCluster, cluster_nodes
from conf.errors import Preempted, RunError, UserError
from conf.schema import COMMANDS
from data.last_words import leave_last_words, rank_errors
from launch.jobs.node import in_job, this_node
from launch.local import die_with_parent, is_rank, run_ranks

# Loaded when they are needed: most of them import torch, which takes seconds.
HANDLERS = {
    "demo": "launch.demo:run_demo",
    "shard": "data.ingest:make_dataset",
    "verify": "launch.verify:verify",
    "autoencoder": "training.autoencode:train_autoencoder",
    "cache": "training.cache:make_cache",
    "train": "training.diffuse:train_denoiser",
    "train -m": "launch.sweep.command:sweep_trainings",
    "sample": "training.generate:generate",
    "evaluate": "training.evaluate:evaluate",
    "evaluate -m": "launch.sweep.command:sweep_evaluations",
    "report": "launch.report:report",
    "status": "launch.jobs.commands:status",
    "logs": "launch.jobs.commands:logs",
    "stop": "launch.jobs.commands:stop",
    "plan train": "launch.plan:plan_training",
    "plan cache": "launch.plan:plan_caching",
}
ALONE = ("cache", "shard")  # whose ranks share the work and never talk
PLAN = "plan"
SWEEP, SWEEPING = " -m", {"-m", "--multirun"}
INTERRUPTED_EXIT_CODE = 130


def main() -> None:
    """The entry point of `ldm`."""
    gc.disable()  # until a command begins: it looks for garbage in all that imports leave
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _stop)
    sys.exit(run(sys.argv[1:]))


def _stop(number: int, frame: FrameType | None) -> None:
    """A scheduler's signal outside of training, which saves before it stops."""
    raise Preempted("told to stop; the same command goes on from there")


def run(arguments: list[str]) -> int:
    """Run a command line.

    Returns:
        Exit code: 0 done, 1 failed, 2 a mistake in the command line, 3 a training that diverged,
        75 stopped by a scheduler with everything saved, 130 interrupted.
    """
    die_with_parent()
    try:
        return _dispatch(arguments)
    except (UserError, RunError, Preempted) as ended:
        return _complain(str(ended), ended.exit_code)
    except KeyboardInterrupt:
        return _complain("interrupted; the same command goes on from there", INTERRUPTED_EXIT_CODE)
    except Exception:
        if rank_errors():  # a peer has said why it left, and this rank only lost it
            return RunError.exit_code
        raise


def _dispatch(arguments: list[str]) -> int:
    asks = ([PLAN, "-h"], [PLAN, "--help"])
    if not arguments or arguments in asks or arguments[0] in ("-h", "--help", "help"):
        _overview()
        return 0
    if arguments[0] in ("-V", "--version"):
        from importlib import metadata

        print(metadata.version("latent-foundry"))
        return 0
    command, *overrides = arguments
    if command == PLAN:
        command, overrides = _planned(overrides)
    if command + SWEEP in COMMANDS and SWEEPING & set(overrides):
        command, overrides = command + SWEEP, [o for o in overrides if o not in SWEEPING]
    if command not in COMMANDS:
        raise UserError(command, "there is no such command", f"choose one of {', '.join(COMMANDS)}")
    if {"-h", "--help"} & set(overrides):
        _explain(command, [o for o in overrides if o not in ("-h", "--help")])
        return 0
    for flag in (override for override in overrides if override.startswith("-")):
        raise UserError(flag, "there is no such flag", f"`ldm {command} --help` lists the settings")
    if command.endswith(SWEEP):  # whose overrides make many configurations
        from launch.jobs.submit import submit, swept_on, worker_overrides

        if swept := swept_on(command, overrides):
            each = ["-m", *worker_overrides(overrides)]
            return submit(command.removesuffix(SWEEP), each, swept)
        gc.enable()
        return _run_here(_handler(command), overrides)
    from conf.compose import compose_config

    config = compose_config(command, overrides)
    gc.enable()
    cluster = getattr(config, "cluster", None)
    if cluster is None or command.startswith(f"{PLAN} ") or is_rank():
        return _run_here(_handler(command), config)
    if isinstance(cluster, RemoteCluster) and not in_job(cluster):
        from launch.jobs.submit import submit

        return submit(command, overrides, cluster, config.out)
    if cluster_nodes(cluster) > 1:
        return run_ranks(arguments, cluster, this_node(cluster), command not in ALONE)
    if cluster.processes > 1:
        return run_ranks(arguments, cluster)
    return _run_here(_handler(command), config)


def _planned(arguments: list[str]) -> tuple[str, list[str]]:
    """The command `plan COMMAND` and its overrides, which are those of COMMAND."""
    known = [name.partition(" ")[2] for name in COMMANDS if name.startswith(f"{PLAN} ")]
    if not arguments or arguments[0] not in known:
        ways = " or ".join(f"`ldm {PLAN} {name} ...`" for name in known)
        raise UserError(" ".join([PLAN, *arguments[:1]]), "names no command to plan", f"say {ways}")
    return f"{PLAN} {arguments[0]}", arguments[1:]


def _run_here(handler: Callable[[Any], Any], told: Any) -> int:
    result = handler(told)
    return result if isinstance(result, int) else 0


def _handler(command: str) -> Callable[[Any], Any]:
    module, _, name = HANDLERS[command].partition(":")
    handler: Callable[[Any], Any] = getattr(import_module(module), name)
    return handler


def _complain(line: str, code: int) -> int:
    leave_last_words(line, code)
    return code


def _overview() -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2))
    for name, schema in COMMANDS.items():
        table.add_row(f"ldm {name}", (schema.__doc__ or "").strip())
    console = Console()
    console.print("Trains latent diffusion models, from a laptop to a cluster.\n")
    console.print("Usage: ldm COMMAND [group=choice] [key=value] ...\n", markup=False)
    console.print(table)
    console.print("\nFirst look:  ldm demo            Settings of a command:  ldm COMMAND --help")


def _explain(command: str, overrides: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from conf.compose import group_choices, settings_help

    console = Console()
    console.print((COMMANDS[command].__doc__ or "").strip())
    console.print(f"\nUsage: ldm {command} [group=choice] [key=value] ...\n", markup=False)
    table = Table("setting", "value", "meaning", box=None, padding=(0, 2), header_style="bold")
    groups = {}
    for name, value, doc in settings_help(command, overrides):
        group = name.split(".")[0]
        if choices := group_choices(group):
            groups[group] = choices
        table.add_row(name, value, doc)
    console.print(table, markup=False)
    if command in ("autoencoder", "train", "plan train", "train -m"):
        groups["experiment"] = group_choices("experiment")
    for group, choices in groups.items():
        console.print(f"{group}= one of {', '.join(choices)}", markup=False)


if __name__ == "__main__":
    main()
