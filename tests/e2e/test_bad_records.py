"""Records, files and rules that do not fit: nothing is lost, nothing is doubled, and a flow that fails takes no other along."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from confluent_kafka import Producer

from tests.e2e.project import Project
from tests.services.kafka import create_topic
from waxlake.demo.broker import EmbeddedBroker

DDL = "id BIGINT, small INT, amount DOUBLE, day DATE, ok BOOLEAN"
TOPIC = """
@wl.table
def orders():
    return wl.read_kafka({topic!r}, {servers!r}, schema={ddl!r}).select("*", "_offset AS o")
"""
FILES = """
@wl.table
def orders():
    return wl.read_files("inbox", format={format!r}, schema={ddl!r})
"""


def publish(broker: EmbeddedBroker, topic: str, *values: bytes | None, key: bytes | None = None) -> None:
    create_topic(broker, topic)
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "message.max.bytes": 16 << 20})
    for value in values:
        producer.produce(topic, value=value, key=key)
    assert producer.flush(30) == 0


def by_offset(project: Project, table: str = "orders") -> dict[int, dict[str, object]]:
    rows = {row.pop("o"): row for row in project.rows(table)}
    assert len(rows) == project.handle(table).to_pyarrow_dataset().count_rows()
    return rows


# -- single records


def test_p91_records_that_do_not_fit_are_rescued_with_the_rest_intact(
    project: Project, tansu: EmbeddedBroker, topic: str
) -> None:
    bad = [
        b"{not json",
        b'{"id": "twelve", "small": true, "amount": "x", "day": "2026-02-30", "ok": 1}',
        b'{"id": 9223372036854775808, "small": 2147483648, "amount": 1e400}',
        b"",
        None,
        b"[1, 2]",
        b'"text"',
        b"null",
        b"\xff\xfe{}",
        b'{"id": 1.5}',
        b'{"id": 1} {"id": 2}',
        b'{"id": 7, "unknown": {"deep": [1]}}',
    ]
    good = b'{"id": 1, "small": 2, "amount": 0.5, "day": "2026-02-28", "ok": true}'
    publish(tansu, topic, good, *bad, good)
    project.define(TOPIC.format(topic=topic, servers=tansu.bootstrap_servers, ddl=DDL))

    project.run()
    project.run()

    rows = by_offset(project)
    assert sorted(rows) == list(range(len(bad) + 2))
    assert [rows[0]["id"], rows[13]["id"], rows[0]["_rescued_data"], rows[13]["_rescued_data"]] == [1, 1, None, None]
    columns = ("id", "small", "amount", "day", "ok")
    for offset, value in enumerate(bad[:-1], start=1):
        assert [rows[offset][name] for name in columns] == [None] * 5, (value, rows[offset])
    rescued = {offset: row["_rescued_data"] for offset, row in rows.items()}
    assert "{not json" in rescued[1]
    assert json.loads(rescued[2])["id"] == "twelve"
    assert json.loads(rescued[2])["day"] == "2026-02-30"
    assert "9223372036854775808" in rescued[3]
    assert "2147483648" in rescued[3]
    assert "1e400" in rescued[3].replace("E+", "e")
    assert rescued[5] is None  # a tombstone has no value that could be rescued
    assert "1.5" in rescued[10]
    assert rows[12]["id"] == 7
    assert json.loads(rescued[12])["unknown"] == {"deep": [1]}


def test_record_of_five_megabytes(project: Project, tansu: EmbeddedBroker, topic: str) -> None:
    text = "w" * (5 << 20)
    publish(tansu, topic, b'{"id": 1}', json.dumps({"id": 2, "text": text}).encode(), b'{"id": 3}')
    project.define(TOPIC.format(topic=topic, servers=tansu.bootstrap_servers, ddl="id BIGINT, text STRING"))

    project.run()

    rows = by_offset(project)
    assert [rows[n]["id"] for n in range(3)] == [1, 2, 3]
    assert rows[1]["text"] == text


def test_malformed_records_can_be_quarantined(project: Project, tansu: EmbeddedBroker, topic: str) -> None:
    publish(tansu, topic, b'{"id": 1}', b"{", b'{"id": 2}')
    rule = '@wl.table\n@wl.expect_or_quarantine("whole", "_rescued_data IS NULL")'
    definitions = TOPIC.format(topic=topic, servers=tansu.bootstrap_servers, ddl="id BIGINT")
    project.define(definitions.replace("@wl.table", rule))

    project.run()

    assert project.rows("orders", "id") == [1, 2]
    (rejected,) = project.rows("orders_quarantine")
    assert rejected["_failed_rules"] == ["whole"]
    assert "{" in rejected["_rescued_data"]
    assert rejected["o"] == 1


# -- files


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("2.json.gz", gzip.compress(b'{"id": 2}\n' * 5000)[:-20]),
        ("2.json.gz", b"no gzip at all"),
    ],
)
def test_corrupt_gzip(project: Project, name: str, content: bytes) -> None:
    project.define(FILES.format(format="json", ddl="id BIGINT"))
    project.land("1.json", {"id": 1})
    bad = project.write(f"inbox/{name}", content)
    project.land("3.json", {"id": 3})

    project.waxlake("run").refused("FILE_UNREADABLE", str(bad), "whole file")

    bad.unlink()
    project.write(f"inbox/{name}", gzip.compress(b'{"id": 2}\n' * 5000))
    project.run()
    project.run()
    assert project.rows("orders", "id") == [1, *[2] * 5000, 3]


@pytest.mark.parametrize("content", [b"PAR1", b"no parquet at all, but long enough to look", None])
def test_corrupt_parquet(project: Project, tmp_path: Path, content: bytes | None) -> None:
    whole = tmp_path / "whole.parquet"
    pq.write_table(pa.table({"id": pa.array(range(1000), pa.int64())}), whole)
    if content is None:  # the middle of the data page is broken, the footer is whole
        content = bytearray(whole.read_bytes())
        content[20:400] = b"\xff" * 380
    project.define(FILES.format(format="parquet", ddl="id BIGINT"))
    bad = project.write("inbox/1.parquet", bytes(content))

    project.waxlake("run").refused("FILE_UNREADABLE", str(bad), "whole file")

    bad.unlink()
    project.write("inbox/1.parquet", whole.read_bytes())
    project.run()
    assert project.rows("orders", "id") == list(range(1000))


def test_file_that_is_gone_before_it_was_read(project: Project) -> None:
    """The run is killed between the ledger's record of the file and its rows."""
    project.define(FILES.format(format="json", ddl="id BIGINT"))
    project.land("1.json", {"id": 1})
    project.run()
    gone = project.land("2.json", {"id": 2})
    project.land("3.json", {"id": 3})
    assert project.waxlake("run", WAXLAKE_FAILPOINT="files-written:1").code < 0
    gone.unlink()

    project.waxlake("run").refused("FILE_GONE", str(gone), "ignore_missing_files=True")
    assert project.rows("orders", "id") == [1]

    project.define(FILES.format(format="json", ddl="id BIGINT").replace("schema=", 'on_data_loss="skip", schema='))
    project.run()
    assert project.rows("orders", "id") == [1, 3]
    (loss,) = project.events("data_loss")
    assert loss["level"] == "WARN"
    assert loss["dataset"] == "orders"
    assert str(project.folder / "inbox") in loss["message"]


