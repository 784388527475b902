"""Sinks as a user meets them: a Kafka topic, a Delta table elsewhere, a function; rules, refreshes, refusals."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition
from deltalake import DeltaTable, write_deltalake

from tests.e2e.project import Project
from tests.services.kafka import KafkaCluster, create_topic
from waxlake.pipeline.check import check_graph
from waxlake.pipeline.resolve import load_graph
from waxlake.pipeline.spec import load_spec
from waxlake.stream.errors import WaxlakeError

LANDED = """
@wl.table
def landed():
    return wl.read_files("inbox", format="json", schema="id BIGINT, name STRING, price DECIMAL(10,2), sold TIMESTAMP")
"""
FUNCTION = (
    LANDED
    + """
import json, pathlib

@wl.foreach_batch_sink(on_full_refresh={on_full_refresh!r})
@wl.expect_or_quarantine("positive", "id > 0")
def called(table, batch):
    assert not pathlib.Path("broken").exists(), "no thanks"
    with open("called.log", "a") as file:
        file.write(json.dumps([batch.batch_id, batch.flow, batch.attempt, table["id"].to_pylist()]) + "\\n")

@wl.append_flow(target="called")
def to_called():
    return wl.read_stream("landed")
"""
)


def _records(cluster: KafkaCluster, topic: str) -> list[dict[str, Any]]:
    """Return the committed records of a topic."""
    config = {
        "bootstrap.servers": cluster.bootstrap_servers,
        "group.id": uuid.uuid4().hex,
        "enable.partition.eof": True,
    }
    consumer = Consumer({**config, "isolation.level": "read_committed"})
    partitions = list(consumer.list_topics(topic, 10).topics[topic].partitions)
    consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in partitions])
    found, ended = [], 0
    while ended < len(partitions):
        message = consumer.poll(20)
        assert message is not None
        if message.error() is not None:
            assert message.error().code() == KafkaError._PARTITION_EOF
            ended += 1
            continue
        found.append(
            {
                "key": message.key(),
                "value": message.value(),
                "headers": message.headers(),
                "partition": message.partition(),
                "timestamp": message.timestamp()[1],
            }
        )
    consumer.close()
    return found


def _calls(project: Project) -> list[list[Any]]:
    log = project.folder / "called.log"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def _mistake(project: Project) -> WaxlakeError:
    """Return what a dry run stops at."""
    with pytest.raises(WaxlakeError) as caught:
        check_graph(load_graph(load_spec(project.folder)))
    return caught.value


def _row(number: int, name: str = "a") -> dict[str, Any]:
    return {"id": number, "name": name, "price": "1.50", "sold": "2026-01-02T03:04:05.678Z"}


def test_p25_records_of_a_kafka_sink_are_what_its_options_say(
    project: Project, apache_kafka: KafkaCluster, topic: str
) -> None:
    for_ever = {"retention.ms": "-1"}  # its records have times of long ago
    create_topic(apache_kafka, topic, partitions=3, config=for_ever)
    create_topic(apache_kafka, topic + "-other", config=for_ever)
    options = {
        "kafka.bootstrap.servers": apache_kafka.bootstrap_servers,
        "topic": topic,
        "key": "name",
        "headers": {"kind": "'row'", "maybe": "CASE WHEN id = 2 THEN name END"},
        "topic_expression": f"CASE WHEN id = 3 THEN '{topic}-other' END",
        "partition": "CASE WHEN id = 1 THEN 2 END",
        "timestamp": "sold",
    }
    project.define(
        LANDED
        + f"""
wl.create_sink("out", "kafka", {options!r}, comment="to the world", expect_all_or_drop={{"known": "id < 100"}})

@wl.append_flow(target="out")
def to_out():
    return wl.read_stream("landed").select("id", "name", "price", "sold", "[id, NULL] AS list", "{{'sold': sold}} AS nested")
