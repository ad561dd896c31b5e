"""Micro-batches of a corpus, read ahead by threads; a place in the order is all the state."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Generic, TypeVar

from data.corpus import Corpus
from data.order import rank_places

T = TypeVar("T")
OPENERS = 4  # threads that open shards before they are needed
# Where every sample is a request, threads wait for answers, and a late one holds up its own batch.
WAITING_THREADS = 8


def read_ahead(jobs: Iterable[Callable[[], T]], threads: int) -> Generator[T]:
    """Run jobs on threads, two a thread ahead of the reader, and give their results in order.

    Without threads each job runs when its result is asked for. An error comes out at the place of
    the job that raised it.
    """
    if not threads:
        yield from (job() for job in jobs)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="read-ahead")
    pending: deque[Future[T]] = deque()
    try:
        for job in jobs:
            pending.append(pool.submit(job))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def training_places(
    start: int, batch_size: int, micro_batch_size: int, rank: int, world_size: int
) -> Iterator[range]:
    """The places of a rank's micro-batches, from global batch to global batch, without end.

    Args:
        start: Place of the first global batch: the samples seen so far.
        batch_size: Samples of a global batch.
        micro_batch_size: Samples of a rank's micro-batch.
        rank: This rank.
        world_size: Ranks.
    """
    while True:
        for accumulation_step in range(batch_size // (micro_batch_size * world_size)):
            yield rank_places(start, accumulation_step, micro_batch_size, rank, world_size)
        start += batch_size


class Loader(Generic[T]):
    """A rank's micro-batches from a place of the order on, without end.

    Args:
        corpus: What is read.
        collate: Makes the micro-batch of the samples at some places.
        batch_size: Samples of a global batch.
        micro_batch_size: Samples of a rank's micro-batch.
        rank: This rank.
        world_size: Ranks.
        threads: That read; with none, reading waits for whoever takes a micro-batch.
    """

    def __init__(
        self,
        corpus: Corpus,
        collate: Callable[[Corpus, range], T],
        batch_size: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        threads: int,
    ) -> None:
        self.corpus = corpus
        self.collate = collate
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size
        self.rank = rank
        self.world_size = world_size
        self.threads = threads
        self.place = 0
        self._batches: Generator[T] | None = None

    def state_dict(self) -> dict[str, int]:
        """The place up to which all ranks together have read: all that is needed to go on."""
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a place, whatever the number of ranks and threads then was.

        Raises:
            ValueError: The ranks' micro-batches do not reach that place together.
        """
        step = self.micro_batch_size * self.world_size
        if state["place"] % self.batch_size % step:
            raise ValueError(
                f"place {state['place']} is inside of a step of {self.world_size} ranks of "
                f"{self.micro_batch_size} samples"
            )
        self.close()
        self.place = state["place"]

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._batches is None:
            places = training_places(
                self.place, self.batch_size, self.micro_batch_size, self.rank, self.world_size
            )
            self._batches = batches(self.corpus, self.collate, places, self.threads)
        try:
            batch = next(self._batches)
        except BaseException:
            self.close()  # asked again, it reads the same place again
            raise
        self.place += self.micro_batch_size * self.world_size
        return batch

    def close(self) -> None:
        """End the threads; reading on begins anew at the place."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None


def batches(
    corpus: Corpus, collate: Callable[[Corpus, range], T], places: Iterable[range], threads: int
) -> Generator[T]:
    """Micro-batches at the given places, while threads read the next ones.

    Shards are opened, and fetched where there is a local cache, before their samples are due.
    """
    opener = ThreadPoolExecutor(OPENERS, thread_name_prefix="open-ahead")

    def jobs() -> Iterator[Callable[[], T]]:
        asked: set[tuple[int, int]] = set()
        looked = range(0)
        for part in places:
            if part.start not in looked:
                looked = range(part.start, part.start + corpus.look_every)
                near = own_share_first(corpus.shards_ahead(part.start))
                # Whoever waits for the next block cannot ask for the one behind it.
                far = own_share_first(corpus.shards_ahead(looked.stop))
                for dataset, shard in dict.fromkeys(near + far):
                    if (dataset, shard) not in asked:  # what fails is told where it is needed
                        opener.submit(corpus.datasets[dataset].open_shard, shard)
                asked = {*near, *far}
            yield partial(collate, corpus, part)

    if threads and corpus.by_request:
        threads = max(threads, WAITING_THREADS)
    try:
        yield from read_ahead(jobs(), threads)
    finally:
        opener.shutdown(wait=True, cancel_futures=True)


def own_share_first(wanted: list[T]) -> list[T]:
    """What all ranks of a node want, each rank's own share first: nobody waits for another's."""
    rank = int(os.environ.get("LOCAL_RANK", 0))
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return [wanted[i] for i in sorted(range(len(wanted)), key=lambda i: (i - rank) % ranks != 0)]
