"""Source `table`: rows of image paths, URLs or bytes, with one caption column or several.

Keys are row numbers, so names and order stay when captions or images are mended. The identity of
the dataset knows the table by its size and time of change, and images elsewhere not at all: the
dataset's fingerprint is what pins those that were read.
"""

import errno
import hashlib
import math
import posixpath
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from conf.errors import RunError, UserError
from conf.groups import TableSource
from data.retry import Patience
from data.sample import Pair
from data.sources.base import (
    BAD_CAPTION,
    BAD_IMAGE,
    NO_CAPTION,
    NO_IMAGE,
    BadSample,
    Part,
    Source,
    image_of,
    is_writable,
    meta_of,
    read_capped,
)
from data.sources.tabular import BadRow, Rows, Table, open_rows, open_table
from data.storage import Prefix, open_prefix

BAD_ROW = "bad row"
KEY_DIGITS = 9
# Links die one by one: none is waited for as a store of our own is.
OF_A_LINK = Patience(limit=2.0)
# What the system says of a name that can be no file's.
NO_FILE = (errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO)


def table_source(config: TableSource) -> Source:
    """The rows of a table.

    Raises:
        UserError: The table cannot be read, or lacks a column that the settings name.
    """
    folder, name = _split(config.path)
    prefix = open_prefix(folder, "source.path")
    table = open_table(prefix, name)
    _require_columns(config, table)
    settings = {
        "path": config.path,
        "count": table.num_rows,
        "content": table.version,
        "image_column": config.image_column,
        "captions": dict(zip(config.caption_columns, _weights(config), strict=True)),
    }
    return Source(table.num_rows, settings, table.part)


def table_part(config: TableSource, rows: Rows) -> Part:
    """The pairs of some rows."""
    folder, name = _split(config.path)
    prefix = open_prefix(folder, "source.path")
    row_of, weights = open_rows(prefix, name, rows), _weights(config)
    used = {config.image_column, *config.caption_columns}

    def pair(key: str) -> Pair:
        where, setting = f"row {int(key)}", f"source.path={config.path}"
        try:
            row = row_of(int(key))
        except BadRow as error:
            raise BadSample(setting, where, BAD_ROW, str(error)) from error
        captions = [row.get(column) for column in config.caption_columns]
        caption = choose_caption(captions, weights, key)
        if caption is None:
            raise BadSample(setting, where, NO_CAPTION)
        found = {column: cell for column, cell in row.items() if column not in used}
        found = {column: cell for column, cell in found.items() if _is_plain(cell)}
        if not is_writable([caption, found]):
            raise BadSample(setting, where, BAD_CAPTION, "has half of a surrogate pair")
        content, where = _image_bytes(row.get(config.image_column), prefix, setting, where)
        image = image_of(content, setting, where)
        return Pair(key, image, caption, meta_of(found, key, image))

    return Part(tuple(f"{i:0{KEY_DIGITS}d}" for i in range(rows.first, rows.last)), pair)


def _weights(config: TableSource) -> list[float]:
    return config.caption_weights or [1.0] * len(config.caption_columns)


def choose_caption(captions: Sequence[Any], weights: Sequence[float], key: str) -> str | None:
    """Draw a row's caption from those that it has: a function of the arguments alone.

    Args:
        captions: A cell of each caption column; what is no text, or blank, is none.
        weights: How often each column is drawn.
        key: The row's key.

    Returns:
        The caption, stripped, or None if there is none of a weight above 0.
    """
    there = [
        (cell.strip(), weight)
        for cell, weight in zip(captions, weights, strict=True)
        if isinstance(cell, str) and cell.strip() and weight > 0
    ]
    digest = hashlib.sha256(f"caption {key}".encode()).digest()
    left = int.from_bytes(digest[:6], "big") / 2**48 * sum(weight for _, weight in there)
    for caption, weight in there:
        if left < weight:
            return caption
        left -= weight
    return there[-1][0] if there else None  # the sum was rounded


def _require_columns(config: TableSource, table: Table) -> None:
    wanted = {
        "source.image_column": [config.image_column],
        "source.caption_columns": config.caption_columns,
    }
    for setting, names in wanted.items():
        for name in names:
            if table.num_rows and name not in table.columns:
                raise UserError(
                    f"{setting}={name}",
                    "is no column of the table",
                    f"choose from {', '.join(table.columns)}",
                )


def _image_bytes(cell: Any, prefix: Prefix, setting: str, where: str) -> tuple[bytes, str]:
    """The file of a row's image, and the row with the image's name, for messages.

    A cell may also be what Hugging Face's datasets write, `{"bytes": ..., "path": ...}`.
    """
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes) and cell:
        return cell, where
    if not isinstance(cell, str) or not cell.strip():
        raise BadSample(setting, where, NO_IMAGE)
    cell = cell.strip()
    if "://" in cell or cell.startswith("/"):
        return _image_elsewhere(cell, prefix, setting, where), where
    where = f"{where} ({cell})"
    try:
        return read_capped(prefix, posixpath.normpath(cell)), where
    except FileNotFoundError as error:
        raise BadSample(setting, where, NO_IMAGE, "there is no such file") from error
    except ValueError as error:
        raise BadSample(setting, where, BAD_IMAGE, "is no path in the table's folder") from error
    except UserError as error:
        if getattr(error.__cause__, "errno", None) in NO_FILE:
            raise BadSample(setting, where, NO_IMAGE, "is no file") from error
        raise  # the storage is at fault, not the row


def _image_elsewhere(url: str, prefix: Prefix, setting: str, where: str) -> bytes:
    """An image by URL. The URL stays out of messages, since it may hold a signature.

    Whoever wrote a table that lies elsewhere must not choose files of this machine.
    """
    local = url.startswith(("/", "file:"))
    if local and not prefix.local:
        raise BadSample(setting, where, BAD_IMAGE, "a table from elsewhere names a local file")
    folder, name = _split(url)
    try:
        elsewhere = replace(open_prefix(folder, "source.path"), patience=OF_A_LINK)
        return read_capped(elsewhere, name)
    except FileNotFoundError as error:
        raise BadSample(setting, where, NO_IMAGE, "there is no file at its URL") from error
    except (UserError, RunError, ValueError) as error:
        raise BadSample(setting, where, NO_IMAGE, "its URL cannot be read") from error


def _split(url: str) -> tuple[str, str]:
    """Folder and name of a file's URL."""
    folder, slash, name = url.rpartition("/")
    return (folder or slash or "."), name


def _is_plain(cell: Any) -> bool:
    """Whether a cell is carried into the sample's json; what is large or nested is not."""
    if isinstance(cell, float):
        return math.isfinite(cell)
    return isinstance(cell, (str, int))
