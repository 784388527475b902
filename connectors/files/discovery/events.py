"""What object stores say about new objects, in the shapes that S3 and its kin use; called by the notification channels.

An event is a hint: the object is looked at before it counts, so events that come twice, late, out of order or for an object
that is gone do no harm.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote_plus

__all__ = ["NoEvent", "ObjectEvent", "object_events"]


class NoEvent(Exception):
    """A message is none that a store sends."""


class ObjectEvent(NamedTuple):
    """An object was written.

    Attributes:
        bucket: Its bucket.
        key: Its key, decoded.
    """

    bucket: str
    key: str


def object_events(message: bytes | str) -> list[ObjectEvent]:
    """Return the objects that a message says were written; none for deletions and for S3's test event.

    Understands S3 events (also of MinIO and Ceph), the same wrapped by SNS, and those of EventBridge.

    Raises:
        NoEvent: Something else.
    """
    try:
        document = json.loads(message)
        return list(_events(document))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
        raise NoEvent(str(exc)) from exc


def _events(document: Mapping[str, Any]) -> Iterator[ObjectEvent]:
    if document.get("Event") == "s3:TestEvent":
        return
    if "Message" in document and "Records" not in document:  # SNS
        yield from object_events(document["Message"])
        return
    if "detail" in document:  # EventBridge: keys are not encoded
        if document["detail-type"] == "Object Created":
            detail = document["detail"]
            yield ObjectEvent(str(detail["bucket"]["name"]), str(detail["object"]["key"]))
        return
    for record in document["Records"]:
        name = str(record["eventName"]).removeprefix("s3:")
        if name.startswith("ObjectCreated:"):
            stored = record["s3"]
            yield ObjectEvent(str(stored["bucket"]["name"]), unquote_plus(str(stored["object"]["key"])))
