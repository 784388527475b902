"""Settings shared by every floor: how a settings model behaves, and storage options that never show their secrets."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from waxlake.stream.errors import UsageError

__all__ = ["Duration", "Settings", "StorageOptions", "nearest", "parse_duration", "redact"]

_SECRET_KEY = re.compile(
    r"secret|password|passwd|token|credential|sas|private|jaas|access_?key|account_?key|api_?key|user\.info", re.I
)
_DURATION = re.compile(r"(?:interval\s+)?(\d+(?:\.\d+)?)\s*([a-z]*)")
_UNITS_S = {
    **dict.fromkeys(("ms", "millisecond", "milliseconds"), 0.001),
    **dict.fromkeys(("", "s", "sec", "secs", "second", "seconds"), 1.0),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hour", "hours"), 3600.0),
    **dict.fromkeys(("d", "day", "days"), 86_400.0),
    **dict.fromkeys(("w", "week", "weeks"), 604_800.0),
}
_URL_PASSWORD = re.compile(r"(://[^/\s:@]*:)[^@\s/]+@")


def redact(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``options`` with every value that may be a secret replaced by ``***``."""
    return {
        key: "***"
        if _SECRET_KEY.search(key)
        else _URL_PASSWORD.sub(r"\1***@", value)
        if isinstance(value, str)
        else value
        for key, value in options.items()
    }


def nearest(word: str, valid: Iterable[str]) -> str:
    """Return a sentence that names the valid words nearest to ``word``, or all of them when none is near."""
    known = sorted(valid)
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(repr(c) for c in close)}?" if close else f"Valid: {', '.join(known)}"


def parse_duration(value: Any) -> Any:
    """Return seconds, given as text with a unit (``200ms``, ``7 days``, ``interval 1 week``) or as a number of them.

    Raises:
        ValueError: Not a duration, or a positive one below a millisecond. Not retryable.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return value
    match = _DURATION.fullmatch(str(value).strip().lower())
    if match is None or match[2] not in _UNITS_S:
        raise ValueError("not a duration")
    span_s = float(match[1]) * _UNITS_S[match[2]]
    if 0 < span_s < 0.001:
        raise ValueError("too short")
    return span_s


Duration: TypeAlias = Annotated[float, BeforeValidator(parse_duration)]
"""Seconds; a setting of this type takes text with a unit too."""


class Settings(BaseModel):
    """A frozen settings model that refuses unknown keys and names the nearest valid one."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    @classmethod
    def build(cls, what: str, values: Mapping[str, Any], *, code: str = "OPTION_INVALID") -> Any:
        """Validate ``values`` and return the settings.

        Args:
            what: What is being set, for the message, such as ``read_kafka('orders')``.
            values: Option name to value.
            code: Error code.

        Raises:
            UsageError: An unknown option (names the nearest valid one) or a value out of bounds. Not retryable.
        """
        try:
            return cls(**values)
        except ValidationError as exc:
            problems = []
            for error in exc.errors(include_input=False, include_url=False):
                name = ".".join(str(part) for part in error["loc"])
                said = error["msg"].removeprefix("Value error, ")
                if error["type"] == "extra_forbidden":
                    problems.append(f"unknown option {name!r}. {nearest(name, cls.model_fields)}")
                else:
                    problems.append(f"option {name!r}: {said}" if name else said)
            raise UsageError(f"{what}: {'; '.join(problems)}", code=code) from None


class StorageOptions(Mapping[str, str]):
    """Options of an object store, as delta-rs names them; ``repr`` and ``str`` hide the secret ones."""

    def __init__(self, options: Mapping[str, str] | None = None) -> None:
        self._options = {key: str(value) for key, value in (options or {}).items()}

    def __getitem__(self, key: str) -> str:
        return self._options[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._options)

    def __len__(self) -> int:
        return len(self._options)

    def __hash__(self) -> int:
        return hash(tuple(sorted(self._options.items())))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StorageOptions) and self._options == other._options

    def __repr__(self) -> str:
        return f"StorageOptions({redact(self._options)})"
