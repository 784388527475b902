"""Questions to a Kafka cluster."""

from __future__ import annotations

from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass

import pytest

from connectors.kafka import KafkaSettings
from connectors.kafka.survey import Survey


@dataclass
class Cluster:
    cluster_id: str


class LateAnswer(Future[Cluster]):
    """Given just when a wait for it has ended without it."""

    def result(self, timeout: float | None = None) -> Cluster:
        if self.done():
            return super().result(timeout)
        self.set_result(Cluster("c1"))
        raise FutureTimeoutError


class Admin:
    def describe_cluster(self, **options: object) -> Future[Cluster]:
        return LateAnswer()

    def poll(self, timeout: float) -> int:
        return 0


def test_an_answer_that_comes_between_two_waits_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("connectors.kafka.survey.open_admin", lambda settings, complaints: Admin())
    values = {"bootstrap_servers": "broker:9092", "topic": "orders", "format": "string"}
    with Survey(KafkaSettings.build("read_kafka('orders')", values)) as survey:
        assert survey.cluster_id() == "c1"
