"""Writes tables with labels to one file, in the format that its suffix names; it appears when it is whole."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from atelier.errors import MissingInputError, UsageError

# What stands beside every picture: what the model said, or why it could not.
FIELDS = (
    pa.field("predicted_label", pa.int8()),
    pa.field("predicted_name", pa.string()),
    pa.field("probability", pa.float32()),
    pa.field("model_version", pa.string()),
    pa.field("error", pa.string()),  # null if there is a label
)
NEW_COLUMNS = tuple(field.name for field in FIELDS)
ROWS_OF_A_GROUP = 65_536  # small tables make slow Parquet files


@dataclass(frozen=True, slots=True)
class Row:
    """One picture's new columns."""

    predicted_label: int | None = None
    predicted_name: str | None = None
    probability: float | None = None
    model_version: str | None = None
    error: str | None = None


def with_rows(table: pa.Table, rows: Sequence[Row]) -> pa.Table:
    """Returns the table with the new columns behind its own."""
    for field in FIELDS:
        table = table.append_column(field, pa.array([getattr(row, field.name) for row in rows], field.type))
    return table


class _JsonLines:
    def __init__(self, path: Path, _schema: pa.Schema) -> None:
        self._file = path.open("w", encoding="utf-8")

    def write_table(self, table: pa.Table) -> None:
        self._file.writelines(json.dumps(row, default=str) + "\n" for row in table.to_pylist())

    def close(self) -> None:
        self._file.close()


FORMATS: dict[str, Callable[[Path, pa.Schema], Any]] = {
    ".parquet": pq.ParquetWriter,
    ".csv": pyarrow.csv.CSVWriter,
    ".jsonl": _JsonLines,
}


def check_out(path: Path) -> None:
    """Raises UsageError for a suffix that stands for no format, MissingInputError if the folder does not exist."""
    if path.suffix not in FORMATS:
        raise UsageError("BAD_OUT", f"--out {path} ends in no format that is known", f"end it in {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise MissingInputError("NO_FOLDER", f"{path.parent} does not exist", "make it, or write elsewhere")


@contextmanager
def written(path: Path) -> Iterator[Callable[[pa.Table], None]]:
    """Yields what takes the tables. The file takes its name at the end; if the block fails, there is none."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    gathered: list[pa.Table] = []
    writers: list[Any] = []  # one, once the first table has said what the columns are

    def flush() -> None:
        if gathered:
            table = pa.concat_tables(gathered)
            try:
                writers[:] = writers or [FORMATS[path.suffix](unfinished, table.schema)]
                writers[0].write_table(table)
            except pa.ArrowException as error:  # lists and structs in CSV
                cure = "write .parquet or .jsonl"
                raise UsageError("BAD_OUT", f"{path.suffix} cannot hold these columns", cure, why=str(error)) from None
            gathered.clear()

    def take(table: pa.Table) -> None:
        gathered.append(table)
        if sum(map(len, gathered)) >= ROWS_OF_A_GROUP:
            flush()

    try:
        try:
            yield take
            flush()
        finally:
            for writer in writers:
                writer.close()
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
