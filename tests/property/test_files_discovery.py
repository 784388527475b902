"""Any order of new, changed and deleted files, listings, notifications and crashes: each version is read exactly once."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.files.discovery.channel import ChannelLost, Heard
from connectors.files.discovery.discover import Discovery
from connectors.files.discovery.events import ObjectEvent
from connectors.files.discovery.known import KnownNames
from connectors.files.discovery.settings import DiscoverySettings
from connectors.files.local_store import LocalStore
from tests.integration.files_lab import PARTITION, FilesLab, Flow, ids, read
from waxlake.stream.source import plan_partitions

_NAMES = ("a.json", "b.json", "d/a.json")


class _Topic:
    """A channel over a list of keys, as Kafka is one: a position is an index."""

    name = "topic"

    def __init__(self, keys: list[str], lost_below: int) -> None:
        self._keys, self._lost_below = keys, lost_below

    def ends(self) -> Mapping[str, int]:
        return {"events": len(self._keys)}

    def hear(self, stored: Callable[[str], int | None]) -> Heard:
        start = stored("events")
        if start is None or start < self._lost_below:
            raise ChannelLost("expired")
        end = min(len(self._keys), start + 3)
        events = [ObjectEvent("", key) for key in self._keys[start:end]]
        return Heard(events, {"events": end}, has_more=False)

    def recorded(self) -> None:
        pass

    def close(self) -> None:
        pass


class _EventedStore(LocalStore):
    """A local store whose files notifications tell of."""

    def path_of(self, bucket: str, key: str) -> str | None:
        return f"{self.root}/{key}"


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.sampled_from(_NAMES)),
        st.tuples(st.just("delete"), st.sampled_from(_NAMES)),
        st.tuples(st.just("tell"), st.sampled_from(_NAMES)),
        st.tuples(st.just("expire"), st.none()),
        st.tuples(st.just("list"), st.none()),
        st.tuples(st.just("hear"), st.none()),
        st.tuples(st.just("read"), st.integers(0, 2)),
    ),
    max_size=14,
)


class _World:
    """A folder, its events, and a flow that reads it; everything of a run is made anew for each step, as after a crash."""

    def __init__(self, root: Path, overwrites: str) -> None:
        self.lab = FilesLab(root, options={"allow_overwrites": overwrites, "ignore_missing_files": True})
        self.lab.inbox.mkdir()
        self.flow, self.overwrites = Flow(), overwrites
        self.events: list[str] = []
        self.lost_below = 0
        self.count = 0
        self.current: dict[str, int] = {}

    def step(self, what: str, given: Any) -> None:
        if what == "write":
            self.count += 1
            path = self.lab.write(given, json.dumps({"id": self.count}))
            os.utime(path, (1_000_000 + self.count, 1_000_000 + self.count))
            self.current[given] = self.count
        elif what == "delete":
            (self.lab.inbox / given).unlink(missing_ok=True)
            self.current.pop(given, None)
        elif what == "tell":
            self.events.append(given)
        elif what == "expire":
            self.lost_below = len(self.events)
        elif what == "read":
            self.read(given)
        else:
            self.connector(full=what == "list").inspect()

    def connector(self, *, full: bool) -> Any:
        connector = self.lab.connector()
        store = _EventedStore(str(self.lab.inbox))
        connector._opened_store = store
        chosen = DiscoverySettings(
            allow_overwrites=self.overwrites,
            **({} if full else {"use_notifications": True, "queue_url": "http://x/q", "backfill_interval": "1000d"}),
        )
        channel = _Topic(self.events, self.lost_below)
        connector._opened_discovery = Discovery(chosen, store, connector._ledger, channel=channel)
        return connector

    def read(self, most: int | None, *, full: bool = False) -> None:
        connector = self.connector(full=full)
        state = connector.inspect()
        plan = plan_partitions(state, [self.flow.stored], on_data_loss="fail", is_bounded=True)
        if self.flow.position is None:
            self.flow.position = state.begin[PARTITION]
        read(connector, plan, [self.flow], max_batches=most)


@pytest.mark.parametrize("overwrites", ["off", "append"])
@settings(max_examples=25)
@given(steps=_STEPS)
def test_each_version_of_a_file_is_read_exactly_once(overwrites: str, steps: list[tuple[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        world = _World(Path(name), overwrites)
        for what, given in steps:
            world.step(what, given)
        for _ in range(2):
            world.read(None, full=True)
        got = ids(world.flow)
        assert len(got) == len(set(got))
        if overwrites == "append":
            assert set(world.current.values()) <= set(got)
        else:
            read_of = {row["number"]: row["path"] for row in world.lab.ledger_rows()}
            assert len(set(read_of.values())) == len(read_of)  # a path is one file
            assert {str(world.lab.inbox / name) for name in world.current} <= set(read_of.values())


def _colliding(names: list[str]) -> Any:
    import numpy as np

    halves = np.array([[len(name) % 3, int.from_bytes(name.encode()[-7:], "big")] for name in names], np.int64)
    return halves.reshape(-1, 2)[:, 0].copy(), halves.reshape(-1, 2)[:, 1].copy()


@given(st.lists(st.lists(st.text("abc", max_size=6), max_size=30), max_size=8), st.booleans())
def test_known_names_are_a_set_even_when_hashes_collide(groups: list[list[str]], collides: bool) -> None:
    known = KnownNames(_colliding) if collides else KnownNames()  # type: ignore[arg-type]
    expected: set[str] = set()
    for group in groups:
        assert [group[index] for index in known.unknown(group)] == [name for name in group if name not in expected]
        known.add(group)
        expected.update(group)
        assert known.unknown(sorted(expected)) == []
    assert known.size_bytes == 16 * len(known)
