"""New columns in files: each mode, every format, nested fields, downstream tables, and a kill at every step."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connectors.files.schema_history import SchemaHistory
from tests.e2e.project import Project
from tests.integration.auto_loader.lake import Lake
from tests.integration.auto_loader.test_formats import avro, orc_bytes
from tests.services.s3 import ObjectStore
from waxlake.pipeline.file_states import schema_history
from waxlake.pipeline.resolve import load_graph
from waxlake.stream.delta_table import TableLocation
from waxlake.stream.errors import DefinitionError, TerminalError

SOURCES = Path(__file__).resolve().parents[3]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """Return an empty pipeline."""
    return Lake(tmp_path)


def reads(format: str = "json", **options: object) -> str:
    """Return the definition of a table of everything in the files."""
    given = "".join(f", {name}={value!r}" for name, value in options.items())
    return f"""
@wl.table
def orders():
    return wl.read_files("{{inbox}}", format={format!r}{given})
"""


def history(lake: Lake) -> SchemaHistory:
    """Return the schema history of the only files source."""
    (ledger,) = (lake.folder / "lake").rglob("_schemas")
    return SchemaHistory(TableLocation(str(ledger.parent)))


def grows_in_one_commit(lake: Lake, table: str) -> None:
    """Assert that each change of the schema shares its log entry with rows and positions."""
    for actions in lake.log(table)[1:]:
        if "metaData" in actions:
            assert {"add", "txn"} <= set(actions), actions


_MORE = """
@wl.table
@wl.expect_or_quarantine("positive", "id > 0")
def checked():
    return wl.read_stream("orders")

@wl.table
def narrow():
    return wl.read_files("{inbox}", format="json").select("id")

@wl.materialized_view
def all_of_it():
    return wl.sql("SELECT * FROM orders")
