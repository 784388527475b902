"""Laws that every source obeys; a new connector needs a rig in ``sources.py`` and nothing here."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.contract.sources import DeltaRig, FilesRig, KafkaRig, MySQLRig, PostgresRig, QueryRig, SourceRig
from waxlake.stream.batch import MicroBatch
from waxlake.stream.source import Connector, SourcePlan, plan_partitions

NUMBERS = list(range(60))


FORMATS_OF_FILES = ["files json", "files json array", "files xml", "files avro"]


@pytest.fixture(
    params=["kafka-tansu", "kafka-apache", *FORMATS_OF_FILES, "delta", "query", "mariadb", "mysql", "postgres"]
)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SourceRig]:
    if request.param.startswith("kafka"):
        fixture = "tansu" if request.param == "kafka-tansu" else "apache_kafka"
        yield KafkaRig(request.getfixturevalue(fixture))
    elif request.param in ("mariadb", "mysql"):
        yield MySQLRig(request.getfixturevalue(request.param), tmp_path)
    elif request.param == "postgres":
        rig = PostgresRig(request.getfixturevalue("debian_postgres"), tmp_path)
        yield rig
        rig.close()
    elif request.param in FORMATS_OF_FILES:
        yield FilesRig(tmp_path, request.param.removeprefix("files "))
    else:
        yield {"delta": DeltaRig, "query": QueryRig}[request.param](tmp_path)


def plan_of(connector: Connector, *stored: Mapping[str, int], is_bounded: bool = True) -> SourcePlan:
    return plan_partitions(connector.inspect(), stored or [{}], is_bounded=is_bounded)


def read_all(connector: Connector, plan: SourcePlan, groups: int = 1) -> list[MicroBatch]:
    """Read a bounded plan to its end."""
    batches: list[MicroBatch] = []
    for partitions in connector.groups(plan, groups).values():
        reader = connector.reader(plan, partitions, frozenset())
        deadline = time.monotonic() + 30
        while not reader.is_done:
            assert time.monotonic() < deadline, f"{connector.name} does not reach its mark"
            batches += reader.read()
        for partition, position in reader.positions().items():
            assert position >= (plan.partitions[partition].mark or 0)
        reader.close()
    return batches


def numbers_in(batches: Sequence[MicroBatch]) -> list[int]:
    return sorted(n for batch in batches for n in batch.table.column("n").to_pylist())


def stored(batches: Sequence[MicroBatch]) -> list[MicroBatch]:
    """What a sink would have committed: pieces only together with the batch that ends them."""
    kept: list[MicroBatch] = []
    for index, batch in enumerate(batches):
        rest = (b for b in batches[index + 1 :] if b.partition == batch.partition)
        if not batch.is_partial or any(not b.is_partial for b in rest):
            kept.append(batch)
    return kept


def ends_of(plan: SourcePlan, batches: Sequence[MicroBatch]) -> dict[str, int]:
    ends = {partition: part.start for partition, part in plan.partitions.items()}
    for batch in batches:
        assert batch.start == ends[batch.partition], "positions leave a gap or overlap"
        assert batch.end == batch.start if batch.is_partial else batch.end > batch.start
        ends[batch.partition] = batch.end
    return ends


def test_every_record_is_read_once_and_positions_are_contiguous(rig: SourceRig) -> None:
    rig.add(NUMBERS)
    connector = rig.connector()
    plan = plan_of(connector)
    batches = read_all(connector, plan)
    assert numbers_in(batches) == NUMBERS
    ends_of(plan, batches)
    assert {batch.source for batch in batches} == {plan.identity}


def test_reading_goes_on_where_any_batch_ended(rig: SourceRig) -> None:
    rig.add(NUMBERS)
    connector = rig.connector()
    plan = plan_of(connector)
    batches = read_all(connector, plan)
    for count in range(len(batches) + 1):
        again = rig.connector()
        rest = plan_of(again, ends_of(plan, batches[:count]))
        assert numbers_in([*stored(batches[:count]), *read_all(again, rest)]) == NUMBERS


def test_no_batch_straddles_a_fence(rig: SourceRig) -> None:
    rig.add(NUMBERS)
    connector = rig.connector()
    plan = plan_of(connector)
    fences = {p: [b.end for b in read_all(connector, plan) if b.partition == p] for p in plan.partitions}
    for step in (1, 2):
        again = rig.connector()
        fenced = replace(
            plan,
            partitions={
                p: replace(part, fences=tuple(sorted(fences[p])[::step])) for p, part in plan.partitions.items()
            },
        )
        batches = read_all(again, fenced)
        assert numbers_in(batches) == NUMBERS
        for batch in batches:
            inside = [f for f in fenced.partitions[batch.partition].fences if batch.start < f < batch.end]
            assert inside == []


def test_a_flow_that_is_behind_is_caught_up_without_doubling_for_the_other(rig: SourceRig) -> None:
    rig.add(NUMBERS)
    connector = rig.connector()
    plan = plan_of(connector)
    batches = read_all(connector, plan)
    ahead = ends_of(plan, batches[: len(batches) // 2])
    again = rig.connector()
    both = plan_of(again, ahead, {})
    taken = [b for b in read_all(again, both) if b.start >= ahead.get(b.partition, 0)]
    assert numbers_in([*stored(batches[: len(batches) // 2]), *taken]) == NUMBERS


def test_a_bounded_read_ends_although_the_source_grows(rig: SourceRig) -> None:
    rig.add(NUMBERS[:30])
    connector = rig.connector()
    plan = plan_of(connector)
    first = read_all(connector, plan)
    rig.add(NUMBERS[30:])
    again = rig.connector()
    rest = read_all(again, plan_of(again, ends_of(plan, first)))
    assert numbers_in([*first, *rest]) == NUMBERS


def test_an_unbounded_read_sees_what_arrives_later(rig: SourceRig) -> None:
    rig.add(NUMBERS[:10])
    connector = rig.connector()
    plan = plan_of(connector, is_bounded=False)
    (partitions,) = connector.groups(plan, 1).values()
    reader = connector.reader(plan, partitions, frozenset())
    batches: list[MicroBatch] = []
    has_grown = False
    deadline = time.monotonic() + 30
    while len(numbers_in(batches)) < 60 and time.monotonic() < deadline:
        if not has_grown and len(numbers_in(batches)) == 10:
            rig.add(NUMBERS[10:])
            has_grown = True
        batches += reader.read()
        assert not reader.is_done
    reader.close()
    assert numbers_in(batches) == NUMBERS
    ends_of(plan, batches)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_groups_hold_every_partition_once(rig: SourceRig, count: int) -> None:
    rig.add(NUMBERS)
    connector = rig.connector()
    plan = plan_of(connector)
    groups = connector.groups(plan, count)
    assert 1 <= len(groups) <= count
    assert sorted(p for group in groups.values() for p in group) == sorted(plan.partitions)
    assert numbers_in(read_all(connector, plan, groups=count)) == NUMBERS


def test_batches_have_the_columns_that_the_connector_promised(rig: SourceRig) -> None:
    rig.add(NUMBERS[:5])
    connector = rig.connector()
    promised = [name for name in connector.empty().column_names if name not in connector.metadata_columns]
    for batch in read_all(connector, plan_of(connector)):
        assert batch.table.column_names == promised
        assert batch.table.schema.types == connector.empty().select(promised).schema.types


def test_identity_and_plan_are_the_same_in_every_process(rig: SourceRig) -> None:
    rig.add(NUMBERS[:5])
    plan = plan_of(rig.connector())
    again = plan_of(rig.connector())
    if isinstance(rig, PostgresRig):  # the log of a database moves on by itself
        assert (again.identity, again.partitions.keys()) == (plan.identity, plan.partitions.keys())
    else:
        assert again == plan
    assert pickle.loads(pickle.dumps(plan)) == plan


def test_a_source_with_nothing_new_is_done_at_once(rig: SourceRig) -> None:
    rig.add(NUMBERS[:5])
    connector = rig.connector()
    plan = plan_of(connector)
    ends = ends_of(plan, read_all(connector, plan))
    again = rig.connector()
    assert numbers_in(read_all(again, plan_of(again, ends))) == []
