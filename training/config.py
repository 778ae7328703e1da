"""The trainer's settings and its command line."""

import argparse
import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atelier.errors import UsageError
from atelier.settings import add_flags, field_docstrings
from training.recipes import RECIPES, Recipe
from training.recovery import record_to_resume
from training.run_record import CHECKPOINT_DIR, find_record, options_for
from training.trainer_process import train_command

PRECISIONS = ("fp32", "tf32", "bf16")
# Fields of the recipe with a flag of their own: `--epochs 3` is `--set num_epochs=3`.
SHORTCUTS = ("learning_rate", "num_epochs")
# Fields of TrainConfig that a command to go on with a run must say again.
SAID_TO_RESUME = ("seeds", "device", "threads", "data_dir", "unverified_data", "no_figures")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of one call of the trainer; only `recipe`, `seed` and the data decide the weights."""

    recipe: Recipe
    """How to train."""

    seed: int = 0
    """Of the initial weights and of the order of the images; with --resume the run's."""

    seeds: int = 1
    """Train so many seeds, from --seed on, and report the spread."""

    device: str = "auto"
    """`auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:<index>`."""

    threads: int = 0
    """Threads on the CPU; 0 leaves the choice to torch."""

    precision: str = "fp32"
    """What the steps compute in: fp32, tf32 (GPUs only) or bf16 (weights stay float32); recorded."""

    data_dir: Path | None = None
    """Where the four files are; without it they are looked for in the usual places, and fetched if need be."""

    unverified_data: bool = False
    """For tests: take any IDX files for Fashion-MNIST."""

    checkpoint_dir: Path = CHECKPOINT_DIR
    """Where the first seed's checkpoint goes; those of further seeds go into its subdirectories `seed-<seed>`."""

    resume: bool = False
    """Go on with the checkpoint's run, if there is one."""

    again: bool = False
    """Train anew what is there already."""

    keep_epochs: bool = False
    """Keep the weights after every epoch too (247 KB each), to be exported, and looked at in the served network."""

    no_figures: bool = False
    """Draw no figures at a run's end: they take about as long as an epoch on a GPU."""

    summary: bool = False
    """Print the layers of the recipe's model, and do nothing else."""

    def __post_init__(self) -> None:
        if self.resume and self.again:
            raise UsageError("BAD_OPTIONS", "--resume goes on with a run, --again starts it anew", "use one of them")
        if self.precision not in PRECISIONS:
            raise UsageError("BAD_OPTIONS", f"--precision is {self.precision!r}", f"one of {', '.join(PRECISIONS)}")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            cure = "it must be auto, cpu, cuda or cuda:<index>"
            raise UsageError("BAD_OPTIONS", f"--device is {self.device!r}", cure)
        for name, least in (("seed", 0), ("seeds", 1), ("threads", 0)):
            if getattr(self, name) < least:
                what = f"--{name} is {getattr(self, name)}"
                raise UsageError("BAD_OPTIONS", what, f"it must be at least {least}")

    @property
    def run_dirs(self) -> dict[int, Path]:
        """Each seed's checkpoint directory. The first seed's is the one to export: no picking by test accuracy."""
        further = range(self.seed + 1, self.seed + self.seeds)
        return {self.seed: self.checkpoint_dir} | {seed: self.checkpoint_dir / f"seed-{seed}" for seed in further}


def resume_command(config: TrainConfig) -> str:
    """Returns the command that goes on with the run of `config`, whose checkpoint knows its recipe, seed and precision.

    It says the rest: where the run lies, where it happens, on which data, and a length that is not saved yet.
    """
    saved, num_epochs = find_record(config.checkpoint_dir), config.recipe.num_epochs
    options: list[object] = ["--resume", *options_for(config.checkpoint_dir)]
    if saved and saved.recipe.num_epochs != num_epochs:
        options += ["--epochs", num_epochs]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in SAID_TO_RESUME and value != field.default:
            flag = f"--{field.name.replace('_', '-')}"
            options += [flag] if value is True else [flag, value]
    return train_command(*options)


EPILOG = """
  python -m training                     the tutorial's run: 10 epochs, seed 0, into artifacts/checkpoint
  python -m training --resume            go on with an interrupted run, to the weights it would have had; its recipe,
                                         seed and precision are the checkpoint's
  python -m training --resume --epochs 30   lengthen it too, finished or not, if its weights allow that (no schedule)
  python -m training --seeds 3           how much of the result is luck: mean and spread over seeds 0, 1, 2
  torchrun --nproc-per-node 4 -m training   the same steps, each shared between four GPUs
  python -m training --summary           the layers: where each shape comes from, parameters, multiply-adds
  python -m training --set architecture=classic --set activation=relu --set pooling=max --learning-rate 0.1
                                         the tutorial's training of another network; the checkpoint says which

Ctrl-C stops after the running step; the checkpoint of the last whole epoch stays. The same recipe, seed, machine and
--threads give the same weights, bit for bit.
"""


def config_from(arguments: list[str]) -> TrainConfig:
    """Reads the command line; `--help` explains it."""
    parser = _parser()
    options = parser.parse_args(arguments)
    begun = record_to_resume(options.checkpoint_dir) if options.resume else None
    if begun:
        parser.set_defaults(seed=begun.seed, precision=begun.precision)
        options = parser.parse_args(arguments)
    if begun and options.recipe in (None, begun.recipe.name):
        recipe = begun.recipe
    else:
        recipe = RECIPES[options.recipe or "tutorial"]
    changes: dict[str, Any] = dict(_setting_from(each, recipe) for each in options.set)
    names = [field.name for field in dataclasses.fields(TrainConfig) if field.name != "recipe"]
    return TrainConfig(
        recipe=dataclasses.replace(recipe, **changes), **{name: getattr(options, name) for name in names}
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training",
        description="Train LeNet-5 on Fashion-MNIST.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = "A recipe of training/recipes.py (tutorial, or with --resume the run's)."
    parser.add_argument("--recipe", choices=RECIPES, help=known)
    fields = "Change any field of the recipe (training/recipes.py); recorded. For two there are flags:"
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help=fields)
    meanings = field_docstrings(Recipe)
    for name in SHORTCUTS:
        flag, assign = f"--{name.removeprefix('num_').replace('_', '-')}", f"{name}={{}}".format
        parser.add_argument(flag, dest="set", action="append", type=assign, metavar="X", help=meanings[name])
    add_flags(parser, TrainConfig, without=("recipe",))
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    return parser


def _setting_from(assignment: str, recipe: Recipe) -> tuple[str, bool | int | float | str]:
    """Turns `flip=true` into ("flip", True), in the field's type. Raises UsageError for what is no field or value."""
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
