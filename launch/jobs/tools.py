"""The schedulers' own programs: run by lists of arguments, never through a shell."""

import os
import re
import subprocess

from conf.errors import UserError
from data.say import one_line

SECONDS = 120
HINT = "mend that, or look at the job with cluster.render=true"
# kubectl's log, which tells each of its own tries before it says what is wrong.
LOG_LINE = re.compile(r"[EWI]\d{4} \d\d:\d\d")


class ToolRefused(UserError):
    """A scheduler's program that is there, and ends with a code that says no."""


def run_tool(
    setting: str,
    *command: str,
    given: str | None = None,
    seconds: float = SECONDS,
    fine: tuple[int, ...] = (0,),
) -> str:
    """Run a scheduler's program.

    Args:
        setting: What the user chose it by, for errors.
        command: The program and its arguments.
        given: Its standard input.
        seconds: That it may take.
        fine: Exit codes with which it has done what it should.

    Returns:
        What it printed.

    Raises:
        ToolRefused: It refuses.
        UserError: It is not there, or does not answer.
    """
    program = command[0]
    try:
        done = subprocess.run(
            command,
            input=given,
            stdin=subprocess.DEVNULL if given is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
        )
    except FileNotFoundError:
        raise UserError(
            setting,
            f"there is no {program} on this machine",
            "run this where the scheduler's programs are; cluster.render=true shows a job anywhere",
        ) from None
    except subprocess.TimeoutExpired:
        raise UserError(
            setting, f"{program} gives no answer for {seconds:.0f} s", "look at the scheduler"
        ) from None
    if done.returncode not in fine:
        lines = [one_line(line).strip() for line in done.stderr.splitlines()]
        said = [line for line in lines if line and not LOG_LINE.match(line)]
        why = said[0].removeprefix(f"{program}: ") if said else f"exit code {done.returncode}"
        raise ToolRefused(setting, f"{program} refuses: {why}", HINT)
    return done.stdout


def run_kubectl(setting: str, *arguments: str, given: str | None = None) -> str:
    """Run kubectl; that it knows no cluster is said as such.

    Raises:
        ToolRefused: It refuses.
        UserError: It has no context, is not there, or does not answer.
    """
    try:
        return run_tool(setting, "kubectl", *arguments, given=given)
    except ToolRefused:
        if "KUBERNETES_SERVICE_HOST" in os.environ or _has_context(setting):
            raise
    raise UserError(
        setting,
        "kubectl has no context, so it knows no cluster",
        "choose one of `kubectl config get-contexts` with `kubectl config use-context NAME`",
    )


def _has_context(setting: str) -> bool:
    try:
        run_tool(setting, "kubectl", "config", "current-context")
    except ToolRefused:
        return False
    return True
