"""A run as a prefix: whose it is, what decides its weights, what settings it was started with."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from conf.compose import config_dict, config_yaml, parse_yaml
from conf.errors import UserError
from conf.schema import AutoencoderCommand, TrainCommand
from data.claim import claim, claimed
from data.corpus import Corpus
from data.storage import Prefix
from training.engine.world import current_world

CONFIG = "config.yaml"
# What a resumed run may change: where and how fast it runs, how long, and what is kept of it.
FREE_SETTINGS = (
    "out",
    "cluster",
    "checkpoint",
    "tracking",
    "micro_batch_size",
    "engine",
    "guards",
    "validation",
)

TrainingConfigs = AutoencoderCommand | TrainCommand


def claim_run(
    out: Prefix,
    config: TrainingConfigs,
    command: str,
    data: Corpus,
    identity: Mapping[str, Any],
    free: tuple[str, ...],
    files: Mapping[str, bytes],
) -> None:
    """Take the prefix for a run, or make sure that it is this run's already.

    Every rank may call it: whoever comes first writes, the others compare.

    Args:
        out: The prefix.
        config: The run's settings.
        command: The command's name.
        data: What is read.
        identity: What decides the result besides settings and data, JSON-ready.
        free: Settings that do not decide it, besides `FREE_SETTINGS`.
        files: Kept with the run, by name.

    Raises:
        UserError: It holds something else.
    """
    free = (*FREE_SETTINGS, *free)
    settings = {k: v for k, v in config_dict(config).items() if k not in free} | {**identity}
    settings["precision"] = config.engine.precision.value
    settings["data"] = {
        "fingerprints": [dataset.manifest.fingerprint for dataset in data.datasets],
        "weights": config.data.weights,
        "seed": config.data.seed,
        "block_shards": config.data.block_shards,
    }
    if config.optimizer.decay.value == "constant":
        del settings["train"]["samples"]  # a longer run of the same is the same run
    claim(out, {"command": command, **settings})
    if current_world().main:  # on every start: places and lengths may have changed
        url, *also = [dataset.prefix.absolute for dataset in data.datasets]
        told = replace(config, data=replace(config.data, url=url, also=also))
        content = config_yaml(told).encode()
        for name, kept in {CONFIG: content, **files}.items():
            if not out.exists(name) or out.read(name) != kept:
                out.write(name, kept)


def read_run(out: Prefix, command: str) -> dict[str, Any]:
    """What a run is: the settings that decide its weights.

    Raises:
        UserError: There is no run of that command.
    """
    run = claimed(out)
    if run is None or run.get("command") != command:
        found = f"is of `ldm {run['command']}`" if run and "command" in run else "holds no run"
        raise UserError(
            f"{out.setting}={out.url}", found, f"give the `out` of an `ldm {command}` run"
        )
    return run


def run_config(out: Prefix) -> dict[str, Any]:
    """The resolved configuration that a run was started with."""
    try:
        config: dict[str, Any] = parse_yaml(out.read(CONFIG).decode())
    except FileNotFoundError:
        where = f"{out.setting}={out.url}"
        raise UserError(where, f"has no {CONFIG}", "run its command again") from None
    return config
