"""A producer whose calls never return: the sink leaves it behind, and goes on with another one."""

from __future__ import annotations

import threading
from typing import Any

import pyarrow as pa
import pytest

from sinks.batches.staging import StagedBatch
from sinks.kafka import handoff
from sinks.kafka.settings import KafkaSinkSettings
from waxlake.stream.errors import TransientError


class Client:
    """A producer and consumer; ``stuck`` names the call that waits until the test ends."""

    def __init__(self, ended: threading.Event, stuck: str = "") -> None:
        self._ended, self._stuck = ended, stuck
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> int:
            self.calls.append(name)
            if name == self._stuck:
                self._ended.wait()
            return 0

        return call


@pytest.mark.parametrize("stuck", ["init_transactions", "send_offsets_to_transaction", "commit_transaction"])
def test_a_producer_that_never_answers_is_left_behind(monkeypatch: pytest.MonkeyPatch, stuck: str) -> None:
    ended = threading.Event()
    lost, next_one = Client(ended, stuck), Client(ended)
    clients = [Client(ended), lost, Client(ended), next_one]
    monkeypatch.setattr(handoff, "open_client", lambda *_: clients.pop(0))
    monkeypatch.setattr(handoff, "_GRACE_S", 0.0)
    settings = KafkaSinkSettings(topic="out", bootstrap_servers="nowhere:9092", request_timeout_s=0.1)
    sink = handoff.KafkaHandoff("out", settings)
    batch = StagedBatch(number=1, flow="out", rows=1, file="1", sources=(), update_id="u")
    rows = pa.table({"value": ["a"]})

    def send() -> None:
        sink.open("ledger")
        sink.deliver(batch, rows, 1)

    try:
        with pytest.raises(TransientError) as failure:
            send()
        assert failure.value.code == "KAFKA_UNREACHABLE"
        sink.close()
        assert lost.calls[-1] == stuck  # it was not waited for
        send()
        assert next_one.calls[-1] == "commit_transaction"
    finally:
        ended.set()
