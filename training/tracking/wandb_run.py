"""A run in Weights & Biases: never asks anything, and is never waited for without a limit."""

import contextlib
import math
import os
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conf.enums import TrackingKind
from conf.errors import UserError
from conf.groups import TrackingConfig
from conf.secrets import is_secret_name
from data.say import say
from data.storage import Prefix
from training.tracking.sink import Histogram, Saved

WANDB_ID = "wandb_id"
WANDB_SERVICE = "WANDB_SERVICE"  # where a process that W&B runs in leaves its service's address
SAMPLES = "samples_seen"


def run_id(out: Prefix, known: str | None = None) -> str:
    """An id that lies with the run, so that it is the run's own wherever the run is moved.

    Args:
        out: The run.
        known: What its checkpoint says, which counts.
    """
    with contextlib.suppress(FileExistsError):
        out.create(WANDB_ID, (known or secrets.token_hex(6)).encode())
    return known or out.read(WANDB_ID).decode()


def wandb_key(config: TrackingConfig) -> str | None:
    """The key of `tracking.key_file`, or None: W&B then finds its own.

    Raises:
        UserError: The file cannot be read, or W&B is to be used online and there is no key.
    """
    if config.kind is not TrackingKind.online:
        return None  # nothing is sent, so nothing needs one
    if config.key_file is not None:
        try:
            key = Path(config.key_file).expanduser().read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise UserError(
                f"tracking.key_file={config.key_file}",
                f"cannot be read ({reason})",
                "give a text file that holds the key and nothing else",
            ) from None
        if not key or not key.isprintable() or " " in key:
            raise UserError(
                f"tracking.key_file={config.key_file}",
                "holds no key",
                "give a text file that holds the key and nothing else",
            )
        return key
    _quietly()
    import wandb

    try:
        found, wrong = wandb.login(prompt=False, verify=False), "needs a W&B key, and none is set"
    except (wandb.errors.Error, ValueError) as error:
        found, wrong = False, str(error).splitlines()[0]
    if not found:
        raise UserError(
            "tracking.kind=online",
            wrong,
            "set WANDB_API_KEY or tracking.key_file, or choose tracking.kind=offline",
        )
    return None


def _quietly() -> None:
    """Prepare this process's environment for W&B; before anything else is done with it."""
    os.environ.setdefault("WANDB_SILENT", "true")
    # W&B keeps all of Slurm's variables with a run, SLURM_JWT with them, which grants access.
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        if is_secret_name(name):
            del os.environ[name]
    # A service inherited from a parent outlives a killed run and refuses to take it up again.
    os.environ.pop(WANDB_SERVICE, None)


def wandb_folder(out: Prefix) -> Path:
    """Where W&B keeps its files: in the run, or of a remote one in the temporary folder."""
    return out.local or Path(tempfile.gettempdir()) / "latent-foundry"


def start_wandb(
    out: Prefix,
    config: TrackingConfig,
    settings: dict[str, Any],
    folder: Path | None = None,
    known: str | None = None,
    key: str | None = None,
) -> Any:
    """A W&B run that a resumed run goes on in.

    A server that does not answer within `tracking.wandb_seconds`, or refuses, is told in a line,
    and the run is kept offline.

    Args:
        out: The run, or a part of it that has a W&B run of its own.
        config: Whether and how W&B is used.
        settings: The resolved configuration.
        folder: Where W&B keeps its files; by default that of `wandb_folder`.
        known: The id that the run's checkpoint says.
        key: Of W&B; None takes what W&B finds.

    Returns:
        wandb's run, or None if tracking is off.
    """
    if config.kind is TrackingKind.off:
        return None
    _quietly()
    import wandb

    folder = folder or wandb_folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    begin = partial(_begin, out, config, settings, folder, run_id(out, known), key)
    try:
        run = begin(config.kind)
    except wandb.errors.Error as error:
        if config.kind is TrackingKind.offline:
            raise
        reason = str(error).splitlines()[0]
        wandb.teardown()  # its service holds the id for the run that it could not begin
        run = begin(TrackingKind.offline)
        say(f"W&B does not take the run ({reason}); {_sent_by(run)}")
    run.define_metric(SAMPLES)
    run.define_metric("*", step_metric=SAMPLES)
    return run


def _begin(
    out: Prefix,
    config: TrackingConfig,
    settings: dict[str, Any],
    folder: Path,
    identity: str,
    key: str | None,
    kind: TrackingKind,
) -> Any:
    import wandb

    # Neither the address of a git remote nor code or its changes: they may hold secrets.
    told = wandb.Settings(
        console="off",
        silent=True,
        disable_git=True,
        disable_code=True,
        save_code=False,
        init_timeout=config.wandb_seconds,
        finish_timeout=config.wandb_seconds,
        api_key=key,
    )
    return wandb.init(
        project=config.project,
        name=out.url.rstrip("/").rsplit("/", 1)[-1],
        id=identity,
        group=config.group,
        tags=config.tags,
        resume="allow",
        mode=kind.value,
        dir=str(folder),
        config=settings,
        settings=told,
    )


