"""KafkaSource against real brokers."""

from __future__ import annotations

import base64
import threading
import time
import uuid
from collections.abc import Callable, Iterator

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink, run_main
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions

from connectors.kafka import KafkaConnector, KafkaSettings, KafkaSource, fetch, watch
from tests.integration.kafka_lab import (
    PATIENCE_S,
    ROW,
    Read,
    create,
    kafka_connector,
    plan_of,
    produce,
    read_to_mark,
    read_until,
    texts,
    wait_for,
)
from tests.services.kafka import ApacheKafka, KafkaCluster
from waxlake.demo.process import free_port
from waxlake.stream.batch import MicroBatch
from waxlake.stream.errors import SourceMoved, TerminalError, TransientError, UsageError
from waxlake.stream.source import Reader, SourcePlan

pytestmark = pytest.mark.services


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
    create(kafka_cluster, topic, partitions=3)
    for partition in range(3):
        produce(kafka_cluster, topic, texts(partition * 1000, 500 + partition), partition=partition)
    connector = kafka_connector(kafka_cluster, topic, max_rows_per_batch=200)
    plan = plan_of(connector)
    assert {key: part.mark for key, part in plan.partitions.items()} == {"0": 500, "1": 501, "2": 502}
    read = read_to_mark(connector, plan)
    for partition in range(3):
        assert read.offsets(partition) == list(range(500 + partition))
    assert all(batch.table.num_rows <= 200 for batch in read.batches)
    assert read.of("1")[-1].backlog is not None
    assert read.of("1")[-1].backlog.records == 0


def test_the_end_is_the_true_one_where_the_listed_one_lags(kafka_cluster: KafkaCluster, topic: str) -> None:
    create(kafka_cluster, topic, partitions=2)
    produce(kafka_cluster, topic, texts(0, 5000))
    state = kafka_connector(kafka_cluster, topic, starting_offsets="latest").inspect()
    assert {key: (held.low, held.high) for key, held in state.partitions.items()} == {"0": (0, 5000), "1": (0, 0)}
    assert state.begin == {"0": 5000, "1": 0}


def test_inspecting_is_quick(kafka_cluster: KafkaCluster, topic: str) -> None:
    create(kafka_cluster, topic, partitions=8)
    produce(kafka_cluster, topic, texts(0, 100))
    connector = kafka_connector(kafka_cluster, topic)
    seconds = []
    for _ in range(3):
        began = time.monotonic()
        connector.inspect()
        seconds.append(time.monotonic() - began)
    assert min(seconds) < 1.0


def test_a_read_that_has_nothing_to_do_is_done_at_once(kafka_cluster: KafkaCluster, topic: str) -> None:
    create(kafka_cluster, topic)
    produce(kafka_cluster, topic, texts(0, 10))
    connector = kafka_connector(kafka_cluster, topic)
    plan = plan_of(connector, {"0": 10})
    reader = connector.reader(plan, ("0",), ROW)
    assert reader.is_done
    reader.close()


def test_no_batch_straddles_a_fence_or_the_mark(kafka_cluster: KafkaCluster, topic: str) -> None:
    create(kafka_cluster, topic, partitions=2)
    for partition in range(2):
        produce(kafka_cluster, topic, texts(0, 1000), partition=partition)
    connector = kafka_connector(kafka_cluster, topic)
    plan = plan_of(connector, {"0": 100, "1": 0}, {"0": 350, "1": 999}, {"0": 900, "1": 1})
    produce(kafka_cluster, topic, texts(1000, 50))  # behind the mark
    read = read_to_mark(connector, plan)
    assert read.offsets(0) == list(range(100, 1000))
    assert read.offsets(1) == list(range(1000))
    assert {350, 900, 1000} <= {batch.end for batch in read.of("0")}
    assert {1, 999, 1000} <= {batch.end for batch in read.of("1")}