"""


def test_al_34_add_new_columns_is_the_default_and_does_not_fail(lake: Lake) -> None:
    lake.define(reads() + _MORE)
    lake.land("1.json", [{"id": 1, "s": {"x": 1}, "l": [{"k": 1}]}, {"id": 2}])
    lake.run()
    lake.land("2.json", [{"id": 3, "c": 1.5, "s": {"x": 2, "y": "q"}}, {"id": -4, "l": [{"k": 2, "m": True}]}])
    result = lake.run()
    assert result.state == "COMPLETED"
    assert result.tables["orders"] == 2
    assert lake.rows("orders", "id", "c") == [(-4, None), (1, None), (2, None), (3, 1.5)]
    assert lake.rows("orders", "_rescued_data") == [None] * 4
    assert {"x": 2, "y": "q"} in lake.rows("orders", "s")
    assert {"x": 1, "y": None} in lake.rows("orders", "s")
    assert [{"k": 2, "m": True}] in lake.rows("orders", "l")
    assert [{"k": 1, "m": None}] in lake.rows("orders", "l")
    grows_in_one_commit(lake, "orders")
    # what reads the table grows too: a stream of it, its quarantine, a view; a SELECT of one column does not
    assert lake.rows("checked", "id", "c") == [(1, None), (2, None), (3, 1.5)]
    grows_in_one_commit(lake, "checked")
    assert [(row["id"], row["l"]) for row in lake.rows("checked_quarantine")] == [(-4, [{"k": 2, "m": True}])]
    assert lake.rows("all_of_it", "id", "c") == lake.rows("orders", "id", "c")
    assert lake.columns("narrow") == {"id": "int64"}
    assert lake.rows("narrow", "id") == [-4, 1, 2, 3]
    said = [event for event in lake.events if event.event_type == "schema_evolution"]
    assert len(said) == 1
    assert "`s.y` STRING" in said[0].message
    assert "2.json" in said[0].message


def test_al_02_schema_history_is_durable_and_says_which_file_changed_it(lake: Lake) -> None:
    lake.define(reads(max_files_per_trigger=1))
    lake.land("1.json", [{"id": 1}])
    lake.run()
    lake.land("2.json", [{"id": 2, "b": "x"}])
    lake.land("3.json", [{"id": 3, "b": 5, "c": {"d": 1}}])
    lake.land("4.json", [{"id": 4, "c": {"d": 2, "e": 3}}])
    lake.run()
    versions = history(lake).versions()
    assert [(v.number, v.added, Path(v.file).name) for v in versions] == [
        (0, "id BIGINT", ""),
        (1, "b STRING", "2.json"),
        (2, "c STRUCT<d: BIGINT>", "3.json"),
        (3, "`c.e` BIGINT", "4.json"),
    ]
    assert versions[3].schema.names == ["id", "b", "c"]
    shown = schema_history(load_graph(lake.spec()), "orders").to_pylist()
    assert [(row["version"], row["added"]) for row in shown] == [(v.number, v.added) for v in versions]
    assert lake.rows("orders", "id", "b") == [(1, None), (2, "x"), (3, "5"), (4, None)]
    kinds = lake.log("orders")
    assert [("metaData" in actions) for actions in kinds] == [True, False, True, True, True]


def test_al_34_types_stay_and_mismatches_are_rescued(lake: Lake) -> None:
    lake.define(reads())
    lake.land("1.json", [{"id": 1}])
    lake.run()
    lake.land("2.json", [{"id": 2, "n": 7}])
    lake.run()
    lake.land("3.json", [{"id": 3, "n": "many"}, {"id": "four", "n": 4}, {"id": 5, "ID": 6}])
    lake.run()
    assert lake.columns("orders") == {"id": "int64", "_rescued_data": "string", "n": "int64"}
    rescued = {row["id"]: json.loads(row["_rescued_data"] or "{}") for row in lake.rows("orders")}
    assert rescued[3]["n"] == "many"
    assert rescued[None]["id"] == "four"
    assert rescued[5]["ID"] == 6


def test_al_34_new_columns_of_csv_have_the_types_of_their_texts(lake: Lake) -> None:
    lake.define(reads("csv"))
    lake.land("1.csv", "id,name\n1,a\n")
    lake.run()
    lake.land("2.csv", "id,name,amount,day,code\n2,b,1.5,2024-05-01,007\n3,c,,2024-05-02,8\n")
    lake.run()
    assert lake.columns("orders") == {
        "id": "int64", "name": "string", "_rescued_data": "string", "amount": "double", "day": "date32[day]", "code": "string",
    }  # fmt: skip
    assert lake.rows("orders", "id", "amount", "code") == [(1, None, None), (2, 1.5, "007"), (3, None, "8")]
    grows_in_one_commit(lake, "orders")


def test_al_34_new_columns_of_parquet_have_the_types_of_the_files(lake: Lake) -> None:
    lake.define(reads("parquet", max_rows_per_batch=2))
    pq.write_table(pa.table({"id": [1], "s": [{"x": 1}]}), lake.inbox / "1.parquet")
    os.utime(lake.inbox / "1.parquet", (1e9, 1e9))
    lake.run()
    ts = pa.timestamp("us", tz="UTC")
    rows = pa.table(
        {
            "id": [2, 3, 4],
            "at": pa.array([None, None, 0], ts),
            "s": [{"x": 2, "y": pa.scalar(1, pa.int32()).as_py()}] * 3,
            "small": pa.array([1, 2, 3], pa.int16()),
        }
    )
    pq.write_table(rows, lake.inbox / "2.parquet")
    os.utime(lake.inbox / "2.parquet", (1e9 + 1, 1e9 + 1))
    lake.run()
    columns = lake.columns("orders")
    assert (columns["at"], columns["small"]) == ("timestamp[us, tz=UTC]", "int16")
    assert lake.rows("orders", "id", "small") == [(1, None), (2, 1), (3, 2), (4, 3)]
    assert lake.rows("orders", "_rescued_data") == [None] * 4
    grows_in_one_commit(lake, "orders")


def test_al_34_new_columns_of_avro_orc_and_xml(lake: Lake) -> None:
    each = """
@wl.table
def {name}():
    return wl.read_files("{{inbox}}", format={name!r}, path_glob_filter="*.{name}"{more})
