"""What one fetch brought: raw records, and the batches that they become once they are decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from connectors.kafka.records import Decoder, Records, Segment
from waxlake.stream.batch import Backlog, MicroBatch

__all__ = ["Fetched", "Piece"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A batch to be: a stretch ``[start, end)`` of one partition and where its records are.

    Attributes:
        partition: Partition key of the source.
        start: Position where the partition stood.
        end: Position after it, gaps included.
        first: Row of its first record.
        last: Row after its last record.
        backlog: What the partition still has to read, or None if unknown.
        is_skipped: Whether the offsets are gone and are skipped on request.
    """

    partition: str
    start: int
    end: int
    first: int = 0
    last: int = 0
    backlog: Backlog | None = None
    is_skipped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """Raw records and the pieces that they are to be cut into.

    Attributes:
        pieces: Adjacent within each partition.
        records: The records that the pieces point into; None if no piece has any.
        segments: Stretches of ``records`` by partition.
    """

    pieces: Sequence[Piece] = ()
    records: Records | None = None
    segments: Sequence[Segment] = ()

    @property
    def size_bytes(self) -> int:
        """Bytes of the record values."""
        return 0 if self.records is None else int(self.records.values.nbytes)

    def batches(self, decoder: Decoder, source: str) -> list[MicroBatch]:
        """Decode the records, all at once, and slice them without a copy.

        Args:
            decoder: Belongs to the calling thread.
            source: Source identity.
        """
        table = decoder.schema.empty_table() if self.records is None else decoder.decode(self.records, self.segments)
        return [
            MicroBatch(
                table=table.slice(piece.first, piece.last - piece.first),
                source=source,
                partition=piece.partition,
                start=piece.start,
                end=piece.end,
                read=piece.last - piece.first,
                backlog=piece.backlog,
                skipped=(piece.start, piece.end) if piece.is_skipped else None,
            )
            for piece in self.pieces
        ]
