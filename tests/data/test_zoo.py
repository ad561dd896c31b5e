"""A zoo of bad inputs: none executes, none writes elsewhere, and memory stays under 512 MB."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from data.collate import caption_of, image_of
from data.image import decode_image
from data.sift import SKIPPED
from data.stream import open_dataset
from tests.helpers.tars import PNG
from tests.helpers.zoo import ANIMALS
from tests.helpers.zoo.animal import GOOD, SECRET
from tests.helpers.zoo.keeper import Keeper
from tests.helpers.zoo.urls import SETTINGS, URLS

MEGABYTES = 512
SHARD = ("shard", "size=16", "processes=1")
# How each kind of input comes in.
WAYS = {
    "folder": ("folder", "source=folder"),
    "table": ("table", "source=table"),
    "tar": ("tar", "source=webdataset"),
    "in place": ("tar", "source=webdataset", "source.in_place=true", "source.check=true"),
}
CASES = [(way, animal) for way, (group, *_) in WAYS.items() for animal in ANIMALS[group]]
DATASETS = [(way, animal) for way in ("verify", "read") for animal in ANIMALS["dataset"]]
GIVEN = [(setting, url) for setting in SETTINGS for url in URLS]
_results = {}


@pytest.fixture(scope="session")
def keepers(tmp_path_factory):
    return {way: Keeper(tmp_path_factory.mktemp("zoo")) for way in (*WAYS, "dataset", "urls")}


def _jobs(keeper, way):
    """The command lines of a way, by name, once its animals are in."""
    if way == "urls":
        for setting, url in GIVEN:
            *words, name = SETTINGS[setting]
            yield f"{setting} {url}", [*words, f"{name}'{URLS[url]}'"]
        return
    group = WAYS[way][0] if way in WAYS else way
    for number, animal in enumerate(ANIMALS[group]):
        folder = keeper.folder / "in" / f"{number:03d}"
        folder.mkdir()
        animal.build(folder)
        if way == "dataset":
            for verb in ("verify", "read"):
                yield f"{verb} {animal.name}", [verb, f"data.url={folder}", "decode=true"]
            continue
        source = (*WAYS[way][1:], f"source.path={folder / animal.path}")
        for share in ("0.7", "0") if animal.kind or animal.in_place else ("0.7",):
            settings = (f"out={keeper.folder}/out/{number:03d}-{share}", f"max_bad_share={share}")
            yield f"{share} {animal.name}", [*SHARD, *source, *settings]


@pytest.fixture
def result(keepers):
    """The result of a job; the first asks for all of its way."""

    def of(way, name):
        if way not in _results:
            jobs = list(_jobs(keepers[way], way))
            before = keepers[way].surroundings()
            _results[way] = keepers[way].run(jobs)
            assert keepers[way].surroundings() == before
            assert not keepers[way].holds_secret()
        found = _results[way][name]
        assert found["crimes"] == []
        assert "Traceback" not in found["err"], found["err"]
        assert SECRET not in found["out"] + found["err"]
        assert found["peak"] < MEGABYTES
        return found

    return of


def _id(value):
    return getattr(value, "name", value)


def _refused(found, code, says):
    """One line, printable, that names what is wrong."""
    assert found["code"] == code, found["err"]
    (line,) = found["err"].splitlines()
    assert line.startswith("ldm: ") and line.isprintable() and "secret@" not in line
    assert re.search(says, line), line


@pytest.mark.parametrize(("way", "animal"), CASES, ids=_id)
def test_a_bad_input_is_skipped_or_refused_and_its_neighbours_come_in(way, animal, result, keepers):
    kind, code, reads = animal.kind, animal.code, animal.reads
    if way == "in place" and animal.in_place:
        kind, reads = animal.in_place, 0
    found = result(way, f"0.7 {animal.name}")
    if code:
        _refused(found, code, animal.says)
        return
    assert (found["code"], found["err"]) == (0, "")
    number = [one.name for one in ANIMALS[WAYS[way][0]]].index(animal.name)
    out = keepers[way].folder / "out" / f"{number:03d}-0.7"
    bad = json.loads((out / SKIPPED).read_bytes())["bad"] if (out / SKIPPED).exists() else []
    assert {sample["kind"] for sample in bad} == ({kind} if kind else set())
    if kind:
        assert any(re.search(animal.says, sample["what"]) for sample in bad), bad
        _refused(result(way, f"0 {animal.name}"), 2, animal.says)
    _holds_the_neighbours(out, reads, way)


def _holds_the_neighbours(out: Path, reads: int, way: str) -> None:
    """Each with its own caption, and as many others as told."""
    dataset = open_dataset(str(out), "images")
    samples = [
        dataset.read(number, row)
        for number, shard in enumerate(dataset.manifest.shards)
        for row in range(shard.samples)
    ]
    captions = {caption_of(sample, dataset).strip(): sample for sample in samples}
    assert len(captions) == len(GOOD) + reads
    for number, key in enumerate(GOOD):
        image = image_of(captions.pop(f"caption {key}"))
        assert np.array_equal(image, decode_image(PNG[number]))
    others = ("caption bad", "caption 2", "caption 3")
    assert all(caption.endswith(others) for caption in captions)


@pytest.mark.parametrize(("way", "animal"), DATASETS, ids=_id)
def test_a_dataset_of_others_is_read_right_or_refused(way, animal, result):
    code, says = (animal.code, animal.says) if way == "verify" else animal.read
    found = result("dataset", f"{way} {animal.name}")
    if way == "verify" and code == 1:
        broken = [line for line in found["out"].splitlines() if line.startswith("broken: ")]
        assert (found["code"], found["err"]) == (1, "")
        assert any(re.search(says, line) for line in broken), broken
    elif code:
        _refused(found, code, says)
    else:
        assert (found["code"], found["err"]) == (0, "")


@pytest.mark.parametrize(("setting", "url"), GIVEN)
def test_a_url_of_a_setting_opens_nothing(setting, url, result):
    _refused(result("urls", f"{setting} {url}"), 2, "URL|credentials")


def test_the_zoo_is_large_and_has_no_animal_twice():
    names = [(group, animal.name) for group in ANIMALS for animal in ANIMALS[group]]
    assert len(set(names)) == len(names) >= 60