"""
    lake.define(
        "".join(each.format(name=n, more=m) for n, m in (("avro", ""), ("orc", ""), ("xml", ", row_tag='row'")))
    )
    before = {"type": "record", "name": "r", "fields": [{"name": "id", "type": "long"}]}
    day = {"name": "day", "type": ["null", {"type": "int", "logicalType": "date"}]}
    place = {"type": "record", "name": "place", "fields": [{"name": "lat", "type": "float"}]}
    after = {**before, "fields": [*before["fields"], day, {"name": "place", "type": place}]}
    lake.land("1.avro", avro([{"id": 1}], before))
    lake.land("1.orc", orc_bytes(pa.table({"id": [1]})))
    lake.land("1.xml", "<all><row><id>1</id></row></all>")
    lake.run()
    lake.land("2.avro", avro([{"id": 2, "day": date(2026, 5, 1), "place": {"lat": 0.5}}], after))
    lake.land("2.orc", orc_bytes(pa.table({"id": [2], "small": pa.array([7], pa.int16()), "place": [{"lat": 0.5}]})))
    lake.land("2.xml", "<all><row><id>2</id><place><lat>0.5</lat></place><day>2026-05-01</day></row></all>")
    assert lake.run().tables == {"avro": 1, "orc": 1, "xml": 1}
    wanted = {
        "avro": {"day": "date32[day]", "place": "struct<lat: float>"},
        "orc": {"small": "int16", "place": "struct<lat: double>"},
        "xml": {"day": "date32[day]", "place": "struct<lat: double>"},
    }
    for table, added in wanted.items():
        columns = lake.columns(table)
        assert {name: columns[name] for name in added} == added
        assert lake.rows(table, "id", "place") == [(1, None), (2, {"lat": 0.5})]
        assert lake.rows(table, "_rescued_data") == [None, None]
        grows_in_one_commit(lake, table)


@pytest.mark.services
def test_al_34_new_columns_on_s3(tmp_path: Path, s3_store: ObjectStore, bucket: str) -> None:
    lake = Lake(tmp_path, f"s3://{bucket}/lake", s3_store.storage_options)
    lake.define(f"""
@wl.table
def orders():
    return wl.read_files("s3://{bucket}/in", format="json")
