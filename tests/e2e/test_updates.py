"""Updates that fail: what is tried again and what is not, what is refreshed afterwards, and who is told."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.project import Project
from waxlake.pipeline.event import Event
from waxlake.pipeline.notify import Notifier
from waxlake.pipeline.run import RunOptions, run_update
from waxlake.pipeline.selection import Selection
from waxlake.pipeline.spec import load_spec
from waxlake.stream.errors import ExternalError, UsageError, UserError, WaxlakeError

DEFINITIONS = """
import pathlib
from waxlake.stream.errors import TransientError

def attempts(name):
    file = pathlib.Path(__file__).parents[1] / name
    count = int(file.read_text()) if file.exists() else 0
    file.write_text(str(count + 1))
    return count

def away_twice(rows):
    if len(rows) and attempts("transient") < 2:
        raise TransientError("cannot look it up", code="LOOKUP_AWAY", found="nobody")
    return rows

def broken(rows):
    if len(rows):
        attempts("deterministic")
        if not (pathlib.Path(__file__).parents[1] / "fixed").exists():
            raise ValueError("no")
    return rows

def read():
    return wl.read_files("inbox", format="json", schema="id BIGINT")

@wl.table
def good():
    return read()

@wl.table
def shaky():
    return read().map_batches(away_twice)

@wl.table
def after_shaky():
    return wl.read_stream("shaky")

@wl.table
def bad():
    return read().map_batches(broken)

@wl.table
def after_bad():
    return wl.read_stream("bad")

@wl.materialized_view
def of_both():
    return wl.sql("SELECT (SELECT count(*) FROM after_bad) + (SELECT count(*) FROM after_shaky) AS n")
"""
HOOKS = """
seen = pathlib.Path(__file__).parents[1] / "seen"

@wl.on_event_hook
def keep(event):
    with seen.open("a") as file:
        file.write(event["event_type"] + " " + str(event["details"].get("update_progress", {}).get("state")) + "\\n")

@wl.on_event_hook(max_allowable_consecutive_failures=2)
def fails(event):
    attempts("hook")
    raise RuntimeError("never mind")
