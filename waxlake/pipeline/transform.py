"""Turn the steps of a flow into vectorised work on Arrow tables: SQL in DuckDB, Python from table to table.

Consecutive SQL steps become one query. A ``Transform`` is compiled once, against a table without rows, which also finds
unknown columns and the resulting schema; workers then apply it to each micro-batch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from waxlake.pipeline.definitions import (
    Drop,
    Expect,
    Expectation,
    MapBatches,
    Query,
    Select,
    Step,
    Where,
    WithColumns,
)
from waxlake.stream.batch import RuleCount
from waxlake.stream.errors import DefinitionError, ExpectationFailed, UserError, WaxlakeError, shorten
from waxlake.stream.schema import cast_exact, delta_schema, no_rows
from waxlake.stream.settings import nearest

__all__ = [
    "FAILED_RULES",
    "Outcome",
    "StaticTables",
    "Transform",
    "connect",
    "mentioned",
    "quote_name",
    "run_query",
    "sql_refused",
    "static_alias",
    "with_static_aliases",
]

FAILED_RULES = "_failed_rules"

StaticTables = Callable[[str], Any]
"""Returns the Arrow table or dataset behind a name, as it is now."""


def quote_name(name: str) -> str:
    """Return a SQL identifier for a column or table name."""
    return '"' + name.replace('"', '""') + '"'


_database: duckdb.DuckDBPyConnection | None = None
_database_lock = threading.Lock()


def connect() -> duckdb.DuckDBPyConnection:
    """Return a DuckDB session of its own on this process's one in-memory database: UTC, no files, no network."""
    global _database
    with _database_lock:
        if _database is None:
            _database = duckdb.connect(config={"enable_external_access": False})
        session = _database.cursor()
    session.execute("SET TimeZone = 'UTC'")
    return session


def mentioned(steps: Iterable[Step], names: Iterable[str]) -> frozenset[str]:
    """Return which of ``names`` occur in the text of any step."""
    texts = []
    for step in steps:
        if isinstance(step, Query):
            texts.append(step.text)
        elif isinstance(step, Where):
            texts.append(step.condition)
        elif isinstance(step, Select):
            texts += step.expressions
        elif isinstance(step, WithColumns):
            texts += [expression for _, expression in step.columns]
        elif isinstance(step, Expect):
            texts += [rule.sql for rule in step.expectations]
    text = "\n".join(texts)
    return frozenset(name for name in names if name in text)


def run_query(connection: duckdb.DuckDBPyConnection, text: str) -> pa.Table:
    """Return the rows of a query as an Arrow table with Delta's types; HUGEINT becomes BIGINT."""
    relation = connection.sql(text)
    wide = [
        name
        for name, kind in zip(relation.columns, relation.types, strict=True)
        if str(kind) in ("HUGEINT", "UHUGEINT")
    ]
    table: pa.Table = relation.to_arrow_table()
    if wide or any(pa.types.is_timestamp(f.type) and f.type.tz not in (None, "UTC") for f in table.schema):
        table = table.cast(pa.schema([_plain(f, wide) for f in table.schema]))
    return table


