"""KafkaSource against real brokers."""

from __future__ import annotations

import base64
import itertools
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink, run_main
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions

from connectors.kafka import KafkaConnector, KafkaSettings, KafkaSource, fetch, watch
from tests.services import kafka
from tests.services.kafka import ApacheKafka, KafkaCluster
from waxlake.demo.process import free_port
from waxlake.stream.batch import MicroBatch
from waxlake.stream.errors import SourceMoved, TerminalError, TransientError, UsageError
from waxlake.stream.source import Reader, SourcePlan, plan_partitions

pytestmark = pytest.mark.services

_ROW = frozenset({"value", "_partition", "_offset", "_rescued_data"})
_PATIENCE_S = 60.0


def _connector(cluster: KafkaCluster, topic: str, **values: object) -> KafkaConnector:
    given = {"bootstrap_servers": cluster.bootstrap_servers, "topic": topic, "format": "string", **values}
    return KafkaConnector(KafkaSettings.build("test", given))


def _create(cluster: KafkaCluster, topic: str, *, partitions: int = 1) -> None:
    """Create a topic and wait until clients are told of it: a broker learns of it a moment after the controller."""
    kafka.create_topic(cluster, topic, partitions=partitions)
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap_servers})
    _wait_for(lambda: topic in admin.list_topics(timeout=10).topics)


def _wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline


def _produce(
    cluster: KafkaCluster, topic: str, values: Sequence[bytes | None], *, partition: int = 0, **options: object
) -> None:
    producer = Producer({"bootstrap.servers": cluster.bootstrap_servers, "linger.ms": 20, **options})
    for value in values:
        producer.produce(topic, value, partition=partition)
    assert producer.flush(30) == 0


def _texts(first: int, count: int) -> list[bytes]:
    return [b"%d" % n for n in range(first, first + count)]


@dataclass
class _Read:
    """What a reader returned, checked for the laws that hold for all of it."""

    batches: list[MicroBatch] = field(default_factory=list)

    def add(self, batches: Sequence[MicroBatch]) -> None:
        self.batches += batches

    def of(self, partition: str) -> list[MicroBatch]:
        return [batch for batch in self.batches if batch.partition == partition]

    def rows(self) -> list[dict[str, Any]]:
        return [row for batch in self.batches for row in batch.table.to_pylist()]

    def offsets(self, partition: int = 0) -> list[int]:
        return [row["_offset"] for row in self.rows() if row["_partition"] == partition]

    def check(self, plan: SourcePlan) -> None:
        for key, part in plan.partitions.items():
            batches = self.of(key)
            if not batches:
                continue
            assert batches[0].start == part.read_from
            assert all(a.end == b.start for a, b in itertools.pairwise(batches))
            assert part.mark is None or batches[-1].end <= part.mark
            for batch in batches:
                assert not any(batch.start < fence < batch.end for fence in part.fences)
                assert all(batch.start <= row["_offset"] < batch.end for row in batch.table.to_pylist())
                assert batch.read == batch.table.num_rows


