import math
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace

import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given
from hypothesis import strategies as st
from s3fs import S3FileSystem

from conf.errors import RunError, UserError
from data import ranged, retry, storage
from data.retry import Patience, ShortBody, StoppedWaiting, backoff, persist
from data.s3 import without_own_loop
from data.storage import open_prefix
from tests.helpers.faults import Fault

# Short enough that a test of giving up is soon over.
HASTY = Patience(base=0.02, cap=0.2, limit=1.0, say_every=0.3, short_bodies=3)
STEADY = replace(HASTY, limit=60.0, short_bodies=20)
FAILING = {
    Fault.INTERNAL: 0.02,
    Fault.UNAVAILABLE: 0.02,
    Fault.SLOW_DOWN: 0.02,
    Fault.RESET: 0.02,
    Fault.LOST: 0.02,
}
SHORTENING = {Fault.SHORT: 0.05, Fault.BROKEN: 0.05}
REFUSING = [Fault.INTERNAL, Fault.UNAVAILABLE, Fault.SLOW_DOWN, Fault.RESET]


@pytest.fixture
def prefix(proxy, s3_prefix):
    return replace(open_prefix(s3_prefix, "data.url"), patience=STEADY)


@pytest.fixture
def bare(prefix):
    """The same without botocore's own tries, whose waits cannot be shortened."""
    once = {"retries": {"total_max_attempts": 1}}
    fs = S3FileSystem(**{**prefix.fs.storage_options, "config_kwargs": once})
    return replace(prefix, fs=without_own_loop(fs))


# --- the schedule


PATIENCE = st.builds(
    Patience, base=st.floats(0.001, 10), cap=st.floats(0.001, 100), limit=st.floats(0, 1e4)
)
CHANCE = st.floats(0, 1, exclude_max=True)


@given(st.integers(0, 10**6), CHANCE, PATIENCE)
def test_a_wait_is_capped_and_has_full_jitter(attempt, chance, patience):
    longest = backoff(attempt, 1.0, patience)
    assert 0 < longest <= patience.cap
    assert backoff(attempt, chance, patience) == pytest.approx(chance * longest)


@given(st.integers(0, 40), PATIENCE)
def test_the_longest_wait_doubles_up_to_the_cap(attempt, patience):
    assert backoff(0, 1.0, patience) == min(patience.base, patience.cap)
    doubled = 2 * backoff(attempt, 1.0, patience)
    assert backoff(attempt + 1, 1.0, patience) == pytest.approx(min(doubled, patience.cap))


def test_what_does_not_pass_is_tried_once():
    for error in (ValueError("a"), PermissionError("b"), FileNotFoundError("c"), KeyError("d")):
        tries = []

        def attempt(error=error, tries=tries):
            tries.append(1)
            raise error

        with pytest.raises(type(error)):
            persist(attempt, _never, "data.url=a", HASTY)
        assert len(tries) == 1


def test_the_limit_counts_from_the_first_fault_and_is_kept():
    def attempt():
        raise TimeoutError("nobody there")

    started = time.monotonic()
    with pytest.raises(RunError, match=r"data.url=a: waited 1 s for the store \(nobody") as e:
        persist(attempt, _never, "data.url=a", HASTY)
    assert 1.0 <= time.monotonic() - started < 10.0
    assert "\n" not in str(e.value)


def test_whoever_waits_for_a_store_says_so_to_who_asks(monkeypatch):
    monkeypatch.setattr(retry, "_waits_until", -math.inf)
    seen = []

    def attempt():
        seen.append(retry.waiting_for_store())
        raise ConnectionError

    patience = Patience(base=0.05, cap=0.05, limit=0.2)
    with pytest.raises(RunError):
        persist(attempt, _never, "here", patience)
    assert seen[0] is False and seen[-1] is True
    time.sleep(0.05 + 2 * retry.SLICE)
    assert not retry.waiting_for_store()