"""
    )
    project.land("1.json", _row(1), _row(2, 'é "'), _row(3), _row(100))
    project.run()
    records = sorted(_records(apache_kafka, topic), key=lambda r: json.loads(r["value"])["id"])
    at = "2026-01-02T03:04:05.678000Z"
    text = f'{{"id":1,"name":"a","price":1.50,"sold":"{at}","list":[1,null],"nested":{{"sold":"{at}"}}}}'
    assert records[0] == {
        "key": b"a",
        "value": text.encode(),
        "headers": [("kind", b"row")],
        "partition": 2,
        "timestamp": 1767323045678,
    }
    assert json.loads(records[1]["value"])["name"] == 'é "'
    assert records[1]["headers"] == [("kind", b"row"), ("maybe", 'é "'.encode())]
    assert len(records) == 2
    assert [json.loads(r["value"])["id"] for r in _records(apache_kafka, topic + "-other")] == [3]

    shown = project.waxlake("graph").succeeded().out
    assert f"out (sink)  to the world\n  <- landed\n  -> kafka:{topic}" in shown
    assert f'(["kafka:{topic}"])' in project.waxlake("graph", "--format", "mermaid").succeeded().out
    (table,) = [t for t in map(json.loads, project.waxlake("tables", "--json").out.splitlines()) if t["name"] == "out"]
    assert (table["kind"], table["rows"]) == ("sink", None)
    status = json.loads(project.waxlake("status", "--json").succeeded().out)
    (out,) = [t for t in status["tables"] if t["name"] == "out"]
    assert (out["batches"], out["pending"], out["dropped"], out["rules"][0]["failed"]) == (1, 0, 1, 1)
    progress = [e for e in project.events("flow_progress") if e["dataset"] == "out" and e["level"] == "METRICS"]
    assert [e["details"]["flow_progress"]["metrics"]["num_output_rows"] for e in progress] == [3]
    project.waxlake("show", "out").refused("TABLE_NOT_STORED", "is a sink", exit_code=2)

    project.run()  # nothing new is nothing sent
    assert len(_records(apache_kafka, topic)) == 2


def test_p25_values_as_text_and_as_bytes(project: Project, tansu: KafkaCluster, topic: str) -> None:
    for name in ("text", "bytes"):
        create_topic(tansu, f"{topic}-{name}")
    servers = tansu.bootstrap_servers
    project.define(
        LANDED
        + f"""
common = {{"bootstrap_servers": {servers!r}}}
wl.create_sink("text", "kafka", {{**common, "topic": "{topic}-text", "value_format": "string", "key": "encode(name)"}})
wl.create_sink("raw", "kafka", {{**common, "topic": "{topic}-bytes", "value_format": "binary", "value": "from_hex('00ff')",
    "delivery": "at-least-once"}})

@wl.append_flow(target="text")
def to_text():
    return wl.read_stream("landed").select("CASE WHEN id > 1 THEN name || '!' END AS value", "name")

@wl.append_flow(target="raw")
def to_raw():
    return wl.read_stream("landed")
"""
    )
    project.land("1.json", _row(1), _row(2))
    project.run()
    assert [(r["key"], r["value"]) for r in _records(tansu, f"{topic}-text")] == [(b"a", None), (b"a", b"a!")]
    assert [r["value"] for r in _records(tansu, f"{topic}-bytes")] == [b"\x00\xff"] * 2


def test_p26_a_function_gets_each_batch_again_until_it_is_stored(project: Project) -> None:
    project.define(FUNCTION.format(on_full_refresh="refuse"))
    project.land("1.json", _row(1), _row(2), _row(-1))
    (project.folder / "broken").touch()
    project.waxlake("run").refused("FOREACH_BATCH_FAILED", "definitions.py:", "AssertionError: no thanks", "attempt 1")
    project.land("2.json", _row(3))
    project.waxlake("run").refused("FOREACH_BATCH_FAILED", "batch 1", "attempt 2")
    status = json.loads(project.waxlake("status", "--json").succeeded().out)
    assert [(t["batches"], t["pending"]) for t in status["tables"] if t["name"] == "called"] == [(1, 1)]
    assert project.rows("landed", "id") == [1, 2, -1, 3] or sorted(project.rows("landed", "id")) == [-1, 1, 2, 3]
    (project.folder / "broken").unlink()
    project.run()
    assert _calls(project) == [[1, "to_called", 3, [1, 2]], [2, "to_called", 1, [3]]]
    assert project.rows("called_quarantine", "id") == [-1]
    (rejected,) = project.rows("called_quarantine")
    assert rejected["_failed_rules"] == ["positive"]


def test_w08_what_a_full_refresh_does_is_said_by_the_sink(project: Project) -> None:
    project.define(FUNCTION.format(on_full_refresh="refuse"))
    project.land("1.json", _row(1))
    project.run()
    for words in (["--full-refresh", "landed"], ["--full-refresh", "called"], ["--full-refresh-all"]):
        project.waxlake("run", *words).refused("SINK_REFRESH_REFUSED", "'resend'", "'skip'")
    assert _calls(project) == [[1, "to_called", 1, [1]]]

    project.define(FUNCTION.format(on_full_refresh="skip"))
    project.run("--full-refresh", "landed")
    assert len(_calls(project)) == 1
    project.land("2.json", _row(2))
    project.run()
    assert _calls(project)[1:] == [[2, "to_called", 1, [2]]]

    project.define(FUNCTION.format(on_full_refresh="resend"))
    project.run("--full-refresh-all")
    assert [(number, sorted(ids)) for number, _, _, ids in _calls(project)[2:]] == [(3, [1, 2])]
    project.land("3.json", _row(3))
    project.run("--reset-checkpoint", "called")  # asked for by name
    assert [(number, sorted(ids)) for number, _, _, ids in _calls(project)[3:]] == [
        (4, [1, 2])
    ]  # the table is left as it is


def test_p25_a_delta_sink_appends_to_a_table_that_others_write_too(project: Project) -> None:
    place = project.folder / "elsewhere"
    text = (
        LANDED
        + """