def _plain(item: pa.Field, wide: Sequence[str]) -> pa.Field:
    if item.name in wide:
        return item.with_type(pa.int64())
    if pa.types.is_timestamp(item.type) and item.type.tz is not None:
        return item.with_type(pa.timestamp(item.type.unit, "UTC"))
    return item


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a flow made of one batch: rows for the table, rows for quarantine, and counts."""

    table: pa.Table
    rejected: pa.Table | None = None
    rules: tuple[RuleCount, ...] = ()
    dropped: int = 0


@dataclass(slots=True)
class _SqlStage:
    """One query over ``stream``; ``rules`` are evaluated in the same pass."""

    text: str
    rules: tuple[Expectation, ...] = ()
    dataset: str = ""
    where: str = ""


@dataclass(slots=True)
class _PythonStage:
    function: Callable[[pa.Table], pa.Table]
    schema: pa.Schema | None
    where: str


_RULE = "__rule_{}"
_BASE = "stream"


@dataclass(slots=True)
class Transform:
    """The compiled steps and expectations of one branch of a flow.

    Args:
        flow: Flow name, for messages.
        dataset: Table that the final expectations belong to.
        steps: Steps in order.
        expectations: Rules of the target table.
        source: The source's columns, as a table without rows; metadata columns included where used.
        hidden: Those of its columns that ``*`` leaves out.
        statics: Names of static tables.
        tables: Finds a static table; must return one of no rows while compiling.
        schema: Declared columns of the target, or None.
    """

    flow: str
    dataset: str
    steps: tuple[Step, ...]
    expectations: tuple[Expectation, ...]
    source: pa.Table
    hidden: tuple[str, ...]
    statics: tuple[str, ...]
    tables: StaticTables
    schema: pa.Schema | None = None
    output: pa.Schema = field(default_factory=lambda: pa.schema([]))
    _stages: list[_SqlStage | _PythonStage] = field(default_factory=list)
    _connections: dict[int, duckdb.DuckDBPyConnection] = field(default_factory=dict)

    def compile(self) -> pa.Schema:
        """Compile the steps and return the resulting schema, with Delta's types.

        Raises:
            DefinitionError: An unknown column or function, a type error; names the step's file and line. Not retryable.
        """
        _Compiler(self).run()
        connection = connect()
        table, _, _ = self._staged(self.source, self.tables, connection)
        names = [n for n in table.column_names if not n.startswith("__rule_")]
        made = delta_schema(table.select(names).schema)
        self.output = self.schema or made
        if self.schema is not None:
            self._check_declared(made)
        return self.output

    def apply(self, table: pa.Table, tables: StaticTables) -> Outcome:
        """Return what the flow makes of one batch.

        Raises:
            ExpectationFailed: A row broke an ``expect_or_fail`` rule. Not retryable.
            UserError: A step failed on these rows. Not retryable.
        """
        if table.num_rows == 0:
            return Outcome(no_rows(self.output))
        rows, counts, dropped = self._staged(table, tables, self._connection())
        rows, rejected, final_counts, final_dropped = self._judge(rows, self.expectations, self.dataset)
        rules = (*counts, *final_counts)
        fitted = cast_exact(rows, self.output, what=f"flow '{self.flow}'")
        if rejected is not None:
            rejected = self._fitted_rejects(rejected)
        return Outcome(fitted, rejected, rules, dropped + final_dropped)

    @property
    def rejected_schema(self) -> pa.Schema:
        """Columns of rejected rows: those of the output, all nullable, and the names of the rules a row broke."""
        columns = [item.with_nullable(True) for item in self.output]
        return pa.schema([*columns, pa.field(FAILED_RULES, pa.list_(pa.string()))])

    def _fitted_rejects(self, rejected: pa.Table) -> pa.Table:
        return cast_exact(rejected, self.rejected_schema, what=f"quarantine of flow '{self.flow}'")

    def _connection(self) -> duckdb.DuckDBPyConnection:
        """Return this thread's connection.

        Not a ``threading.local``: Bytewax enters Python anew for every call, which would close a thread-local connection
        while the thread's state is being torn down, and crash the interpreter.
        """
        thread = threading.get_ident()
        if thread not in self._connections:
            self._connections[thread] = connect()
        return self._connections[thread]

    def _check_declared(self, made: pa.Schema) -> None:
        assert self.schema is not None
        extra = [name for name in made.names if name not in self.schema.names]
        if extra:
            raise DefinitionError(
                f"flow '{self.flow}' makes columns that the declared schema of '{self.dataset}' lacks",
                where=self.steps[-1].where if self.steps else "",
                code="SCHEMA_MISMATCH",
                found=", ".join(extra),
                expected=", ".join(self.schema.names),
                remedy="Add them to schema=, or drop them",
            )
        cast_exact(no_rows(made), self.schema, what=f"table '{self.dataset}'")

    def _staged(
        self, table: pa.Table, tables: StaticTables, connection: duckdb.DuckDBPyConnection
    ) -> tuple[pa.Table, list[RuleCount], int]:
        counts: list[RuleCount] = []
        dropped = 0
        for stage in self._stages:
            if isinstance(stage, _PythonStage):
                table = self._call(stage, table)
                continue
            table = self._query(stage, table, tables, connection)
            if stage.dataset:
                table, _, found, lost = self._judge(table, stage.rules, stage.dataset)
                counts += found
                dropped += lost
        return table, counts, dropped

    def _query(
        self, stage: _SqlStage, table: pa.Table, tables: StaticTables, connection: duckdb.DuckDBPyConnection
    ) -> pa.Table:
        try:
            connection.register(_BASE, table)
            _register(connection, self.statics, tables)
            return run_query(connection, stage.text)
        except duckdb.Error as exc:
            kind = DefinitionError if table.num_rows == 0 else UserError
            raise _sql_error(kind, self.flow, stage.where, exc) from exc
        finally:
            connection.unregister(_BASE)

    def _call(self, stage: _PythonStage, table: pa.Table) -> pa.Table:
        try:
            result = stage.function(table)
        except WaxlakeError:
            raise
        except (Exception, SystemExit) as exc:  # whatever a user's function raises is reported as that function's error
            raise DefinitionError(
                f"the map_batches function of flow '{self.flow}' failed: {type(exc).__name__}: {exc}",
                where=stage.where,
                code="MAP_BATCHES_FAILED",
                found=f"a batch of {table.num_rows} rows",
            ) from exc
        if isinstance(result, pa.RecordBatch):
            result = pa.Table.from_batches([result])
        if not isinstance(result, pa.Table):
            raise DefinitionError(
                f"the map_batches function of flow '{self.flow}' returned no table",
                where=stage.where,
                code="MAP_BATCHES_RETURN_TYPE",
                found=type(result).__name__,
                expected="pa.Table",
            )
        if stage.schema is not None:
            result = cast_exact(result, stage.schema, what=f"map_batches of flow '{self.flow}'")
        return result

    def _judge(
        self, table: pa.Table, rules: Sequence[Expectation], dataset: str
    ) -> tuple[pa.Table, pa.Table | None, tuple[RuleCount, ...], int]:
        """Split rows by what the rules say; a row that breaks a quarantine rule is quarantined even if another drops it."""
        if not rules:
            return table, None, (), 0
        verdicts = [table.column(_RULE.format(i)).combine_chunks() for i in range(len(rules))]
        rows = table.drop_columns([_RULE.format(i) for i in range(len(rules))])
        counts = []
        for rule, verdict in zip(rules, verdicts, strict=True):
            passed = pc.sum(verdict).as_py() or 0
            counts.append(
                RuleCount(
                    dataset=dataset, rule=rule.name, action=rule.action, passed=passed, failed=rows.num_rows - passed
                )
            )
            if rule.action == "fail" and passed < rows.num_rows:
                raise _violated(rule, dataset, rows.filter(pc.invert(verdict)))
        if all(c.failed == 0 or c.action == "warn" for c in counts):
            return rows, None, tuple(counts), 0
        kept = _all_true([v for r, v in zip(rules, verdicts, strict=True) if r.action in ("drop", "quarantine")])
        sane = _all_true([v for r, v in zip(rules, verdicts, strict=True) if r.action == "quarantine"])
        rejected = None
        if sane is not None:
            bad = pc.invert(sane)
            rejected = rows.filter(bad)
            if rejected.num_rows:
                failed = _failed_rules(self._connection(), rules, [v.filter(bad) for v in verdicts])
                rejected = rejected.append_column(FAILED_RULES, failed)
            else:
                rejected = None
        passing = rows.filter(kept)
        lost = rows.num_rows - passing.num_rows - (rejected.num_rows if rejected is not None else 0)
        return passing, rejected, tuple(counts), lost


def _all_true(verdicts: Sequence[pa.Array]) -> pa.Array | None:
    result = None
    for verdict in verdicts:
        result = verdict if result is None else pc.and_(result, verdict)
    return result


def _failed_rules(
    connection: duckdb.DuckDBPyConnection, rules: Sequence[Expectation], verdicts: Sequence[pa.Array]
) -> pa.ChunkedArray:
    """Return, per row, the names of all the rules it broke, in the order written."""
    names = [_RULE.format(i) for i in range(len(rules))]
    cases = [
        f"CASE WHEN NOT {column} THEN '{rule.name.replace(chr(39), chr(39) * 2)}' END"
        for column, rule in zip(names, rules, strict=True)
    ]
    connection.register("__verdicts", pa.table(dict(zip(names, verdicts, strict=True))))
    listed = connection.sql(
        f"SELECT list_filter([{', '.join(cases)}], lambda x: x IS NOT NULL) AS failed FROM __verdicts"
    )
    table: pa.Table = listed.to_arrow_table()
    connection.unregister("__verdicts")
    return table.column("failed")


def _violated(rule: Expectation, dataset: str, offenders: pa.Table) -> ExpectationFailed:
    sample = shorten(offenders.slice(0, 1).to_pylist()[0], 300)
    return ExpectationFailed(
        f"expectation '{rule.name}' of '{dataset}' failed: {rule.sql}",
        code="EXPECTATION_FAILED",
        found=f"{offenders.num_rows} rows that break it, such as {sample}",
        expected="none (expect_or_fail)",
        remedy="Nothing of this batch was committed. Correct the source, or use expect_or_quarantine to let the rest through",
        rule=rule.name,
        dataset=dataset,
        rows=offenders.num_rows,
    )


def _register(connection: duckdb.DuckDBPyConnection, names: Iterable[str], tables: StaticTables) -> None:
    for name in names:
        connection.register(static_alias(name), tables(name))


def static_alias(name: str) -> str:
    """Return the plain name under which a dataset is registered; ``schema.table`` has no dot there."""
    return name.replace(".", "__dot__")


def sql_refused(what: str, where: str, exc: duckdb.Error) -> DefinitionError:
    """Return our error for SQL that cannot work whatever the rows; the text is DuckDB's."""
    text = str(exc).strip()
    code = "SQL_INVALID"
    if "not found in FROM clause" in text or "does not have a column" in text:
        code = "UNKNOWN_COLUMN"
    elif isinstance(exc, duckdb.ParserException):
        code = "SQL_SYNTAX"
    return DefinitionError(f"{what}: {text}", where=where, code=code)