def test_a_continuous_read_follows_new_records_and_never_ends(
    kafka_cluster: KafkaCluster, topic: str, opened: list[Reader]
) -> None:
    create(kafka_cluster, topic)
    produce(kafka_cluster, topic, texts(0, 10))
    connector = kafka_connector(kafka_cluster, topic)
    plan = plan_of(connector, is_bounded=False)
    reader = connector.reader(plan, ("0",), ROW)
    opened.append(reader)
    read = Read()
    read_until(reader, read, lambda: len(read.rows()) == 10)
    produce(kafka_cluster, topic, texts(10, 5))
    read_until(reader, read, lambda: len(read.rows()) == 15)
    read.check(plan)
    assert reader.positions() == {"0": 15}
    assert not reader.is_done


def test_tombstones_malformed_and_wrong_records_are_rows(kafka_cluster: KafkaCluster, topic: str) -> None:
    create(kafka_cluster, topic)
    values = [b'{"id": 1, "n": 2}', None, b"{oops", b'{"id": "x"}', b'{"id": 92233720368547758070}', b'{"id": 3}']
    produce(kafka_cluster, topic, values)
    connector = kafka_connector(kafka_cluster, topic, format="json", schema="id BIGINT, n INT")
    rows = read_to_mark(connector, plan_of(connector), frozenset({"id", "n", "_rescued_data", "_offset"})).rows
    assert [row["id"] for row in rows()] == [1, None, None, None, None, 3]
    assert [row["_offset"] for row in rows()] == [0, 1, 2, 3, 4, 5]
    assert [row["_rescued_data"] is not None for row in rows()] == [False, False, True, True, True, False]


def test_metadata_columns_tell_where_a_record_came_from(kafka_cluster: KafkaCluster, topic: str) -> None:
    create(kafka_cluster, topic)
    sent_at = int(time.time()) * 1000 + 123  # a recent time: the broker removes records by it
    producer = Producer({"bootstrap.servers": kafka_cluster.bootstrap_servers})
    producer.produce(topic, b"v", key=b"k", timestamp=sent_at, headers=[("h", b"x")])
    assert producer.flush(30) == 0
    connector = kafka_connector(kafka_cluster, topic)
    (row,) = read_to_mark(connector, plan_of(connector), ROW | set(connector.metadata_columns)).rows()
    assert (row["_topic"], row["_key"], row["_headers"]) == (topic, b"k", [{"key": "h", "value": b"x"}])
    assert row["_timestamp"].timestamp() == sent_at / 1000


def test_a_record_of_five_megabytes_is_read_and_gets_a_batch_of_its_own(apache_kafka: KafkaCluster, topic: str) -> None:
    create(apache_kafka, topic)
    large = b"x" * (5 << 20)
    values = [b"small", large, b"small", large]
    produce(apache_kafka, topic, values, **{"message.max.bytes": 16 << 20})
    connector = kafka_connector(apache_kafka, topic, max_bytes_per_batch=1 << 20)
    read = read_to_mark(connector, plan_of(connector))
    assert [row["value"].encode() for row in read.rows()] == values
    assert all(batch.table.num_rows == 1 for batch in read.batches if batch.table.nbytes > 1 << 20)


def test_records_of_aborted_transactions_are_invisible_and_markers_end_a_partition(
    apache_kafka: KafkaCluster, topic: str
) -> None:
    create(apache_kafka, topic)
    producer = Producer({"bootstrap.servers": apache_kafka.bootstrap_servers, "transactional.id": topic})
    producer.init_transactions(30)
    for is_committed in (True, False, True, False):
        producer.begin_transaction()
        for n in range(10):
            producer.produce(topic, b"%r %d" % (is_committed, n))
        producer.flush(30)
        (producer.commit_transaction if is_committed else producer.abort_transaction)(30)
    connector = kafka_connector(apache_kafka, topic)
    plan = plan_of(connector, {"0": 0}, {"0": 15}, {"0": 43})
    assert plan.partitions["0"].mark == 44
    read = read_to_mark(connector, plan)
    assert read.offsets() == [*range(10), *range(22, 32)]
    assert read.of("0")[-1].end == 44


