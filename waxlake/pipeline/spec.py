"""The spec, `waxlake.yml`: found, read, checked. Everything that runs or inspects a pipeline starts from one."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from waxlake.pipeline.guard import guard_packages
from waxlake.pipeline.libraries import matching_files
from waxlake.pipeline.spec_file import find_spec_file, read_spec_file
from waxlake.stream.delta_table import TableLocation, is_remote, unusable_sign
from waxlake.stream.errors import UsageError
from waxlake.stream.settings import Settings, StorageOptions, nearest, parse_duration, redact

__all__ = ["Glob", "Library", "Notification", "SampleSettings", "Spec", "load_spec"]

_SCHEMES = ("abfs", "abfss", "adl", "az", "azure", "file", "gs", "s3", "s3a")
_NAME = re.compile(r"[A-Za-z0-9_]{1,128}")
_CONFIGURATION_KEY = re.compile(r"[A-Za-z0-9_.-]+")


def _time(value: Any) -> Any:
    span_s = parse_duration(value)
    if span_s == 0:
        raise ValueError("too short")
    return span_s


def _storage_options(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if not all(isinstance(item, str) for item in value.values()):
        raise ValueError("an option that is a map, a list or nothing")
    return StorageOptions(value)


class Glob(Settings):
    """Which definition files belong to the pipeline."""

    include: str = Field(min_length=1, description="a file, a folder ending in /**, or a glob pattern")


class Library(Settings):
    """One entry of `libraries`."""

    glob: Glob = Field(description="`glob: {include: flows/**}`")


class SampleSettings(Settings):
    """The entry `samples` of a spec. Columns whose name is that of a secret are always hidden."""

    rows: int = Field(default=3, ge=0, le=100, description="rows of each rule and update; 0 for none")
    bytes: int = Field(default=2000, ge=100, le=100_000, description="bytes of them together")
    redact: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default=(), description="a list of columns whose values are hidden"
    )


class Notification(Settings):
    """One entry of `notifications`: what is told, and to whom."""

    on: Annotated[tuple[Literal["update-success", "update-failure", "flow-failure"], ...], Field(strict=False)] = Field(
        min_length=1, description="a list of update-success, update-failure and flow-failure"
    )
    webhook: SecretStr | None = Field(default=None, description="a URL that takes a POST of JSON")
    command: Annotated[tuple[SecretStr, ...], Field(strict=False)] = Field(
        default=(), description="a list: a program and its arguments; it gets JSON on standard input"
    )
    timeout: Annotated[float, BeforeValidator(_time)] = Field(default=10.0, description="a time such as 10s")

    @model_validator(mode="after")
    def _check(self) -> Notification:
        if (self.webhook is None) == (not self.command):
            raise ValueError("one of webhook and command")
        if self.webhook is not None and not self.webhook.get_secret_value().startswith(("http://", "https://")):
            raise ValueError("webhook is no http or https URL")
        return self


class Spec(Settings):
    """A pipeline's spec. Frozen; its ``repr`` shows no secret.

    Times are in seconds, whatever unit the file used. ``trigger_interval``: how often a run commits; None leaves it to the
    run. ``give_up_after``: how long a triggered run tries again while a source is away; a continuous one never gives up.
    """

    model_config = ConfigDict(populate_by_name=True, strict=True)

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$", description="text of letters, digits, '_', '-' and '.'")
    storage: str = Field(min_length=1, description="a path such as ./lake, or a URI such as s3://bucket/prefix")
    schema_name: str = Field(
        default="default", alias="schema", pattern=r"^[A-Za-z0-9_]{1,128}$", description="letters, digits and '_'"
    )
    libraries: Annotated[tuple[Library, ...], Field(strict=False)] = Field(
        default=(Library(glob=Glob(include="flows/**")),),
        description="a list of entries such as `- glob: {include: flows/**}`",
    )
    configuration: dict[str, str] = Field(default_factory=dict, description="a map from name to text")
    mode: Literal["triggered", "continuous"] = Field(default="triggered", description="triggered or continuous")
    trigger_interval: Annotated[float | None, BeforeValidator(_time)] = Field(
        default=None,
        description="a time of at least 1 ms, such as 500ms, 5 seconds or 1 minute",
    )
    give_up_after: Annotated[float, BeforeValidator(_time)] = Field(
        default=60.0,
        description="a time such as 90s or 5 minutes",
    )
    lease_time: Annotated[float, BeforeValidator(_time)] = Field(
        default=30.0,
        description="a time such as 30s, after which an update elsewhere that shows no sign of life counts as dead",
    )
    retries: int = Field(
        default=0, ge=0, le=1000, description="how often an update is tried again after a failure that may pass"
    )
    retry_wait: Annotated[float, BeforeValidator(_time)] = Field(
        default=10.0, description="a time such as 10s, before the first retry; it doubles each time"
    )
    retry_max_wait: Annotated[float, BeforeValidator(_time)] = Field(default=300.0, description="a time such as 5m")
    notifications: Annotated[tuple[Notification, ...], Field(strict=False)] = Field(
        default=(), description="a list of entries such as `- {on: [update-failure], webhook: https://…}`"
    )
    storage_options: Annotated[StorageOptions, BeforeValidator(_storage_options)] = Field(
        default_factory=StorageOptions, description="a map from option (as delta-rs names it) to text"
    )
    samples: SampleSettings = Field(
        default_factory=SampleSettings, description="a map of rows, bytes and redact: samples of broken rules"
    )
    dialect: Literal["duckdb", "databricks"] = Field(
        default="duckdb", description="Dialect of SQL text; databricks is translated"
    )
    path: Path = Field(default=Path("waxlake.yml"), exclude=True, description="the file it was read from")

    @field_validator("configuration")
    @classmethod
    def _check_configuration(cls, value: dict[str, str]) -> dict[str, str]:
        for key in value:
            if not _CONFIGURATION_KEY.fullmatch(key):
                raise ValueError(f"key {key!r} holds other signs than letters, digits, '_', '.' and '-'")
        return value

    def __repr__(self) -> str:
        shown = {**self.model_dump(by_alias=True, exclude={"storage_options", "libraries", "notifications"})}
        shown["configuration"] = redact(self.configuration)
        return f"Spec({redact(shown)}, storage_options={self.storage_options!r})"

    __str__ = __repr__

    @property
    def folder(self) -> Path:
        """Folder of the spec file: relative paths in it start here."""
        return self.path.absolute().parent

    @property
    def storage_uri(self) -> str:
        """Where everything of the pipeline is stored: an absolute local path, or a URI without a slash at the end."""
        return self.resolve(self.storage).rstrip("/")

    def resolve(self, path: str) -> str:
        """Return a path or URI as the spec means it: a relative path starts at the spec's folder, a URI stays."""
        if is_remote(path):
            return path
        return os.path.normpath(self.folder / Path(path.removeprefix("file://")).expanduser())

    def table_location(self, name: str) -> TableLocation:
        """Return where a table lies: ``<storage>/tables/<schema>/<name>``.

        Args:
            name: ``table`` or ``schema.table``, of letters, digits and underscores.

        Raises:
            UsageError: The name has other signs. Not retryable.
        """
        return self._location(f"tables/{self._folder(name)}", name)

    def sink_location(self, name: str) -> TableLocation:
        """Return where the ledger of a sink lies: ``<storage>/sinks/<schema>/<name>``.

        Raises:
            UsageError: The name has other signs than a table's. Not retryable.
        """
        return self._location(f"sinks/{self._folder(name)}", name)

    def _folder(self, name: str) -> str:
        parts = name.split(".")
        if len(parts) > 2 or not all(_NAME.fullmatch(part) for part in parts):
            raise UsageError(
                "a table cannot have this name",
                code="NAME_INVALID",
                found=repr(name),
                expected="'table' or 'schema.table', of letters, digits and underscores, at most 128 each",
            )
        schema = parts[0] if len(parts) == 2 else self.schema_name
        return f"{schema}/{parts[-1]}"

    def events_location(self) -> TableLocation:
        """Return where the event log lies."""
        return self._location("events", "events")

    def quality_location(self) -> TableLocation:
        """Return where the quality table lies."""
        return self._location("quality", "quality")

    def ledger_location(self, key: str) -> TableLocation:
        """Return where the ledger of a file source lies. A key that is no plain name is replaced by a hash of it."""
        plain = key if _NAME.fullmatch(key) else hashlib.sha256(key.encode()).hexdigest()[:32]
        return self._location(f"ledgers/{plain}", f"ledger {key}")

    def refresh_location(self) -> TableLocation:
        """Return the folder of full refreshes that were decided and are not ended yet."""
        return self._location("refresh", "refresh")

    def updates_location(self) -> TableLocation:
        """Return where it is said which update of this pipeline runs; several pipelines may share the storage."""
        return self._location(f"updates/{self.name}", f"updates of {self.name}")

    def _location(self, place: str, name: str) -> TableLocation:
        return TableLocation(f"{self.storage_uri}/{place}", self.storage_options, name)

    def definition_files(self) -> tuple[Path, ...]:
        """Return the definition files that ``libraries`` names, absolute, sorted, each once.

        A deployment file (``main.py`` that defines ``flow``), ``__init__.py`` and caches are left out.

        Raises:
            UsageError: A pattern matches nothing, or a kind of file that is not available. Not retryable.
        """
        files: set[Path] = set()
        for pattern in [library.glob.include for library in self.libraries] or [""]:
            matched = list(matching_files(self.folder, pattern)) if pattern else []
            if not matched:
                raise UsageError(
                    f"{self.path}: no definition file matches {pattern!r}",
                    code="SPEC_NO_DEFINITIONS",
                    expected=f"at least one .py or .sql file with definitions, under {self.folder}",
                    remedy="Correct `libraries`, or add a file",
                )
            files.update(matched)
        return tuple(sorted(files))


