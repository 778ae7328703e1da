"""The columns that stand beside every picture: what the model said, or why it could not."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

FIELDS = (
    pa.field("predicted_label", pa.int8()),
    pa.field("predicted_name", pa.string()),
    pa.field("probability", pa.float32()),
    pa.field("model_version", pa.string()),
    pa.field("error", pa.string()),  # null if there is a label
)
NEW_COLUMNS = tuple(field.name for field in FIELDS)


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
