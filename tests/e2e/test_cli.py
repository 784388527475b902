"""The command line, as a user types it: every command in its own process, exit codes, what is said on which stream."""

from __future__ import annotations

import json
import os
import pty
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.shell import SOURCES, User

HEAVY = ("bytewax", "confluent_kafka", "deltalake", "duckdb", "pandas", "pydantic", "s3fs")


@pytest.fixture
def user(tmp_path: Path) -> User:
    return User(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> User:
    """A new project after its first run; tests only look at it."""
    folder = tmp_path_factory.mktemp("home")
    assert User(folder).waxlake("init", "shop").code == 0
    shop = User(folder / "shop")
    done = shop.waxlake("run")
    assert done.code == 0, done.err
    return shop


@pytest.fixture
def project(finished: User, tmp_path: Path) -> User:
    """A project of this test's own that was never run."""
    shutil.copytree(finished.folder, tmp_path / "shop", ignore=shutil.ignore_patterns("lake", "__pycache__"))
    return User(tmp_path / "shop")


# -- init and run


def test_a_new_project_runs_and_its_own_test_passes(project: User) -> None:
    done = project.waxlake("run")

    assert (done.code, done.err) == (0, "")
    assert "orders                         4 rows, 1 dropped, 1 quarantined" in done.out
    assert "rule is_known_country (quarantine): 1 of 6 rows broke it" in done.out
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=project.folder,
        env=project.process_environ(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "2 passed" in tests.stdout, tests.stdout + tests.stderr


def test_init_overwrites_nothing(user: User) -> None:
    user.write("shop/notes.txt", "mine")

    done = user.waxlake("init", "shop")

    assert done.code == 2
    assert done.err.endswith("[PROJECT_EXISTS]\n")
    assert [path.name for path in (user.folder / "shop").iterdir()] == ["notes.txt"]
    assert user.waxlake("init", "a b").err.endswith("[NAME_INVALID]\n")


def test_p01_only_new_files_are_read(project: User) -> None:
    project.waxlake("run")
    again = project.waxlake("run")
    project.write("data/orders-2.json", '{"id": 7, "customer": "gil", "country": "FR", "amount": 1.0}\n')
    third = project.waxlake("run")

    assert again.out.splitlines()[-1].endswith("nothing new")
    assert "1 rows" in third.out
    assert project.waxlake("sql", "SELECT id FROM orders ORDER BY id", "--json").rows() == [
        {"id": n} for n in (1, 2, 3, 6, 7)
    ]


def test_json_is_all_there_is_on_standard_output(project: User) -> None:
    events = project.waxlake("run", "--json").rows()

    assert events[0]["event_type"] == "create_update"
    assert events[-1]["details"]["update_progress"]["state"] == "COMPLETED"
    rows = sum(e["details"]["flow_progress"]["metrics"]["num_output_rows"] for e in events if e["level"] == "METRICS")
    assert rows == 4 + 2


def test_p69_a_parameter_takes_precedence(project: User) -> None:
    project.write("other/x.json", '{"id": 100, "customer": "z", "country": "DE", "amount": 5}\n')

    assert project.waxlake("run", "--param", "orders_path=other").code == 0
    assert project.waxlake("sql", "SELECT id FROM orders", "--json").rows() == [{"id": 100}]


def test_the_deployment_file_is_the_same_pipeline(project: User) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bytewax.run", "flows.main"],
        cwd=project.folder,
        env=project.process_environ(),
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.returncode == 0, done.stderr
    assert project.waxlake("sql", "SELECT count(*) AS n FROM orders", "--json").rows() == [{"n": 4}]


def test_a_continuous_run_ends_well_on_sigterm(project: User) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "waxlake", "run", "--continuous", "--json"],
        cwd=project.folder,
        env=project.process_environ(),
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            if event["level"] == "METRICS" and event["dataset"] == "orders":
                process.send_signal(signal.SIGTERM)
                break
        rest = process.stdout.read()

    assert process.returncode == 0
    assert json.loads(rest.splitlines()[-1])["details"]["update_progress"]["state"] in ("COMPLETED", "CANCELED")
    assert project.waxlake("status", "--json").rows()[0]["tables"][0]["rows"] == 4


def test_the_pipeline_of_the_readme_runs(user: User) -> None:
    code = re.findall(r"```python\n(.*?)```", (SOURCES / "README.md").read_text(), re.DOTALL)[0]
    user.write("flows/orders.py", code)
    user.write("waxlake.yml", "name: shop\nstorage: ./lake\n")
    user.write(
        "data/a.json",
        '{"id": 1, "customer": "a", "country": "DE", "amount": 2.5}\n{"id": 2, "country": "XX", "amount": 1}\n',
    )

    done = user.waxlake("run")

    assert done.code == 0, done.err
    assert user.waxlake("show", "revenue", "--json").rows() == [{"country": "DE", "total": 2.5}]
    assert user.waxlake("show", "orders_quarantine", "--json").rows()[0]["id"] == 2


# -- after a kill


def test_figures_are_right_after_a_kill(project: User) -> None:
    killed = project.waxlake("run", WAXLAKE_FAILPOINT="committed:1")
    assert killed.code == -signal.SIGKILL

    status = project.waxlake("status", "--json").rows()[0]
    orders = next(table for table in status["tables"] if table["name"] == "orders")
    assert status["update"]["state"] == "RUNNING"
    assert orders["rows"] == 4
    assert {rule["rule"]: rule["failed"] for rule in orders["rules"]} == {
        "has_customer": 1,
        "is_positive": 1,
        "is_known_country": 1,
    }

    assert project.waxlake("run").code == 0
    assert project.waxlake("run").code == 0
    progress = project.waxlake("events", "--type", "flow_progress", "--json").rows()
    commits = [e for e in progress if e["dataset"] == "orders" and e["level"] == "METRICS"]
    assert [e["details"]["flow_progress"]["metrics"]["num_output_rows"] for e in commits] == [4]
    assert project.waxlake("show", "orders_quarantine", "--json").rows()[0]["id"] == 5


# -- looking


def test_p64_dry_run_reads_and_writes_nothing(project: User) -> None:
    done = project.waxlake("dry-run")

    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[0] == "table orders"
    assert "amount double" in done.out
    assert "revenue_by_country: from orders" in done.out
    assert done.out.splitlines()[-1] == "ok"
    assert not (project.folder / "lake").exists()


def test_p105_graph(finished: User) -> None:
    assert "  <- files:data" in finished.waxlake("graph").out
    assert finished.waxlake("graph", "--format", "mermaid").out.startswith("flowchart LR\n")
    drawn = finished.waxlake("graph", "--format", "json").rows()[0]
    assert [dataset["name"] for dataset in drawn["datasets"]] == ["orders", "revenue_by_country"]
    assert drawn["datasets"][0]["where"].endswith("flows/orders.py:6")


def test_w15_tables(finished: User) -> None:
    tables = {row["name"]: row for row in finished.waxlake("tables", "--json").rows()}

    assert list(tables) == ["orders", "orders_quarantine", "revenue_by_country", "events"]
    assert (tables["orders"]["rows"], tables["orders_quarantine"]["rows"]) == (4, 1)
    assert tables["orders"]["path"] == str(finished.folder / "lake/tables/default/orders")
    assert "materialized view" in finished.waxlake("tables").out


def test_tables_before_the_first_run(project: User) -> None:
    assert "not written yet" in project.waxlake("tables").out
    assert "no update yet" in project.waxlake("status").out
    assert project.waxlake("events").out == "no events yet\n"
    assert project.waxlake("show", "orders").err.endswith("[TABLE_NOT_WRITTEN]\n")
    assert "waxlake run" in project.waxlake("sql", "SELECT * FROM orders").err


def test_show(finished: User) -> None:
    done = finished.waxlake("show", "orders", "-n", "2")

    assert done.out.splitlines()[0].split()[:3] == ["id", "customer", "country"]
    assert done.out.splitlines()[-1] == "(2 rows)"
    assert finished.waxlake("show", "orders_quarantine", "--json").rows()[0]["_failed_rules"] == ["is_known_country"]
    assert finished.waxlake("show", "events", "--json").rows()


def test_sql(finished: User) -> None:
    text = "SELECT country, revenue FROM revenue_by_country ORDER BY country"

    assert finished.waxlake("sql", text, "--json").rows() == [
        {"country": "DE", "revenue": 72.65},
        {"country": "NL", "revenue": 12.0},
    ]
    assert finished.waxlake("sql", text).out.splitlines()[1].split() == ["DE", "72.65"]
    joined = 'SELECT count(*) AS n FROM "default".orders JOIN orders_quarantine USING (country)'
    assert finished.waxlake("sql", joined, "--json").rows() == [{"n": 0}]
    assert {row["name"] for row in finished.waxlake("sql", "SHOW TABLES", "--json").rows()} == {
        "orders",
        "orders_quarantine",
        "revenue_by_country",
        "events",
    }
    assert "plan" in finished.waxlake("sql", "EXPLAIN SELECT * FROM orders").out


def test_values_of_every_kind_can_be_shown(finished: User) -> None:
    text = (
        "SELECT TIMESTAMP '2026-01-02 03:04:05' AS ntz, TIMESTAMPTZ '2026-01-02 03:04:05+00' AS tz, DATE '2026-01-02' AS d, "
        "1.50::DECIMAL(10,2) AS dec, 'ab'::BLOB AS b, [1, NULL] AS l, {'x': 1} AS s, NULL AS n, 'nan'::DOUBLE AS f, true AS t"
    )

    row = finished.waxlake("sql", text, "--json").rows()[0]

    assert row == {
        "ntz": "2026-01-02T03:04:05",
        "tz": "2026-01-02T03:04:05Z",
        "d": "2026-01-02",
        "dec": "1.50",
        "b": "6162",
        "l": [1, None],
        "s": {"x": 1},
        "n": None,
        "f": None,
        "t": True,
    }
    assert "2026-01-02 03:04:05Z" in finished.waxlake("sql", text).out


def test_p103_status(finished: User) -> None:
    done = finished.waxlake("status")

    assert "last update COMPLETED" in done.out
    assert "orders: 4 rows, version 1" in done.out
    assert "position file 1, nothing to go" in done.out
    assert "1 rows in orders_quarantine" in done.out


def test_p100_events(finished: User) -> None:
    assert len(finished.waxlake("events", "-n", "1").out.splitlines()) == 1
    kinds = {event["event_type"] for event in finished.waxlake("events", "--json").rows()}
    assert {"create_update", "update_progress", "flow_progress", "flow_definition", "dataset_definition"} <= kinds


def test_a_terminal_gets_drawn_tables(finished: User) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "waxlake", "show", "orders"],
        cwd=finished.folder,
        env=finished.process_environ(TERM="xterm"),
        stdout=theirs,
    )
    os.close(theirs)
    text = "".join(_read_all(ours))
    os.close(ours)

    assert process.wait(timeout=60) == 0
    assert "─" in text
    assert "bram" in text


