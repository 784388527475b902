"""What a statement in the binlog does to tables: the few kinds that a reader of rows has to know of."""

from __future__ import annotations

import re
from typing import Final, Literal

__all__ = ["Effect", "effect_of"]

Effect = tuple[Literal["truncate", "create", "partition", "rows"], str]

_COMMENT: Final = re.compile(r"/\*(?!!).*?\*/|(?:--\s|#)[^\n]*", re.S)
_VERSIONED: Final = re.compile(r"/\*!\d*|\*/")
_NAME: Final = r"((?:`(?:[^`]|``)+`|[\w$]+|\"[^\"]+\")(?:\s*\.\s*(?:`(?:[^`]|``)+`|[\w$]+|\"[^\"]+\"))?)"
_TRUNCATE: Final = re.compile(rf"TRUNCATE\s+(?:TABLE\s+)?{_NAME}", re.I)
_CREATE: Final = re.compile(rf"CREATE\s+(OR\s+REPLACE\s+)?TABLE\s+(?!IF\s)\s*{_NAME}", re.I)
_PARTITION: Final = re.compile(
    rf"ALTER\s+(?:ONLINE\s+|IGNORE\s+)*TABLE\s+{_NAME}.*?\b(?:TRUNCATE|DROP|EXCHANGE)\s+PARTITION\b", re.I | re.S
)
_ROWS: Final = re.compile(
    rf"(?:INSERT\s+(?:LOW_PRIORITY\s+|DELAYED\s+|HIGH_PRIORITY\s+|IGNORE\s+)*(?:INTO\s+)?|REPLACE\s+(?:INTO\s+)?|"
    rf"UPDATE\s+(?:LOW_PRIORITY\s+|IGNORE\s+)*|DELETE\s+(?:LOW_PRIORITY\s+|QUICK\s+|IGNORE\s+)*FROM\s+){_NAME}",
    re.I,
)
_QUOTED: Final = re.compile(r"`((?:[^`]|``)+)`|\"([^\"]+)\"|([\w$]+)")


def effect_of(statement: str, database: str) -> Effect | None:
    """Return what a statement does, and to which ``schema.table``; None if it is nothing that matters.

    ``truncate``: the table is empty. ``create``: it is new and empty. ``partition``: rows left it, or came, that no row event
    tells of. ``rows``: it changed rows by itself, so the binlog is not all rows.
    """
    text = _VERSIONED.sub(" ", _COMMENT.sub(" ", statement)).strip()
    for kind, pattern in (("truncate", _TRUNCATE), ("create", _CREATE), ("partition", _PARTITION), ("rows", _ROWS)):
        found = pattern.match(text)
        if found is not None:
            return kind, _full_name(found[found.lastindex or 1], database)  # type: ignore[return-value]
    return None


def _full_name(text: str, database: str) -> str:
    parts = [next(filter(None, found.groups())).replace("``", "`") for found in _QUOTED.finditer(text)]
    return ".".join(parts if len(parts) > 1 else [database, *parts])
