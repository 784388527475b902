"""Takes one file away from where it was read: deletes it, or moves it so that a crash at any moment leaves it whole somewhere."""

from __future__ import annotations

import filecmp
import os
import posixpath
import shutil
from dataclasses import dataclass
from typing import Final, Literal

from connectors.files.local_store import LocalStore, raw_path
from connectors.files.numbered import NumberedFile
from connectors.files.remote_store import URI, RemoteStore
from connectors.files.settings import FilesSettings
from connectors.files.store import FileGone, FoundFile, Store, mapped_error, store_errors
from waxlake.stream.errors import TerminalError, UsageError
from waxlake.stream.failpoints import failpoint

__all__ = ["Removal", "Removed", "check_destination"]

_COPY_BYTES: Final = 8 << 20


@dataclass(frozen=True, slots=True)
class Removed:
    """What became of a file.

    Attributes:
        kind: ``deleted``, ``moved``, ``changed`` (its content is another by now: it stays), ``gone`` (somebody else took it
            away), ``clean_failed``.
        moved_to: Where it is now.
        error: Why it is still there.
    """

    kind: Literal["deleted", "moved", "changed", "gone", "clean_failed"]
    moved_to: str | None = None
    error: str | None = None


def check_destination(settings: FilesSettings, store: Store) -> None:
    """Stop at a destination inside the path that is read: what is moved there would be read again.

    Raises:
        UsageError: ``OPTION_INVALID``. Not retryable.
    """
    destination = settings.clean_source_move_destination
    if destination is None:
        return
    target, root = destination, store.root
    if _is_local(destination) and store.is_local:
        target, root = os.path.realpath(_local_path(destination)), os.path.realpath(root)
    inside = target.rstrip("/") + "/"
    if inside.startswith(root.rstrip("/") + "/"):
        raise UsageError(
            f"read_files({settings.path!r}): clean_source_move_destination lies inside the path that is read",
            code="OPTION_INVALID",
            found=repr(destination),
            expected=f"a folder outside '{root}'",
            remedy="Files that are moved there would be read again",
        )


