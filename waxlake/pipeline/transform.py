"""Turn the steps of a flow into vectorised work on Arrow tables: SQL in DuckDB, Python from table to table.

Consecutive SQL steps become one query. A ``Transform`` is compiled once, against a table without rows, which also finds
unknown columns and the resulting schema; workers then apply it to each micro-batch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa

from waxlake.pipeline.columns import DerivedColumn
from waxlake.pipeline.definitions import (
    Decode,
    Drop,
    Expect,
    Expectation,
    MapBatches,
    Query,
    Select,
    Stateful,
    Step,
    WatermarkStep,
    Where,
    WithColumns,
    located,
)
from waxlake.pipeline.expectations import (
    FAILED_RULES,
    OnOffenders,
    judge,
    judge_whole,
    verdict_column,
    verdict_sql,
)
from waxlake.pipeline.sql import (
    STREAM,
    StaticTables,
    register_tables,
    run_query,
    sql_failed,
    sql_refused,
    with_static_aliases,
    without_columns,
)
from waxlake.stream.batch import RuleCount
from waxlake.stream.engine import lazy_session, quote_name
from waxlake.stream.errors import DefinitionError, WaxlakeError
from waxlake.stream.schema import cast_exact, delta_schema, no_rows
from waxlake.stream.settings import nearest

if TYPE_CHECKING:
    from connectors.debezium import DebeziumDecoder, DebeziumSettings

__all__ = ["Outcome", "Transform", "mentioned"]


def _debezium() -> type[DebeziumDecoder]:
    from connectors.debezium import DebeziumDecoder

    return DebeziumDecoder


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
        elif isinstance(step, Decode):
            texts += _debezium().needs
        elif isinstance(step, Expect):
            texts += [rule.sql for rule in step.expectations]
        elif isinstance(step, WatermarkStep):
            texts.append(step.time.column)
        elif isinstance(step, Stateful):
            texts += step.operator.columns
    text = "\n".join(texts)
    return frozenset(name for name in names if name in text)


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


@dataclass(slots=True)
class _Decoders:
    """A decoder for each thread that asks for one."""

    settings: DebeziumSettings
    by_thread: dict[int, DebeziumDecoder] = field(default_factory=dict)

    def __call__(self, table: pa.Table) -> pa.Table:
        thread = threading.get_ident()
        if thread not in self.by_thread:
            self.by_thread[thread] = _debezium()(self.settings)
        return self.by_thread[thread].decode(table)


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
        on_offenders: Is told of rows that break a rule.
        derived: Columns that the steps need not make.
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
    on_offenders: OnOffenders | None = None
    derived: tuple[DerivedColumn, ...] = ()
    output: pa.Schema = field(default_factory=lambda: pa.schema([]))
    _stages: list[_SqlStage | _PythonStage] = field(default_factory=list)
    _connections: dict[int, duckdb.DuckDBPyConnection] = field(default_factory=dict)

    def compile(self) -> pa.Schema:
        """Compile the steps and return the resulting schema, with Delta's types.

        Raises:
            DefinitionError: An unknown column or function, a type error; names the step's file and line. Not retryable.
        """
        _Compiler(self).run()
        connection = lazy_session()
        table, _, _ = self._staged(self.source, self.tables, connection)
        made = delta_schema(pa.schema([field for field in table.schema if not field.name.startswith("__rule_")]))
        self.output = self.schema or made
        self._check_whole(no_rows(made), connection)
        if self.schema is not None:
            self._check_declared(made)
        return self.output

    def apply(self, table: pa.Table, tables: StaticTables, *, moves: bool = True) -> Outcome:
        """Return what the flow makes of one batch.

        Args:
            table: Rows.
            tables: Static tables.
            moves: Whether the batch moves a position; one that does not says nothing about a view as a whole.

        Raises:
            ExpectationFailed: A row broke an ``expect_or_fail`` rule. Not retryable.
            UserError: A step failed on these rows. Not retryable.
        """
        connection = self._connection()
        if table.num_rows == 0:
            empty = no_rows(self.output)
            return Outcome(empty, rules=self._judged_whole(empty, tables, connection) if moves else ())
        rows, counts, dropped = self._staged(table, tables, connection)
        rows, rejected, final_counts, final_dropped = judge(
            rows, self.row_rules, self.dataset, connection, self.on_offenders
        )
        rules = (*counts, *final_counts, *self._judged_whole(rows, tables, connection))
        fitted = cast_exact(rows, self.output, what=f"flow '{self.flow}'")
        if rejected is not None:
            rejected = self._fitted_rejects(rejected)
        return Outcome(fitted, rejected, rules, dropped + final_dropped)

    @property
    def row_rules(self) -> tuple[Expectation, ...]:
        """Rules over a row."""
        return tuple(rule for rule in self.expectations if rule.scope != "whole")

    def _judged_whole(
        self, rows: pa.Table, tables: StaticTables, connection: duckdb.DuckDBPyConnection
    ) -> tuple[RuleCount, ...]:
        rules = [rule for rule in self.expectations if rule.scope == "whole"]
        if not rules:
            return ()
        register_tables(connection, self.statics, tables)
        try:
            return judge_whole(rows, rules, self.dataset, connection)
        except duckdb.Error as exc:
            raise sql_refused(f"expectations of '{self.dataset}'", rules[0].where, exc) from exc

    @property
    def stages(self) -> list[tuple[str | None, str, str]]:
        """The compiled stages: (query, None for Python; view whose rules are judged after it, or empty; ``file:line``)."""
        return [
            (None, "", stage.where) if isinstance(stage, _PythonStage) else (stage.text, stage.dataset, stage.where)
            for stage in self._stages
        ]

    @property
    def rejected_schema(self) -> pa.Schema:
        """Columns of rejected rows: those of the output, all nullable, and the names of the rules a row broke."""
        columns = [item.with_nullable(True) for item in self.output]
        return pa.schema([*columns, pa.field(FAILED_RULES, pa.list_(pa.string()))])

    def _fitted_rejects(self, rejected: pa.Table) -> pa.Table:
        return cast_exact(rejected, self.rejected_schema, what=f"quarantine of flow '{self.flow}'")

    def _check_whole(self, empty: pa.Table, connection: duckdb.DuckDBPyConnection) -> None:
        """Find what is wrong with the rules over all rows."""
        register_tables(connection, self.statics, self.tables)
        for rule in self.expectations:
            if rule.scope == "whole":
                try:
                    judge_whole(empty, [replace(rule, action="warn")], self.dataset, connection)
                except duckdb.Error as exc:
                    raise sql_refused(f"expectation '{rule.name}'", rule.where, exc) from exc

    def _connection(self) -> duckdb.DuckDBPyConnection:
        """Return this thread's connection.

        Not a ``threading.local``: Bytewax enters Python anew for every call, which would close a thread-local connection
        while the thread's state is being torn down, and crash the interpreter.
        """
        thread = threading.get_ident()
        if thread not in self._connections:
            self._connections[thread] = lazy_session()
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
                table, _, found, lost = judge(table, stage.rules, stage.dataset, connection, self.on_offenders)
                counts += found
                dropped += lost
        return table, counts, dropped

    def _query(
        self, stage: _SqlStage, table: pa.Table, tables: StaticTables, connection: duckdb.DuckDBPyConnection
    ) -> pa.Table:
        try:
            connection.register(STREAM, table)
            register_tables(connection, self.statics, tables)
            return run_query(connection, stage.text)
        except duckdb.Error as exc:
            if table.num_rows == 0:
                raise sql_refused(f"flow '{self.flow}'", stage.where, exc) from exc
            raise sql_failed(self.flow, stage.where, exc) from exc
        finally:
            connection.unregister(STREAM)

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


class _Compiler:
    """Turns steps into stages, fusing consecutive SQL steps into one query."""

    def __init__(self, transform: Transform) -> None:
        self._transform = transform
        self._connection = lazy_session()
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
            elif isinstance(step, Decode):
                self._decode(step)
            elif isinstance(step, Expect):
                self._judge(step.dataset, step.expectations)
            else:
                self._push(self._sql(step))
        self._show_only_visible()
        for column in transform.derived:
            self._derive(column)
        if transform.row_rules:
            self._push(self._with_rules(transform.row_rules))
        self._close()

    def _decode(self, step: Decode) -> None:
        """Decode records; what the source hides stays hidden, and the metadata of the changes joins it."""
        self._close()
        stage = _PythonStage(_Decoders(step.settings), None, step.where)
        self._transform._stages.append(stage)
        with located(step.where):
            self._now = self._input = self._transform._call(stage, self._now)
        columns = self._now.column_names
        self._hidden = [name for name in (*self._hidden, *_debezium().metadata_columns) if name in columns]

    def _from(self) -> str:
        # a line of its own for what comes after a user's text: that may end with a comment
        return f"FROM ({self._text}\n) AS {STREAM}" if self._text else f"FROM {STREAM}"

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
            text = without_columns(text, self._hidden, step.where)
        self._hidden = []
        return f"WITH {STREAM} AS (SELECT * {self._from()}) SELECT * FROM ({text}\n)" if self._text else text

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

    def _derive(self, column: DerivedColumn) -> None:
        """Add a column with a default, or a generated one."""
        is_made = column.name in self._now.column_names
        if is_made and not column.is_generated:
            return
        if is_made:
            raise DefinitionError(
                f"flow '{self._transform.flow}' makes the generated column '{column.name}'",
                where=self._where,
                code="GENERATED_COLUMN_MADE",
                expected=f"no such column: it is always {column.sql}",
                remedy="Leave it out of the query",
            )
        self._push(f"SELECT *, ({column.sql}) AS {quote_name(column.name)} {self._from()}")

    def _with_rules(self, rules: Sequence[Expectation]) -> str:
        """Return a query that adds one boolean per rule, after checking each rule by itself to name its line."""
        parts = []
        for index, rule in enumerate(rules):
            self._where = rule.where
            sql = with_static_aliases(verdict_sql(rule), rule.tables)
            verdict = f"coalesce(({sql}\n)::BOOLEAN, false) AS {verdict_column(index)}"
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
            self._connection.register(STREAM, self._input)
            register_tables(self._connection, self._transform.statics, self._transform.tables)
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
