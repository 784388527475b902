"""Brokers that are away, refuse, or hold something else by now."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from tests.e2e.project import Project
from tests.services.kafka import ApacheKafka, KafkaCluster, create_topic
from waxlake.demo.broker import EmbeddedBroker
from waxlake.demo.process import free_port

pytestmark = pytest.mark.services

ORDERS = """
@wl.table
def orders():
    return wl.read_kafka({topic!r}, {servers!r}, schema="id BIGINT"{more}).select("id", "_offset AS o", "_partition AS p")
"""


def define(project: Project, topic: str, servers: str, **options: object) -> None:
    more = "".join(f", {name}={value!r}" for name, value in options.items())
    project.define(ORDERS.format(topic=topic, servers=servers, more=more))


def publish(servers: str, topic: str, ids: range, *, per_request: int = 10_000) -> None:
    producer = Producer({"bootstrap.servers": servers, "batch.num.messages": per_request})
    for number in ids:
        producer.produce(topic, value=json.dumps({"id": number}).encode())
    assert producer.flush(60) == 0


# -- away


def test_broker_that_is_down_at_the_start(project: Project, apache_kafka: KafkaCluster, topic: str) -> None:
    servers = f"127.0.0.1:{free_port()}"
    define(project, topic, servers, request_timeout_s=2.0)

    done = project.waxlake("run")

    done.refused("KAFKA_UNREACHABLE", f"'{topic}'", servers, "Connection refused", "Check that the brokers run")
    assert done.seconds < 20
    create_topic(apache_kafka, topic)
    publish(apache_kafka.bootstrap_servers, topic, range(3))
    define(project, topic, apache_kafka.bootstrap_servers)
    project.run()
    assert project.rows("orders", "id") == [0, 1, 2]


def test_continuous_run_outlives_a_broker_that_goes_away(
    project: Project, make_apache_kafka: Callable[..., ApacheKafka], topic: str
) -> None:
    broker = make_apache_kafka()
    create_topic(broker, topic, partitions=2)
    publish(broker.bootstrap_servers, topic, range(100))
    define(project, topic, broker.bootstrap_servers)

    with project.continuous() as run:
        run.await_rows("orders", 100)
        broker.kill()
        retry = run.await_status("RETRYING", "orders")
        assert retry["level"] == "WARN"
        assert retry["error"]["code"] == "KAFKA_UNREACHABLE"
        assert broker.bootstrap_servers in retry["message"]
        assert "Trying again in" in retry["message"]
        broker.start()
        publish(broker.bootstrap_servers, topic, range(100, 200))
        run.await_rows("orders", 100)
        run.stop()

    assert project.rows("orders", "id") == list(range(200))
    assert "RETRYING" in json.dumps(project.events("flow_progress"))
    project.run()
    assert project.rows("orders", "id") == list(range(200))


def test_triggered_run_gives_up_on_a_broker_that_goes_away(
    project: Project, make_apache_kafka: Callable[..., ApacheKafka], topic: str
) -> None:
    broker = make_apache_kafka()
    create_topic(broker, topic)
    publish(broker.bootstrap_servers, topic, range(1000), per_request=10)
    options = {"queued.min.messages": 1, "fetch.message.max.bytes": 100}  # so that one fetch does not bring it all
    define(project, topic, broker.bootstrap_servers, max_rows_per_batch=10, options=options)
    step = project.folder / "flows/definitions.py"
    step.write_text(
        step.read_text().rstrip()
        + ".map_batches(stop_the_broker)\n"
        + f"""
import os, pathlib, signal

def stop_the_broker(table):
    flag = pathlib.Path("stopped")
    if table.num_rows and not flag.exists():
        flag.touch()
        os.kill({broker.pid}, signal.SIGKILL)
    return table
