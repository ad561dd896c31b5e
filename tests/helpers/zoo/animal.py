"""What an animal of the zoo is, and what its neighbours are."""

import io
import pickle
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.helpers.tars import PNG

SECRET = "the words that nobody may read"
GOOD = ("good1", "good2")  # its neighbours: keys, and what their captions end with


@dataclass(frozen=True)
class Animal:
    """A bad input, and how a command has to end that meets it.

    Args:
        name: Unique in the zoo.
        build: Writes it into an empty folder; beside the folder lies `secret`.
        kind: Of the bad sample that it is, among good ones that come out; None if it is none.
        says: Pattern of the words that name it.
        reads: Samples that come out besides the neighbours.
        code: Exit code, if it is refused whole.
        in_place: The kind, or the exit code, where tars are only indexed and that differs.
        read: For datasets, the exit code of reading and the pattern of its words.
        path: What is given as the source's path, within the folder.
    """

    name: str
    build: Callable[[Path], None]
    kind: str | None = None
    says: str = ""
    reads: int = 0
    code: int = 0
    in_place: str | int | None = None
    read: tuple[int, str] = (0, "")
    path: str = ""


class Trap:
    """Whoever unpickles it starts a program, which leaves a file."""

    def __reduce__(self):
        return subprocess.run, (["touch", "canary"],)


PICKLE = pickle.dumps(Trap())
CODE = b"open('canary', 'w').close()\n"


def pickled_array() -> bytes:
    """An .npy file of objects."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([Trap()], dtype=object))
    return buffer.getvalue()


def secret_of(folder: Path) -> Path:
    """A folder beside the input with a text and an image that no command may read."""
    return folder.parent.parent / "secret"


def good_files(folder: Path) -> None:
    """The neighbours as files."""
    for number, key in enumerate(GOOD):
        (folder / f"{key}.png").write_bytes(PNG[number])
        (folder / f"{key}.txt").write_text(f"caption {key}\n")


def sparse(path: Path, size: int, head: bytes = b"") -> None:
    """A file that claims `size` bytes and takes none on the disk."""
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)
