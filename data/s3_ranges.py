"""Ranged reads from S3 through obstore, several times as fast as through s3fs.

Takes address, region, credentials and timeouts from an s3fs file system, so that both reach the
same objects in the same way, and gives obstore's errors the shape of s3fs's. Never tries again:
that is `data.retry`'s affair.
"""

import errno
import os
import re
import threading
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import botocore.session
import obstore
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
from obstore.store import S3Store
from s3fs.errors import translate_boto_error

from data.retry import ShortBody
from data.s3 import Replaced
from data.say import say

_STATUS = re.compile(r"non-2xx status code: (\d{3})")
_CODE = re.compile(r"<Code>([^<]*)</Code>")
_MESSAGE = re.compile(r"<Message>([^<]*)</Message>")
_LONGEST = timedelta(hours=1)  # of a whole answer; one that stalls ends by the read timeout

_finding = threading.Lock()
_sessions: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # botocore's, by s3fs's
_said: set[tuple[Any, str]] = set()
_used_in: set[int] = set()  # the processes that obstore was used in: this one and its ancestors


class _Unfit(Exception):
    """What s3fs can read and obstore cannot; says why."""


@dataclass(frozen=True, slots=True)
class _Access:
    """All that makes up a client: equal ones share it, and its connections."""

    bucket: str
    endpoint: str
    region: str
    requester_pays: bool
    connect_timeout: float
    read_timeout: float
    verify: str | bool | None
    credentials: tuple[str, str, str | None] | None = None  # None: unsigned


def read_range(
    fs: Any, path: str, start: int, length: int, etag: str | None, where: str
) -> memoryview | None:
    """Bytes of an object; fewer than `length` only where it ends.

    Args:
        fs: The s3fs file system that reaches it.
        path: The object's path there.
        start: The first byte.
        length: How many bytes, at least one.
        etag: Of the version to read; None for any.
        where: The setting and the URL, for messages.

    Returns:
        None if only s3fs can read it, which is said once.

    Raises:
        Replaced: The object has another ETag.
        ShortBody: The answer holds fewer bytes than it says.
        OSError: As s3fs would raise it.
    """
    try:
        return _read(fs, path, start, length, etag)
    except _Unfit as error:
        reason = str(error)
        if (fs, reason) not in _said:
            _said.add((fs, reason))
            say(f"{where}: is read through s3fs, which is slower ({reason})")
        return None


def _read(fs: Any, path: str, start: int, length: int, etag: str | None) -> memoryview:
    if _used_in - {os.getpid()}:
        raise _Unfit("obstore's threads do not live on in a forked process")
    bucket, key, _ = fs.split_path(path)
    access = _access(fs, bucket)
    _used_in.add(os.getpid())
    version = {"if_match": etag} if etag else {}
    options: Any = {"range": (start, start + length), **version}
    try:
        answer = obstore.get(_client(access), key, options=options)
        content = memoryview(answer.bytes())
    except Exception as error:
        if "<Code>InvalidRange<" in str(error):  # the start lies behind the end
            return memoryview(b"")
        failure = _as_s3fs(error, path, access.endpoint)
        raise failure from failure.__cause__ or error
    promised = answer.range[1] - answer.range[0]
    if len(content) != promised:
        raise ShortBody(f"gave {len(content)} of {promised} bytes of {path} at {start}")
    return content


def _access(fs: Any, bucket: str) -> _Access:
    meta = fs.s3.meta  # connects, if that was not done yet
    if (meta.config.s3 or {}).get("addressing_style") == "virtual":
        raise _Unfit("addressing_style is virtual")
    with _finding:
        session = _sessions.get(fs.session)
        if session is None:
            session = botocore.session.Session(profile=fs.kwargs.get("profile"))
            if fs.key:
                session.set_credentials(fs.key, fs.secret, fs.token)
            _sessions[fs.session] = session
        credentials = None if fs.anon else session.get_credentials()
    if credentials is None and not fs.anon:
        raise NoCredentialsError
    return _Access(
        bucket,
        meta.endpoint_url,
        meta.region_name,
        fs.requester_pays,
        meta.config.connect_timeout,
        meta.config.read_timeout,
        fs.client_kwargs.get("verify", session.get_config_variable("ca_bundle")),
        credentials and tuple(credentials.get_frozen_credentials()[:3]),  # refreshes old ones
    )


@lru_cache(maxsize=16)
def _client(access: _Access) -> S3Store:
    options: Any = {
        "allow_http": access.endpoint.startswith("http:"),
        "connect_timeout": timedelta(seconds=access.connect_timeout),
        "read_timeout": timedelta(seconds=access.read_timeout),
        "timeout": _LONGEST,
    }
    if access.verify is False:
        options["allow_invalid_certificates"] = True
    elif isinstance(access.verify, str):
        options["root_certificate"] = Path(access.verify).read_bytes()
    signing: dict[str, Any] = {"skip_signature": True}
    if access.credentials:
        key, secret, token = access.credentials
        held: Any = {
            "access_key_id": key,
            "secret_access_key": secret,
            "token": token,
            "expires_at": None,  # a new one makes a new client
        }
        signing = {"skip_signature": False, "credential_provider": lambda: held}
    # What is not given here obstore would read from environment variables of its own.
    return S3Store(
        access.bucket,
        endpoint=access.endpoint,
        aws_endpoint_url_s3=access.endpoint,
        region=access.region,
        virtual_hosted_style_request=False,
        request_payer=access.requester_pays,
        client_options=options,
        retry_config={"max_retries": 0},
        **signing,
    )


def _as_s3fs(error: Exception, path: str, endpoint: str) -> Exception:
    """What s3fs would have raised; obstore's exceptions carry their reasons in the text alone."""
    text = str(error)
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, "No such object", path)
    if status := _STATUS.search(text):
        code, message = _CODE.search(text), _MESSAGE.search(text)
        if status[1] == "412":
            return Replaced(path)
        answer = {
            "Error": {
                "Code": code[1] if code else status[1],
                "Message": message[1] if message else f"HTTP status {status[1]}",
            },
            "ResponseMetadata": {"HTTPStatusCode": int(status[1])},
        }
        translated: Exception = translate_boto_error(ClientError(answer, "GetObject"))
        return translated
    if isinstance(error, ValueError):
        return _Unfit(f"obstore takes no name like {path!r}")
    if "redirect" in text:
        return _Unfit("the bucket is of another region: set AWS_DEFAULT_REGION to it")
    if "InvalidCertificate" in text:
        return _Unfit("obstore does not trust the endpoint's certificate")
    if "NoContentRange" in text:
        return ShortBody(f"gave an answer that does not say which bytes of {path} it holds")
    if "kind: Timeout" in text:
        return TimeoutError(errno.ETIMEDOUT, "The answer did not come in time")
    if "kind: Connect" in text:
        lost: Exception = EndpointConnectionError(endpoint_url=endpoint)
        return lost
    if "HTTP error" in text:
        return ConnectionError("The connection ended before the answer did")
    return OSError(errno.EIO, text.splitlines()[0], path)
