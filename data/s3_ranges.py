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

_making = threading.Lock()
_clients: WeakKeyDictionary[Any, dict[str, "_Client"]] = WeakKeyDictionary()  # by s3fs's, by bucket
_said: set[tuple[Any, str]] = set()
_used_in: set[int] = set()  # the processes that obstore was used in: this one and its ancestors


class _Unfit(Exception):
    """What s3fs can read and obstore cannot; says why."""


@dataclass(frozen=True, slots=True)
class _Client:
    """A client of a bucket, and the credentials that it signs with."""

    store: S3Store
    source: Any  # botocore's credentials, which refresh themselves; None: nothing is signed
    credentials: Any  # what the source held when the client was made


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
    bucket, _, key = path.partition("/")
    store = _client(fs, bucket).store
    _used_in.add(os.getpid())
    version = {"if_match": etag} if etag else {}
    options: Any = {"range": (start, start + length), **version}
    try:
        answer = obstore.get(store, key, options=options)
        content = memoryview(answer.bytes())
    except Exception as error:
        if "status code: 416" in str(error):  # the start lies behind the end
            return memoryview(b"")
        failure = _as_s3fs(error, path, fs.s3.meta.endpoint_url)
        raise failure from failure.__cause__ or error
    promised = answer.range[1] - answer.range[0]
    if len(content) != promised:
        raise ShortBody(f"gave {len(content)} of {promised} bytes of {path} at {start}")
    return content


def _client(fs: Any, bucket: str) -> _Client:
    """The client that matches what s3fs uses now; a new one if credentials have changed."""
    clients = _clients.setdefault(fs.s3, {})  # s3fs makes a new one to renew its credentials
    if (client := clients.get(bucket)) is None or _is_stale(client):
        with _making:
            if (client := clients.get(bucket)) is None or _is_stale(client):
                client = clients[bucket] = _build_client(fs, bucket)
    return client


def _is_stale(client: _Client) -> bool:
    return bool(_frozen(client.source) != client.credentials)


def _build_client(fs: Any, bucket: str) -> _Client:
    meta = fs.s3.meta
    if (meta.config.s3 or {}).get("addressing_style") == "virtual" or bucket.startswith("arn:"):
        raise _Unfit("obstore addresses buckets by path")
    session = botocore.session.Session(profile=fs.kwargs.get("profile"))
    if fs.key:
        session.set_credentials(fs.key, fs.secret, fs.token)
    source = None if fs.anon else session.get_credentials()
    if source is None and not fs.anon:
        raise NoCredentialsError
    credentials = _frozen(source)
    # What is not given here obstore would read from environment variables of its own.
    store = S3Store(
        bucket,
        endpoint=meta.endpoint_url,
        aws_endpoint_url_s3=meta.endpoint_url,
        region=meta.region_name,
        virtual_hosted_style_request=False,
        request_payer=fs.requester_pays,
        skip_signature=source is None,
        credential_provider=source and (lambda: _as_obstore(credentials)),
        client_options=_client_options(fs, session),
        retry_config={"max_retries": 0},
    )
    return _Client(store, source, credentials)


def _client_options(fs: Any, session: Any) -> Any:
    meta = fs.s3.meta
    options: dict[str, Any] = {
        "allow_http": meta.endpoint_url.startswith("http:"),
        "connect_timeout": timedelta(seconds=meta.config.connect_timeout),
        "read_timeout": timedelta(seconds=meta.config.read_timeout),
        "timeout": _LONGEST,
    }
    verify = fs.client_kwargs.get("verify", session.get_config_variable("ca_bundle"))
    if verify is False:
        options["allow_invalid_certificates"] = True
    elif isinstance(verify, str):
        options["root_certificate"] = Path(verify).read_bytes()
    return options


def _frozen(source: Any) -> Any:
    """Key, secret and token as they are now; botocore gets new ones where these soon expire."""
    return source and source.get_frozen_credentials()


def _as_obstore(credentials: Any) -> Any:
    return {
        "access_key_id": credentials.access_key,
        "secret_access_key": credentials.secret_key,
        "token": credentials.token,
        "expires_at": None,  # new ones make a new client
    }


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
