from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.kafka import KafkaConnector, KafkaSettings
from connectors.kafka.records import Decoder, Records, Segment, cut, gather, take

_ALL = frozenset({"_topic", "_partition", "_offset", "_timestamp", "_key", "_headers"})


class _FakeMessage:
    """A message as librdkafka's client shows it."""

    def __init__(self, partition: int, offset: int, value: bytes | None, *, topic: str = "t", **rest: object) -> None:
        self._partition, self._offset, self._value, self._topic, self._rest = partition, offset, value, topic, rest

    def topic(self) -> str:
        return self._topic

    def partition(self) -> int:
        return self._partition

    def offset(self) -> int:
        return self._offset

    def value(self) -> bytes | None:
        return self._value

    def key(self) -> object:
        return self._rest.get("key")

    def headers(self) -> object:
        return self._rest.get("headers")

    def timestamp(self) -> object:
        return self._rest.get("timestamp", (0, -1))


def _settings(**values: object) -> KafkaSettings:
    return KafkaSettings.build("test", {"bootstrap_servers": "b:1", "topic": "t", "format": "binary", **values})


def _taken(messages: list[_FakeMessage], columns: frozenset[str] = frozenset()) -> Records:
    return take(messages, columns, sorted({(m.topic(), m.partition()) for m in messages}))  # type: ignore[arg-type]


@given(
    calls=st.lists(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 2)), min_size=1), min_size=1, max_size=4),
)
def test_gather_keeps_every_message_and_the_order_within_a_partition(calls: list[list[tuple[str, int]]]) -> None:
    counter = itertools.count()
    messages = [
        [
            _FakeMessage(partition, n, b"%d" % n, topic=topic)
            for (topic, partition), n in zip(call, counter, strict=False)
        ]
        for call in calls
    ]
    keys = sorted({(m.topic(), m.partition()) for call in messages for m in call})
    together, segments = gather([take(call, frozenset(), keys) for call in messages])  # type: ignore[arg-type]
    assert sorted(s.partition for s in segments) == keys
    for segment in segments:
        expected = [m.offset() for call in messages for m in call if (m.topic(), m.partition()) == segment.partition]
        assert together.offsets[segment.first : segment.last].tolist() == expected
        values = together.values[segment.first : segment.last].to_pylist()
        assert values == [b"%d" % n for n in expected]
    assert together.num_rows == sum(len(call) for call in calls)