def _read(reader: Reader, read: _Read, until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not until():
        read.add(reader.read())
        assert time.monotonic() < deadline, f"read {len(read.rows())} rows only"


def _plan(connector: KafkaConnector, *stored: Mapping[str, int], is_bounded: bool = True) -> SourcePlan:
    on_data_loss = connector.on_data_loss
    return plan_partitions(connector.inspect(), stored or [{}], on_data_loss=on_data_loss, is_bounded=is_bounded)


def _read_to_mark(connector: KafkaConnector, plan: SourcePlan, columns: frozenset[str] = _ROW) -> _Read:
    read = _Read()
    for group in connector.groups(plan, 1).values():
        reader = connector.reader(plan, group, columns)
        try:
            _read(reader, read, lambda: reader.is_done)  # noqa: B023 - called in this turn only
        finally:
            reader.close()
    read.check(plan)
    return read


@pytest.fixture
def opened() -> Iterator[list[Reader]]:
    """Readers to be closed after the test."""
    readers: list[Reader] = []
    yield readers
    for reader in readers:
        reader.close()


@pytest.mark.parametrize("ahead_bytes", [1, 64 << 20], ids=["full line", "long line"])
def test_a_bounded_read_gets_every_record_once_in_order(
    kafka_cluster: KafkaCluster, topic: str, ahead_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connectors.kafka.reader._AHEAD_BYTES", ahead_bytes)
    _create(kafka_cluster, topic, partitions=3)
    for partition in range(3):
        _produce(kafka_cluster, topic, _texts(partition * 1000, 500 + partition), partition=partition)
    connector = _connector(kafka_cluster, topic, max_rows_per_batch=200)
    plan = _plan(connector)
    assert {key: part.mark for key, part in plan.partitions.items()} == {"0": 500, "1": 501, "2": 502}
    read = _read_to_mark(connector, plan)
    for partition in range(3):
        assert read.offsets(partition) == list(range(500 + partition))
    assert all(batch.table.num_rows <= 200 for batch in read.batches)
    assert read.of("1")[-1].backlog is not None
    assert read.of("1")[-1].backlog.records == 0


def test_the_end_is_the_true_one_where_the_listed_one_lags(kafka_cluster: KafkaCluster, topic: str) -> None:
    _create(kafka_cluster, topic, partitions=2)
    _produce(kafka_cluster, topic, _texts(0, 5000))
    state = _connector(kafka_cluster, topic, starting_offsets="latest").inspect()
    assert {key: (held.low, held.high) for key, held in state.partitions.items()} == {"0": (0, 5000), "1": (0, 0)}
    assert state.begin == {"0": 5000, "1": 0}


def test_inspecting_is_quick(kafka_cluster: KafkaCluster, topic: str) -> None:
    _create(kafka_cluster, topic, partitions=8)
    _produce(kafka_cluster, topic, _texts(0, 100))
    connector = _connector(kafka_cluster, topic)
    seconds = []
    for _ in range(3):
        began = time.monotonic()
        connector.inspect()
        seconds.append(time.monotonic() - began)
    assert min(seconds) < 1.0


def test_a_read_that_has_nothing_to_do_is_done_at_once(kafka_cluster: KafkaCluster, topic: str) -> None:
    _create(kafka_cluster, topic)
    _produce(kafka_cluster, topic, _texts(0, 10))
    connector = _connector(kafka_cluster, topic)
    plan = _plan(connector, {"0": 10})
    reader = connector.reader(plan, ("0",), _ROW)
    assert reader.is_done
    reader.close()


def test_no_batch_straddles_a_fence_or_the_mark(kafka_cluster: KafkaCluster, topic: str) -> None:
    _create(kafka_cluster, topic, partitions=2)
    for partition in range(2):
        _produce(kafka_cluster, topic, _texts(0, 1000), partition=partition)
    connector = _connector(kafka_cluster, topic)
    plan = _plan(connector, {"0": 100, "1": 0}, {"0": 350, "1": 999}, {"0": 900, "1": 1})
    _produce(kafka_cluster, topic, _texts(1000, 50))  # behind the mark
    read = _read_to_mark(connector, plan)
    assert read.offsets(0) == list(range(100, 1000))
    assert read.offsets(1) == list(range(1000))
    assert {350, 900, 1000} <= {batch.end for batch in read.of("0")}
    assert {1, 999, 1000} <= {batch.end for batch in read.of("1")}


def test_a_continuous_read_follows_new_records_and_never_ends(
    kafka_cluster: KafkaCluster, topic: str, opened: list[Reader]
) -> None:
    _create(kafka_cluster, topic)
    _produce(kafka_cluster, topic, _texts(0, 10))
    connector = _connector(kafka_cluster, topic)
    plan = _plan(connector, is_bounded=False)
    reader = connector.reader(plan, ("0",), _ROW)
    opened.append(reader)
    read = _Read()
    _read(reader, read, lambda: len(read.rows()) == 10)
    _produce(kafka_cluster, topic, _texts(10, 5))
    _read(reader, read, lambda: len(read.rows()) == 15)
    read.check(plan)
    assert reader.positions() == {"0": 15}
    assert not reader.is_done


def test_tombstones_malformed_and_wrong_records_are_rows(kafka_cluster: KafkaCluster, topic: str) -> None:
    _create(kafka_cluster, topic)
    values = [b'{"id": 1, "n": 2}', None, b"{oops", b'{"id": "x"}', b'{"id": 92233720368547758070}', b'{"id": 3}']
    _produce(kafka_cluster, topic, values)
    connector = _connector(kafka_cluster, topic, format="json", schema="id BIGINT, n INT")
    rows = _read_to_mark(connector, _plan(connector), frozenset({"id", "n", "_rescued_data", "_offset"})).rows
    assert [row["id"] for row in rows()] == [1, None, None, None, None, 3]
    assert [row["_offset"] for row in rows()] == [0, 1, 2, 3, 4, 5]
    assert [row["_rescued_data"] is not None for row in rows()] == [False, False, True, True, True, False]


def test_metadata_columns_tell_where_a_record_came_from(kafka_cluster: KafkaCluster, topic: str) -> None:
    _create(kafka_cluster, topic)
    sent_at = int(time.time()) * 1000 + 123  # a recent time: the broker removes records by it
    producer = Producer({"bootstrap.servers": kafka_cluster.bootstrap_servers})
    producer.produce(topic, b"v", key=b"k", timestamp=sent_at, headers=[("h", b"x")])
    assert producer.flush(30) == 0
    connector = _connector(kafka_cluster, topic)
    (row,) = _read_to_mark(connector, _plan(connector), _ROW | set(connector.metadata_columns)).rows()
    assert (row["_topic"], row["_key"], row["_headers"]) == (topic, b"k", [{"key": "h", "value": b"x"}])
    assert row["_timestamp"].timestamp() == sent_at / 1000


def test_a_record_of_five_megabytes_is_read_and_gets_a_batch_of_its_own(apache_kafka: KafkaCluster, topic: str) -> None:
    _create(apache_kafka, topic)
    large = b"x" * (5 << 20)
    values = [b"small", large, b"small", large]
    _produce(apache_kafka, topic, values, **{"message.max.bytes": 16 << 20})
    connector = _connector(apache_kafka, topic, max_bytes_per_batch=1 << 20)
    read = _read_to_mark(connector, _plan(connector))
    assert [row["value"].encode() for row in read.rows()] == values
    assert all(batch.table.num_rows == 1 for batch in read.batches if batch.table.nbytes > 1 << 20)


def test_records_of_aborted_transactions_are_invisible_and_markers_end_a_partition(
    apache_kafka: KafkaCluster, topic: str
) -> None:
    _create(apache_kafka, topic)
    producer = Producer({"bootstrap.servers": apache_kafka.bootstrap_servers, "transactional.id": topic})
    producer.init_transactions(30)
    for is_committed in (True, False, True, False):
        producer.begin_transaction()
        for n in range(10):
            producer.produce(topic, b"%r %d" % (is_committed, n))
        producer.flush(30)
        (producer.commit_transaction if is_committed else producer.abort_transaction)(30)
    connector = _connector(apache_kafka, topic)
    plan = _plan(connector, {"0": 0}, {"0": 15}, {"0": 43})
    assert plan.partitions["0"].mark == 44
    read = _read_to_mark(connector, plan)
    assert read.offsets() == [*range(10), *range(22, 32)]
    assert read.of("0")[-1].end == 44


def test_an_open_transaction_ends_what_a_bounded_read_sees(apache_kafka: KafkaCluster, topic: str) -> None:
    _create(apache_kafka, topic)
    _produce(apache_kafka, topic, _texts(0, 3))
    producer = Producer({"bootstrap.servers": apache_kafka.bootstrap_servers, "transactional.id": topic})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(topic, b"open")
    producer.flush(30)
    try:
        assert _connector(apache_kafka, topic).inspect().partitions["0"].high == 3
        uncommitted = _connector(apache_kafka, topic, options={"isolation.level": "read_uncommitted"})
        assert uncommitted.inspect().partitions["0"].high == 4
        assert _read_to_mark(uncommitted, _plan(uncommitted)).offsets() == [0, 1, 2, 3]
    finally:
        producer.abort_transaction(30)


def test_a_continuous_read_moves_on_over_a_marker_at_the_end(
    apache_kafka: KafkaCluster, topic: str, opened: list[Reader]
) -> None:
    _create(apache_kafka, topic)
    connector = _connector(apache_kafka, topic)
    reader = connector.reader(_plan(connector, is_bounded=False), ("0",), _ROW)
    opened.append(reader)
    producer = Producer({"bootstrap.servers": apache_kafka.bootstrap_servers, "transactional.id": topic})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(topic, b"a")
    producer.commit_transaction(30)
    read = _Read()
    _read(reader, read, lambda: reader.positions() == {"0": 2})
    assert read.offsets() == [0]


@pytest.mark.parametrize("name", ["unknown", "pattern"])
def test_an_unknown_topic_names_the_nearest(kafka_cluster: KafkaCluster, topic: str, name: str) -> None:
    _create(kafka_cluster, f"{topic}-orders")
    wanted = f"{topic}-ordres" if name == "unknown" else f"^{topic}-x"
    with pytest.raises(TerminalError) as caught:
        _connector(kafka_cluster, wanted).inspect()
    assert caught.value.code == "KAFKA_UNKNOWN_TOPIC"
    assert repr(wanted) in str(caught.value)
    assert name == "pattern" or repr(f"{topic}-orders") in str(caught.value)


def test_a_broker_that_is_down_is_a_transient_error_that_names_it() -> None:
    address = f"127.0.0.1:{free_port()}"
    values = {"bootstrap_servers": address, "topic": "t", "format": "string", "request_timeout_s": 1.0}
    secret = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN", "sasl.username": "u"}
    settings = KafkaSettings.build("test", {**values, "options": {**secret, "sasl.password": "pw-secret"}})
    began = time.monotonic()
    with pytest.raises(TransientError) as caught:
        KafkaConnector(settings).inspect()
    assert caught.value.code == "KAFKA_UNREACHABLE"
    assert address in str(caught.value)
    assert "Connection refused" in str(caught.value)
    assert "pw-secret" not in str(caught.value)
    assert 0.9 < time.monotonic() - began < 5


def test_wrong_credentials_are_found_at_once_and_not_shown(
    make_apache_kafka: Callable[..., ApacheKafka], topic: str
) -> None:
    node = make_apache_kafka(sasl_user="ann", sasl_password="right-secret")
    _create(node, topic)
    _produce(node, topic, _texts(0, 3))

    def connector(password: str) -> KafkaConnector:
        options = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN", "sasl.username": "ann"}
        given = {"bootstrap_servers": node.sasl_bootstrap_servers, "topic": topic, "format": "string"}
        return KafkaConnector(KafkaSettings.build("test", {**given, "options": {**options, "sasl.password": password}}))

    began = time.monotonic()
    with pytest.raises(TerminalError) as caught:
        connector("wrong-secret").inspect()
    assert caught.value.code == "KAFKA_AUTHENTICATION"
    assert "wrong-secret" not in str(caught.value)
    assert time.monotonic() - began < 8
    right = connector("right-secret")
    assert _read_to_mark(right, _plan(right)).offsets() == [0, 1, 2]


def test_a_recreated_topic_has_another_identity_and_the_same_name(kafka_cluster: KafkaCluster, topic: str) -> None:
    _create(kafka_cluster, topic)
    connector = _connector(kafka_cluster, topic)
    before = connector.inspect()
    assert connector.inspect().identity == before.identity
    _recreate(kafka_cluster, topic)
    after = connector.inspect()
    assert after.identity != before.identity
    assert after.name == before.name == f"kafka:{topic}"


def _recreate(cluster: KafkaCluster, topic: str, *, partitions: int = 1) -> None:
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap_servers})
    admin.delete_topics([topic])[topic].result(30)
    _wait_for(lambda: topic not in admin.list_topics(timeout=10).topics)
    _create(cluster, topic, partitions=partitions)


