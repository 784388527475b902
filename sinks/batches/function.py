"""A user's function as the other side of a sink: called with one batch at a time."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from sinks.batches.staging import StagedBatch
from waxlake.stream.batch import BatchInfo
from waxlake.stream.errors import DefinitionError, TransientError, WaxlakeError

__all__ = ["FunctionHandoff"]


class FunctionHandoff:
    """Calls a function with each batch.

    Args:
        name: Name of the sink.
        function: Called with the rows and what the batch is; returns when the batch is stored for good.
        where: ``file:line`` of the function.

    Guarantee: each batch at least once, and always with the same ``batch_id`` and the same rows.
    """

    def __init__(self, name: str, function: Callable[[pa.Table, BatchInfo], object], where: str) -> None:
        self._name, self._function, self._where = name, function, where

    def open(self, ledger_id: str) -> None:
        """There is nothing to connect to."""

    def has(self, batch: StagedBatch, *, is_first: bool) -> bool:
        """Return False: nobody can tell."""
        return False

    def deliver(self, batch: StagedBatch, rows: pa.Table, attempt: int) -> None:
        """Call the function.

        Raises:
            TransientError: It raised ``ConnectionError``, ``TimeoutError`` or one of ours that may pass. Retryable.
            DefinitionError: It raised anything else. Not retryable.
        """
        info = BatchInfo(
            batch_id=batch.number,
            flow=batch.flow,
            sources=batch.sources,
            update_id=batch.update_id,
            attempt=attempt,
        )
        try:
            self._function(rows, info)
        except WaxlakeError:
            raise
        except (ConnectionError, TimeoutError) as exc:
            raise TransientError(
                f"the function of sink '{self._name}' failed on batch {batch.number}: {type(exc).__name__}: {exc}",
                code="FOREACH_BATCH_AWAY",
                found=f"attempt {attempt}",
                remedy="It is called again with the same batch",
            ) from exc
        except (Exception, SystemExit) as exc:  # whatever a user's function raises is reported as that function's error
            raise DefinitionError(
                f"the function of sink '{self._name}' failed on batch {batch.number}: {type(exc).__name__}: {exc}",
                where=self._where,
                code="FOREACH_BATCH_FAILED",
                found=f"{batch.rows} rows of flow '{batch.flow}', attempt {attempt}",
                remedy="Correct it and run again: it is called with the same batch_id and the same rows",
            ) from exc

    def close(self) -> None:
        """There is nothing to free."""