def _sent_by(run: Any) -> str:
    return f"it is kept in {Path(run.dir).parent}; `wandb sync` sends it"


class WandbSink:
    """A sink of a W&B run, whose steps are the run's samples: W&B takes no step twice.

    Args:
        run: As `start_wandb` gives it.
        there: The last step that is in older files of the run on this machine; None if there are
            none.
        lines: Of the run, which grow: what W&B has not got of the first ones is sent at once.
        samples_seen: Where the run goes on.
    """

    def __init__(
        self, run: Any, there: int | None, lines: Sequence[Mapping[str, float]], samples_seen: int
    ) -> None:
        self._run, self._lines, self._next = run, lines, 0
        if run.resumed:
            self._last = run.step - 1
        elif run.offline:  # what is in no file of this machine is on another one
            self._last = samples_seen if there is None else there
        else:  # its server has nothing of it, whatever is in files that were never sent
            self._last = -1
        self._send(samples_seen)

    def log(self, seen: int, values: Mapping[str, float]) -> None:
        """Metrics of the same names: the run's lines, with those that no queue had room for."""
        self._send(seen)

    def _send(self, seen: float) -> None:
        while self._next < len(self._lines) and self._lines[self._next][SAMPLES] <= seen:
            line = self._lines[self._next]
            self._log(int(line[SAMPLES]), {k: v for k, v in line.items() if k != SAMPLES})
            self._next += 1

    def show(self, seen: int, name: str, picture: NDArray[np.uint8]) -> None:
        """An image."""
        self._send(seen)  # W&B takes no step before the last one
        self._log(seen, {name: wandb_image(picture, f"after {seen:,} samples")})

    def spread(self, seen: int, histograms: Mapping[str, Histogram]) -> None:
        """Histograms."""
        import wandb

        self._send(seen)
        pairs = {name: (list(one.counts), list(one.edges)) for name, one in histograms.items()}
        self._log(seen, {k: wandb.Histogram(np_histogram=pair) for k, pair in pairs.items()})

    def _log(self, seen: int, values: dict[str, Any]) -> None:
        if seen > self._last:
            self._run.log({SAMPLES: seen, **values}, step=seen)

    def alert(self, title: str, text: str) -> None:
        """An alert, by whatever way the user has chosen at W&B."""
        self._run.alert(title=title, text=text)

    def saved(self, checkpoint: Saved) -> None:
        """An artifact that points at the checkpoint; its files stay where they are."""
        commit = checkpoint.commit
        told = {name: commit[name] for name in (SAMPLES, "updates", "val_loss", "files")}
        url = _as_url(checkpoint.url)
        files = {name: (f"{url}/{name}", one["sha256"]) for name, one in commit["files"].items()}
        artifact = _pointer(f"checkpoint-{self._run.id}", "checkpoint", told, files)
        self._run.log_artifact(artifact, aliases=["latest", f"samples-{commit[SAMPLES]}"])

    def reads(self, dataset: Mapping[str, Any]) -> None:
        """A dataset that the run is made from, as lineage has it: an artifact that points there.

        W&B knows inputs of online runs only; the settings of the run hold the lineage either way.
        """
        if self._run.offline:
            return
        name = f"{dataset['kind']}-{dataset['fingerprint'][:12]}"
        manifest = f"{_as_url(dataset['url'])}/manifest.json"
        files = {"manifest.json": (manifest, dataset["fingerprint"])}
        self._run.use_artifact(_pointer(name, "dataset", dict(dataset), files))

    def close(self) -> None:
        """End the W&B run, and W&B's service: only then are its files whole."""
        import wandb

        self._send(math.inf)
        self._run.finish()
        wandb.teardown()


def _pointer(
    name: str, kind: str, told: dict[str, Any], files: Mapping[str, tuple[str, str]]
) -> Any:
    """An artifact of files that stay where they are: their URLs and hashes, by name.

    `Artifact.add_reference` asks for boto3 and other clients, and for a look at the files.
    """
    import wandb
    from wandb.sdk.artifacts.artifact_manifest_entry import ArtifactManifestEntry

    artifact = wandb.Artifact(name, type=kind, metadata=told)
    for path, (url, digest) in files.items():
        artifact.manifest.add_entry(ArtifactManifestEntry(path=path, digest=digest, ref=url))
    return artifact


def _as_url(place: str) -> str:
    return place if "://" in place else Path(place).absolute().as_uri()


def wandb_image(image: NDArray[np.uint8], caption: str) -> Any:
    """An image (H, W, 3) as W&B logs it."""
    import wandb

    return wandb.Image(image, caption=caption)
