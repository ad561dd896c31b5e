"""`ldm verify`: which shards this process checks, which it need not, and the account of it."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial

from conf.errors import UserError
from conf.schema import VerifyCommand
from data.claim import claim
from data.image import MAX_BYTES
from data.manifest import (
    MAX_MANIFEST_BYTES,
    NAME,
    canonical_json,
    load_manifest,
    sha256,
)
from data.progress import progress
from data.ranks import Ranks, this_rank
from data.say import say
from data.spec import EMPTY_POOLED
from data.storage import Prefix, open_prefix
from data.verify.index import Checked, unreadable
from data.verify.sample import Fault, drawn_samples, pooled_fault, text_fault
from data.verify.shard import drawn_faults, shard_faults

NOTES = 20  # of a folder


@dataclass(frozen=True, slots=True)
class Task:
    """A shard to be checked: its number, the samples that are, and the work."""

    number: int
    samples: int
    run: Callable[[], tuple[list[Fault], int]]


def verify(config: VerifyCommand) -> int:
    """Check a dataset: every byte of it, or some samples.

    Returns:
        0 if all is as the manifest says, else 1.

    Raises:
        UserError: There is no dataset, or `out` cannot be written or holds something else.
    """
    started = time.perf_counter()
    ranks = this_rank()
    data = _open(config.data.url)
    records = _records(config, data)
    tasks = ranks.own(list(_tasks(config, data)))
    before = {name for name in records.names() if name.endswith(".json")} if records else set()
    due = [task for task in tasks if _record_name(task) not in before]
    faults = [] if ranks.rank else [*_manifest_faults(data), *_empty_text_faults(data)]
    num_bytes = 0
    for fault in faults:
        say(f"broken: {fault}")
    with progress("verify", sum(task.samples for task in due), unit="samples") as meter:
        for task, (found, size) in _results(due, config.threads):
            num_bytes += size
            for fault in found:
                say(f"broken: {fault}")
            if records and not found:
                shard = data.manifest.shards[task.number]
                records.write(_record_name(task), canonical_json(asdict(shard)) + b"\n")
            faults += found
            meter.advance(task.samples)
    if ranks.rank == 0 and not config.samples:
        _say_notes(data)
    if config.out:
        of_rank = "" if ranks.world_size == 1 else f"-{ranks.rank}-of-{ranks.world_size}"
        open_prefix(config.out, "out").write(f"broken{of_rank}.json", _report(data, faults))
    before_now, seconds = len(tasks) - len(due), time.perf_counter() - started
    _say_end(data, ranks, due, before_now, faults, num_bytes, seconds)
    return 1 if faults else 0


def _open(url: str) -> Checked:
    prefix = open_prefix(url, "data.url")
    manifest = load_manifest(prefix, "any")
    tars = prefix if manifest.tars is None else open_prefix(manifest.tars, "data.url")
    return Checked(prefix, tars, manifest)


def _records(config: VerifyCommand, data: Checked) -> Prefix | None:
    """Where the shards that were found whole are recorded, if they are: apart for each content."""
    if config.out is None:
        return None
    out = open_prefix(config.out, "out")
    claim(out, {"kind": "verify"})
    decoded = "-decoded" if config.decode else ""
    return None if config.samples else out / f"whole/{data.manifest.fingerprint}{decoded}"


def _record_name(task: Task) -> str:
    return f"{task.number:06d}.json"  # a name out of a manifest may hold anything


def _tasks(config: VerifyCommand, data: Checked) -> Iterator[Task]:
    shards = data.manifest.shards
    if not config.samples:
        for number, shard in enumerate(shards):
            run = partial(shard_faults, data, shard, config.decode)
            yield Task(number, shard.samples, run)
        return
    counts = [shard.samples for shard in shards]
    for number, rows in drawn_samples(counts, config.samples, config.seed).items():
        yield Task(number, len(rows), partial(drawn_faults, data, shards[number], rows))


def _results(tasks: Sequence[Task], threads: int) -> Iterator[tuple[Task, tuple[list[Fault], int]]]:
    """What the tasks find, in their order."""
    with ThreadPoolExecutor(threads, thread_name_prefix="verify") as pool:
        futures = [pool.submit(task.run) for task in tasks]
        try:
            for task, future in zip(tasks, futures, strict=True):
                yield task, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _manifest_faults(data: Checked) -> list[Fault]:
    """Whether the manifest has other bytes than those that say what it says."""
    if data.prefix.read(NAME, MAX_MANIFEST_BYTES) == data.manifest.to_json():
        return []
    return [Fault(NAME, "flipped", "is not spelt as it was written")]


def _empty_text_faults(data: Checked) -> list[Fault]:
    """What is wrong with what stands for the empty caption, if the dataset has it."""
    spec = data.manifest.text
    if spec is None:
        return []
    faults = _pinned_faults(data, spec.empty, spec.empty_sha256, lambda c: text_fault(c, spec))
    if spec.pooled_members:
        pinned = spec.empty_pooled_sha256
        faults += _pinned_faults(data, EMPTY_POOLED, pinned, lambda c: pooled_fault(c, spec))
    return faults


def _pinned_faults(
    data: Checked, name: str, pinned: str, wrong_with: Callable[[bytes], str | None]
) -> list[Fault]:
    """What is wrong with a file that the manifest pins."""
    try:
        content = data.prefix.read(name, MAX_BYTES)
    except FileNotFoundError:
        return [Fault(name, "missing", "is missing")]
    except UserError as error:
        return [unreadable(data.prefix, name, error)]
    found = sha256(content)
    if found != pinned:
        what, hashes = "is not what the manifest pins", (pinned, found)
        return [Fault(name, "flipped", what, None, None, None, None, *hashes)]
    wrong = wrong_with(content)
    return [Fault(name, "undecodable", wrong)] if wrong else []


def _say_notes(data: Checked) -> None:
    """Name the files that look like the dataset's and are not."""
    known = {name for shard in data.manifest.shards for name in (shard.tar, shard.index)}
    for folder, ending in (("shards", ""), ("index", ".npy")):
        names = (f"{folder}/{name}" for name in data.prefix.names(folder) if name.endswith(ending))
        foreign = [name for name in names if name not in known]
        for name in foreign[:NOTES]:
            say(f"note: {name!r} is not in the manifest")
        if len(foreign) > NOTES:
            say(f"note: nor are {len(foreign) - NOTES:,} more in {folder}/")


def _report(data: Checked, faults: list[Fault]) -> bytes:
    broken = [
        {name: value for name, value in asdict(fault).items() if value is not None}
        for fault in faults
    ]
    content = {"fingerprint": data.manifest.fingerprint, "broken": broken}
    return json.dumps(content, indent=1).encode() + b"\n"


def _say_end(
    data: Checked,
    ranks: Ranks,
    done: list[Task],
    before: int,
    faults: list[Fault],
    num_bytes: int,
    seconds: float,
) -> None:
    samples = sum(task.samples for task in done)
    broken = len({fault.file for fault in faults})
    # A batch script under Slurm is rank 0 of all its tasks, whether or not others run.
    which = f"rank {ranks.rank} of {ranks.world_size}: " if ranks.world_size > 1 else ""
    megabytes = num_bytes / 1e6
    say(
        f"verify: {which}{samples:,} samples in {len(done):,} shards checked now, "
        f"{before:,} shards before, {broken:,} files broken; "
        f"{megabytes:,.1f} MB in {seconds:,.1f} s ({megabytes / max(seconds, 1e-9):,.0f} MB/s); "
        f"fingerprint {data.manifest.fingerprint}"
    )
