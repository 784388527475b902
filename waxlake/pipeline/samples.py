"""A few of the rows that break a rule, in the event log: bounded in number and bytes, with columns hidden on request."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pyarrow as pa

from waxlake.pipeline.definitions import Expectation
from waxlake.pipeline.rows import json_line
from waxlake.pipeline.spec import SampleSettings
from waxlake.pipeline.state import Emit
from waxlake.stream.errors import shorten
from waxlake.stream.python_rows import python_rows
from waxlake.stream.settings import redact

__all__ = ["OffenderSampler"]


class OffenderSampler:
    """Reports rows that break a rule as events, the first few of each rule. A listener of judges, from any thread.

    Args:
        settings: How many, and what is hidden.
        emit: Reports an event.
    """

    def __init__(self, settings: SampleSettings, emit: Emit) -> None:
        self._settings, self._emit = settings, emit
        self._lock = threading.Lock()
        self._left: dict[tuple[str, str], tuple[int, int]] = {}

    def __call__(self, dataset: str, rule: Expectation, offenders: Callable[[], pa.Table], count: int) -> None:
        """Take note of rows that break a rule.

        Args:
            dataset: Whose rule.
            rule: It.
            offenders: Returns the rows; called only if some are wanted.
            count: How many there are.
        """
        key = (dataset, rule.name)
        with self._lock:
            rows_left, bytes_left = self._left.get(key, (self._settings.rows, self._settings.bytes))
            taken = min(rows_left, count) if bytes_left > 0 else 0
            self._left[key] = (rows_left - taken, bytes_left)
        if not taken:
            return
        texts = []
        for row in python_rows(offenders().slice(0, taken)):
            hidden = {name: "***" if name in self._settings.redact else value for name, value in row.items()}
            text = shorten(json_line(redact(hidden)), max(bytes_left // taken, 20))
            texts.append(text)
        with self._lock:
            rows_left, bytes_left = self._left[key]
            self._left[key] = (rows_left, bytes_left - sum(len(text.encode()) for text in texts))
        self._emit(
            "expectation_violation",
            f"rule '{rule.name}' of {dataset} is broken, as by {shorten(texts[0], 200)}",
            level="WARN",
            dataset=dataset,
            details={"expectation_violation": {"rule": rule.name, "action": rule.action, "rows": texts}},
        )
