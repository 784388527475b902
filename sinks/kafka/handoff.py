"""Hands batches to Kafka: the records of a batch and the batch's number are one transaction.

The number is the offset that the transaction commits for a consumer group of the sink's own, which nobody consumes with. It is
there with the records or not at all, and a later run reads it after it has shut out whoever was sending: so it knows for sure
whether the one batch that was under way is in the topic. Consumers that read committed records see each row once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Final

import pyarrow as pa
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from sinks.batches.staging import StagedBatch
from sinks.kafka.messages import RecordMaker
from sinks.kafka.settings import KafkaSinkSettings
from waxlake.stream.errors import ExternalError, TerminalError, TransientError
from waxlake.stream.failpoints import failpoint
from waxlake.stream.kafka_client import (
    COMMON_OPTIONS,
    Complaints,
    answered,
    connection_options,
    kafka_error,
    open_client,
)

__all__ = ["KafkaHandoff"]

_NO_TRANSACTIONS: Final = frozenset({KafkaError.UNSUPPORTED_VERSION, KafkaError._UNSUPPORTED_FEATURE})
_TOPIC_GONE: Final = frozenset(
    {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION}
)
_TOO_LARGE: Final = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE})
_TOPIC_TIMEOUT_MS: Final = 5_000
_GRACE_S: Final = 5.0


class KafkaHandoff:
    """The Kafka side of one sink.

    Args:
        name: Name of the sink.
        settings: What was set about it.

    Guarantee: exactly once per batch number for consumers that read committed records (``delivery="exactly-once"``).
    """

    def __init__(self, name: str, settings: KafkaSinkSettings) -> None:
        self._name, self._settings = name, settings
        self._complaints = Complaints()
        self._producer: Any = None
        self._group: Any = None
        self._failed: KafkaError | None = None

    @property
    def _is_transactional(self) -> bool:
        return self._settings.delivery == "exactly-once"

    def open(self, ledger_id: str) -> None:
        """Connect, and end whatever a former producer of this sink left open.

        Raises:
            TransientError: No broker answers. Retryable.
            TerminalError: The broker has no transactions, or refuses the credentials. Not retryable.
        """
        settings = self._settings
        self._complaints, self._failed = Complaints(), None
        identity = f"waxlake-sink-{ledger_id}"
        config: dict[str, Any] = {
            **COMMON_OPTIONS,
            "linger.ms": 20,
            "topic.metadata.propagation.max.ms": _TOPIC_TIMEOUT_MS,
            "message.timeout.ms": max(1, int(settings.request_timeout_s * 1000)),
            **settings.options,
            "enable.idempotence": True,
            "on_delivery": self._reported,
        }
        if self._is_transactional:
            config["transactional.id"] = identity
            config.setdefault("transaction.timeout.ms", max(60_000, int(config["message.timeout.ms"])))
            group = {**COMMON_OPTIONS, **connection_options(settings.options), "group.id": identity}
            group |= {"enable.auto.commit": False, "isolation.level": "read_committed"}
            self._group = open_client(Consumer, settings, self._complaints, group)
        self._producer = open_client(Producer, settings, self._complaints, config)
        if self._is_transactional:
            try:
                self._answered(self._producer.init_transactions, settings.request_timeout_s)
            except KafkaException as exc:
                raise self._error("open its transactions", exc.args[0]) from exc

    def has(self, batch: StagedBatch, *, is_first: bool) -> bool:
        """Return whether the batch is in the topic, for sure.

        Raises:
            TransientError: No broker answers. Retryable.
            TerminalError: ``SINK_BATCH_UNKNOWN``: Kafka forgot, and nobody said what to do then. Not retryable.
        """
        if not self._is_transactional:
            return False
        try:
            (found,) = self._group.committed([self._number(0)], timeout=self._settings.request_timeout_s)
        except KafkaException as exc:
            raise self._error("ask what was sent", exc.args[0]) from exc
        if found.error is not None:
            raise self._error("ask what was sent", found.error)
        if found.offset >= 0:
            return int(found.offset) >= batch.number
        if is_first or self._settings.on_unknown_batch == "send":
            return False
        if self._settings.on_unknown_batch == "skip":
            return True
        raise TerminalError(
            f"cannot go on with sink '{self._name}'",
            code="SINK_BATCH_UNKNOWN",
            found=f"no word in Kafka of batch {batch.number} ({batch.rows} rows), which the last run may have sent",
            expected="the offset that its transaction committed",
            remedy="It expired (offsets.retention.minutes), or the topic was recreated. Look into the topic, then set "
            "on_unknown_batch='send' or 'skip' in the sink's options",
        )

    def deliver(self, batch: StagedBatch, rows: pa.Table, attempt: int) -> None:
        """Send a batch: all of it, or nothing that a consumer of committed records sees.

        Raises:
            TransientError: It may or may not be in the topic. Retryable, after ``open`` and ``has``.
            TerminalError: The topic is not there, a record is too large, no right to write. Not retryable.
            UserError: An expression fails on its rows. Not retryable.
        """
        try:
            if self._is_transactional:
                self._producer.begin_transaction()
            self._send(rows)
            if self._is_transactional:
                group = self._group.consumer_group_metadata()
                limit_s = self._settings.request_timeout_s
                self._answered(self._producer.send_offsets_to_transaction, [self._number(batch.number)], group, limit_s)
                self._flush()
                failpoint("batch-sent")
                self._answered(self._producer.commit_transaction, limit_s)
            else:
                self._flush()
                failpoint("batch-sent")
        except KafkaException as exc:
            raise self._error("send a batch", self._failed or exc.args[0]) from exc

    def close(self) -> None:
        """Disconnect; a transaction that is open is never committed."""
        producer, self._producer = self._producer, None
        if producer is not None:
            with contextlib.suppress(KafkaException):
                producer.purge()
                producer.flush(0.1)
            if self._is_transactional:
                with contextlib.suppress(KafkaException):
                    producer.abort_transaction(1.0)  # consumers need not wait until it times out
        group, self._group = self._group, None
        if group is not None:
            with contextlib.suppress(KafkaException, RuntimeError):
                group.close()

    def _answered(self, call: Callable[..., None], *arguments: Any) -> None:
        """Call the client, and leave it behind if it does not answer in time: another one shuts it out."""
        try:
            answered(call, *arguments, timeout_s=self._settings.request_timeout_s + _GRACE_S)
        except TimeoutError as exc:
            self._producer = self._group = None
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT)) from exc

    def _number(self, number: int) -> TopicPartition:
        return TopicPartition(self._settings.topic, 0, number)

    def _send(self, rows: pa.Table) -> None:
        maker = RecordMaker(self._settings, rows.schema)
        try:
            for record in maker.records(rows):
                while True:
                    try:
                        self._producer.produce(**record)
                        break
                    except BufferError:
                        self._producer.poll(0.1)
                        self._require_no_failure()
            self._producer.poll(0)
            self._require_no_failure()
        finally:
            maker.close()

    def _flush(self) -> None:
        """Wait until the broker has every record."""
        if self._producer.flush(self._settings.request_timeout_s):
            raise self._error("send a batch", self._failed or KafkaError(KafkaError._TIMED_OUT))
        self._require_no_failure()

    def _reported(self, error: KafkaError | None, message: object) -> None:
        if error is not None and self._failed is None:
            self._failed = error

    def _require_no_failure(self) -> None:
        if self._failed is not None:
            raise self._error("send a batch", self._failed)

    def _error(self, doing: str, error: KafkaError) -> ExternalError:
        """Return our error; whatever may pass is tried again from ``open`` on."""
        what = f"sink '{self._name}' cannot {doing} to {self._settings.label}"
        if error.code() in _NO_TRANSACTIONS:
            return TerminalError(
                what,
                code="KAFKA_NO_TRANSACTIONS",
                found=f"{self._settings.bootstrap_servers} has no transactions",
                expected="a broker with transactions, for delivery='exactly-once'",
                remedy="Set delivery='at-least-once' in the sink's options",
            )
        if error.code() in _TOPIC_GONE:
            return TerminalError(
                what,
                code="KAFKA_TOPIC_MISSING",
                found="no such topic or partition",
                remedy="Create it and run again: the same rows are sent",
            )
        if error.code() in _TOO_LARGE:
            return TerminalError(
                what,
                code="KAFKA_RECORD_TOO_LARGE",
                found=error.str(),
                remedy="Raise message.max.bytes of the sink's options and max.message.bytes of the topic, and run again",
            )
        ours = kafka_error(what, error, self._settings, self._complaints)
        if isinstance(ours, TerminalError) and error.fatal() and ours.code == "KAFKA_ERROR":
            return TransientError(what, code=ours.code, found=ours.found)  # a new producer starts afresh
        return ours
