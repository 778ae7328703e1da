"""Turns a frozen dataclass into a command line: a field is a flag, and the docstring under it the help.

The field's type parses the flag; a Literal has choices.
"""

import argparse
import ast
import dataclasses
import inspect
import itertools
import textwrap
import types
import typing
from collections.abc import Collection, Iterator
from typing import Any, TypeVar

from atelier.errors import UsageError

Settings = TypeVar("Settings")


def parse_settings(
    kind: type[Settings], arguments: list[str], *, prog: str, description: str, epilog: str = ""
) -> Settings:
    """Fills `kind` from the command line: a flag for every field, and `--debug`, which run_program reads.

    A field that is a dataclass itself has no flag. One with `alone` in its metadata has a flag that may stand without a
    value, and means that one then.
    """
    parser = argparse.ArgumentParser(
        prog=prog, description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_flags(parser, kind)
    parser.add_argument("--debug", action="store_true", help="log every step, and show tracebacks")
    settings = vars(parser.parse_args(arguments))
    settings.pop("debug")
    return kind(**settings)


def names_in(text: str, known: Collection[str], flag: str) -> list[str]:
    """Splits the names in a flag's value at the commas; returns all that are known if there are none.

    Raises UsageError for a name that is not known.
    """
    names = [name.strip() for name in text.split(",") if name.strip()] or list(known)
    if unknown := [name for name in names if name not in known]:
        raise UsageError("BAD_OPTIONS", f"{flag} has {', '.join(unknown)}", f"of {', '.join(known)}")
    return names


def add_flags(parser: argparse.ArgumentParser, kind: type, *, without: Collection[str] = ()) -> None:
    """Adds a flag for every field of the dataclass `kind`, but for those named."""
    hints, helps = typing.get_type_hints(kind), field_docstrings(kind)
    for field in dataclasses.fields(kind):
        if field.name not in without:
            _add_flag(parser, field, hints[field.name], helps[field.name])


def _add_flag(parser: argparse.ArgumentParser, field: "dataclasses.Field[Any]", hint: Any, meaning: str) -> None:
    if dataclasses.is_dataclass(hint):  # fences, which nobody sets on a command line
        return
    flag = "--" + field.name.replace("_", "-")
    if hint is bool:
        parser.add_argument(flag, action="store_true", help=meaning.replace("%", "%%"))
        return
    shown = "" if field.default in (None, "") else f" (default: {field.default})"
    meaning = (meaning + shown).replace("%", "%%")
    if typing.get_origin(hint) is typing.Literal:
        parser.add_argument(flag, choices=typing.get_args(hint), default=field.default, help=meaning)
        return
    kinds = [kind for kind in typing.get_args(hint) or (hint,) if kind is not types.NoneType]
    may_stand_alone: dict[str, Any] = {}
    if "alone" in field.metadata:
        may_stand_alone = {"nargs": "?", "const": field.metadata["alone"]}
    parser.add_argument(flag, type=kinds[0], default=field.default, help=meaning, **may_stand_alone)


def field_docstrings(kind: type) -> dict[str, str]:
    """Maps each annotated field, inherited ones too, to the string literal under it, on one line."""
    docstrings = {}
    for field, docstring in itertools.chain(*(_pairs_of(each) for each in kind.__mro__[-2::-1])):
        if isinstance(field, ast.AnnAssign) and isinstance(docstring, ast.Expr):
            docstrings[ast.unparse(field.target)] = " ".join(ast.literal_eval(docstring.value).split())
    return docstrings


def _pairs_of(kind: type) -> Iterator[tuple[ast.stmt, ast.stmt]]:
    """Yields each statement in the body of a class with the next one."""
    return itertools.pairwise(ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body)  # type: ignore[attr-defined]
