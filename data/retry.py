"""Trying again: which faults of a store pass by themselves, how long to wait, when to give up.

Knows errors and time; what is tried is the caller's. Local paths never come here.

botocore retries single requests (see `data.storage`). This module does what it does not: bodies
that break or end early, a store that is gone for minutes, saying so, and expired credentials.
"""

import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TypeVar

from conf.errors import RunError, UserError
from data.say import say

T = TypeVar("T")

EXPIRED_CODES = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
BARE_REFUSALS = {"400", "403"}  # the answer to a HEAD has no body that could say `ExpiredToken`
PASSING_CODES = {  # sent with a status that is not of itself a reason to try again
    "BadDigest",
    "ConditionalRequestConflict",
    "IncompleteBody",
    "OperationAborted",
    "RequestTimeout",
    "XAmzContentSHA256Mismatch",
}
PASSING_STATUS = {408, 429, 500, 502, 503, 504}
# By name, so that no client library is loaded for a scheme that is not in use.
PASSING_ERRORS = {
    "ClientConnectionError",  # aiohttp
    "ClientPayloadError",
    "ConnectionError",  # the builtin's, botocore's and requests'
    "FlexibleChecksumError",  # botocore, from here
    "HTTPClientError",
    "IncompleteReadError",
    "ResponseParserError",
    "TimeoutError",
    "TransportError",  # httpx
    "ShortBody",
}
LASTING_ERRORS = {"ClientConnectorCertificateError", "ClientSSLError", "SSLError"}


class _Here(threading.local):
    abandoned = threading.Event()  # never set: this thread's work is wanted


_here = _Here()
FIRST_CONTACT = 20.0  # seconds for the first answer of a store, where somebody watches
SLICE = 0.2  # seconds; two events cannot be waited for at once

_speaking = threading.Lock()
_last_said = -float("inf")
_waits_until = -float("inf")


class ShortBody(OSError):
    """An answer that looked whole and held fewer bytes than the object has there."""


class StoppedWaiting(RunError):
    """Told not to wait for a store any longer."""


class Fault(Enum):
    """What an error asks for."""

    PASSING = "try again"
    EXPIRED = "read the credentials again, once"
    LASTING = "tell the user"


@dataclass(frozen=True, slots=True)
class Patience:
    """How a store is waited for; all in seconds but `short_bodies`.

    Args:
        base: The longest first wait.
        cap: The longest wait.
        limit: From the first fault of an operation until it is given up.
        say_every: Between two lines about waiting, over all threads of the process.
        short_bodies: How many short bodies one operation takes. A store that answers, and answers
            wrongly each time, holds a broken object: waiting does not mend it.
        stop: Ends all waits once it is set, and every later one at once.
    """

    base: float = 0.02
    cap: float = 20.0
    limit: float = 600.0
    say_every: float = 10.0
    short_bodies: int = 8
    stop: threading.Event = field(default_factory=threading.Event, compare=False)


def at_first(patience: Patience) -> Patience:
    """How a store is waited for that has never answered this process.

    Where somebody watches it has rather a wrong address, which is soon mended. A job or a trial is
    also started while a store that it knows is away, and nobody would start it again.
    """
    if not sys.stderr.isatty():
        return patience
    return replace(patience, limit=min(patience.limit, FIRST_CONTACT))


def backoff(attempt: int, chance: float, patience: Patience) -> float:
    """Seconds to wait after a fault: exponential, capped, with full jitter.

    Full jitter, since ranks that lose a store together would else come back together.

    Args:
        attempt: Faults before this one.
        chance: A number in [0, 1).
        patience: Holds base and cap.

    Source: Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    return chance * min(patience.cap, patience.base * 2.0 ** min(attempt, 60))


def fault_of(error: BaseException) -> Fault:
    """What is to be done about an error of a storage client."""
    status, code = _answer(error)
    if code in EXPIRED_CODES | BARE_REFUSALS:
        return Fault.EXPIRED
    if status:
        passing = status in PASSING_STATUS or code in PASSING_CODES
    else:
        names = {kind.__name__ for kind in type(error).__mro__}
        passing = bool(names & PASSING_ERRORS) and not names & LASTING_ERRORS
    return Fault.PASSING if passing else Fault.LASTING


def has_expired(error: BaseException) -> bool:
    """Whether a store has said that the credentials have expired."""
    return _answer(error)[1] in EXPIRED_CODES


def is_answer(error: BaseException) -> bool:
    """Whether a store has said so itself, and not the network between."""
    return isinstance(error, ShortBody) or _answer(error)[0] > 0


def reason_of(error: BaseException) -> str:
    """An error in one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0]


