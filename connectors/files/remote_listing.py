"""Lists folders of fsspec file systems, many at a time, and S3 by pages of keys; called by the remote store.

Neither holds more than a few pages at once. A folder that the pattern rules out is not entered, and a hidden one neither.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import Any, Final, NamedTuple

from connectors.files.globs import literal_head
from connectors.files.store import PathFilter

__all__ = ["S3Pages", "walk_folders"]

_Info = Mapping[str, Any]
_MOST_FOLDERS: Final = 1000
_MOST_DEPTH: Final = 4


def walk_folders(
    filesystem: Any, root: str, admits_folder: Callable[[str], bool], parallelism: int
) -> Iterator[list[tuple[str, _Info]]]:
    """Yield (path below the root, description) of the files in each folder, folder by folder, several listed at a time.

    Args:
        filesystem: An fsspec file system that caches no listings.
        root: Where to begin, with its protocol.
        admits_folder: Whether a folder, by its path below the root, is entered.
        parallelism: Most folders listed at a time.
    """
    base = str(filesystem._strip_protocol(root)).rstrip("/")
    seen = {base}
    with ThreadPoolExecutor(parallelism, thread_name_prefix="files-list") as pool:
        waiting: deque[str] = deque([root])
        running: deque[Future[list[_Info]]] = deque()
        while waiting or running:
            while waiting and len(running) < parallelism:
                running.append(pool.submit(_entries, filesystem, waiting.popleft()))
            files = []
            for info in running.popleft().result():
                bare = str(info["name"])
                relative = bare.removeprefix(base).strip("/")
                if info.get("type") != "directory":
                    files.append((relative, info))
                elif relative and bare.rstrip("/") not in seen and admits_folder(relative):
                    seen.add(bare.rstrip("/"))
                    waiting.append(str(filesystem.unstrip_protocol(bare)))
            yield files


def _entries(filesystem: Any, folder: str) -> list[_Info]:
    try:
        entries: list[_Info] = filesystem.ls(folder, detail=True)
    except FileNotFoundError:
        return []  # removed meanwhile
    return entries


class _Range(NamedTuple):
    """Keys with a prefix, above ``after`` and below ``before``; ``can_split`` if it may be cut where folders begin."""

    prefix: str
    after: str = ""
    before: str | None = None
    can_split: bool = False


class S3Pages:
    """Lists one bucket below a prefix, by ranges of keys in parallel, or from one key on.

    A range ends where a folder begins, and several folders share one, so that listing in parallel costs about as many
    requests as there are pages, however many folders there are.

    Args:
        filesystem: An s3fs file system.
        bucket: Bucket.
        prefix: Key of the root; empty for the whole bucket.
        path_filter: Which folders and names fit, and the pattern whose literal beginnings become prefixes.
        parallelism: Most requests at a time.
    """

    def __init__(self, filesystem: Any, bucket: str, prefix: str, path_filter: PathFilter, parallelism: int) -> None:
        self._filesystem, self._bucket, self._filter = filesystem, bucket, path_filter
        self._base = f"{prefix}/" if prefix else ""
        self._parallelism = parallelism
        self._delimiter = "" if path_filter.is_recursive or path_filter.pattern else "/"

    def pages(self, after: str = "") -> Iterator[list[tuple[str, _Info]]]:
        """Yield (path below the root, description) of objects, page by page.

        Args:
            after: Key after which to begin; then pages come in the order of keys.
        """
        start = len(self._base)
        with ThreadPoolExecutor(self._parallelism, thread_name_prefix="files-list") as pool:
            if after:
                ranges = [_Range(self._base + literal_head(self._filter.pattern), after)]
            else:
                ranges = [_Range(prefix, can_split=not self._delimiter) for prefix in self._prefixes(pool)]
            for entries in self._entries(pool, ranges):
                yield [(entry["Key"][start:], entry) for entry in entries]

    def _prefixes(self, pool: ThreadPoolExecutor) -> list[str]:
        """Return what to list: the folders that fit the pattern so far, each with the literal beginning of the next part."""
        parts = self._filter.pattern.split("/")
        folders = [self._base]
        for part in parts[:-1]:
            if any(sign in part for sign in ("**", "{", "}")) or len(folders) > _MOST_FOLDERS:
                return [folder + literal_head(part) for folder in folders]
            asked = [folder + literal_head(part) for folder in folders]
            start = len(self._base)
            folders = [
                folder
                for answer in pool.map(self._folders, asked)
                for folder in answer
                if self._filter.admits_folder(folder[start:-1])
            ]
        return [folder + literal_head(parts[-1]) for folder in folders]

    def _entries(self, pool: ThreadPoolExecutor, ranges: list[_Range]) -> Iterator[list[_Info]]:
        """Yield pages of all ranges; each range has at most one request under way."""
        waiting = deque(ranges)
        running: deque[tuple[_Range, Future[Mapping[str, Any]]]] = deque()
        while waiting or running:
            while waiting and len(running) < self._parallelism:
                first = waiting.popleft()
                running.append((first, pool.submit(self._page, first, None)))
            current, future = running.popleft()
            page = future.result()
            entries: list[_Info] = page.get("Contents", [])
            token = page.get("NextContinuationToken") if page.get("IsTruncated") else None
            if current.before is not None and entries and entries[-1]["Key"] >= current.before:
                entries, token = [entry for entry in entries if entry["Key"] < current.before], None
            if token and current.can_split and entries and (parts := self._split(current.prefix, entries[-1]["Key"])):
                waiting.extend(parts)
            elif token:
                going_on = current._replace(can_split=False)
                running.append((going_on, pool.submit(self._page, going_on, token)))
            yield entries

    def _split(self, prefix: str, after: str) -> list[_Range]:
        """Return ranges that hold what comes after a key, cut where folders begin; nothing if there are no folders."""
        marks: list[str] = []
        inside = prefix
        for _ in range(_MOST_DEPTH):
            page = self._page(_Range(inside, after), None, delimiter="/")
            folders = [str(found["Prefix"]) for found in page.get("CommonPrefixes", ())]
            marks = [folder for folder in folders if folder > after]
            if marks or not folders:
                break
            inside = folders[-1]  # the key lies in the only folder
        if not marks:
            return []
        step = -(-len(marks) // (self._parallelism * 2))
        edges = [after, *marks[::step]]
        ranges = [_Range(prefix, low, high) for low, high in pairwise(edges)]
        return [*ranges, _Range(prefix, edges[-1], can_split=True)]

    def _folders(self, prefix: str) -> list[str]:
        found: list[str] = []
        token = None
        while True:
            page = self._page(_Range(prefix), token, delimiter="/")
            found += [str(each["Prefix"]) for each in page.get("CommonPrefixes", ())]
            token = page.get("NextContinuationToken") if page.get("IsTruncated") else None
            if token is None:
                return found

    def _page(self, part: _Range, token: str | None, delimiter: str | None = None) -> Mapping[str, Any]:
        given = {
            "Prefix": part.prefix,
            "StartAfter": part.after,
            "Delimiter": self._delimiter if delimiter is None else delimiter,
            "ContinuationToken": token,
        }
        page: Mapping[str, Any] = self._filesystem.call_s3(
            "list_objects_v2", Bucket=self._bucket, **{name: value for name, value in given.items() if value}
        )
        return page
