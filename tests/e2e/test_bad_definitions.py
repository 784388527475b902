"""Definitions and specs that cannot work: refused before anything is written, with file, line and what to do."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from tests.e2e.project import DEFINITIONS, Project
from waxlake.pipeline.check import check_graph
from waxlake.pipeline.resolve import load_graph
from waxlake.pipeline.spec import load_spec
from waxlake.stream.errors import DefinitionError

GOOD = """
@wl.table
def orders():
    return wl.read_files("inbox", format="json", schema="id BIGINT, amount DOUBLE")
"""


def line_of(definitions: str, part: str) -> str:
    """Return the end of `file:line` of the line that holds a part of the definitions; a function is where it is decorated."""
    lines = ["import waxlake as wl", *definitions.splitlines()]
    number = next(n for n, line in enumerate(lines) if part in line)
    while part.startswith("def ") and lines[number - 1].startswith("@"):
        number -= 1
    return f"{DEFINITIONS}:{number + 1}: "


def refused(project: Project, definitions: str, code: str, *said: str, at: str) -> str:
    """Assert that a run refuses the definitions, at a line, before it writes anything."""
    project.define(definitions)
    text = project.waxlake("run").refused(code, line_of(definitions, at), *said)
    assert not (project.folder / "lake" / "tables").exists()
    return text


def test_dry_run_says_the_same_as_a_run_and_corrected_definitions_run(project: Project) -> None:
    project.land("1.json", {"id": 1, "amount": 2.5})
    bad = GOOD.replace("@wl.table", '@wl.table\n@wl.expect("paid", "amout > 0")')

    text = refused(project, bad, "UNKNOWN_COLUMN", at="@wl.expect")
    assert project.waxlake("dry-run").refused("UNKNOWN_COLUMN") == text
    project.define(bad.replace("amout", "amount"))
    before = sorted((project.folder / "lake").rglob("*"))  # of the run that failed: its lease and its events
    assert project.waxlake("dry-run").succeeded().out.endswith("ok\n")
    assert sorted((project.folder / "lake").rglob("*")) == before
    assert not (project.folder / "lake" / "tables").exists()
    project.run()

    assert project.rows("orders", "id") == [1]


# -- names


@pytest.mark.parametrize(
    "typo",
    [
        GOOD.replace("BIGINT", "BIGNT"),
        GOOD.replace("@wl.table", '@wl.table(schema="id BIGNT, amount DOUBLE")'),
        GOOD.replace('DOUBLE")', 'DOUBLE").map_batches(lambda t: t, schema="id BIGNT, amount DOUBLE")'),
        GOOD.replace('files("inbox", format="json"', 'kafka("t", "127.0.0.1:1"').replace("BIGINT", "BIGNT"),
    ],
)
def test_schema_with_a_typo(project: Project, typo: str) -> None:
    text = refused(project, typo, "SCHEMA_DDL", "found 'BIGNT'", "nearest type is BIGINT", at="BIGNT")

    shown, caret = text.splitlines()[1:3]
    assert shown[caret.index("^") :].startswith("BIGNT")


@pytest.mark.parametrize(
    ("step", "found"),
    [
        ('.sql("SELECT id, amout FROM stream")', "amout"),
        ('.where("amout > 0")', "amout"),
        ('.select("id", "amout * 2 AS double")', "amout"),
        ('.with_columns(double="amout * 2")', "amout"),
        ('.drop("amout")', "amout"),
    ],
)
def test_unknown_column_in_a_step(project: Project, step: str, found: str) -> None:
    definitions = f"""
@wl.table
def orders():
    stream = wl.read_files("inbox", format="json", schema="id BIGINT, amount DOUBLE")
    return stream{step}
"""
    refused(project, definitions, "UNKNOWN_COLUMN", found, "amount", at="return stream")


@pytest.mark.parametrize("decorator", ["expect", "expect_or_drop", "expect_or_fail", "expect_or_quarantine"])
def test_unknown_column_in_a_rule(project: Project, decorator: str) -> None:
    definitions = GOOD.replace("@wl.table", f'@wl.table\n@wl.{decorator}("paid", "amout > 0")')
    refused(project, definitions, "UNKNOWN_COLUMN", "expectation 'paid'", "amout", "amount", at="amout")


def test_unknown_partition_column(project: Project) -> None:
    definitions = GOOD.replace("@wl.table", '@wl.table(partition_cols=["amout"])')
    refused(project, definitions, "UNKNOWN_COLUMN", "amout", "amount", at="@wl.table")


def test_unknown_column_in_a_view(project: Project) -> None:
    definitions = (
        GOOD + '\n@wl.materialized_view\ndef total():\n    return wl.sql("SELECT sum(amout) AS t FROM orders")\n'
    )
    refused(project, definitions, "UNKNOWN_COLUMN", "amout", "amount", at="wl.sql")


@pytest.mark.parametrize(
    "step", ['.sql("SELEC id FROM stream")', '.where("id >")', '.select("id +")', '.sql("SELECT id FROM stream WHERE")']
)
def test_sql_syntax_error(project: Project, step: str) -> None:
    definitions = f"""
