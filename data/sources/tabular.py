"""Tables by row number. Of .csv, .tsv and .jsonl only the rows' places are kept in memory."""

import csv
import io
import json
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

from conf.errors import RunError, UserError
from data.sample import MAX_TEXT_BYTES
from data.storage import Prefix

# Rows of a .jsonl that are looked at to learn its columns; a later one may lack some or have more.
LOOKED_AT = 1000
PIECE = 2**24  # bytes of a table that are read at once


class BadRow(Exception):
    """A row that is not one of its table; says why."""


class LongRow(Exception):
    """A row that is too long for any, so that its end is not looked for."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What a process needs to read some rows of a table.

    Args:
        columns: The names of the table's columns.
        first: Number of the first row.
        last: Number of the row after the last.
        places: Where each of them ends in the file, behind where the first begins; none where the
            file knows by itself.
        version: Of the file when this was found.
    """

    columns: tuple[str, ...]
    first: int
    last: int
    places: "array[int]"
    version: str


@dataclass(frozen=True, slots=True)
class Table:
    """What is in a table.

    Args:
        columns: The names of the columns.
        num_rows: How many rows there are.
        places: Where the first row begins and where each row ends, in bytes; or none.
        version: What tells the file from others that had its name.
    """

    columns: tuple[str, ...]
    num_rows: int
    places: "array[int]"
    version: str

    def part(self, first: int, last: int) -> Rows:
        """The rows from one number up to another."""
        return Rows(self.columns, first, last, self.places[first : last + 1], self.version)


def open_table(prefix: Prefix, name: str) -> Table:
    """Read a table through, once, for where its rows are.

    Raises:
        UserError: There is no such file, it has another format, or it is damaged.
    """
    where = f"source.path={prefix.url.rstrip('/')}/{name}"
    opener = _OPENERS.get(_format(name))
    if opener is None:
        raise UserError(where, "is no table", f"give a file of {', '.join(_OPENERS)}")
    try:
        return opener(prefix, name, prefix.version(name), where)
    except FileNotFoundError:
        raise UserError(where, "is not there", "give the URL of a table") from None
    except LongRow as error:
        raise UserError(where, f"has {error}", "give a table of texts and paths") from None


def open_rows(prefix: Prefix, name: str, rows: Rows) -> Callable[[int], dict[str, Any]]:
    """A function of a row's number in the table that gives its cells by column or raises `BadRow`.

    Raises:
        RunError: The table is not what it was when its rows were found.
    """
    if prefix.version(name) != rows.version:
        raise RunError(f"{name} has changed since the command began; choose another out")
    if _format(name) == "parquet":
        where = f"source.path={prefix.url.rstrip('/')}/{name}"
        return _parquet_row(prefix, name, rows.version, where)
    start = rows.places[0]
    content = prefix.read_range(name, start, rows.places[-1] - start)
    return _jsonl_row(content, rows) if _format(name) == "jsonl" else _csv_row(content, name, rows)


