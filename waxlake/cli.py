"""The command `waxlake`. Each command imports what it needs when it runs, so that help and mistakes answer at once."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from waxlake.stream.errors import UsageError, WaxlakeError

if TYPE_CHECKING:
    import pyarrow as pa

    from connectors.mysql.status import BinlogStatus
    from connectors.postgres.slots import SlotStatus
    from waxlake.pipeline.copy_into import CopyOptions
    from waxlake.pipeline.events import Event
    from waxlake.pipeline.graph import Dataset, Graph
    from waxlake.pipeline.incremental.explain import ViewPlan
    from waxlake.pipeline.lease import LeaseTerms
    from waxlake.pipeline.progress import Listener
    from waxlake.pipeline.spec import Spec
    from waxlake.pipeline.state_status import FlowState
    from waxlake.pipeline.status import PipelineStatus, PositionStatus, TableStatus

__all__ = ["app", "main"]

app = typer.Typer(
    name="waxlake",
    help="Streams, databases and files into Delta tables, exactly once.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SpecOption = Annotated[
    Path | None,
    typer.Option("--spec", help="Spec file or its folder; else WAXLAKE_SPEC, else waxlake.yml here or above."),
]
ParamOption = Annotated[
    list[str] | None, typer.Option("--param", help="key=value; takes precedence over `configuration`. Repeatable.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON, for machines.")]


def main() -> None:
    """Run the command line; errors become a message on standard error and an exit code."""
    try:
        app()
    except SystemExit as done:
        if isinstance(done.code, int | None):
            _leave(done.code or 0)
        raise
    except Exception as exc:  # the boundary of the process
        error = _waxlake_error(exc)
        if error is None or os.environ.get("WAXLAKE_DEBUG") == "1":
            raise
        typer.echo(str(error), err=True)
        _leave(error.exit_code)


def _leave(code: int) -> NoReturn:
    """End the process at once: all is committed and written, and native threads still running at exit may abort it.

    A thread of Arrow's pool that reads through a Python file system asks for the interpreter when it lets go of a file;
    while the interpreter ends, that unwinds through C++ code and aborts the process after its work was done.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # whoever read it is gone
            stream.flush()
    os._exit(code)


def _waxlake_error(exc: BaseException) -> WaxlakeError | None:
    """Return the error of ours behind an exception; what Bytewax wraps is its cause."""
    cause: BaseException | None = exc
    while cause is not None and not isinstance(cause, WaxlakeError):
        cause = cause.__cause__
    return cause


