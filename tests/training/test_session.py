"""Where a run begins: finished, from its checkpoint, or new."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from atelier.errors import ConfigurationError
from training.config import TrainConfig
from training.run_record import RECORD_NAME, load_record
from training.session import Start, start_of


def config_of(directory: Path, num_epochs: int, **settings: object) -> TrainConfig:
    recipe = dataclasses.replace(load_record(directory)[0].recipe, num_epochs=num_epochs)
    return TrainConfig(recipe=recipe, checkpoint_dir=directory, **settings)  # type: ignore[arg-type] # of several types


def begin(directory: Path, num_epochs: int, **settings: object) -> Start:
    digests = load_record(directory)[0].dataset_digests
    return start_of(config_of(directory, num_epochs, **settings), 0, directory, digests)


def test_run_that_is_there_is_finished_and_its_record_the_answer(finished_run: Path) -> None:
    start = begin(finished_run, num_epochs=2)
    assert start.is_finished and start.record == load_record(finished_run)[0]


def test_longer_run_is_resumed_from_the_record_with_the_new_length(finished_run: Path) -> None:
    start = begin(finished_run, num_epochs=4, resume=True)
    assert start.record is not None and not start.is_finished
    assert (start.record.completed_epochs, start.record.recipe.num_epochs) == (2, 4)
    assert start.note == f"resuming: {finished_run} has 2 of 2 epochs"


@pytest.mark.parametrize(("settings", "words"), [({"again": True}, ""), ({}, "--resume would go on from there")])
def test_run_is_new_unless_it_was_asked_to_go_on(finished_run: Path, settings: dict[str, object], words: str) -> None:
    start = begin(finished_run, num_epochs=4, **settings)
    assert start.record is None and words in start.note


def test_run_without_a_checkpoint_is_new(finished_run: Path, tmp_path: Path) -> None:
    config = config_of(finished_run, num_epochs=2, resume=True)
    assert start_of(config, 0, tmp_path, {}) == Start()
    assert not (tmp_path / RECORD_NAME).exists()


def test_another_run_is_not_resumed_in_the_first_seeds_directory(finished_run: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"CONFIG_MISMATCH: cannot resume .*precision bf16 != fp32"):
        begin(finished_run, num_epochs=2, resume=True, precision="bf16")


def test_the_answer_needs_no_torch() -> None:
    code = "import sys, training.session; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