def test_a_body_that_is_always_short_is_not_waited_for():
    tries = []

    def attempt():
        tries.append(1)
        raise ShortBody("gave 1 of 2 bytes of b")

    with pytest.raises(RunError, match=r"data.url=a: gave 1 of 2 bytes of b, again and again"):
        persist(attempt, _never, "data.url=a", replace(HASTY, limit=60.0))
    assert len(tries) == HASTY.short_bodies + 1


def _never():
    raise AssertionError


# --- reads


def test_every_byte_is_right_whatever_fails(proxy, prefix):
    contents = {f"{i}.bin": os.urandom(1000 + i) for i in range(20)}
    for name, content in contents.items():
        prefix.write(name, content)
    proxy.shares = {**FAILING, **SHORTENING}
    jobs = [(name, start) for start in range(0, 900, 60) for name in contents]

    def right(job):
        name, start = job
        if start == 0:
            return prefix.read(name) == contents[name]
        return prefix.read_range(name, start, 700) == contents[name][start : start + 700]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(right, jobs)) == [True] * len(jobs)
    assert len(jobs) == 300
    assert all(proxy.done[fault] for fault in proxy.shares)  # all of them happened


@pytest.mark.parametrize("fault", [Fault.SHORT, Fault.BROKEN])
def test_a_body_cut_short_is_read_again(proxy, prefix, fault):
    prefix.write("a", b"0123456789")
    proxy.planned.extend([None, fault])  # the size, then the body
    assert prefix.read("a") == b"0123456789"
    proxy.planned.append(fault)
    assert prefix.read_range("a", 2, 6) == b"234567"
    assert proxy.done[fault] == 2


def test_an_open_file_lives_through_faults(proxy, prefix, monkeypatch):
    """A search of tars goes on for hours, and a fault is no reason to call one damaged."""
    monkeypatch.setattr(ranged, "BUFFER", 1000)
    content = os.urandom(20_000)
    prefix.write("a", content)
    with prefix.open("a") as file:
        proxy.planned.extend([None, Fault.SHORT, Fault.BROKEN, Fault.CUT] * 3)
        assert b"".join(iter(lambda: file.read(700), b"")) == content
    assert proxy.done[Fault.SHORT] and proxy.done[Fault.BROKEN] and proxy.done[Fault.CUT]


def test_a_large_file_is_read_in_pieces_that_are_checked(proxy, prefix, monkeypatch):
    monkeypatch.setattr(storage, "PIECE", 1000)
    content = os.urandom(10_500)
    prefix.write("a", content)
    proxy.served = 0
    proxy.planned.extend([None, Fault.SHORT, None, Fault.BROKEN])
    assert prefix.read("a") == content
    assert (proxy.done[Fault.SHORT], proxy.done[Fault.BROKEN]) == (1, 1)
    assert proxy.served == 1 + 11 + 2  # the size, the pieces, and two pieces again: not the file


def test_everything_lives_through_refusals(proxy, bare):
    uses = [
        lambda: bare.write("a/b", b"1"),
        lambda: bare.create("a/c", b"2"),
        lambda: bare.read("a/b"),
        lambda: bare.read_range("a/c", 0, 1),
        lambda: bare.exists("a/c"),
        lambda: bare.names("a"),
        lambda: sorted(bare.files()),
        lambda: bare.remove("a"),
    ]
    for fault in REFUSING:
        results = []
        for use in uses:
            proxy.planned.extend([fault] * 2)
            results.append(use())
        assert results == [None, None, b"1", b"2", True, ["b", "c"], ["a/b", "a/c"], None]
        assert proxy.done[fault] == 2 * len(uses)
        assert bare.names("a") == []


def test_an_answer_that_does_not_come_in_time_is_asked_for_again(proxy, prefix):
    prefix.write("a", b"1")
    config = {"read_timeout": 0.3, "retries": {"total_max_attempts": 1}}
    fs = S3FileSystem(**{**prefix.fs.storage_options, "config_kwargs": config})
    hurried = replace(prefix, fs=without_own_loop(fs))
    assert hurried.read_range("a", 0, 1) == b"1"
    proxy.delay = 0.6
    proxy.planned.append(Fault.LATE)
    assert hurried.read_range("a", 0, 1) == b"1"
    assert proxy.done[Fault.LATE] == 1


