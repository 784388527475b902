"""What a store of files is to the source, and which files below its root count; errors of its clients become ours here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple, Protocol, TypeAlias

from connectors.files.found import FoundFile, FoundFiles
from connectors.files.globs import glob_regex
from waxlake.stream.errors import TerminalError, TransientError, WaxlakeError, shorten

__all__ = [
    "BLOCK_FILES",
    "FileChanged",
    "FileGone",
    "FoundFile",
    "FoundFiles",
    "OpenFile",
    "PathFilter",
    "Store",
    "Unknown",
    "everything",
    "mapped_error",
    "store_errors",
]

BLOCK_FILES = 8192
Unknown: TypeAlias = Callable[[Sequence[str]], Sequence[int]]  # indices of the paths that a ledger does not know

_UNFINISHED = (
    ".tmp",
    ".temp",
    ".part",
    ".partial",
    ".filepart",
    ".crdownload",
    ".inprogress",
    ".swp",
    "~",
    "._COPYING_",
)


class FileGone(Exception):
    """The file is not there any more."""


class FileChanged(Exception):
    """The file is not the one that was found; the first argument is what it is now."""

    @property
    def now(self) -> FoundFile:
        """The file as it is now."""
        found: FoundFile = self.args[0]
        return found


class OpenFile(NamedTuple):
    """A file being read.

    Attributes:
        stream: Its bytes, seekable.
        verify: Raises ``FileChanged`` or ``FileGone`` unless the bytes read so far are those of the file that was opened.
    """

    stream: BinaryIO
    verify: Callable[[], None]


def everything(paths: Sequence[str]) -> Sequence[int]:
    """Return all indices: no path is known."""
    return range(len(paths))


class Store(Protocol):
    """A place with files below one root."""

    root: str
    pattern: str

    @property
    def shown(self) -> str:
        """The path as listed, without credentials."""
        ...

    @property
    def is_local(self) -> bool:
        """Whether files may be seen half-written."""
        ...

    def check(self) -> str | None:
        """Return None if the path is there, else the nearest parent that is."""
        ...

    def admits(self, path: str) -> bool:
        """Return whether a path fits: below the root, its pattern and name, neither hidden nor unfinished."""
        ...

    def path_of(self, bucket: str, key: str) -> str | None:
        """Return the path of an object that a notification names; None if it cannot be one of this store."""
        ...

    def list_files(
        self, unknown: Unknown = everything, *, after: str = "", with_empty: bool = False
    ) -> Iterator[FoundFiles]:
        """Yield the files that fit and are not known, some thousand at a time; what is known costs as little as can be.

        Args:
            unknown: Tells which of some paths are not known yet.
            after: Path after which to begin: only paths that sort behind it are listed.
            with_empty: Files without a byte too.
        """
        ...

    def stat(self, path: str) -> FoundFile:
        """Return the file as it is now, or raise ``FileGone``."""
        ...

    def open(self, file: FoundFile) -> OpenFile:
        """Open the file for reading by parts."""
        ...

    def read(self, file: FoundFile) -> bytes:
        """Return all bytes of exactly this file, or raise ``FileGone`` or ``FileChanged``."""
        ...

    def read_each(self, files: FoundFiles, threads: Callable[[], Executor]) -> Iterator[bytes]:
        """Yield the bytes of one file after another, each as ``read`` does.

        Args:
            files: What to read.
            threads: Returns threads to wait for the store with, where that helps.
        """
        ...


def fits(name: str) -> bool:
    """Return whether a name is neither hidden nor one of an unfinished file."""
    return not name.startswith(("_", ".")) and not name.endswith(_UNFINISHED)


class PathFilter:
    """Which paths below a root fit: pattern, name glob, hidden and unfinished files."""

    def __init__(self, pattern: str, name_glob: str | None, is_recursive: bool) -> None:
        self.pattern = pattern
        self._name = glob_regex(name_glob) if name_glob else None
        self.is_recursive = is_recursive
        self._pattern = (
            re.compile(glob_regex(pattern).pattern + ("(?:/.*)?" if is_recursive else "(?:/[^/]+)?"), re.S)
            if pattern
            else None
        )
        parts = pattern.split("/") if pattern else []
        depth = next((i for i, part in enumerate(parts) if "**" in part or "{" in part or "}" in part), len(parts))
        self._parts = [glob_regex(part) for part in parts[:depth]]
        self._is_deep = bool(parts)

    def admits_folder(self, relative: str) -> bool:
        """Return whether files below the folder can fit."""
        parts = relative.split("/")
        if not fits(parts[-1]):
            return False
        if not self._is_deep:
            return self.is_recursive
        depth = len(parts)
        return depth > len(self._parts) or self._parts[depth - 1].fullmatch(parts[-1]) is not None

    def admits_name(self, name: str) -> bool:
        """Return whether a file of that name can fit."""
        return fits(name) and (self._name is None or self._name.fullmatch(name) is not None)

    def admits(self, relative: str) -> bool:
        """Return whether the path fits the pattern."""
        return self._pattern is None or self._pattern.fullmatch(relative) is not None

    def fits(self, relative: str) -> bool:
        """Return whether a file fits in every way: name, pattern, depth, and no hidden folder above it."""
        folder, _, name = relative.rpartition("/")
        if not self.admits_name(name) or not self.admits(relative):
            return False
        if folder and not self.is_recursive and not self._is_deep:
            return False
        return not folder or not any(part.startswith(("_", ".")) for part in folder.split("/"))


@contextmanager
def store_errors(what: str) -> Iterator[None]:
    """Turn errors of fsspec clients and of the operating system into ours; a missing file passes through.

    Args:
        what: What was being done, and on which object.
    """
    try:
        yield
    except (FileNotFoundError, FileGone, FileChanged, WaxlakeError):
        raise
    except OSError as exc:
        raise mapped_error(what, exc) from exc
    except Exception as exc:  # clients' errors have no class in common; what is not theirs passes through
        if type(exc).__module__.partition(".")[0] in (
            "botocore",
            "aiobotocore",
            "aiohttp",
            "asyncio",
            "fsspec",
            "s3fs",
        ):
            raise mapped_error(what, exc) from exc
        raise


def mapped_error(what: str, exc: Exception) -> TransientError | TerminalError:
    """Return our error for one of a store's client."""
    text = shorten(f"{type(exc).__name__}: {exc}", 300)
    low = text.lower()
    denied = (
        "accessdenied",
        "access denied",
        "forbidden",
        "403",
        "invalidaccesskeyid",
        "signaturedoesnotmatch",
        "credentials",
        "401",
    )
    if isinstance(exc, PermissionError) or any(word in low for word in denied):
        return TerminalError(
            f"cannot {what}",
            code="FILES_ACCESS_DENIED",
            found=text,
            remedy="Give this user the right to read there, or correct `storage_options`",
        )
    away = (
        "connect",
        "timeout",
        "timed out",
        "(503)",
        "(500)",
        "internalerror",
        "serviceunavailable",
        "slowdown",
        "reset",
        "unreachable",
        "stale file handle",
    )
    if any(word in low for word in away):
        return TransientError(
            f"cannot {what}", code="FILES_UNREACHABLE", found=text, remedy="Check the endpoint and the network"
        )
    return TerminalError(f"cannot {what}", code="FILES_STORE_ERROR", found=text)
