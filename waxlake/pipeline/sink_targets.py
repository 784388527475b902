"""Where sinks lead: what was set about each, and how a run makes an output of it. Called by ``create_sink`` and the compiler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
from pydantic import Field, field_validator

from sinks.batches import FunctionHandoff, Handoff
from waxlake.pipeline.definitions import SinkTarget
from waxlake.pipeline.graph import resolve_path
from waxlake.stream.batch import BatchInfo
from waxlake.stream.delta_table import TableLocation, arrow_schema
from waxlake.stream.errors import SchemaError, UsageError
from waxlake.stream.schema import compare_schemas, delta_schema
from waxlake.stream.settings import Settings, StorageOptions, nearest

if TYPE_CHECKING:
    from sinks.kafka import KafkaSinkSettings
    from waxlake.pipeline.spec import Spec

__all__ = ["FORMATS", "DeltaTarget", "FunctionTarget", "KafkaTarget", "sink_target"]

FORMATS = ("kafka", "delta")


def sink_target(name: str, format: str, options: Mapping[str, Any] | None) -> SinkTarget:
    """Return what ``create_sink`` describes.

    Raises:
        UsageError: An unknown format or option, a value out of bounds. Not retryable.
    """
    what = f"create_sink({name!r}, {format!r})"
    if not isinstance(options or {}, Mapping):
        raise UsageError(f"{what}: options are a mapping", code="OPTION_INVALID", found=type(options).__name__)
    if format == "kafka":
        from sinks.kafka import KafkaSinkSettings
        from sinks.kafka.settings import kafka_values

        return KafkaTarget(KafkaSinkSettings.build(what, kafka_values(options or {})))
    if format == "delta":
        return DeltaTarget(DeltaSinkSettings.build(what, options or {}))
    raise UsageError(
        f"{what}: unknown format",
        code="SINK_FORMAT_UNKNOWN",
        expected=", ".join(FORMATS),
        remedy=f"{nearest(str(format), FORMATS)} Anything else is a function: @wl.foreach_batch_sink",
    )


@dataclass(frozen=True, slots=True)
class KafkaTarget:
    """A Kafka topic."""

    settings: KafkaSinkSettings
    has_ledger: bool = True

    @property
    def label(self) -> str:
        """What users call it."""
        return self.settings.label

    @property
    def on_full_refresh(self) -> str:
        """``refuse``, ``resend`` or ``skip``."""
        return self.settings.on_full_refresh

    def location(self, spec: Spec, name: str) -> TableLocation:
        """Return the ledger."""
        return spec.sink_location(name)

    def check(self, name: str, schema: pa.Schema) -> None:
        """Try every expression on no rows."""
        from sinks.kafka.messages import RecordMaker

        RecordMaker(self.settings, schema).close()

    def handoff(self, name: str) -> Handoff:
        """Return the Kafka side."""
        from sinks.kafka import KafkaHandoff

        return KafkaHandoff(name, self.settings)

    def flush_limits(self) -> dict[str, int]:
        """Return the limits of a batch."""
        return {"max_rows": self.settings.max_rows_per_batch, "max_bytes": self.settings.max_bytes_per_batch}


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionTarget:
    """A function that takes batches."""

    function: Callable[[pa.Table, BatchInfo], object]
    where: str
    on_full_refresh: str = "refuse"
    max_rows_per_batch: int = 500_000
    max_bytes_per_batch: int = 64 << 20
    has_ledger: bool = True

    @property
    def label(self) -> str:
        """What users call it."""
        return f"function:{getattr(self.function, '__name__', 'function')}"

    def location(self, spec: Spec, name: str) -> TableLocation:
        """Return the ledger."""
        return spec.sink_location(name)

    def check(self, name: str, schema: pa.Schema) -> None:
        """Any rows will do."""

    def handoff(self, name: str) -> Handoff:
        """Return what calls the function."""
        return FunctionHandoff(name, self.function, self.where)

    def flush_limits(self) -> dict[str, int]:
        """Return the limits of a batch."""
        return {"max_rows": self.max_rows_per_batch, "max_bytes": self.max_bytes_per_batch}


class DeltaSinkSettings(Settings):
    """Settings of a sink to a Delta table anywhere."""

    path: str = Field(min_length=1, description="Path or URI of the table; it is created if it is not there")
    mode: Literal["append"] = Field(default="append", description="Rows are appended")
    merge_schema: bool = Field(default=False, description="Add the columns that the table lacks; else they are refused")
    storage_options: Mapping[str, str] | None = Field(
        default=None, description="Options of the table's store, as delta-rs names them; those of the spec if left out"
    )
    on_full_refresh: Literal["refuse", "resend", "skip"] = Field(
        default="refuse",
        description="What a full refresh of the sink, or of a table that it streams from, does: is refused, appends everything "
        "again, or appends only what comes after it",
    )

    @field_validator("storage_options")
    @classmethod
    def _hidden(cls, value: Mapping[str, str] | None) -> Mapping[str, str] | None:
        return None if value is None else StorageOptions(value)


@dataclass(frozen=True, slots=True)
class DeltaTarget:
    """A Delta table anywhere, which other writers may append to as well; it holds the positions itself."""

    settings: DeltaSinkSettings
    has_ledger: bool = False

    @property
    def label(self) -> str:
        """What users call it."""
        return f"delta:{self.settings.path}"

    @property
    def on_full_refresh(self) -> str:
        """``refuse``, ``resend`` or ``skip``."""
        return self.settings.on_full_refresh

    def location(self, spec: Spec, name: str) -> TableLocation:
        """Return the table."""
        given = self.settings.storage_options
        options = spec.storage_options if given is None else StorageOptions(given)
        return TableLocation(resolve_path(spec, self.settings.path).rstrip("/"), options, name)

    def check(self, name: str, schema: pa.Schema) -> None:
        """Refuse what only the table itself can tell, when it is looked at (``check_stored``)."""

    def check_stored(self, location: TableLocation, schema: pa.Schema) -> None:
        """Refuse columns that a table that is there lacks.

        Raises:
            SchemaError: Not retryable.
        """
        if self.settings.merge_schema or not location.exists():
            return
        stored = arrow_schema(location.open())
        change = compare_schemas(stored, delta_schema(schema))
        if change.added or change.grown:
            raise SchemaError(
                f"sink '{location.label}' has columns that its table lacks",
                code="SINK_COLUMNS_UNKNOWN",
                found=", ".join([*(f.name for f in change.added), *map(str, change.grown)]),
                expected=", ".join(stored.names),
                remedy="Leave them out, or set merge_schema=True in the sink's options to add them to the table",
            )

    def handoff(self, name: str) -> Handoff:
        """There is none: rows are appended."""
        raise AssertionError("a Delta sink hands nothing over")

    def flush_limits(self) -> dict[str, int]:
        """Return nothing: those of a table."""
        return {}
