"""Files with their numbers: one, or a run of them as columns; made by the ledger, read by the reader.

Positions are (number, row); of a file that changed before it was read, or was repaired, they count its edition too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from connectors.files.found import FoundFile, FoundFiles
from waxlake.stream.position import RowPosition

__all__ = ["NumberedFile", "NumberedFiles"]

_EDITION_BITS: Final = 32


class NumberedFile(NamedTuple):
    """A file of the ledger.

    Attributes:
        number: Its number; files are read in this order.
        found: The file as it was when it got its number, or its last edition.
        edition: How often it changed before anyone read it, or was repaired.
        continues: Edition as which its positions count, if it is a repaired one whose first rows are the same.
        is_again: Whether an earlier number stands for an earlier version of it.
    """

    number: int
    found: FoundFile
    edition: int = 0
    continues: int | None = None
    is_again: bool = False

    @property
    def begin(self) -> int:
        """Position of its first row; also the position after the file before it."""
        return RowPosition(self.number).pack()

    @property
    def end(self) -> int:
        """Position after the file."""
        return RowPosition(self.number + 1).pack()

    def position(self, row: int) -> int:
        """Return the position of a row of this edition."""
        return RowPosition(self.number, self._counted << _EDITION_BITS | row if row else 0).pack()

    def row(self, position: int) -> int:
        """Return the row at a position inside this file; -1 if the position belongs to another edition."""
        minor = RowPosition.unpack(position).minor
        edition, row = divmod(minor, 1 << _EDITION_BITS)
        return row if edition == self._counted or not minor else -1

    @property
    def _counted(self) -> int:
        return self.edition if self.continues is None else self.continues


@dataclass(frozen=True, slots=True)
class NumberedFiles(Sequence[NumberedFile]):
    """Files with numbers that follow each other, as columns.

    Attributes:
        first: Number of the first one.
        found: The files.
        editions: Edition of each, shape (n_files,).
        again: Whether an earlier number stands for an earlier version of each, shape (n_files,); None if of none.
        continues: By number, the edition as which the positions of a repaired file count.
    """

    first: int
    found: FoundFiles
    editions: npt.NDArray[np.int64]
    again: npt.NDArray[np.bool_] | None = None
    continues: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, file: NumberedFile) -> NumberedFiles:
        """Return one file as columns."""
        again = np.ones(1, np.bool_) if file.is_again else None
        continues = {} if file.continues is None else {file.number: file.continues}
        return cls(file.number, FoundFiles.of([file.found]), np.array([file.edition]), again, continues)

    @property
    def end(self) -> int:
        """Number of the file that follows."""
        return self.first + len(self.found)

    def __len__(self) -> int:
        return len(self.found)

    @overload
    def __getitem__(self, index: int) -> NumberedFile: ...

    @overload
    def __getitem__(self, index: slice) -> NumberedFiles: ...

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            start, stop, _ = index.indices(len(self))
            again = None if self.again is None else self.again[start:stop]
            found, editions = self.found[start:stop], self.editions[start:stop]
            return replace(self, first=self.first + start, found=found, editions=editions, again=again)
        index = range(len(self))[index]
        found, number = self.found[index], self.first + index
        is_again = self.again is not None and bool(self.again[index])
        return NumberedFile(number, found, int(self.editions[index]), self.continues.get(number), is_again)
