"""Tables from which the older rows of a file leave when it is written anew: what they need; called by the check and the compiler.

The rule: the table has a column, ``file_path`` or what ``replace_column`` names, that holds ``_metadata.file_path``. Rows go by
it, whichever flow brought them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from waxlake.pipeline.definitions import FilesRead
from waxlake.pipeline.graph import Dataset
from waxlake.stream.errors import DefinitionError

if TYPE_CHECKING:
    from waxlake.pipeline.checked import CheckedFlow

__all__ = ["check_replaced_files", "replace_column"]


def replace_column(parts: Sequence[CheckedFlow]) -> str | None:
    """Return the column by which rows of rewritten files leave the table that these flows feed; None if they stay."""
    for part in parts:
        if isinstance(part.read, FilesRead) and part.read.settings.allow_overwrites == "replace":
            return str(part.read.settings.replace_column)
    return None


def check_replaced_files(dataset: Dataset, parts: Sequence[CheckedFlow], schema: pa.Schema) -> None:
    """Stop unless the table names the file of each row, if older rows of files are to leave it.

    Raises:
        DefinitionError: ``REPLACE_COLUMN``. Not retryable.
    """
    column = replace_column(parts)
    if column is None:
        return
    if dataset.definition.is_merged:
        raise DefinitionError(
            f"table '{dataset.name}' cannot replace rows of rewritten files",
            where=dataset.where,
            code="REPLACE_COLUMN",
            found="a table that changes are merged into (AUTO CDC)",
            expected="a table that rows are appended to",
            remedy="Read the files with allow_overwrites='append': the merge takes the newer rows by its keys",
        )
    found = schema.field(column).type if column in schema.names else None
    if found is None or not pa.types.is_string(found):
        raise DefinitionError(
            f"table '{dataset.name}' cannot replace rows of rewritten files",
            where=dataset.where,
            code="REPLACE_COLUMN",
            found=f"columns {', '.join(schema.names)}" if found is None else f"column {column} {found}",
            expected=f"a STRING column '{column}' that holds `_metadata.file_path`",
            remedy=f"Add it, as in .with_columns({column}='_metadata.file_path'), or name yours with replace_column=",
        )
