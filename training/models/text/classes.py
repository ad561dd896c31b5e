"""A list of classes in the place of a text model: a caption is a class's number or its name.

Owns what a caption may be; the empty one is no class, and has the number after the last. Refuses
captions that are no class, by name.
"""

import difflib
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from torch import Tensor, nn

from conf.encoders import CLASSES, MOST_CLASSES
from conf.errors import UserError
from training.models.classes import WIDTH, digits_of
from training.models.text.records import TextModel


class ClassTokenizer:
    """Captions to the numbers of their classes; see `Tokenizer` for its attributes.

    Args:
        count: Classes.
        names: One for each, or none. Numbers are names too, unless a name is a number itself.
        where: The setting with its value, for messages.
    """

    pad_id: int | None = None
    least = 1
    most: int | None = 1

    def __init__(self, count: int, names: Sequence[str], where: str) -> None:
        self._where, self._names = where, names
        numbers = [] if any(name.isdecimal() for name in names) else range(count)
        self._numbers = {str(number): number for number in numbers}
        self._numbers |= {name: number for number, name in enumerate(names)}
        self._numbers[""] = count
        self._remedy = f"give a number from 0 to {count - 1}"
        if names:
            self._remedy = f"give one of its {count} lines, such as {names[0]!r}"

    def tokenize(self, captions: list[str], max_length: int) -> tuple[list[list[int]], list[bool]]:
        """One number a caption, and that none was cut.

        Raises:
            UserError: A caption is no class.
        """
        stripped = [caption.strip() for caption in captions]
        for caption in stripped:
            if caption not in self._numbers:
                close = difflib.get_close_matches(caption, self._names, n=1)
                remedy = f"did you mean {close[0]!r}? " if close else ""
                raise UserError(
                    self._where, f"has no class {caption[:80]!r}", remedy + self._remedy
                )
        return [[self._numbers[caption]] for caption in stripped], [False] * len(captions)


class ClassTower(nn.Module):
    """Numbers of classes to digits, which a denoiser embeds; see `TextModel.tower`."""

    def forward(self, ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Digits (B, L, 2) of ids (B, L)."""
        return digits_of(ids), None


def load_classes(path: str, setting: str) -> TextModel:
    """The list of classes that a path names.

    Args:
        path: `classes://` and a count, or a file with a name a line.
        setting: The setting that holds it, for messages.

    Raises:
        UserError: There is no such file, or it is no list of names.
    """
    where = f"{setting}.path={path}"
    count, names = _listed(path, where)
    return TextModel(
        tower=ClassTower(),
        tokenizer=ClassTokenizer(count, names, where),
        width=WIDTH,
        pooled_width=0,
        most=1,
        fingerprint=sha256("\n".join([f"classes {count}", *names]).encode()).hexdigest(),
        classes=count,
    )


def absolute_classes(path: str) -> str:
    """`path` as it reads from any working directory."""
    said = path.removeprefix(CLASSES)
    return path if said.isdecimal() else f"{CLASSES}{Path(said).resolve()}"


def are_classes_there(path: str) -> bool:
    """Whether the list can be looked at."""
    said = path.removeprefix(CLASSES)
    return said.isdecimal() or Path(said).is_file()


def _listed(path: str, where: str) -> tuple[int, list[str]]:
    """How many classes there are, and their names, if they have any."""
    said = path.removeprefix(CLASSES)
    if said.isdecimal():
        return int(said), []
    try:
        names = [line.strip() for line in Path(said).read_text("utf-8").rstrip().split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        reason = str(error).partition("\n")[0]
        remedy = "give a text file with the name of a class a line, or how many there are"
        raise UserError(where, f"cannot be read ({reason})", remedy) from error
    if "" in names or len({*names}) < len(names):
        line = next(i for i, name in enumerate(names) if not name or name in names[:i])
        wrong = f"has a line that is empty or there twice: {line + 1}, {names[line]!r}"
        raise UserError(where, wrong, "give each class one line: its number is that of the line")
    if len(names) > MOST_CLASSES:
        wrong = f"has {len(names):,} lines"
        raise UserError(where, wrong, f"give {MOST_CLASSES:,} classes at most")
    return len(names), names
