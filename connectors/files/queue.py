"""The files that a reader has yet to read, in order, as columns; the one in front is an object. Used by the reader."""

from __future__ import annotations

from collections import deque

from connectors.files.numbered import NumberedFile, NumberedFiles

__all__ = ["FileQueue"]


class FileQueue:
    """Files to be read."""

    def __init__(self) -> None:
        self._blocks: deque[NumberedFiles] = deque()
        self._at = 0
        self._first: NumberedFile | None = None

    def __bool__(self) -> bool:
        return bool(self._blocks)

    @property
    def first(self) -> NumberedFile:
        """The file in front; there must be one."""
        if self._first is None:
            self._first = self._blocks[0][self._at]
        return self._first

    def append(self, files: NumberedFiles) -> None:
        """Add the files that follow."""
        if len(files):
            self._blocks.append(files)

    def replace_first(self, file: NumberedFile) -> None:
        """Put another edition of the file in front in its place."""
        self.pop()
        if self._at:
            self._blocks[0], self._at = self._blocks[0][self._at :], 0
        self._blocks.appendleft(NumberedFiles.of(file))

    def pop(self, count: int = 1) -> None:
        """Take out the first files; no more than ``following`` returns."""
        self._at += count
        self._first = None
        if self._at >= len(self._blocks[0]):
            self._blocks.popleft()
            self._at = 0

    def following(self, skip: int, most: int) -> NumberedFiles:
        """Return files that follow the first ``skip`` ones; fewer than ``most`` at the end of what was added at once."""
        block, at = self._blocks[0], self._at + skip
        return block[at : at + most]