""")
    with contextlib.closing(s3_store.client("s3")) as client:
        client.put_object(Bucket=bucket, Key="in/1.json", Body=b'{"id": 1}')
        lake.run()
        client.put_object(Bucket=bucket, Key="in/2.json", Body=b'{"id": 2, "more": {"x": 1.5}}')
    assert lake.run().tables == {"orders": 1}
    assert lake.rows("orders", "id", "more") == [(1, None), (2, {"x": 1.5})]
    (said,) = [event.message for event in lake.events if event.event_type == "schema_evolution"]
    assert f"s3://{bucket}/in/2.json" in said
    versions = schema_history(load_graph(lake.spec()), "orders").to_pylist()
    assert [row["added"] for row in versions] == ["id BIGINT", "more STRUCT<x: DOUBLE>"]


def test_al_05_databricks_names_of_modes_are_taken_and_wrong_ones_named(lake: Lake) -> None:
    lake.define(reads(schema_evolution_mode="failOnNewColumns", schema="id BIGINT"))
    lake.land("1.json", [{"id": 1}])
    lake.run()
    lake.define(reads(schema_evolution_mode="addColumns"))
    with pytest.raises(DefinitionError, match=r"schema_evolution_mode.*add_new_columns"):
        lake.run()


@pytest.mark.parametrize("mode", [{"schema_evolution_mode": "rescue"}, {"schema": "id BIGINT"}])
def test_al_36_al_38_rescue_and_none_keep_the_schema_and_every_value(lake: Lake, mode: dict[str, str]) -> None:
    lake.define(reads(**mode))
    lake.land("1.json", [{"id": 1}])
    lake.run()
    lake.land("2.json", [{"id": 2, "b": {"c": 1}}])
    lake.run()
    assert lake.columns("orders") == {"id": "int64", "_rescued_data": "string"}
    (kept,) = [json.loads(text) for text in lake.rows("orders", "_rescued_data") if text]
    assert kept == {"b": {"c": 1}, "_file_path": str(lake.inbox / "2.json")}


def test_al_37_fail_on_new_columns_names_them_and_stays_failed(lake: Lake) -> None:
    lake.define(reads(schema_evolution_mode="fail_on_new_columns", max_files_per_trigger=1))
    lake.land("1.json", [{"id": 1}])
    lake.run()
    lake.land("2.json", [{"id": 2}])
    bad = lake.land("3.json", [{"id": 3, "b": 1}])
    for _ in range(2):
        with pytest.raises(TerminalError, match=r"3\.json.*b BIGINT.*NEW_COLUMN"):
            lake.run()
        assert lake.rows("orders", "id") == [1, 2]
    lake.define(reads(schema_evolution_mode="add_new_columns"))
    lake.run()
    assert bad.exists()
    assert lake.rows("orders", "id", "b") == [(1, None), (2, None), (3, 1)]


def test_al_35_widening_adds_columns_and_says_that_types_stay(lake: Lake) -> None:
    lake.define(reads(schema_evolution_mode="addNewColumnsWithTypeWidening"))
    lake.land("1.json", [{"id": 1}])
    lake.run()
    lake.land("2.json", [{"id": 1.5, "b": 1}])
    lake.run()
    assert lake.columns("orders") == {"id": "int64", "_rescued_data": "string", "b": "int64"}
    assert [json.loads(text)["id"] for text in lake.rows("orders", "_rescued_data") if text] == [1.5]
    said = [e for e in lake.events if e.event_type == "schema_evolution" and "not widened" in e.message]
    assert len(said) == 1
    assert said[0].level == "WARN"


def test_al_34_declared_columns_of_a_table_keep_new_ones_in_rescued_data(lake: Lake) -> None:
    declared = """
@wl.table(schema="id BIGINT, _rescued_data STRING{more}")
def fixed():
    return wl.read_files("{{inbox}}", format="json")
"""
    lake.define(reads() + declared.format(more=""))
    lake.land("1.json", [{"id": 1}])
    lake.run()
    lake.land("2.json", [{"id": 2, "b": 1}])
    lake.run()
    assert lake.rows("orders", "id", "b") == [(1, None), (2, 1)]
    assert lake.columns("fixed") == {"id": "int64", "_rescued_data": "string"}
    assert [json.loads(text)["b"] for text in lake.rows("fixed", "_rescued_data") if text] == [1]
    lake.define(reads() + declared.format(more=", b BIGINT"))  # declared later: a column from then on
    lake.land("3.json", [{"id": 3, "b": 2}])
    lake.run()
    assert lake.rows("fixed", "id", "b") == [(1, None), (2, None), (3, 2)]
    lake.define(declared.format(more="").replace('"json"', '"json", schema_evolution_mode="add_new_columns"'))
    with pytest.raises(DefinitionError, match="EVOLUTION_OF_DECLARED_TABLE"):
        lake.run()


def test_al_34_declared_schema_grows_when_asked_and_partitions_stay(lake: Lake) -> None:
    lake.define(
        """
@wl.table(partition_cols=["day"])
def orders():
    return wl.read_files("{inbox}", format="json", schema="id BIGINT, day DATE", schema_evolution_mode="addNewColumns")
"""
    )
    lake.land("1.json", [{"id": 1, "day": "2024-01-01"}])
    lake.run()
    lake.land("2.json", [{"id": 2, "day": "2024-01-02", "b": "x y"}, {"id": 3, "b": None, "c": []}])
    lake.run()
    assert lake.handle("orders").metadata().partition_columns == ["day"]
    assert lake.rows("orders", "id", "b") == [(1, None), (2, "x y"), (3, None)]
    assert "c" not in lake.columns("orders")  # nothing shows its type yet; the empty list is rescued
    grows_in_one_commit(lake, "orders")
    lake.land("3.json", [{"id": 4, "day": "2024-01-02", "c": [1]}])
    lake.run()
    assert lake.columns("orders")["c"] == "list<element: int64>"


def process(lake: Lake, *words: str, failpoint: str = "") -> subprocess.CompletedProcess[str]:
    """Run a program in the project, to be killed at a failpoint if one is given."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("WAXLAKE_", "BYTEWAX_"))}
    environ |= {"PYTHONPATH": str(SOURCES), "WAXLAKE_SPEC": str(lake.folder / "waxlake.yml")}
    environ |= {"WAXLAKE_FAILPOINT": failpoint} if failpoint else {}
    return subprocess.run(
        [sys.executable, *words], cwd=lake.folder, env=environ, capture_output=True, text=True, timeout=120
    )


