"""What the state of a table's flows is: for ``waxlake state``. Reads the table's log and the files beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

import pyarrow as pa

from waxlake.pipeline.graph import Graph
from waxlake.stream.delta_table import TableLocation, stored_position
from waxlake.stream.errors import UsageError
from waxlake.stream.settings import nearest

__all__ = ["FlowState", "table_state"]

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowState:
    """The state of one flow at the table's last commit.

    Attributes:
        flow: Its name.
        operator: What its state depends on.
        watermark: Where event time is, or None.
        partitions: ``source/partition`` to the highest event time seen there.
        tables: Name of a table of the state to its rows and segments.
        rows: Name of a table of the state to some of its rows, if asked for.
    """

    flow: str
    operator: Mapping[str, Any]
    watermark: str | None
    partitions: Mapping[str, str | None]
    tables: Mapping[str, Mapping[str, int]]
    rows: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)


def table_state(graph: Graph, name: str, *, limit: int = 0) -> list[FlowState]:
    """Return the state of each flow of a table that has one.

    Args:
        graph: The pipeline.
        name: A table of it.
        limit: Rows of each table of the state to return.

    Raises:
        UsageError: No such table. Not retryable.
        TerminalError: A file of the state is gone. Not retryable.
    """
    from sinks.state.store import read_manifest, state_app_id

    dataset = graph.datasets.get(name)
    if dataset is None or dataset.location is None:
        raise UsageError(f"no table '{name}'", code="UNKNOWN_DATASET", remedy=nearest(name, graph.datasets))
    if not dataset.location.exists():
        return []
    handle = dataset.location.open()
    found = []
    for flow in dataset.flows:
        number = stored_position(handle, state_app_id(flow.name))
        if number is None:
            continue
        said = read_manifest(dataset.location, flow.name, number)
        rows = _rows(dataset.location, flow.name, number, said, limit) if limit else {}
        meta = said["meta"]
        found.append(
            FlowState(
                flow=flow.name,
                operator=said["shape"],
                watermark=_time(meta.get("watermark")),
                partitions={f"{p['source']}/{p['partition']}": _time(p["high"]) for p in meta.get("partitions", ())},
                tables={
                    table: {"rows": held["rows"], "segments": len(held["puts"]) + len(held["removals"])}
                    for table, held in said["tables"].items()
                },
                rows=rows,
            )
        )
    return found


def _rows(
    location: TableLocation, flow: str, number: int, said: Mapping[str, Any], limit: int
) -> dict[str, list[dict[str, Any]]]:
    import pyarrow.parquet as pq

    from sinks.state.store import EXPIRES, ID, StateStore
    from waxlake.stream.delta_table import delta_errors

    schemas = {}
    for table, held in said["tables"].items():
        if held["puts"]:
            with (
                delta_errors(f"read the state of table '{location.label}'"),
                location.filesystem().open_input_file(held["puts"][0]["path"]) as stream,
            ):
                columns = pq.read_schema(stream)
            schemas[table] = pa.schema([item for item in columns if item.name not in (ID, EXPIRES)])
    kept = {"tables": {table: held for table, held in said["tables"].items() if table in schemas}}
    lags = {table: held.get("lag_us", 0) for table, held in said["tables"].items()}
    store = StateStore(location, flow, schemas, said["shape"], lags)
    try:
        store.load(number, {**said, **kept})
        found = {}
        for table, held_table in store.tables.items():
            query = f"SELECT {held_table.columns} FROM {held_table.sql_name} ORDER BY {ID} LIMIT {limit}"
            found[table] = store.session.sql(query).to_arrow_table().to_pylist()
        return found
    finally:
        store.close()


def _time(micros: int | None) -> str | None:
    if micros is None:
        return None
    return (_EPOCH + timedelta(microseconds=micros)).isoformat().replace("+00:00", "Z")