def _read_all(descriptor: int) -> Iterator[str]:
    while True:
        try:
            piece = os.read(descriptor, 65536)
        except OSError:  # Linux reports the end of a pseudo-terminal so
            return
        if not piece:
            return
        yield piece.decode()


# -- mistakes


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("frob", 2, "No such command 'frob'"),
        ("run --refresh order", 2, "orders"),
        ("run --full-refresh-all --refresh orders", 2, "REFRESH_OPTIONS_CONFLICT"),
        ("run --refresh ,", 2, "[OPTION_INVALID]"),
        ("run --workers 0", 2, "--workers"),
        ("run --workers many", 2, "--workers"),
        ("run --param nothing", 2, "[PARAM_INVALID]"),
        ("run --spec nowhere", 2, "[SPEC_NOT_FOUND]"),
        ("graph --format svg", 2, "svg"),
        ("show", 2, "Missing argument"),
        ("show ordrs", 2, "Did you mean 'orders'"),
        ("show ../orders", 2, "[TABLE_UNKNOWN]"),
        ("show orders -n 0", 2, "-n"),
        ("events --type flow_progres", 2, "Did you mean 'flow_progress'"),
        ("sql SELEC", 1, "[SQL_ERROR]"),
    ],
)
def test_mistakes_on_the_command_line(finished: User, words: str, code: int, said: str) -> None:
    done = finished.waxlake(*words.split())

    assert done.code == code
    assert done.out == ""
    assert said in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("SELECT * FROM ordrs", "there is no table 'ordrs'. Did you mean 'orders'"),
        ("SELECT nope FROM orders", '"nope" not found'),
        ("SELECT * FROM", "syntax error"),
        ("DROP TABLE orders", "found DROP, expected one SELECT"),
        ("INSERT INTO orders VALUES (1)", "[SQL_NOT_A_QUERY]"),
        ("SELECT 1; SELECT 2", "[SQL_NOT_A_QUERY]"),
        ("", "[SQL_NOT_A_QUERY]"),
        ("SELECT * FROM read_csv('/etc/hosts')", "disabled by configuration"),
        ("SELECT * FROM '/etc/hosts'", "[SQL_ERROR]"),
        ("SELECT * FROM graph", "there is no table 'graph'"),
    ],
)
def test_queries_that_cannot_run(finished: User, query: str, said: str) -> None:
    done = finished.waxlake("sql", query)

    assert done.code == 1
    assert said in done.err
    assert "Traceback" not in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("file", "text", "code", "said"),
    [
        ("waxlake.yml", "name: shop\nstorag: x\n", 2, "[SPEC_UNKNOWN_KEY]"),
        ("waxlake.yml", "name: [\n", 2, "[SPEC_SYNTAX]"),
        ("waxlake.yml", "name: shop\nstorage: ./lake\nlibraries: []\n", 2, "[SPEC_NO_DEFINITIONS]"),
        ("waxlake.yaml", "name: shop\nstorage: ./lake\n", 2, "[SPEC_AMBIGUOUS]"),
        ("flows/gold.sql", "SELECT 1", 1, "gold.sql:1:1: cannot read the statement"),
        ("flows/orders.py", "def f(:\n", 1, "flows/orders.py:1"),
        ("flows/orders.py", "\n\n1 / 0\n", 1, "flows/orders.py:3"),
        (
            "flows/orders.py",
            "import waxlake as wl\n\n@wl.table\ndef a():\n    return wl.read_stream('b')\n",
            1,
            "orders.py:",
        ),
    ],
)
def test_mistakes_in_files(project: User, file: str, text: str, code: int, said: str) -> None:
    project.write(file, text)

    done = project.waxlake("dry-run")

    assert done.code == code, done.err
    assert said in done.err
    assert "Traceback" not in done.err


