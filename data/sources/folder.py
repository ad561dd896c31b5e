"""Source `folder`: images with captions in .txt files of the same name beside them."""

from conf.errors import UserError
from conf.groups import FolderSource
from data.manifest import canonical_json, sha256
from data.sample import IMAGE_EXTENSIONS, Pair
from data.sources.base import Part, Source, image_of, read_capped, safe_key, text_of
from data.storage import open_prefix


def folder_source(config: FolderSource) -> Source:
    """The pairs in a folder and below it; images without captions are left out.

    Raises:
        UserError: The folder cannot be read, or two images share a caption.
    """
    prefix, setting = open_prefix(config.path, "source.path"), f"source.path={config.path}"
    files = prefix.files()
    images: dict[str, tuple[str, str]] = {}
    for file in sorted(files):
        stem, _, extension = file.rpartition(".")
        if extension.lower() in IMAGE_EXTENSIONS and f"{stem}.txt" in files:
            other, _ = images.setdefault(safe_key(stem), (file, f"{stem}.txt"))
            if other != file:
                raise UserError(
                    setting,
                    f"{other} and {file} share one caption file",
                    "rename or remove one of them",
                )

    versions = [(name, files[name]) for names in sorted(images.values()) for name in names]
    content = sha256(canonical_json(versions))
    settings = {"path": config.path, "count": len(images), "content": content}
    pairs = sorted((key, *names) for key, names in images.items())
    return Source(len(pairs), settings, lambda first, last: pairs[first:last])


def folder_part(config: FolderSource, pairs: list[tuple[str, str, str]]) -> Part:
    """The pairs of keys, images and caption files."""
    prefix, setting = open_prefix(config.path, "source.path"), f"source.path={config.path}"
    names = {key: (image, caption) for key, image, caption in pairs}

    def pair(key: str) -> Pair:
        image_name, caption_name = names[key]
        image = image_of(read_capped(prefix, image_name), setting, image_name)
        caption = text_of(prefix.read(caption_name), setting, image_name)
        meta = {"original_size": list(image.shape[:2]), "group": key}
        return Pair(key, image, caption, meta)

    return Part(tuple(names), pair)
