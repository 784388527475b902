"""Where batches lie between the decision to hand them over and the proof that they were: files beside a ledger's log.

A ledger is a Delta table without rows. Its commits move source positions, as those of any table do, and name the batches that
are staged: so a batch has its number and its very rows for good, whatever its query or its source say later.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.fs as pa_fs
import pyarrow.ipc as pa_ipc
from deltalake import DeltaTable

from waxlake.stream.batch import SourceSpan
from waxlake.stream.delta_table import TableLocation, delta_errors
from waxlake.stream.errors import TerminalError

__all__ = [
    "BATCH_APP_ID",
    "DELIVERED_APP_ID",
    "StagedBatch",
    "Staging",
    "ledger_schema",
    "staged_number",
]

BATCH_APP_ID: Final = "waxlake/batch"
"""Number of the last batch that was decided."""

DELIVERED_APP_ID: Final = "waxlake/delivered"
"""Number of the last batch that was handed over, for all that the ledger knows."""

_STAGED_APP_ID: Final = "waxlake/staged"
_FOLDER: Final = "_staged"  # a vacuum leaves folders with an underscore alone


def ledger_schema() -> pa.Schema:
    """Return the columns of a ledger; it has no rows."""
    return pa.schema([pa.field("batch_id", pa.int64())])


def staged_number(handle: DeltaTable, app: str) -> int:
    """Return a batch number that a ledger holds; 0 for none."""
    return int(handle.transaction_version(app) or 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedBatch:
    """A batch that is decided.

    Attributes:
        number: Its number, from 1, growing by one with each batch of a sink.
        flow: Flow that its rows come from.
        rows: Number of rows.
        file: Name of the file that holds them.
        sources: What of which sources they were made from.
        update_id: Update that decided it.
    """

    number: int
    flow: str
    rows: int
    file: str
    sources: tuple[SourceSpan, ...]
    update_id: str


class Staging:
    """The staged files of one ledger.

    Args:
        ledger: The ledger.
    """

    def __init__(self, ledger: TableLocation) -> None:
        self._label = ledger.label
        self._store: pa_fs.FileSystem = ledger.filesystem()

    def write(
        self,
        rows: Mapping[str, pa.Table],
        *,
        after: int,
        sources: Mapping[str, Sequence[SourceSpan]],
        update_id: str,
    ) -> tuple[list[StagedBatch], dict[str, int]]:
        """Write the rows of each flow as one batch, and what the batches are.

        Args:
            rows: Flow name to its rows, none of them empty.
            after: Number of the last batch.
            sources: Flow name to what its rows were made from.
            update_id: The update.

        Returns:
            The batches, and the app ids that a commit of the ledger has to store for them to be decided.
        """
        key = secrets.randbits(62)
        batches = []
        with delta_errors(f"stage a batch of sink '{self._label}'"):
            self._store.create_dir(_FOLDER, recursive=True)
            for number, (flow, table) in enumerate(rows.items(), after + 1):
                file = f"{key}-{number}.arrow"
                options = pa_ipc.IpcWriteOptions(compression="lz4")
                with self._written(file) as stream, pa_ipc.new_file(stream, table.schema, options=options) as writer:
                    writer.write_table(table)
                batches.append(
                    StagedBatch(
                        number=number,
                        flow=flow,
                        rows=table.num_rows,
                        file=file,
                        sources=tuple(sources.get(flow, ())),
                        update_id=update_id,
                    )
                )
            with self._written(f"{key}.json") as stream:
                stream.write(json.dumps([asdict(batch) for batch in batches]).encode())
        return batches, {BATCH_APP_ID: batches[-1].number, _STAGED_APP_ID: key}

    def pending(self, handle: DeltaTable) -> list[StagedBatch]:
        """Return the batches that the ledger has decided and does not know to be handed over.

        Raises:
            TerminalError: Their files are gone. Not retryable.
        """
        delivered = staged_number(handle, DELIVERED_APP_ID)
        if staged_number(handle, BATCH_APP_ID) <= delivered:
            return []
        key = handle.transaction_version(_STAGED_APP_ID)
        try:
            with (
                delta_errors(f"read the staged batches of sink '{self._label}'"),
                self._store.open_input_stream(f"{_FOLDER}/{key}.json") as stream,
            ):
                found: list[dict[str, Any]] = json.loads(stream.read())
        except TerminalError as error:
            raise self._lost(error) from error
        batches = [
            StagedBatch(**{**values, "sources": tuple(SourceSpan(**span) for span in values["sources"])})
            for values in found
        ]
        return [batch for batch in batches if batch.number > delivered]

    def read(self, batch: StagedBatch) -> pa.Table:
        """Return the rows of a batch.

        Raises:
            TerminalError: Its file is gone. Not retryable.
        """
        try:
            with (
                delta_errors(f"read batch {batch.number} of sink '{self._label}'"),
                self._store.open_input_file(f"{_FOLDER}/{batch.file}") as stream,
            ):
                return pa_ipc.open_file(stream).read_all()
        except TerminalError as error:
            raise self._lost(error) from error

    def files(self) -> set[str]:
        """Return the names of all staged files."""
        with delta_errors(f"look for staged batches of sink '{self._label}'"):
            found = self._store.get_file_info(pa_fs.FileSelector(_FOLDER, allow_not_found=True))
        return {str(info.base_name) for info in found}

    def delete(self, names: Iterable[str]) -> None:
        """Delete staged files; one that is gone is no error."""
        for name in names:
            with contextlib.suppress(TerminalError), delta_errors(f"delete a staged batch of sink '{self._label}'"):
                self._store.delete_file(f"{_FOLDER}/{name}")

    @staticmethod
    def files_of(batches: Iterable[StagedBatch]) -> set[str]:
        """Return the names of the files of batches that were staged together, their manifest included."""
        names = {batch.file for batch in batches}
        return names | {name.split("-")[0] + ".json" for name in names}

    def _written(self, name: str) -> pa.NativeFile:
        # buffered: a store's stream takes the bytes of a buffer, not the object that Arrow would hand it
        return self._store.open_output_stream(f"{_FOLDER}/{name}", buffer_size=1 << 20)

    def _lost(self, error: TerminalError) -> TerminalError:
        return TerminalError(
            f"cannot go on with sink '{self._label}'",
            code="SINK_BATCH_LOST",
            found=f"a batch that was decided and may not have been handed over, and whose rows cannot be read: {error.found}",
            expected=f"its files in the folder {_FOLDER} of the ledger",
            remedy="Restore the folder, or run with --reset-checkpoint for the sink: it then sends everything again",
        )
