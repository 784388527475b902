"""SIGTERM and SIGINT."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from waxlake.pipeline.signals import draining_on_signals, note_signals


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_run_is_heeded_when_it_starts(number: signal.Signals) -> None:
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    drained = threading.Event()
    try:
        note_signals()
        os.kill(os.getpid(), number)
        with draining_on_signals(drained.set):
            assert drained.is_set()
        drained.clear()
        with draining_on_signals(drained.set):
            assert not drained.is_set()
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_a_second_signal_while_draining_is_taken_at_its_word() -> None:
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        note_signals()
        with draining_on_signals(lambda: None):
            os.kill(os.getpid(), signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