def _sql_error(kind: type[WaxlakeError], flow: str, where: str, exc: duckdb.Error) -> WaxlakeError:
    text = str(exc).strip()
    if kind is DefinitionError:
        return sql_refused(f"flow '{flow}'", where, exc)
    return UserError(
        f"{where}: flow '{flow}' failed on a row: {shorten(text, 400)}",
        code="SQL_FAILED",
        remedy="Use TRY_CAST or a rule with expect_or_quarantine for values that do not fit",
    )


class _Compiler:
    """Turns steps into stages, fusing consecutive SQL steps into one query."""

    def __init__(self, transform: Transform) -> None:
        self._transform = transform
        self._connection = connect()
        self._text: str | None = None
        self._input = transform.source
        self._now = transform.source
        self._hidden = list(transform.hidden)
        self._where = ""

    def run(self) -> None:
        transform = self._transform
        for step in transform.steps:
            self._where = step.where
            if isinstance(step, MapBatches):
                self._show_only_visible()
                self._close()
                stage = _PythonStage(step.function, step.schema, step.where)
                transform._stages.append(stage)
                self._now = self._input = transform._call(stage, self._now)
            elif isinstance(step, Expect):
                self._judge(step.dataset, step.expectations)
            else:
                self._push(self._sql(step))
        self._show_only_visible()
        if transform.expectations:
            self._push(self._with_rules(transform.expectations))
        self._close()

    def _from(self) -> str:
        return f"FROM ({self._text}) AS {_BASE}" if self._text else f"FROM {_BASE}"

    def _star(self, also_out: Iterable[str] = ()) -> str:
        out = [*self._hidden, *also_out]
        return f"* EXCLUDE ({', '.join(quote_name(n) for n in out)})" if out else "*"

    def _sql(self, step: Step) -> str:
        if isinstance(step, Where):
            return f"SELECT * {self._from()} WHERE {step.condition}"
        if isinstance(step, Select):
            parts = [self._star() if e.strip() == "*" else e for e in step.expressions]
            text = f"SELECT {', '.join(parts)} {self._from()}"
            self._hidden = []
            return text
        if isinstance(step, WithColumns):
            return self._with_columns(step)
        if isinstance(step, Drop):
            self._check_columns(step.names, step.where)
            text = f"SELECT * EXCLUDE ({', '.join(quote_name(n) for n in step.names)}) {self._from()}"
            self._hidden = [n for n in self._hidden if n not in step.names]
            return text
        assert isinstance(step, Query)
        text = with_static_aliases(step.text, self._transform.statics)
        if self._hidden and "*" in text:
            text = _without_hidden(text, self._hidden, step.where)
        self._hidden = []
        return f"WITH {_BASE} AS (SELECT * {self._from()}) SELECT * FROM ({text})" if self._text else text

    def _with_columns(self, step: WithColumns) -> str:
        present = set(self._now.column_names)
        replaced = [(n, e) for n, e in step.columns if n in present and n not in self._hidden]
        added = [(n, e) for n, e in step.columns if n not in present or n in self._hidden]
        revealed = [n for n, _ in added if n in self._hidden]
        star = f"* EXCLUDE ({', '.join(map(quote_name, revealed))})" if revealed else "*"
        if replaced:
            star += f" REPLACE ({', '.join(f'({e}) AS {quote_name(n)}' for n, e in replaced)})"
        extra = "".join(f", ({e}) AS {quote_name(n)}" for n, e in added)
        text = f"SELECT {star}{extra} {self._from()}"
        self._hidden = [n for n in self._hidden if n not in revealed]
        return text

    def _check_columns(self, names: Iterable[str], where: str) -> None:
        for name in names:
            if name not in self._now.column_names:
                raise DefinitionError(
                    f"flow '{self._transform.flow}' drops an unknown column '{name}'",
                    where=where,
                    code="UNKNOWN_COLUMN",
                    remedy=nearest(name, self._now.column_names),
                )

    def _show_only_visible(self) -> None:
        if self._hidden:
            text = f"SELECT {self._star()} {self._from()}"
            self._hidden = []
            self._push(text)

    def _with_rules(self, rules: Sequence[Expectation]) -> str:
        """Return a query that adds one boolean per rule, after checking each rule by itself to name its line."""
        parts = []
        for index, rule in enumerate(rules):
            self._where = rule.where
            verdict = f"coalesce(({rule.sql})::BOOLEAN, false) AS {_RULE.format(index)}"
            self._probe(f"SELECT {verdict} {self._from()}", what=f"expectation '{rule.name}'")
            parts.append(verdict)
        return f"SELECT *, {', '.join(parts)} {self._from()}"

    def _judge(self, dataset: str, rules: tuple[Expectation, ...]) -> None:
        names = self._now.column_names
        self._push(self._with_rules(rules))
        stage = self._close()
        assert isinstance(stage, _SqlStage)
        stage.dataset, stage.rules = dataset, rules
        self._now = self._input = self._now.select(names)

    def _push(self, text: str) -> None:
        self._now = self._probe(text, what=f"flow '{self._transform.flow}'")
        self._text = text

    def _probe(self, text: str, *, what: str) -> pa.Table:
        """Run a query on no rows: finds unknown names and the columns it makes."""
        try:
            self._connection.register(_BASE, self._input)
            _register(self._connection, self._transform.statics, self._transform.tables)
            return run_query(self._connection, text)
        except duckdb.Error as exc:
            raise sql_refused(what, self._where, exc) from exc

    def _close(self) -> _SqlStage | None:
        if self._text is None:
            return None
        stage = _SqlStage(self._text, where=self._where)
        self._transform._stages.append(stage)
        self._text = None
        self._input = self._now
        return stage


