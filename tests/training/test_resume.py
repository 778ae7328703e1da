"""`--resume`: the command printed after Ctrl-C works as it is; a run changes its length if nothing depends on it."""

import dataclasses
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from atelier.program import run_program
from tests.training.conftest import ROOT, WhenPrinted, call_trainer, in_two_processes, printed_by
from training.run_record import load_record
from training.train import main

Train = Callable[..., int]
Capture = pytest.CaptureFixture[str]
HERE = ("--device", "cpu", "--threads", "1", "--unverified-data", "--no-figures")


def send_sigint() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.fixture
def ctrl_c(when_printed: WhenPrinted) -> Callable[[int], None]:
    """`ctrl_c(n)`: the terminal sends SIGINT when the trainer has printed its n-th epoch from now on."""
    return lambda number: when_printed("epoch ", send_sigint, number)


def digest_of(directory: Path) -> str:
    return load_record(directory)[1]


def printed_command(error: str) -> str:
    """The command in the brackets of the last line, `... (<command> goes on from there)`."""
    last = error.splitlines()[-1]
    assert last.startswith("error: INTERRUPTED: SIGINT in ") and last.endswith(" goes on from there)"), last
    return last.rpartition(" epochs (")[2].removesuffix(" goes on from there)")


def arguments_of(command: str) -> list[str]:
    """What the trainer gets when `command` is run."""
    words = shlex.split(command)
    assert words[:2] == ["make", "train"] and words[2].startswith("ARGS=")
    return shlex.split(words[2].removeprefix("ARGS=").replace("$$", "$"))


def paste(command: str, directory: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    """Runs `command` in a shell. Make is told that nothing needs setting up, whichever environment the tests have."""
    environment = {**os.environ, "MAKEFLAGS": f"SETUP= RUN={sys.executable}", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, shell=True, cwd=directory, env=environment, capture_output=True, text=True)  # noqa: S602


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "stopped_after"),
    [
        (["--epochs", "3"], 1),
        (["--epochs", "2", "--seeds", "2", "--seed", "4"], 3),  # in the second seed's run
        (["--recipe", "modern", "--epochs", "3", "--set", "num_validation_images=100", "--precision", "bf16"], 2),
        (["--recipe", "classic", "--epochs", "2", "--set", "pooling=max", "--set", "batch_size=64"], 1),
    ],
)
def test_command_printed_after_ctrl_c_ends_with_the_weights_of_an_undisturbed_run(
    data_dir: Path,
    tmp_path: Path,
    ctrl_c: Callable[[int], None],
    capsys: Capture,
    options: list[str],
    stopped_after: int,
) -> None:
    undisturbed, stopped = tmp_path / "undisturbed", tmp_path / "it's $HOME"
    options = [*options, *HERE, "--data-dir", str(data_dir)]
    assert run_program(main, [*options, "--checkpoint-dir", str(undisturbed)]) == 0
    ctrl_c(stopped_after)
    assert run_program(main, [*options, "--checkpoint-dir", str(stopped)]) == os.EX_TEMPFAIL
    assert run_program(main, arguments_of(printed_command(capsys.readouterr().err))) == 0
    assert "resuming" in capsys.readouterr().out
    for path in undisturbed.rglob("checkpoint.json"):
        assert digest_of(stopped / path.parent.relative_to(undisturbed)) == digest_of(path.parent)


@pytest.mark.slow
def test_command_printed_after_ctrl_c_can_be_pasted_into_a_shell(
    data_dir: Path, tmp_path: Path, ctrl_c: Callable[[int], None], capsys: Capture
) -> None:
    stopped = tmp_path / "it's $HOME"
    options = ["--epochs", "3", "--set", "max_shift=1", *HERE, "--data-dir", str(data_dir)]
    ctrl_c(1)
    assert run_program(main, [*options, "--checkpoint-dir", str(stopped)]) == os.EX_TEMPFAIL
    done = paste(printed_command(capsys.readouterr().err))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resuming" in done.stdout
    assert load_record(stopped)[0].completed_epochs == 3