def test_the_tries_of_the_clients_do_not_multiply(proxy, prefix):
    proxy.shares = {Fault.SLOW_DOWN: 1.0}
    once = replace(prefix, patience=replace(HASTY, limit=0.0))
    for use, tries in ((lambda: once.write("a", b"1"), 3), (lambda: once.read_range("a", 0, 1), 1)):
        proxy.served = 0
        with pytest.raises(RunError, match="reduce your request rate"):
            use()
        assert proxy.served == tries


def test_a_local_file_is_tried_once(tmp_path, monkeypatch):
    (tmp_path / "a").touch()
    tries = []
    (tmp_path / "a").write_bytes(b"1")

    def slow(self, path, **_):
        tries.append(path)
        raise TimeoutError("the disk sleeps")

    monkeypatch.setattr(LocalFileSystem, "cat_file", slow)
    with pytest.raises(UserError, match="the disk sleeps"):
        open_prefix(str(tmp_path), "data.url").read("a")
    assert len(tries) == 1


def test_what_is_missing_or_denied_is_not_tried_again(proxy, prefix):
    prefix.write("a", b"1")
    for use in (prefix.read, lambda name: prefix.read_range(name, 0, 1)):
        proxy.served = 0
        with pytest.raises(FileNotFoundError):
            use("b")
        assert proxy.served <= 2  # S3 has no word for "is a folder": a listing is the second
    proxy.shares, proxy.served = {Fault.DENIED: 1.0}, 0
    with pytest.raises(UserError, match=r"cannot be read \(Access Denied\)"):
        prefix.read_range("a", 0, 1)
    with pytest.raises(UserError, match=r"cannot be written \(Access Denied\)"):
        prefix.create("c", b"1")
    assert proxy.served == 2


# --- a store that is gone


@pytest.mark.parametrize("watched", [True, False])
def test_a_store_that_has_never_answered_is_soon_given_up_by_whoever_watches(
    watched, proxy, bare, monkeypatch
):
    monkeypatch.setattr(storage, "_answered", set())
    monkeypatch.setattr(retry, "FIRST_CONTACT", 0.2)
    monkeypatch.setattr("sys.stderr.isatty", lambda: watched)
    given_up = pytest.raises(RunError, match=r"data.url=s3:.*does not answer \(.*endpoint")
    with proxy.gone(1.0), given_up if watched else nullcontext():
        bare.write("a", b"1")
    bare.write("a", b"1")  # it answers now, and is waited for from now on
    with proxy.gone(0.5):
        assert bare.read("a") == b"1"


def test_a_store_that_is_gone_is_waited_for_and_this_is_said(proxy, bare, capsys, monkeypatch):
    monkeypatch.setattr(retry, "_last_said", -float("inf"))
    bare.write("a", b"0123456789")
    with proxy.gone(2.0):
        assert bare.read("a") == b"0123456789"
    first, *others, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"data.url={bare.url}: waiting for the store, ")
    assert " s of at most 60 (Could not connect to the endpoint URL" in first
    assert len(others) <= 2.0 / STEADY.say_every + 1
    assert last.startswith(f"data.url={bare.url}: the store answers again after ")