def load_spec(
    path: str | Path | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    params: Mapping[str, str] | None = None,
) -> Spec:
    """Find, read and check a spec.

    Args:
        path: Spec file or its folder. None: ``WAXLAKE_SPEC``, else ``waxlake.yml`` or ``waxlake.yaml`` in the working
            directory, else in the nearest parent that has one.
        environ: Where ``WAXLAKE_SPEC`` and ``${env:NAME}`` are looked up.
        params: Values that take precedence over ``configuration``.

    Raises:
        UsageError: No spec, two of them, a syntax error, an unknown key, a wrong value. Not retryable; exit code 2.
    """
    guard_packages()
    file = find_spec_file(path, environ)
    values = read_spec_file(file, environ)
    _refuse_unknown_keys(file, values)
    if params:
        configuration = values.get("configuration") or {}
        values["configuration"] = {**configuration, **params} if isinstance(configuration, dict) else configuration
    try:
        spec = Spec(**{key: value for key, value in values.items() if value is not None}, path=file)
    except ValidationError as exc:
        raise _invalid(file, values, exc) from None
    _check_storage(spec)
    return spec


_KEYS = tuple(sorted((field.alias or name) for name, field in Spec.model_fields.items() if name != "path"))


def _refuse_unknown_keys(file: Path, values: Mapping[Any, Any]) -> None:
    for key, place, valid in _keys(values):
        if key not in valid:
            raise UsageError(
                f"{file}: unknown key {f'{place}{key}'!r}", code="SPEC_UNKNOWN_KEY", remedy=nearest(str(key), valid)
            )