def test_an_open_transaction_ends_what_a_bounded_read_sees(apache_kafka: KafkaCluster, topic: str) -> None:
    create(apache_kafka, topic)
    produce(apache_kafka, topic, texts(0, 3))
    producer = Producer({"bootstrap.servers": apache_kafka.bootstrap_servers, "transactional.id": topic})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(topic, b"open")
    producer.flush(30)
    try:
        assert kafka_connector(apache_kafka, topic).inspect().partitions["0"].high == 3
        uncommitted = kafka_connector(apache_kafka, topic, options={"isolation.level": "read_uncommitted"})
        assert uncommitted.inspect().partitions["0"].high == 4
        assert read_to_mark(uncommitted, plan_of(uncommitted)).offsets() == [0, 1, 2, 3]
    finally:
        producer.abort_transaction(30)


def test_a_continuous_read_moves_on_over_a_marker_at_the_end(
    apache_kafka: KafkaCluster, topic: str, opened: list[Reader]
) -> None:
    create(apache_kafka, topic)
    connector = kafka_connector(apache_kafka, topic)
    reader = connector.reader(plan_of(connector, is_bounded=False), ("0",), ROW)
    opened.append(reader)
    producer = Producer({"bootstrap.servers": apache_kafka.bootstrap_servers, "transactional.id": topic})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(topic, b"a")
    producer.commit_transaction(30)
    read = Read()
    read_until(reader, read, lambda: reader.positions() == {"0": 2})
    assert read.offsets() == [0]


@pytest.mark.parametrize("name", ["unknown", "pattern"])
def test_an_unknown_topic_names_the_nearest(kafka_cluster: KafkaCluster, topic: str, name: str) -> None:
    create(kafka_cluster, f"{topic}-orders")
    wanted = f"{topic}-ordres" if name == "unknown" else f"^{topic}-x"
    with pytest.raises(TerminalError) as caught:
        kafka_connector(kafka_cluster, wanted).inspect()
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
    create(node, topic)
    produce(node, topic, texts(0, 3))

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
    assert read_to_mark(right, plan_of(right)).offsets() == [0, 1, 2]


def test_a_recreated_topic_has_another_identity_and_the_same_name(kafka_cluster: KafkaCluster, topic: str) -> None:
    create(kafka_cluster, topic)
    connector = kafka_connector(kafka_cluster, topic)
    before = connector.inspect()
    assert connector.inspect().identity == before.identity
    _recreate(kafka_cluster, topic)
    after = connector.inspect()
    assert after.identity != before.identity
    assert after.name == before.name == f"kafka:{topic}"


def _recreate(cluster: KafkaCluster, topic: str, *, partitions: int = 1) -> None:
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap_servers})
    admin.delete_topics([topic])[topic].result(30)
    wait_for(lambda: topic not in admin.list_topics(timeout=10).topics)
    create(cluster, topic, partitions=partitions)


def test_lists_and_patterns_read_all_their_topics_and_keep_their_identity_when_one_is_added(
    kafka_cluster: KafkaCluster, topic: str
) -> None:
    for name in ("a", "b"):
        create(kafka_cluster, f"{topic}-{name}", partitions=2)
        produce(kafka_cluster, f"{topic}-{name}", texts(0, 20), partition=1)
    pattern = kafka_connector(kafka_cluster, f"^{topic}-")
    before = pattern.inspect()
    read = read_to_mark(pattern, plan_of(pattern), ROW | {"_topic"})
    assert sorted((row["_topic"], row["_offset"]) for row in read.rows()) == [
        (f"{topic}-{name}", n) for name in "ab" for n in range(20)
    ]
    named = kafka_connector(kafka_cluster, f"{topic}-b,{topic}-a")
    assert len(read_to_mark(named, plan_of(named)).rows()) == 40
    create(kafka_cluster, f"{topic}-c")
    after = pattern.inspect()
    assert after.identity == before.identity
    assert set(before.partitions) < set(after.partitions)


