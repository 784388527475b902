"""Files of this machine: listed by scanning, without a look at those that are known already."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from urllib.parse import quote, unquote_to_bytes

import numpy as np

from connectors.files.globs import has_magic, split_glob
from connectors.files.store import (
    BLOCK_FILES,
    FileChanged,
    FileGone,
    FoundFile,
    FoundFiles,
    OpenFile,
    PathFilter,
    Unknown,
    everything,
    mapped_error,
)

__all__ = ["LocalStore", "raw_path"]

_NOWHERE = (errno.ENOENT, errno.ELOOP)


class LocalStore:
    """Files of this machine. Their paths are absolute; one that is no UTF-8 is written as a quoted ``file://`` URI."""

    is_local = True

    def __init__(self, path: str, name_glob: str | None = None, is_recursive: bool = True) -> None:
        absolute = os.path.abspath(os.path.expanduser(path))
        self.root, self.pattern = absolute, ""
        self._single = os.path.isfile(absolute)
        if has_magic(absolute) and not os.path.exists(absolute):
            self.root, self.pattern = split_glob(absolute)
        self._filter = PathFilter(self.pattern, name_glob, is_recursive)

    @property
    def shown(self) -> str:
        """The path as listed, without credentials."""
        return f"{self.root.rstrip('/')}/{self.pattern}" if self.pattern else self.root

    def check(self) -> str | None:
        """Return None if the path is there, else the nearest parent that is."""
        path = self.root
        if os.path.exists(path):
            return None
        while not os.path.exists(path):
            path = os.path.dirname(path)
        return path

    def admits(self, path: str) -> bool:
        """Return whether a path fits."""
        if self._single:
            return path == self.root
        start = f"{self.root.rstrip('/')}/"
        return path.startswith(start) and self._filter.fits(path[len(start) :])

    def path_of(self, bucket: str, key: str) -> str | None:
        """Return None: no notification tells of local files."""
        return None

    def list_files(
        self, unknown: Unknown = everything, *, after: str = "", with_empty: bool = False
    ) -> Iterator[FoundFiles]:
        """Yield the files that fit and are not known, some thousand at a time; known ones cost no look at the file."""
        if self._single:
            yield self._list_single(unknown, with_empty)
            return
        seen: set[tuple[int, int]] = set()
        block: list[tuple[str, os.DirEntry[str]]] = []
        queue, links = [(self.root, "")], list[tuple[str, str]]()
        while queue or links:  # real folders first: a link to one of them adds nothing
            folder, relative = queue.pop() if queue else links.pop()
            nested: list[tuple[str, str]] = []
            linked: list[tuple[str, str]] = []
            try:
                status = os.stat(folder)
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
                for found in self._scan(folder, relative, after, nested, linked):
                    block.append(found)
                    if len(block) >= BLOCK_FILES:
                        yield _looked_at(block, unknown, with_empty)
                        block = []
            except FileNotFoundError:
                pass  # removed meanwhile, or a link to nowhere
            except OSError as exc:
                raise mapped_error(f"list '{folder}'", exc) from exc
            queue += nested
            links = sorted(links + linked, reverse=True) if linked else links
        yield _looked_at(block, unknown, with_empty)

    def _scan(
        self, folder: str, relative: str, after: str, nested: list[tuple[str, str]], linked: list[tuple[str, str]]
    ) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """Yield (path, entry) of what may be a file that fits; add the folders to be entered to ``nested`` and ``linked``."""
        prefix = folder if folder.endswith("/") else folder + "/"
        admits_name, has_pattern = self._filter.admits_name, bool(self.pattern)
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if _is_folder(entry):
                    below = f"{relative}/{name}" if relative else name
                    is_behind = prefix + name + "/" > after or after.startswith(prefix + name + "/")
                    if is_behind and self._filter.admits_folder(below):
                        (linked if entry.is_symlink() else nested).append((prefix + name, below))
                    continue
                if not admits_name(name):
                    continue
                if has_pattern and not self._filter.admits(f"{relative}/{name}" if relative else name):
                    continue
                path = _shown(prefix + name)
                if path > after:
                    yield path, entry

    def _list_single(self, unknown: Unknown, with_empty: bool) -> FoundFiles:
        try:
            file = self.stat(self.root)
        except FileGone:
            return FoundFiles.of(())
        return FoundFiles.of([file] if (file.size_bytes or with_empty) and unknown([file.path]) else [])

    def stat(self, path: str) -> FoundFile:
        """Return the file as it is now."""
        try:
            status = os.stat(raw_path(path))
        except (FileNotFoundError, NotADirectoryError):
            raise FileGone(path) from None
        except OSError as exc:
            raise mapped_error(f"look at file '{path}'", exc) from exc
        return FoundFile(status.st_mtime_ns // 1000, path, status.st_size)

    def open(self, file: FoundFile) -> OpenFile:
        """Open the file; one that is replaced while it is read is read on as it was."""
        try:
            stream = open(raw_path(file.path), "rb")  # noqa: SIM115 - the caller closes it
        except (FileNotFoundError, NotADirectoryError):
            raise FileGone(file.path) from None
        except OSError as exc:
            raise mapped_error(f"open file '{file.path}'", exc) from exc

        def verify() -> None:
            _verify_status(file, os.fstat(stream.fileno()))

        try:
            verify()
        except FileChanged:
            stream.close()
            raise
        return OpenFile(stream, verify)

    def read(self, file: FoundFile) -> bytes:
        """Return all bytes; the file is looked at after they were read, so a torn read is noticed."""
        return _read(file.path, file.size_bytes, file.modified_us)

    def read_each(self, files: FoundFiles, threads: Callable[[], Executor]) -> Iterator[bytes]:
        """Yield the bytes of one file after another: the system answers faster than threads change places."""
        yield from map(_read, files.paths, files.size_bytes.tolist(), files.modified_us.tolist())


def _read(path: str, size_bytes: int, modified_us: int) -> bytes:
    """Return all bytes of exactly the file that was found."""
    try:
        handle = os.open(raw_path(path), os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        raise FileGone(path) from None
    except OSError as exc:
        raise mapped_error(f"open file '{path}'", exc) from exc
    try:
        data = os.read(handle, size_bytes)
        while len(data) < size_bytes and (more := os.read(handle, size_bytes - len(data))):
            data += more
        status = os.fstat(handle)
    except OSError as exc:
        raise mapped_error(f"read file '{path}'", exc) from exc
    finally:
        os.close(handle)
    if status.st_size != size_bytes or status.st_mtime_ns // 1000 != modified_us:
        raise FileChanged(FoundFile(status.st_mtime_ns // 1000, path, status.st_size))
    return data


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder, or a link to one; a link that goes round or nowhere is none."""
    try:
        return entry.is_dir()
    except OSError as exc:
        if exc.errno in _NOWHERE:
            return False
        raise


def _looked_at(block: list[tuple[str, os.DirEntry[str]]], unknown: Unknown, with_empty: bool) -> FoundFiles:
    """Return the files of a block that are not known."""
    paths, times, sizes = list[str](), list[int](), list[int]()
    for index in unknown([path for path, _ in block]):
        path, entry = block[index]
        try:
            status = entry.stat()
        except OSError as exc:
            if exc.errno in _NOWHERE:
                continue
            raise mapped_error(f"look at file '{path}'", exc) from exc
        if (status.st_size or with_empty) and _is_regular(status.st_mode):
            paths.append(path)
            times.append(status.st_mtime_ns // 1000)
            sizes.append(status.st_size)
    return FoundFiles(paths, np.array(times, np.int64), np.array(sizes, np.int64))


def _verify_status(file: FoundFile, status: os.stat_result) -> None:
    if status.st_size != file.size_bytes or status.st_mtime_ns // 1000 != file.modified_us:
        raise FileChanged(FoundFile(status.st_mtime_ns // 1000, file.path, status.st_size))


def _is_regular(mode: int) -> bool:
    return mode & 0o170000 == 0o100000


def _shown(path: str) -> str:
    if path.isascii():
        return path
    try:
        path.encode()
    except UnicodeEncodeError:
        return "file://" + quote(os.fsencode(path))
    return path


def raw_path(path: str) -> str | bytes:
    """Return the name under which the operating system knows a path as it is shown."""
    return unquote_to_bytes(path[7:]) if path.startswith("file://") else path