@contextmanager
def wanted_until(abandoned: threading.Event) -> Iterator[None]:
    """Within it this thread's waits end at once when `abandoned` is set, with the last fault."""
    _here.abandoned = abandoned
    try:
        yield
    finally:
        del _here.abandoned


def persist(
    attempt: Callable[[], T], renew: Callable[[], None], where: str, patience: Patience
) -> T:
    """Run `attempt` until it succeeds, fails for good, or the patience is at its end.

    Args:
        attempt: May be run any number of times.
        renew: Has the client read its credentials again.
        where: The setting and the URL, for messages.
        patience: Waits and limits.

    Raises:
        RunError: The store was waited for in vain.
        StoppedWaiting: `patience.stop` was set.
    """
    faults = short_bodies = 0
    renewed = spoke = False
    started = time.monotonic()
    while True:
        try:
            result = attempt()
        except (UserError, RunError):  # an operation within this one gave up
            raise
        except Exception as error:
            fault = fault_of(error)
            if fault is Fault.EXPIRED and not renewed:
                renewed = True
                renew()
                continue
            if fault is not Fault.PASSING:
                raise
            if not faults:
                started = time.monotonic()
            waited = time.monotonic() - started
            short_bodies += isinstance(error, ShortBody)
            if waited >= patience.limit or short_bodies > patience.short_bodies:
                raise _given_up(where, error, waited) from error
            spoke |= _say_waiting(where, error, waited, patience)
            pause = backoff(faults, random.SystemRandom().random(), patience)
            _sleep(min(pause, patience.limit - waited), patience.stop)
            if patience.stop.is_set():
                raise StoppedWaiting(f"{where}: stopped while it was waited for") from error
            if _here.abandoned.is_set():
                raise
            faults += 1
        else:
            if spoke:
                say(f"{where}: the store answers again after {time.monotonic() - started:.0f} s")
            return result


def _sleep(seconds: float, stop: threading.Event) -> None:
    """Sleep, but not on when told to stop or when this thread's work is no longer wanted."""
    global _waits_until
    until = time.monotonic() + seconds
    _waits_until = max(_waits_until, until)
    while (left := until - time.monotonic()) > 0 and not stop.is_set():
        if _here.abandoned.wait(min(left, SLICE)):
            return


def waiting_for_store() -> bool:
    """Whether some thread of this process waits for a store, which ends by itself."""
    return time.monotonic() < _waits_until + SLICE


def _given_up(where: str, error: Exception, waited: float) -> RunError:
    if isinstance(error, ShortBody):
        return RunError(f"{where}: {error}, again and again; compare the file with its source")
    return RunError(
        f"{where}: waited {waited:.0f} s for the store ({reason_of(error)}); "
        "check that it runs and that its address is right, then run again"
    )


def _say_waiting(where: str, error: Exception, waited: float, patience: Patience) -> bool:
    """Say that a store is waited for, unless that is new or was said just now."""
    global _last_said
    with _speaking:
        now = time.monotonic()
        if min(waited, now - _last_said) < patience.say_every:
            return False
        _last_said = now
    so_far = f"{waited:.0f} s of at most {patience.limit:.0f}"
    say(f"{where}: waiting for the store, {so_far} ({reason_of(error)})")
    return True


def _answer(error: BaseException) -> tuple[int, str]:
    """HTTP status and S3 error code of the answer that an error was made of; 0 and '' if none."""
    for link in (error, error.__cause__):  # s3fs translates, and keeps botocore's as the cause
        response = getattr(link, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return int(status), str(response.get("Error", {}).get("Code", ""))
    for number in (
        getattr(error, "status", None),  # aiohttp
        getattr(error, "code", None),  # gcsfs
        getattr(getattr(error, "response", None), "status_code", None),  # huggingface_hub
    ):
        if isinstance(number, int) and 100 <= number < 600:
            return number, ""
    return 0, ""
