"""What a table says of its columns: comments, NOT NULL, CHECK, defaults, generated ones; how columns come through a graph."""

from __future__ import annotations

from pathlib import Path

import pytest
from deltalake import DeltaTable, write_deltalake

import waxlake as wl
from tests.e2e.project import Project
from waxlake.pipeline.run import RunOptions, run_update
from waxlake.pipeline.spec import load_spec
from waxlake.stream.errors import DefinitionError, SchemaError

DDL = """id BIGINT NOT NULL COMMENT 'the key', amount DOUBLE COMMENT 'in EUR', country STRING DEFAULT 'D' || 'E' COMMENT 'where',
gross DOUBLE GENERATED ALWAYS AS (round(amount * 1.19, 2)) NOT NULL, at TIMESTAMP, day DATE GENERATED ALWAYS AS ("at"::DATE),
CONSTRAINT paid CHECK (amount > 0 AND country <> 'XX')"""
PYTHON = f"""
import waxlake as wl

@wl.table(schema='''{DDL}''', comment="Orders", table_properties={{"shop.owner": "ada"}})
def orders():
    return wl.read_stream("raw")
"""
SQL = f"""CREATE STREAMING TABLE orders ({DDL}) COMMENT 'Orders' TBLPROPERTIES ('shop.owner' = 'ada')
AS SELECT * FROM STREAM raw;"""
RAW = "id BIGINT, amount DOUBLE, at TIMESTAMP"


def raw(*amounts: float | None) -> object:
    return wl.testing.rows(RAW, [{"id": n, "amount": a, "at": "2026-01-02T03:04:05Z"} for n, a in enumerate(amounts)])


def handle(folder: Path, name: str = "orders") -> DeltaTable:
    return DeltaTable(str(folder / "lake/tables/default" / name))


@pytest.mark.parametrize(("name", "text"), [("t.py", PYTHON), ("t.sql", SQL)])
def test_p10_columns_are_declared_with_all_they_have(tmp_path: Path, name: str, text: str) -> None:
    file = tmp_path / name
    file.write_text(text)
    pipeline = wl.testing.Pipeline(file, folder=tmp_path)
    result = pipeline.run({"raw": raw(1.0, 10.0)})
    assert result["orders"].schema.names == ["id", "amount", "country", "gross", "at", "day"]
    assert [(r["country"], r["gross"], str(r["day"])) for r in result.rows("orders")] == [
        ("DE", 1.19, "2026-01-02"),
        ("DE", 11.9, "2026-01-02"),
    ]
    table = handle(tmp_path)
    comments = {field.name: field.metadata.get("comment") for field in table.schema().fields}
    assert comments == {"id": "the key", "amount": "in EUR", "country": "where", "gross": None, "at": None, "day": None}
    assert [field.name for field in table.schema().fields if not field.nullable] == ["id", "gross"]
    properties = table.metadata().configuration
    assert properties["shop.owner"] == "ada"
    assert properties["delta.constraints.paid"].startswith("amount > 0 AND country ")
    assert (table.metadata().description, table.protocol().min_writer_version) == ("Orders", 3)
    with pytest.raises(SchemaError, match=r'constraint "paid" is violated.*-3.0.*CONSTRAINT_VIOLATED'):
        pipeline.run({"raw": raw(5.0, -3.0)})
    assert len(pipeline.run(until="raw")["raw"]) == 4
    assert len(handle(tmp_path).to_pyarrow_table()) == 2  # nothing of the batch
    write_deltalake(handle(tmp_path), handle(tmp_path).to_pyarrow_table(), mode="append")  # others can write it, too


def test_a_null_breaks_a_constraint_and_a_missing_value_not_null(tmp_path: Path) -> None:
    file = tmp_path / "t.py"
    file.write_text(PYTHON)
    with pytest.raises(SchemaError, match=r"CONSTRAINT_VIOLATED|SCHEMA_NULL"):
        wl.testing.run(file, {"raw": raw(None)})
    with pytest.raises(SchemaError, match="SCHEMA_NULL"):
        wl.testing.run(file, {"raw": wl.testing.rows(RAW, [{"amount": 3.0}])})


@pytest.mark.parametrize(
    ("ddl", "code", "said"),
    [
        ("id BIGINT, b BIGINT GENERATED ALWAYS AS (nope + 1)", "UNKNOWN_COLUMN", "nope"),
        ("id BIGINT GENERATED ALWAYS AS (1)", "GENERATED_COLUMN_MADE", "Leave it out"),
        ("id BIGINT GENERATED ALWAYS AS IDENTITY", "SCHEMA_DDL", "Identity"),
        ("id BIGINT DEFAULT", "SCHEMA_DDL", "an expression"),
        ("id BIGINT, CONSTRAINT k PRIMARY KEY (id)", "SCHEMA_DDL", "wl.unique"),
        ("id BIGINT, CONSTRAINT c CHECK (nope > 1)", "CONSTRAINT_INVALID", "nope"),
        ("id BIGINT, CONSTRAINT c CHECK (regexp_matches(id::VARCHAR, '1'))", "CONSTRAINT_INVALID", "regexp_matches"),
    ],
)
def test_what_cannot_be_declared_is_refused(tmp_path: Path, ddl: str, code: str, said: str) -> None:
    file = tmp_path / "t.py"
    file.write_text(f'import waxlake as wl\n@wl.table(schema="{ddl}")\ndef t():\n    return wl.read_stream("s")\n')
    with pytest.raises(DefinitionError, match=rf"(?s){said}.*{code}|{code}.*{said}"):
        wl.testing.run(file, {"s": [{"id": 1}]})


