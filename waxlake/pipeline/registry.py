"""What collects the definitions of a pipeline while its files are loaded, and what decorators note on a user's function.

Anywhere else a definitions file is just a Python module: there is no registry, and nothing is collected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from waxlake.pipeline.definitions import DatasetDefinition, EventHook, Expectation, FlowDefinition
from waxlake.stream.errors import DefinitionError

if TYPE_CHECKING:
    from waxlake.pipeline.spec import Spec

__all__ = [
    "Registry",
    "add_expectations",
    "current_registry",
    "definition_of",
    "register_dataset",
    "register_flow",
    "registering",
    "registry_dialect",
    "registry_spec",
]


_ATTRIBUTE = "__waxlake__"


@dataclass(slots=True)
class _Draft:
    """What the decorators of one function said so far; expectations may come before or after the dataset."""

    function: Callable[..., Any]
    dataset: DatasetDefinition | None = None
    expectations: list[Expectation] = field(default_factory=list)


@dataclass(slots=True)
class Registry:
    """Collects the definitions of one pipeline while its files are imported.

    Attributes:
        configuration: Values that ``conf`` returns.
        dialect: Dialect of the SQL text in the definitions.
        spec: The pipeline's spec.
        event_hooks: Functions that are told of every event.
    """

    configuration: Mapping[str, str] = field(default_factory=dict)
    dialect: str = "duckdb"
    spec: Spec | None = None
    event_hooks: list[EventHook] = field(default_factory=list)
    _drafts: list[_Draft] = field(default_factory=list)
    _ruled: list[_Draft] = field(default_factory=list)
    _datasets: list[DatasetDefinition] = field(default_factory=list)
    _flows: list[FlowDefinition] = field(default_factory=list)

    def datasets(self) -> list[DatasetDefinition]:
        """Return every dataset defined so far, with its expectations."""
        return [*(_finished(d) for d in self._drafts if d.dataset is not None), *self._datasets]

    def refuse_lost_rules(self) -> None:
        """Refuse rules on a function that is no dataset: nobody would apply them. Called when all files are imported.

        Raises:
            DefinitionError: ``EXPECTATION_WITHOUT_DATASET``. Not retryable.
        """
        for draft in self._ruled:
            if draft.dataset is None:
                rule = draft.expectations[0]
                raise DefinitionError(
                    f"expectation '{rule.name}' is on function {draft.function.__name__!r}, which is no dataset",
                    where=rule.where,
                    code="EXPECTATION_WITHOUT_DATASET",
                    remedy="Put it on the table that a flow feeds (expect_all= of wl.create_streaming_table), "
                    "or decorate the function with @wl.table",
                )

    def add_dataset(self, definition: DatasetDefinition) -> None:
        """Take a dataset that no decorated function stands for."""
        self._datasets.append(definition)

    def add_flow(self, definition: FlowDefinition) -> None:
        """Take an extra flow."""
        self._flows.append(definition)

    def flows(self) -> list[FlowDefinition]:
        """Return every extra flow defined so far."""
        return list(self._flows)


_registry: ContextVar[Registry | None] = ContextVar("waxlake_registry", default=None)


@contextmanager
def registering(registry: Registry) -> Iterator[Registry]:
    """Let ``registry`` collect what is defined inside the block."""
    token = _registry.set(registry)
    try:
        yield registry
    finally:
        _registry.reset(token)


def registry_spec() -> Spec | None:
    """Return the spec of the pipeline that is being loaded, if there is one."""
    registry = _registry.get()
    return None if registry is None else registry.spec


def registry_dialect() -> str:
    """Return the dialect of the SQL of the pipeline that is being loaded."""
    registry = _registry.get()
    return "duckdb" if registry is None else registry.dialect


def definition_of(function: Callable[..., Any]) -> DatasetDefinition | None:
    """Return the definition attached to a function, or None if it has none."""
    draft = getattr(function, _ATTRIBUTE, None)
    return _finished(draft) if draft is not None and draft.dataset is not None else None


def _finished(draft: _Draft) -> DatasetDefinition:
    assert draft.dataset is not None
    return replace(draft.dataset, expectations=tuple(draft.expectations))


def _draft_of(function: Callable[..., Any]) -> _Draft:
    draft = getattr(function, _ATTRIBUTE, None)
    if draft is None:
        draft = _Draft(function)
        setattr(function, _ATTRIBUTE, draft)
    return draft


def add_expectations(function: Callable[..., Any], rules: Sequence[Expectation]) -> None:
    """Note rules on a function, before those it has: decorators apply from the bottom up, users read from the top down."""
    draft = _draft_of(function)
    draft.expectations[:0] = rules
    registry = _registry.get()
    if registry is not None:
        registry._ruled.append(draft)


def register_dataset(function: Callable[..., Any], definition: DatasetDefinition) -> None:
    """Attach a dataset to a function, for the pipeline that is being loaded, if any; decorators may add rules to it.

    Raises:
        DefinitionError: The function defines another. Not retryable.
    """
    draft = _draft_of(function)
    if draft.dataset is not None:
        raise DefinitionError(
            f"function {function.__name__!r} already defines {draft.dataset.name!r}",
            where=definition.where,
            code="DUPLICATE_DECORATOR",
        )
    draft.dataset = definition
    registry = _registry.get()
    if registry is not None:
        registry._drafts.append(draft)


def current_registry() -> Registry | None:
    """Return what collects definitions now, if a pipeline is being loaded."""
    return _registry.get()


def register_flow(definition: FlowDefinition) -> None:
    """Let the pipeline that is being loaded, if any, have an extra flow."""
    registry = _registry.get()
    if registry is not None:
        registry.add_flow(definition)