@app.callback(invoke_without_command=True)
def _start(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    from waxlake.pipeline.guard import guard_packages

    if version:
        from importlib.metadata import PackageNotFoundError
        from importlib.metadata import version as installed

        try:
            typer.echo(f"waxlake {installed('waxlake')}")
        except PackageNotFoundError:
            typer.echo("waxlake, run from its sources")
        raise typer.Exit
    guard_packages()


@app.command()
def run(
    continuous: Annotated[bool, typer.Option("--continuous", help="Go on until SIGTERM or Ctrl-C.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Worker threads in each process.")] = 1,
    processes: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    refresh: Annotated[list[str] | None, typer.Option("--refresh", help="Only these tables: a,b. Repeatable.")] = None,
    full_refresh: Annotated[
        list[str] | None, typer.Option("--full-refresh", help="Fill these tables anew: a,b. Repeatable.")
    ] = None,
    full_refresh_all: Annotated[bool, typer.Option("--full-refresh-all", help="Fill every table anew.")] = False,
    reset_checkpoint: Annotated[
        list[str] | None,
        typer.Option("--reset-checkpoint", help="Let these tables forget their positions; rows stay: a,b. Repeatable."),
    ] = None,
    refresh_failed: Annotated[
        bool, typer.Option("--refresh-failed", help="Only what failed or was skipped in the last update.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Fill anew even where a source no longer holds what a table holds.")
    ] = False,
    adopt: Annotated[
        list[str] | None,
        typer.Option("--adopt", help="Take these tables over from another pipeline: a,b. Repeatable."),
    ] = None,
    queue: Annotated[bool, typer.Option("--queue", help="Wait while another update of the pipeline runs.")] = False,
    queue_timeout: Annotated[
        str | None, typer.Option("--queue-timeout", help="Wait so long at most, as 10m; goes with --queue.")
    ] = None,
    takeover: Annotated[
        bool, typer.Option("--takeover", help="Let another update of the pipeline drain and end, and go on from it.")
    ] = False,
    param: ParamOption = None,
    spec: SpecOption = None,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Serve Prometheus metrics on this port of 127.0.0.1.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Run an update: read what is new into every table, then stop."""
    loaded = _load_spec(spec, param)
    from waxlake.pipeline.run import RunOptions, run_update
    from waxlake.pipeline.selection import Selection

    options = RunOptions(
        mode="continuous" if continuous else None,
        workers=workers,
        processes=processes,
        progress="json" if json else "lines",
        selection=Selection(
            refresh=_names(refresh),
            full_refresh=_names(full_refresh),
            reset_checkpoint=_names(reset_checkpoint),
            is_full=full_refresh_all,
            is_forced=force,
            is_failed=refresh_failed,
        ),
        terms=_lease_terms(queue=queue, queue_timeout=queue_timeout, takeover=takeover),
        adopts=_names(adopt),
    )
    if processes > 1:  # each process reports for itself
        if metrics_port is not None:
            raise UsageError(
                "--metrics-port serves one process",
                code="OPTION_INVALID",
                remedy="Start the processes with python -m bytewax.run and WAXLAKE_METRICS_PORT, one port each",
            )
        run_update(loaded, options, [])
        return
    listeners = [_progress(is_json=json)]
    if metrics_port is not None:
        from waxlake.pipeline.metrics import MetricsListener

        listeners.append(MetricsListener(metrics_port))
    try:
        run_update(loaded, options, listeners)
    finally:
        for listener in listeners:
            listener.close()


def _lease_terms(*, queue: bool, queue_timeout: str | None, takeover: bool) -> LeaseTerms:
    from waxlake.pipeline.lease import LeaseTerms
    from waxlake.stream.settings import parse_duration

    if takeover and (queue or queue_timeout):
        raise UsageError(
            "--takeover and --queue", code="OPTION_INVALID", found="both", expected="one of them: take over, or wait"
        )
    timeout_s = None
    if queue_timeout is not None:
        try:
            timeout_s = parse_duration(queue_timeout)
        except ValueError:
            raise UsageError(
                "option --queue-timeout",
                code="OPTION_INVALID",
                found=repr(queue_timeout),
                expected="a time such as 10m",
            ) from None
    is_queued = queue or queue_timeout is not None
    return LeaseTerms(
        on_running="takeover" if takeover else "queue" if is_queued else "refuse", queue_timeout_s=timeout_s
    )


def _names(values: Iterable[str] | None) -> tuple[str, ...]:
    """Return the names of comma lists, each once."""
    return tuple(dict.fromkeys(name.strip() for value in values or () for name in value.split(",") if name.strip()))


def _progress(*, is_json: bool) -> Listener:
    from waxlake.pipeline.progress import JsonProgress, LineProgress, TerminalProgress

    if is_json:
        return JsonProgress()
    return TerminalProgress() if sys.stdout.isatty() else LineProgress()


@app.command("dry-run")
def dry_run(param: ParamOption = None, spec: SpecOption = None) -> None:
    """Check every definition, name, column and type, without reading or writing data."""
    from waxlake.pipeline.check import check_graph
    from waxlake.pipeline.ownership import refuse_foreign_tables

    graph = _load_graph(spec, param)
    refuse_foreign_tables(graph)
    checked = check_graph(graph)
    for name in _defined(graph):
        typer.echo(f"{_kind(graph.datasets[name])} {name}")
        columns = [f"{field.name} {field.type}" for field in checked.schemas.get(name, ())]
        typer.echo(f"  columns: {', '.join(columns)}")
        for flow, inputs in _inputs(graph, name):
            typer.echo(f"  {flow}: from {', '.join(inputs)}")
    typer.echo("ok")


@app.command()
def rewind(
    to: Annotated[str | None, typer.Option("--to", help="Time to go back to, as 2026-01-31T12:00:00Z.")] = None,
    to_version: Annotated[list[str] | None, typer.Option("--to-version", help="table=version. Repeatable.")] = None,
    tables: Annotated[list[str] | None, typer.Option("--tables", help="Only these: a,b. Repeatable.")] = None,
    cascade: Annotated[bool, typer.Option("--cascade/--no-cascade", help="Tables that stream from them, too.")] = True,
    dry: Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Even where a source no longer holds what is removed.")
    ] = False,
    param: ParamOption = None,
    spec: SpecOption = None,
    json: JsonOption = False,
) -> None:
    """Put tables back to what they were, with their source positions and the tables that read them."""
    from dataclasses import asdict

    from waxlake.pipeline.rewind import RewindOptions, parse_time
    from waxlake.pipeline.rewind import rewind as go_back
    from waxlake.pipeline.rows import json_line

    versions = {}
    for name, version in _pairs("--to-version", to_version).items():
        if not version.isdigit():
            raise UsageError(
                "option --to-version", code="OPTION_INVALID", found=repr(version), expected="table=version"
            )
        versions[name] = int(version)
    options = RewindOptions(
        at=parse_time(to) if to is not None else None,
        versions=versions,
        tables=_names(tables),
        cascades=cascade,
        is_dry=dry,
        is_forced=force,
    )
    done = go_back(_load_graph(spec, param), options)
    for row in done:
        would = "would go" if dry else "went"
        text = f"{row.table}: {would} from version {row.version} back to {row.to_version}, {row.removed:,} rows less"
        typer.echo(json_line(asdict(row)) if json else text)
    if not done and not json:
        typer.echo("nothing to rewind: every table is as it was then")


@app.command()
def plan(param: ParamOption = None, spec: SpecOption = None, json: JsonOption = False) -> None:
    """Say what an update would do and why: positions, backlog, changed definitions, views; changes nothing."""
    from waxlake.pipeline.check import check_graph
    from waxlake.pipeline.explain import explain_update
    from waxlake.pipeline.explain_text import plan_lines
    from waxlake.pipeline.ownership import refuse_foreign_tables
    from waxlake.pipeline.rows import json_line

    loaded = _load_graph(spec, param)
    refuse_foreign_tables(loaded)
    found = explain_update(check_graph(loaded))
    for line in [json_line(found.to_dict())] if json else plan_lines(found):
        typer.echo(line)


@app.command()
def graph(
    format: Annotated[Literal["text", "mermaid", "json"], typer.Option("--format", help="How to write it.")] = "text",
    param: ParamOption = None,
    spec: SpecOption = None,
) -> None:
    """Show what feeds what."""
    loaded = _load_graph(spec, param)
    lines = {"text": _graph_text, "mermaid": _graph_mermaid, "json": _graph_json}[format](loaded)
    for line in lines:
        typer.echo(line)


@app.command()
def tables(param: ParamOption = None, spec: SpecOption = None, json: JsonOption = False) -> None:
    """List the stored tables: version, rows, size, files, last commit, path."""
    from dataclasses import asdict

    from waxlake.pipeline.lake import stored_tables, table_facts
    from waxlake.pipeline.rows import json_line, size_text

    facts = [table_facts(table) for table in stored_tables(_load_graph(spec, param)).values()]
    if json:
        for fact in facts:
            typer.echo(json_line(asdict(fact)))
        return
    _echo_table(
        ["table", "kind", "version", "rows", "size", "files", "last commit", "path"],
        [
            [
                fact.name,
                fact.kind.replace("_", " "),
                _count(fact.version),
                _count(fact.rows),
                size_text(fact.size_bytes),
                _count(fact.files),
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

    _echo_rows(first_rows(_load_graph(spec, param), table, count), is_json=json)


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
        _echo_plan(explain_create(_load_spec(spec, param), query), is_json=json)
        return
    statement = parse_copy(query)
    if statement is not None:
        _copy(_load_spec(spec, param), *statement)
        return
    from waxlake.pipeline.lake import run_sql

    _echo_rows(run_sql(_load_graph(spec, param), query), is_json=json)


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

    _echo_plan(explain_view(check_graph(_load_graph(spec, param)), view), is_json=json)


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
        _echo_rows(schema_history(_load_graph(spec, param), table), is_json=json)
        return
    found = file_states(_load_graph(spec, param), table)
    if state is not None:
        found = found.filter(pc.equal(found.column("state"), state))
    _echo_rows(found, is_json=json)


@app.command()
def replay(
    table: Annotated[str, typer.Argument(help="Table whose quarantine is replayed.")],
    where: Annotated[str | None, typer.Option("--where", help="Only rows of the quarantine table like these.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="column=SQL: correct the rows first. Repeatable.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would become of the rows; write nothing.")
    ] = False,
    param: ParamOption = None,
    spec: SpecOption = None,
    json: JsonOption = False,
) -> None:
    """Put rejected rows through the rules again: those that pass go into the table, the others stay. Exactly once."""
    from dataclasses import asdict

    from waxlake.pipeline.replay import ReplayOptions, run_replay
    from waxlake.pipeline.rows import json_line

    loaded = _load_graph(spec, param)
    options = ReplayOptions(where=where, sets=_pairs("--set", set_), is_dry=dry_run)
    result = run_replay(loaded, table, options)
    if json:
        typer.echo(json_line({**asdict(result), "dry_run": dry_run}))
        return
    would = "would go" if dry_run else "went"
    typer.echo(f"{table}: {result.replayed:,} rows replayed, {result.passed:,} {would} into the table")
    if result.kept:
        typer.echo(f"  {result.kept:,} stay in {table}_quarantine")
    for rule, failed in result.rules.items():
        if failed:
            typer.echo(f"  rule {rule}: {failed:,} rows break it")


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

    rows = quality_rows(_load_graph(spec, param))
    if table is not None:
        rows = rows.filter(pc.equal(rows.column("table"), table))
    _echo_rows(rows if by_commit else quality_sums(rows), is_json=json)


@app.command()
def upload(
    files: Annotated[list[Path], typer.Argument(help="Local files: csv, tsv, json, parquet, avro, orc, txt or xml.")],
    table: Annotated[str, typer.Option("--table", help="Table to write: name, or schema.name.")],
    mode: Annotated[
        Literal["create", "append", "overwrite"], typer.Option("--mode", help="What to do with the table.")
    ] = "create",
    preview: Annotated[
        bool, typer.Option("--preview", "--dry-run", help="Show columns and the first 50 rows; write nothing.")
    ] = False,
    format: Annotated[str | None, typer.Option("--format", help="Format; else by the names of the files.")] = None,
    header: Annotated[
        bool | None, typer.Option("--header/--no-header", help="csv: the first record names columns.")
    ] = None,
    sep: Annotated[str | None, typer.Option("--sep", help="csv: character between two fields.")] = None,
    multi_line: Annotated[
        bool | None, typer.Option("--multi-line/--single-line", help="json: a document may span lines.")
    ] = None,
    infer: Annotated[bool, typer.Option("--infer-types/--no-infer-types", help="Else all columns are STRING.")] = True,
    option: Annotated[list[str] | None, typer.Option("--option", help="name=value of read_files. Repeatable.")] = None,
    type: Annotated[list[str] | None, typer.Option("--type", help="column=TYPE. Repeatable.")] = None,
    rename: Annotated[list[str] | None, typer.Option("--rename", help="column=new name. Repeatable.")] = None,
    exclude: Annotated[list[str] | None, typer.Option("--exclude", help="Columns to leave out. Repeatable.")] = None,
    rescue: Annotated[bool, typer.Option("--rescue", help="Keep what does not fit in _rescued_data.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Append again what was appended before.")] = False,
    max_files: Annotated[int, typer.Option(min=1, help="Most files.")] = 10,
    max_bytes: Annotated[int, typer.Option(min=1, help="Most bytes of all files.")] = 2 << 30,
    spec: SpecOption = None,
    json: JsonOption = False,
) -> None:
    """Upload local files into a table, all or nothing, and once however often it is repeated."""
    from waxlake.pipeline.upload import Upload, UploadOptions, refuse_owned

    loaded = _load_spec(spec, None)
    refuse_owned(loaded, table)
    given = {"header": header, "sep": sep, "multi_line": multi_line, "infer_column_types": None if infer else False}
    options = UploadOptions(
        mode=mode,
        format=format,
        options={**_pairs("--option", option), **{name: value for name, value in given.items() if value is not None}},
        types=_pairs("--type", type),
        renames=_pairs("--rename", rename),
        excludes=tuple(exclude or ()),
        keeps_rescued=rescue,
        is_forced=force,
        max_files=max_files,
        max_bytes=max_bytes,
    )
    work = Upload(loaded, table, files, options)
    if preview:
        if not json:
            typer.echo(f"{table}: " + ", ".join(f"{field.name} {field.type}" for field in work.schema))
        _echo_rows(work.preview(), is_json=json)
        return
    receipt = work.run()
    if receipt.was_there:
        typer.echo(f"these files are in {table} already, since version {receipt.version}; --force appends them again")
    else:
        typer.echo(f"{receipt.rows:,} rows in {table}, version {receipt.version}: {work.location.uri}")


@app.command("copy-into")
def copy_into(
    table: Annotated[str, typer.Argument(help="Table to fill; no flow may write it.")],
    path: Annotated[str, typer.Argument(help="Folder, glob or file; local, or an fsspec URI.")],
    format: Annotated[str, typer.Option("--format", help="Format of the files.")],
    option: Annotated[list[str] | None, typer.Option("--option", help="name=value of read_files. Repeatable.")] = None,
    merge_schema: Annotated[bool, typer.Option("--merge-schema", help="Add columns that the table lacks.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Load again what is loaded already.")] = False,
    spec: SpecOption = None,
) -> None:
    """Load the files of a path that a table does not hold yet; all or nothing, each file once."""
    from waxlake.pipeline.copy_into import CopyOptions

    options = CopyOptions(
        format=format, options=_pairs("--option", option), merges_schema=merge_schema, is_forced=force
    )
    _copy(_load_spec(spec, None), table, path, options)


def _copy(spec: Spec, table: str, path: str, options: CopyOptions) -> None:
    from waxlake.pipeline.copy_into import copy_into as copy
    from waxlake.pipeline.upload import refuse_owned

    refuse_owned(spec, table)
    result = copy(spec, table, path, options)
    typer.echo(f"{result.rows:,} rows copied into {table}" if result.commits else f"nothing new for {table}")


@app.command()
def status(param: ParamOption = None, spec: SpecOption = None, json: JsonOption = False) -> None:
    """Show the last update, each table's positions, backlog and rule counts, and the replication slots."""
    from waxlake.pipeline.rows import json_line
    from waxlake.pipeline.status import pipeline_status

    found = pipeline_status(_load_graph(spec, param))
    for line in [json_line(found.to_dict())] if json else _status_lines(found):
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

    found = table_state(_load_graph(spec, param), table, limit=count)
    if not found and not json:
        typer.echo(f"table {table} has no state")
    for one in found:
        for line in [json_line(asdict(one))] if json else _state_lines(one):
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

    loaded = _load_graph(spec, param)
    if drop is not None:
        typer.echo(drop_pipeline_slot(loaded, drop))
        return
    found = pipeline_slots(loaded, only_used=False)
    if not found and not json:
        typer.echo("this pipeline reads no PostgreSQL database")
    for status in found:
        for line in [json_line(asdict(status))] if json else _slot_lines(status):
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
    found = read_events(_load_spec(spec, None).events_location(), event_type=type, limit=count)
    for event in found:
        typer.echo(event.to_json() if json else _event_line(event))
    if not found and not json:
        typer.echo("no events yet")


@app.command()
def init(name: Annotated[str, typer.Argument(help="Folder to create; its last part names the pipeline.")]) -> None:
    """Create a new project that runs."""
    from waxlake.pipeline.scaffold import create_project

    for path in create_project(Path(name)):
        typer.echo(f"created {path}")
    typer.echo(f"\nNow: cd {name} && waxlake run")


@app.command()
def demo(
    fast: Annotated[bool, typer.Option("--fast", help="Two weeks of the data instead of the year.")] = False,
    folder: Annotated[Path | None, typer.Option("--folder", help="Where to work; ./waxlake-demo if not given.")] = None,
) -> None:
    """Run the main job on real data, with embedded services."""
    from waxlake.demo.run import main as run_demo

    run_demo(fast=fast, folder=folder)


def _pairs(option: str, texts: Sequence[str] | None) -> dict[str, str]:
    """Return the pairs of a repeatable option ``key=value``."""
    values = {}
    for text in texts or ():
        key, separator, value = text.partition("=")
        if not separator or not key or not value:
            raise UsageError(f"option {option}", code="OPTION_INVALID", found=repr(text), expected="name=value")
        values[key] = value
    return values


def _load_spec(path: Path | None, params: Sequence[str] | None) -> Spec:
    from waxlake.pipeline.spec import load_spec

    values = {}
    for text in params or ():
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise UsageError("option --param", code="PARAM_INVALID", found=repr(key), expected="key=value")
        values[key] = value
    return load_spec(path, params=values)


def _load_graph(path: Path | None, params: Sequence[str] | None) -> Graph:
    spec = _load_spec(path, params)
    from waxlake.pipeline.resolve import load_graph

    return load_graph(spec)


def _defined(graph: Graph) -> list[str]:
    return [name for name in graph.order if graph.datasets[name].kind != "quarantine"]


def _kind(dataset: Dataset) -> str:
    return dataset.kind.replace("_", " ")


def _inputs(graph: Graph, name: str) -> Iterator[tuple[str, list[str]]]:
    """Yield (flow, what it reads), each input once."""
    for flow in graph.datasets[name].flows:
        yield flow.name, list(dict.fromkeys((*flow.inputs, *flow.statics)))


def _graph_text(graph: Graph) -> Iterator[str]:
    for name in _defined(graph):
        dataset = graph.datasets[name]
        comment = f"  {dataset.comment}" if dataset.comment else ""
        yield f"{name} ({_kind(dataset)}){comment}"
        for _, inputs in _inputs(graph, name):
            yield from (f"  <- {read}" for read in inputs)
        if dataset.definition.sink is not None:
            yield f"  -> {dataset.definition.sink.label}"
        if dataset.quarantine is not None:
            yield f"  -> {name}_quarantine"


def _graph_mermaid(graph: Graph) -> Iterator[str]:
    ids: dict[str, str] = {}

    def node(name: str) -> str:
        return ids.setdefault(name, f"n{len(ids)}")

    edges = []
    for name in _defined(graph):
        node(name)
        for _, inputs in _inputs(graph, name):
            edges += [f"  {node(read)} --> {node(name)}" for read in inputs]
        sink = graph.datasets[name].definition.sink
        if sink is not None:
            edges.append(f"  {node(name)} --> {node(sink.label)}")
        if graph.datasets[name].quarantine is not None:
            edges.append(f"  {node(name)} -.-> {node(f'{name}_quarantine')}")
    yield "flowchart LR"
    for name, number in ids.items():
        text = name.replace('"', "'")
        yield f'  {number}["{text}"]' if name in graph.datasets else f'  {number}(["{text}"])'
    yield from edges


def _graph_json(graph: Graph) -> Iterator[str]:
    from waxlake.pipeline.rows import json_line

    datasets = []
    for name in _defined(graph):
        dataset = graph.datasets[name]
        datasets.append(
            {
                "name": name,
                "kind": dataset.kind,
                "comment": dataset.comment,
                "where": dataset.where,
                "path": dataset.location.uri if dataset.location else None,
                "quarantine": dataset.quarantine.uri if dataset.quarantine else None,
                "sink": dataset.definition.sink.label if dataset.definition.sink else None,
                "flows": [
                    {"name": flow.name, "inputs": list(flow.inputs), "statics": list(flow.statics)}
                    for flow in dataset.flows
                ],
            }
        )
    yield json_line({"pipeline": graph.spec.name, "datasets": datasets})


def _status_lines(found: PipelineStatus) -> Iterator[str]:
    yield f"pipeline {found.pipeline}"
    update = found.update
    if update is None:
        yield "no update yet: waxlake run"
    else:
        took = f", {update.duration_s:.1f} s" if update.duration_s is not None else ", no end recorded"
        yield f"last update {update.state}, started {update.started_at:%Y-%m-%d %H:%M:%SZ}{took}  ({update.update_id})"
        if update.state == "FAILED":
            yield f"  {update.message}"
    for table in found.tables:
        yield ""
        yield from _table_lines(table)
    for slot in found.slots:
        yield ""
        yield from _slot_lines(slot)
    for binlog in found.binlogs:
        yield ""
        yield from _binlog_lines(binlog)
    for problem in found.problems:
        yield ""
        yield problem


def _state_lines(state: FlowState) -> Iterator[str]:
    yield f"flow {state.flow}: {', '.join(f'{key} {value}' for key, value in state.operator.items())}"
    yield f"  watermark  {state.watermark or '-'}"
    for partition, high in state.partitions.items():
        yield f"  partition  {partition} at {high or '-'}"
    for name, held in state.tables.items():
        yield f"  {name:<9}  {held['rows']:,} rows in {held['segments']} segments"
        for row in state.rows.get(name, ()):
            yield f"    {row}"


def _slot_lines(slot: SlotStatus) -> Iterator[str]:
    whose = "this pipeline" if slot.is_used else "not of this pipeline"
    state = "being read" if slot.is_active else "not being read"
    yield (
        f"slot {slot.slot} at {slot.server} ({whose}): {slot.wal_status}, {state}, "
        f"{slot.lag_bytes:,} bytes behind, holds {slot.held_bytes:,} bytes of log"
    )
    for warning in slot.warnings:
        yield f"  WARNING {warning}"


def _binlog_lines(binlog: BinlogStatus) -> Iterator[str]:
    behind = "not read yet" if not binlog.position else f"at {binlog.position}"
    if binlog.lag_bytes is not None:
        behind += f", {binlog.lag_bytes:,} bytes behind, {binlog.kept_bytes or 0:,} bytes of log kept before it"
    yield f"{binlog.source}: {behind}"
    for warning in binlog.warnings:
        yield f"  WARNING {warning}"


def _table_lines(table: TableStatus) -> Iterator[str]:
    if table.version is None:
        yield f"{table.name}: not written yet"
        return
    if table.batches is None:
        yield f"{table.name}: {_count(table.rows)} rows, version {table.version}"
    else:
        pending = f", {table.pending} of them not known to be handed over" if table.pending else ""
        yield f"{table.name}: {table.batches:,} batches{pending}"
    for position in table.positions:
        known = {kind: n for kind, n in (position.backlog or {}).items() if n is not None}
        ahead = " and ".join(f"{n:,} {kind}" for kind, n in known.items() if n)
        backlog = f", {ahead} to go" if ahead else ", nothing to go" if known else ""
        yield f"  {position.source} partition {position.partition}: position {_position(position)}{backlog}"
    for rule in table.rules:
        total = rule.passed + rule.failed
        yield f"  rule {rule.rule} ({rule.action}): {rule.failed:,} of {total:,} rows broke it"
    if table.dropped:
        yield f"  {table.dropped:,} rows dropped"
    if table.quarantined:
        yield f"  {table.quarantined:,} rows in {table.name}_quarantine"


def _position(position: PositionStatus) -> str:
    """Return a position as its source counts: files and table versions are numbered, and so are the rows in them."""
    from waxlake.stream.position import RowPosition

    kind = {"files": "file", "delta": "version"}.get(position.source.partition(":")[0])
    if kind is None:
        return str(position.position)
    row = RowPosition.unpack(position.position)
    return f"{kind} {row.major}" + (f" row {row.minor}" if row.minor else "")


def _event_line(event: Event) -> str:
    return f"{event.timestamp:%Y-%m-%d %H:%M:%SZ}  {event.level:<7}  {event.event_type:<18}  {event.message}"


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _echo_rows(rows: pa.Table, *, is_json: bool) -> None:
    import pyarrow as pa

    from waxlake.pipeline.rows import json_line, text_of

    if is_json:
        for batch in rows.to_batches(max_chunksize=1000):
            for row in batch.to_pylist():
                typer.echo(json_line(row))
        return
    numeric = [i for i, f in enumerate(rows.schema) if pa.types.is_integer(f.type) or pa.types.is_floating(f.type)]
    names = rows.column_names
    _echo_table(names, [[text_of(value) for value in row.values()] for row in rows.to_pylist()], right=numeric)
    typer.echo(f"({rows.num_rows:,} {'row' if rows.num_rows == 1 else 'rows'})")


def _echo_table(headings: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> None:
    from waxlake.pipeline.rows import aligned

    cells = list(rows)
    if not sys.stdout.isatty():
        for line in aligned(headings, cells, right):
            typer.echo(line)
        return
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=SIMPLE, pad_edge=False)
    for index, heading in enumerate(headings):
        drawn.add_column(Text(heading), justify="right" if index in right else "left")
    for row in cells:
        drawn.add_row(*(Text(cell) for cell in row))
    Console().print(drawn)
