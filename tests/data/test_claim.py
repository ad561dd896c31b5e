import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from conf.errors import UserError
from data.claim import SETTINGS, claim, claimed, first_difference
from data.storage import open_prefix

WORK = {"kind": "images", "size": 64, "source": {"kind": "folder", "files": ["a", "b"]}}


def test_a_free_prefix_is_taken_once(url):
    out = open_prefix(url, "out")
    assert claimed(out) is None
    assert claim(out, WORK) is True
    assert claim(out, dict(reversed(WORK.items()))) is False
    assert claimed(out) == WORK


def test_other_work_is_refused_by_the_name_of_the_difference(url):
    out = open_prefix(url, "out")
    claim(out, WORK)
    before = out.read(SETTINGS)
    with pytest.raises(UserError) as caught:
        claim(out, {**WORK, "size": 32})
    assert caught.value.setting == f"out={url}"
    assert caught.value.wrong == "holds other work: there size is 64, asked for was 32"
    assert "choose another out" in caught.value.remedy
    assert out.read(SETTINGS) == before


@pytest.mark.parametrize("place", ["local", "s3"])
def test_of_different_work_at_once_one_is_refused(request, tmp_path, place):
    url = str(tmp_path) if place == "local" else request.getfixturevalue("s3_prefix")

    def take(size):
        try:
            return claim(open_prefix(url, "out"), {"size": size})
        except UserError:
            return None

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(take, (1, 2)), key=str) == [None, True]


def test_all_processes_of_one_work_may_claim_it(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda _: claim(open_prefix(str(tmp_path), "out"), WORK), range(8)))
    assert taken.count(True) == 1
    assert json.loads((tmp_path / SETTINGS).read_bytes()) == WORK


@pytest.mark.parametrize(
    ("there", "wanted", "difference"),
    [
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}, ("b", 2, 3)),
        ({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 2}}}, ("a.b.c", 1, 2)),
        ({"a": 1}, {}, ("a", 1, None)),
        ({}, {"b": {"c": 1}}, ("b", None, {"c": 1})),
        ({"a": 1}, {"a": {"b": 1}}, ("a", 1, {"b": 1})),
        ({"b": 1, "a": 1}, {"b": 2, "a": 2}, ("a", 1, 2)),
        ({"a": [1, 2]}, {"a": [1, 3]}, ("a", [1, 2], [1, 3])),
    ],
)
def test_the_first_difference_has_a_dotted_name(there, wanted, difference):
    assert first_difference(there, wanted) == difference


def test_long_values_are_cut(tmp_path):
    out = open_prefix(str(tmp_path), "out")
    claim(out, {"files": ["a"] * 1000})
    with pytest.raises(UserError) as caught:
        claim(out, {"files": ["b"] * 1000})
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"text"', b"\xff", b"[" * 10**5])
def test_a_claim_that_was_damaged_is_named(tmp_path, content):
    out = open_prefix(str(tmp_path), "out")
    out.write(SETTINGS, content)
    for use in (lambda: claim(out, WORK), lambda: claimed(out)):
        with pytest.raises(UserError, match=rf"{tmp_path}/{SETTINGS}: is damaged"):
            use()
