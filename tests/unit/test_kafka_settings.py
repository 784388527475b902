from __future__ import annotations

import pickle

import pyarrow as pa
import pytest

from connectors.kafka import KafkaConnector, KafkaSettings, KafkaSource
from connectors.kafka.options import MANAGED_OPTIONS
from waxlake.stream.errors import SchemaError, UsageError

_SECRET = "hunter2-secret"


def _settings(**values: object) -> KafkaSettings:
    given = {"bootstrap_servers": "broker:9092", "topic": "orders", "format": "string", **values}
    return KafkaSettings.build("read_kafka('orders')", given)


def _refused(**values: object) -> UsageError:
    with pytest.raises(UsageError) as caught:
        _settings(**values)
    return caught.value


@pytest.mark.parametrize("key", sorted(MANAGED_OPTIONS))
def test_a_managed_option_is_refused_and_says_what_to_use(key: str) -> None:
    error = _refused(options={key: "true"})
    assert error.code == "KAFKA_OPTION_MANAGED"
    assert repr(key) in str(error)
    assert MANAGED_OPTIONS[key] in str(error)


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("fetch.wait.max", "'fetch.wait.max.ms'"),
        ("queued.min.mesages", "'queued.min.messages'"),
        ("sasl.jaas.config", "'sasl.password'"),
        ("max.poll.records", "max_rows_per_batch"),
    ],
)
def test_an_option_librdkafka_does_not_know_is_named_with_the_nearest(key: str, hint: str) -> None:
    error = _refused(options={"socket.timeout.ms": 1000, key: _SECRET})
    assert error.code == "KAFKA_OPTION_UNKNOWN"
    assert repr(key) in str(error)
    assert hint in str(error)
    assert _SECRET not in str(error)


@pytest.mark.parametrize(
    "options", [{"security.protocol": "foo"}, {"fetch.wait.max.ms": "soon"}, {"fetch.wait.max.ms": -5}, {"oauth_cb": 3}]
)
def test_a_value_librdkafka_refuses_names_the_option(options: dict[str, object]) -> None:
    error = _refused(options=options)
    assert error.code == "KAFKA_OPTION_INVALID"
    assert repr(next(iter(options))) in str(error)


def test_valid_options_pass() -> None:
    settings = _settings(
        options={
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "PLAIN",
            "check.crcs": True,
            "queued.min.messages": 9,
        }
    )
    assert settings.options["check.crcs"] == "true"
    assert settings.options["queued.min.messages"] == "9"


def test_secrets_are_never_shown() -> None:
    settings = _settings(options={"sasl.username": "ann", "sasl.password": _SECRET, "ssl.key.password": _SECRET})
    shown = [repr(settings), str(settings), repr(settings.options), repr(KafkaConnector(settings))]
    assert not any(_SECRET in text for text in shown)
    assert settings.options["sasl.password"] == _SECRET
    assert settings.options.scrub(f"bad {_SECRET}!") == "bad ***!"


def test_equal_settings_are_equal_and_hash_alike_and_survive_pickling() -> None:
    values = {"options": {"client.id": "x"}, "starting_offsets": {"0": 5, 1: "latest"}}
    one, two = _settings(**values), _settings(**values)
    assert one == two
    assert len({KafkaConnector(one), KafkaConnector(two)}) == 1
    assert pickle.loads(pickle.dumps(one)) == one
    assert one != _settings(**{**values, "options": {"client.id": "y"}})


def test_json_needs_a_schema_and_others_have_none() -> None:
    assert _refused(format="json").code == "KAFKA_SCHEMA_MISSING"
    assert _refused(format="binary", schema="id BIGINT").code == "KAFKA_SCHEMA_UNUSED"
    assert _refused(format="json", schema="_offset BIGINT").code == "KAFKA_SCHEMA_RESERVED"
    assert _settings(format="json", schema="id BIGINT").schema_of_values == pa.schema([("id", pa.int64())])


def test_a_typo_in_the_schema_is_found() -> None:
    with pytest.raises(SchemaError, match="BIGINT"):
        _settings(format="json", schema="id BIGIT")


def test_an_unknown_setting_names_the_nearest() -> None:
    assert "'starting_offsets'" in str(_refused(starting_offset="earliest"))


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ({0: 5, 1: -1}, (("", 0, 5), ("", 1, -1))),
        ('{"orders": {"0": 23, "1": -2}}', (("orders", 0, 23), ("orders", 1, -2))),
        ({"orders": {0: "earliest"}}, (("orders", 0, -2),)),
        ("latest", "latest"),
    ],
)
def test_starting_offsets_take_several_forms(given: object, read: object) -> None:
    assert _settings(starting_offsets=given).starting_offsets == read


@pytest.mark.parametrize("given", ["newest", "{0: 5", {0: "soon"}, {-1: 5}, {0: -3}, {"other": {0: 1}}])
def test_starting_offsets_that_make_no_sense_are_refused(given: object) -> None:
    assert "offsets" in str(_refused(starting_offsets=given))


def test_partitions_without_a_topic_are_refused_for_several_topics() -> None:
    assert _refused(topic="a,b", starting_offsets={0: 5}).code == "KAFKA_STARTING_OFFSETS"


def test_topics_are_a_name_a_list_or_a_pattern() -> None:
    assert _settings().is_single
    assert _settings(topic="a, b,a").topics == ("a", "b")
    assert not _settings(topic="a,b").is_single
    pattern = _settings(topic="^orders-.*").pattern
    assert pattern is not None
    assert pattern.search("orders-eu")
    assert "regular expression" in str(_refused(topic="^orders-("))
    assert "topic name" in str(_refused(topic="orders eu"))


def test_the_source_of_a_plain_dataflow_touches_nothing_when_made() -> None:
    KafkaSource("nowhere.invalid:9092", "orders", schema="id BIGINT", max_rows_per_batch=10)
    with pytest.raises(UsageError, match="KafkaSource"):
        KafkaSource("nowhere.invalid:9092", "orders", schema="id BIGINT", batch_size=10)