def test_lists_and_patterns_read_all_their_topics_and_keep_their_identity_when_one_is_added(
    kafka_cluster: KafkaCluster, topic: str
) -> None:
    for name in ("a", "b"):
        _create(kafka_cluster, f"{topic}-{name}", partitions=2)
        _produce(kafka_cluster, f"{topic}-{name}", _texts(0, 20), partition=1)
    pattern = _connector(kafka_cluster, f"^{topic}-")
    before = pattern.inspect()
    read = _read_to_mark(pattern, _plan(pattern), _ROW | {"_topic"})
    assert sorted((row["_topic"], row["_offset"]) for row in read.rows()) == [
        (f"{topic}-{name}", n) for name in "ab" for n in range(20)
    ]
    named = _connector(kafka_cluster, f"{topic}-b,{topic}-a")
    assert len(_read_to_mark(named, _plan(named)).rows()) == 40
    _create(kafka_cluster, f"{topic}-c")
    after = pattern.inspect()
    assert after.identity == before.identity
    assert set(before.partitions) < set(after.partitions)


def _expire(cluster: KafkaCluster, topic: str, before: int) -> None:
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap_servers})
    for future in admin.delete_records([TopicPartition(topic, 0, before)]).values():
        future.result(30)


def test_expired_offsets_stop_a_run_that_starts(apache_kafka: KafkaCluster, topic: str) -> None:
    _create(apache_kafka, topic)
    _produce(apache_kafka, topic, _texts(0, 100))
    _expire(apache_kafka, topic, 60)
    with pytest.raises(SourceMoved, match="SOURCE_EXPIRED"):
        _plan(_connector(apache_kafka, topic), {"0": 50})
    skipping = _connector(apache_kafka, topic, on_data_loss="skip")
    plan = _plan(skipping, {"0": 50})
    assert plan.partitions["0"].skipped == (50, 60)
    assert _read_to_mark(skipping, plan).offsets() == list(range(60, 100))