def _expire(cluster: KafkaCluster, topic: str, before: int) -> None:
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap_servers})
    for future in admin.delete_records([TopicPartition(topic, 0, before)]).values():
        future.result(30)


def test_expired_offsets_stop_a_run_that_starts(apache_kafka: KafkaCluster, topic: str) -> None:
    create(apache_kafka, topic)
    produce(apache_kafka, topic, texts(0, 100))
    _expire(apache_kafka, topic, 60)
    with pytest.raises(SourceMoved, match="SOURCE_EXPIRED"):
        plan_of(kafka_connector(apache_kafka, topic), {"0": 50})
    skipping = kafka_connector(apache_kafka, topic, on_data_loss="skip")
    plan = plan_of(skipping, {"0": 50})
    assert plan.partitions["0"].skipped == (50, 60)
    assert read_to_mark(skipping, plan).offsets() == list(range(60, 100))


def _plan_before_expiry(cluster: KafkaCluster, connector: KafkaConnector, topic: str) -> SourcePlan:
    """Return a plan whose first offsets are gone by the time it is read."""
    create(cluster, topic)
    produce(cluster, topic, texts(0, 100))
    plan = plan_of(connector, {"0": 10}, {"0": 40}, {"0": 80})
    _expire(cluster, topic, 60)
    return plan


def test_offsets_that_expire_during_a_run_stop_it(apache_kafka: KafkaCluster, topic: str, opened: list[Reader]) -> None:
    connector = kafka_connector(apache_kafka, topic)
    plan = _plan_before_expiry(apache_kafka, connector, topic)
    reader = connector.reader(plan, ("0",), ROW)
    opened.append(reader)
    with pytest.raises(SourceMoved) as caught:
        read_until(reader, Read(), lambda: reader.is_done)
    assert caught.value.code == "KAFKA_OFFSET_EXPIRED"
    assert "earliest offset 60" in str(caught.value)
    assert "offset 10" in str(caught.value)


def test_offsets_that_expire_during_a_run_are_skipped_on_request_and_told(
    apache_kafka: KafkaCluster, topic: str
) -> None:
    connector = kafka_connector(apache_kafka, topic, on_data_loss="skip")
    plan = _plan_before_expiry(apache_kafka, connector, topic)
    read = read_to_mark(connector, plan)
    assert [batch.skipped for batch in read.batches if batch.skipped] == [(10, 40), (40, 60)]
    assert read.offsets() == list(range(60, 100))


