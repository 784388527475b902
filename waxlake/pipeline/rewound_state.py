"""Whether the state of a table can go back with it: late events of AUTO CDC, and what stateful operators remember.

State is named by the commit of its output, so a rewind, which gives each ``txn`` the version it had, names that of then again.
Files of AUTO CDC stay for a day at least after nobody names them. An operator deletes what it has replaced right after the
commit, or a table that is committed to each second would leave a state a second; so a table with one goes back to where its
state was the same, or to before it had any.
"""

from __future__ import annotations

from collections.abc import Callable

import pyarrow.fs as pa_fs

from sinks.cdc.state import STATE_APP_ID, event_files
from sinks.delta.log_state import LogState
from sinks.state.store import state_app_id, state_files
from waxlake.pipeline.checked import CheckedGraph
from waxlake.pipeline.graph import Dataset
from waxlake.stream.delta_table import TableLocation, delta_errors
from waxlake.stream.errors import TerminalError

__all__ = ["require_state"]


def require_state(checked: CheckedGraph, dataset: Dataset, now: LogState, then: LogState) -> None:
    """Stop where a file of the state that a table had is gone.

    Raises:
        TerminalError: ``REWIND_STATE_GONE``. Not retryable.
    """
    location = dataset.location
    assert location is not None

    def require(app: str, files: Callable[[int], list[str]], why: str) -> None:
        number = then.txns.get(app, 0)
        if number <= 0 or number == now.txns.get(app):
            return
        gone = _gone(location, lambda: files(number))
        if gone:
            raise TerminalError(
                f"table '{dataset.name}' cannot be rewound to version {then.version}",
                code="REWIND_STATE_GONE",
                found=f"{gone}: {why}",
                expected="the state that belongs to that version, under _waxlake/",
                remedy="Choose a later version, or 0, before it had any, which reads everything again; or fill it anew with "
                f"waxlake run --full-refresh {dataset.name}",
            )

    require(STATE_APP_ID, lambda number: event_files(location, number), "late events are kept for a day at least")
    for flow in checked.stateful.get(dataset.name, {}):
        require(
            state_app_id(flow),
            lambda number, flow=flow: state_files(location, flow, number),  # type: ignore[misc]
            f"flow '{flow}' deletes the state that a commit has replaced",
        )


def _gone(location: TableLocation, files: Callable[[], list[str]]) -> str:
    """Return what is missing, or nothing."""
    try:
        paths = files()
    except TerminalError as error:
        return f"no manifest ({error.found})"
    with delta_errors(f"look for the state of table '{location.label}'"):
        missing = [i.path for i in location.filesystem().get_file_info(paths) if i.type == pa_fs.FileType.NotFound]
    return f"{len(missing)} of its files deleted, such as {missing[0]}" if missing else ""
