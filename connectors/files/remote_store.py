"""Files of any fsspec file system, and the options of S3 as s3fs wants them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime, timezone
from typing import Any

from connectors.files.globs import split_glob
from connectors.files.store import FileChanged, FileGone, FoundFile, OpenFile, PathFilter, store_errors
from waxlake.stream.errors import UsageError, shorten
from waxlake.stream.settings import StorageOptions

__all__ = ["URI", "RemoteStore", "s3fs_options"]

URI = re.compile(r"^([a-z][a-z0-9+.-]*)://", re.I)
_USER_INFO = re.compile(r"^([a-z][a-z0-9+.-]*://)[^/@]*@", re.I)


class RemoteStore:
    """Files of an fsspec file system; paths are URIs without credentials."""

    def __init__(
        self, uri: str, options: StorageOptions, name_glob: str | None = None, is_recursive: bool = True
    ) -> None:
        match = URI.match(uri)
        self._protocol = match.group(1).lower() if match else ""
        self._uri, self._options = uri, options
        shown = _USER_INFO.sub(r"\1", uri)
        start = len(self._protocol) + 3
        below, self.pattern = split_glob(shown[start:])
        self.root = shown[:start] + below.rstrip("/")
        self._filter = PathFilter(self.pattern, name_glob, is_recursive)
        self._opened: Any = None
        if self._protocol == "s3a":
            self._protocol = "s3"

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

            user = fsspec.core.url_to_fs(self._uri)[0].storage_options if _USER_INFO.match(self._uri) else {}
            try:
                self._opened = fsspec.filesystem(
                    self._protocol,
                    **{**user, **_client_options(self._protocol, self._options)},
                    use_listings_cache=False,
                )
            except (ValueError, ImportError) as exc:
                raise UsageError(
                    f"cannot open '{self.root}'",
                    code="FILES_PROTOCOL",
                    found=shorten(exc),
                    remedy=f"Install the fsspec client of {self._protocol}://, or correct the path",
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

    def list_files(self, known: Collection[str] = ()) -> list[FoundFile]:
        """Return the files that fit and are not known."""
        filesystem = self.filesystem
        with store_errors(f"list '{self.root}'"):
            filesystem.invalidate_cache()
            depth = None if self._filter.is_recursive or self.pattern else 1
            try:
                infos = filesystem.find(self.root, maxdepth=depth, detail=True)
            except FileNotFoundError:
                return []
        return list(self._fitting(infos, known))

    def _fitting(self, infos: Mapping[str, Mapping[str, Any]], known: Collection[str]) -> Iterator[FoundFile]:
        base = self.filesystem._strip_protocol(self.root)
        for bare, info in infos.items():
            relative = bare[len(base) :].strip("/") or bare.rpartition("/")[2]
            parts = relative.split("/")
            if info.get("type") == "directory" or not self._filter.admits_name(parts[-1]):
                continue
            if any(part.startswith(("_", ".")) for part in parts[:-1]) or not self._filter.admits(relative):
                continue
            path = self._shown(bare)
            if path not in known and info.get("size"):
                yield _found(path, info)

    def _shown(self, bare: str) -> str:
        if self._protocol == "memory":
            return f"memory://{bare}"
        return f"{self._protocol}://{bare.removeprefix(self._protocol + '://').lstrip('/')}"

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


def _found(path: str, info: Mapping[str, Any]) -> FoundFile:
    times = (info.get(key) for key in ("LastModified", "last_modified", "mtime", "modified", "updated", "created"))
    etag = info.get("ETag") or info.get("etag") or info.get("md5Hash") or ""
    return FoundFile(
        _microseconds(next((t for t in times if t is not None), 0)),
        path,
        int(info.get("size") or 0),
        str(etag).strip('"'),
    )


def _microseconds(time: Any) -> int:
    if isinstance(time, str):
        time = datetime.fromisoformat(time.replace("Z", "+00:00"))
    if isinstance(time, datetime):
        aware = time if time.tzinfo else time.replace(tzinfo=timezone.utc)
        return int(aware.timestamp() * 1_000_000)
    return int(float(time) * 1_000_000)


def _client_options(protocol: str, options: StorageOptions) -> dict[str, Any]:
    return s3fs_options(options) if protocol == "s3" else dict(options)


def s3fs_options(options: Mapping[str, str]) -> dict[str, Any]:
    """Return what s3fs wants for options named as delta-rs names them; keys are case-insensitive, with or without ``AWS_``.

    An option that only delta-rs knows (conditional put, lock tables) is left out.

    Raises:
        UsageError: An option that neither knows. Not retryable.
    """
    direct = {
        "endpoint_url": "endpoint_url",
        "endpoint": "endpoint_url",
        "access_key_id": "key",
        "secret_access_key": "secret",
    }
    direct |= {"session_token": "token", "token": "token", "profile": "profile"}
    region = {"region", "default_region"}
    ignored = {"allow_http", "conditional_put", "copy_if_not_exists", "s3_locking_provider", "s3_allow_unsafe_rename"}
    ignored |= {"virtual_hosted_style_request", "ec2_metadata_disabled"}
    result: dict[str, Any] = {}
    for key, value in options.items():
        name = key.lower().removeprefix("aws_")
        if name in direct:
            result[direct[name]] = value
        elif name in region:
            result.setdefault("client_kwargs", {})["region_name"] = value
        elif name == "skip_signature":
            result["anon"] = str(value).lower() in ("1", "true", "yes")
        elif name not in ignored:
            raise UsageError(
                f"cannot use the storage option {key!r} to read files",
                code="OPTION_INVALID",
                remedy=f"Valid: {', '.join(sorted('AWS_' + n.upper() for n in (*direct, *region, 'skip_signature')))}",
            )
    return result
