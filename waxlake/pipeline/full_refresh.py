"""Fill tables anew from what their sources hold now, and put them in the place of the old ones all together.

The new tables (shadows) are filled by an update of their own, each in a folder inside the old one's; nobody sees them. Then
a manifest is written that names them, and one after the other takes its place. Where a crash can fall, and what the next
run does:

1. while the shadows are filled: every table is as it was; the leftovers are deleted by the next full refresh.
2. after the manifest is written, before or between the replacements: whatever runs next finishes them first. So the
   manifest decides: without it the old tables hold, with it the new ones.
3. after the last replacement, before the manifest is deleted: each table knows that the refresh is in it.

Views are not filled beside: their positions are forgotten, and the update that follows recomputes them in one commit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import unquote

import pyarrow.fs as pa_fs

from sinks.cdc.state import STATE_APP_ID, adopt_events
from sinks.delta.files import stored_paths
from sinks.delta.protocol import Committer, new_run_number
from sinks.delta.swap import positions_of, swap_in
from sinks.state.store import state_app_id
from waxlake.pipeline.check import check_graph
from waxlake.pipeline.checked import CheckedGraph
from waxlake.pipeline.commits import FILLED, filled_flows
from waxlake.pipeline.definitions import TableRead
from waxlake.pipeline.graph import QUARANTINE_SUFFIX, Graph
from waxlake.pipeline.plan import sources_read
from waxlake.pipeline.sink_refresh import forgotten_batches, settle_sinks
from waxlake.pipeline.spec import Spec
from waxlake.stream.delta_table import FORGOTTEN, TableLocation, delta_errors, stored_position
from waxlake.stream.errors import DefinitionError, TerminalError
from waxlake.stream.failpoints import failpoint
from waxlake.stream.position import RowPosition, app_id, identity_version, once_app_id, sources_app_id

__all__ = ["decide", "finish_full_refreshes", "first_position", "forget_positions", "refresh_in_full"]

_FOLDER: Final = "refresh-"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """A table, the one that takes its place, and the flows that feed it."""

    dataset: str
    table: TableLocation
    shadow: TableLocation
    flows: tuple[str, ...]


def refresh_in_full(
    graph: Graph,
    names: Sequence[str],
    fill: Callable[[Callable[[], CheckedGraph]], str | None],
    *,
    is_forced: bool = False,
) -> None:
    """Fill tables anew and replace the old ones by them.

    Args:
        graph: The pipeline.
        names: Streaming tables, upstream first.
        fill: Runs one bounded update of the pipeline that its argument returns, and returns the update's identity; None if
            it was asked to stop.
        is_forced: Do it although a source no longer holds what a table was filled from.

    Raises:
        DefinitionError: ``REFRESH_BREAKS_DOWNSTREAM``: a table that streams from one of them is left out. Not retryable.
        TerminalError: ``REFRESH_LOSES_ROWS``: a source no longer holds what would be deleted. Not retryable.
        WaxlakeError: What stopped the filling; the old tables hold.
    """
    _require_downstream(graph, names)
    key = str(new_run_number())
    shadows = _with_shadows(graph, names, key)
    if not is_forced:
        _require_sources(graph, check_graph(shadows), names)
    _delete_leftovers(graph, names)

    def check() -> CheckedGraph:
        checked = check_graph(shadows)
        checked.selected, checked.is_shadow = frozenset(names), True
        return checked

    update_id = fill(check)
    if update_id is None:
        return
    failpoint("refresh-filled")
    decide(graph.spec, key, {"update": update_id, "tables": list(names), "folder": _FOLDER + key})
    failpoint("refresh-decided")
    finish_full_refreshes(graph)


def finish_full_refreshes(graph: Graph) -> None:
    """Put in place what a full refresh has decided to; called before anything else reads a position.

    Raises:
        CommitConflict: A newer run writes one of the tables. Not retryable.
    """
    store = _manifests(graph.spec)
    with delta_errors("look for full refreshes"):
        found = store.get_file_info(pa_fs.FileSelector("", allow_not_found=True))
    for info in sorted(found, key=lambda info: str(info.path)):
        manifest = _read_manifest(store, info.path)
        if manifest is not None and "rewind" in manifest:
            from waxlake.pipeline.rewind import finish_rewind

            finish_rewind(graph, str(info.base_name).removesuffix(".json"), manifest["rewind"])
        elif manifest is not None:
            _finish(graph, str(info.base_name).removesuffix(".json"), manifest)
        with delta_errors("end a full refresh"):
            store.delete_file(info.path)


def forget_positions(checked: CheckedGraph, names: Sequence[str], run_number: int) -> None:
    """Let tables forget how far their sources were read: the next update reads them from where a new flow begins.

    Raises:
        CommitConflict: A newer run writes one of the tables. Not retryable.
    """
    for name in names:
        location = checked.graph.datasets[name].location
        if location is None or not location.exists():
            continue
        handle = location.open()
        apps = [state_app_id(flow.name) for flow in checked.graph.datasets[name].flows]
        identities = {app: FORGOTTEN for app in apps if stored_position(handle, app) is not None}
        for part in checked.flows:
            if part.flow.target != name:
                continue
            state = part.connector.inspect()
            apps = [app_id(part.flow.name, state.identity, p) for p in state.partitions if part.takes(p)]
            apps.append(once_app_id(part.flow.name, part.connector.name))
            identities |= {app: FORGOTTEN for app in apps if stored_position(handle, app) is not None}
            if handle.transaction_version(sources_app_id(part.flow.name)) is not None:
                identities |= sources_read(checked, part.flow.name, state)
        dataset = checked.graph.datasets[name]
        identities |= forgotten_batches(dataset)
        if identities:
            committer = Committer(location, f"reset-{run_number}", run_number, dataset.fence_app)
            committer.commit([], {}, identities=identities)


def _require_downstream(graph: Graph, names: Sequence[str]) -> None:
    for dataset in graph.datasets.values():
        for flow in dataset.flows:
            broken = [name for name in flow.inputs if _owner(graph, name) in names]
            if dataset.kind == "table" and dataset.name not in names and broken:
                raise DefinitionError(
                    f"a full refresh of '{broken[0]}' needs one of '{dataset.name}'",
                    where=flow.where,
                    code="REFRESH_BREAKS_DOWNSTREAM",
                    found=f"flow '{flow.name}' streams from it and would not know which rows are new",
                    remedy=f"Name both: --full-refresh {broken[0]},{dataset.name}",
                )


def _owner(graph: Graph, name: str) -> str:
    return graph.datasets[name].definition.name if name in graph.datasets else name


def _require_sources(graph: Graph, checked: CheckedGraph, names: Sequence[str]) -> None:
    """Stop where a source begins later than the table did: a full refresh would lose the rows before."""
    for part in checked.flows:
        dataset = graph.datasets[part.flow.target]
        if dataset.name not in names or dataset.location is None or not dataset.location.exists():
            continue
        if isinstance(part.read, TableRead):
            continue
        state = part.connector.inspect()
        handle = dataset.location.open()
        for partition, held in state.partitions.items():
            stored = stored_position(handle, app_id(part.flow.name, state.identity, partition))
            begin = max(held.low, state.begin.get(partition, held.low))
            if stored is None or begin == 0 or not part.takes(partition):
                continue
            first = first_position(dataset.location, part.flow.name, state.identity, partition)
            if first is None or first < begin:
                raise TerminalError(
                    f"a full refresh of '{dataset.name}' would lose rows",
                    code="REFRESH_LOSES_ROWS",
                    found=f"{state.name} partition {partition} begins at position {begin} now",
                    expected=f"position {first if first is not None else 0}, where the table began",
                    remedy="Leave the table out, or add --force to fill it from what there is",
                )


def first_position(location: TableLocation, flow: str, source: str, partition: str) -> int | None:
    """Return where the table began to read a source, by its first commit that tells; None if the log was cleaned."""
    if location.read_log(0) is None:
        return None
    for version in range(location.open().version() + 1):
        for action in location.read_log(version) or ():
            facts = (action.get("commitInfo") or {}).get("waxlake")
            facts = json.loads(facts) if isinstance(facts, str) else facts or {}
            for moved in (facts.get("flows") or {}).get(flow, {}).get("sources", ()):
                if (moved["source"], moved["partition"]) == (source, partition):
                    return int(moved["start"])
    return None


def _with_shadows(graph: Graph, names: Sequence[str], key: str) -> Graph:
    """Return the graph with each table, and its quarantine table, in a folder inside the old one."""

    def moved(location: TableLocation | None) -> TableLocation | None:
        return None if location is None else replace(location, uri=f"{location.uri}/{_FOLDER}{key}")

    datasets = {
        name: replace(dataset, location=moved(dataset.location), quarantine=moved(dataset.quarantine))
        if dataset.definition.name in names
        else dataset
        for name, dataset in graph.datasets.items()
    }
    return replace(graph, datasets=datasets)


def _finish(graph: Graph, key: str, manifest: Mapping[str, Any]) -> None:
    """Replace every table of a manifest that is not replaced yet, upstream first."""
    run_number = new_run_number()
    pairs = [pair for name in manifest["tables"] for pair in _pairs(graph, name, manifest["folder"])]
    swap = _Swap(pairs)
    for pair in pairs:
        facts = {"run": manifest["update"], "full_refresh": key, FILLED: swap.flows(pair)}
        positions = swap.positions(pair)
        adopt_events(pair.table, pair.shadow)
        swap.versions[pair.dataset] = swap_in(
            pair.table, pair.shadow, refresh=key, run_number=run_number, positions=positions, facts=facts
        )
    settle_sinks(graph, swap.versions)


def _pairs(graph: Graph, name: str, folder: str) -> list[_Pair]:
    """Return a table and its quarantine table with their shadows; nothing for one that is no longer defined."""
    dataset = graph.datasets.get(name)
    if dataset is None:
        return []
    flows = tuple(flow.name for flow in dataset.flows)
    places = [(name, dataset.location, flows), (name + QUARANTINE_SUFFIX, dataset.quarantine, ())]
    found = [
        _Pair(dataset=label, table=table, shadow=replace(table, uri=f"{table.uri}/{folder}"), flows=names)
        for label, table, names in places
        if table is not None
    ]
    return [pair for pair in found if pair.shadow.exists()]


class _Swap:
    """What the tables of one refresh hold of each other.

    A shadow has read all of the shadows that it streams from. So, in their tables, its position in such a source is the one
    after the version that replaced that table.
    """

    def __init__(self, pairs: Sequence[_Pair]) -> None:
        self._by_identity = {f"delta:{pair.shadow.open().metadata().id}": pair for pair in pairs}
        names = ("delta", "changes", "snapshots")
        self._by_name = {f"{name}:{pair.table.label}": pair for pair in pairs for name in names}
        self.versions: dict[str, int] = {}

    def flows(self, pair: _Pair) -> dict[str, Any]:
        """Return what the commits of a shadow say; not where it read other shadows, whose versions nobody knows."""
        return filled_flows(pair.shadow, without=self._by_identity)

    def positions(self, pair: _Pair) -> dict[str, int]:
        """Return the app ids that go into a table's place with its shadow."""
        kept: dict[str, int] = {}
        for app, version in positions_of(pair.shadow).items():
            parts = [unquote(part) for part in app.split("/")]
            if app == STATE_APP_ID:
                kept[app] = version
                continue
            if parts[0] != "waxlake" or len(parts) < 3 or parts[1] not in pair.flows:
                continue
            flow, source, partition = parts[1], parts[2], parts[-1]
            if partition == "identity" and source in self._by_name:
                kept[app] = identity_version(_identity(self._by_name[source]))
            elif source in self._by_identity:
                upstream = self._by_identity[source]
                position = RowPosition(self.versions[upstream.dataset] + 1).pack()
                kept[app_id(flow, _identity(upstream), partition)] = position
            else:
                kept[app] = version
        return kept


