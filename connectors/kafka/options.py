"""Which settings of librdkafka a user may give, and which are ours; called when Kafka settings are made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from waxlake.stream.errors import UsageError
from waxlake.stream.settings import nearest, redact

__all__ = ["MANAGED_OPTIONS", "check_options"]

_POSITIONS_ARE_OURS = "Positions are stored with the rows in the table and are never committed to Kafka"

# Key -> what to use instead. With another value the source would lose or repeat records, or never end.
MANAGED_OPTIONS: Final[Mapping[str, str]] = {
    "bootstrap.servers": "Use bootstrap_servers",
    "metadata.broker.list": "Use bootstrap_servers",
    "enable.auto.commit": _POSITIONS_ARE_OURS,
    "auto.commit.enable": _POSITIONS_ARE_OURS,
    "auto.commit.interval.ms": _POSITIONS_ARE_OURS,
    "enable.auto.offset.store": _POSITIONS_ARE_OURS,
    "offset.store.method": _POSITIONS_ARE_OURS,
    "auto.offset.reset": "Use starting_offsets for the first run, and on_data_loss for offsets that are gone",
    "enable.partition.eof": "It is always on: the end of a partition is found by it",
    "group.instance.id": "No consumer group is joined; 'group.id' is used for authorization only",
    "group.protocol": "No consumer group is joined; 'group.id' is used for authorization only",
    "partition.assignment.strategy": "No consumer group is joined; 'group.id' is used for authorization only",
    "error_cb": "Errors are reported by the source",
    "logger": "librdkafka logs to the Python logger 'connectors.kafka.librdkafka'",
    "log_cb": "librdkafka logs to the Python logger 'connectors.kafka.librdkafka'",
    "stats_cb": "Figures are in the event log",
    "throttle_cb": "Figures are in the event log",
    "on_commit": _POSITIONS_ARE_OURS,
}

# For "did you mean": librdkafka tells only that a name is unknown.
_CONSUMER_OPTIONS: Final = (
    "allow.auto.create.topics", "api.version.request", "broker.address.family", "broker.address.ttl",
    "check.crcs", "client.id", "client.rack", "connections.max.idle.ms", "debug",
    "enable.sasl.oauthbearer.unsecure.jwt", "enable.ssl.certificate.verification", "fetch.error.backoff.ms",
    "fetch.max.bytes", "fetch.message.max.bytes", "fetch.min.bytes", "fetch.queue.backoff.ms", "fetch.wait.max.ms",
    "group.id", "isolation.level", "log_level", "max.in.flight.requests.per.connection", "max.partition.fetch.bytes",
    "message.max.bytes", "metadata.max.age.ms", "oauth_cb", "queued.max.messages.kbytes", "queued.min.messages",
    "receive.message.max.bytes", "reconnect.backoff.max.ms", "reconnect.backoff.ms", "retry.backoff.max.ms",
    "retry.backoff.ms", "sasl.kerberos.keytab", "sasl.kerberos.kinit.cmd", "sasl.kerberos.min.time.before.relogin",
    "sasl.kerberos.principal", "sasl.kerberos.service.name", "sasl.mechanism", "sasl.mechanisms",
    "sasl.oauthbearer.client.id", "sasl.oauthbearer.client.secret", "sasl.oauthbearer.config",
    "sasl.oauthbearer.extensions", "sasl.oauthbearer.method", "sasl.oauthbearer.scope",
    "sasl.oauthbearer.token.endpoint.url", "sasl.password", "sasl.username", "security.protocol",
    "session.timeout.ms", "socket.blocking.max.ms", "socket.connection.setup.timeout.ms", "socket.keepalive.enable",
    "socket.nagle.disable", "socket.receive.buffer.bytes", "socket.send.buffer.bytes", "socket.timeout.ms",
    "ssl.ca.certificate.stores", "ssl.ca.location", "ssl.ca.pem", "ssl.certificate.location", "ssl.certificate.pem",
    "ssl.cipher.suites", "ssl.crl.location", "ssl.curves.list", "ssl.endpoint.identification.algorithm",
    "ssl.engine.location", "ssl.key.location", "ssl.key.password", "ssl.key.pem", "ssl.keystore.location",
    "ssl.keystore.password", "ssl.providers", "ssl.sigalgs.list", "topic.metadata.refresh.interval.ms",
)  # fmt: skip

# What Java's client calls them.
_JAVA_NAMES: Final[Mapping[str, str]] = {
    "sasl.jaas.config": "librdkafka has no JAAS: use 'sasl.username' and 'sasl.password'",
    "ssl.truststore.location": "librdkafka reads PEM: use 'ssl.ca.location'",
    "ssl.truststore.password": "librdkafka reads PEM: use 'ssl.ca.location'",
    "max.poll.records": "Use max_rows_per_batch",
    "fetch.max.wait.ms": "librdkafka calls it 'fetch.wait.max.ms'",
    "request.timeout.ms": "Use request_timeout_s",
}

# Not a setting of anything: reaching it shows that everything before it was accepted, and no client is created.
_SENTINEL: Final = "waxlake.end.of.options"


def check_options(options: Mapping[str, Any]) -> None:
    """Let librdkafka read the options, without creating a client.

    Raises:
        UsageError: ``KAFKA_OPTION_MANAGED`` for a key that is ours, ``KAFKA_OPTION_UNKNOWN`` for one that librdkafka does
            not know (with the nearest that it does), ``KAFKA_OPTION_INVALID`` for a value. Not retryable.
    """
    if not options:
        return
    for key in options:
        if key in MANAGED_OPTIONS:
            raise UsageError(
                f"cannot set Kafka option {key!r}",
                code="KAFKA_OPTION_MANAGED",
                remedy=f"Waxlake sets it. {MANAGED_OPTIONS[key]}",
            )
    for key, value in options.items():
        problem = _problem({key: value})
        if problem:
            raise _refused(key, options, problem)


def _problem(options: Mapping[str, Any]) -> str:
    """Return what librdkafka has against the options; empty if nothing."""
    from confluent_kafka import Consumer, KafkaException

    try:
        Consumer({"group.id": "waxlake", **options, _SENTINEL: ""})
    except KafkaException as exc:
        problem: str = exc.args[0].str().strip()
        return "" if _SENTINEL in problem else problem
    except (TypeError, ValueError) as exc:
        return str(exc)
    return ""


def _refused(key: str, options: Mapping[str, Any], problem: str) -> UsageError:
    if key in _JAVA_NAMES or "No such configuration property" in problem:
        return UsageError(
            f"cannot set Kafka option {key!r}: librdkafka has no such setting",
            code="KAFKA_OPTION_UNKNOWN",
            remedy=_JAVA_NAMES.get(key) or nearest(key, _CONSUMER_OPTIONS),
        )
    # librdkafka's text may quote the value.
    is_secret = redact(options)[key] == "***"
    return UsageError(
        f"cannot set Kafka option {key!r}",
        code="KAFKA_OPTION_INVALID",
        found="a value that librdkafka refuses" if is_secret else problem,
        remedy="See librdkafka's CONFIGURATION.md for its values",
    )