def _plan_before_expiry(cluster: KafkaCluster, connector: KafkaConnector, topic: str) -> SourcePlan:
    """Return a plan whose first offsets are gone by the time it is read."""
    _create(cluster, topic)
    _produce(cluster, topic, _texts(0, 100))
    plan = _plan(connector, {"0": 10}, {"0": 40}, {"0": 80})
    _expire(cluster, topic, 60)
    return plan


def test_offsets_that_expire_during_a_run_stop_it(apache_kafka: KafkaCluster, topic: str, opened: list[Reader]) -> None:
    connector = _connector(apache_kafka, topic)
    plan = _plan_before_expiry(apache_kafka, connector, topic)
    reader = connector.reader(plan, ("0",), _ROW)
    opened.append(reader)
    with pytest.raises(SourceMoved) as caught:
        _read(reader, _Read(), lambda: reader.is_done)
    assert caught.value.code == "KAFKA_OFFSET_EXPIRED"
    assert "earliest offset 60" in str(caught.value)
    assert "offset 10" in str(caught.value)


def test_offsets_that_expire_during_a_run_are_skipped_on_request_and_told(
    apache_kafka: KafkaCluster, topic: str
) -> None:
    connector = _connector(apache_kafka, topic, on_data_loss="skip")
    plan = _plan_before_expiry(apache_kafka, connector, topic)
    read = _read_to_mark(connector, plan)
    assert [batch.skipped for batch in read.batches if batch.skipped] == [(10, 40), (40, 60)]
    assert read.offsets() == list(range(60, 100))