class Removal:
    """Removes files of one source.

    Args:
        settings: Delete or move, and where to.
        store: Where the files are.
    """

    def __init__(self, settings: FilesSettings, store: Store) -> None:
        self._store, self._destination = store, settings.clean_source_move_destination
        self._target: RemoteStore | None = None
        if self._destination is not None and not _is_local(self._destination):
            self._target = RemoteStore(self._destination, settings.storage_options)

    @property
    def is_local(self) -> bool:
        """Whether files are on this machine."""
        return self._store.is_local

    def remove(self, file: NumberedFile) -> Removed:
        """Remove a file that was read, unless it is another one by now.

        Raises:
            TransientError: The store does not answer. Retryable.
            TerminalError: No right to write there, or what is at the destination is another file. Retryable.
        """
        with store_errors(f"clean up file '{file.found.path}'"):
            try:
                if not self._store.stat(file.found.path).is_same_content(file.found):
                    return Removed("changed")
                if self._destination is None:
                    self._delete(file.found)
                    return Removed("deleted")
                return self._move(file)
            except (FileGone, FileNotFoundError):
                return self._gone(file)

    def _gone(self, file: NumberedFile) -> Removed:
        """Say where a file went that is not there: a crash, or another process of this run, can have come between."""
        if self._destination is None:
            return Removed("deleted")
        for target in self._targets(file):
            if self._size(target) == file.found.size_bytes:
                return Removed("moved", moved_to=target)
        return Removed("gone")

    def _targets(self, file: NumberedFile) -> tuple[str, str]:
        """Return where a file is moved to, and where if something else is there already."""
        root, path = self._store.root.rstrip("/"), file.found.path
        if path.startswith("file://"):
            path = os.fsdecode(raw_path(path))
        below = path[len(root) :].lstrip("/") if path != root else path.rpartition("/")[2]
        target = posixpath.join(str(self._destination), below)
        return target, f"{target}~{file.number}"

    def _move(self, file: NumberedFile) -> Removed:
        for target in self._targets(file):
            size = self._size(target)
            if size is None:
                self._copy(file.found, target)
            elif not self._is_copy(file.found, target, size):
                continue
            if not self._store.stat(file.found.path).is_same_content(file.found):
                return Removed("changed", moved_to=target)
            self._delete(file.found)
            return Removed("moved", moved_to=target)
        raise TerminalError(
            f"cannot move file '{file.found.path}'",
            code="CLEAN_SOURCE_OCCUPIED",
            found=f"another file at '{target}'",
            remedy="Move it away; it is tried again",
        )

    # -- the two kinds of stores ---------------------------------------------------------------------------------

    def _delete(self, found: FoundFile) -> None:
        if isinstance(self._store, RemoteStore):
            self._store.filesystem.rm_file(found.path)
        else:
            os.unlink(raw_path(found.path))

    def _size(self, target: str) -> int | None:
        if self._target is not None:
            try:
                return self._target.stat(target).size_bytes
            except FileGone:
                return None
        try:
            return os.stat(_local_path(target)).st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _is_copy(self, found: FoundFile, target: str, size_bytes: int) -> bool:
        """Return whether what is at the destination has the content of the file: a crash came after the copy."""
        if size_bytes != found.size_bytes:
            return False
        if self._target is None and isinstance(self._store, LocalStore):
            return filecmp.cmp(raw_path(found.path), os.fsencode(_local_path(target)), shallow=False)
        with self._opened(found.path) as one, self._opened(target) as other:
            while block := one.read(_COPY_BYTES):
                if block != other.read(len(block)):
                    return False
        return True

    def _opened(self, path: str):  # type: ignore[no-untyped-def]
        if _is_local(path):
            return open(raw_path(path), "rb")
        store = self._target if self._target is not None and path.startswith(str(self._destination)) else self._store
        assert isinstance(store, RemoteStore)
        return store.filesystem.open(path, "rb")

    def _copy(self, found: FoundFile, target: str) -> None:
        """Put a copy in its place: whole or not at all."""
        if self._target is not None and isinstance(self._store, RemoteStore):
            if self._store.protocol == self._target.protocol:
                self._store.filesystem.copy(found.path, target)
            else:
                self._stream(found.path, target)
            failpoint("clean-copied")
        elif self._target is not None:
            self._target.filesystem.put_file(os.fsdecode(raw_path(found.path)), target)
            failpoint("clean-copied")
        else:
            self._copy_here(found, _local_path(target))
        if self._size(target) != found.size_bytes:
            raise TerminalError(
                f"cannot move file '{found.path}'",
                code="CLEAN_SOURCE_COPY",
                found=f"{self._size(target)} bytes at '{target}'",
                expected=str(found.size_bytes),
                remedy="The file stays where it is; it is tried again",
            )

    def _copy_here(self, found: FoundFile, target: str) -> None:
        folder, name = os.path.split(target)
        try:
            os.makedirs(folder, exist_ok=True)
            if self._store.is_local and self._is_linked(found, target):
                return
            hidden = os.path.join(folder, f".{name[:100]}.tmp")
            with self._opened(found.path) as source, open(os.fsencode(hidden), "wb") as copy:
                shutil.copyfileobj(source, copy, _COPY_BYTES)
                copy.flush()
                os.fsync(copy.fileno())
            os.utime(os.fsencode(hidden), ns=(found.modified_us * 1000, found.modified_us * 1000))
            os.rename(os.fsencode(hidden), os.fsencode(target))
        except (FileNotFoundError, FileExistsError):
            raise
        except OSError as exc:
            raise mapped_error(f"move file '{found.path}' to '{target}'", exc) from exc
        failpoint("clean-copied")

    def _is_linked(self, found: FoundFile, target: str) -> bool:
        """Give the file a second name, which costs no copy; return False where the file system cannot."""
        try:
            os.link(raw_path(found.path), os.fsencode(target))
        except (FileNotFoundError, FileExistsError):
            raise
        except OSError:
            return False
        failpoint("clean-copied")
        return True

    def _stream(self, path: str, target: str) -> None:
        assert self._target is not None
        with self._opened(path) as source, self._target.filesystem.open(target, "wb") as copy:
            shutil.copyfileobj(source, copy, _COPY_BYTES)


def _is_local(path: str) -> bool:
    match = URI.match(path)
    return match is None or match.group(1).lower() in ("file", "local")


def _local_path(path: str) -> str:
    match = URI.match(path)
    return os.path.abspath(os.path.expanduser(path[match.end() :] if match else path))
