"""Finds pictures below a folder, or in a column of a Parquet file, and reads them in small tables."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from atelier.bulk.writers import NEW_COLUMNS
from atelier.errors import BadDataError, MissingInputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
ROWS_AT_ONCE = 256
PATH = "path"


@dataclass(frozen=True)
class Folder:
    """Pictures below a folder, by their suffixes, in the order in which the file system has them."""

    path: Path

    def count(self) -> int:
        """Counts the pictures."""
        return sum(1 for _ in self._paths())

    def tables(self) -> Iterator[pa.Table]:
        """Yields the paths below the folder, in tables of one column."""
        paths: list[bytes] = []  # a name may be no UTF-8
        for path in self._paths():
            paths.append(os.fsencode(path.relative_to(self.path)))
            if len(paths) == ROWS_AT_ONCE:
                yield pa.table({PATH: paths})
                paths = []
        if paths:
            yield pa.table({PATH: paths})

    def contents(self, table: pa.Table, max_bytes: int) -> Iterator[bytes | str]:
        """Yields each picture's bytes, or the reason why there are none; none is longer than `max_bytes`."""
        for name in table[PATH].to_pylist():
            try:
                with (self.path / os.fsdecode(name)).open("rb") as file:
                    content = file.read(max_bytes + 1)
            except OSError as error:
                yield f"NO_PICTURE: {error.strerror}"
            else:
                yield content if len(content) <= max_bytes else too_large(max_bytes)

    def kept(self, table: pa.Table) -> pa.Table:
        """Returns the columns that stay beside the labels."""
        return pa.table({PATH: [path.decode(errors="backslashreplace") for path in table[PATH].to_pylist()]})

    def _paths(self) -> Iterator[Path]:
        folders = [self.path]
        while folders:
            with os.scandir(folders.pop()) as entries:  # a name at a time: a folder may have millions
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(Path(entry.path))
                    elif entry.name.lower().endswith(SUFFIXES) and (entry.is_file() or entry.is_symlink()):
                        yield Path(entry.path)


@dataclass(frozen=True)
class ParquetFile:
    """Pictures in a column of a Parquet file, of bytes or as Hugging Face has them; the other columns stay."""

    path: Path
    column: str

    def count(self) -> int:
        """Counts the rows."""
        return int(pq.ParquetFile(self.path).metadata.num_rows)

    def tables(self) -> Iterator[pa.Table]:
        """Yields the rows in small tables."""
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(ROWS_AT_ONCE):
                yield pa.Table.from_batches([batch])

    def contents(self, table: pa.Table, max_bytes: int) -> Iterator[bytes | str]:
        """Yields each picture's bytes, or the reason why there are none; none is longer than `max_bytes`."""
        for value in table[self.column]:
            content = value.as_py()
            content = content.get("bytes") if isinstance(content, dict) else content
            if content is None:
                yield f"NO_PICTURE: the column {self.column} is null here"
            else:
                yield content if len(content) <= max_bytes else too_large(max_bytes)

    def kept(self, table: pa.Table) -> pa.Table:
        """Returns the columns that stay beside the labels."""
        return table.drop_columns([self.column])


Source = Folder | ParquetFile


def source_from(path: Path) -> Source:
    """Opens a folder or a Parquet file. Raises MissingInputError and BadDataError, saying what is wanted."""
    if path.is_dir():
        return Folder(path)
    if not path.exists():
        raise MissingInputError("NO_PICTURES", f"{path} does not exist", "name a folder or a Parquet file")
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        cure = "name a folder of pictures, or a Parquet file"
        raise BadDataError("BAD_PARQUET", f"{path} cannot be read as Parquet", cure, why=str(error)) from None
    return ParquetFile(path, _picture_column(path, schema))


def too_large(max_bytes: int) -> str:
    """Returns the reason for a picture that the server would not take."""
    return f"MESSAGE_TOO_LARGE: the picture has more than {max_bytes} bytes (the server's --max-message-bytes)"


def _picture_column(path: Path, schema: Any) -> str:
    """Returns `image`, or the only column of pictures."""
    columns = [field.name for field in schema if _has_pictures(field.type)]
    column = "image" if "image" in columns else columns[0] if len(columns) == 1 else None
    if column is None:
        what = f"{path} has {len(columns)} columns that may be pictures, of {', '.join(schema.names)}"
        cure = "name the column of encoded pictures `image`: binary, or a struct with bytes"
        raise BadDataError("BAD_PARQUET", what, cure)
    if taken := set(schema.names) & set(NEW_COLUMNS) - {column}:
        what = f"{path} has a column {', '.join(sorted(taken))} already"
        raise BadDataError("BAD_PARQUET", what, "rename it: labels are written under that name")
    return column


def _has_pictures(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _has_pictures(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