def test_p07_a_view_without_a_catalog_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "t.sql"
    file.write_text("CREATE VIEW v AS SELECT 1 AS a;")
    with pytest.raises(DefinitionError, match=r"(?s)CREATE TEMPORARY VIEW is not stored.*SQL_STATEMENT"):
        wl.testing.run(file)


def test_p13_definitions_win_and_what_others_changed_stays(tmp_path: Path) -> None:
    file = tmp_path / "t.py"
    file.write_text(PYTHON)
    pipeline = wl.testing.Pipeline(file, folder=tmp_path)
    pipeline.run({"raw": raw(1.0)})
    version = handle(tmp_path).version()
    pipeline.run()
    assert handle(tmp_path).version() == version  # nothing to change, nothing written
    handle(tmp_path).alter.set_column_metadata("at", {"comment": "kept"})
    handle(tmp_path).alter.set_column_metadata("id", {"comment": "overruled"})
    handle(tmp_path).alter.set_table_properties({"other": "kept"}, raise_if_not_exists=False)
    file.write_text(
        PYTHON.replace("'in EUR'", "'in cents'").replace('"Orders"', '"All orders"').replace("> 0", "> 0.5")
    )
    pipeline.run()
    table = handle(tmp_path)
    comments = {field.name: field.metadata.get("comment") for field in table.schema().fields}
    assert [comments[name] for name in ("id", "amount", "at")] == ["the key", "in cents", "kept"]
    assert table.metadata().description == "All orders"
    assert table.metadata().configuration["other"] == "kept"
    assert "0.5" in table.metadata().configuration["delta.constraints.paid"]
    file.write_text(PYTHON.replace("> 0 ", "> 99 "))
    with pytest.raises(DefinitionError, match="CONSTRAINT_VIOLATED"):
        pipeline.run()


def test_comments_and_constraints_of_a_view_last_through_its_refreshes(tmp_path: Path) -> None:
    file = tmp_path / "t.sql"
    file.write_text(
        "CREATE MATERIALIZED VIEW v (n BIGINT COMMENT 'how many', m BIGINT DEFAULT 7, CONSTRAINT few CHECK (n < 3)) "
        "AS SELECT count(*) AS n FROM s;"
        "CREATE MATERIALIZED VIEW w (a BIGINT, CONSTRAINT few CHECK (a < 3)) AS SELECT a FROM s;"
    )
    pipeline = wl.testing.Pipeline(file, folder=tmp_path)
    for count in (1, 2):
        result = pipeline.run({"s": [{"a": 1}]})
        assert result.rows("v") == [{"n": count, "m": 7}]
        assert handle(tmp_path, "v").schema().fields[0].metadata == {"comment": "how many"}
    with pytest.raises(SchemaError, match="CONSTRAINT_VIOLATED"):
        pipeline.run({"s": [{"a": 1}]})
    assert handle(tmp_path, "v").to_pyarrow_table().to_pylist() == [{"n": 2, "m": 7}]
    with pytest.raises(SchemaError, match=r"table 'w'.*CONSTRAINT_VIOLATED"):
        pipeline.run({"s": [{"a": 5}]}, until="w")
    assert handle(tmp_path, "w").to_pyarrow_table().to_pylist() == [{"a": 1}] * 3


GRAPH = """
@wl.table
def bronze():
    return wl.read_files("inbox", "json", poll_interval_s=0.1)

@wl.table
def silver():
    return wl.read_stream("bronze").sql("SELECT *, id * 10 AS ten FROM stream")

@wl.table
def gold():
    return wl.read_stream("silver")

@wl.table
def fixed():
    return wl.read_stream("bronze").sql("SELECT id FROM stream")
"""


def test_p90_a_new_column_comes_through_the_graph(project: Project) -> None:
    project.define(GRAPH)
    project.land("1.json", {"id": 1})
    run_update(load_spec(project.folder), RunOptions(), [])
    project.land("2.json", {"id": 2, "colour": "red"})
    run_update(load_spec(project.folder), RunOptions(), [])
    assert project.rows("gold", "id", "ten", "colour") == [(1, 10, None), (2, 20, "red")]
    assert [f.name for f in project.handle("fixed").schema().fields] == ["id"]
    with project.continuous() as run:
        run.await_status("RUNNING", "gold")
        project.land("3.json", {"id": 3, "colour": "blue", "size": {"width": 4}})
        run.await_rows("gold", 1)
        run.stop()
    assert project.rows("gold", "id", "colour", "size")[-1] == (3, "blue", {"width": 4})
    assert project.rows("fixed", "id") == [1, 2, 3]
