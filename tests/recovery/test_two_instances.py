"""Two runs of one pipeline at once: one stops and says why, the rows stay exact."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest

from tests.recovery.lake import RecoveryLake, wait

pytestmark = pytest.mark.timeout(1200)


def test_one_of_two_continuous_runs_is_refused(make_lake: Callable[[], RecoveryLake]) -> None:
    lake = make_lake()
    lake.publish(500)
    runs = [lake.start("continuous") for _ in range(2)]
    deadline = time.monotonic() + 240
    while all(run.poll() is None for run in runs):
        assert time.monotonic() < deadline, f"both runs go on:\n{lake.log('continuous')}"
        lake.publish(100)
        time.sleep(0.2)
    stopped = [run for run in runs if run.poll() is not None]
    assert len(stopped) == 1, lake.log("continuous")
    assert stopped[0].returncode == 1
    assert "UPDATE_RUNNING" in lake.log("continuous")
    survivor = next(run for run in runs if run.poll() is None)
    lake.publish(500)
    lake.await_everything(survivor)
    survivor.send_signal(signal.SIGTERM)
    assert wait(survivor) == 0, lake.log("continuous")
    lake.check()


def test_who_takes_over_goes_on_and_a_deployment_waits(make_lake: Callable[[], RecoveryLake]) -> None:
    """The first drains. The second sleeps through its lease with positions in memory: the fences stop it, or its heartbeat."""
    lake = make_lake()
    lake.publish(500)
    first = lake.start("continuous")
    lake.await_everything(first)
    second = lake.start("takeover")
    assert wait(first) == 0, lake.log("continuous")
    lake.publish(500)
    lake.await_everything(second)
    assert "COMMIT_CONFLICT" not in lake.log("continuous") + lake.log("takeover")
    second.send_signal(signal.SIGSTOP)
    lake.publish(500)
    third = lake.start("takeover")
    lake.await_everything(third)
    second.send_signal(signal.SIGCONT)
    assert wait(second) in (0, 1), lake.log("takeover")
    queued = lake.start("bytewax-run")
    lake.publish(500)
    lake.await_everything(third)
    third.send_signal(signal.SIGTERM)
    assert wait(third) == 0, lake.log("takeover")
    assert wait(queued) == 0, lake.log("bytewax-run")
    lake.check()


def test_two_triggered_runs_at_once_lose_and_double_nothing(make_lake: Callable[[], RecoveryLake]) -> None:
    lake = make_lake()
    lake.publish(2000)
    runs = [lake.start("triggered") for _ in range(2)]
    codes = sorted(wait(run) for run in runs)
    assert codes in ([0, 0], [0, 1]), lake.log("triggered")
    if codes == [0, 1]:
        assert "UPDATE_RUNNING" in lake.log("triggered")
    lake.finish("triggered")
    lake.check()
