"""Commands that look and change nothing: graph, tables, rows, queries, states, events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from waxlake.cli.loading import copy_files
from waxlake.cli.options import JsonOption, ParamOption, SpecOption, app, read_graph, read_spec
from waxlake.cli.text import (
    count_text,
    echo_rows,
    echo_table,
    event_line,
    graph_json,
    graph_mermaid,
    graph_text,
    slot_lines,
    state_lines,
    status_lines,
)
from waxlake.stream.errors import UsageError

if TYPE_CHECKING:
    from waxlake.pipeline.incremental.explain import ViewPlan
__all__ = ["events", "explain", "files_state", "graph", "quality", "show", "slots", "sql", "state", "status", "tables"]


@app.command()
def graph(
    format: Annotated[Literal["text", "mermaid", "json"], typer.Option("--format", help="How to write it.")] = "text",
    param: ParamOption = None,
    spec: SpecOption = None,
) -> None:
    """Show what feeds what."""
    loaded = read_graph(spec, param)
    lines = {"text": graph_text, "mermaid": graph_mermaid, "json": graph_json}[format](loaded)
    for line in lines:
        typer.echo(line)


@app.command()
def tables(param: ParamOption = None, spec: SpecOption = None, json: JsonOption = False) -> None:
    """List the stored tables: version, rows, size, files, last commit, path."""
    from dataclasses import asdict

    from waxlake.pipeline.lake import stored_tables, table_facts
    from waxlake.pipeline.rows import json_line, size_text

    facts = [table_facts(table) for table in stored_tables(read_graph(spec, param)).values()]
    if json:
        for fact in facts:
            typer.echo(json_line(asdict(fact)))
        return
    echo_table(
        ["table", "kind", "version", "rows", "size", "files", "last commit", "path"],
        [
            [
                fact.name,
                fact.kind.replace("_", " "),
                count_text(fact.version),
                count_text(fact.rows),
                size_text(fact.size_bytes),
                count_text(fact.files),
                f"{fact.committed_at:%Y-%m-%d %H:%M:%SZ}" if fact.committed_at else "not written yet",
                fact.path,
            ]
            for fact in facts
        ],
        right=(2, 3, 4, 5),
    )


@app.command()
def show(
    table: Annotated[str, typer.Argument(help="Table name; also <table>_quarantine and events.")],
    count: Annotated[int, typer.Option("-n", min=1, help="Rows.")] = 20,
    param: ParamOption = None,
    spec: SpecOption = None,
    json: JsonOption = False,
) -> None:
    """Show some rows of a table."""
    from waxlake.pipeline.lake import first_rows

    echo_rows(first_rows(read_graph(spec, param), table, count), is_json=json)


@app.command()
def sql(
    query: Annotated[str, typer.Argument(help="A SELECT in DuckDB's dialect; tables by name.")],
    param: ParamOption = None,
    spec: SpecOption = None,
    json: JsonOption = False,
) -> None:
    """Run a query over the pipeline's tables, or COPY INTO a table that no flow writes."""
    from waxlake.pipeline.copy_into import parse_copy
    from waxlake.pipeline.incremental.explain import explain_create, is_explain_create

    if is_explain_create(query):
        _echo_plan(explain_create(read_spec(spec, param), query), is_json=json)
        return
    statement = parse_copy(query)
    if statement is not None:
        copy_files(read_spec(spec, param), *statement)
        return
    from waxlake.pipeline.lake import run_sql

    echo_rows(run_sql(read_graph(spec, param), query), is_json=json)


@app.command()
def explain(
    view: Annotated[str, typer.Argument(help="A materialized view.")],
    param: ParamOption = None,
    spec: SpecOption = None,
    json: JsonOption = False,
) -> None:
    """Say how a view will be refreshed: for the price of what changed, or in full, and why."""
    from waxlake.pipeline.check import check_graph
    from waxlake.pipeline.incremental.explain import explain_view

    _echo_plan(explain_view(check_graph(read_graph(spec, param)), view), is_json=json)


def _echo_plan(plan: ViewPlan, *, is_json: bool) -> None:
    from waxlake.pipeline.rows import json_line

    for line in [json_line(plan.to_dict())] if is_json else plan.lines():
        typer.echo(line)