"""


class _Listener:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def on_event(self, event: Event) -> None:
        self.events.append(event)

    def close(self) -> None:
        pass

    def statuses(self, dataset: str) -> list[str]:
        return [str(e.progress["status"]) for e in self.events if e.dataset == dataset and "status" in e.progress]


@pytest.fixture
def shop(project: Project) -> Project:
    project.spec(retries=3, retry_wait="50ms")
    project.define(DEFINITIONS)
    project.land("1.json", {"id": 1}, {"id": 2})
    return project


def run(project: Project, **selection: Any) -> _Listener:
    heard = _Listener()
    options = RunOptions(selection=Selection(**selection))
    try:
        run_update(load_spec(project.folder), options, [heard])
    except (UserError, ExternalError) as error:
        heard.error = error  # type: ignore[attr-defined]
    return heard


def count(project: Project, name: str) -> int:
    file = project.folder / name
    return int(file.read_text()) if file.exists() else 0


def test_w16_p62_p65_p67_only_what_may_pass_is_tried_again_and_the_rest_is_refreshed_by_name(shop: Project) -> None:
    heard = run(shop)
    error: WaxlakeError = heard.error  # type: ignore[attr-defined]
    assert error.code == "MAP_BATCHES_FAILED"
    assert count(shop, "deterministic") == 1  # never again
    assert count(shop, "transient") == 3
    assert [shop.rows(name, "id") for name in ("good", "shaky", "after_shaky")] == [[1, 2]] * 3
    assert not shop.rows("bad", "id")
    assert heard.statuses("bad")[-1] == "FAILED"
    assert heard.statuses("after_bad") == heard.statuses("of_both") == ["SKIPPED"]
    ends = [e.details["update_progress"]["state"] for e in heard.events if e.event_type == "update_progress"]
    assert ends[-1] == "FAILED"
    assert ends.count("RESETTING") == 2

    (shop.folder / "fixed").touch()
    shop.land("2.json", {"id": 3})
    heard = run(shop, is_failed=True)
    assert (shop.rows("bad", "id"), shop.rows("after_bad", "id"), shop.rows("of_both", "n")) == (
        [1, 2, 3],
        [1, 2, 3],
        [5],
    )
    assert shop.rows("good", "id") == [1, 2]
    heard = run(shop, is_failed=True)
    assert heard.error.code == "NOTHING_FAILED"  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="REFRESH_OPTIONS_CONFLICT"):
        Selection(is_failed=True, refresh=("good",))


@pytest.mark.timeout(400)
def test_w16_p65_what_may_pass_is_tried_again_by_several_processes_and_while_it_is_planned(shop: Project) -> None:
    shop.define(DEFINITIONS[: DEFINITIONS.index("@wl.table\ndef bad")])
    (shop.folder / "transient").write_text("1")
    done = shop.waxlake("run", "--processes", "2", timeout_s=240)
    assert done.code == 0, done
    assert "LOOKUP_AWAY" in done.err
    assert count(shop, "transient") == 3
    for name in ("good", "shaky", "after_shaky"):
        assert shop.rows(name, "id") == [1, 2]

    shop.spec(retries=1, retry_wait="50ms", mode="continuous")
    shop.define("@wl.table\ndef away():\n"
                "    return wl.read_kafka('t', '127.0.0.1:1', schema='n BIGINT', request_timeout_s=1)\n")  # fmt: skip
    heard = run(shop)
    assert heard.error.code == "KAFKA_UNREACHABLE"  # type: ignore[attr-defined]
    states = [e.details["update_progress"]["state"] for e in heard.events if e.event_type == "update_progress"]
    assert (states.count("RESETTING"), states.count("FAILED")) == (1, 1)


def test_w16_p65_a_continuous_run_tries_again_what_may_pass_and_leaves_out_what_will_not(shop: Project) -> None:
    shop.spec(retries=0, retry_wait="50ms")
    with shop.continuous() as running:
        running.await_rows("after_shaky", 2)
        shop.land("2.json", {"id": 3})
        running.await_rows("after_shaky", 1)
        assert "MAP_BATCHES_FAILED" in running.terminate().err
    assert count(shop, "deterministic") == 1
    assert count(shop, "transient") == 4  # twice in vain, and a batch for each file
    for name in ("good", "shaky", "after_shaky"):
        assert shop.rows(name, "id") == [1, 2, 3]
    assert not shop.rows("bad", "id")


def test_p104_w17_event_hooks_hear_everything_and_can_stop_nothing(
    shop: Project, caplog: pytest.LogCaptureFixture
) -> None:
    (shop.folder / "fixed").touch()
    (shop.folder / "transient").write_text("2")
    shop.define(DEFINITIONS + HOOKS)
    heard = run(shop)
    assert not hasattr(heard, "error")
    lines = (shop.folder / "seen").read_text().splitlines()
    assert lines[0] == "create_update None"
    assert lines[-1] == "update_progress COMPLETED"  # the last event is not lost
    assert len(lines) == len(heard.events)
    assert count(shop, "hook") == 3
    assert "event hook fails failed: RuntimeError: never mind; it is not called again" in caplog.text

    shop.define(DEFINITIONS + "@wl.on_event_hook(max_allowable_consecutive_failures=-1)\ndef f(event): pass\n")
    assert run(shop).error.code == "ARGUMENT_INVALID"  # type: ignore[attr-defined]


@contextmanager
def web_server(taken: list[dict[str, Any]], *, fails_first: int = 0) -> Iterator[str]:
    """Serve a webhook on this machine."""
    left = [fails_first]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            left[0] -= 1
            if left[0] >= 0:
                self.send_error(503)
                return
            taken.append(json.loads(body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook?token=s3cret"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_p72_notifications_are_delivered_before_the_exit_and_hide_their_secrets(
    shop: Project, caplog: pytest.LogCaptureFixture
) -> None:
    told = shop.folder / "told.json"
    write = f"import sys; open({str(told)!r}, 'a').write(sys.stdin.read() + chr(10))"
    taken: list[dict[str, Any]] = []
    with web_server(taken, fails_first=1) as url:
        shop.spec(
            notifications=[
                {"on": ["update-success", "update-failure", "flow-failure"], "webhook": url},
                {"on": ["update-failure"], "command": [sys.executable, "-c", write]},
                {"on": ["update-failure"], "webhook": "http://127.0.0.1:9/token-s3cret", "timeout": "500ms"},
                {
                    "on": ["update-failure"],
                    "command": [sys.executable, "-c", "import time; time.sleep(60)"],
                    "timeout": "300ms",
                },
            ]
        )
        (shop.folder / "transient").write_text("2")
        started_s = time.monotonic()
        run(shop)
        assert time.monotonic() - started_s < 20
        assert [news["kind"] for news in taken] == ["flow-failure", "update-failure"]
        assert taken[0]["dataset"] == "bad"
        assert json.loads(told.read_text())["error"]["code"] == "MAP_BATCHES_FAILED"
        assert "update-failure to http://127.0.0.1 was not delivered" in caplog.text
        assert "it took too long" in caplog.text

        (shop.folder / "fixed").touch()
        run(shop)
        assert taken[-1]["kind"] == "update-success"
        shop.define("@wl.table\ndef a(): pass\n")  # it fails before there is an update
        run(shop)
        assert taken[-1]["error"]["code"] == "QUERY_RETURN_TYPE"
    assert "s3cret" not in caplog.text
    assert "s3cret" not in repr(load_spec(shop.folder))
    assert b"s3cret" not in shop.everything_written()


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"on": ["update-success"]}, "notifications"),
        ({"on": ["update-sucess"], "webhook": "https://x"}, "notifications"),
        ({"on": ["update-success"], "webhook": "ftp://s3cret"}, "notifications"),
        ({"on": [], "webhook": "https://x"}, "notifications"),
    ],
)
def test_a_notification_that_cannot_be(project: Project, entry: dict[str, Any], says: str) -> None:
    project.spec(notifications=[entry])
    with pytest.raises(UsageError, match=r"SPEC_") as caught:
        load_spec(project.folder)
    assert says in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_hook_that_hangs_does_not_keep_the_process(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("waxlake.pipeline.notify._CLOSE_S", 0.2)
    release = threading.Event()
    (project.folder / "flows").mkdir(exist_ok=True)
    project.define(DEFINITIONS)
    from waxlake.pipeline.definitions import EventHook
    from waxlake.pipeline.event import make_event

    notifier = Notifier(load_spec(Path(project.folder)))
    notifier.attach([EventHook(name="hangs", function=lambda event: release.wait(60), max_failures=None, where="")])
    notifier.on_event(make_event("user_action", "x", pipeline="p", update_id="u"))
    started_s = time.monotonic()
    notifier.close()
    assert time.monotonic() - started_s < 5
    release.set()
