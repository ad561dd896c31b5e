"""Reading through a store that fails; `test_faults` has the policy and the whole reads."""

import hashlib
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from conf.errors import RunError, UserError
from data import ranges, retry
from data.local_cache import LocalCache
from data.ranges import Span, read_spans
from data.retry import Patience
from data.storage import open_prefix
from data.tar import CorruptShard
from tests.helpers.faults import A_TENTH_AND_A_TENTH as FAULTS
from tests.helpers.faults import Fault

STEADY = Patience(base=0.02, cap=0.2, limit=60.0, say_every=0.3, short_bodies=20)
SIZE = 50_000
CONTENT = random.Random(0).randbytes(SIZE)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
SPANS = [Span("x.tar", start, 2000 + start % 700) for start in range(0, SIZE - 3000, 311)]


@pytest.fixture
def prefix(proxy, s3_prefix, monkeypatch):
    """Holds one shard, which is read in ten pieces."""
    monkeypatch.setattr(ranges, "PIECE", SIZE // 10)
    prefix = replace(open_prefix(s3_prefix, "data.url"), patience=STEADY)
    prefix.write("x.tar", CONTENT)
    proxy.served = 0
    return prefix


@pytest.fixture
def cache(tmp_path):
    return LocalCache(tmp_path / "cache", 10 * SIZE)


def spans_are_right(prefix):
    contents = read_spans(prefix, SPANS)
    return all(
        content == CONTENT[span.start : span.start + span.length]
        for span, content in zip(SPANS, contents, strict=True)
    )


def open_shard(cache, prefix):
    return cache.open(prefix, "x.tar", SIZE, SHA256)


def test_no_byte_of_a_span_is_wrong_whatever_fails(proxy, prefix):
    proxy.shares = FAULTS
    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(lambda _: spans_are_right(prefix), range(3)))
    assert all(proxy.done[fault] for fault in FAULTS)
    assert proxy.served == 3 * len(SPANS) + sum(proxy.done.values())  # nothing else came again


def test_no_byte_of_a_cached_shard_is_wrong_whatever_fails(proxy, prefix, cache):
    proxy.shares = FAULTS
    for _ in range(20):
        assert open_shard(cache, prefix)[:] == CONTENT
        cache.drop(prefix, "x.tar", SHA256)
    assert sum(proxy.done.values()) > 10
    assert proxy.served == 200 + sum(proxy.done.values())


def test_a_store_that_is_gone_for_a_while_is_waited_for(proxy, prefix, cache, capsys, monkeypatch):
    monkeypatch.setattr(retry, "_last_said", -float("inf"))
    for use in (lambda: spans_are_right(prefix), lambda: open_shard(cache, prefix)[:] == CONTENT):
        assert prefix.exists("x.tar")
        with proxy.gone(1.5):
            assert use()
        said = capsys.readouterr().out.splitlines()
        assert said[0].startswith(f"data.url={prefix.url}: waiting for the store, ")
        assert "Could not connect to the endpoint URL" in said[0]
        assert said[-1].startswith(f"data.url={prefix.url}: the store answers again after ")


def test_a_store_that_stays_away_is_given_up(proxy, prefix, cache):
    hasty = replace(prefix, patience=replace(STEADY, limit=0.3))
    proxy.stop()
    for use in (lambda: spans_are_right(hasty), lambda: open_shard(cache, hasty)):
        with pytest.raises(RunError, match=r"waited .* for the store"):
            use()
    assert [path.name for path in cache.folder.iterdir()] == ["lock"]


def test_once_a_span_has_failed_nobody_waits_for_the_others(proxy, prefix, monkeypatch):
    monkeypatch.setattr(retry, "backoff", lambda *_: 50.0)
    monkeypatch.setattr(ranges, "_pools", pools := {})
    started = time.monotonic()
    proxy.planned.extend([Fault.SLOW_DOWN, Fault.DENIED])
    with pytest.raises(UserError, match="Access Denied"):
        read_spans(prefix, SPANS[:2])
    pools.popitem()[1].shutdown()  # waits for its threads
    assert time.monotonic() - started < 40


def test_an_answer_that_stalls_is_asked_for_again(proxy, prefix):
    config = {**prefix.fs.config_kwargs, "read_timeout": 0.5}
    impatient = replace(prefix, fs=type(prefix.fs)(config_kwargs=config, use_listings_cache=False))
    assert spans_are_right(impatient)
    proxy.delay = 1.5
    proxy.planned.extend([None, Fault.LATE, None, Fault.LATE])
    assert spans_are_right(impatient)
    assert proxy.done[Fault.LATE] == 2


@pytest.mark.parametrize("fault", [Fault.SHORT, Fault.CUT])
def test_an_object_that_is_always_short_is_not_waited_for(proxy, prefix, fault):
    proxy.shares = {fault: 1.0}
    with pytest.raises(RunError, match="again and again; compare the file with its source"):
        read_spans(prefix, SPANS[:3])


def test_credentials_that_stay_expired_are_an_error_soon(proxy, prefix, cache):
    proxy.expired_keys = {os.environ["AWS_ACCESS_KEY_ID"]}
    for use in (lambda: read_spans(prefix, SPANS[:1]), lambda: open_shard(cache, prefix)):
        with pytest.raises(RunError, match=r"token has expired.*your credentials"):
            use()
    assert [path.name for path in cache.folder.iterdir()] == ["lock"]


def test_credentials_that_were_renewed_are_read_again(proxy, prefix, cache, monkeypatch):
    renewed = os.environ["AWS_ACCESS_KEY_ID"]
    proxy.expired_keys = {"old"}
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "old")
    prefix.fs.connect(refresh=True)
    with pytest.raises(RunError, match="token has expired"):
        read_spans(prefix, SPANS[:1])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", renewed)
    proxy.done.clear()
    assert spans_are_right(prefix)
    assert 1 <= proxy.done[Fault.EXPIRED] <= 2 * ranges.AT_ONCE  # those that were under way
    proxy.done.clear()
    assert open_shard(cache, prefix)[:] == CONTENT
    assert proxy.done[Fault.EXPIRED] == 0


def test_what_is_denied_or_missing_is_not_tried_again(proxy, prefix):
    with pytest.raises(FileNotFoundError):
        read_spans(prefix, [Span("y.tar", 0, 1)])
    proxy.shares = {Fault.DENIED: 1.0}
    with pytest.raises(UserError, match=r"cannot be read \(Access Denied\)"):
        read_spans(prefix, [Span("x.tar", 0, 1)])
    assert proxy.served == 2


def replace_after(proxy, monkeypatch, requests, write):
    """Has `write` called once that many requests came."""
    draw, left = proxy.draw, [None] * requests

    def counting(authorization):
        if left:
            left.pop()
            if not left:
                write()
        return draw(authorization)

    monkeypatch.setattr(proxy, "draw", counting)


def test_an_object_that_is_replaced_while_it_is_fetched_is_refused(
    proxy, prefix, cache, monkeypatch
):
    other = CONTENT[::-1]
    replace_after(proxy, monkeypatch, 6, lambda: prefix.write("x.tar", other))
    with pytest.raises(CorruptShard, match="has the SHA-256"):
        open_shard(cache, prefix)
    # Replaced by what the manifest says: fetched once more, and then right.
    replace_after(proxy, monkeypatch, 6, lambda: prefix.write("x.tar", CONTENT))
    assert open_shard(cache, prefix)[:] == CONTENT
