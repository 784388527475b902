"""Whose a table is: each commit of a flow stores, as a ``txn``, which pipeline writes the table.

So two pipelines on one storage do not fill one table by accident: each would move positions the other does not know of, and
each would take the other's fence. A table without an owner, from before or made by hand, is taken by the first that writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import pyarrow.fs as pa_fs

from sinks.delta.protocol import Committer, new_run_number
from waxlake.stream.delta_table import TableLocation, delta_errors
from waxlake.stream.errors import DefinitionError, UsageError
from waxlake.stream.position import identity_version
from waxlake.stream.settings import nearest

if TYPE_CHECKING:
    from waxlake.pipeline.graph import Graph
    from waxlake.pipeline.spec import Spec

__all__ = ["adopt_tables", "owner_identity", "refuse_foreign_tables"]

_APP_ID: Final = "waxlake/owner"


def owner_identity(spec: Spec) -> dict[str, int]:
    """Return the app id that each commit of a pipeline's flows stores, and its value."""
    return {_APP_ID: identity_version(spec.name)}


def refuse_foreign_tables(graph: Graph) -> None:
    """Stop if a table of the graph belongs to another pipeline.

    Raises:
        DefinitionError: ``TABLE_OWNED``. Not retryable.
        ExternalError: A table cannot be read.
    """
    ours = identity_version(graph.spec.name)
    for dataset in graph.datasets.values():
        if dataset.location is None or dataset.kind == "quarantine" or not dataset.location.exists():
            continue
        if dataset.is_shared:
            continue
        owner = dataset.location.open().transaction_version(_APP_ID)
        if owner is not None and owner != ours:
            raise DefinitionError(
                f"table '{dataset.name}' belongs to another pipeline",
                where=dataset.where,
                code="TABLE_OWNED",
                found=f"{_owner_name(graph.spec, owner)}, which fills {dataset.location.uri}",
                expected=f"pipeline '{graph.spec.name}'",
                remedy="Rename the table, give it its own schema, or use another storage. If it has moved to this pipeline: "
                f"waxlake run --adopt {dataset.name}",
            )


def adopt_tables(graph: Graph, names: Sequence[str]) -> None:
    """Make tables this pipeline's: whoever wrote them before is stopped by the fence.

    Raises:
        UsageError: No such table. Not retryable.
        ExternalError: A table cannot be written.
    """
    for name in names:
        dataset = graph.datasets.get(name)
        if dataset is None or dataset.location is None or dataset.kind == "quarantine":
            stored = [n for n, d in graph.datasets.items() if d.location is not None and d.kind != "quarantine"]
            raise UsageError(f"--adopt: no table '{name}'", code="UNKNOWN_DATASET", remedy=nearest(name, stored))
        if dataset.location.exists():
            number = new_run_number()
            committer = Committer(dataset.location, f"adopt-{number}", number)
            committer.commit([], {}, identities=owner_identity(graph.spec))


def _owner_name(spec: Spec, owner: int) -> str:
    """Return the name of the pipeline behind a stored owner, if it has ever run on this storage."""
    folder = TableLocation(f"{spec.storage_uri}/updates", spec.storage_options, "updates")
    with delta_errors("look for the pipelines of this storage"):
        found = folder.filesystem().get_file_info(pa_fs.FileSelector("", allow_not_found=True))
    names = [str(info.base_name) for info in found if identity_version(str(info.base_name)) == owner]
    return f"pipeline '{names[0]}'" if names else "one of another name"
