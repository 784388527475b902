"""SQL definition files: the same definitions as the decorators make, and mistakes with their place."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from waxlake.pipeline.definitions import FilesRead, KafkaRead, Query, SqlQuery, TableRead
from waxlake.pipeline.registry import Registry, registering
from waxlake.pipeline.resolve import load_graph
from waxlake.pipeline.spec import load_spec
from waxlake.pipeline.sqlfile import load_sql_file
from waxlake.pipeline.stream import Batch, Stream
from waxlake.stream.errors import DefinitionError, UsageError, WaxlakeError


def load(tmp_path: Path, text: str, **configuration: str) -> Registry:
    file = tmp_path / "definitions.sql"
    file.write_text(text)
    registry = Registry(configuration=configuration)
    with registering(registry):
        load_sql_file(file, registry)
    return registry


def only(tmp_path: Path, text: str, **configuration: str):
    [definition] = load(tmp_path, text, **configuration).datasets()
    return definition, definition.function() if definition.function else None


def refused(tmp_path: Path, text: str, **configuration: str) -> WaxlakeError:
    with pytest.raises(WaxlakeError) as caught:
        load(tmp_path, text, **configuration)
    return caught.value


def test_a_streaming_table_over_kafka(tmp_path: Path) -> None:
    definition, stream = only(
        tmp_path,
        """
        -- orders as they come
        CREATE OR REFRESH STREAMING TABLE orders (
            CONSTRAINT paid EXPECT (amount > 0 AND note != ';)') ON VIOLATION DROP ROW,
            CONSTRAINT known EXPECT (id IS NOT NULL),
            CONSTRAINT whole EXPECT (amount < 10) ON VIOLATION FAIL UPDATE,
            CONSTRAINT sound EXPECT (_rescued_data IS NULL) ON VIOLATION QUARANTINE
        )
        COMMENT 'what was ordered' PARTITIONED BY (country)
        TBLPROPERTIES ('delta.appendOnly' = 'true', quality = 'silver')
        AS SELECT *, amount * 2 AS twice
        FROM STREAM read_kafka('orders', bootstrap_servers => 'localhost:9092',
                               schema => 'id BIGINT, amount DOUBLE, note STRING, country STRING',
                               starting_offsets => 'latest', max_rows_per_batch => 10,
                               options => MAP {'client.id': 'wax'});
        """,
    )
    assert (definition.name, definition.kind, definition.comment) == ("orders", "table", "what was ordered")
    assert definition.partition_by == ("country",)
    assert definition.properties == {"delta.appendOnly": "true", "quality": "silver"}
    assert [(r.name, r.sql, r.action) for r in definition.expectations] == [
        ("paid", "amount > 0 AND note != ';)'", "drop"),
        ("known", "id IS NOT NULL", "warn"),
        ("whole", "amount < 10", "fail"),
        ("sound", "_rescued_data IS NULL", "quarantine"),
    ]
    [branch] = stream.branches
    assert isinstance(branch.read, KafkaRead)
    assert branch.read.settings.topic == "orders"
    assert branch.read.settings.max_rows_per_batch == 10
    [step] = branch.steps
    assert isinstance(step, Query)
    assert " ".join(step.text.split()) == "SELECT *, amount * 2 AS twice FROM stream"


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("STREAM(orders)", 'SELECT orders.id FROM stream AS "orders"'),
        ("STREAM orders", 'SELECT orders.id FROM stream AS "orders"'),
        ("STREAM(LIVE.orders)", 'SELECT orders.id FROM stream AS "orders"'),
        ("STREAM(sales.orders)", 'SELECT orders.id FROM stream AS "orders"'),
        ("STREAM(orders) o", "SELECT orders.id FROM stream o"),
        ("STREAM(orders) AS o", "SELECT orders.id FROM stream AS o"),
        ("stream(orders) WHERE id > 1", 'SELECT orders.id FROM stream AS "orders" WHERE id > 1'),
        (
            "STREAM(orders) JOIN people USING (id)",
            'SELECT orders.id FROM stream AS "orders" JOIN people USING (id)',
        ),
    ],
)
def test_a_stream_of_a_table(tmp_path: Path, reference: str, text: str) -> None:
    _, stream = only(tmp_path, f"CREATE STREAMING TABLE t AS SELECT orders.id FROM {reference}")
    [branch] = stream.branches
    name = "sales.orders" if "sales" in reference else "orders"
    assert branch.read == TableRead(name=name)
    assert [step.text for step in branch.steps] == [text]


def test_a_union_of_streams_is_a_branch_each(tmp_path: Path) -> None:
    _, stream = only(
        tmp_path,
        """CREATE STREAMING TABLE t AS
           (SELECT a FROM STREAM(x)) UNION ALL SELECT b AS a FROM STREAM read_files('in', format => 'json', schema => 'b INT')
        """,
    )
    assert isinstance(stream, Stream)
    assert [type(branch.read) for branch in stream.branches] == [TableRead, FilesRead]


def test_views_are_batches(tmp_path: Path) -> None:
    registry = load(
        tmp_path,
        """CREATE OR REFRESH MATERIALIZED VIEW revenue COMMENT 'it''s all' REFRESH POLICY FULL
             AS WITH x AS (SELECT * FROM orders) SELECT country, sum(amount) AS total FROM x GROUP BY country;
           CREATE TEMPORARY VIEW v AS SELECT 1 AS one;
           CREATE TEMPORARY VIEW s (CONSTRAINT c EXPECT (a > 1)) AS SELECT a FROM STREAM(orders)""",
    )
    revenue, view, streaming = registry.datasets()
    assert (revenue.kind, revenue.comment) == ("materialized_view", "it's all")
    assert isinstance(revenue.function(), Batch)
    assert isinstance(revenue.function().branches[0].read, SqlQuery)
    assert (view.kind, type(view.function())) == ("temporary_view", Batch)
    assert (streaming.kind, type(streaming.function())) == ("temporary_view", Stream)


def test_a_flow_into_a_table_that_has_none(tmp_path: Path) -> None:
    registry = load(
        tmp_path,
        """CREATE STREAMING TABLE orders (id BIGINT NOT NULL COMMENT 'key', amount DECIMAL(10, 2));
           CREATE FLOW west COMMENT 'half of it' AS INSERT INTO orders BY NAME SELECT * FROM STREAM(o_west);""",
    )
    [table] = registry.datasets()
    assert table.function is None
    assert table.schema.types == [pa.int64(), pa.decimal128(10, 2)]
    [flow] = registry.flows()
    assert (flow.name, flow.target) == ("west", "orders")
    assert flow.where.endswith("definitions.sql:2:24")


def test_changes_merged_into_a_table(tmp_path: Path) -> None:
    registry = load(
        tmp_path,
        """CREATE STREAMING TABLE customers;
           CREATE FLOW c AS AUTO CDC INTO customers FROM STREAM(changes) KEYS (id, "a b")
             APPLY AS DELETE WHEN op = 'delete' AND (a > 1) SEQUENCE BY struct(ts, n) COLUMNS * EXCEPT (op, n)
             STORED AS SCD TYPE 2 TRACK HISTORY ON name, city IGNORE NULL UPDATES;
           APPLY CHANGES INTO customers FROM STREAM read_files('in', format => 'json', schema => 'id INT')
             KEYS (id) SEQUENCE BY ts""",
    )
    first, second = registry.flows()
    assert (first.name, first.target, first.where.split(".sql")[1]) == ("c", "customers", ":2:24")
    rules = first.changes
    assert (rules.keys, rules.sequence_by, rules.scd_type) == (("id", "a b"), "struct(ts, n)", 2)
    assert rules.apply_as_deletes == "op = 'delete' AND (a > 1)"
    assert rules.except_column_list == ("op", "n")
    assert rules.track_history_column_list == ("name", "city")
    assert rules.ignore_null_updates is True
    assert first.function().branches[0].read == TableRead(name="changes")
    assert (second.name, second.changes.sequence_by) == ("customers", "ts")


@pytest.mark.parametrize(
    ("clauses", "says"),
    [
        ("KEYS (id)", "expected SEQUENCE BY"),
        ("SEQUENCE BY ts", "expected KEYS"),
        ("KEYS (id) KEYS (id) SEQUENCE BY ts", "twice"),
        ("KEYS id SEQUENCE BY ts", "brackets"),
        ("KEYS (id) SEQUENCE BY ts STORED AS SCD TYPE 3", "1 or 2"),
        ("KEYS (id) SEQUENCE BY", "after SEQUENCE BY"),
    ],
)
def test_a_mistake_in_auto_cdc(tmp_path: Path, clauses: str, says: str) -> None:
    assert says in str(refused(tmp_path, f"CREATE FLOW c AS AUTO CDC INTO t FROM STREAM(s) {clauses}"))


def test_configuration_fills_in_values(tmp_path: Path) -> None:
    definition, batch = only(
        tmp_path,
        """-- ${nothing} in a comment
           SET low = '5';
           CREATE MATERIALIZED VIEW ${prefix}_v AS SELECT * FROM t WHERE a > ${low} AND b = '${prefix}'""",
        prefix="eu",
    )
    assert definition.name == "eu_v"
    assert batch.branches[0].read.text == "SELECT * FROM t WHERE a > 5 AND b = 'eu'"


def test_a_schema_in_use_goes_for_every_name(tmp_path: Path) -> None:
    registry = load(
        tmp_path,
        """CREATE STREAMING TABLE a AS SELECT * FROM STREAM(raw);
           USE SCHEMA silver;
           CREATE STREAMING TABLE b AS SELECT * FROM STREAM(a) JOIN people USING (id) JOIN gold.c USING (id);
           CREATE MATERIALIZED VIEW v AS WITH x AS (SELECT * FROM a) SELECT * FROM x, stream""",
    )
    first, second, view = registry.datasets()
    assert (first.name, second.name, view.name) == ("a", "silver.b", "silver.v")
    branch = second.function().branches[0]
    assert branch.read == TableRead(name="silver.a")
    assert "silver.people" in branch.steps[0].text
    assert "gold.c" in branch.steps[0].text
    assert "silver.a" in view.function().branches[0].read.text
    assert "silver.x" not in view.function().branches[0].read.text


def test_the_schema_of_the_pipeline_may_be_written_out(tmp_path: Path) -> None:
    (tmp_path / "waxlake.yml").write_text(
        '{"name": "p", "storage": "lake", "schema": "bronze", "libraries": [{"glob": {"include": "f.sql"}}]}'
    )
    text = """CREATE MATERIALIZED VIEW raw AS SELECT 1 AS id;
