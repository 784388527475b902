"""Settings of librdkafka that users pass through: what they are, and how librdkafka itself is asked whether they are valid.

Called by the settings of the Kafka source and of the Kafka sink.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from waxlake.stream.errors import UsageError
from waxlake.stream.settings import nearest, redact

__all__ = ["CONNECTION_OPTIONS", "KafkaOptions", "as_kafka_options", "check_kafka_options"]

# For "did you mean": librdkafka tells only that a name is unknown.
CONNECTION_OPTIONS: Final = (
    "api.version.request", "broker.address.family", "broker.address.ttl", "client.id", "client.rack",
    "connections.max.idle.ms", "debug", "enable.sasl.oauthbearer.unsecure.jwt",
    "enable.ssl.certificate.verification", "log_level", "max.in.flight.requests.per.connection",
    "message.max.bytes", "metadata.max.age.ms", "oauth_cb", "receive.message.max.bytes",
    "reconnect.backoff.max.ms", "reconnect.backoff.ms", "retry.backoff.max.ms", "retry.backoff.ms",
    "sasl.kerberos.keytab", "sasl.kerberos.kinit.cmd", "sasl.kerberos.min.time.before.relogin",
    "sasl.kerberos.principal", "sasl.kerberos.service.name", "sasl.mechanism", "sasl.mechanisms",
    "sasl.oauthbearer.client.id", "sasl.oauthbearer.client.secret", "sasl.oauthbearer.config",
    "sasl.oauthbearer.extensions", "sasl.oauthbearer.method", "sasl.oauthbearer.scope",
    "sasl.oauthbearer.token.endpoint.url", "sasl.password", "sasl.username", "security.protocol",
    "socket.blocking.max.ms", "socket.connection.setup.timeout.ms", "socket.keepalive.enable",
    "socket.nagle.disable", "socket.receive.buffer.bytes", "socket.send.buffer.bytes", "socket.timeout.ms",
    "ssl.ca.certificate.stores", "ssl.ca.location", "ssl.ca.pem", "ssl.certificate.location",
    "ssl.certificate.pem", "ssl.cipher.suites", "ssl.crl.location", "ssl.curves.list",
    "ssl.endpoint.identification.algorithm", "ssl.engine.location", "ssl.key.location", "ssl.key.password",
    "ssl.key.pem", "ssl.keystore.location", "ssl.keystore.password", "ssl.providers", "ssl.sigalgs.list",
    "topic.metadata.refresh.interval.ms",
)  # fmt: skip

# Not a setting of anything: reaching it shows that everything before it was accepted, and no client is created.
_SENTINEL: Final = "waxlake.end.of.options"


class KafkaOptions(Mapping[str, Any]):
    """Settings of librdkafka; equal and hashable by value, and ``repr`` and ``str`` hide the secret ones."""

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self._options = {key: _as_option(value) for key, value in (options or {}).items()}

    def __getitem__(self, key: str) -> Any:
        return self._options[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._options)

    def __len__(self) -> int:
        return len(self._options)

    def __hash__(self) -> int:
        return hash(frozenset(self._options.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KafkaOptions) and self._options == other._options

    def __repr__(self) -> str:
        return f"KafkaOptions({redact(self._options)})"

    def scrub(self, text: str) -> str:
        """Return ``text`` without the values of secret options."""
        for key, shown in redact(self._options).items():
            secret = self._options[key]
            if shown == "***" and isinstance(secret, str) and len(secret) > 3:
                text = text.replace(secret, "***")
        return text


def _as_option(value: object) -> str | Callable[..., Any]:
    """Return the value as librdkafka takes it: text, or a callable for ``oauth_cb``."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if callable(value) else "" if value is None else str(value)


def as_kafka_options(value: object) -> object:
    """Return a mapping as ``KafkaOptions``; anything else unchanged, for the model to refuse."""
    return KafkaOptions(value) if isinstance(value, Mapping) and not isinstance(value, KafkaOptions) else value


def check_kafka_options(
    options: Mapping[str, Any],
    *,
    managed: Mapping[str, str],
    known: Iterable[str],
    elsewhere: Mapping[str, str],
    client: Callable[[dict[str, Any]], object],
) -> None:
    """Let librdkafka read the options, without creating a client.

    Args:
        options: What the user gave.
        managed: Keys that are ours, with what to use instead.
        known: Keys for "did you mean".
        elsewhere: Keys of other clients, with what librdkafka calls them.
        client: Makes a client of a configuration, as ``Consumer``.

    Raises:
        UsageError: ``KAFKA_OPTION_MANAGED`` for a key that is ours, ``KAFKA_OPTION_UNKNOWN`` for one that librdkafka does
            not know (with the nearest that it does), ``KAFKA_OPTION_INVALID`` for a value. Not retryable.
    """
    for key in options:
        if key in managed:
            raise UsageError(
                f"cannot set Kafka option {key!r}",
                code="KAFKA_OPTION_MANAGED",
                remedy=f"Waxlake sets it. {managed[key]}",
            )
    for key, value in options.items():
        problem = _problem({key: value}, client)
        if not problem:
            continue
        if key in elsewhere or "No such configuration property" in problem:
            raise UsageError(
                f"cannot set Kafka option {key!r}: librdkafka has no such setting",
                code="KAFKA_OPTION_UNKNOWN",
                remedy=elsewhere.get(key) or nearest(key, known),
            )
        # librdkafka's text may quote the value.
        is_secret = redact(options)[key] == "***"
        raise UsageError(
            f"cannot set Kafka option {key!r}",
            code="KAFKA_OPTION_INVALID",
            found="a value that librdkafka refuses" if is_secret else problem,
            remedy="See librdkafka's CONFIGURATION.md for its values",
        )


def _problem(options: Mapping[str, Any], client: Callable[[dict[str, Any]], object]) -> str:
    """Return what librdkafka has against the options; empty if nothing."""
    from confluent_kafka import KafkaException

    try:
        client({"group.id": "waxlake", **options, _SENTINEL: ""})
    except KafkaException as exc:
        problem: str = exc.args[0].str().strip()
        return "" if _SENTINEL in problem else problem
    except (TypeError, ValueError) as exc:
        return str(exc)
    return ""
