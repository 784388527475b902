"""What commands write: tables, graphs and states as lines of text. Called by the commands that look."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    import pyarrow as pa

    from connectors.mysql.status import BinlogStatus
    from connectors.postgres.slots import SlotStatus
    from waxlake.pipeline.events import Event
    from waxlake.pipeline.graph import Dataset, Graph
    from waxlake.pipeline.state_status import FlowState
    from waxlake.pipeline.status import PipelineStatus, PositionStatus, TableStatus
__all__ = [
    "count_text",
    "defined_names",
    "echo_rows",
    "echo_table",
    "event_line",
    "graph_json",
    "graph_mermaid",
    "graph_text",
    "inputs_of",
    "kind_of",
    "slot_lines",
    "state_lines",
    "status_lines",
]


def defined_names(graph: Graph) -> list[str]:
    """Return the names of what is defined, upstream first."""
    return [name for name in graph.order if graph.datasets[name].kind != "quarantine"]


def kind_of(dataset: Dataset) -> str:
    """Return a dataset's kind in words."""
    return dataset.kind.replace("_", " ")


def inputs_of(graph: Graph, name: str) -> Iterator[tuple[str, list[str]]]:
    """Yield (flow, what it reads), each input once."""
    for flow in graph.datasets[name].flows:
        yield flow.name, list(dict.fromkeys((*flow.inputs, *flow.statics)))


def graph_text(graph: Graph) -> Iterator[str]:
    """Yield a graph as indented lines."""
    for name in defined_names(graph):
        dataset = graph.datasets[name]
        comment = f"  {dataset.comment}" if dataset.comment else ""
        yield f"{name} ({kind_of(dataset)}){comment}"
        for _, inputs in inputs_of(graph, name):
            yield from (f"  <- {read}" for read in inputs)
        if dataset.definition.sink is not None:
            yield f"  -> {dataset.definition.sink.label}"
        if dataset.quarantine is not None:
            yield f"  -> {name}_quarantine"


def graph_mermaid(graph: Graph) -> Iterator[str]:
    """Yield a graph as a Mermaid flowchart."""
    ids: dict[str, str] = {}

    def node(name: str) -> str:
        return ids.setdefault(name, f"n{len(ids)}")

    edges = []
    for name in defined_names(graph):
        node(name)
        for _, inputs in inputs_of(graph, name):
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


def graph_json(graph: Graph) -> Iterator[str]:
    """Yield a graph as one line of JSON."""
    from waxlake.pipeline.rows import json_line

    datasets = []
    for name in defined_names(graph):
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


def status_lines(found: PipelineStatus) -> Iterator[str]:
    """Yield the state of a pipeline."""
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
        yield from slot_lines(slot)
    for binlog in found.binlogs:
        yield ""
        yield from _binlog_lines(binlog)
    for problem in found.problems:
        yield ""
        yield problem


def state_lines(state: FlowState) -> Iterator[str]:
    """Yield the state of one stateful flow."""
    yield f"flow {state.flow}: {', '.join(f'{key} {value}' for key, value in state.operator.items())}"
    yield f"  watermark  {state.watermark or '-'}"
    for partition, high in state.partitions.items():
        yield f"  partition  {partition} at {high or '-'}"
    for name, held in state.tables.items():
        yield f"  {name:<9}  {held['rows']:,} rows in {held['segments']} segments"
        for row in state.rows.get(name, ()):
            yield f"    {row}"


def slot_lines(slot: SlotStatus) -> Iterator[str]:
    """Yield the state of a replication slot."""
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
        yield f"{table.name}: {count_text(table.rows)} rows, version {table.version}"
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


def event_line(event: Event) -> str:
    """Return one event."""
    return f"{event.timestamp:%Y-%m-%d %H:%M:%SZ}  {event.level:<7}  {event.event_type:<18}  {event.message}"


def count_text(number: int | None) -> str:
    """Return a number with its thousands apart; nothing for None."""
    return "" if number is None else f"{number:,}"


def echo_rows(rows: pa.Table, *, is_json: bool) -> None:
    """Write rows, as JSON lines or as a table."""
    import pyarrow as pa

    from waxlake.pipeline.rows import json_line, text_of
    from waxlake.stream.python_rows import python_rows, value_rows

    if is_json:
        for start in range(0, rows.num_rows, 1000):
            for row in python_rows(rows.slice(start, 1000)):
                typer.echo(json_line(row))
        return
    numeric = [i for i, f in enumerate(rows.schema) if pa.types.is_integer(f.type) or pa.types.is_floating(f.type)]
    names = rows.column_names
    echo_table(names, [[text_of(value) for value in row] for row in value_rows(rows)], right=numeric)
    typer.echo(f"({rows.num_rows:,} {'row' if rows.num_rows == 1 else 'rows'})")


def echo_table(headings: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> None:
    """Write a table: drawn on a terminal, aligned elsewhere."""
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
