"""Tables by row number: .csv, .tsv and .jsonl in memory, .parquet a row group at a time."""

import csv
import io
import json
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

from conf.errors import UserError
from data.storage import Prefix

# Rows of a .jsonl that are looked at to learn its columns; a later one may lack some or have more.
LOOKED_AT = 1000


class BadRow(Exception):
    """A row that is not one of its table; says why."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows by number.

    Args:
        columns: The names of the columns.
        num_rows: How many rows there are.
        row: The cells of a row by column; raises `BadRow`.
    """

    columns: tuple[str, ...]
    num_rows: int
    row: Callable[[int], dict[str, Any]]


def open_table(prefix: Prefix, name: str) -> Table:
    """Open a table, once a process as long as the file stays the same.

    Raises:
        UserError: There is no such file, it has another format, or it is damaged.
    """
    where = f"source.path={prefix.url.rstrip('/')}/{name}"
    opener = _OPENERS.get(name.rpartition(".")[2].lower())
    if opener is None:
        raise UserError(where, "is no table", f"give a file of {', '.join(_OPENERS)}")
    try:
        return _opened(opener, prefix, name, prefix.version(name), where)
    except FileNotFoundError:
        raise UserError(where, "is not there", "give the URL of a table") from None


@lru_cache(maxsize=1)
def _opened(
    opener: Callable[[Prefix, str, str], Table], prefix: Prefix, name: str, version: str, where: str
) -> Table:
    return opener(prefix, name, where)


def _csv(prefix: Prefix, name: str, where: str) -> Table:
    delimiter = "\t" if name.lower().endswith(".tsv") else ","
    try:
        text = prefix.read(name).decode("utf-8-sig")
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        header, *rows = [line for line in lines if line] or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(where, f"is damaged ({error})", "give a table in UTF-8") from error
    if len(set(header)) != len(header):
        raise UserError(where, "has two columns of one name", "rename one of them")

    def row(number: int) -> dict[str, Any]:
        if len(rows[number]) != len(header):
            raise BadRow(f"has {len(rows[number])} cells, the table has {len(header)} columns")
        return dict(zip(header, rows[number], strict=True))

    return Table(tuple(header), len(rows), row)


def _jsonl(prefix: Prefix, name: str, where: str) -> Table:
    lines = [line for line in prefix.read(name).split(b"\n") if line.strip()]

    def row(number: int) -> dict[str, Any]:
        return json_object(lines[number])

    columns: dict[str, None] = {}
    for number in range(min(len(lines), LOOKED_AT)):
        try:
            columns.update(dict.fromkeys(row(number)))
        except BadRow:
            continue
    return Table(tuple(columns), len(lines), row)


def json_object(content: bytes) -> dict[str, Any]:
    """A JSON object; numbers that JSON does not have (NaN, infinity, 1e999) become null.

    Raises:
        BadRow: It is none.
    """
    try:
        text = content.decode("utf-8")
        value = json.loads(text, parse_constant=lambda _: None, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise BadRow(f"is no JSON ({error})") from error
    if not isinstance(value, dict):
        raise BadRow("is no JSON object")
    return value


def _finite(digits: str) -> float | None:
    number = float(digits)
    return number if abs(number) < float("inf") else None


def _parquet(prefix: Prefix, name: str, where: str) -> Table:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(
            where, "needs the package pyarrow", "pip install 'latent-foundry[table]'"
        ) from None
    try:
        file = ParquetFile(prefix.open(name))
    except (ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(where, f"is damaged ({reason})", "give a whole .parquet") from error
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

    return Table(tuple(file.schema_arrow.names), file.metadata.num_rows, row)


_OPENERS = {"csv": _csv, "tsv": _csv, "jsonl": _jsonl, "parquet": _parquet}
