"""A job on two hosts, with ZeRO-2 and S3: a host dies, a link is cut, a rank stops."""

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from s3fs import S3FileSystem

from data.storage import open_prefix
from tests.helpers.commands import ENVIRONMENT, Ended, wait_for_end
from tests.helpers.hosts import WHY_NOT, Host, two_hosts
from tests.helpers.latents import SMALL_UNET, adam_moments, assert_equal, write_latents
from tests.helpers.processes import installed_script, log_tail
from tests.helpers.s3 import SeaweedFS, start_seaweedfs
from training.engine.checkpoint import Checkpoint, checkpoint_steps, latest_checkpoint
from training.tracking.files import read_metrics

HANG_SECONDS, GRACE = 5.0, 15.0
SAMPLES, BATCH = 400, 8
SETTINGS = (
    *SMALL_UNET,
    "data.url=s3://lab/latents",
    "engine=zero2",
    "engine.precision=fp32",
    f"batch_size={BATCH}",
    f"train.samples={SAMPLES}",
    "checkpoint.every_samples=40",
    "tracking.kind=off",
    f"tracking.log_every_samples={BATCH}",
    f"guards.hang_seconds={HANG_SECONDS}",
)

pytestmark = [
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
    pytest.mark.timeout(900),  # all runs are made in the fixture
]


@dataclass
class Lab:
    """Both hosts, the store, and what became of the jobs.

    Args:
        folder: Of logs.
        store: In a network that both hosts reach.
        hosts: The first is where ranks meet.
        ended: How both ranks of a disturbed job ended, by what disturbed it.
        took: Seconds from the disturbance to the end of the ranks that could end.
        steps: Updates that the newest checkpoint had seen after each.
    """

    folder: Path
    store: SeaweedFS
    hosts: tuple[Host, Host]
    ended: dict[str, list[Ended]] = field(default_factory=dict)
    took: dict[str, float] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def job(self, run: str, name: str) -> "Iterator[list[tuple[subprocess.Popen[bytes], Path]]]":
        """`ldm train` with a rank on each host, as torchrun starts it; each with its log."""
        first, _ = self.hosts
        environment = {
            **ENVIRONMENT,
            **self.store.environment,
            "GLOO_SOCKET_IFNAME": "eth0",
            "TORCH_CPP_LOG_LEVEL": "ERROR",
            "PYTHONPATH": str(Path.cwd()),
        }
        with ExitStack() as running:
            ranks = []
            for number, host in enumerate(self.hosts):
                log = self.folder / f"{name}-{number}.log"
                command = (
                    installed_script("torchrun"),
                    "--nnodes=2",
                    "--nproc-per-node=1",
                    f"--node-rank={number}",
                    f"--master-addr={first.address}",
                    "--master-port=29400",
                    *("-m", "launch.cli", "train", *SETTINGS, f"out=s3://lab/{run}"),
                )
                ranks.append((running.enter_context(host.running(command, log, environment)), log))
            yield ranks

    def newest(self, run: str) -> int:
        """Updates of the run's newest checkpoint."""
        steps = checkpoint_steps(open_prefix(f"s3://lab/{run}", "out"))
        return int(steps[-1]) if steps else 0

    def finish(self, run: str, name: str) -> None:
        """The same command in peace, to its end."""
        with self.job(run, name) as ranks:
            for process, log in ranks:
                ended = wait_for_end(process, log, 300)
                assert ended.code == 0, ended.output

    def disturb(self, run: str, name: str) -> None:
        """Start the job, disturb it once it has saved something new, and see how it ends."""
        before = self.newest(run)
        with self.job(run, name) as ranks:
            limit = time.monotonic() + 120
            while self.newest(run) <= before:
                for process, log in ranks:
                    assert process.poll() is None, log_tail(log)
                assert time.monotonic() < limit, log_tail(ranks[0][1])
                time.sleep(0.05)
            began = time.monotonic()
            other, log = ranks[1]
            if name == "killed":
                self.hosts[1].crash()
            elif name == "cut":
                self.hosts[1].cut()
            else:
                rank_of(other).send_signal(signal.SIGSTOP)
            alive = ranks[:1] if name != "cut" else ranks
            self.ended[name] = [wait_for_end(process, log, 120) for process, log in alive]
            self.took[name] = time.monotonic() - began
        self.hosts[1].mend()
        self.steps[name] = self.newest(run)


def rank_of(launcher: "subprocess.Popen[bytes]") -> psutil.Process:
    """The rank below a torchrun."""
    below = psutil.Process(launcher.pid).children(recursive=True)
    return next(one for one in below if "launch.cli" in one.cmdline())


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A run that nobody disturbed, and one that everybody did."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "store").mkdir()
    with ExitStack() as undo, pytest.MonkeyPatch.context() as patch:
        here, *hosts = undo.enter_context(two_hosts())
        store = start_seaweedfs(folder / "store", address=here)
        undo.callback(store.stop)
        for name, value in store.environment.items():
            patch.setenv(name, value)
        S3FileSystem.clear_instance_cache()  # they hold clients of another server
        undo.callback(S3FileSystem.clear_instance_cache)
        store.create_bucket("lab")
        write_latents("s3://lab/latents")
        lab = Lab(folder, store, (hosts[0], hosts[1]))
        lab.finish("peaceful", "peaceful")
        for name in ("killed", "cut", "stopped"):
            lab.disturb("disturbed", name)
        lab.finish("disturbed", "rest")
        yield lab


def final(run: str) -> Checkpoint:
    checkpoint = latest_checkpoint(open_prefix(f"s3://lab/{run}", "out"))
    assert checkpoint is not None
    return checkpoint


def test_each_disturbance_came_within_the_run(lab: Lab) -> None:
    """Or the comparison below would say nothing of it."""
    seen = list(lab.steps.values())
    assert seen == sorted(set(seen))
    assert 0 < seen[0] < seen[-1] < SAMPLES // BATCH


@pytest.mark.parametrize("name", ["killed", "cut", "stopped"])
def test_ranks_that_lost_another_end_in_time_and_fail(lab: Lab, name: str) -> None:
    assert lab.took[name] < HANG_SECONDS + GRACE
    assert all(ended.code != 0 for ended in lab.ended[name])


def test_a_stopped_rank_is_named(lab: Lab) -> None:
    (first,) = lab.ended["stopped"]
    assert f"no progress for {HANG_SECONDS:g} s: rank 1" in first.output


def test_a_cut_link_is_named_on_both_sides(lab: Lab) -> None:
    first, second = lab.ended["cut"]
    assert f"no progress for {HANG_SECONDS:g} s: rank 1" in first.output
    assert f"no answer from {lab.hosts[0].address}:29400" in second.output


def test_the_disturbed_run_ends_as_the_peaceful_one_bit_for_bit(lab: Lab) -> None:
    got, wanted = final("disturbed"), final("peaceful")
    assert got.progress == wanted.progress
    assert_equal(got.weights(), wanted.weights())
    assert_equal(got.averages(), wanted.averages())
    assert_equal(adam_moments(got), adam_moments(wanted))


def test_no_sample_is_lost_or_seen_twice(lab: Lab) -> None:
    """Every step is in the metrics once, with the loss that it had in peace."""
    runs = [
        read_metrics(open_prefix(f"s3://lab/{run}", "out")) for run in ("peaceful", "disturbed")
    ]
    places = [[line["samples_seen"] for line in lines] for lines in runs]
    assert places[0] == places[1] == list(range(BATCH, SAMPLES + 1, BATCH))
    assert [line["loss"] for line in runs[0]] == [line["loss"] for line in runs[1]]
