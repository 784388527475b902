"""Files of any fsspec file system."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any, Final

from connectors.files.globs import split_glob
from connectors.files.remote_listing import S3Pages, walk_folders
from connectors.files.store import (
    FileChanged,
    FileGone,
    FoundFile,
    FoundFiles,
    OpenFile,
    PathFilter,
    Unknown,
    everything,
    store_errors,
)
from connectors.files.store_options import PROTOCOL_EXTRAS, client_options
from waxlake.stream.errors import UsageError, shorten
from waxlake.stream.settings import StorageOptions

__all__ = ["URI", "RemoteStore"]

URI = re.compile(r"^([a-z][a-z0-9+.-]*)://", re.I)
_USER_INFO = re.compile(r"^([a-z][a-z0-9+.-]*://)[^/@]*@", re.I)
_CONTAINER_FIRST: Final = ("abfs", "abfss", "wasb", "wasbs")  # container@account: no user
_TIMES: Final = (
    "LastModified", "last_modified", "Last-Modified", "mtime", "modified", "updated", "created",
)  # fmt: skip
_HTTP: Final = ("http", "https")


class RemoteStore:
    """Files of an fsspec file system; paths are URIs without credentials.

    Args:
        uri: Folder, file or glob.
        options: Options of the store under their delta-rs names.
        name_glob: Only files whose name fits.
        is_recursive: Whether sub-folders count.
        parallelism: Most requests of a listing at a time.
    """

    def __init__(
        self,
        uri: str,
        options: StorageOptions,
        name_glob: str | None = None,
        is_recursive: bool = True,
        parallelism: int = 16,
    ) -> None:
        match = URI.match(uri)
        self._protocol = match.group(1).lower() if match else ""
        if self._protocol == "s3a":
            self._protocol, uri = "s3", f"s3{uri[3:]}"
        self._uri, self._options, self._parallelism = uri, options, parallelism
        shown = uri if self._protocol in _CONTAINER_FIRST else _USER_INFO.sub(r"\1", uri)
        start = len(self._protocol) + 3
        below, self.pattern = split_glob(shown[start:])
        self.root = f"{self._protocol}://{below.rstrip('/')}"
        self._filter = PathFilter(self.pattern, name_glob, is_recursive)
        self._opened: Any = None

    is_local = False

    @property
    def shown(self) -> str:
        """The path as listed, without credentials."""
        return f"{self.root.rstrip('/')}/{self.pattern}" if self.pattern else self.root

    @property
    def filesystem(self) -> Any:
        """The fsspec file system, made on first use; listings are never cached."""
        if self._opened is None:
            import fsspec

            try:
                user = {}
                if _USER_INFO.match(self._uri):
                    user = fsspec.core.url_to_fs(self._uri)[0].storage_options
                options = {**user, **client_options(self._protocol, self._options)}
                self._opened = fsspec.filesystem(self._protocol, **options, use_listings_cache=False)
            except (ValueError, ImportError) as exc:
                extra = PROTOCOL_EXTRAS.get(self._protocol)
                remedy = (
                    f"pip install 'waxlake[{extra}]'" if extra else "Install its fsspec client, or correct the path"
                )
                raise UsageError(
                    f"cannot open '{self.root}'",
                    code="FILES_PROTOCOL",
                    found=f"no client for {self._protocol}:// ({shorten(exc)})",
                    remedy=remedy,
                ) from exc
        return self._opened

    def check(self) -> str | None:
        """Return None if something is at or below the path, else the nearest parent of which that is true."""
        path = self.root
        with store_errors(f"look for '{path}'"):
            while not self.filesystem.exists(path):
                parent = path.rpartition("/")[0]
                if parent.endswith("/") or not parent:
                    return f"nothing at {self._protocol}://"
                path = parent
        return None if path == self.root else path

    def list_files(
        self, unknown: Unknown = everything, *, after: str = "", with_empty: bool = False
    ) -> Iterator[FoundFiles]:
        """Yield the files that fit and are not known, page by page."""
        is_empty = True
        pages = self._pages(after)
        while True:
            with store_errors(f"list '{self.root}'"):
                page = next(pages, None)
            if page is None:
                break
            is_empty = is_empty and not page
            fitting = [
                (path, info)
                for relative, info in page
                if self._fits(relative) and (path := self._path(relative)) > after
            ]
            wanted = [fitting[index] for index in unknown([path for path, _ in fitting])]
            yield FoundFiles.of(self._described(wanted, with_empty))
        if is_empty and not self.pattern and not after:
            yield FoundFiles.of(self._single(unknown))

    def _pages(self, after: str) -> Iterator[list[tuple[str, Mapping[str, Any]]]]:
        filesystem = self.filesystem
        filesystem.invalidate_cache()
        try:
            if self._protocol == "s3":
                bucket, _, prefix = self.root.removeprefix("s3://").partition("/")
                listing = S3Pages(filesystem, bucket, prefix, self._filter, self._parallelism)
                yield from listing.pages(after.removeprefix(f"s3://{bucket}/"))
            else:
                yield from walk_folders(filesystem, self.root, self._filter.admits_folder, self._parallelism)
        except FileNotFoundError:
            return  # no such bucket or folder

    def _single(self, unknown: Unknown) -> list[FoundFile]:
        """Return the file that the path itself is, if it is one."""
        try:
            file = self.stat(self.root)
        except FileGone:
            return []
        return [file] if file.size_bytes and unknown([file.path]) else []

    def admits(self, path: str) -> bool:
        """Return whether a path fits."""
        if path == self.root:
            return self._fits("")
        return path.startswith(f"{self.root}/") and self._fits(path[len(self.root) + 1 :])

    def path_of(self, bucket: str, key: str) -> str | None:
        """Return the URI of an object."""
        path = f"{self._protocol}://{bucket}/{key}"
        return path if path.startswith(f"{self.root}/") or path == self.root else None

    def _fits(self, relative: str) -> bool:
        relative = relative or self.root.rpartition("/")[2]
        is_sorting_link = self._protocol in _HTTP and "?" in relative
        return not is_sorting_link and self._filter.fits(relative)

    def _path(self, relative: str) -> str:
        return f"{self.root}/{relative}" if relative else self.root

    def _described(self, entries: list[tuple[str, Mapping[str, Any]]], with_empty: bool) -> list[FoundFile]:
        """Return what a listing says; files whose size it does not tell (HTTP) are looked at."""
        files = [_found(path, info) for path, info in entries if _size(info) is not None]
        untold = [path for path, info in entries if _size(info) is None]
        if untold:
            with ThreadPoolExecutor(self._parallelism, thread_name_prefix="files-stat") as pool:
                files += [file for file in pool.map(self._stat_if_there, untold) if file is not None]
        return [file for file in files if file.size_bytes or (with_empty and not _is_marker(file.path))]

    def _stat_if_there(self, path: str) -> FoundFile | None:
        try:
            return self.stat(path)
        except FileGone:
            return None

    @property
    def protocol(self) -> str:
        """The scheme of its URIs."""
        return self._protocol

    def stat(self, path: str) -> FoundFile:
        """Return the file as it is now."""
        with store_errors(f"look at file '{path}'"):
            try:
                self.filesystem.invalidate_cache()
                return _found(path, self.filesystem.info(path))
            except FileNotFoundError:
                raise FileGone(path) from None

    def open(self, file: FoundFile) -> OpenFile:
        """Open the file; s3fs reads every range on condition of its tag."""

        def verify() -> None:
            now = self.stat(file.path)
            if not now.is_same_content(file):
                raise FileChanged(now)

        verify()
        with store_errors(f"open file '{file.path}'"):
            try:
                return OpenFile(self.filesystem.open(file.path, "rb", block_size=8 << 20), verify)
            except FileNotFoundError:
                raise FileGone(file.path) from None

    def read(self, file: FoundFile) -> bytes:
        """Return all bytes; the file is looked at after they were read."""
        with store_errors(f"read file '{file.path}'"):
            try:
                data: bytes = self.filesystem.cat_file(file.path)
            except FileNotFoundError:
                raise FileGone(file.path) from None
        now = self.stat(file.path)
        if not now.is_same_content(file) or len(data) != file.size_bytes:
            raise FileChanged(now)
        return data

    def read_each(self, files: FoundFiles, threads: Callable[[], Executor]) -> Iterator[bytes]:
        """Yield the bytes of one file after another; several are asked for at a time."""
        return threads().map(self.read, files)


def _is_marker(path: str) -> bool:
    """Return whether an empty object stands for a folder."""
    return path.endswith(("/", "_$folder$"))


def _found(path: str, info: Mapping[str, Any]) -> FoundFile:
    times = (info.get(key) for key in _TIMES)
    etag = info.get("ETag") or info.get("etag") or info.get("md5Hash") or ""
    return FoundFile(
        _microseconds(next((t for t in times if t is not None), 0)),
        path,
        _size(info) or 0,
        str(etag).strip('"'),
    )


def _size(info: Mapping[str, Any]) -> int | None:
    size = info.get("size", info.get("Size"))
    return None if size is None else int(size)


def _microseconds(time: Any) -> int:
    if isinstance(time, str):
        is_iso = time[:4].isdigit()
        time = datetime.fromisoformat(time.replace("Z", "+00:00")) if is_iso else parsedate_to_datetime(time)
    if isinstance(time, datetime):
        aware = time if time.tzinfo else time.replace(tzinfo=timezone.utc)
        return int(aware.timestamp() * 1_000_000)
    return int(float(time) * 1_000_000)
