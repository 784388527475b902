"""What files there are to read, without recording any; called by the connector for ``waxlake plan``."""

from __future__ import annotations

import time
from collections.abc import Sequence

from connectors.files.ledger import Ledger
from connectors.files.settings import FilesSettings
from connectors.files.store import FoundFile, Store, everything
from waxlake.stream.batch import Backlog
from waxlake.stream.position import RowPosition
from waxlake.stream.preview import SourcePreview
from waxlake.stream.source import SourceRange, SourceState

__all__ = ["preview_files"]


def preview_files(
    settings: FilesSettings, store: Store, ledger: Ledger, *, source: str, name: str, partition: str
) -> SourcePreview:
    """Return what a run would read: files that have a number, and those that would get one.

    Raises:
        TerminalError: A store refuses. Not retryable.
        TransientError: A store does not answer. Retryable.
    """
    found, note = _listed(settings, store)
    if not ledger.exists():
        takes = settings.include_existing_files
        new = Backlog(files=len(found), size_bytes=_size(found)) if takes else Backlog(files=0, size_bytes=0)
        return SourcePreview(state=None, backlog=lambda _, __: new, note=note)
    ledger.refresh()
    oldest_us = ledger.oldest_considered_us(settings.max_file_age, time.time())
    fresh = [file for file in ledger.unknown(found) if file.modified_us >= oldest_us]
    next_number, low = ledger.next_number, ledger.low
    begin = max(low, ledger.begin or 0)

    def backlog(_: str, position: int | None) -> Backlog:
        first = begin if position is None else max(low, RowPosition.unpack(position).major)
        files, size_bytes = ledger.totals(first, next_number) if first < next_number else (0, 0)
        return Backlog(files=files + len(fresh), size_bytes=size_bytes + _size(fresh))

    state = SourceState(
        identity=f"files:{source}@{ledger.table_id}",
        name=name,
        partitions={
            partition: SourceRange(low=RowPosition(low).pack(), high=RowPosition(next_number + len(fresh)).pack())
        },
        begin={partition: RowPosition(begin).pack()},
    )
    return SourcePreview(state=state, backlog=backlog, note=note)


def _listed(settings: FilesSettings, store: Store) -> tuple[list[FoundFile], str]:
    """Return the files of the path as they are now; nothing where they are told by other means than a listing."""
    if settings.manifest is not None or settings.use_notifications:
        return [], "files that were not recorded yet are not counted: a manifest or notifications tell of them"
    oldest_us = int(settings.modified_after.timestamp() * 1e6) + 1 if settings.modified_after is not None else 0
    newest_us = int(settings.modified_before.timestamp() * 1e6) if settings.modified_before else 1 << 62
    blocks = store.list_files(everything, after="", with_empty=True)
    return [file for block in blocks for file in block if oldest_us <= file.modified_us < newest_us], ""


def _size(files: Sequence[FoundFile]) -> int:
    return sum(file.size_bytes for file in files)
