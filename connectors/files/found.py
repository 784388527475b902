"""Files as a store shows them: one, or many as columns, so that a listing makes no object for each of its files.

Made by the stores; discovery, the ledger and the reader pass columns on, and take a single file out where one is at stake.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, compress
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["FoundFile", "FoundFiles"]


class FoundFile(NamedTuple):
    """A file as a store shows it now; files sort by (modification time, path).

    Attributes:
        modified_us: Modification time, microseconds since 1970 UTC.
        path: Absolute local path, or URI.
        size_bytes: Size in the store.
        etag: The store's content tag; empty where it has none.
    """

    modified_us: int
    path: str
    size_bytes: int
    etag: str = ""

    @property
    def version(self) -> str:
        """What tells this version of the file from others: path and content tag, or path, time and size."""
        return f"{self.path}\x00{self.etag or self.modified_us}\x00{self.size_bytes}"

    def is_same_content(self, other: FoundFile) -> bool:
        """Return whether both are the same version of the file: by tag if both have one, else by time and size."""
        if self.etag and other.etag:
            return self.etag == other.etag and self.size_bytes == other.size_bytes
        return self.modified_us == other.modified_us and self.size_bytes == other.size_bytes


class FoundFiles(Sequence[FoundFile]):
    """Files as columns, each of shape (n_files,); a sequence of files to whoever takes them one by one.

    Args:
        paths: Their paths.
        modified_us: Modification times, microseconds since 1970 UTC, int64.
        size_bytes: Sizes, int64.
        etags: Content tags, empty where there is none; None if no file has one.
    """

    __slots__ = ("etags", "modified_us", "paths", "size_bytes")

    def __init__(
        self,
        paths: list[str],
        modified_us: npt.NDArray[np.int64],
        size_bytes: npt.NDArray[np.int64],
        etags: list[str] | None = None,
    ) -> None:
        self.paths, self.modified_us, self.size_bytes, self.etags = paths, modified_us, size_bytes, etags

    @classmethod
    def of(cls, files: Iterable[FoundFile]) -> FoundFiles:
        """Return files as columns."""
        if isinstance(files, FoundFiles):
            return files
        files = list(files)
        if not files:
            return cls([], np.empty(0, np.int64), np.empty(0, np.int64))
        times, paths, sizes, etags = zip(*files, strict=True)
        return cls(
            list(paths), np.array(times, np.int64), np.array(sizes, np.int64), list(etags) if any(etags) else None
        )

    @classmethod
    def concat(cls, parts: Iterable[FoundFiles]) -> FoundFiles:
        """Return the files of all parts, in order."""
        parts = [part for part in parts if len(part)]
        if len(parts) < 2:
            return parts[0] if parts else cls.of(())
        return cls(
            list(chain.from_iterable(part.paths for part in parts)),
            np.concatenate([part.modified_us for part in parts]),
            np.concatenate([part.size_bytes for part in parts]),
            list(chain.from_iterable(part._tags() for part in parts)) if any(part.etags for part in parts) else None,
        )

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> FoundFile: ...

    @overload
    def __getitem__(self, index: slice) -> FoundFiles: ...

    def __getitem__(self, index: Any) -> Any:
        etags = self.etags
        if isinstance(index, slice):
            tags = None if etags is None else etags[index]
            return FoundFiles(self.paths[index], self.modified_us[index], self.size_bytes[index], tags)
        etag = etags[index] if etags is not None else ""
        return FoundFile(int(self.modified_us[index]), self.paths[index], int(self.size_bytes[index]), etag)

    def take(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> FoundFiles:
        """Return some files, in the order of ``indices``."""
        order = np.asarray(indices, np.int64)
        plain = order.tolist()
        paths, etags = self.paths, self.etags
        return FoundFiles(
            [paths[index] for index in plain],
            self.modified_us[order],
            self.size_bytes[order],
            None if etags is None else [etags[index] for index in plain],
        )

    def where(self, mask: npt.NDArray[np.bool_]) -> FoundFiles:
        """Return the files for which ``mask`` is true."""
        if mask.all():
            return self
        etags = None if self.etags is None else list(compress(self.etags, mask))
        return FoundFiles(list(compress(self.paths, mask)), self.modified_us[mask], self.size_bytes[mask], etags)

    def sorted(self, *, by_path: bool = False) -> FoundFiles:
        """Return the files in order of (modification time, path), or of their paths."""
        columns = {"path": pa.array(self.paths, pa.string())}
        if not by_path:
            tags = pa.array(self._tags(), pa.string())
            columns |= {"time": pa.array(self.modified_us), "size": pa.array(self.size_bytes), "etag": tags}
        keys = ("path",) if by_path else ("time", "path", "size", "etag")
        order = pc.sort_indices(pa.table(columns), [(key, "ascending") for key in keys])
        return self.take(order.to_numpy().astype(np.int64))

    def versions(self) -> list[str]:
        """Return what tells each version of a file from others, as ``FoundFile.version`` does."""
        rows = zip(self.paths, self._tags(), self.modified_us.tolist(), self.size_bytes.tolist(), strict=True)
        return [f"{path}\x00{etag or time}\x00{size}" for path, etag, time, size in rows]

    def _tags(self) -> list[str]:
        return [""] * len(self) if self.etags is None else self.etags
