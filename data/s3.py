"""What s3fs and botocore need to be told, and what their errors say."""

import threading
from collections.abc import Callable
from typing import Any

# botocore retries what fails before a body comes: 5xx, throttling, resets and timeouts. It has to,
# for it alone sees the parts of a multipart upload: without it one failed part of seventy would
# cost the whole upload. Three tries, since `data.retry` goes on where it stops.
_RETRIES = {"mode": "standard", "total_max_attempts": 3}
_CREATOR = "creator"  # metadata of an object
PART = 16 * 2**20  # bytes of a part of what is sent; S3 takes 10,000 of them

_renewing = threading.Lock()


class Replaced(Exception):
    """An object is no longer the version that was asked for."""


def s3_options() -> dict[str, Any]:
    """Options of the file system."""
    return {"config_kwargs": {"retries": _RETRIES}}


def without_own_loop(fs: Any) -> Any:
    """Turn off s3fs's own loop around botocore's.

    It retries no 5xx, and loops multiply: five tries around five around botocore's five, so that
    a lost store would be noticed minutes late.
    """
    fs.retries = 1
    return fs


def create(fs: Any, path: str, content: bytes, creator: str) -> None:
    """A put that the server refuses if the name is taken; may be repeated.

    A put whose answer is lost is sent again, by aiohttp on a connection that broke, by botocore, or
    by us, and then finds the name taken by itself. So each creator signs what it puts. Comparing
    the bytes instead would let two creators of the same bytes both win.

    Args:
        fs: The file system.
        path: The object's path within it.
        content: What to put there.
        creator: A name that nobody else has.

    Raises:
        FileExistsError: Somebody else created it.
    """
    try:
        fs.pipe_file(path, content, mode="create", Metadata={_CREATOR: creator})
    except Exception as error:
        # s3fs raises FileExistsError only where the server names the condition.
        if not (isinstance(error, FileExistsError) or error_code(error) == "PreconditionFailed"):
            raise
        if fs.metadata(path, refresh=True).get(_CREATOR) != creator:
            raise FileExistsError(path) from error


class _Parts:
    """Bytes that are copied part by part, as a multipart upload asks for them."""

    def __init__(self, content: memoryview) -> None:
        self._content = content

    def __len__(self) -> int:
        return len(self._content)

    def __getitem__(self, part: slice) -> bytes:
        return bytes(self._content[part])


def send(fs: Any, path: str, content: bytes | memoryview) -> None:
    """A put that replaces what is there, without a second copy of all of a large content.

    botocore takes nothing but bytes. s3fs sends what has two parts or more in parts, ten at a time,
    and asks for no more of it than their slices.
    """
    small = len(content) < 2 * PART
    fs.pipe_file(path, bytes(content) if small else _Parts(memoryview(content)), chunksize=PART)


def renewal(fs: Any) -> Callable[[], None]:
    """What makes a file system read its credentials again; threads that ask together share it."""
    before = fs.session

    def renew() -> None:
        with _renewing:
            if before is None or fs.session is before:
                fs.connect(refresh=True)

    return renew


def error_code(error: BaseException) -> str:
    """The code of a server's answer that s3fs made this error of, or an empty string."""
    response = getattr(error.__cause__, "response", None)
    return str(response["Error"].get("Code", "")) if isinstance(response, dict) else ""
