"""Sources of image-caption pairs: one module a choice of `source=`, and the door to them all."""

from collections.abc import Mapping
from typing import Any

from conf.errors import UserError
from conf.groups import FolderSource, OpenMojiSource, SourceConfig, TableSource, WebDatasetSource
from conf.schema import CHOICES
from data.sources.base import BadSample, Source
from data.sources.folder import folder_source
from data.sources.openmoji import openmoji_source
from data.sources.table import table_source
from data.sources.webdataset import webdataset_source

__all__ = ["BadSample", "Source", "build_source"]


def build_source(
    config: SourceConfig, size: int, places: Mapping[str, Any] | None = None
) -> Source:
    """The source of a configuration; its images come as squares of `size` pixels.

    Args:
        config: Which source, and where it lies.
        size: Side of the images in pixels.
        places: Of some keys, what an earlier build found in `Source.places`: the source of those
            keys alone. None is all keys.

    Raises:
        UserError: There is no such source, or it has no pairs.
    """
    remedy = "give images with a .txt file of the same name each"
    match config:
        case OpenMojiSource():
            return openmoji_source(config, size)
        case FolderSource():
            source = folder_source(config, size)
        case TableSource():
            source, remedy = table_source(config, size), "give a table with rows"
        case WebDatasetSource():
            source = webdataset_source(config, size, places)
            remedy = "give a prefix with .tar files of samples"
        case _:
            known = ", ".join(CHOICES["source"])
            raise UserError(f"source={config.kind}", "is not known", f"choose one of {known}")
    if not source.keys:
        raise UserError(f"source.path={config.path}", "has no pairs", remedy)
    return source
