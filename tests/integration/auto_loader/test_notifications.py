"""New files that are heard of instead of listed: AL-20 to AL-22 and AL-31, from a Kafka topic and from an SQS queue."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from connectors.files.discovery.discover import LISTED
from tests.integration.auto_loader.notified import Notified, send, told
from tests.integration.auto_loader.pipelines import FilesPipeline
from tests.integration.files_lab import Flow, ids, run
from tests.services import ServiceMissing, kafka, missing, s3
from tests.services.kafka import create_topic
from tests.services.s3 import MotoServer, ObjectStore

pytestmark = pytest.mark.services


@pytest.fixture
def heard(tmp_path: Path, s3_store: ObjectStore, bucket: str, apache_kafka: kafka.KafkaCluster, topic: str) -> Notified:
    create_topic(apache_kafka, topic, partitions=2)
    options = {"notification_topic": topic, "notification_bootstrap_servers": apache_kafka.bootstrap_servers}
    return Notified(tmp_path, s3_store, bucket, options)


@pytest.fixture
def minio_that_tells(apache_kafka: kafka.KafkaCluster, topic: str) -> Iterator[s3.MinIO]:
    create_topic(apache_kafka, topic)
    target = {"ENABLE": "on", "BROKERS": apache_kafka.bootstrap_servers, "TOPIC": topic}
    try:
        store = s3.MinIO({f"MINIO_NOTIFY_KAFKA_{name}_LAKE": value for name, value in target.items()})
    except ServiceMissing as reason:
        missing("minio", reason)
    store.start()
    yield store
    store.close()


def _rows(source: Notified, flow: Flow) -> list[int]:
    """Run once and return the rows that are new, sorted."""
    before = len(flow.rows)
    run(source.lab.connector(), flow)
    return sorted(ids(flow)[before:])


def _rows_when_heard(source: Notified, flow: Flow, expected: list[int]) -> None:
    """Run until the rows are there: a store tells of an object after it was put."""
    got: list[int] = []
    deadline_s = time.monotonic() + 30
    while got != expected and time.monotonic() < deadline_s:
        got = sorted(got + _rows(source, flow))
    assert got == expected


def _listed_ms(source: Notified) -> int | None:
    return source.lab.location.open().transaction_version(LISTED)


def test_al_20_al_21_minio_tells_of_objects_through_kafka(
    tmp_path: Path, minio_that_tells: s3.MinIO, apache_kafka: kafka.KafkaCluster, topic: str
) -> None:
    options = {"notification_topic": topic, "notification_bootstrap_servers": apache_kafka.bootstrap_servers}
    source = Notified(tmp_path, minio_that_tells, "lake", options)
    minio_that_tells.create_bucket("lake")
    source.put("in/before.json", 0)
    wanted = {"QueueArn": "arn:minio:sqs::LAKE:kafka", "Events": ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"]}
    with contextlib.closing(minio_that_tells.client("s3")) as client:
        client.put_bucket_notification_configuration(
            Bucket="lake", NotificationConfiguration={"QueueConfigurations": [wanted]}
        )
    flow = Flow()
    assert _rows(source, flow) == [0]  # the first look is a full listing
    listed_ms = _listed_ms(source)
    for number, key in enumerate(("a b+c.json", "100%/é/ü.json", "in.json", "x=1/y.json"), 1):
        source.put(f"in/{key}", number)
    source.put("in/_hidden.json", 90)
    source.put("out/x.json", 91)
    source.put("in/short-lived.json", 92)
    source.delete("in/short-lived.json")
    source.put("in/last.json", 5)
    _rows_when_heard(source, flow, [1, 2, 3, 4, 5])
    assert _rows(source, flow) == []
    assert _listed_ms(source) == listed_ms  # and nothing was listed again


def test_al_21_strange_events_do_no_harm(heard: Notified, caplog: pytest.LogCaptureFixture) -> None:
    servers, topic = heard.options["notification_bootstrap_servers"], heard.options["notification_topic"]
    flow = Flow()
    heard.put("in/0.json", 0)
    assert _rows(heard, flow) == [0]
    for number, key in enumerate(("in/sns.json", "in/bridge 1+1.json", "in/1.json", "in/unheard.json"), 1):
        heard.put(key, number)
    heard.put("elsewhere/x.json", 90)
    heard.put("in/_hidden/x.json", 91)
    again = [heard.event("in/1.json"), heard.event("in/0.json"), heard.event("in/1.json")]
    send(servers, topic, [*heard.strange_events(), *again])
    assert _rows(heard, flow) == [1, 2, 3]
    assert "no S3 events" in told(caplog)
    send(servers, topic, [heard.event("in/1.json"), heard.event("in/unheard.json")])
    assert _rows(heard, flow) == [4]
    assert told(caplog) == ""


@pytest.mark.kills
def test_al_21_a_crash_between_hearing_and_recording_loses_and_doubles_nothing(heard: Notified) -> None:
    servers, topic = heard.options["notification_bootstrap_servers"], heard.options["notification_topic"]
    flow, rows = Flow(), []
    heard.put("in/0.json", 0)
    rows += _rows(heard, flow)
    for number, failpoint in enumerate(("ledger-write:1", "ledger-written:1"), 1):
        heard.put(f"in/{number}.json", number)
        send(servers, topic, [heard.event(f"in/{number}.json")])
        heard.kill(failpoint)
        assert _rows(heard, flow) == [number]
    assert _rows(heard, flow) == []


def test_al_20_a_topic_that_cannot_tell_is_replaced_by_a_listing(
    heard: Notified, apache_kafka: kafka.KafkaCluster, caplog: pytest.LogCaptureFixture
) -> None:
    servers, topic = heard.options["notification_bootstrap_servers"], heard.options["notification_topic"]
    admin, flow = AdminClient({"bootstrap.servers": servers}), Flow()
    heard.put("in/0.json", 0)
    assert _rows(heard, flow) == [0]
    assert told(caplog) == ""

    send(servers, topic, [heard.event(f"in/{number}.json") for number in range(20)])
    for future in admin.delete_records([TopicPartition(topic, number, -1) for number in (0, 1)]).values():
        future.result()
    heard.put("in/1.json", 1)
    assert _rows(heard, flow) == [1]  # expired
    assert "cannot tell what is new" in told(caplog)

    admin.delete_topics([topic])[topic].result()
    heard.put("in/2.json", 2)
    assert _rows(heard, flow) == [2]  # gone
    assert "no such topic" in told(caplog)

    create_topic(apache_kafka, topic, partitions=1)
    heard.put("in/3.json", 3)
    assert _rows(heard, flow) == [3]  # made anew
    assert "made anew" in told(caplog)
    heard.put("in/4.json", 4)
    heard.put("in/5.json", 5)
    send(servers, topic, [heard.event("in/4.json")])
    assert _rows(heard, flow) == [4]  # and heard from then on
    assert told(caplog) == ""

    heard.options["backfill_interval"] = "1s"
    deadline_s = time.monotonic() + 20
    while ids(flow)[-1] != 5 and time.monotonic() < deadline_s:
        _rows(heard, flow)
    assert ids(flow) == [0, 1, 2, 3, 4, 5]  # the full listing is the safety net


@pytest.fixture
def queued(tmp_path: Path, moto: MotoServer) -> Notified:
    bucket = f"wax-{tmp_path.name}".lower().replace("_", "-")[:60].rstrip("-")
    moto.create_bucket(bucket)
    with contextlib.closing(moto.client("sqs")) as client:
        url = client.create_queue(QueueName=bucket)["QueueUrl"]
    return Notified(tmp_path, moto, bucket, {"queue_url": url})


def test_al_22_what_a_queue_cannot_tell_is_in_the_event_log(queued: Notified, tmp_path: Path) -> None:
    pipeline = FilesPipeline(tmp_path / "pipeline")
    options = {"storage_options": queued.storage_options, "use_notifications": True, **queued.options}
    pipeline.define("t", source=f"s3://{queued.bucket}/in", **options)
    queued.put("in/0.json", 0)
    pipeline.run()
    assert pipeline.warnings() == []
    queued.put("in/1.json", 1)
    _send_sqs(queued, ["no json", queued.event("in/1.json")])
    pipeline.run()
    assert pipeline.ids() == [0, 1]
    assert ["no S3 events" in text for text in pipeline.warnings()] == [True]


def _send_sqs(source: Notified, messages: list[str]) -> None:
    assert source.store is not None
    with contextlib.closing(source.store.client("sqs")) as client:
        for message in messages:
            client.send_message(QueueUrl=source.options["queue_url"], MessageBody=message)


def _waiting(source: Notified) -> int:
    """Return how many messages are on the queue, hidden ones included."""
    assert source.store is not None
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    with contextlib.closing(source.store.client("sqs")) as client:
        told = client.get_queue_attributes(QueueUrl=source.options["queue_url"], AttributeNames=names)["Attributes"]
    return sum(int(told[name]) for name in names)


@pytest.mark.kills
def test_al_22_al_31_an_sqs_queue_tells_of_objects(
    queued: Notified, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = Flow()
    queued.put("in/0.json", 0)
    _send_sqs(queued, [queued.event("in/0.json")])
    assert _rows(queued, flow) == [0]  # the first look is a full listing
    for number, key in enumerate(("in/sns.json", "in/bridge 1+1.json", "in/1.json", "in/unheard.json"), 1):
        queued.put(key, number)
    _send_sqs(queued, [*queued.strange_events(), queued.event("in/1.json"), queued.event("in/1.json")])
    assert _rows(queued, flow) == [1, 2, 3]
    assert _waiting(queued) == 0
    assert "no S3 events" in told(caplog)

    queued.put("in/5.json", 5)
    _send_sqs(queued, [queued.event("in/5.json")])
    queued.kill("ledger-written:1")  # recorded, not deleted: comes again and is known
    assert _waiting(queued) == 1
    assert _rows(queued, flow) == [5]

    _send_sqs(queued, [queued.event("in/unheard.json")])
    queued.kill("ledger-write:1")  # neither: hidden until its visibility ends
    assert _rows(queued, flow) == []
    with contextlib.closing(queued.store.client("sqs")) as client:  # type: ignore[union-attr]
        client.purge_queue(QueueUrl=queued.options["queue_url"])
        _send_sqs(queued, [queued.event("in/unheard.json")])
        assert _rows(queued, flow) == [4]
        client.delete_queue(QueueUrl=queued.options["queue_url"])
    queued.put("in/6.json", 6)
    assert _rows(queued, flow) == [6]
    assert "listed instead" in told(caplog)
