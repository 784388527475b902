"""What a commit does to the rows of a table, and how delta-rs is made to write that as one log entry.

Called by the commit protocol, which decides whether it may be written. Each way commits from the held snapshot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties, write_deltalake
from deltalake.transaction import AddAction

from sinks.delta.files import StoredFile

__all__ = ["KEEP_LOG", "Change", "grow"]

KEEP_LOG = PostCommitHookProperties(cleanup_expired_logs=False)  # maintenance does it, once every reader has read it


@dataclass(frozen=True, slots=True)
class Change:
    """What a commit does to the rows: append, or replace some files, or replace everything, or append and add columns.

    Without ``changes_rows``, the new files hold the rows of those that they replace: who follows the table has nothing to read.
    """

    adds: Sequence[AddAction]
    removes: Sequence[StoredFile] = ()
    replacement: pa.Table | None = None
    growth: pa.Table | None = None
    changes_rows: bool = True

    def write(self, handle: DeltaTable, properties: CommitProperties) -> None:
        """Commit it from the held snapshot."""
        if self.replacement is not None:
            _replace(handle, self.replacement, properties)
        elif self.growth is not None:
            grow(handle, self.growth, properties)
        else:
            handle.create_write_transaction(
                [*(file.removal(changes_rows=self.changes_rows) for file in self.removes), *self.adds],
                mode="append",
                schema=handle.schema(),
                partition_by=list(handle.metadata().partition_columns),
                commit_properties=properties,
                post_commithook_properties=KEEP_LOG,
            )


def _replace(handle: DeltaTable, rows: pa.Table, properties: CommitProperties) -> None:
    """Replace the content of the table, schema included, in one commit from the held snapshot."""
    write_deltalake(
        handle,
        rows,
        mode="overwrite",
        schema_mode="overwrite",
        commit_properties=properties,
        post_commithook_properties=KEEP_LOG,
    )


def grow(handle: DeltaTable, rows: pa.Table, properties: CommitProperties) -> None:
    """Append rows and add the columns and nested fields that only they have, in one commit from the held snapshot."""
    write_deltalake(
        handle,
        rows,
        mode="append",
        schema_mode="merge",
        commit_properties=properties,
        post_commithook_properties=KEEP_LOG,
    )