def _format(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _lines(prefix: Prefix, name: str) -> Iterator[bytes]:
    """The lines of a file with their ends, a piece of the file in memory at a time."""
    rest, start = b"", 0
    while piece := prefix.read_range(name, start, PIECE):
        start += len(piece)
        *lines, rest = io.BytesIO(rest + piece)
        if len(rest) > MAX_TEXT_BYTES:
            raise LongRow(f"a row of more than {MAX_TEXT_BYTES:,} bytes")
        yield from lines
        if rest.endswith(b"\n"):
            yield rest
            rest = b""
    if rest:
        yield rest


def _csv(prefix: Prefix, name: str, version: str, where: str) -> Table:
    position = 0

    def text() -> Iterator[str]:
        nonlocal position
        for line in _lines(prefix, name):
            encoding = "utf-8" if position else "utf-8-sig"
            position += len(line)
            yield line.decode(encoding)

    header, places = None, array("Q")
    try:
        # The reader takes no line more than the record needs, so a record ends where we are then.
        for record in csv.reader(text(), delimiter=_delimiter(name), strict=True):
            if record:  # a blank line gives none
                header = header or record
                places.append(position)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(where, f"is damaged ({error})", "give a table in UTF-8") from error
    columns = tuple(header or ())
    if len(set(columns)) != len(columns):
        raise UserError(where, "has two columns of one name", "rename one of them")
    return Table(columns, max(0, len(places) - 1), places, version)


def _csv_row(content: bytes, name: str, rows: Rows) -> Callable[[int], dict[str, Any]]:
    lines = io.StringIO(content.decode("utf-8"), newline="")
    records = [one for one in csv.reader(lines, delimiter=_delimiter(name), strict=True) if one]

    def row(number: int) -> dict[str, Any]:
        cells = records[number - rows.first]
        if len(cells) != len(rows.columns):
            raise BadRow(f"has {len(cells)} cells, the table has {len(rows.columns)} columns")
        return dict(zip(rows.columns, cells, strict=True))

    return row


def _delimiter(name: str) -> str:
    return "\t" if _format(name) == "tsv" else ","


def _jsonl(prefix: Prefix, name: str, version: str, where: str) -> Table:
    columns: dict[str, None] = {}
    position, places = 0, array("Q", [0])
    for line in _lines(prefix, name):
        position += len(line)
        if not line.strip():
            continue
        places.append(position)
        if len(places) <= LOOKED_AT:
            try:
                columns.update(dict.fromkeys(json_object(line)))
            except BadRow:
                continue
    return Table(tuple(columns), len(places) - 1, places, version)


def _jsonl_row(content: bytes, rows: Rows) -> Callable[[int], dict[str, Any]]:
    lines = [line for line in content.split(b"\n") if line.strip()]
    return lambda number: json_object(lines[number - rows.first])


def json_object(content: bytes) -> dict[str, Any]:
    """A JSON object; numbers that JSON does not have (NaN, infinity, 1e999) become null.

    Raises:
        BadRow: It is none.
    """
    if len(content) > MAX_TEXT_BYTES:
        raise BadRow(f"has more than {MAX_TEXT_BYTES:,} bytes")
    try:
        text = content.decode("utf-8-sig")
        value = json.loads(text, parse_constant=lambda _: None, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise BadRow(f"is no JSON ({error})") from error
    if not isinstance(value, dict):
        raise BadRow("is no JSON object")
    return value


def _finite(digits: str) -> float | None:
    number = float(digits)
    return number if abs(number) < float("inf") else None


def _parquet(prefix: Prefix, name: str, version: str, where: str) -> Table:
    file = _parquet_file(prefix, name, version, where)
    return Table(tuple(file.schema_arrow.names), file.metadata.num_rows, array("Q"), version)


@lru_cache(maxsize=1)  # a process makes many parts of the same file
def _parquet_file(prefix: Prefix, name: str, version: str, where: str) -> Any:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(
            where, "needs the package pyarrow", "pip install 'latent-foundry[table]'"
        ) from None
    try:
        return ParquetFile(prefix.open(name))
    except (ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(where, f"is damaged ({reason})", "give a whole .parquet") from error


@lru_cache(maxsize=1)
def _parquet_row(
    prefix: Prefix, name: str, version: str, where: str
) -> Callable[[int], dict[str, Any]]:
    """Rows by number, a row group in memory at a time."""
    from pyarrow import ArrowException

    file = _parquet_file(prefix, name, version, where)
    groups = range(file.metadata.num_row_groups)
    ends = list(accumulate(file.metadata.row_group(group).num_rows for group in groups))

    @lru_cache(maxsize=1)
    def read(group: int) -> Any:
        try:
            return file.read_row_group(group, use_threads=False)
        except (ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(where, f"is damaged ({reason})", "give a whole .parquet") from error

    def row(number: int) -> dict[str, Any]:
        group = bisect_right(ends, number)
        start = ends[group - 1] if group else 0
        try:
            (cells,) = read(group).slice(number - start, 1).to_pylist()
        except UnicodeDecodeError as error:
            raise BadRow(f"is no UTF-8 ({error})") from error
        return dict(cells)

    return row


_OPENERS = {"csv": _csv, "tsv": _csv, "jsonl": _jsonl, "parquet": _parquet}
