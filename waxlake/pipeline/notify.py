"""Who is told of an update besides the terminal and the event log: webhooks and commands of the spec, hooks of definitions.

Hooks run on a thread of their own, one after the other; none of them can fail or hold up the data. What is under way when the
update ends is delivered before the process exits, within a bound.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from waxlake.pipeline.definitions import EventHook
from waxlake.pipeline.event import Event, make_event

if TYPE_CHECKING:
    from waxlake.pipeline.spec import Notification, Spec
    from waxlake.stream.errors import WaxlakeError

__all__ = ["Notifier"]

_log = logging.getLogger("waxlake.notify")
_CLOSE_S: Final = 30.0
_CAPACITY: Final = 10_000
_ATTEMPTS: Final = 3


@dataclass(slots=True)
class _Hooked:
    """A hook of the definitions, and how often in a row it failed."""

    hook: EventHook
    failures: int = 0

    @property
    def is_off(self) -> bool:
        limit = self.hook.max_failures
        return limit is not None and self.failures > limit


class Notifier:
    """Hands events to the notifications of a spec and the event hooks of its definitions. A listener.

    Args:
        spec: The pipeline.
    """

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._hooks: list[_Hooked] = []
        self._queue: queue.Queue[Event | None] = queue.Queue(_CAPACITY)
        self._thread: threading.Thread | None = None
        self._has_ended = False

    def attach(self, hooks: Sequence[EventHook]) -> None:
        """Tell these hooks of events too; those it has are kept."""
        known = {hooked.hook.name for hooked in self._hooks}
        self._hooks += [_Hooked(hook) for hook in hooks if hook.name not in known]

    def on_event(self, event: Event) -> None:
        """Take one event; returns at once. When too many wait, what is no end of an update is left out."""
        if not (self._hooks or self._spec.notifications):
            return
        state = (event.details.get("update_progress") or {}).get("state")
        self._has_ended = self._has_ended or state in ("COMPLETED", "FAILED", "CANCELED")
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="notifications", daemon=True)
            self._thread.start()
        try:
            self._queue.put_nowait(event)
        except queue.Full:
            return

    def failed(self, error: WaxlakeError) -> None:
        """Tell of an update that failed before it reported anything."""
        if not self._has_ended:
            self.on_event(
                make_event(
                    "update_progress",
                    f"update FAILED: {error}",
                    pipeline=self._spec.name,
                    update_id="",
                    level="ERROR",
                    details={"update_progress": {"state": "FAILED"}},
                    error={"code": error.code, "message": str(error)},
                )
            )

    def close(self) -> None:
        """Deliver what waits, for a bounded time."""
        if self._thread is None:
            return
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=1.0)
        self._thread.join(_CLOSE_S)
        if self._thread.is_alive():
            _log.warning("not every notification was delivered: one of them hangs")

    def _work(self) -> None:
        while (event := self._queue.get()) is not None:
            for hooked in self._hooks:
                self._call(hooked, event)
            kind = _kind(event)
            for notification in self._spec.notifications:
                if kind is not None and kind in notification.on:
                    _notify(notification, kind, event)

    def _call(self, hooked: _Hooked, event: Event) -> None:
        if hooked.is_off:
            return
        try:
            hooked.hook.function(event.to_dict())
            hooked.failures = 0
        except Exception as exc:  # noqa: BLE001 - the boundary to a user's code: it must not stop the others
            hooked.failures += 1
            off = "; it is not called again in this update" if hooked.is_off else ""
            _log.warning("event hook %s failed: %s: %s%s", hooked.hook.name, type(exc).__name__, exc, off)


def _kind(event: Event) -> str | None:
    """Return what kind of news an event is; None for one that nobody is notified of."""
    if event.event_type == "update_progress":
        state = (event.details.get("update_progress") or {}).get("state")
        return {"COMPLETED": "update-success", "FAILED": "update-failure"}.get(str(state))
    if event.event_type == "flow_progress" and event.progress.get("status") == "FAILED":
        return "flow-failure"
    return None


def _notify(notification: Notification, kind: str, event: Event) -> None:
    """Deliver one piece of news; what fails is said without showing where to."""
    body = json.dumps({"kind": kind, **event.to_dict()}, default=str).encode()
    if notification.webhook is not None:
        url = notification.webhook.get_secret_value()
        deliver: Callable[[float], None] = lambda left_s: _post(url, body, left_s)  # noqa: E731 - one of two
        where = f"{urlsplit(url).scheme}://{urlsplit(url).hostname}"
    else:
        command = [part.get_secret_value() for part in notification.command]
        deliver = lambda left_s: _run(command, kind, body, left_s)  # noqa: E731
        where = os.path.basename(command[0])
    deadline_s = time.monotonic() + notification.timeout
    for attempt in range(_ATTEMPTS):
        try:
            deliver(max(0.1, deadline_s - time.monotonic()))
            return
        except Exception as exc:  # noqa: BLE001 - the boundary to somebody else's service
            problem = _problem(exc)
        wait_s = 0.2 * 2**attempt
        if time.monotonic() + wait_s >= deadline_s:
            break
        time.sleep(wait_s)
    _log.warning("a notification of %s to %s was not delivered: %s [NOTIFICATION_FAILED]", kind, where, problem)


def _problem(exc: Exception) -> str:
    if isinstance(exc, HTTPError):
        return f"status {exc.code}"
    if isinstance(exc, subprocess.CalledProcessError):
        return f"exit code {exc.returncode}"
    if isinstance(exc, subprocess.TimeoutExpired | TimeoutError):
        return "it took too long"
    return type(exc).__name__


def _post(url: str, body: bytes, left_s: float) -> None:
    request = Request(url, data=body, headers={"Content-Type": "application/json"}, method="POST")
    with urlopen(request, timeout=left_s) as answer:
        answer.read(1)


def _run(command: Sequence[str], kind: str, body: bytes, left_s: float) -> None:
    environ: Mapping[str, Any] = {**os.environ, "WAXLAKE_NOTIFICATION": kind}
    subprocess.run(
        command,
        input=body,
        env=environ,
        timeout=left_s,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