@pytest.mark.slow
def test_command_printed_outside_the_project_needs_no_makefile(
    data_dir: Path, tmp_path: Path, ctrl_c: Callable[[int], None], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ctrl_c(1)
    assert run_program(main, [*HERE, "--data-dir", str(data_dir), "--epochs", "3"]) == os.EX_TEMPFAIL
    command = printed_command(capsys.readouterr().err)
    assert shlex.split(command)[1:3] == ["-m", "training"]
    assert "--checkpoint-dir" not in command  # it is the default one
    assert paste(command, tmp_path).returncode == 0
    assert load_record(tmp_path / "artifacts" / "checkpoint")[0].completed_epochs == 3


def test_resume_alone_takes_recipe_seed_and_precision_from_the_checkpoint(
    data_dir: Path, run_dir: Path, ctrl_c: Callable[[int], None]
) -> None:
    """As `make export` calls it, on what Ctrl-C left."""
    where = [*HERE, "--data-dir", str(data_dir), "--checkpoint-dir", str(run_dir)]
    what = ["--recipe", "classic", "--epochs", "3", "--seed", "5", "--precision", "bf16", "--set", "batch_size=100"]
    ctrl_c(1)
    assert run_program(main, [*where, *what]) == os.EX_TEMPFAIL
    begun = load_record(run_dir)[0]
    assert begun.completed_epochs == 1
    assert run_program(main, [*where, "--resume"]) == 0
    record = load_record(run_dir)[0]
    assert (record.completed_epochs, record.recipe, record.seed, record.precision) == (3, begun.recipe, 5, "bf16")


def test_seed_that_has_another_run_is_trained_anew_after_the_first_was_resumed(
    data_dir: Path, run_dir: Path, ctrl_c: Callable[[int], None], capsys: Capture
) -> None:
    where = [*HERE, "--data-dir", str(data_dir), "--checkpoint-dir", str(run_dir), "--seeds", "2"]
    assert run_program(main, [*where, "--epochs", "1"]) == 0
    ctrl_c(1)
    assert run_program(main, [*where, "--epochs", "2", "--learning-rate", "0.1"]) == os.EX_TEMPFAIL
    assert run_program(main, arguments_of(printed_command(capsys.readouterr().err))) == 0
    printed = capsys.readouterr().out
    assert "resuming: " in printed and "of another run (learning_rate 0.1 != 0.9" in printed
    assert [load_record(path)[0].recipe.learning_rate for path in (run_dir, run_dir / "seed-1")] == [0.1, 0.1]


@pytest.mark.slow
def test_machine_without_the_checkpoint_is_told_by_the_first_one_what_to_train(
    data_dir: Path, tmp_path: Path, ctrl_c: Callable[[int], None], capsys: Capture
) -> None:
    """Two machines are two processes here that are told so, each with a directory of its own."""
    where = ["--data-dir", str(data_dir), *HERE]
    ctrl_c(1)
    what = ["--recipe", "classic", "--set", "batch_size=100", "--epochs", "2", "--checkpoint-dir", str(tmp_path / "0")]
    assert run_program(main, [*where, *what]) == os.EX_TEMPFAIL
    resumed = [["training", *where, "--resume", "--checkpoint-dir", str(tmp_path / rank)] for rank in ("0", "1")]
    printed_by(in_two_processes(*resumed, num_machines=2))
    record = load_record(tmp_path / "0")[0]
    assert (record.recipe.name, record.completed_epochs) == ("classic", 2)


# --- Options that contradict the checkpoint --------------------------------------------------------------------------


@pytest.mark.fault("T11")
@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--seed", "1"], "seed 1 != 0"),
        (["--precision", "bf16"], "precision bf16 != fp32"),
        (["--set", "pooling=max"], "pooling max != avg"),
        (["--set", "batch_size=64"], "batch_size 64 != 256"),
        (["--recipe", "classic"], "name classic != tutorial; architecture classic != tutorial"),
        (["--epochs", "1"], "num_epochs 1 != 2, and 2 epochs are done already"),
    ],
)
def test_option_that_contradicts_the_checkpoint_is_refused_with_both_values_and_a_cure_that_works(
    trained_dir: Path, data_dir: Path, capsys: Capture, options: list[str], complaint: str
) -> None:
    before = digest_of(trained_dir)
    where = ["--checkpoint-dir", str(trained_dir), "--data-dir", str(data_dir), *HERE]
    assert run_program(main, [*where, "--resume", *options]) == os.EX_CONFIG
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: CONFIG_MISMATCH: cannot resume the run in {trained_dir}: {complaint}")
    cure = error.rpartition(" (")[2]
    assert cure.endswith("takes these from the checkpoint; --again in place of --resume starts a new run there)")
    assert run_program(main, arguments_of(cure.partition(" takes these")[0])) == 0
    assert "is trained already" in capsys.readouterr().out
    assert digest_of(trained_dir) == before


