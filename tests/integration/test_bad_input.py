"""A user's mistake is one line that names the setting and the remedy, and changes nothing."""

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.cli import run
from tests.helpers.commands import LDM
from tests.helpers.datasets import files_of, tiny_images
from tests.helpers.engines import forget_engine
from tests.helpers.latents import SMALL_UNET, train_small, write_latents


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of everything."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "empty").mkdir()
    (folder / "file").write_text("a file, no folder")
    tiny_images(folder / "pictures", 3)
    shard = "shard source=folder source.path={0}/pictures out={0}/images"
    assert run(words(shard, folder)) == 0
    write_latents(folder / "latents")
    write_latents(folder / "other_latents", seed=1)
    forget_engine()
    train_small(folder / "latents", folder / "run", "train.samples=8", "engine=single")
    (folder / "run_without_checkpoint").mkdir()
    for name in ("settings.json", "config.yaml"):
        content = (folder / "run" / name).read_bytes()
        (folder / "run_without_checkpoint" / name).write_bytes(content)
    return folder


def words(line: str, folder: Path) -> list[str]:
    return line.format(folder).split()


TRAIN = "data.url={0}/latents out={0}/new train.samples=8 batch_size=8 " + " ".join(SMALL_UNET)
# The same run as the one in the folder, but for what a case adds.
AGAIN = (
    TRAIN.replace("new", "run") + " train.ema_half_life=20 optimizer.warmup_samples=1"
    " engine.precision=fp32 tracking.kind=off"
)

CASES = {
    "unknown command": ("trian", "trian:", "choose one of"),
    "unknown flag": ("train --fast", "--fast:", "--help"),
    "unknown key": (f"train {TRAIN} optimizer.lrr=3", "optimizer.lrr=3:", "optimizer.lr?"),
    "wrong type": (f"train {TRAIN} optimizer.lr=fast", "optimizer.lr=fast:", "learning rate"),
    "missing setting": ("train out={0}/new", "data.url:", "give data.url="),
    "unknown choice": (f"train {TRAIN} engine=zero9", "engine=zero9:", "zero2"),
    "no dataset": (
        f"train {TRAIN} data.url={{0}}/nothing",
        "data.url={0}/nothing:",
        "`ldm shard` or `ldm cache`",
    ),
    "a scheme that is not allowed": (
        f"train {TRAIN} data.url=ftp://host/data",
        "data.url='ftp://host/data':",
        "use a path or one of",
    ),
    "images for latents": (
        f"train {TRAIN} data.url={{0}}/images",
        "data.url={0}/images:",
        "`ldm cache`",
    ),
    "latents for images": (
        "cache data.url={0}/latents autoencoder.url={0}/run out={0}/new",
        "data.url={0}/latents:",
        "`ldm shard`",
    ),
    "empty source": (
        "shard source=folder source.path={0}/empty out={0}/new",
        "source.path={0}/empty:",
        "give images",
    ),
    "missing source": (
        "shard source=folder source.path={0}/nothing out={0}/new",
        "source.path={0}/nothing:",
        "give images",
    ),
    "unwritable out of shard": (
        "shard source=folder source.path={0}/pictures out={0}/file/new",
        "out={0}/file/new:",
        "check the URL",
    ),
    "unwritable out of train": (
        f"train {TRAIN} out={{0}}/file/new",
        "out={0}/file/new:",
        "check the URL",
    ),
    "too little disk": (
        "shard source=folder source.path={0}/pictures out={0}/new size=10000000",
        "out={0}/new:",
        "make room",
    ),
    "batch and ranks": (
        f"train {TRAIN} engine=ddp cluster.processes=2 batch_size=7",
        "batch_size=7:",
        "the nearest is 8",
    ),
    "batch and micro-batch": (
        f"train {TRAIN} micro_batch_size=3",
        "batch_size=8:",
        "the nearest is 9",
    ),
    "single on two ranks": (
        f"train {TRAIN} engine=single cluster.processes=2",
        "engine=single:",
        "choose engine=ddp",
    ),
    "too many levels": (
        f"train {TRAIN} unet.channel_mult=[1,2,2,2,2]",
        "unet.channel_mult=[1, 2, 2, 2, 2]:",
        "give fewer levels",
    ),
    "images too small for the autoencoder": (
        "autoencoder data.url={0}/images out={0}/new train.samples=8 batch_size=8"
        " autoencoder.channel_mult=[1,1,1,1,1,1,1,1] autoencoder.channels=32",
        "data.url={0}/images:",
        "multiples of 128",
    ),
    "no run": (
        "sample checkpoint={0}/empty prompts=[a] out={0}/new",
        "checkpoint={0}/empty:",
        "`ldm train`",
    ),
    "no checkpoint": (
        "sample checkpoint={0}/run_without_checkpoint prompts=[a] out={0}/new",
        "checkpoint={0}/run_without_checkpoint:",
        "has saved one",
    ),
    "a run of another command": (
        "cache data.url={0}/images autoencoder.url={0}/run out={0}/new",
        "autoencoder.url={0}/run:",
        "`ldm autoencoder`",
    ),
    "no prompts": (
        "sample checkpoint={0}/run prompts={0}/nothing.txt out={0}/new",
        "prompts={0}/nothing.txt:",
        "a prompt a line",
    ),
    "report of no run": ("report run={0}/images", "run={0}/images:", "`ldm train`"),
    "a run of other settings in out": (
        f"train {AGAIN} optimizer.lr=0.5",
        "out={0}/run:",
        "choose another out",
    ),
    "a run of other data in out": (
        f"train {AGAIN} data.url={{0}}/other_latents",
        "out={0}/run:",
        "choose another out",
    ),
    "a dataset of another size in out": (
        "shard source=folder source.path={0}/pictures out={0}/images size=32",
        "out={0}/images:",
        "choose another out",
    ),
    "an out that commands cannot pass on": (
        "demo out='{0}/a=b'",
        "out={0}/a=b:",
        "use plain ones",
    ),
}


