"""What SkyPilot says of task files and command lines. Runs in its environment, not in ours.

Reads JSON from standard input, {"tasks": [files], "wrong": file, "commands": [argument lists]}.
Writes {"tasks": [what it loads], "wrong": what it says of that file, "scripts": [what a machine
gives bash], "commands": [parsed options], "record": what it tells of a job, "statuses": {name:
whether a job is over then}}.
"""

import json
import sys

import click
from sky.client.cli.command import cli
from sky.jobs.state import ManagedJobStatus
from sky.schemas.api.responses import ManagedJobRecord
from sky.skylet.log_lib import make_task_bash_script
from sky.task import Task


def parsed(arguments: list[str]) -> dict:
    """A command line of `sky`, as its own command line reads it."""
    context, command = click.Context(cli), cli
    while isinstance(command, click.Group):
        name, command, arguments = command.resolve_command(context, arguments)
        context = command.make_context(name, arguments, parent=context)
        arguments = context.protected_args + context.args
    return {name: value for name, value in context.params.items() if value not in (None, (), False)}


def refused(file: str) -> str:
    """What its loader says of a file that is no task; nothing if it takes it."""
    try:
        Task.from_yaml(file)
    except ValueError as error:
        return str(error)
    return ""


asked = json.load(sys.stdin)
tasks = [Task.from_yaml(file) for file in asked["tasks"]]
answer = {
    "tasks": [task.to_yaml_config() for task in tasks],
    "wrong": refused(asked["wrong"]),
    "scripts": [make_task_bash_script(task.run, task.envs) for task in tasks],
    "commands": [parsed(arguments) for arguments in asked["commands"]],
    "record": ManagedJobRecord(_job_id=1).model_dump(mode="json"),
    "statuses": {status.value: status.is_terminal() for status in ManagedJobStatus},
}
sys.stdout.write("\n" + json.dumps(answer, default=str) + "\n")
