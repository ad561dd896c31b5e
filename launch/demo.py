"""`ldm demo`: the whole chain on emoji, each stage its own command."""

import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from conf.compose import compose_config
from conf.enums import DemoRecipe
from conf.errors import Preempted, UserError
from conf.schema import DemoCommand
from data.say import say
from data.storage import open_prefix
from launch.local import LDM, PARENT

# Most emoji are people in several skin tones, and ten minutes teach those first; faces and flags
# come next, and things that there is one of, such as a heart, last.
PROMPTS = (
    "man light skin tone red hair",
    "woman medium-dark skin tone curly hair",
    "person medium-light skin tone",
    "couple with heart woman man",
    "woman health worker medium skin tone",
    "grinning face with big eyes",
    "flag France",
    "red heart",
)
# More of it saturates the colours of a model that was trained for minutes.
GUIDANCE_SCALE = 2.5
# What a check of the machinery can do with. Emoji held out at a tenth are still not among those
# trained on: an emoji's place between 0 and 1 is fixed, and the share is where the line is drawn.
LESS = {
    DemoRecipe.emoji_tiny: {
        "shard": ("source.held_out_share=0.9", "shard_samples=128"),
        "sample": ("sampler.steps=10",),
        "evaluate": ("samples=64", "draws=2"),
    }
}
BYTES_NEEDED = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Stage:
    """One command of the demo."""

    what: str
    arguments: tuple[str, ...]


def stages(config: DemoCommand) -> list[Stage]:
    """The commands of a demo, in order; every one can be typed by hand."""
    out = config.out.rstrip("/")
    recipe = config.recipe.value
    prompts = "[" + ",".join(f"'{prompt}'" for prompt in PROMPTS) + "]"
    shard = ("shard", "source=openmoji")
    less = LESS.get(config.recipe, {})
    images, held_out, autoencoder = f"{out}/images", f"{out}/held_out", f"{out}/autoencoder"
    latents, run = f"{out}/latents", f"{out}/run"

    def stage(what: str, command: str, *settings: str) -> Stage:
        return Stage(what, (command, *settings, *less.get(command, ())))

    return [
        stage("emoji to train on", *shard, "source.split=train", f"out={images}"),
        Stage("emoji held out", (*shard, "source.split=held_out", f"out={held_out}")),
        stage(
            "autoencoder",
            "autoencoder",
            f"experiment={recipe}_autoencoder",
            f"data.url={images}",
            f"out={autoencoder}",
        ),
        stage(
            "latents and text embeddings",
            "cache",
            f"data.url={images}",
            f"autoencoder.url={autoencoder}",
            f"out={latents}",
        ),
        stage(
            "denoiser",
            "train",
            f"experiment={recipe}",
            f"data.url={latents}",
            f"cluster.processes={config.processes}",
            f"out={run}",
        ),
        stage(
            "samples",
            "sample",
            f"checkpoint={run}",
            f"prompts={prompts}",
            f"sampler.guidance_scale={GUIDANCE_SCALE}",
            f"out={run}/samples/demo",
        ),
        stage(
            "evidence on held-out emoji",
            "evaluate",
            f"checkpoint={run}",
            f"data.url={held_out}",
            f"out={run}/evaluation",
        ),
        stage("report", "report", f"run={run}"),
    ]


def run_demo(config: DemoCommand) -> int:
    """Run every stage; one that was finished before says so and is passed over.

    Returns:
        0, or the exit code of the stage that failed.

    Raises:
        UserError: `out` cannot be written.
    """
    if any(character in config.out for character in "'\",[]{}= \n"):
        raise UserError(
            f"out={config.out}", "has characters that settings give a meaning", "use plain ones"
        )
    plan = stages(config)
    for stage in plan:  # what cannot work is said before the first stage begins
        compose_config(stage.arguments[0], list(stage.arguments[1:]))
    open_prefix(config.out, "out").require_writable(BYTES_NEEDED)
    started = time.perf_counter()
    environment = {**os.environ, PARENT: str(os.getpid()), "HF_HUB_OFFLINE": "1"}
    for number, stage in enumerate(plan, 1):
        say(f"\n[{number}/{len(plan)}] {stage.what}\n$ {shlex.join(('ldm', *stage.arguments))}")
        command = [sys.executable, *LDM, *stage.arguments]
        code = _run(command, environment)
        if code:
            say(
                f"demo: stopped in {stage.what} (exit code {code}); "
                "the same command goes on from there"
            )
            return code
    page = f"{config.out}/run/report.html"
    say(f"\ndemo: finished in {time.perf_counter() - started:,.0f} s; look at {page}")
    if Path(page).is_file():
        say(f"and at {Path(page).with_name('report.png').resolve()}")
    return 0


def _run(command: list[str], environment: dict[str, str]) -> int:
    """Run a stage, and wait until it has saved when it is told to stop.

    Returns:
        Its exit code, as a shell would give it.
    """
    process = subprocess.Popen(command, env=environment)
    while True:
        try:
            code = process.wait()
            return code if code >= 0 else 128 - code
        except KeyboardInterrupt:  # has reached the stage from the terminal as well
            continue
        except Preempted:  # has reached this process alone
            process.terminate()