def test_a_run_fails_with_a_message_and_its_code(project: User) -> None:
    project.write("flows/orders.py", "1 / 0\n")
    done = project.waxlake("run")
    assert done.code == 1
    assert done.out.startswith("update failed")  # hooks and the event log are told of it like of any update
    assert "flows/orders.py:1" in done.err

    project.write("waxlake.yml", "name: shop\nstorag: x\n")
    assert project.waxlake("run").code == 2


def test_a_folder_that_shadows_ours_is_named(project: User) -> None:
    project.write("connectors/__init__.py", "")

    done = project.waxlake("dry-run")

    assert done.code == 2
    assert "[PACKAGE_SHADOWED]" in done.err
    assert str(project.folder / "connectors") in done.err


def test_debug_shows_the_traceback(project: User) -> None:
    done = project.waxlake("show", "nope", WAXLAKE_DEBUG="1")

    assert done.code == 1
    assert "Traceback" in done.err


def test_a_reader_who_leaves_is_no_error(finished: User) -> None:
    done = subprocess.run(
        f"{sys.executable} -m waxlake events --json | head -n 1",
        shell=True,
        cwd=finished.folder,
        env=finished.process_environ(),
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert json.loads(done.stdout)
    assert "Traceback" not in done.stderr


# -- speed


def test_help_answers_at_once(user: User) -> None:
    """Nothing heavy is imported for help. Asserted on modules; the time depends on the machine."""
    script = (
        "import os, sys\nos._exit = sys.exit\nsys.argv = ['waxlake', '--help']\nfrom waxlake.cli import main\n"
        f"try:\n    main()\nexcept SystemExit:\n    pass\nprint([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=user.folder,
        env=user.process_environ(),
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert "Commands:" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_w03_a_run_with_nothing_new_is_quick(project: User) -> None:
    """Processor seconds, which a busy machine changes less than the clock; the run waits for hardly anything."""
    project.waxlake("run")  # after it, bytecode is there, as in an installed package
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert project.waxlake("run").code == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)

    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.5
