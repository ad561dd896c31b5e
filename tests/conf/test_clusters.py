"""Amounts as schedulers write them."""

import pytest

from conf.clusters import slurm_seconds

# Those of sbatch's manual.
TIMES = {
    "90": 90 * 60,
    "1:30": 90,
    "1:30:05": 5405,
    "2-3": 51 * 3600,
    "2-3:04": 51 * 3600 + 240,
    "2-03:04:05": 51 * 3600 + 245,
    "UNLIMITED": None,
    "1:2:3:4": None,
}


@pytest.mark.parametrize("text", TIMES)
def test_a_time_limit_is_read_as_slurm_reads_it(text: str) -> None:
    assert slurm_seconds(text) == TIMES[text]
