"""The rule for services: missing is a skip at a desk and a failure where it is required."""

from __future__ import annotations

import pytest

from tests import services
from tests.services import ServiceMissing, kafka, s3


def test_missing_is_a_skip_at_a_desk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WAXLAKE_REQUIRE", raising=False)
    with pytest.raises(pytest.skip.Exception, match="kafka is missing: no jars"):
        services.missing("kafka", "no jars")


def test_missing_is_a_failure_where_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAXLAKE_REQUIRE", "tansu, kafka")
    with pytest.raises(pytest.fail.Exception, match="kafka is required"):
        services.missing("kafka", "no jars")
    with pytest.raises(pytest.skip.Exception):
        services.missing("minio", "no program")


def test_a_misspelt_requirement_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAXLAKE_REQUIRE", "kafak")
    with pytest.raises(pytest.UsageError, match="found kafak, expected some of"):
        services.required()


def test_an_empty_cache_names_the_command_that_fills_it(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("WAXLAKE_CACHE", str(tmp_path))
    with pytest.raises(ServiceMissing, match=r"python -m tests\.services prepare minio"):
        s3.minio_binary()
    with pytest.raises(ServiceMissing, match=r"python -m tests\.services prepare kafka|java|Java"):
        kafka.jar_directory()
