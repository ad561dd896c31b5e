"""Sources of image-caption pairs: one module a choice of `source=`, and the doors to them.

Two doors, for two kinds of processes: `build_source` looks once at what there is, `open_part` makes
the pairs of a part of it. Tars of others are looked at by `data.sources.webdataset`, which has to
search them.
"""

from typing import Any

from conf.errors import UserError
from conf.groups import FolderSource, OpenMojiSource, SourceConfig, TableSource, WebDatasetSource
from conf.schema import CHOICES
from data.sources.base import BadSample, BadSource, Part, Source
from data.sources.folder import folder_part, folder_source
from data.sources.openmoji import openmoji_part, openmoji_source
from data.sources.table import table_part, table_source
from data.sources.webdataset import webdataset_part

__all__ = ["BadSample", "BadSource", "Part", "Source", "build_source", "open_part", "require_pairs"]

REMEDIES = {
    "folder": "give images with a .txt or .json file of the same name each",
    "table": "give a table with rows",
    "webdataset": "give a prefix with .tar files of samples",
}


def build_source(config: SourceConfig) -> Source:
    """Look at a source.

    Raises:
        UserError: There is no such source, or it has no pairs.
    """
    match config:
        case OpenMojiSource():
            return openmoji_source(config)
        case FolderSource():
            source = folder_source(config)
        case TableSource():
            source = table_source(config)
        case _:
            known = ", ".join(CHOICES["source"])
            raise UserError(f"source={config.kind}", "is not known", f"choose one of {known}")
    require_pairs(config, source.samples)
    return source


def require_pairs(config: SourceConfig, samples: int) -> None:
    """Refuse a source without pairs.

    Raises:
        BadSource: It has none.
    """
    if not samples:
        path = getattr(config, "path", "")
        raise BadSource(f"source.path={path}", "has no pairs", REMEDIES[config.kind])


def open_part(config: SourceConfig, size: int, part: Any) -> Part:
    """The pairs of a part of a source.

    Args:
        config: Which source, and where it lies.
        size: Side in pixels of images that are drawn rather than read.
        part: What `Source.part` gave.
    """
    match config:
        case OpenMojiSource():
            return openmoji_part(size, part)
        case FolderSource():
            return folder_part(config, part)
        case TableSource():
            return table_part(config, part)
        case WebDatasetSource():
            return webdataset_part(config, part)
    raise AssertionError(config)