def last_of_each(arguments: list[str]) -> list[str]:
    """Drops a setting that comes again later."""
    return list({argument.partition("=")[0]: argument for argument in arguments}.values())


def assert_one_line(printed: str, setting: str, remedy: str) -> None:
    assert printed.endswith("\n")
    assert len(printed.splitlines()) == 1, printed
    assert printed.startswith(f"ldm: {setting} "), printed
    assert remedy in printed


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_nothing_changed(
    case: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line, setting, remedy = CASES[case]
    before = files_of(place)
    capsys.readouterr()
    assert run(last_of_each(words(line, place))) == 2
    assert_one_line(capsys.readouterr().err, setting.format(place), remedy)
    assert files_of(place) == before


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


def test_a_port_in_use(place: Path, capsys: pytest.CaptureFixture[str], taken_port: int) -> None:
    before = files_of(place)
    port = [f"cluster.port={taken_port}", "cluster.processes=2", "engine=ddp"]
    assert run(["train", *words(TRAIN, place), *port]) == 2
    assert_one_line(capsys.readouterr().err, f"cluster.port={taken_port}:", "or 0 for a free one")
    assert files_of(place) == before


def test_the_settings_of_what_is_there_are_no_mistake(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Or the refusals above would prove nothing."""
    assert run(["train", *last_of_each(words(AGAIN, place))]) == 0
    assert "is finished (8 samples)" in capsys.readouterr().out


def test_the_process_ends_with_the_line_and_the_code(place: Path) -> None:
    line = words(CASES["empty source"][0], place)
    ended = subprocess.run([*LDM, *line], capture_output=True, text=True)
    assert ended.returncode == 2
    assert_one_line(ended.stderr, f"source.path={place}/empty:", "give images")


def test_two_ranks_say_it_once(place: Path) -> None:
    """What only the ranks can find out."""
    line = words(f"train {AGAIN} optimizer.lr=0.5 engine=ddp cluster.processes=2", place)
    ended = subprocess.run([*LDM, *last_of_each(line)], capture_output=True, text=True)
    assert ended.returncode == 2
    assert_one_line(ended.stderr, f"out={place}/run:", "choose another out")