@wl.table
def orders():
    stream = wl.read_files("inbox", format="json", schema="id BIGINT, amount DOUBLE")
    return stream{step}
"""
    refused(project, definitions, "SQL_SYNTAX", "syntax error", at="return stream")


def test_sql_syntax_error_in_a_rule(project: Project) -> None:
    definitions = GOOD.replace("@wl.table", '@wl.table\n@wl.expect("paid", "amount >> > 0")')
    refused(project, definitions, "SQL_SYNTAX", "expectation 'paid'", "syntax error", at="amount >>")


def test_more_than_one_statement(project: Project) -> None:
    definitions = GOOD + '\n@wl.materialized_view\ndef v():\n    return wl.sql("SELECT 1 AS a; DROP TABLE orders")\n'
    refused(project, definitions, "SQL_SYNTAX", "SELECT", at="wl.sql")


def test_files_cannot_be_read_by_sql(project: Project) -> None:
    secret = project.write("secret.csv", "a\n1\n")
    definitions = (
        GOOD + f"\n@wl.materialized_view\ndef v():\n    return wl.sql(\"SELECT * FROM read_csv('{secret}')\")\n"
    )
    refused(project, definitions, "SQL_INVALID", at="wl.sql")


@pytest.mark.parametrize(
    ("read", "at"),
    [
        ('wl.read_stream("ordrs")', "read_stream"),
        ('wl.read_stream("orders").sql("SELECT stream.* FROM stream JOIN ordrs USING (id)")', "read_stream"),
    ],
)
def test_unknown_dataset_of_a_table(project: Project, read: str, at: str) -> None:
    definitions = f"{GOOD}\n@wl.table\ndef clean():\n    return {read}\n"
    refused(project, definitions, "UNKNOWN_DATASET", "'ordrs'", "Did you mean 'orders'", at=at)


@pytest.mark.parametrize("read", ['wl.read("ordrs")', 'wl.sql("SELECT * FROM ordrs")'])
def test_unknown_dataset_of_a_view(project: Project, read: str) -> None:
    definitions = f"{GOOD}\n@wl.materialized_view\ndef total():\n    return {read}\n"
    refused(project, definitions, "UNKNOWN_DATASET", "'ordrs'", "Did you mean 'orders'", at=read)


def test_cycle_of_tables(project: Project) -> None:
    definitions = """
@wl.table
def a():
    return wl.read_stream("c")

@wl.table
def b():
    return wl.read_stream("a")

@wl.table
def c():
    return wl.read_stream("b")
"""
    refused(project, definitions, "CYCLE", "a → c → b → a", at="@wl.table")


def test_cycle_of_views(project: Project) -> None:
    definitions = """
@wl.temporary_view
def a():
    return wl.sql("SELECT * FROM b")

@wl.materialized_view
def b():
    return wl.sql("SELECT * FROM a")
