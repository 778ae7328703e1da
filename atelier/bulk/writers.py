"""Writes the labelled tables to one file, in the format that its suffix names; it appears when it is whole."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from atelier.errors import MissingInputError, UsageError

ROWS_OF_A_GROUP = 65_536  # small tables make slow Parquet files


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