def test_al_34_a_kill_at_every_step_loses_and_doubles_nothing(lake: Lake) -> None:
    lake.define(reads(max_files_per_trigger=1) + _MORE)
    lake.land("0.json", [{"id": 1}])
    lake.run()
    steps = ["schema-found:1", "schema-stored:1", "files-written:1", "committed:1", "quarantine-pending:1"]
    for number, step in enumerate(steps, start=1):
        lake.land(f"{number}.json", [{"id": 10 * number, f"c{number}": number}, {"id": -number}])
        done = process(lake, "-m", "waxlake", "run", failpoint=step)
        assert done.returncode == -signal.SIGKILL, (step, done.stderr[-2000:])
    lake.run()
    positive = [1, *(10 * n for n in range(1, 6))]
    assert sorted(lake.rows("orders", "id")) == sorted([*positive, *range(-5, 0)])
    assert sorted(lake.rows("checked", "id")) == positive
    assert sorted(lake.rows("checked_quarantine", "id")) == list(range(-5, 0))
    assert sorted(lake.rows("all_of_it", "id")) == sorted(lake.rows("orders", "id"))
    for number in range(1, 6):
        assert [row["id"] for row in lake.rows("orders") if row[f"c{number}"] == number] == [10 * number]
        assert [row["id"] for row in lake.rows("checked") if row[f"c{number}"] == number] == [10 * number]
    grows_in_one_commit(lake, "orders")
    grows_in_one_commit(lake, "checked")


def test_al_34_a_continuous_run_goes_on_with_new_columns(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.define(
        """
@wl.table
def orders():
    return wl.read_files("inbox", format="json", poll_interval_s=0.1)

@wl.table
def copied():
    return wl.read_stream("orders")
"""
    )
    project.land("1.json", {"id": 1})
    with project.continuous() as run:
        run.await_rows("copied", 1)
        project.land("2.json", {"id": 2, "b": "x"})
        run.await_event(lambda event: event["event_type"] == "schema_evolution")
        run.await_rows("copied", 1)
        project.land("3.json", {"id": 3, "b": "y"})
        run.await_rows("copied", 1)
        run.stop()
    assert project.rows("orders", "id", "b") == [(1, None), (2, "x"), (3, "y")]
    assert project.rows("copied", "id", "b") == [(1, None), (2, "x"), (3, "y")]


def test_al_34_several_processes_start_again_by_themselves(lake: Lake) -> None:
    lake.define(reads(max_files_per_trigger=1))
    lake.land("1.json", [{"id": 1}])
    lake.run()
    lake.land("2.json", [{"id": 2, "b": 1}])
    done = process(lake, "-m", "waxlake", "run", "--processes", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert lake.rows("orders", "id", "b") == [(1, None), (2, 1)]
    lake.land("3.json", [{"id": 3, "c": 1}])
    done = process(lake, "-m", "bytewax.run", "waxlake.pipeline.deploy:flow")
    assert done.returncode == 75, done.stderr
    assert done.stderr.rstrip().endswith("[SCHEMA_GROWN]"), done.stderr
    assert "c BIGINT" in done.stderr
    assert "start again" in done.stderr
    done = process(lake, "-m", "bytewax.run", "waxlake.pipeline.deploy:flow")
    assert done.returncode == 0, done.stderr[-3000:]
    assert lake.rows("orders", "id", "b", "c") == [(1, None, None), (2, 1, None), (3, None, 1)]
