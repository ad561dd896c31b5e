import os
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from conf.errors import RunError, UserError
from data import ranges, s3_ranges, storage
from data.ranges import Span, read_pieces, read_spans
from data.retry import StoppedWaiting
from data.storage import open_prefix
from tests.helpers.faults import Fault
from tests.helpers.link import open_link

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def fresh():
    """Opens a prefix with a client of its own, made of the environment as it is."""

    def open_afresh(url):
        S3FileSystem.clear_instance_cache()
        return open_prefix(url, "data.url")

    yield open_afresh
    S3FileSystem.clear_instance_cache()


def spans_of(name, count):
    return [Span(name, 37 * i, 10 + i) for i in range(count)]


def right(spans, contents):
    return all(
        bytes(content) == CONTENT[span.start : span.start + span.length]
        for span, content in zip(spans, contents, strict=True)
    )


def test_spans_come_whole_and_in_the_order_asked_for(url):
    prefix = open_prefix(url, "data.url")
    prefix.write("a/x", CONTENT)
    prefix.write("b.tar", CONTENT[::-1])
    spans = [*spans_of("a/x", 150)[::-1], Span("a/x", 5, 0), Span("a/x", 0, len(CONTENT))]
    assert right(spans, read_spans(prefix, spans))
    mixed = read_spans(prefix, [Span("b.tar", 0, 4), Span("a/x", 0, 4), Span("b.tar", 1, 2)])
    assert [bytes(content) for content in mixed] == [b"\xff\xfe\xfd\xfc", CONTENT[:4], b"\xfe\xfd"]
    assert read_spans(prefix, []) == []


def test_spans_are_short_only_where_the_file_ends(url):
    prefix = open_prefix(url, "data.url")
    prefix.write("x", CONTENT)
    prefix.write("empty", b"")
    end = len(CONTENT)
    spans = [Span("x", end - 3, 9), Span("x", end, 1), Span("x", end + 5, 1), Span("empty", 0, 4)]
    assert read_spans(prefix, spans) == [CONTENT[-3:], b"", b"", b""]


def test_a_file_that_is_missing_is_an_error_wherever_it_stands(url):
    prefix = open_prefix(url, "data.url")
    prefix.write("x", CONTENT)
    for place in (0, 70, 140):
        spans = spans_of("x", 140)
        spans.insert(place, Span("missing", 0, 1))
        with pytest.raises(FileNotFoundError):
            read_spans(prefix, spans)


def test_pieces_make_up_the_file(url, monkeypatch):
    monkeypatch.setattr(ranges, "PIECE", 100)
    prefix = open_prefix(url, "data.url")
    prefix.write("x", CONTENT)
    for size in (1, 99, 100, 101, 1201, len(CONTENT)):
        pieces = list(read_pieces(prefix, "x", size))
        assert b"".join(pieces) == CONTENT[:size]
        assert len(pieces) == -(-size // 100)
    assert b"".join(read_pieces(prefix, "x", len(CONTENT) + 250)) == CONTENT


def test_a_file_that_nobody_waits_for_any_more_is_not_fetched_to_its_end(monkeypatch):
    """A run that is told to stop has a checkpoint to save first."""
    monkeypatch.setattr(ranges, "PIECE", 100)
    prefix = open_prefix(f"memory://{uuid.uuid4().hex}", "data.url")
    prefix.write("x", CONTENT)
    pieces = read_pieces(prefix, "x", len(CONTENT))
    next(pieces)
    prefix.patience.stop.set()
    with pytest.raises(StoppedWaiting, match="stopped while it was fetched"):
        next(pieces)


def test_many_requests_are_in_flight(s3_prefix, fresh, monkeypatch):
    with open_link(os.environ["AWS_ENDPOINT_URL"], latency=0.3) as link:
        monkeypatch.setenv("AWS_ENDPOINT_URL", link.url)
        prefix = fresh(s3_prefix)
        prefix.write("x", CONTENT)
        spans = spans_of("x", 100)
        assert right(spans, read_spans(prefix, spans))
        assert link.most_busy >= 16  # 64, but for a machine that is busy


def test_several_threads_read_at_once(s3_prefix):
    prefix = open_prefix(s3_prefix, "data.url")
    prefix.write("x", CONTENT)
    spans = spans_of("x", 80)
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda i: read_spans(prefix, spans[i:]), range(12)))
    assert all(right(spans[i:], contents) for i, contents in enumerate(results))


# --- the same settings as s3fs


