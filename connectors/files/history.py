"""What a reader asks and tells about files that went wrong: failures, repairs, and files that were cleaned up.

A file that failed half-way, with rows of it stored, may be repaired: put there again, whole. It is read on where it broke if
the rows before are the same ones, which a digest of them tells. The repair is noted first, then the ledger gets the new
edition; its positions go on counting as those of the old one. A crash between the two: the file is looked at again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from connectors.files.contents import UNREADABLE
from connectors.files.formats import Format, Raw, decompressed
from connectors.files.journal import FileJournal, journal_rows
from connectors.files.ledger import Ledger
from connectors.files.numbered import NumberedFile, NumberedFiles
from connectors.files.problems import FileProblem
from connectors.files.store import FileChanged, FileGone, FoundFile, Store
from waxlake.stream.clock import utc_now
from waxlake.stream.errors import WaxlakeError

__all__ = ["FileHistory"]


@dataclass(slots=True)
class FileHistory:
    """The past of the files of one source. Used by one thread.

    Args:
        journal: Where it is noted.
        ledger: The reader's ledger.
        store: Where the files are.
        format: Turns bytes into rows.
        format_name: Name of the format.
    """

    journal: FileJournal
    ledger: Ledger
    store: Store
    format: Format
    format_name: str
    _removed: frozenset[int] = field(default_factory=frozenset)
    _asked: set[int] = field(default_factory=set)

    def note_failure(self, problem: FileProblem, error: WaxlakeError) -> None:
        """Note that a file stops the source, and what was read of it; the same failure is noted once. Never raises."""
        file = problem.file
        with contextlib.suppress(WaxlakeError):  # what stopped the source is the error to be told
            known = self.journal.rows((pc.field("kind") == "failed") & (pc.field("number") == file.number))
            said = zip(known.column("edition").to_pylist(), known.column("error").to_pylist(), strict=True)
            if (file.edition, str(error)) in set(said):
                return
            digest = self._digest(file.found, problem.row) if problem.row else None
            row = {"rows": problem.row, "edition": file.edition, "error": str(error), "digest": digest}
            self.journal.note(journal_rows(number=[file.number], kind="failed", at=utc_now(), **row))

    def is_removed(self, number: int) -> bool:
        """Return whether clean-up took a file away; asked when it is not there, or another one is."""
        if number not in self._removed and number not in self._asked:
            self._asked.add(number)
            self.journal.refresh()
            self._removed = self.journal.removed()
        return number in self._removed

    def repaired(self, file: NumberedFile, now: FoundFile, row: int) -> NumberedFile | None:
        """Return the new edition of a file that failed after ``row`` rows were stored; None if those are not its first ones.

        Raises:
            WaxlakeError: The store or the storage does not answer.
        """
        self.journal.refresh()
        where = (pc.field("kind") == "failed") & (pc.field("number") == file.number)
        failures = self.journal.rows(where & (pc.field("edition") == file.edition) & (pc.field("rows") >= row))
        digests = {(f["rows"], f["digest"]) for f in failures.to_pylist() if f["digest"] is not None}
        if not any(self._digest(now, rows) == digest for rows, digest in digests):
            return None
        base = file.edition if file.continues is None else file.continues
        columns = {"edition": file.edition + 1, "continues": base}
        self.journal.note(journal_rows(number=[file.number], kind="repaired", at=utc_now(), **columns))
        edition = self.ledger.replace_edition(file, now)
        return None if edition is None else edition._replace(continues=base)

    def with_repairs(self, files: NumberedFiles) -> NumberedFiles:
        """Return files as they were numbered; those that were repaired know which edition they continue."""
        if not files.editions.any():
            return files
        rows = self.journal.rows(pc.field("kind") == "repaired").to_pylist()
        editions = {files.first + int(i): int(files.editions[i]) for i in np.flatnonzero(files.editions)}
        bases = {row["number"]: row["continues"] for row in rows if editions.get(row["number"]) == row["edition"]}
        return replace(files, continues=bases)

    def _digest(self, found: FoundFile, rows: int) -> str | None:
        """Return a digest of the first rows of a file; None if it has not so many."""
        try:
            opened = self.store.open(found)
        except (FileGone, FileChanged):
            return None
        try:
            stream = decompressed(opened.stream, found.path, self.format_name)
            return _digest(self.format.blocks(stream, 0), rows)
        except UNREADABLE:
            return None
        finally:
            opened.stream.close()


def _digest(blocks: Iterator[Raw], rows: int) -> str | None:
    """Return a digest of the first rows, however they are cut into blocks."""
    import duckdb

    seen, digest = 0, 0
    with duckdb.connect(config={"threads": 1}) as connection:
        while seen < rows:
            raw = next(blocks, None)
            if raw is None:
                return None
            raw = raw.slice(0, rows - seen)
            connection.register("raw", raw if isinstance(raw, pa.Table) else pa.table({"record": raw}))
            query = "SELECT bit_xor(h) FROM (SELECT hash(raw, $seen + row_number() OVER ()) AS h FROM raw)"
            digest ^= connection.execute(query, {"seen": seen}).fetchall()[0][0] or 0
            seen += len(raw)
    return f"{digest:016x}"
