"""Schemas of a schema registry by their ids and subjects; called by the formats whose records name one.

The client is Confluent's, which the extra ``registry`` installs. Its errors become ours here.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from waxlake.stream.errors import TerminalError, TransientError, UsageError, WaxlakeError

if TYPE_CHECKING:
    from connectors.kafka.settings import KafkaOptions

__all__ = ["Registry", "framed_id", "registry"]

_GONE = frozenset({404, 40401, 40402, 40403})
_HEAD_BYTES = 5


def framed_id(value: bytes) -> tuple[int, int] | None:
    """Return (schema id, first byte of the body) of a record; None if it has no such head.

    Source: Confluent wire format: a byte 0 and the id in 4 bytes, the highest first.
    """
    if len(value) < _HEAD_BYTES or value[0] != 0:
        return None
    return int.from_bytes(value[1:_HEAD_BYTES], "big"), _HEAD_BYTES


class Registry:
    """A schema registry.

    Args:
        url: Where it is; several with commas between.
        options: Further settings of Confluent's client, such as ``basic.auth.user.info``; secrets are shown nowhere.
    """

    def __init__(self, url: str, options: KafkaOptions) -> None:
        self._url, self._options = url, options
        try:
            from confluent_kafka.schema_registry import SchemaRegistryClient
        except ImportError as exc:
            raise UsageError(
                "a schema registry needs packages that are not installed",
                code="EXTRA_MISSING",
                found=str(exc),
                remedy="Install them: pip install 'waxlake[registry]'",
            ) from exc
        try:
            self._client = SchemaRegistryClient({"url": url, "max.retries": 1, "timeout": 10, **options})
        except (ValueError, TypeError) as exc:
            raise UsageError(
                "cannot use the schema registry", code="OPTION_INVALID", found=options.scrub(str(exc))
            ) from exc

    def schema(self, number: int) -> Any:
        """Return the Avro schema of an id, as JSON; None if there is none, or one of another kind.

        Raises:
            TransientError: The registry does not answer. Retryable.
            TerminalError: It refuses us. Not retryable.
        """
        return self._parsed(f"schema {number}", lambda: self._client.get_schema(number))

    def latest(self, subject: str) -> Any:
        """Return the Avro schema that a subject has now, as JSON.

        Raises:
            TransientError: The registry does not answer. Retryable.
            TerminalError: It refuses us, or has no such subject. Not retryable.
        """
        found = self._parsed(f"subject '{subject}'", lambda: self._client.get_latest_version(subject).schema)
        if found is None:
            raise TerminalError(
                f"cannot read the columns of '{subject}'",
                code="REGISTRY_SUBJECT",
                found="no Avro schema of that subject in the registry",
                remedy='Register one, or give the reader\'s schema as schema=\'{"type": "record", …}\'',
            )
        return found

    def _parsed(self, what: str, ask: Any) -> Any:
        from confluent_kafka.schema_registry import SchemaRegistryError

        try:
            schema = ask()
        except SchemaRegistryError as exc:
            if exc.http_status_code in _GONE or exc.error_code in _GONE:
                return None
            raise self._refused(what, exc, is_terminal=400 <= exc.http_status_code < 500) from exc
        except Exception as exc:  # whatever its HTTP client raises, which changes with its version
            raise self._refused(what, exc, is_terminal=False) from exc
        if schema is None or (schema.schema_type or "AVRO") != "AVRO" or schema.references:
            return None
        return json.loads(schema.schema_str)

    def _refused(self, what: str, exc: Exception, *, is_terminal: bool) -> WaxlakeError:
        found = self._options.scrub(f"{type(exc).__name__}: {exc}")
        error = TerminalError if is_terminal else TransientError
        return error(
            f"cannot read {what} of the schema registry at {self._url}",
            code="REGISTRY_REFUSED" if is_terminal else "REGISTRY_UNREACHABLE",
            found=found,
            remedy="Check schema_registry_url, and schema_registry_options if it wants a user",
        )


@lru_cache(maxsize=16)
def registry(url: str, options: KafkaOptions) -> Registry:
    """Return the registry at a URL; one client for all who ask."""
    return Registry(url, options)