"""
    )
    project.spec(give_up_after="3 seconds")

    started_s = time.monotonic()
    project.waxlake("run").refused("KAFKA_UNREACHABLE", f"'{topic}'", broker.bootstrap_servers)

    assert time.monotonic() - started_s < 60
    broker.kill()
    broker.start()
    define(project, topic, broker.bootstrap_servers)
    project.run()
    assert project.rows("orders", "id") == list(range(1000))


# -- topics


def test_unknown_topic(project: Project, apache_kafka: KafkaCluster, topic: str) -> None:
    create_topic(apache_kafka, topic)
    publish(apache_kafka.bootstrap_servers, topic, range(3))
    define(project, topic[:-1], apache_kafka.bootstrap_servers)

    project.waxlake("run").refused("KAFKA_UNKNOWN_TOPIC", f"'{topic[:-1]}'", "Did you mean", f"'{topic}'")

    define(project, topic, apache_kafka.bootstrap_servers)
    project.run()
    assert project.rows("orders", "id") == [0, 1, 2]


def test_recreated_topic(project: Project, apache_kafka: KafkaCluster, topic: str) -> None:
    servers = apache_kafka.bootstrap_servers
    create_topic(apache_kafka, topic)
    publish(servers, topic, range(3))
    define(project, topic, servers)
    project.run()
    admin = AdminClient({"bootstrap.servers": servers})
    admin.delete_topics([topic])[topic].result(30)
    _create_again(apache_kafka, topic)
    publish(servers, topic, range(10, 15))

    project.waxlake("run").refused("SOURCE_RECREATED", "'orders'", topic, "on_data_loss='skip'")
    assert project.rows("orders", "id") == [0, 1, 2]

    define(project, topic, servers, on_data_loss="skip")
    project.run()
    project.run()
    assert project.rows("orders", "id") == [0, 1, 2, 10, 11, 12, 13, 14]


def _create_again(cluster: KafkaCluster, topic: str) -> None:
    """Create a topic whose deletion the cluster may still be at."""
    from confluent_kafka import KafkaException

    deadline = time.monotonic() + 30
    while True:
        try:
            return create_topic(cluster, topic)
        except KafkaException:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_expired_offsets(project: Project, apache_kafka: KafkaCluster, topic: str) -> None:
    servers = apache_kafka.bootstrap_servers
    create_topic(apache_kafka, topic)
    publish(servers, topic, range(5))
    define(project, topic, servers)
    project.run()
    publish(servers, topic, range(5, 20))
    admin = AdminClient({"bootstrap.servers": servers})
    where = TopicPartition(topic, 0, 12)
    admin.delete_records([where])[where].result(30)

    project.waxlake("run").refused("SOURCE_EXPIRED", topic, "12", "5", "on_data_loss='skip'")
    assert project.rows("orders", "id") == [0, 1, 2, 3, 4]

    define(project, topic, servers, on_data_loss="skip")
    project.run()
    project.run()
    assert project.rows("orders", "id") == [0, 1, 2, 3, 4, *range(12, 20)]
    losses = [event["message"] for event in project.events("data_loss")]
    assert losses
    assert all(topic in text and "5" in text and "12" in text for text in losses)


# -- credentials

SASL = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN", "sasl.username": "wax"}
SECURED = """
OPTIONS = {{**{options!r}, "sasl.password": wl.conf("password")}}

@wl.table
def orders():
    return wl.read_kafka({topic!r}, {servers!r}, schema="id BIGINT", options=OPTIONS)
"""
RIGHT, WRONG = "right-Secret-4711", "wrong-Secret-0815"


@pytest.mark.parametrize("is_continuous", [False, True])
def test_wrong_credentials(
    project: Project, make_apache_kafka: Callable[..., ApacheKafka], topic: str, is_continuous: bool
) -> None:
    broker = make_apache_kafka(sasl_user="wax", sasl_password=RIGHT)
    create_topic(broker, topic)
    publish(broker.bootstrap_servers, topic, range(3))
    project.define(SECURED.format(topic=topic, servers=broker.sasl_bootstrap_servers, options=SASL))
    project.spec(configuration={"password": "${env:KAFKA_PASSWORD}"})
    words = ["run", "--continuous"] if is_continuous else ["run"]

    done = project.waxlake(*words, KAFKA_PASSWORD=WRONG)

    done.refused("KAFKA_AUTHENTICATION", f"'{topic}'", broker.sasl_bootstrap_servers, "sasl.password")
    assert done.seconds < 30
    right = project.run("--json", KAFKA_PASSWORD=RIGHT)
    assert project.rows("orders", "id") == [0, 1, 2]
    shown = done.out + done.err + right.out + project.waxlake("status", "--json", KAFKA_PASSWORD=RIGHT).out
    for secret in (RIGHT, WRONG):
        assert secret not in shown
        assert secret.encode() not in project.everything_written()


def test_tls_where_there_is_none(project: Project, apache_kafka: KafkaCluster, topic: str) -> None:
    create_topic(apache_kafka, topic)
    options = {"security.protocol": "SSL"}
    define(project, topic, apache_kafka.bootstrap_servers, options=options, request_timeout_s=3.0)

    done = project.waxlake("run").refused("KAFKA_UNREACHABLE", "security.protocol")

    assert "SSL" in done


def test_misspelt_client_option(project: Project, tansu: EmbeddedBroker, topic: str) -> None:
    define(project, topic, tansu.bootstrap_servers, options={"sasl.pasword": RIGHT})

    text = project.waxlake("run").refused(
        "KAFKA_OPTION_UNKNOWN", "'sasl.pasword'", "'sasl.password'", "definitions.py:5"
    )

    assert RIGHT not in text