@pytest.mark.parametrize(
    "name",
    [
        "with space.json",
        "per%20cent.json",
        "quote'\".json",
        "semi;colon&and.json",
        "brackets[1]{2}.json",
        "star*.json",
        "new\nline.json",
        "ünï.json",
        "back\\slash.json",
        "-rf.json",
        "hash#question?.json",
        "$(touch owned).json",
        "id=5.json",
        "x" * 240 + ".json",
    ],
)
def test_hostile_file_name(project: Project, name: str) -> None:
    definitions = FILES.format(format="json", ddl="id BIGINT").rstrip()
    project.define(definitions + '.select("id", "_metadata.file_name AS name")\n')
    project.land(name, {"id": 1})
    project.land("plain.json", {"id": 2})

    project.run()
    project.run()

    assert project.rows("orders", "id", "name") == [(1, name), (2, "plain.json")]
    assert not (project.folder / "owned").exists()


def test_path_that_is_not_there(project: Project) -> None:
    project.define(FILES.format(format="json", ddl="id BIGINT"))

    project.waxlake("run").refused("FILES_PATH_NOT_FOUND", "inbox", str(project.folder))

    project.land("1.json", {"id": 1})
    project.run()
    assert project.rows("orders", "id") == [1]


# -- code of the user's that fails at run time

THREE = """
@wl.table
def raw():
    return wl.read_files("inbox", format="json", schema="id BIGINT, text STRING")

def checked(table):
    if 13 in table.column("id").to_pylist():
        raise ValueError("thirteen")
    return table

@wl.table
def picky():
    return wl.read_stream("raw"){step}

@wl.table
def after():
    return wl.read_stream("picky")

@wl.materialized_view
def total():
    return wl.sql("SELECT count(*) AS n FROM after")

@wl.table
def other():
    return wl.read_files("elsewhere", format="json", schema="id BIGINT")

@wl.materialized_view
def other_total():
    return wl.sql("SELECT count(*) AS n FROM other")
"""