def with_static_aliases(text: str, statics: Iterable[str]) -> str:
    """Return the query with ``schema.table`` names replaced by the names they are registered under."""
    import re

    for name in statics:
        if "." in name:
            schema, _, bare = name.rpartition(".")
            pattern = rf'(?<![\w."])"?{re.escape(schema)}"?\s*\.\s*"?{re.escape(bare)}"?(?![\w"])'
            text = re.sub(pattern, static_alias(name), text)
    return text


def _without_hidden(text: str, hidden: Sequence[str], where: str) -> str:
    """Return the query with metadata columns left out of every ``*`` over ``stream``."""
    import sqlglot
    from sqlglot import expressions as exp

    try:
        tree = sqlglot.parse_one(text, read="duckdb")
    except sqlglot.errors.SqlglotError as exc:
        raise DefinitionError(f"cannot parse the query: {exc}", where=where, code="SQL_SYNTAX") from exc
    for select in tree.find_all(exp.Select):
        sources = [s for s in select.find_all(exp.Table) if s.parent_select is select]
        aliases = {s.alias_or_name for s in sources if s.name == _BASE}
        if not aliases:
            continue
        for item in select.expressions:
            star = item if isinstance(item, exp.Star) else item.this if isinstance(item, exp.Column) else None
            if not isinstance(star, exp.Star) or (isinstance(item, exp.Column) and item.table not in aliases):
                continue
            key = "except_" if "except_" in exp.Star.arg_types else "except"
            already = list(star.args.get(key) or [])
            known = {e.name for e in already}
            star.set(key, [*already, *(exp.to_identifier(h, quoted=True) for h in hidden if h not in known)])
    return tree.sql(dialect="duckdb")