"""
    refused(project, definitions, "CYCLE", "a → b → a", at="@wl.temporary_view")


def test_table_that_streams_from_itself(project: Project) -> None:
    definitions = '\n@wl.table\ndef a():\n    return wl.read_stream("a")\n'
    refused(project, definitions, "CYCLE", "a → a", at="@wl.table")


# -- streams and batches


def test_batch_where_a_stream_is_meant(project: Project) -> None:
    definitions = GOOD + '\n@wl.table\ndef clean():\n    return wl.read("orders")\n'
    refused(project, definitions, "BATCH_FOR_STREAMING_TABLE", "'clean'", "wl.read_stream", at="def clean")


def test_stream_where_a_batch_is_meant(project: Project) -> None:
    definitions = GOOD + '\n@wl.materialized_view\ndef clean():\n    return wl.read_stream("orders")\n'
    refused(project, definitions, "STREAM_FOR_MATERIALIZED_VIEW", "'clean'", "wl.read or wl.sql", at="def clean")


def test_stream_of_a_materialized_view(project: Project) -> None:
    definitions = (
        GOOD
        + '\n@wl.materialized_view\ndef total():\n    return wl.read("orders")\n'
        + '\n@wl.table\ndef clean():\n    return wl.read_stream("total")\n'
    )
    refused(project, definitions, "STREAM_OF_MATERIALIZED_VIEW", "'total'", "wl.read", at="def clean")


def test_union_of_a_stream_and_a_batch(project: Project) -> None:
    definitions = GOOD + '\n@wl.table\ndef b():\n    return wl.read_stream("orders").union(wl.read("orders"))\n'
    refused(project, definitions, "UNION_MISMATCH", "found Batch", "expected Stream", at="union")


# -- definitions that say two things, or nothing


def test_duplicate_dataset(project: Project) -> None:
    definitions = GOOD + '\n@wl.table(name="orders")\ndef again():\n    return wl.read_stream("orders")\n'
    first = line_of(definitions, "def orders").rstrip(": ")
    refused(project, definitions, "DUPLICATE_DATASET", "'orders'", first, "append_flow", at="def again")


def test_datasets_in_one_place(project: Project) -> None:
    again = '\n@wl.table(path="{}")\ndef again():\n    return wl.read_stream("orders")\n'
    refused(project, GOOD + again.format("lake/tables/default/orders"), "PATH_TAKEN", "'orders'", at="def again")
    for path, said in (
        ("./lake/tables/default/../default/orders/", "'orders'"),
        ("lake/tables/default/orders/sub", "orders/sub in "),
        ("lake/tables", "keeps"),
        ("lake/events", "keeps"),
        (".", "keeps"),
    ):
        project.define(GOOD + again.format(path))
        with pytest.raises(DefinitionError, match=rf"'again' cannot lie .*{said}.*PATH_TAKEN"):
            check_graph(load_graph(load_spec(project.folder)))

    write_deltalake(str(project.folder / "out"), pa.table({"id": [1]}))
    sink = '\nwl.create_sink("out", "delta", {"path": "out"})\n@wl.append_flow(target="out")\n'
    project.define(GOOD + sink + 'def f():\n    return wl.read_stream("./out")\n')
    with pytest.raises(DefinitionError, match=r"'out' streams from itself.*CYCLE"):
        check_graph(load_graph(load_spec(project.folder)))


def test_name_of_a_quarantine_table_is_taken(project: Project) -> None:
    definitions = (
        GOOD.replace("@wl.table", '@wl.table\n@wl.expect_or_quarantine("paid", "amount > 0")')
        + '\n@wl.table\ndef orders_quarantine():\n    return wl.read_stream("orders")\n'
    )
    refused(project, definitions, "DUPLICATE_DATASET", "'orders_quarantine'", "'orders'", at="def orders_quarantine")


def test_duplicate_expectation(project: Project) -> None:
    definitions = GOOD.replace("@wl.table", '@wl.table\n@wl.expect("paid", "id > 0")\n@wl.expect("paid", "amount > 0")')
    refused(project, definitions, "DUPLICATE_EXPECTATION", "'paid'", "'orders'", at="amount > 0")


def test_a_rule_that_nobody_would_apply(project: Project) -> None:
    flow = (
        '\n@wl.append_flow(target="orders")\n@wl.expect_or_drop("paid", "amount > 0")\n'
        'def more():\n    return wl.read_stream("./elsewhere")\n'
    )
    refused(project, GOOD + flow, "EXPECTATION_WITHOUT_DATASET", "'paid'", "'more'", "expect_all=", at="expect_or_drop")


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ('table_properties={"pipelines.reset.alowed": "false"}', "PROPERTY_UNKNOWN", "pipelines.reset.allowed"),
        ('table_properties={"pipelines.reset.allowed": "no"}', "PROPERTY_INVALID", "true or false"),
        ("schema=5", "ARGUMENT_INVALID", "pyarrow.Schema"),
    ],
)
def test_options_of_a_table(project: Project, options: str, code: str, said: str) -> None:
    project.define(GOOD.replace("@wl.table", f"@wl.table({options})"))
    with pytest.raises(DefinitionError, match=rf"{DEFINITIONS}:3: .*{said}.*{code}"):
        load_graph(load_spec(project.folder))


def test_columns_of_one_name(project: Project) -> None:
    view = '\n@wl.materialized_view\ndef v():\n    return wl.sql("SELECT id, id FROM orders")\n'
    refused(project, GOOD + view, "SCHEMA_DUPLICATE", "'id' and 'id'", at="def v")


def test_query_function_that_returns_nothing(project: Project) -> None:
    definitions = GOOD.replace("return wl.", "wl.")
    refused(project, definitions, "QUERY_RETURN_TYPE", "'orders'", "found NoneType", at="def orders")


def test_query_function_that_raises(project: Project) -> None:
    definitions = GOOD.replace("return wl.", "1 / 0\n    return wl.")
    refused(project, definitions, "QUERY_FUNCTION_FAILED", "'orders'", "ZeroDivisionError", at="1 / 0")


def test_definitions_that_raise(project: Project) -> None:
    refused(project, GOOD + "\nprices = {}['gold']\n", "DEFINITIONS_FAILED", "KeyError: 'gold'", at="gold")


def test_definitions_with_a_syntax_error(project: Project) -> None:
    refused(project, GOOD + "\nif True\n    pass\n", "DEFINITIONS_FAILED", "SyntaxError", at="if True")


def test_definitions_that_exit(project: Project) -> None:
    refused(project, GOOD + "\nraise SystemExit(0)\n", "DEFINITIONS_FAILED", "SystemExit", at="SystemExit")


def test_definitions_without_a_table(project: Project) -> None:
    project.define("\ndef orders():\n    return 1\n")
    project.waxlake("run").refused("PIPELINE_EMPTY", "'shop'", "@wl.table", exit_code=2)


def test_unknown_option_of_a_source(project: Project) -> None:
    definitions = GOOD.replace('format="json"', 'format="json", recursiv=False')
    refused(project, definitions, "OPTION_INVALID", "'recursiv'", "Did you mean 'recursive'", at="read_files")


def test_unknown_option_of_a_table(project: Project) -> None:
    definitions = GOOD.replace("@wl.table", '@wl.table(partition_col=["id"])')
    refused(
        project, definitions, "ARGUMENT_UNKNOWN", "'partition_col'", "Did you mean 'partition_cols'", at="@wl.table"
    )


@pytest.mark.parametrize("name", ["../x", "a.b.c", "", "a b", "x/y", ".", "a.", "é", "x" * 129])
def test_hostile_table_name(project: Project, name: str) -> None:
    definitions = GOOD.replace("@wl.table", f"@wl.table(name={name!r})")
    refused(project, definitions, "NAME_INVALID", repr(name), "letters, digits and underscores", at="@wl.table")
    assert {path.name for path in project.folder.parent.iterdir()} == {"shop"}


def test_path_of_a_table_is_a_file(project: Project) -> None:
    project.write("taken", "not a folder")
    project.land("1.json", {"id": 1, "amount": 2.5})
    project.define(GOOD.replace("@wl.table", '@wl.table(path="taken")'))

    project.waxlake("run").refused("STORAGE_NOT_WRITABLE", "'orders'", "taken", "a file")

    assert (project.folder / "taken").read_text() == "not a folder"


# -- types


def test_declared_schema_that_lacks_a_column(project: Project) -> None:
    definitions = GOOD.replace("@wl.table", '@wl.table(schema="id BIGINT")')
    refused(project, definitions, "SCHEMA_MISMATCH", "amount", at="@wl.table")


def test_type_that_delta_cannot_hold(project: Project) -> None:
    definitions = GOOD.replace('DOUBLE")', 'DOUBLE").select("id", "amount", "INTERVAL 1 DAY AS wait")')
    refused(project, definitions, "SCHEMA_TYPE", "'wait'", "BIGINT", at="@wl.table")


def test_flows_that_do_not_agree(project: Project) -> None:
    definitions = (
        GOOD
        + '\n@wl.append_flow(target="orders")\ndef more():\n'
        + '    return wl.read_files("more", format="json", schema="id STRING, amount DOUBLE")\n'
    )
    refused(project, definitions, "SCHEMA_MISMATCH", "'id'", "string", "int64", at="def more")


# -- the spec


def test_unknown_spec_key(project: Project) -> None:
    project.define(GOOD)
    project.spec(storag="./lake")
    project.waxlake("run").refused("SPEC_UNKNOWN_KEY", "waxlake.yml", "'storag'", "Did you mean 'storage'", exit_code=2)


def test_environment_variable_that_is_not_set(project: Project) -> None:
    project.define(GOOD)
    project.land("1.json", {"id": 1, "amount": 2.5})
    project.spec(storage="${env:LAKE_ROOT}/lake")

    project.waxlake("run").refused("SPEC_ENV_MISSING", "waxlake.yml", "'storage'", "'LAKE_ROOT'", exit_code=2)
    done = project.waxlake("run", LAKE_ROOT=str(project.folder)).succeeded()

    assert "1 rows" in done.out
    assert project.rows("orders", "id") == [1]


def test_configuration_that_is_not_set(project: Project) -> None:
    definitions = GOOD.replace('"inbox"', 'wl.conf("inbox")')
    project.define(definitions)
    project.land("1.json", {"id": 1, "amount": 2.5})
    where = line_of(definitions, "wl.conf")

    project.waxlake("run").refused("CONFIGURATION_MISSING", where, "'inbox'", "--param inbox=", exit_code=2)
    project.run("--param", "inbox=inbox")

    assert project.rows("orders", "id") == [1]


@pytest.mark.parametrize("param", ["inbox", ""])
def test_malformed_parameter(project: Project, param: str) -> None:
    project.define(GOOD)
    project.waxlake("run", "--param", param).refused("PARAM_INVALID", repr(param), "key=value", exit_code=2)


def test_value_of_a_malformed_parameter_is_not_shown(project: Project) -> None:
    project.define(GOOD)
    done = project.waxlake("run", "--param", "=hunter2-secret")
    done.refused("PARAM_INVALID", exit_code=2)
    assert "hunter2-secret" not in done.out + done.err


def test_unknown_option_and_command(project: Project) -> None:
    project.define(GOOD)
    for words, said in ((("run", "--continous"), "--continuous"), (("rum",), "No such command 'rum'")):
        done = project.waxlake(*words)
        assert (done.code, done.out) == (2, "")
        assert said in done.err
        assert "Traceback" not in done.err


def test_unknown_table_in_show(project: Project) -> None:
    project.define(GOOD)
    project.waxlake("show", "ordrs").refused("TABLE_UNKNOWN", "'ordrs'", "Did you mean 'orders'", exit_code=2)


@pytest.mark.parametrize(
    ("package", "file"),
    [("connectors", "connectors/__init__.py"), ("sinks", "sinks.py"), ("sinks", "sinks/__init__.py")],
)
def test_foreign_package_that_shadows_ours(project: Project, package: str, file: str) -> None:
    project.define(GOOD)
    project.land("1.json", {"id": 1, "amount": 2.5})
    foreign = project.write(file, "raise RuntimeError('imported')\n")

    text = project.waxlake("run").refused(
        "PACKAGE_SHADOWED", f"'{package}'", str(project.folder / package), exit_code=2
    )
    assert "imported" not in text

    foreign.unlink()
    if foreign.name == "__init__.py":
        foreign.parent.rmdir()
    project.run()
    assert project.rows("orders", "id") == [1]


def test_a_spec_that_is_a_folder_without_one(project: Project, tmp_path: Path) -> None:
    project.waxlake("run", "--spec", str(tmp_path)).refused("SPEC_NOT_FOUND", str(tmp_path), exit_code=2)


# -- files that do more than declare


def test_what_a_definitions_file_prints_does_not_get_between_the_lines_for_machines(project: Project) -> None:
    project.land("1.json", {"id": 1, "amount": 2.5})
    project.define(
        'print("from the file")\n' + GOOD.replace("    return", '    print("from the function")\n    return')
    )

    done = project.waxlake("run", "--json")

    assert done.code == 0
    assert [json.loads(line)["pipeline"] for line in done.out.splitlines()]
    assert "from the file" in done.err
    assert "from the function" in done.err


@pytest.mark.parametrize(("line", "said"), [("1 / 0", "ZeroDivisionError"), ("raise SystemExit(3)", "SystemExit: 3")])
def test_definitions_file_that_raises(project: Project, line: str, said: str) -> None:
    refused(project, f"{line}\n{GOOD}", "DEFINITIONS_FAILED", said, at=line)


def test_definitions_file_that_loops_is_told_of_and_can_be_stopped(project: Project) -> None:
    project.define("while True:\n    pass\n")
    command = [sys.executable, "-m", "waxlake", "dry-run"]
    process = subprocess.Popen(
        command, cwd=project.folder, env=project.process_environ(), stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        assert DEFINITIONS in process.stderr.readline()
    finally:
        process.send_signal(signal.SIGINT)
        process.stderr.close()
    assert process.wait(30) != 0