def test_threads_that_wait_together_say_so_once(proxy, bare, capsys, monkeypatch):
    monkeypatch.setattr(retry, "_last_said", -float("inf"))
    hasty = replace(bare, patience=replace(HASTY, say_every=0.6))
    assert not bare.exists("a")  # it has answered once
    proxy.stop()

    def give_up(number):
        with pytest.raises(RunError, match="for the store"):
            hasty.read(f"{number}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(give_up, range(4)))
    assert capsys.readouterr().out.count("waiting for the store") == 1


def test_a_store_that_stays_away_is_given_up(proxy, bare):
    assert not bare.exists("a")  # it has answered once
    proxy.stop()
    hasty = replace(bare, patience=replace(HASTY, limit=0.3))
    for use in (lambda: hasty.read("a"), lambda: hasty.create("a", b"1"), hasty.names):
        with pytest.raises(RunError) as caught:
            use()
        message = str(caught.value)
        assert message.startswith(f"data.url={bare.url}: waited ")
        assert "Could not connect" in message
        assert "run again" in message
        assert "\n" not in message


def test_whoever_waits_can_be_told_to_stop(proxy, bare):
    assert not bare.exists("a")
    proxy.stop()
    told = replace(bare, patience=replace(STEADY, stop=threading.Event()))
    threading.Timer(0.5, told.patience.stop.set).start()
    with pytest.raises(StoppedWaiting, match="stopped while it was waited for"):
        told.read("a")
    with pytest.raises(StoppedWaiting):  # and does not begin to wait again
        told.read("a")


# --- credentials


def test_credentials_that_stay_expired_are_an_error_soon(proxy, prefix):
    prefix.write("a", b"1")
    proxy.expired_keys = {os.environ["AWS_ACCESS_KEY_ID"]}
    for use in (lambda: prefix.read_range("a", 0, 1), lambda: prefix.write("a", b"2")):
        proxy.served = 0
        with pytest.raises(RunError, match=r"The provided token has expired.*your credentials"):
            use()
        assert proxy.served == 2  # with the old client and with the new one
    for use in (prefix.read, prefix.exists):  # a HEAD has no body to give the reason in
        with pytest.raises(UserError, match="your credentials"):
            use("a")


def test_credentials_that_were_renewed_are_read_again(proxy, prefix, monkeypatch):
    renewed = os.environ["AWS_ACCESS_KEY_ID"]
    proxy.expired_keys = {"old"}
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "old")
    with pytest.raises(RunError, match="The provided token has expired"):
        prefix.write("a", b"1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", renewed)
    proxy.done.clear()
    names = [f"{i}" for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: prefix.create(name, name.encode()), names))
        assert list(pool.map(prefix.read, names)) == [name.encode() for name in names]
    assert 1 <= proxy.done[Fault.EXPIRED] <= 4  # once a thread at most, and then never again


# --- create-only puts


def test_a_creator_whose_answer_was_lost_has_won(proxy, bare):
    for planned in (1, 2, 4):
        proxy.planned.extend([Fault.LOST] * planned)
        bare.create(f"{planned}", b"mine")
        assert bare.read(f"{planned}") == b"mine"
    assert proxy.done[Fault.LOST] == 7


def test_a_creator_whose_request_was_lost_has_not_won_if_another_came(proxy, bare):
    bare.create("a", b"theirs")
    for fault in (Fault.LOST, Fault.RESET, Fault.INTERNAL):
        proxy.planned.append(fault)
        with pytest.raises(FileExistsError):
            bare.create("a", b"mine")
    assert bare.read("a") == b"theirs"


def test_of_two_creators_of_the_same_bytes_one_wins(proxy, bare):
    bare.create("a", b"same")
    for faults in ([], [Fault.RESET], [Fault.LOST], [Fault.INTERNAL]):
        proxy.planned.extend(faults)
        with pytest.raises(FileExistsError):
            bare.create("a", b"same")


def test_of_many_creators_with_lost_answers_one_wins(proxy, bare):
    def create(job):
        name, number = job
        try:
            bare.create(name, f"{name} {number}".encode())
        except FileExistsError:
            return None
        return number

    proxy.shares = {Fault.LOST: 0.4, Fault.RESET: 0.1, Fault.INTERNAL: 0.1}
    names = [f"{i}" for i in range(15)]
    jobs = [(name, number) for name in names for number in range(4)]
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(create, jobs))
    proxy.shares = {}
    assert proxy.done[Fault.LOST] > 5
    for i, name in enumerate(names):
        winners = [n for n in numbers[4 * i : 4 * i + 4] if n is not None]
        assert [bare.read(name)] == [f"{name} {winner}".encode() for winner in winners]