def test_a_topic_deleted_during_a_run_stops_it(
    apache_kafka: KafkaCluster, topic: str, opened: list[Reader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_CHECK_EVERY_S", 0.2)
    create(apache_kafka, topic)
    produce(apache_kafka, topic, texts(0, 10))
    connector = kafka_connector(apache_kafka, topic)
    reader = connector.reader(plan_of(connector, is_bounded=False), ("0",), ROW)
    opened.append(reader)
    read = Read()
    read_until(reader, read, lambda: len(read.rows()) == 10)
    admin = AdminClient({"bootstrap.servers": apache_kafka.bootstrap_servers})
    admin.delete_topics([topic])[topic].result(30)
    with pytest.raises(SourceMoved, match="KAFKA_TOPIC_GONE"):
        read_until(reader, read, lambda: False)


def test_a_topic_recreated_during_a_run_stops_it(
    kafka_cluster: KafkaCluster, topic: str, opened: list[Reader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_CHECK_EVERY_S", 0.2)
    create(kafka_cluster, topic)
    produce(kafka_cluster, topic, texts(0, 10))
    connector = kafka_connector(kafka_cluster, topic)
    reader = connector.reader(plan_of(connector, is_bounded=False), ("0",), ROW)
    opened.append(reader)
    read = Read()
    read_until(reader, read, lambda: len(read.rows()) == 10)
    _recreate(kafka_cluster, topic)
    with pytest.raises(SourceMoved, match="KAFKA_TOPIC_GONE"):
        read_until(reader, read, lambda: False)


def test_new_partitions_are_told_during_a_run_and_read_by_the_next(
    apache_kafka: KafkaCluster,
    topic: str,
    opened: list[Reader],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(watch, "_CHECK_EVERY_S", 0.1)
    create(apache_kafka, topic)
    connector = kafka_connector(apache_kafka, topic, starting_offsets="latest")
    reader = connector.reader(plan_of(connector, is_bounded=False), ("0",), ROW)
    opened.append(reader)
    admin = AdminClient({"bootstrap.servers": apache_kafka.bootstrap_servers})
    admin.create_partitions([NewPartitions(topic, 2)])[topic].result(30)
    produce(apache_kafka, topic, texts(0, 4), partition=1)
    read_until(reader, Read(), lambda: "new partitions (1)" in caplog.text)
    plan = plan_of(connector, {"0": 0})
    assert (plan.partitions["1"].start, plan.partitions["1"].mark) == (0, 4)


def test_a_broker_that_goes_away_is_told_and_reading_goes_on_when_it_is_back(
    make_apache_kafka: Callable[..., ApacheKafka], topic: str, opened: list[Reader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "_AWAY_S", 0.5)
    node = make_apache_kafka()
    create(node, topic)
    produce(node, topic, texts(0, 10))
    connector = kafka_connector(node, topic)
    plan = plan_of(connector, is_bounded=False)
    reader = connector.reader(plan, ("0",), ROW)
    opened.append(reader)
    read = Read()
    read_until(reader, read, lambda: len(read.rows()) == 10)
    node.kill()
    with pytest.raises(TransientError, match="KAFKA_UNREACHABLE"):
        read_until(reader, read, lambda: False)
    node.start()
    produce(node, topic, texts(10, 10))
    deadline = time.monotonic() + PATIENCE_S
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
    create(node, topic)
    given = {"bootstrap_servers": node.sasl_bootstrap_servers, "topic": topic, "format": "string"}
    login = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN", "sasl.username": "ann"}
    settings = KafkaSettings.build("test", {**given, "options": {**login, "sasl.password": "secret"}})
    with pytest.raises(TerminalError) as caught:
        KafkaConnector(settings).inspect()
    assert caught.value.code == "KAFKA_AUTHORIZATION"


def test_starting_offsets_say_where_a_new_flow_begins(kafka_cluster: KafkaCluster, topic: str) -> None:
    create(kafka_cluster, topic, partitions=3)
    for partition in range(3):
        produce(kafka_cluster, topic, texts(0, 10), partition=partition)
    connector = kafka_connector(kafka_cluster, topic, starting_offsets={0: 4, 1: "latest"})
    assert connector.inspect().begin == {"0": 4, "1": 10, "2": 0}
    with pytest.raises(TerminalError, match="KAFKA_STARTING_OFFSETS"):
        kafka_connector(kafka_cluster, topic, starting_offsets={7: 4}).inspect()


def test_a_client_that_cannot_be_made_names_the_option(kafka_cluster: KafkaCluster, topic: str) -> None:
    options = {"security.protocol": "SSL", "ssl.ca.location": "/no/such/file.pem"}
    with pytest.raises(UsageError, match=r"ssl\.ca\.location"):
        kafka_connector(kafka_cluster, topic, options=options).inspect()


def test_closing_in_the_middle_ends_the_thread(kafka_cluster: KafkaCluster, topic: str) -> None:
    create(kafka_cluster, topic)
    produce(kafka_cluster, topic, [base64.b64encode(uuid.uuid4().bytes * 20)] * 20_000)
    connector = kafka_connector(kafka_cluster, topic, max_rows_per_batch=100)
    reader = connector.reader(plan_of(connector, is_bounded=False), ("0",), ROW)
    while not reader.read():
        pass
    reader.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "kafka-read-ahead"]


def test_a_plain_dataflow_resumes_where_its_caller_says(kafka_cluster: KafkaCluster, topic: str) -> None:
    create(kafka_cluster, topic, partitions=2)
    for partition in range(2):
        produce(kafka_cluster, topic, texts(0, 100), partition=partition)
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
