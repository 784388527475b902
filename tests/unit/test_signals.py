"""SIGTERM and SIGINT."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from waxlake.pipeline.signals import draining_on_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_whatever_lock_the_main_thread_holds(number: signal.Signals) -> None:
    lock, drained = threading.Lock(), threading.Event()

    def drain() -> None:
        with lock:
            drained.set()

    before = signal.getsignal(number)
    with draining_on_signals(drain):
        with lock:
            os.kill(os.getpid(), number)
        assert drained.wait(60)
        assert signal.getsignal(number) is before
    assert signal.getsignal(number) is before


def test_a_block_that_was_not_asked_to_stop_leaves_the_handlers_as_they_were() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with draining_on_signals(lambda: None):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