@app.command("files-state")
def files_state(
    table: Annotated[str, typer.Argument(help="A table that read_files feeds.")],
    state: Annotated[
        str | None, typer.Option("--state", help="Only pending, committed, failed, skipped or missing files.")
    ] = None,
    schemas: Annotated[bool, typer.Option("--schemas", help="The schemas that the sources have had, instead.")] = False,
    param: ParamOption = None,
    spec: SpecOption = None,
    json: JsonOption = False,
) -> None:
    """Show what became of each file of a table's sources: state, commit, rows, rescued rows, error."""
    import pyarrow.compute as pc

    from waxlake.pipeline.file_states import FILE_STATES, file_states, schema_history
    from waxlake.stream.settings import nearest

    if state is not None and state not in FILE_STATES:
        raise UsageError(f"unknown state {state!r}", code="OPTION_INVALID", remedy=nearest(state, FILE_STATES))
    if schemas:
        echo_rows(schema_history(read_graph(spec, param), table), is_json=json)
        return
    found = file_states(read_graph(spec, param), table)
    if state is not None:
        found = found.filter(pc.equal(found.column("state"), state))
    echo_rows(found, is_json=json)


@app.command()
def quality(
    table: Annotated[str | None, typer.Option("--table", help="Only rules of this table.")] = None,
    by_commit: Annotated[bool, typer.Option("--commits", help="A line for each commit, not only sums.")] = False,
    param: ParamOption = None,
    spec: SpecOption = None,
    json: JsonOption = False,
) -> None:
    """Show what each rule counted, as the tables' commits say."""
    import pyarrow.compute as pc

    from waxlake.pipeline.quality import quality_rows, quality_sums

    rows = quality_rows(read_graph(spec, param))
    if table is not None:
        rows = rows.filter(pc.equal(rows.column("table"), table))
    echo_rows(rows if by_commit else quality_sums(rows), is_json=json)


@app.command()
def status(param: ParamOption = None, spec: SpecOption = None, json: JsonOption = False) -> None:
    """Show the last update, each table's positions, backlog and rule counts, and the replication slots."""
    from waxlake.pipeline.rows import json_line
    from waxlake.pipeline.status import pipeline_status

    found = pipeline_status(read_graph(spec, param))
    for line in [json_line(found.to_dict())] if json else status_lines(found):
        typer.echo(line)


@app.command()
def state(
    table: Annotated[str, typer.Argument(help="Table of the pipeline.")],
    count: Annotated[int, typer.Option("-n", min=0, help="Show this many rows of each table of the state.")] = 0,
    param: ParamOption = None,
    spec: SpecOption = None,
    json: JsonOption = False,
) -> None:
    """Show the state of a table's stateful flows: operator, watermark, rows held."""
    from dataclasses import asdict

    from waxlake.pipeline.rows import json_line
    from waxlake.pipeline.state_status import table_state

    found = table_state(read_graph(spec, param), table, limit=count)
    if not found and not json:
        typer.echo(f"table {table} has no state")
    for one in found:
        for line in [json_line(asdict(one))] if json else state_lines(one):
            typer.echo(line)


@app.command()
def slots(
    drop: Annotated[str | None, typer.Option("--drop", help="Drop this slot; nobody may be reading it.")] = None,
    param: ParamOption = None,
    spec: SpecOption = None,
    json: JsonOption = False,
) -> None:
    """List the replication slots of the pipeline's PostgreSQL databases, or drop one."""
    from dataclasses import asdict

    from waxlake.pipeline.rows import json_line
    from waxlake.pipeline.slots import drop_pipeline_slot, pipeline_slots

    loaded = read_graph(spec, param)
    if drop is not None:
        typer.echo(drop_pipeline_slot(loaded, drop))
        return
    found = pipeline_slots(loaded, only_used=False)
    if not found and not json:
        typer.echo("this pipeline reads no PostgreSQL database")
    for status in found:
        for line in [json_line(asdict(status))] if json else slot_lines(status):
            typer.echo(line)


@app.command()
def events(
    type: Annotated[str | None, typer.Option("--type", help="Only events of this type.")] = None,
    count: Annotated[int, typer.Option("-n", min=1, help="The newest so many.")] = 50,
    spec: SpecOption = None,
    json: JsonOption = False,
) -> None:
    """Show the event log, oldest first."""
    from waxlake.pipeline.events import EVENT_TYPES, read_events
    from waxlake.stream.settings import nearest

    if type is not None and type not in EVENT_TYPES:
        raise UsageError(f"unknown event type {type!r}", code="OPTION_INVALID", remedy=nearest(type, EVENT_TYPES))
    found = read_events(read_spec(spec, None).events_location(), event_type=type, limit=count)
    for event in found:
        typer.echo(event.to_json() if json else event_line(event))
    if not found and not json:
        typer.echo("no events yet")
