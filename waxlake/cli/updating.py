"""Commands that bring tables up to date, or say what doing so would mean."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from waxlake.cli.options import JsonOption, ParamOption, SpecOption, app, names_of, pairs_of, read_graph, read_spec
from waxlake.cli.text import defined_names, inputs_of, kind_of
from waxlake.stream.errors import UsageError

if TYPE_CHECKING:
    from waxlake.pipeline.lease import LeaseTerms
    from waxlake.pipeline.progress import Listener
__all__ = ["dry_run", "plan", "replay", "rewind", "run"]


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
    loaded = read_spec(spec, param)
    from waxlake.pipeline.run import RunOptions, run_update
    from waxlake.pipeline.selection import Selection

    options = RunOptions(
        mode="continuous" if continuous else None,
        workers=workers,
        processes=processes,
        progress="json" if json else "lines",
        selection=Selection(
            refresh=names_of("--refresh", refresh),
            full_refresh=names_of("--full-refresh", full_refresh),
            reset_checkpoint=names_of("--reset-checkpoint", reset_checkpoint),
            is_full=full_refresh_all,
            is_forced=force,
            is_failed=refresh_failed,
        ),
        terms=_lease_terms(queue=queue, queue_timeout=queue_timeout, takeover=takeover),
        adopts=names_of("--adopt", adopt),
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

    graph = read_graph(spec, param)
    refuse_foreign_tables(graph)
    checked = check_graph(graph)
    for name in defined_names(graph):
        typer.echo(f"{kind_of(graph.datasets[name])} {name}")
        columns = [f"{field.name} {field.type}" for field in checked.schemas.get(name, ())]
        typer.echo(f"  columns: {', '.join(columns)}")
        for flow, inputs in inputs_of(graph, name):
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
    for name, version in pairs_of("--to-version", to_version).items():
        if not version.isdigit():
            raise UsageError(
                "option --to-version", code="OPTION_INVALID", found=repr(version), expected="table=version"
            )
        versions[name] = int(version)
    options = RewindOptions(
        at=parse_time(to) if to is not None else None,
        versions=versions,
        tables=names_of("--tables", tables),
        cascades=cascade,
        is_dry=dry,
        is_forced=force,
    )
    done = go_back(read_graph(spec, param), options)
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

    loaded = read_graph(spec, param)
    refuse_foreign_tables(loaded)
    found = explain_update(check_graph(loaded))
    for line in [json_line(found.to_dict())] if json else plan_lines(found):
        typer.echo(line)


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

    loaded = read_graph(spec, param)
    options = ReplayOptions(where=where, sets=pairs_of("--set", set_), is_dry=dry_run)
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