def _identity(pair: _Pair) -> str:
    return f"delta:{pair.table.open().metadata().id}"


def _delete_leftovers(graph: Graph, names: Sequence[str]) -> None:
    """Delete what a full refresh that was cut short has left; files that the table's log names are kept."""
    for name in names:
        for location in (graph.datasets[name].location, graph.datasets[name].quarantine):
            if location is None or not location.exists():
                continue
            store = location.filesystem()
            in_use = {str(path).split("/")[0] for path in stored_paths(location.open())}
            with delta_errors(f"look for leftovers in table '{location.label}'"):
                for info in store.get_file_info(pa_fs.FileSelector("", allow_not_found=True)):
                    folder = str(info.base_name)
                    if folder.startswith(_FOLDER) and folder not in in_use:
                        store.delete_dir(info.path)


def _manifests(spec: Spec) -> pa_fs.FileSystem:
    return spec.refresh_location().filesystem()


def decide(spec: Spec, key: str, manifest: Mapping[str, Any]) -> None:
    """Write the manifest that decides a full refresh or a rewind: whatever runs next finishes it."""
    if spec.refresh_location().is_local:
        spec.refresh_location().local_path.mkdir(parents=True, exist_ok=True)
    _write_manifest(_manifests(spec), key, manifest)


def _write_manifest(store: pa_fs.FileSystem, key: str, manifest: Mapping[str, Any]) -> None:
    """Write the manifest so that it is there whole or not at all."""
    with delta_errors("decide a full refresh"):
        # buffered: a store's stream takes the bytes of a buffer, not the object that Arrow would hand it
        with store.open_output_stream(f"{key}.tmp", buffer_size=1 << 16) as stream:
            stream.write(json.dumps(manifest).encode())
        store.move(f"{key}.tmp", f"{key}.json")


def _read_manifest(store: pa_fs.FileSystem, path: str) -> dict[str, Any] | None:
    """Return a manifest; None for one that was never decided."""
    if not path.endswith(".json"):
        return None
    with delta_errors("read a full refresh"), store.open_input_stream(path) as stream:
        manifest: dict[str, Any] = json.loads(stream.read())
    return manifest