def test_the_settings_are_those_of_s3fs(s3_prefix, fresh, monkeypatch, tmp_path):
    open_prefix(s3_prefix, "data.url").write("x", CONTENT)
    key, secret = (os.environ[f"AWS_{name}"] for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"))
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    (tmp_path / "credentials").write_text(
        f"[ours]\naws_access_key_id={key}\naws_secret_access_key={secret}\n"
        "[default]\naws_access_key_id=wrong\naws_secret_access_key=wrong\n"
    )
    (tmp_path / "config").write_text(f"[profile ours]\nregion=eu-west-2\nendpoint_url={endpoint}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "ours")
    # What obstore would take from the environment by itself, and botocore does not.
    monkeypatch.setenv("AWS_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "true")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    prefix = fresh(s3_prefix)
    assert read_spans(prefix, [Span("x", 1, 3)]) == [CONTENT[1:4]]
    bucket = s3_prefix.split("/")[2]
    assert s3_ranges._client(prefix.fs, bucket).store.config["region"] == "eu-west-2"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    elsewhere = replace(fresh(s3_prefix), patience=storage.Patience(limit=0.0))
    with pytest.raises((UserError, RunError), match=r"127\.0\.0\.1:1"):
        read_spans(elsewhere, [Span("x", 1, 3)])


def test_without_credentials_it_says_so(s3_prefix, fresh, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"Unable to locate credentials.*your credentials"):
        read_spans(fresh(s3_prefix), [Span("x", 0, 1)])


def test_credentials_that_run_out_are_refreshed(s3_prefix, fresh, monkeypatch, tmp_path):
    open_prefix(s3_prefix, "data.url").write("x", CONTENT)
    answer = (
        f'{{"Version": 1, "AccessKeyId": "{os.environ["AWS_ACCESS_KEY_ID"]}", "SecretAccessKey": '
        f'"{os.environ["AWS_SECRET_ACCESS_KEY"]}", "Expiration": "'
    )
    calls = tmp_path / "calls"
    script = tmp_path / "credentials.sh"
    script.write_text(
        f"#!/bin/sh\necho called >> {calls}\n"
        f"echo '{answer}'$(date -u -d '+1 minute' +%Y-%m-%dT%H:%M:%SZ)'\"}}'\n"
    )
    script.chmod(0o700)
    (tmp_path / "config").write_text(f"[profile short]\ncredential_process={script}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "short")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    prefix = fresh(s3_prefix)
    for _ in range(2):
        before = len(calls.read_text().split()) if calls.exists() else 0
        assert read_spans(prefix, [Span("x", 1, 3)]) == [CONTENT[1:4]]
        assert len(calls.read_text().split()) > before


# --- what only s3fs can do


def test_a_name_that_obstore_refuses_is_read_through_s3fs(s3_prefix, fresh, capsys):
    prefix = fresh(s3_prefix)
    prefix.fs.pipe_file(prefix.path("a//b"), CONTENT)
    assert read_spans(prefix, [Span("a//b", 1, 3)] * 3) == [CONTENT[1:4]] * 3
    (said,) = capsys.readouterr().out.splitlines()
    assert said.startswith(f"data.url={s3_prefix}: is read through s3fs, which is slower (")
    odd = "ü +%20 &=?#.tar"
    prefix.write(odd, CONTENT)
    assert read_spans(prefix, [Span(odd, 1, 3)]) == [CONTENT[1:4]]
    assert capsys.readouterr().out == ""


FORKING = """
import os, sys
from data.ranges import Span, read_spans
from data.storage import open_prefix
url, early = sys.argv[1], sys.argv[2] == "early"
if not early:
    assert read_spans(open_prefix(url, "data.url"), [Span("x", 0, 2)] * 70)[69] == b"\\0\\1"
child = os.fork()
assert read_spans(open_prefix(url, "data.url"), [Span("x", 1, 2)] * 70)[69] == b"\\1\\2"
if child:
    assert os.waitpid(child, 0)[1] == 0
os._exit(0)
"""


@pytest.mark.parametrize("when", ["early", "late"])
def test_forked_processes_read(s3_prefix, when):
    open_prefix(s3_prefix, "data.url").write("x", CONTENT)
    run = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKING, s3_prefix, when],
        timeout=120,
        capture_output=True,
        text=True,
        cwd=Path(ranges.__file__).parents[1],
    )
    assert run.returncode == 0, run.stderr
    assert ("through s3fs" in run.stdout) == (when == "late")


# --- faults


def test_a_span_that_fails_is_tried_again_alone(proxy, s3_prefix):
    prefix = open_prefix(s3_prefix, "data.url")
    prefix.write("x", CONTENT)
    spans = spans_of("x", 50)
    for fault in (Fault.SLOW_DOWN, Fault.SHORT, Fault.CUT, Fault.BROKEN, Fault.RESET):
        proxy.served = 0
        proxy.planned.extend([None, fault, None, fault])
        assert right(spans, read_spans(prefix, spans))
        assert proxy.done[fault] == 2
        assert proxy.served == len(spans) + 2


def test_a_large_object_that_is_replaced_is_read_in_one_version(proxy, s3_prefix, monkeypatch):
    monkeypatch.setattr(storage, "PIECE", 100)
    prefix = open_prefix(s3_prefix, "data.url")
    prefix.write("x", b"a" * 5000)
    draw, writer = proxy.draw, open_prefix(f"{s3_prefix}-{uuid.uuid4().hex}", "out")
    writer = replace(writer, root=prefix.root)

    def replacing(authorization):
        if proxy.served == 20:
            proxy.served += 1
            writer.write("x", b"b" * 5000)
        return draw(authorization)

    proxy.served = 0
    monkeypatch.setattr(proxy, "draw", replacing)
    assert prefix.read("x") == b"b" * 5000
    assert proxy.served > 20
