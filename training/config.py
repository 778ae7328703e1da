"""The trainer's settings and its command line."""

import argparse
import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atelier.errors import UsageError
from training.commands import train_command
from training.recipes import ACTIVATIONS, ARCHITECTURES, PADDING_MODES, POOLINGS, RECIPES, Recipe
from training.run_record import CHECKPOINT_DIR, RunRecord, find_record, options_for

PRECISIONS = ("fp32", "tf32", "bf16")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What one call of the trainer is to do; only `recipe`, `seed` and the data decide the weights."""

    recipe: Recipe
    """How to train."""

    seed: int = 0
    """The first (or only) seed: of the initial weights and of the order of the images."""

    num_seeds: int = 1
    """Runs to make, with the seeds `seed`, `seed + 1`, ..."""

    device: str = "auto"
    """`auto` (the first GPU, or else the CPU), `cpu`, `cuda` or `cuda:<index>`."""

    num_threads: int = 0
    """Threads on the CPU; 0 leaves the choice to torch."""

    data_dir: Path | None = None
    """Where the four files are; None looks in the usual places and fetches them if need be."""

    verify_data: bool = True
    """Whether the data must be Fashion-MNIST, byte for byte."""

    checkpoint_dir: Path = CHECKPOINT_DIR
    """Holds the first seed's checkpoint; those of further seeds are in its subdirectories `seed-<seed>`."""

    resume: bool = False
    """Go on from the checkpoint if there is one."""

    again: bool = False
    """Train even where the same run is finished already."""

    precision: str = "fp32"
    """What the steps compute in: fp32, tf32 (GPUs only) or bf16 (weights stay float32); recorded."""

    summary: bool = False
    """Print the layers and do nothing else."""

    def __post_init__(self) -> None:
        if self.resume and self.again:
            raise UsageError("BAD_OPTIONS", "--resume goes on with a run, --again starts it anew", "use one of them")
        if self.precision not in PRECISIONS:
            raise UsageError("BAD_OPTIONS", f"--precision is {self.precision!r}", f"one of {', '.join(PRECISIONS)}")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise UsageError(
                "BAD_OPTIONS", f"--device is {self.device!r}", "it must be auto, cpu, cuda or cuda:<index>"
            )
        for option, value, least in (
            ("--seed", self.seed, 0),
            ("--seeds", self.num_seeds, 1),
            ("--threads", self.num_threads, 0),
        ):
            if value < least:
                raise UsageError("BAD_OPTIONS", f"{option} is {value}", f"it must be at least {least}")

    @property
    def run_dirs(self) -> dict[int, Path]:
        """Each seed's checkpoint directory. The first seed's is the one to export: no picking by test accuracy."""
        further = range(self.seed + 1, self.seed + self.num_seeds)
        return {self.seed: self.checkpoint_dir} | {seed: self.checkpoint_dir / f"seed-{seed}" for seed in further}


def resume_command(config: TrainConfig) -> str:
    """The command that goes on with the run of `config`, whose checkpoint knows its recipe, seed and precision.

    It says the rest: where the run lies, where it happens, on which data, and a length that is not saved yet.
    """
    saved = find_record(config.checkpoint_dir)
    num_epochs = config.recipe.num_epochs
    options: list[object] = ["--resume", *options_for(config.checkpoint_dir)]
    for option, value, usual in (
        ("--epochs", num_epochs, saved.recipe.num_epochs if saved else num_epochs),
        ("--seeds", config.num_seeds, 1),
        ("--device", config.device, "auto"),
        ("--threads", config.num_threads, 0),
        ("--data-dir", config.data_dir, None),
    ):
        options += [] if value == usual else [option, value]
    return train_command(*options, *([] if config.verify_data else ["--unverified-data"]))


EPILOG = """
  python -m training                     the tutorial's run: 10 epochs, seed 0, into artifacts/checkpoint
  python -m training --resume            go on with an interrupted run, to the weights it would have had; its recipe,
                                         seed and precision are the checkpoint's
  python -m training --resume --epochs 30   lengthen it too, finished or not, if its weights allow that (no schedule)
  python -m training --seeds 3           how much of the result is luck: mean and spread over seeds 0, 1, 2
  torchrun --nproc-per-node 4 -m training   the same steps, each shared between four GPUs
  python -m training --summary           the layers: where each shape comes from, parameters, multiply-adds
  python -m training --architecture classic --activation relu --pooling max --learning-rate 0.1
                                         the tutorial's training of another network; the checkpoint says which

Ctrl-C stops after the running step; the checkpoint of the last whole epoch stays. The same recipe, seed, machine and
--threads give the same weights, bit for bit.
"""


