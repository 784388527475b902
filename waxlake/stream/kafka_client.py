"""What clients of Kafka share: how they are made, what they complain about, and what their errors mean.

Every error of librdkafka becomes one of ours here and nowhere else.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Final, Protocol

from confluent_kafka import KafkaError, KafkaException

from waxlake.stream.errors import ExternalError, TerminalError, TransientError, UsageError
from waxlake.stream.kafka_options import KafkaOptions

__all__ = ["COMMON_OPTIONS", "Cluster", "Complaints", "answered", "connection_options", "kafka_error", "open_client"]

# librdkafka repeats every refused connection: whoever wants to read that, adds a handler.
_LIBRDKAFKA_LOG: Final = logging.getLogger("connectors.kafka.librdkafka")
_LIBRDKAFKA_LOG.addHandler(logging.NullHandler())

COMMON_OPTIONS: Final[dict[str, Any]] = {
    "client.id": "waxlake",
    "reconnect.backoff.max.ms": 2000,
    "topic.metadata.refresh.interval.ms": 30_000,
}
# What an admin client understands of a consumer's options.
_CONNECTION_OPTIONS: Final = (
    "api.", "broker.", "client.", "connections.", "debug", "enable.s", "log", "metadata.", "oauth", "plugin.",
    "reconnect.", "receive.", "resolve_cb", "retry.", "sasl.", "security.", "socket.", "ssl",
)  # fmt: skip

_AUTHENTICATION: Final = frozenset({KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED})
_AUTHORIZATION: Final = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    }
)
_AWAY: Final = frozenset(
    {
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._TRANSPORT,
        KafkaError._RESOLVE,
        KafkaError._TIMED_OUT,
        KafkaError._SSL,
    }
)
_HOPELESS: Final = frozenset(
    {
        KafkaError.TOPIC_EXCEPTION,
        KafkaError.UNSUPPORTED_VERSION,
        KafkaError._UNSUPPORTED_FEATURE,
        KafkaError._INVALID_ARG,
    }
)


class Cluster(Protocol):
    """What the settings of a source or sink say of its cluster."""

    @property
    def bootstrap_servers(self) -> str:
        """Brokers to ask first."""
        ...

    @property
    def options(self) -> KafkaOptions:
        """Settings of librdkafka."""
        ...


@dataclass(slots=True)
class Complaints:
    """What a client said through its error callback, kept to explain a failure.

    Attributes:
        seen: The latest text of each error code.
        denied: The first authentication error, or None.
        away_since_s: When all brokers were reported down (monotonic); None while one answers.
    """

    seen: dict[int, str] = field(default_factory=dict)
    denied: KafkaError | None = None
    away_since_s: float | None = None

    def __call__(self, error: KafkaError) -> None:
        """Take one error; librdkafka calls it from ``poll`` and ``consume``."""
        self.seen[error.code()] = error.str()
        if _is_authentication(error):
            self.denied = self.denied or error
        if error.code() == KafkaError._ALL_BROKERS_DOWN and self.away_since_s is None:
            self.away_since_s = time.monotonic()

    def has_answered(self) -> None:
        """Forget it all: a broker answers."""
        self.away_since_s = None
        self.seen.clear()

    def explanation(self) -> str:
        """Return the most telling text, or nothing."""
        for code in (KafkaError._AUTHENTICATION, KafkaError._SSL, KafkaError._RESOLVE, KafkaError._TRANSPORT):
            if code in self.seen:
                return self.seen[code]
        return next(iter(self.seen.values()), "")


def _is_authentication(error: KafkaError) -> bool:
    """Whether the broker refused the credentials."""
    return error.code() in _AUTHENTICATION


def connection_options(options: KafkaOptions) -> dict[str, Any]:
    """Return those options of a consumer or producer that any client understands."""
    return {key: value for key, value in options.items() if key.startswith(_CONNECTION_OPTIONS)}


def open_client(kind: Callable[..., Any], settings: Cluster, complaints: Complaints, config: dict[str, Any]) -> Any:
    """Return a client of librdkafka.

    Args:
        kind: ``Consumer``, ``Producer`` or ``AdminClient``.
        settings: The cluster.
        complaints: Receives what goes wrong in the background.
        config: Its settings, brokers left out.

    Raises:
        UsageError: A setting that librdkafka refuses. Not retryable.
    """
    # Large responses are cut off at this size, so it follows the size of a fetch.
    config.setdefault("receive.message.max.bytes", max(100_000_000, int(config.get("fetch.max.bytes", 0)) + 1024))
    config |= {"bootstrap.servers": settings.bootstrap_servers, "error_cb": complaints}
    try:
        return kind(config, logger=_LIBRDKAFKA_LOG)
    except (KafkaException, ValueError) as exc:
        error = exc.args[0]
        text = error.str() if isinstance(error, KafkaError) else str(error)
        raise UsageError(
            f"cannot make a Kafka client for {settings.bootstrap_servers}",
            code="KAFKA_OPTION_INVALID",
            found=settings.options.scrub(text.strip()),
            remedy="Correct the option that it names",
        ) from None


def answered(call: Callable[..., None], *arguments: Any, timeout_s: float) -> None:
    """Make a call of a client, and give up on it when it does not return in time.

    Calls about transactions were seen to wait for ever for a broker that had been killed, whatever time-out they were given.
    A call that is given up waits on in a thread that does not keep the process from ending; its client must not be used.

    Raises:
        TimeoutError: It did not return.
        KafkaException: What it raised.
    """
    answers: SimpleQueue[BaseException | None] = SimpleQueue()

    def ask() -> None:
        try:
            call(*arguments)
        except BaseException as exc:  # noqa: BLE001 - the boundary of a thread: raised by whoever waits for it
            answers.put(exc)
        else:
            answers.put(None)

    threading.Thread(target=ask, name="kafka-call", daemon=True).start()
    try:
        error = answers.get(timeout=timeout_s)
    except Empty:
        raise TimeoutError(f"no answer in {timeout_s} s") from None
    if error is not None:
        raise error


def kafka_error(what: str, error: KafkaError, settings: Cluster, complaints: Complaints) -> ExternalError:
    """Return our error for one of librdkafka's.

    Args:
        what: What failed, on which object.
        error: The error.
        settings: The cluster; its secrets are kept out of the text.
        complaints: What was said in the background, which often is the cause of a time-out.
    """
    servers = settings.bootstrap_servers
    denied = error if _is_authentication(error) else complaints.denied
    if denied is not None:
        return TerminalError(
            what,
            code="KAFKA_AUTHENTICATION",
            found=f"{servers} refuses the credentials ({settings.options.scrub(denied.str())})",
            remedy="Check security.protocol, sasl.mechanism, sasl.username and sasl.password in options",
        )
    if error.code() in _AUTHORIZATION:
        return TerminalError(
            what,
            code="KAFKA_AUTHORIZATION",
            found=settings.options.scrub(error.str()),
            expected="a user who may DESCRIBE the topic, READ it for a source, WRITE it for a sink",
            remedy="Grant it, or log on as another user",
        )
    if error.code() in _AWAY:
        reason = complaints.explanation() or error.str()
        return TransientError(
            what,
            code="KAFKA_UNREACHABLE",
            found=f"no answer from {servers} ({settings.options.scrub(reason)})",
            remedy="Check that the brokers run, that bootstrap_servers is right and that security.protocol is theirs",
        )
    kind = TerminalError if error.fatal() or error.code() in _HOPELESS else TransientError
    return kind(what, code="KAFKA_ERROR", found=f"{settings.options.scrub(error.str())} ({error.name()})")