def test_a_topic_deleted_during_a_run_stops_it(
    apache_kafka: KafkaCluster, topic: str, opened: list[Reader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_CHECK_EVERY_S", 0.2)
    _create(apache_kafka, topic)
    _produce(apache_kafka, topic, _texts(0, 10))
    connector = _connector(apache_kafka, topic)
    reader = connector.reader(_plan(connector, is_bounded=False), ("0",), _ROW)
    opened.append(reader)
    read = _Read()
    _read(reader, read, lambda: len(read.rows()) == 10)
    admin = AdminClient({"bootstrap.servers": apache_kafka.bootstrap_servers})
    admin.delete_topics([topic])[topic].result(30)
    with pytest.raises(SourceMoved, match="KAFKA_TOPIC_GONE"):
        _read(reader, read, lambda: False)


def test_a_topic_recreated_during_a_run_stops_it(
    kafka_cluster: KafkaCluster, topic: str, opened: list[Reader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_CHECK_EVERY_S", 0.2)
    _create(kafka_cluster, topic)
    _produce(kafka_cluster, topic, _texts(0, 10))
    connector = _connector(kafka_cluster, topic)
    reader = connector.reader(_plan(connector, is_bounded=False), ("0",), _ROW)
    opened.append(reader)
    read = _Read()
    _read(reader, read, lambda: len(read.rows()) == 10)
    _recreate(kafka_cluster, topic)
    with pytest.raises(SourceMoved, match="KAFKA_TOPIC_GONE"):
        _read(reader, read, lambda: False)


def test_new_partitions_are_told_during_a_run_and_read_by_the_next(
    apache_kafka: KafkaCluster,
    topic: str,
    opened: list[Reader],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(watch, "_CHECK_EVERY_S", 0.1)
    _create(apache_kafka, topic)
    connector = _connector(apache_kafka, topic, starting_offsets="latest")
    reader = connector.reader(_plan(connector, is_bounded=False), ("0",), _ROW)
    opened.append(reader)
    admin = AdminClient({"bootstrap.servers": apache_kafka.bootstrap_servers})
    admin.create_partitions([NewPartitions(topic, 2)])[topic].result(30)
    _produce(apache_kafka, topic, _texts(0, 4), partition=1)
    _read(reader, _Read(), lambda: "new partitions (1)" in caplog.text)
    plan = _plan(connector, {"0": 0})
    assert (plan.partitions["1"].start, plan.partitions["1"].mark) == (0, 4)


def test_a_broker_that_goes_away_is_told_and_reading_goes_on_when_it_is_back(
    make_apache_kafka: Callable[..., ApacheKafka], topic: str, opened: list[Reader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "_AWAY_S", 0.5)
    node = make_apache_kafka()
    _create(node, topic)
    _produce(node, topic, _texts(0, 10))
    connector = _connector(node, topic)
    plan = _plan(connector, is_bounded=False)
    reader = connector.reader(plan, ("0",), _ROW)
    opened.append(reader)
    read = _Read()
    _read(reader, read, lambda: len(read.rows()) == 10)
    node.kill()
    with pytest.raises(TransientError, match="KAFKA_UNREACHABLE"):
        _read(reader, read, lambda: False)
    node.start()
    _produce(node, topic, _texts(10, 10))
    deadline = time.monotonic() + _PATIENCE_S
    while len(read.rows()) < 20 and time.monotonic() < deadline:
        try:
            read.add(reader.read())
        except TransientError:
            continue
    assert read.offsets() == list(range(20))
    read.check(plan)


def test_a_user_without_the_right_is_told_so(make_apache_kafka: Callable[..., ApacheKafka], topic: str) -> None:
    authorizer = "org.apache.kafka.metadata.authorizer.StandardAuthorizer"
    options = {"authorizer.class.name": authorizer, "super.users": "User:ANONYMOUS"}
    node = make_apache_kafka(sasl_user="ann", sasl_password="secret", options=options)
    _create(node, topic)
    given = {"bootstrap_servers": node.sasl_bootstrap_servers, "topic": topic, "format": "string"}
    login = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN", "sasl.username": "ann"}
    settings = KafkaSettings.build("test", {**given, "options": {**login, "sasl.password": "secret"}})
    with pytest.raises(TerminalError) as caught:
        KafkaConnector(settings).inspect()
    assert caught.value.code == "KAFKA_AUTHORIZATION"


def test_starting_offsets_say_where_a_new_flow_begins(kafka_cluster: KafkaCluster, topic: str) -> None:
    _create(kafka_cluster, topic, partitions=3)
    for partition in range(3):
        _produce(kafka_cluster, topic, _texts(0, 10), partition=partition)
    connector = _connector(kafka_cluster, topic, starting_offsets={0: 4, 1: "latest"})
    assert connector.inspect().begin == {"0": 4, "1": 10, "2": 0}
    with pytest.raises(TerminalError, match="KAFKA_STARTING_OFFSETS"):
        _connector(kafka_cluster, topic, starting_offsets={7: 4}).inspect()


def test_a_client_that_cannot_be_made_names_the_option(kafka_cluster: KafkaCluster, topic: str) -> None:
    options = {"security.protocol": "SSL", "ssl.ca.location": "/no/such/file.pem"}
    with pytest.raises(UsageError, match=r"ssl\.ca\.location"):
        _connector(kafka_cluster, topic, options=options).inspect()


def test_closing_in_the_middle_ends_the_thread(kafka_cluster: KafkaCluster, topic: str) -> None:
    _create(kafka_cluster, topic)
    _produce(kafka_cluster, topic, [base64.b64encode(uuid.uuid4().bytes * 20)] * 20_000)
    connector = _connector(kafka_cluster, topic, max_rows_per_batch=100)
    reader = connector.reader(_plan(connector, is_bounded=False), ("0",), _ROW)
    while not reader.read():
        pass
    reader.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "kafka-read-ahead"]


def test_a_plain_dataflow_resumes_where_its_caller_says(kafka_cluster: KafkaCluster, topic: str) -> None:
    _create(kafka_cluster, topic, partitions=2)
    for partition in range(2):
        _produce(kafka_cluster, topic, _texts(0, 100), partition=partition)
    out: list[MicroBatch] = []
    source = KafkaSource(
        kafka_cluster.bootstrap_servers,
        topic,
        format="string",
        positions=lambda state: dict.fromkeys(state.partitions, 90),
        is_bounded=True,
        columns=("_offset",),
    )
    flow = Dataflow("plain")
    op.output("out", op.input("in", flow, source), TestingSink(out))
    run_main(flow)
    rows = [(batch.partition, row["_offset"], row["value"]) for batch in out for row in batch.table.to_pylist()]
    assert sorted(rows) == [(key, n, str(n)) for key in ("0", "1") for n in range(90, 100)]