def test_recipe_that_the_checkpoint_has_may_be_named_without_its_other_options(
    trained_dir: Path, data_dir: Path
) -> None:
    where = ["--checkpoint-dir", str(trained_dir), "--data-dir", str(data_dir), *HERE]
    assert run_program(main, [*where, "--resume", "--recipe", "tutorial"]) == 0
    assert load_record(trained_dir)[0].recipe.num_epochs == 2


# --- Another length --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [[], ["--set", "flip=true", "--set", "weight_decay=1e-3", "--set", "num_validation_images=100"]]
)
def test_finished_run_is_lengthened_to_the_weights_of_an_unbroken_one(
    data_dir: Path, run_dir: Path, tmp_path: Path, capsys: Capture, options: list[str]
) -> None:
    assert call_trainer(data_dir, run_dir, *options, "--epochs", "2") == 0
    assert call_trainer(data_dir, run_dir, "--epochs", "4", "--resume") == 0
    assert "resuming: " in capsys.readouterr().out
    assert call_trainer(data_dir, tmp_path / "unbroken", *options, "--epochs", "4") == 0
    record, digest, _ = load_record(run_dir)
    unbroken, wanted, _ = load_record(tmp_path / "unbroken")
    assert (digest, record.recipe) == (wanted, unbroken.recipe)
    losses = [[metrics.train_loss for metrics in each.metrics] for each in (record, unbroken)]
    assert losses[0] == losses[1] and len(losses[0]) == 4


def test_interrupted_run_with_momentum_is_lengthened_to_the_weights_of_an_unbroken_one(
    data_dir: Path, run_dir: Path, tmp_path: Path, ctrl_c: Callable[[int], None]
) -> None:
    options = ("--set", "momentum=0.5", "--set", "average_decay=0.9")
    ctrl_c(1)
    assert call_trainer(data_dir, run_dir, *options) == os.EX_TEMPFAIL
    assert call_trainer(data_dir, run_dir, "--epochs", "3", "--resume") == 0
    assert call_trainer(data_dir, tmp_path / "unbroken", *options, "--epochs", "3") == 0
    assert digest_of(run_dir) == digest_of(tmp_path / "unbroken")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--set", "schedule=cosine"], "schedule cosine spreads its step sizes over all epochs"),
        (["--set", "schedule=steps"], "schedule steps spreads its step sizes over all epochs"),
        (["--set", "momentum=0.5"], "what momentum 0.5 remembers is not kept when a run ends"),
        (["--set", "average_decay=0.9"], "what average_decay 0.9 remembers is not kept when a run ends"),
    ],
)
def test_finished_run_whose_weights_depend_on_its_length_is_not_lengthened(
    data_dir: Path, run_dir: Path, capsys: Capture, options: list[str], reason: str
) -> None:
    assert call_trainer(data_dir, run_dir, *options, "--learning-rate", "0.01") == 0
    before = digest_of(run_dir)
    assert call_trainer(data_dir, run_dir, "--epochs", "3", "--resume") == os.EX_CONFIG
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"CONFIG_MISMATCH: cannot resume the run in {run_dir}: num_epochs 3 != 2, and {reason} (" in error
    assert digest_of(run_dir) == before


def test_ctrl_c_while_a_run_is_lengthened_prints_its_new_length(
    trained_dir: Path, data_dir: Path, tmp_path: Path, when_printed: WhenPrinted, capsys: Capture
) -> None:
    """Until its first new epoch is done the checkpoint has the old one."""
    when_printed("resuming: ", send_sigint)
    assert call_trainer(data_dir, trained_dir, "--epochs", "3", "--resume") == os.EX_TEMPFAIL
    assert run_program(main, arguments_of(printed_command(capsys.readouterr().err))) == 0
    assert call_trainer(data_dir, tmp_path / "unbroken", "--epochs", "3") == 0
    assert digest_of(trained_dir) == digest_of(tmp_path / "unbroken")


def test_run_that_could_be_lengthened_says_so_before_it_starts_anew(
    trained_dir: Path, train: Train, capsys: Capture
) -> None:
    assert train("--epochs", "3") == 0
    assert "starting anew: " in (printed := capsys.readouterr().out)
    assert "has 2 of 2 epochs; --resume would go on from there" in printed


def test_every_epoch_of_a_lengthened_run_is_in_its_record(trained_dir: Path, train: Train) -> None:
    before = load_record(trained_dir)[0]
    assert train("--epochs", "3", "--resume") == 0
    record = load_record(trained_dir)[0]
    assert record.metrics[:2] == before.metrics
    assert record.wall_seconds > before.wall_seconds
    assert record.recipe == dataclasses.replace(before.recipe, num_epochs=3)
