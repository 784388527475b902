"""Positions and the app ids they are stored under in a Delta log.

A position is where a source partition resumes: a monotone int64, half-open (the next thing to read). Connectors make
them, sinks compare and store them, the planner reads them back.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from urllib.parse import quote

__all__ = [
    "FENCE_APP_ID",
    "MAX_POSITION",
    "RowPosition",
    "app_id",
    "definition_app_id",
    "fence_app_id",
    "identity_app_id",
    "identity_version",
    "note_app_id",
    "once_app_id",
    "owner_app_id",
    "sources_app_id",
]

FENCE_APP_ID = "waxlake/fence"
MAX_POSITION = 2**63 - 1
_MINOR_BITS = 36
_MINOR_MASK = (1 << _MINOR_BITS) - 1
_SAFE = ":@+=,~!$&'()*;"


def app_id(flow: str, source: str, partition: str) -> str:
    """Return the Delta ``txn`` app id under which ``flow`` stores its position in one source partition.

    Args:
        flow: Flow name; with the source and the partition it is the whole identity.
        source: Source identity, that which makes the source *that* source (cluster id and topic id, bucket and prefix).
        partition: Source partition key.

    Source: DESIGN §2, "App ids". A slash inside a component is percent-encoded, so two triples never collide.
    """
    return "/".join(["waxlake", *(quote(part, safe=_SAFE) for part in (flow, source, partition))])


def note_app_id(app: str, name: str) -> str:
    """Return the app id of a value that is stored beside the position of another app id."""
    return f"{app}/{name}"


def identity_app_id(flow: str, name: str) -> str:
    """Return the app id that remembers *which* source stood behind ``name`` when the flow last committed."""
    return "/".join(["waxlake", quote(flow, safe=_SAFE), quote(name, safe=_SAFE), "identity"])


def sources_app_id(flow: str) -> str:
    """Return the app id that remembers the set of sources the flow read when it last committed."""
    return "/".join(["waxlake", quote(flow, safe=_SAFE), "sources"])


def definition_app_id(flow: str) -> str:
    """Return the app id that remembers by which definition the flow last committed."""
    return "/".join(["waxlake", quote(flow, safe=_SAFE), "definition"])


def once_app_id(flow: str, name: str) -> str:
    """Return the app id that says that a flow that runs once has read all of the source called ``name``."""
    return "/".join(["waxlake", quote(flow, safe=_SAFE), quote(name, safe=_SAFE), "once"])


def owner_app_id(flow: str) -> str:
    """Return the app id that remembers whose flow it is, in a table that several pipelines append to."""
    return "/".join(["waxlake", quote(flow, safe=_SAFE), "owner"])


def fence_app_id(pipeline: str) -> str:
    """Return the app id of a pipeline's own fence, in a table that several pipelines append to."""
    return "/".join(["waxlake", "fence", quote(pipeline, safe=_SAFE)])


def identity_version(identity: str) -> int:
    """Return a stable non-negative int64 that stands for a source identity, to be stored as a ``txn`` version."""
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True, slots=True, order=True)
class RowPosition:
    """A row inside a numbered thing: a file of a ledger, or a version of a Delta table.

    Attributes:
        major: Number of the file or version, 0 to 2**27 - 1.
        minor: Rows of it already read, 0 to 2**36 - 1.
    """

    major: int
    minor: int = 0

    def pack(self) -> int:
        """Return the position as one int64; the order of positions is the order of the integers.

        Raises:
            ValueError: Either part is out of range.
        """
        if not 0 <= self.major < 1 << (63 - _MINOR_BITS) or not 0 <= self.minor <= _MINOR_MASK:
            raise ValueError(f"row position out of range: {self.major}/{self.minor}")
        return self.major << _MINOR_BITS | self.minor

    @classmethod
    def unpack(cls, packed: int) -> RowPosition:
        """Return the position that ``pack`` encoded."""
        return cls(packed >> _MINOR_BITS, packed & _MINOR_MASK)
