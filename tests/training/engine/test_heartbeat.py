"""What a rank leaves in the store that the ranks met at."""

import pytest
from torch.distributed import TCPStore

from tests.helpers.processes import free_ports
from training.engine.heartbeat import Heartbeat
from training.engine.pulse import Phase, Pulse
from training.engine.world import World


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> TCPStore:
    """Where two ranks meet."""
    port = free_ports(1)[0]
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    return TCPStore("127.0.0.1", port, None, True, wait_for_workers=False)


@pytest.mark.parametrize("fails", [False, True])
def test_a_rank_that_is_done_says_so_and_one_that_fails_does_not(
    store: TCPStore, fails: bool
) -> None:
    try:
        with Heartbeat(World(1, 2), 4.0) as heart:
            heart.beat(3, Phase.saving)
            store.wait(["ldm-pulse/0/1"])
            if fails:
                raise ValueError
    except ValueError:
        pass
    assert Pulse.parse(store.get("ldm-pulse/0/1")).done != fails


def test_each_item_is_a_beat_of_the_same_place() -> None:
    heart = Heartbeat(World(0, 1), 0.0)
    heart.beat(3, Phase.computing)
    before = heart._at
    assert list(heart.each("ab")) == ["a", "b"]
    assert heart._at == (3, Phase.computing, before[2] + 2)


def test_one_rank_watches_nothing() -> None:
    with Heartbeat(World(0, 1), 2.0) as heart:
        assert not heart._threads