def _keys(values: Mapping[Any, Any]) -> Iterator[tuple[Any, str, tuple[str, ...]]]:
    """Yield each key that has a fixed set of valid ones: (key, place before it, valid keys)."""
    for key in values:
        yield key, "", _KEYS
    samples = values.get("samples")
    for key in samples if isinstance(samples, dict) else []:
        yield key, "samples.", tuple(SampleSettings.model_fields)
    libraries = values.get("libraries")
    for index, library in enumerate(libraries if isinstance(libraries, list) else []):
        if not isinstance(library, dict):
            continue
        for key in library:
            yield key, f"libraries.{index}.", ("glob",)
        glob = library.get("glob")
        for key in glob if isinstance(glob, dict) else []:
            yield key, f"libraries.{index}.glob.", ("include",)


def _invalid(file: Path, values: Mapping[str, Any], exc: ValidationError) -> UsageError:
    """Say what is wrong with the first wrong value, without showing a value that may be a secret."""
    error = exc.errors(include_url=False)[0]
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] == "missing":
        valid = f"keys {', '.join(sorted(map(str, values))) or '(none)'}"
        return UsageError(
            f"{file}: key {place!r} is missing",
            code="SPEC_INVALID",
            found=valid,
            expected=_expected(error["loc"]),
        )
    if error["type"] == "value_error" and error["loc"][0] == "configuration":
        return UsageError(f"{file}: configuration: {error['ctx']['error']}", code="SPEC_INVALID")
    return UsageError(
        f"{file}: key {place!r}",
        code="SPEC_INVALID",
        found=_kind(error["input"], place),
        expected=_expected(error["loc"]),
    )


def _expected(loc: tuple[int | str, ...]) -> str:
    words = [part for part in loc if isinstance(part, str)]
    if len(words) > 1 and words[0] in ("configuration", "storage_options"):
        return "one plain value"
    if words[-1] == "include":
        return str(Glob.model_fields["include"].description)
    if words[-1] == "glob" or (words[0] == "libraries" and len(loc) > 1):
        return str(Library.model_fields["glob"].description)
    fields = {(field.alias or name): field for name, field in Spec.model_fields.items()}
    return str(fields[words[0]].description)


def _kind(value: Any, place: str) -> str:
    if isinstance(value, bool):
        return f"{str(value).lower()}, which YAML reads as yes or no"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, dict):
        return "a map" if place != "storage_options" else "a map with an entry that is no text"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return repr(value) if place in ("mode", "trigger_interval", "dialect", "schema", "name") else "text"
    return f"a {type(value).__name__}"


def _check_storage(spec: Spec) -> None:
    scheme, separator, _ = spec.storage.partition("://")
    if separator and scheme not in _SCHEMES:
        raise UsageError(
            f"{spec.path}: key 'storage'",
            code="SPEC_INVALID",
            found=f"scheme {scheme!r}",
            expected=f"a path, or a URI that begins with one of {', '.join(f'{s}://' for s in _SCHEMES)}",
            remedy=nearest(scheme, _SCHEMES),
        )
    sign = unusable_sign(spec.storage_uri)
    if sign is not None:
        raise UsageError(
            f"{spec.path}: key 'storage'",
            code="SPEC_INVALID",
            found=f"{sign!r} in {spec.storage_uri!r}",
            expected="a path without [ ] ^ | \\, control characters and '%' before two hex digits",
        )
