"""What becomes of malformed records: the sign of them beside the rows, and the column that takes their text.

Formats mark them; the reader, which knows the files, drops them or stops.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from connectors.files.options import RecordOptions
from waxlake.stream.errors import SchemaError

__all__ = ["MALFORMED", "CorruptRecords"]

MALFORMED = "\0malformed"  # no schema can hold it


class CorruptRecords:
    """What a source's options say of malformed records.

    Args:
        options: Options of the format.
        schema: Columns to make, the one for the text of malformed records included if it is wanted.

    Raises:
        SchemaError: That column is not STRING. Not retryable.
    """

    def __init__(self, options: RecordOptions, schema: pa.Schema) -> None:
        name = options.column_name_of_corrupt_record
        index = schema.get_field_index(name)
        if index >= 0 and schema.field(index).type != pa.string():
            raise SchemaError(
                f"cannot keep malformed records in column {name!r}",
                code="SCHEMA_TYPE",
                found=f"type {schema.field(index).type}",
                expected="STRING",
                remedy="Declare it STRING, or name another column with column_name_of_corrupt_record",
            )
        self.column = name if index >= 0 else None
        self._is_marked = options.mode != "PERMISSIVE"
        self.is_wanted = self._is_marked or self.column is not None

    def place(self, table: pa.Table, texts: pa.Array) -> pa.Table:
        """Return the rows with the texts of malformed ones in their column, and a mark on each if they do not stay.

        Args:
            table: Rows with every column of the schema.
            texts: Text of each malformed record, NULL for the others.
        """
        if self.column is not None:
            index = table.schema.get_field_index(self.column)
            table = table.set_column(index, table.schema.field(index), texts)
        if self._is_marked:
            table = table.append_column(MALFORMED, pc.is_valid(texts))
        return table
