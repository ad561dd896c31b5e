"""Files of a repository on the Hugging Face hub, fetched into its own cache on this machine.

Owns what hf://ORG/NAME means and which words say that something could not be had. Refuses to
choose files: the caller names patterns, and nothing else is downloaded. The hub's own variables
work as ever: HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE.
"""

import glob
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from conf.errors import UserError

SCHEME = "hf://"
NAME = r"\w[\w.-]*"  # of a user or organisation, and of a repository


def fetch(
    path: str, subfolder: str | None, revision: str | None, patterns: Sequence[str], setting: str
) -> Path:
    """Downloads what is not here yet, and says where it lies.

    Where the hub cannot be reached, what an earlier call has fetched of that revision is enough.

    Args:
        path: hf://ORG/NAME, a model repository.
        subfolder: Folder in there; None is its root. What lies in folders below is left there.
        revision: Commit, tag or branch; None is the newest commit.
        patterns: Names of files in that folder, with the wildcards of `fnmatch`.
        setting: The setting that names the repository, for messages.

    Returns:
        The folder on this machine, with at least one file in it. Read only: the cache is shared.

    Raises:
        UserError: No such repository, revision or folder, no access, or the hub is out of reach.
    """
    repository = path.removeprefix(SCHEME)
    if not re.fullmatch(f"{NAME}/{NAME}", repository):
        raise UserError(setting, "names no repository", f"write {SCHEME}ORG/NAME")
    if subfolder is not None and not _is_inside(subfolder):
        raise UserError(setting, f"{subfolder!r} is no folder in there", "name one, such as vae")
    inside = "" if subfolder is None else f"{glob.escape(subfolder.strip('/'))}/"
    from huggingface_hub import snapshot_download  # half a second, which most runs need not spend

    try:
        snapshot = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=[inside + pattern for pattern in patterns],
            ignore_patterns=f"{inside}*/*",  # a wildcard would match in folders below too
        )
    except Exception as error:  # a dozen kinds, those of its HTTP library among them
        wrong, remedy = _explain(error, revision)
        raise UserError(setting, wrong, remedy) from error
    folder = Path(snapshot, subfolder or "")
    if not (folder.is_dir() and any(item.is_file() for item in folder.iterdir())):
        place = "at its root" if subfolder is None else f"in {subfolder}"
        raise UserError(
            setting,
            f"has no file {' or '.join(patterns)} {place}, or it was never fetched and the hub is "
            "out of reach",
            "name the folder as its page shows it",
        )
    return folder


def commit_of(path: str, revision: str | None) -> str | None:
    """The commit of a repository that was fetched, so that it can be had again.

    Args:
        path: hf://ORG/NAME, or a path on this machine, which has no commits.
        revision: As it was asked for.

    Returns:
        The commit; `revision` where this machine does not know it.
    """
    if not path.startswith(SCHEME) or re.fullmatch("[0-9a-f]{40}", revision or ""):
        return revision
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=path.removeprefix(SCHEME), repo_type="model")
    named = Path(constants.HF_HUB_CACHE, folder, "refs", revision or "main")
    return named.read_text().strip() if named.is_file() else revision


def _is_inside(subfolder: str) -> bool:
    parts = PurePosixPath(subfolder)
    return bool(parts.parts) and not parts.is_absolute() and ".." not in parts.parts


def _explain(error: Exception, revision: str | None) -> tuple[str, str]:
    """What was wrong and what would be right."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        IncompleteSnapshotError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, HfHubHTTPError):
        error = error.__cause__  # the hub was reached, and it said no
    match error:
        case RevisionNotFoundError():
            return f"has no revision {revision}", "give a commit, tag or branch that its page shows"
        case GatedRepoError():
            return "is open only to those who accepted its terms", (
                "accept them on its page, and log in with `hf auth login` or set HF_TOKEN"
            )
        case RepositoryNotFoundError():
            return "is not on the hub, or is private", (
                "check its name, and for a private one log in with `hf auth login` or set HF_TOKEN"
            )
        case IncompleteSnapshotError():
            return "is only half here, and the hub cannot be reached", (
                "fetch the rest where it can be, or give the path of a local copy"
            )
        case LocalEntryNotFoundError():
            return "was never fetched, and the hub cannot be reached", (
                "fetch it once where it can be (unset HF_HUB_OFFLINE), or give the path of a local "
                "copy"
            )
        case HfHubHTTPError():
            status = error.response.status_code
            return f"was refused by the hub with status {status}", "try again later"
        case _:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            return f"could not be fetched: {reason}", "try again, or give the path of a local copy"
