"""Notifications from an SQS queue: messages leave it after the ledger has what they tell; called by discovery.

Failure points: before the ledger's commit the messages come back when their visibility ends; after it and before they are
deleted they come back too, and tell what the ledger knows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from connectors.files.discovery.channel import ChannelLost, Heard
from connectors.files.discovery.events import NoEvent, object_events
from connectors.files.store import mapped_error
from connectors.files.store_options import s3fs_options
from waxlake.stream.errors import TransientError, shorten
from waxlake.stream.settings import StorageOptions

__all__ = ["SqsChannel"]

_MOST_MESSAGES: Final = 5000
_BATCH: Final = 10
_VISIBILITY_S: Final = 600
_WAIT_S: Final = 1  # without a wait SQS asks some of its servers only, and an empty answer means nothing
_URL: Final = re.compile(r"(https?://[^/]+)/")
_HOST_REGION: Final = re.compile(r"sqs[.]([a-z0-9-]+)[.]|([a-z0-9-]+)[.]queue[.]")


class SqsChannel:
    """One queue.

    Args:
        queue_url: Its URL.
        region: Its region; None takes it from the URL, or from the options.
        options: Storage options, for the keys.
    """

    def __init__(self, queue_url: str, region: str | None, options: StorageOptions) -> None:
        self._url, self._region, self._options = queue_url, region, options
        self._opened: Any = None
        self._receipts: list[str] = []

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"SQS queue {self._url}"

    def ends(self) -> Mapping[str, int]:
        """Return no positions: the queue itself remembers. Looks whether it is there."""
        with self._errors():
            self._client.get_queue_attributes(QueueUrl=self._url, AttributeNames=["ApproximateNumberOfMessages"])
        return {}

    def hear(self, stored: Callable[[str], int | None]) -> Heard:
        """Return what is on the queue, and hide it there for ten minutes."""
        events, ignored, has_more = [], 0, True
        self._receipts = []  # of a look that was not recorded: those messages come back
        while has_more and len(self._receipts) < _MOST_MESSAGES:
            messages = self._receive()
            has_more = bool(messages)
            for message in messages:
                self._receipts.append(message["ReceiptHandle"])
                try:
                    events += object_events(message["Body"])
                except NoEvent:
                    ignored += 1
        return Heard(events, {}, ignored, has_more)

    def recorded(self) -> None:
        """Delete what was heard. What cannot be deleted now comes again, and is known then."""
        while self._receipts:
            batch, self._receipts = self._receipts[:_BATCH], self._receipts[_BATCH:]
            entries = [{"Id": str(index), "ReceiptHandle": receipt} for index, receipt in enumerate(batch)]
            with self._errors():
                self._client.delete_message_batch(QueueUrl=self._url, Entries=entries)

    def close(self) -> None:
        """Free the connection."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def _receive(self) -> list[dict[str, Any]]:
        with self._errors():
            answer = self._client.receive_message(
                QueueUrl=self._url, MaxNumberOfMessages=_BATCH, VisibilityTimeout=_VISIBILITY_S, WaitTimeSeconds=_WAIT_S
            )
        messages: list[dict[str, Any]] = answer.get("Messages", [])
        return messages

    @property
    def _client(self) -> Any:
        if self._opened is None:
            import botocore.session

            given = s3fs_options(self._options)
            session = botocore.session.Session(profile=given.get("profile"))
            host = _URL.match(self._url)
            named = _HOST_REGION.search(self._url)
            region = self._region or (named and (named[1] or named[2]))
            self._opened = session.create_client(
                "sqs",
                region_name=region or given.get("client_kwargs", {}).get("region_name"),
                endpoint_url=host[1] if host else None,
                aws_access_key_id=given.get("key"),
                aws_secret_access_key=given.get("secret"),
                aws_session_token=given.get("token"),
            )
        return self._opened

    @contextmanager
    def _errors(self) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (BotoCoreError, ClientError) as exc:
            text = shorten(f"{type(exc).__name__}: {exc}", 300)
            error = mapped_error(f"read {self.name}", exc)
            if isinstance(error, TransientError) or "NonExistentQueue" in text or "QueueDoesNotExist" in text:
                raise ChannelLost(text) from exc
            raise error from exc
