"""A topic of Debezium's events becomes a table, killed on the way."""

from __future__ import annotations

import json

import pytest
from confluent_kafka import Producer

from tests.e2e.project import Project
from tests.services.kafka import create_topic
from tests.unit.test_debezium import TYPES, event, schema_of, text, unscaled
from waxlake.demo.broker import EmbeddedBroker

pytestmark = [pytest.mark.services, pytest.mark.kills]


def test_events_are_stored_once_though_the_run_is_killed(project: Project, tansu: EmbeddedBroker, topic: str) -> None:
    create_topic(tansu, topic, partitions=2)
    producer = Producer({"bootstrap.servers": tansu.bootstrap_servers})
    for number in range(4_000):
        body = event("c", {"id": number, "amount": unscaled(number), "at": number}, source={"lsn": number})
        record = {"schema": schema_of(TYPES), "payload": body} if number % 3 else body
        producer.produce(topic, text(record).encode(), partition=number % 2)
        if number % 10 == 0:
            producer.produce(topic, None, partition=0)
    producer.produce(topic, b"nope", partition=1)
    assert producer.flush(30) == 0
    project.define(f"""
@wl.table
@wl.expect_or_quarantine("is a change", "_change_type IS NOT NULL")
def orders():
    events = wl.read_kafka("{topic}", "{tansu.bootstrap_servers}", format="binary", max_rows_per_batch=700)
    return wl.read_debezium(events, schema="id BIGINT, amount DECIMAL(9, 2), at STRING").select(
        "*", "_change_type", "_table", "_commit_position", "_topic")
""")
    project.waxlake("dry-run").succeeded()
    assert project.waxlake("run", WAXLAKE_FAILPOINT="committed:1").code == -9
    project.run()
    rows = {row["id"]: row for row in project.rows("orders")}
    assert sorted(rows) == list(range(4_000))
    assert len(project.rows("orders")) == 4_000
    assert (str(rows[1_234]["amount"]), rows[1_234]["at"]) == ("12.34", "1970-01-01T00:00:00.001234")
    assert rows[1_236]["at"] == "1236"
    told = {(row["_change_type"], row["_table"], row["_topic"]) for row in rows.values()}
    assert told == {("insert", "public.orders", topic)}
    (bad,) = project.rows("orders_quarantine")
    assert json.loads(bad["_rescued_data"]) == {"_raw": "nope"}
