"""The bench tells the truth about itself: ratios within a repeat, and a count of answers that must add up."""

import json
import shutil
from pathlib import Path

import pytest

from atelier.client import Client
from atelier.errors import ProgramError
from loadtest.bench import run as bench
from loadtest.bench.contenders import check_count, serving
from loadtest.bench.rows import Row, table
from loadtest.bench.training_speed import training_rates
from tests.conftest import Job
from tests.serving.fake_backend import image
from training.dataset import FashionMNIST


def row(**fields: object) -> Row:
    return Row(**{"name": "speed", "unit": "requests/s", **fields})  # type: ignore[arg-type]


def test_ratios_are_taken_within_a_repeat() -> None:
    ours = row(target=0.7, ours=[80, 10, 160], yardstick=[100, 20, 200], yardstick_name="echo")
    assert ours.values == [0.8, 0.5, 0.8]
    assert ours.cells()[3:] == ("0.80 (0.50 to 0.80)", "at least 0.7: met")


def test_missed_target_is_said() -> None:
    assert row(target=0.7, ours=[60], yardstick=[100]).cells()[4] == "at least 0.7: MISSED"
    assert row(target=1.5, ours=[1.6], is_limit=True).cells()[4] == "at most 1.5: MISSED"
    assert row(target=1.5, ours=[1.4], is_limit=True).is_met


def test_row_without_a_target_gives_no_verdict() -> None:
    assert row(ours=[1], yardstick=[2]).is_met is None
    assert table([row(ours=[1234.5])]).splitlines()[2].split("|")[2].strip() == "1,234 requests/s"


def test_answer_too_few_or_too_many_fails_the_run(job: Job) -> None:
    with serving(job.repository) as server:
        with Client(server.target) as client:
            for _ in range(3):
                client.classify(image(1))
        with pytest.raises(ProgramError, match="LOST_ANSWERS: 4 requests were sent"):
            check_count(server, 4)
    assert check_count_again(job) == 2


def check_count_again(job: Job) -> int:
    with serving(job.repository) as server:
        with Client(server.target) as client:
            for _ in range(2):
                client.classify(image(1))
        return check_count(server, 2)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("h2load") is None, reason="needs h2load: apt-get install nghttp2-client")
def test_bench_measures_every_contender(job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "bench.json"
    sizes = ["--repeats", "2", "--scale", "0.02", "--training-repeats", "0"]
    assert bench.main(["--repository", str(job.repository), *sizes, "--report", str(report)]) == 0
    assert "all of them answered" in capsys.readouterr().out
    rows = json.loads(report.read_text())["rows"]
    assert len(rows) == 12
    assert all(min(row["ours"]) > 0 for row in rows[:11])
    assert all(len(row["ours"]) == len(row["yardstick"]) == 2 for row in rows[:9])


@pytest.mark.slow
def test_training_is_measured_beside_the_tutorials_loop(data: FashionMNIST) -> None:
    ours, tutorials = training_rates(num_workers=0, num_epochs=1)
    assert ours > tutorials > 100