@given(
    offsets=st.lists(st.integers(0, 60), unique=True).map(sorted),
    start=st.integers(0, 60),
    more=st.integers(1, 20),
    edges=st.lists(st.integers(0, 80), unique=True).map(sorted),
    limit=st.integers(1, 40),
    is_limited=st.booleans(),
)
def test_cut_pieces_are_adjacent_hold_every_record_once_and_straddle_no_edge(
    offsets: list[int], start: int, more: int, edges: list[int], limit: int, is_limited: bool
) -> None:
    end = start + more
    sizes = np.array([0, *itertools.accumulate(7 for _ in offsets)], np.int64) if is_limited else None
    pieces = list(cut(np.array(offsets, np.int64), start, end, edges, sizes, limit))
    assert pieces[0][0] == start
    assert pieces[-1][1] == end
    assert all(a[1] == b[0] and a[3] == b[2] for a, b in itertools.pairwise(pieces))
    assert all(not any(first < edge < last for edge in edges) for first, last, _, _ in pieces)
    for first, last, a, b in pieces:
        assert [o for o in offsets if first <= o < last] == offsets[a:b]
        if is_limited:
            assert b - a <= max(1, limit // 7)


def test_metadata_columns_are_made_only_when_wanted_and_say_where_a_row_came_from() -> None:
    messages = [
        _FakeMessage(1, 7, b"x", key=b"k", timestamp=(1, 1_700_000_000_123), headers=[("h", b"v"), ("h", None)]),
        _FakeMessage(0, 3, None),
    ]
    records, segments = gather([_taken(messages, _ALL)])
    row, tombstone = Decoder(_settings(), _ALL | {"value"}).decode(records, segments).to_pylist()
    assert row["_timestamp"].isoformat() == "2023-11-14T22:13:20.123000+00:00"
    assert {name: row[name] for name in ("value", "_topic", "_partition", "_offset", "_key")} == {
        "value": b"x",
        "_topic": "t",
        "_partition": 1,
        "_offset": 7,
        "_key": b"k",
    }
    assert row["_headers"] == [{"key": "h", "value": b"v"}, {"key": "h", "value": None}]
    assert tombstone == {
        "value": None,
        "_topic": "t",
        "_partition": 0,
        "_offset": 3,
        "_timestamp": None,
        "_key": None,
        "_headers": None,
    }
    assert Decoder(_settings(), frozenset()).decode(records, segments).column_names == ["value"]


@pytest.mark.parametrize(
    "settings", [{"format": "binary"}, {"format": "string"}, {"format": "json", "schema": "id BIGINT, t ARRAY<INT>"}]
)
def test_a_batch_has_the_columns_that_the_connector_promises(settings: dict[str, object]) -> None:
    promised = KafkaConnector(_settings(**settings)).empty()
    assert promised.column_names[-6:] == list(KafkaConnector(_settings()).metadata_columns)
    records, segments = gather(
        [_taken([_FakeMessage(0, 0, b'{"id": 1, "t": [2]}', key=b"k", headers=[("a", b"b")])], _ALL)]
    )
    decoder = Decoder(_settings(**settings), frozenset(promised.column_names))
    assert decoder.decode(records, segments).schema == promised.schema == decoder.schema


def test_bytes_that_are_no_text_are_rescued() -> None:
    records, segments = gather(
        [_taken([_FakeMessage(0, n, v) for n, v in enumerate([b"gr\xc3\xbcn", b"\xff\x00", None])])]
    )
    table = Decoder(_settings(format="string"), frozenset({"value", "_rescued_data"})).decode(records, segments)
    assert table.to_pydict() == {
        "value": ["grün", None, None],
        "_rescued_data": [None, '{"_raw_base64": "/wA="}', None],
    }


def test_json_that_cannot_be_read_is_rescued_row_by_row() -> None:
    values = [b'{"id": 1}', b"{not json", b'{"id": "x"}', b'{"id": 99999999999999999999}', b"", None]
    records, segments = gather([_taken([_FakeMessage(0, n, v) for n, v in enumerate(values)])])
    decoder = Decoder(_settings(format="json", schema="id BIGINT"), frozenset({"id", "_rescued_data", "_offset"}))
    table = decoder.decode(records, segments)
    assert table["_offset"].to_pylist() == [0, 1, 2, 3, 4, 5]
    assert table["id"].to_pylist() == [1, None, None, None, None, None]
    assert [value is not None for value in table["_rescued_data"].to_pylist()[:4]] == [False, True, True, True]


def test_columns_that_nobody_uses_are_not_decoded() -> None:
    records, segments = gather([_taken([_FakeMessage(0, 0, b'{"a": 1, "b": 2}')])])
    settings = _settings(format="json", schema="a BIGINT, b BIGINT")
    assert Decoder(settings, frozenset({"b"})).decode(records, segments).to_pydict() == {"b": [2]}
    assert Decoder(settings, frozenset({"_offset"})).decode(records, segments)["_offset"].to_pylist() == [0]


def test_segments_are_zero_copy_slices() -> None:
    values = pa.array([b"a", b"b"], pa.binary())
    records = Records(runs=((("t", 0), 0, 2),), offsets=np.array([1, 2], np.int64), values=values, metadata={})
    together, segments = gather([records])
    assert together is records
    assert segments == [Segment(partition=("t", 0), first=0, last=2)]
