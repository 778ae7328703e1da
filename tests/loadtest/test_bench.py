"""The bench tells the truth about itself: ratios within a repeat, and a count of answers that must add up."""

import json
import shutil
from pathlib import Path

import pytest

from loadtest import bench
from loadtest.bench import BATCHED, SINGLE, Row, check_count
from serving.errors import ProgramError
from tests.conftest import Job


def test_ratios_are_taken_within_a_repeat() -> None:
    row = Row(name="requests/s", target=0.7, served=[80, 10, 160], yardstick=[100, 20, 200])
    assert row.ratios == [0.8, 0.5, 0.8]
    assert "0.80 (0.50 to 0.80)" in str(row)
    assert str(row).endswith("met")


def test_missed_target_is_said() -> None:
    assert str(Row(name="requests/s", target=0.7, served=[60], yardstick=[100])).endswith("MISSED")


@pytest.mark.parametrize("difference", [-1, 1])
def test_answer_too_few_or_too_many_fails_the_run(difference: int) -> None:
    sent = 1 + 4 * (SINGLE.num_requests + BATCHED.num_requests)
    assert check_count(f"atelier: answered {sent} requests, 7 images", repeats=3, scale=1) == sent
    with pytest.raises(ProgramError, match="LOST_ANSWERS"):
        check_count(f"atelier: answered {sent + difference} requests, 7 images", repeats=3, scale=1)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("h2load") is None, reason="needs h2load: apt-get install nghttp2-client")
def test_bench_measures_every_contender(job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "bench.json"
    arguments = ["--repository", str(job.repository), "--repeats", "1", "--scale", "0.02", "--report", str(report)]
    assert bench.main(arguments) == 0
    assert "all of them answered" in capsys.readouterr().out
    rows = json.loads(report.read_text())["rows"]
    assert [len(row["served"]) for row in rows] == [1, 1, 1]
    assert all(row["served"][0] > 0 and row["yardstick"][0] > 0 for row in rows)
