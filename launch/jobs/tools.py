"""The schedulers' own programs: run by lists of arguments, never through a shell."""

import subprocess

from conf.errors import UserError
from data.say import one_line

SECONDS = 120


def run_tool(setting: str, *command: str, given: str | None = None) -> str:
    """Run a scheduler's program.

    Args:
        setting: What the user chose it by, for errors.
        command: The program and its arguments.
        given: Its standard input.

    Returns:
        What it printed.

    Raises:
        UserError: It is not there, refuses, or does not answer.
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
            timeout=SECONDS,
        )
    except FileNotFoundError:
        raise UserError(
            setting,
            f"there is no {program} on this machine",
            "run this where the scheduler's programs are; cluster.render=true shows a job anywhere",
        ) from None
    except subprocess.TimeoutExpired:
        raise UserError(
            setting, f"{program} gives no answer for {SECONDS} s", "look at the scheduler"
        ) from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        why = one_line(said[0]).strip() if said else f"exit code {done.returncode}"
        raise UserError(setting, f"{program} refuses: {why.removeprefix(f'{program}: ')}", HINT)
    return done.stdout


HINT = "mend that, or look at the job with cluster.render=true"