wl.create_sink("copy", "delta", {"path": "elsewhere"%s})

@wl.append_flow(target="copy")
def to_copy():
    return wl.read_stream("landed").select("id"%s)
"""
    )
    project.define(text % ("", ""))
    project.land("1.json", _row(1))
    project.run()
    write_deltalake(place, DeltaTable(place).to_pyarrow_table(), mode="append")  # somebody else
    project.land("2.json", _row(2))
    project.run()
    assert sorted(DeltaTable(place).to_pyarrow_table()["id"].to_pylist()) == [1, 1, 2]

    project.define(text % ("", ', "name"'))
    project.waxlake("run").refused("SINK_COLUMNS_UNKNOWN", "name", "merge_schema")
    project.define(text % (', "merge_schema": True', ', "name"'))
    project.land("3.json", _row(3))
    project.run()
    assert sorted(DeltaTable(place).to_pyarrow_table().to_pylist(), key=str)[-1] == {"id": 3, "name": "a"}

    other = Project(project.folder.parent / "other")
    other.spec(name="other")
    other.land("1.json", _row(7))
    other.define((text % ("", "")).replace('"elsewhere"', repr(str(place))))
    other.waxlake("run").refused("SINK_FLOW_TAKEN", "to_copy", "'other'")
    other.define((text % ("", "")).replace('"elsewhere"', repr(str(place))).replace("to_copy", "of_other"))
    other.run()
    project.land("4.json", _row(4))
    project.run()
    assert sorted(DeltaTable(place).to_pyarrow_table()["id"].to_pylist()) == [1, 1, 2, 3, 4, 7]


@pytest.mark.parametrize(
    ("sink", "code", "said"),
    [
        ('wl.create_sink("s", "kafkaa", {})', "SINK_FORMAT_UNKNOWN", "foreach_batch_sink"),
        ('wl.create_sink("s", "kafka", {"topic": "t"})', "OPTION_INVALID", "bootstrap_servers"),
        (
            'wl.create_sink("s", "kafka", {"bootstrap_servers": "b", "topic": "t", "keys": "id"})',
            "OPTION_INVALID",
            "'key'",
        ),
        (
            'wl.create_sink("s", "kafka", {"bootstrap_servers": "b", "topic": "t", "key": "idd"})',
            "SINK_EXPRESSION_INVALID",
            "idd",
        ),
        (
            'wl.create_sink("s", "kafka", {"bootstrap_servers": "b", "topic": "t", "value_format": "string"})',
            "SINK_VALUE_MISSING",
            "'value'",
        ),
        (
            'wl.create_sink("s", "kafka", {"kafka.bootstrap.servers": "b", "topic": "t", "kafka.transactional.id": "x"})',
            "KAFKA_OPTION_MANAGED",
            "transactional.id",
        ),
        (
            'wl.create_sink("s", "kafka", {"kafka.bootstrap.servers": "b", "topic": "t", "kafka.lingr.ms": "1"})',
            "KAFKA_OPTION_UNKNOWN",
            "linger.ms",
        ),
        ('wl.create_sink("s", "delta", {"path": "x", "mode": "overwrite"})', "OPTION_INVALID", "append"),
        ('wl.create_sink("s", "delta", {"path": "lake/tables/default/landed"})', "SINK_IS_A_TABLE", "landed"),
        ('wl.foreach_batch_sink("s", on_full_refresh="again")(print)', "ARGUMENT_INVALID", "resend"),
    ],
)
def test_p25_a_sink_that_cannot_work_is_refused_before_anything_is_read(
    project: Project, sink: str, code: str, said: str
) -> None:
    project.define(f'{LANDED}\n{sink}\n@wl.append_flow(target="s")\ndef f():\n    return wl.read_stream("landed")\n')
    error = _mistake(project)
    assert error.code == code
    assert said in str(error)
    assert str(error).startswith(str(project.folder / "flows/definitions.py"))


def test_p25_a_sink_is_no_table(project: Project) -> None:
    project.define(
        FUNCTION.format(on_full_refresh="refuse") + '@wl.table\ndef t():\n    return wl.read_stream("called")\n'
    )
    assert _mistake(project).code == "SINK_NOT_READABLE"
    project.define(FUNCTION.format(on_full_refresh="refuse").replace('wl.read_stream("landed")', 'wl.read("landed")'))
    assert _mistake(project).code == "BATCH_FOR_STREAMING_TABLE"


def test_w08_a_broker_that_is_away_loses_nothing_and_holds_no_table_back(
    project: Project, apache_kafka: KafkaCluster, topic: str
) -> None:
    project.spec(give_up_after="1s")
    options = {"topic": topic, "request_timeout_s": 2, "options": {"sasl.password": "hunter2-secret"}}
    text = (
        LANDED
        + """
