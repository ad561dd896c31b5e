"""What our conftest adds to pytest."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import pytest_runtest_makereport


def outcome_of(file: str, report: pytest.TestReport) -> str:
    """What the report of a test in a file comes to."""
    wrapper = pytest_runtest_makereport(SimpleNamespace(path=Path(file)))
    next(wrapper)
    with pytest.raises(StopIteration) as end:
        wrapper.send(report)
    return end.value.value.outcome


def skipped() -> pytest.TestReport:
    return pytest.TestReport("a", ("a", 1, "a"), {}, "skipped", ("a", 1, "needs Slurm"), "setup")


def test_a_real_part_that_is_missing_is_a_failure_where_nothing_may_be_skipped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("LDM_NO_SKIPS", raising=False)
    assert outcome_of("tests/integration/slurm/test_slurm.py", skipped()) == "skipped"
    monkeypatch.setenv("LDM_NO_SKIPS", "1")
    assert outcome_of("tests/integration/slurm/test_slurm.py", skipped()) == "failed"
    assert outcome_of("tests/training/test_gpu.py", skipped()) == "skipped"  # no part to install
    expected = skipped()
    expected.wasxfail = "known"
    assert outcome_of("tests/integration/test_chain.py", expected) == "skipped"
