"""What a full refresh means for sinks: nobody can take back what was sent, so each sink says what it wants.

``refuse`` (the default): neither it nor a table that it streams from is refreshed in full. ``resend``: it forgets its positions
and sends everything again, in new batches. ``skip``: it goes on behind the version that replaced the table it streams from.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from sinks.batches import Delivery
from sinks.delta.protocol import Committer, new_run_number
from waxlake.pipeline.graph import Dataset, Graph
from waxlake.stream.delta_table import FORGOTTEN, stored_position
from waxlake.stream.errors import DefinitionError
from waxlake.stream.position import RowPosition, app_id

__all__ = ["forgotten_batches", "refuse_refresh", "settle_sinks", "sinks_that_resend"]


def refuse_refresh(graph: Graph, names: Collection[str]) -> None:
    """Stop where a full refresh touches a sink that did not say what it means for it.

    Args:
        graph: The pipeline.
        names: Datasets that are to be refreshed in full.

    Raises:
        DefinitionError: ``SINK_REFRESH_REFUSED``. Not retryable.
    """
    for dataset, target in _sinks(graph):
        upstream = [name for flow in dataset.flows for name in flow.inputs if _table(graph, name) in names]
        if target != "refuse" or not (upstream or dataset.name in names):
            continue
        raise DefinitionError(
            f"a full refresh would send everything to sink '{dataset.name}' again",
            where=dataset.where,
            code="SINK_REFRESH_REFUSED",
            found=f"sink '{dataset.name}' itself" if not upstream else f"table '{upstream[0]}', which it streams from",
            expected="on_full_refresh='resend' or 'skip' in the sink's options",
            remedy="What was sent cannot be taken back. 'resend' sends all rows again, 'skip' only those that come after it",
        )


def sinks_that_resend(graph: Graph, names: Collection[str]) -> list[str]:
    """Return the sinks among ``names`` that send everything again."""
    return [dataset.name for dataset, target in _sinks(graph) if dataset.name in names and target == "resend"]


def settle_sinks(graph: Graph, versions: Mapping[str, int]) -> None:
    """Let sinks that stream from tables that were just replaced know it. Idempotent, until a sink reads on.

    Args:
        graph: The pipeline.
        versions: Table, or quarantine table, to the version that replaced it.

    Raises:
        CommitConflict: A newer run writes one of the sinks. Not retryable.
    """
    for dataset, target in _sinks(graph):
        if dataset.location is None or not dataset.location.exists():
            continue
        handle = dataset.location.open()
        moved: dict[str, int] = {}
        for flow in dataset.flows:
            for name in flow.inputs:
                location = graph.datasets[name].location if name in versions else None
                if location is None:
                    continue
                app = app_id(flow.name, f"delta:{location.open().metadata().id}", "log")
                if stored_position(handle, app) is not None:
                    moved[app] = FORGOTTEN if target == "resend" else RowPosition(versions[name] + 1).pack()
        if moved:
            number = new_run_number()
            Committer(dataset.location, f"refresh-{number}", number, dataset.fence_app).commit([], {}, identities=moved)


def forgotten_batches(dataset: Dataset) -> dict[str, int]:
    """Return the app ids to store when a sink forgets its positions: what was decided is not handed over any more."""
    if not dataset.has_ledger or dataset.location is None or dataset.definition.sink is None:
        return {}
    delivery = Delivery(dataset.location, dataset.definition.sink.handoff(dataset.name))
    return delivery.forget(Committer(dataset.location, "reset"))


def _sinks(graph: Graph) -> Iterator[tuple[Dataset, str]]:
    """Yield each sink and what a full refresh means for it."""
    for dataset in graph.datasets.values():
        if dataset.kind == "sink" and dataset.definition.sink is not None:
            yield dataset, dataset.definition.sink.on_full_refresh


def _table(graph: Graph, name: str) -> str:
    return graph.datasets[name].definition.name if name in graph.datasets else name