CREATE STREAMING TABLE orders AS SELECT * FROM STREAM read_stream('./elsewhere');
USE SCHEMA gold;
CREATE MATERIALIZED VIEW best AS SELECT bronze.raw.id, 'bronze.raw' AS t FROM bronze.raw JOIN "bronze".orders AS o USING (id);
CREATE STREAMING TABLE copy AS SELECT * FROM STREAM(bronze.orders);
CREATE FLOW more AS INSERT INTO bronze.orders BY NAME SELECT * FROM STREAM read_stream('./other');
"""
    (tmp_path / "f.sql").write_text(text)
    datasets = load_graph(load_spec(tmp_path)).datasets
    assert datasets["gold.best"].flows[0].statics == ("orders", "raw")
    assert "'bronze.raw'" in datasets["gold.best"].flows[0].branches[0].read.text  # a text is no name
    assert datasets["gold.copy"].flows[0].inputs == ("orders",)
    assert [flow.name for flow in datasets["orders"].flows] == ["orders", "more"]

    (tmp_path / "f.sql").write_text(text.replace("INTO bronze.orders", "INTO silver.orders"))
    with pytest.raises(DefinitionError, match=r"f.sql:6:13: flow 'more' has no .*'silver.orders'") as caught:
        load_graph(load_spec(tmp_path))
    assert str(caught.value).endswith(f"  {text.splitlines()[5].replace('bronze', 'silver')}\n{' ' * 14}^")


@pytest.mark.parametrize(
    ("text", "code", "line", "caret", "says"),
    [
        ("\nCREAT TABLE x", "SQL_SYNTAX", 2, "CREAT", "found 'CREAT'"),
        ("CREATE STREAMING TABLE", "SQL_SYNTAX", 1, None, "a name"),
        ("CREATE TABLE t AS SELECT 1", "SQL_STATEMENT", 1, "TABLE", "STREAMING TABLE"),
        ("CREATE MATERIALIZED VIEW v COMMENT 'x'", "SQL_SYNTAX", 1, None, "a query"),
        ("CREATE MATERIALIZED VIEW v AS", "SQL_SYNTAX", 1, None, "a query"),
        ("CREATE MATERIALIZED VIEW v COMENT 'x' AS SELECT 1", "SQL_SYNTAX", 1, "COMENT", "COMMENT"),
        ("CREATE STREAMING TABLE t (CONSTRAINT c EXPECT (a > 1) ON VIOLATION DROPROW) AS SELECT 1",
         "SQL_SYNTAX", 1, "DROPROW", "DROP ROW, FAIL UPDATE or QUARANTINE"),
        ("CREATE STREAMING TABLE t (\n  id BIGINT,\n  x BIGNIT) AS SELECT 1", "SCHEMA_DDL", 3, "x BIGNIT", "BIGINT"),
        ("CREATE STREAMING TABLE t AS\nSELECT * FROM STREAM read_kafak('x')", "SQL_UNKNOWN_SOURCE", 2, "read_kafak",
         "read_kafka"),
        ("CREATE STREAMING TABLE t AS SELECT * FROM STREAM read_files('x', format => 'json', shema => 'a INT')",
         "OPTION_INVALID", 1, "read_files", "schema"),
        ("CREATE STREAMING TABLE t AS SELECT * FROM STREAM read_files(now(), format => 'json')",
         "ARGUMENT_INVALID", 1, "now", "constant"),
        ("CREATE STREAMING TABLE t AS SELECT * FROM STREAM(a), STREAM(b), STREAM(c)", "SQL_TWO_STREAMS", 1,
         "STREAM(c)", "joins two"),
        ("CREATE STREAMING TABLE t AS SELECT * FROM STREAM(a) UNION SELECT * FROM STREAM(b)", "SQL_NOT_STREAMING", 1,
         "UNION", "UNION ALL"),
        ("CREATE STREAMING TABLE t AS SELECT * FROM STREAM(a) UNION ALL SELECT * FROM b", "BATCH_FOR_STREAMING_TABLE",
         1, "SELECT * FROM b", "STREAM"),
        ("CREATE STREAMING TABLE t AS SELECT ${x} FROM STREAM(a)", "CONFIGURATION_MISSING", 1, "${x}", "'x'"),
        ("CREATE TEMPORARY VIEW v AS SELECT 'x", "SQL_SYNTAX", 1, "'x", "not closed"),
        ("CREATE TEMPORARY VIEW v AS /* SELECT", "SQL_SYNTAX", 1, "/* SELECT", "not closed"),
        ("CREATE STREAMING TABLE t (a INT", "SQL_SYNTAX", 1, "(a INT", "not closed"),
        ("SELECT 1", "SQL_SYNTAX", 1, "SELECT", "CREATE"),
        ("CREATE FLOW f AS INSERT INTO t SELECT 1", "SQL_SYNTAX", 1, "SELECT", "BY NAME"),
        ("CREATE STREAMING TABLE t CLUSTER BY AUTO AS SELECT 1", "NOT_AVAILABLE", 1, None, "Name"),
    ],
)  # fmt: skip
def test_a_mistake_shows_its_place(
    tmp_path: Path, text: str, code: str, line: int, caret: str | None, says: str
) -> None:
    error = refused(tmp_path, text)

    assert isinstance(error, DefinitionError)
    assert error.code == code
    assert error.where.split(".sql:")[1].split(":")[0] == str(line)
    assert says in str(error)
    if caret is not None:
        shown, mark = error.snippet.splitlines()
        assert shown[mark.index("^") :].startswith(caret)
        assert str(error).endswith(error.snippet)


def test_a_place_after_a_value_that_was_filled_in_is_the_place_in_the_file(tmp_path: Path) -> None:
    error = refused(tmp_path, "CREATE STREAMING TABLE ${a} COMENT 'x'", a="a_long_name")

    shown, mark = error.snippet.splitlines()
    assert shown[mark.index("^") :].startswith("COMENT")
    assert error.where.endswith(":1:29")


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "x.sql"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="UTF-8"):
        load_sql_file(file, Registry())