wl.create_sink("out", "kafka", {"bootstrap_servers": %r, **%r})

@wl.append_flow(target="out")
def to_out():
    return wl.read_stream("landed").select("id")
"""
    )
    project.define(text % ("127.0.0.1:1", options))
    project.land("1.json", _row(1), _row(2))
    project.waxlake("run").refused("KAFKA_UNREACHABLE", "sink 'out'")
    assert project.rows("landed", "id") == [1, 2]
    project.define(text % (apache_kafka.bootstrap_servers, options))
    project.land("2.json", _row(3))
    project.waxlake("run").refused("KAFKA_TOPIC_MISSING", "Create it")
    create_topic(apache_kafka, topic)
    project.run()
    assert [json.loads(r["value"])["id"] for r in _records(apache_kafka, topic)] == [1, 2, 3]
    assert b"hunter2" not in project.everything_written()


def test_p25_sinks_in_sql(project: Project, tansu: KafkaCluster, topic: str) -> None:
    create_topic(tansu, topic)
    project.define(LANDED)
    project.write(
        "flows/sinks.sql",
        f"""
CREATE SINK out (CONSTRAINT small EXPECT (id < 10) ON VIOLATION QUARANTINE)
  FORMAT kafka COMMENT 'in SQL'
  OPTIONS (bootstrap_servers = '{tansu.bootstrap_servers}', topic = '{topic}', key = 'id', headers.kind = 'name',
           'kafka.linger.ms' = '5', max_rows_per_batch = 10);
CREATE FLOW to_out AS INSERT INTO out BY NAME SELECT id, name FROM STREAM(landed) WHERE id > 1;
CREATE FLOW to_python AS INSERT INTO declared_in_python BY NAME SELECT id FROM STREAM(landed);
""",
    )
    project.write(
        "flows/more.py", 'import waxlake as wl\nwl.create_sink("declared_in_python", "delta", {"path": "copy"})\n'
    )
    project.land("1.json", _row(1), _row(2), _row(11))
    project.run()
    (record,) = _records(tansu, topic)
    assert (record["key"], record["value"], record["headers"]) == (b"2", b'{"id":2,"name":"a"}', [("kind", b"a")])
    assert project.rows("out_quarantine", "id") == [11]
    assert DeltaTable(project.folder / "copy").to_pyarrow_table()["id"].to_pylist() == [1, 2, 11]

    project.write("flows/sinks.sql", "CREATE SINK out (id BIGINT) FORMAT kafka OPTIONS (topic = 'x');")
    assert "sinks.sql:1:18: a sink has no columns of its own" in project.waxlake("dry-run").err
    project.write("flows/sinks.sql", "CREATE SINK out FORMAT kafka OPTIONS (topc = 'x');")
    said = project.waxlake("dry-run").err
    assert "sinks.sql:1:13: create_sink('out', 'kafka')" in said
    assert "Did you mean 'topic'? [OPTION_INVALID]\n  CREATE SINK out FORMAT kafka" in said
    assert said.endswith("^\n")