def _setting_from(assignment: str, recipe: Recipe) -> tuple[str, bool | int | float | str]:
    """`flip=true` -> ("flip", True), in the field's type. Raises UsageError for what is no field or value."""
    name, _, text = assignment.partition("=")
    fields = [field.name for field in dataclasses.fields(Recipe) if field.name != "name"]
    if name not in fields:
        raise UsageError("BAD_OPTIONS", f"--set {assignment}: a recipe has no {name!r}", f"it has {', '.join(fields)}")
    kind = type(getattr(recipe, name))
    try:
        return name, {"true": True, "false": False}[text] if kind is bool else kind(text)
    except (KeyError, ValueError):
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise UsageError(
            "BAD_OPTIONS", f"--set {assignment}: {text!r} is no value of {name}", f"give {wanted}"
        ) from None


def config_from(arguments: list[str]) -> TrainConfig:
    """Reads the command line; `--help` explains it."""
    parser = argparse.ArgumentParser(
        prog="python -m training",
        description="Train LeNet-5 on Fashion-MNIST.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what, how, run = (parser.add_argument_group(title) for title in ("what to train", "on what", "beginning and end"))
    what.add_argument(
        "--recipe", choices=RECIPES, help="a recipe of training/recipes.py (tutorial, or with --resume the run's)"
    )
    what.add_argument("--architecture", choices=ARCHITECTURES, help="instead of the recipe's; recorded, as these are:")
    what.add_argument("--activation", choices=ACTIVATIONS, help="instead of the recipe's")
    what.add_argument("--pooling", choices=POOLINGS, help="average or maximum of 2x2 pixels, instead of the recipe's")
    what.add_argument("--padding-mode", choices=PADDING_MODES, help="beyond the border: zeros, or its own pixels")
    what.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="any field of the recipe (training/recipes.py)",
    )
    what.add_argument("--learning-rate", type=float, metavar="X", help="instead of the recipe's; recorded")
    what.add_argument("--epochs", type=int, metavar="N", help="instead of the recipe's")
    what.add_argument(
        "--validation-images",
        type=int,
        metavar="N",
        help="put N training images aside to judge by, not the test images",
    )
    what.add_argument("--seed", type=int, metavar="N", help="of weights and order of the images (0, or the run's)")
    what.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="train N seeds from --seed on; report the spread"
    )
    what.add_argument("--summary", action="store_true", help="print the layers of the recipe's model, and stop")
    how.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda or cuda:<index>")
    how.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads (torch's choice)")
    how.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="the four files; default: look for them, or fetch them"
    )
    how.add_argument("--unverified-data", action="store_true", help="for tests: take any IDX files for Fashion-MNIST")
    how.add_argument("--precision", choices=PRECISIONS, help="of the steps (fp32, or the run's); recorded")
    run.add_argument("--checkpoint-dir", type=Path, default=CHECKPOINT_DIR, metavar="DIR", help=f"({CHECKPOINT_DIR})")
    run.add_argument("--resume", action="store_true", help="go on with the checkpoint's run, if there is one")
    run.add_argument("--again", action="store_true", help="train anew what is there already")
    run.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(arguments)
    begun = find_record(options.checkpoint_dir) if options.resume else None
    return TrainConfig(
        recipe=_recipe_from(options, begun),
        seed=_first_given(options.seed, begun.seed if begun else 0),
        num_seeds=options.seeds,
        device=options.device,
        num_threads=options.threads,
        data_dir=options.data_dir,
        verify_data=not options.unverified_data,
        checkpoint_dir=options.checkpoint_dir,
        precision=_first_given(options.precision, begun.precision if begun else "fp32"),
        resume=options.resume,
        again=options.again,
        summary=options.summary,
    )


def _first_given(*values: Any) -> Any:
    return next(value for value in values if value is not None)


def _recipe_from(options: argparse.Namespace, begun: RunRecord | None) -> Recipe:
    """The recipe named, or else that of the run to go on with, and on top of it what other options ask for."""
    recipe = RECIPES[options.recipe or "tutorial"]
    if begun and options.recipe in (None, begun.recipe.name):
        recipe = begun.recipe
    changeable = ("architecture", "activation", "pooling", "padding_mode", "learning_rate")
    changes = {field: value for field in changeable if (value := getattr(options, field)) is not None}
    if options.epochs is not None:
        changes["num_epochs"] = options.epochs
    changes |= dict(_setting_from(assignment, recipe) for assignment in options.set)
    if options.validation_images is not None:
        changes["num_validation_images"] = options.validation_images
    return dataclasses.replace(recipe, **changes)
