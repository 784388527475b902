"""Columns from folders named ``k=v``: which a source has, of what type, and their value for each file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

from connectors.files.formats.text_values import convert_text, has_text_form, infer_text_type
from connectors.files.settings import FilesSettings

__all__ = ["PartitionColumns", "declared_partitions", "infer_partitions", "path_values"]

_NULL: Final = "__HIVE_DEFAULT_PARTITION__"


def path_values(path: str, root: str) -> dict[str, str | None]:
    """Return the values that folders below the root give; of a key given twice the innermost counts."""
    below = path[len(root) :] if path.startswith(root) else path
    found: dict[str, str | None] = {}
    for folder in below.split("/")[:-1]:
        key, sign, value = folder.partition("=")
        if key and sign:
            found[unquote(key)] = None if value == _NULL else unquote(value)
    return found


def infer_partitions(settings: FilesSettings, paths: Sequence[str], root: str, known: Iterable[str]) -> list[pa.Field]:
    """Return the partition columns of an inferred schema, but for those that it has already.

    Args:
        settings: Which are wanted.
        paths: Paths of all files.
        root: Path of the source.
        known: Columns that the files themselves have.
    """
    values: dict[str, list[str | None]] = {name: [] for name in settings.partition_columns or ()}
    for path in paths:
        for key, value in path_values(path, root).items():
            if settings.partition_columns is None or key in values:
                values.setdefault(key, []).append(value)
    taken = {name.casefold() for name in known}
    types = {name: infer_text_type(pa.array(list(dict.fromkeys(texts)), pa.string())) for name, texts in values.items()}
    if not settings.infer_column_types:
        types = dict.fromkeys(types, pa.string())
    return [pa.field(name, kind) for name, kind in types.items() if name.casefold() not in taken]


def declared_partitions(settings: FilesSettings, schema: pa.Schema) -> pa.Schema:
    """Return a declared schema with the partition columns that the settings name, as STRING where it has them not."""
    missing = [name for name in settings.partition_columns or () if name not in schema.names]
    return pa.schema([*schema, *(pa.field(name, pa.string()) for name in missing)])


@dataclass(frozen=True, slots=True)
class PartitionColumns:
    """Fills columns from the paths of files. A value that a file itself holds stays.

    Attributes:
        root: Path of the source.
        names: Columns that may be filled.
    """

    root: str
    names: frozenset[str]

    @classmethod
    def of(cls, settings: FilesSettings, schema: pa.Schema, root: str) -> PartitionColumns:
        """Return what the settings say for the columns of a reader."""
        wanted = schema.names if settings.partition_columns is None else settings.partition_columns
        return cls(root, frozenset(f.name for f in schema if f.name in wanted and has_text_form(f.type)))

    def fill(self, table: pa.Table, paths: Sequence[str], owners: pa.Array) -> tuple[pa.Table, dict[str, pa.Array]]:
        """Return rows with the values of their files' folders, and by column the texts that do not fit.

        Args:
            table: Decoded rows.
            paths: Paths of files.
            owners: Index of each row's file.
        """
        is_there = bool(self.names) and any("=" in path for path in paths)
        found = [path_values(path, self.root) for path in paths] if is_there else []
        keys = {key for values in found for key in values} & self.names
        lost_texts = {}
        for name in sorted(keys):
            index = table.schema.get_field_index(name)
            field = table.schema.field(index)
            texts = pa.array([values.get(name) for values in found], pa.string())
            values, lost = convert_text(texts, field.type)
            own = table.column(index).combine_chunks()
            table = table.set_column(index, field, pc.coalesce(own, values.take(owners)))
            if pc.any(lost).as_py():
                lost_texts[name] = pc.if_else(lost, texts, pa.scalar(None, pa.string())).take(owners)
        return table, lost_texts