@pytest.mark.parametrize(
    ("step", "code", "said"),
    [
        (".map_batches(checked)", "MAP_BATCHES_FAILED", "ValueError: thirteen"),
        ('.select("id", "(text::INT)::STRING AS text")', "SQL_FAILED", "Could not convert"),
        ('.map_batches(lambda t: t if 13 not in t["id"].to_pylist() else None)', "MAP_BATCHES_RETURN_TYPE", "NoneType"),
    ],
)
def test_a_flow_that_fails_on_one_batch_stops_itself_and_what_depends_on_it(
    project: Project, step: str, code: str, said: str
) -> None:
    project.define(THREE.format(step=step))
    project.land("1.json", {"id": 1, "text": "1"})
    project.land("1.json", {"id": 1}, folder="elsewhere")
    project.run()
    project.land("2.json", {"id": 13, "text": "x"})
    project.land("2.json", {"id": 2}, folder="elsewhere")

    done = project.waxlake("run")

    line = project.folder / "flows/definitions.py"
    done.refused(code, "'picky'", said, f"{line}:14")
    assert project.rows("raw", "id") == [1, 13]
    assert project.rows("picky", "id") == project.rows("after", "id") == [1]
    assert project.rows("other", "id") == [1, 2]
    assert (project.rows("total", "n"), project.rows("other_total", "n")) == ([1], [2])
    last = {e["flow"]: e["details"]["flow_progress"].get("status") for e in project.events("flow_progress")}
    assert (last["picky"], last["after"], last["total"]) == ("FAILED", "SKIPPED", "SKIPPED")
    update = project.events("update_progress")[-1]
    assert update["details"]["update_progress"]["state"] == "FAILED"
    assert update["error"]["code"] == code

    project.define(THREE.format(step=""))
    project.run()
    assert project.rows("picky", "id") == project.rows("after", "id") == [1, 13]
    assert (project.rows("total", "n"), project.rows("other_total", "n")) == ([2], [2])


def test_expect_or_fail_commits_nothing_of_the_batch(project: Project) -> None:
    rule = '@wl.table\n@wl.expect_or_fail("positive", "amount > 0")'
    definitions = FILES.format(format="json", ddl="id BIGINT, amount DOUBLE")
    project.define(definitions.replace("@wl.table", rule))
    project.land("1.json", {"id": 1, "amount": 1})
    project.run()
    version = project.handle("orders").version()
    bad = project.land("2.json", {"id": 2, "amount": 1}, {"id": 3, "amount": -5}, {"id": 4, "amount": 1})

    for _ in range(2):
        project.waxlake("run").refused("EXPECTATION_FAILED", "'positive'", "'orders'", "amount > 0", "1 rows", "-5.0")
    assert project.rows("orders", "id") == [1]
    assert project.handle("orders").version() == version

    project.define(definitions.replace("@wl.table", rule.replace("or_fail", "or_quarantine")))
    project.run()
    assert bad.exists()
    assert project.rows("orders", "id") == [1, 2, 4]
    assert project.rows("orders_quarantine", "id") == [3]


def test_a_source_corrected_after_expect_or_fail_goes_on_where_it_was(
    project: Project, tansu: EmbeddedBroker, topic: str
) -> None:
    publish(tansu, topic, b'{"id": 1}', b'{"id": 2}', b'{"id": -3}', b'{"id": 4}')
    definitions = TOPIC.format(topic=topic, servers=tansu.bootstrap_servers, ddl="id BIGINT")
    definitions = definitions.replace("schema=", "max_rows_per_batch=1, schema=")
    project.define(definitions.replace("@wl.table", '@wl.table\n@wl.expect_or_fail("positive", "id > 0")'))

    project.waxlake("run").refused("EXPECTATION_FAILED", "'positive'", "-3")
    before = project.rows("orders", "id")
    assert before in ([], [1], [1, 2])  # whole batches before the bad one may be there

    project.define(definitions.replace("@wl.table", '@wl.table\n@wl.expect("positive", "id > 0")'))
    project.run()
    assert project.rows("orders", "id") == [-3, 1, 2, 4]
    assert sorted(by_offset(project)) == [0, 1, 2, 3]


def test_values_that_a_declared_schema_cannot_hold(project: Project) -> None:
    """A cast that would change the value stops the flow; whole numbers pass."""
    project.define("""
@wl.table(schema="id BIGINT, amount BIGINT")
def orders():
    return wl.read_files("inbox", format="json", schema="id BIGINT, amount DOUBLE").select("id", "amount")
""")
    project.land("1.json", {"id": 1, "amount": 2.0})
    project.run()
    bad = project.land("2.json", {"id": 2, "amount": 3.0}, {"id": 3, "amount": 1.5})

    project.waxlake("run").refused("SCHEMA_LOSSY_CAST", "'amount'", "1.5", "'orders'", "int64")
    assert project.rows("orders", "id", "amount") == [(1, 2)]

    bad.unlink()
    project.land("2.json", {"id": 2, "amount": 3.0}, {"id": 3, "amount": 4.0})
    project.run()
    assert project.rows("orders", "id", "amount") == [(1, 2), (2, 3), (3, 4)]
