"""Which tables an update takes, and what it does to them besides: all of them, some, some of them anew."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from waxlake.pipeline.graph import Graph
from waxlake.stream.errors import UsageError
from waxlake.stream.settings import nearest

__all__ = ["RESET_ALLOWED", "Selection", "is_stored"]

RESET_ALLOWED = "pipelines.reset.allowed"
"""Table property; ``false`` protects a table from a full refresh."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What was asked of an update.

    Attributes:
        refresh: Tables to bring up to date; others are left as they are.
        full_refresh: Tables to fill anew from what their sources hold now.
        reset_checkpoint: Tables whose positions are forgotten; their rows stay.
        is_full: Fill every table anew.
        is_failed: Bring up to date what failed or was skipped in the last update.
        is_forced: Fill anew even where a source no longer holds what the table was filled from.
    """

    refresh: tuple[str, ...] = ()
    full_refresh: tuple[str, ...] = ()
    reset_checkpoint: tuple[str, ...] = ()
    is_full: bool = False
    is_forced: bool = False
    is_failed: bool = False

    def __post_init__(self) -> None:
        if self.is_full and (self.refresh or self.full_refresh or self.reset_checkpoint):
            raise UsageError(
                "--full-refresh-all goes alone",
                code="REFRESH_OPTIONS_CONFLICT",
                expected="either --full-refresh-all, or tables by name",
            )
        if self.is_failed and (self.is_full or self.names):
            raise UsageError(
                "--refresh-failed goes alone",
                code="REFRESH_OPTIONS_CONFLICT",
                expected="either --refresh-failed, or tables by name",
            )
        twice = sorted(set(self.full_refresh) & set(self.reset_checkpoint))
        if twice:
            raise UsageError(
                f"table '{twice[0]}' is in --full-refresh and in --reset-checkpoint",
                code="REFRESH_OPTIONS_CONFLICT",
                remedy="A full refresh forgets the positions too",
            )

    @property
    def is_everything(self) -> bool:
        """Whether every table is brought up to date."""
        return not (self.refresh or self.full_refresh or self.reset_checkpoint)

    @property
    def names(self) -> tuple[str, ...]:
        """The tables to bring up to date; none for all."""
        return tuple(dict.fromkeys((*self.refresh, *self.full_refresh, *self.reset_checkpoint)))

    def tables(self, graph: Graph) -> frozenset[str] | None:
        """Return the tables to bring up to date; None for all.

        Raises:
            UsageError: A name that is no stored table of the pipeline. Not retryable.
        """
        for option, names in (
            ("--refresh", self.refresh),
            ("--full-refresh", self.full_refresh),
            ("--reset-checkpoint", self.reset_checkpoint),
        ):
            _require_tables(graph, option, names)
        if self.is_everything:
            return None
        return frozenset(self.names)

    def anew(self, graph: Graph) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the tables to fill anew, upstream first, and those that ``--full-refresh-all`` leaves alone.

        Raises:
            UsageError: ``RESET_NOT_ALLOWED``: a table that was named is protected. Not retryable.
        """
        wanted = [
            name for name in graph.order if name in self.full_refresh or (self.is_full and is_stored(graph, name))
        ]
        kept = [name for name in wanted if not _may_reset(graph, name)]
        if kept and not self.is_full:
            raise UsageError(
                f"table '{kept[0]}' is protected from a full refresh",
                code="RESET_NOT_ALLOWED",
                found=f"table property {RESET_ALLOWED} = false",
                remedy="Leave it out, or take the property away",
            )
        return tuple(name for name in wanted if name not in kept), tuple(kept)


def is_stored(graph: Graph, name: str) -> bool:
    """Return whether an update brings a dataset up to date by itself; quarantine tables go with theirs."""
    return graph.datasets[name].kind in ("table", "materialized_view", "sink")


def _may_reset(graph: Graph, name: str) -> bool:
    properties = graph.datasets[name].definition.properties
    return str(properties.get(RESET_ALLOWED, "true")).lower() != "false"


def _require_tables(graph: Graph, option: str, names: Collection[str]) -> None:
    stored = [name for name in graph.datasets if is_stored(graph, name)]
    for name in names:
        if name in stored:
            continue
        found = graph.datasets.get(name)
        kind = "no dataset of that name" if found is None else f"a {found.kind.replace('_', ' ')}"
        raise UsageError(
            f"{option}: '{name}' cannot be refreshed",
            code="UNKNOWN_DATASET",
            found=kind,
            expected="a table or materialized view of this pipeline",
            remedy=nearest(name, stored),
        )
