"""Paths that a user lists in files of their own, instead of a listing; called by discovery.

A manifest is text (a path a line), CSV (a column ``path``, ``file``, ``url`` or ``key``, else the first), or JSON (an array, an
object with ``files`` or ``entries``, or lines; items are paths or objects with one of these names). A path is absolute, or
relative to the source's path; either way it lies below it. New manifests and appended lines are found at every look; a path
whose file is not there is told, and looked for again at the next look.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from connectors.files.store import FileChanged, FileGone, FoundFile, Store
from waxlake.stream.errors import UserError, shorten

__all__ = ["Manifest", "manifest_paths"]

_NAMES: Final = ("path", "file", "url", "key", "file_path")
_LISTS: Final = ("files", "entries")


class Manifest:
    """The manifests of a source.

    Args:
        store: Where they are; its pattern names them.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._read: dict[str, tuple[FoundFile, list[str]]] = {}

    def paths(self) -> Iterator[list[str]]:
        """Yield the paths of each manifest, as written. A manifest that has not changed is not read again.

        Raises:
            UserError: ``MANIFEST_UNREADABLE``. Not retryable.
        """
        for found in sorted(file for block in self._store.list_files() for file in block):
            before = self._read.get(found.path)
            if before is None or not before[0].is_same_content(found):
                self._read[found.path] = (found, self._paths_of(found))
            yield self._read[found.path][1]

    def _paths_of(self, found: FoundFile) -> list[str]:
        try:
            return manifest_paths(found.path, self._store.read(found))
        except FileGone:
            return []
        except FileChanged as problem:
            return self._paths_of(problem.now)
        except (ValueError, csv.Error) as exc:
            raise UserError(
                f"cannot read the manifest '{found.path}'",
                code="MANIFEST_UNREADABLE",
                found=shorten(exc),
                expected="text with a path a line, CSV, or JSON",
                remedy="Correct it; write it under a name that begins with '.' and rename it when it is whole",
            ) from exc


def manifest_paths(name: str, content: bytes) -> list[str]:
    """Return the paths that a manifest lists, in order, once each.

    Raises:
        ValueError: It is not of the format that its name says.
    """
    text = content.decode("utf-8-sig")
    suffix = name.rpartition(".")[2].lower()
    if suffix == "csv":
        found = _csv_paths(text)
    elif suffix in ("json", "jsonl", "ndjson"):
        found = _json_paths(text)
    else:
        found = [line.rstrip("\r") for line in text.split("\n")]
    return list(dict.fromkeys(path for path in found if path.strip()))


def _csv_paths(text: str) -> list[str]:
    rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    named = [header.index(name) for name in _NAMES if name in header]
    column, first = (named[0], 1) if named else (0, 0)
    return [row[column] for row in rows[first:] if len(row) > column]


def _json_paths(text: str) -> list[str]:
    try:
        document = json.loads(text) if text.strip() else []
    except ValueError:
        document = [json.loads(line) for line in text.splitlines() if line.strip()]
    if isinstance(document, Mapping):
        document = next((document[name] for name in _LISTS if name in document), [document])
    if not isinstance(document, list):
        raise ValueError(f"found {shorten(document)}, expected an array of paths")
    return [_json_path(item) for item in document]


def _json_path(item: Any) -> str:
    if isinstance(item, Mapping):
        item = next((item[name] for name in _NAMES if name in item), item)
    if not isinstance(item, str):
        raise ValueError(f"found {shorten(item)}, expected a path, or an object with one of {', '.join(_NAMES)}")
    return item
