"""Sets of transaction ids, of MySQL and of MariaDB: read, compared, and kept as notes beside a position."""

from __future__ import annotations

import struct
import uuid

import pytest

from connectors.mysql.gtid import Gtid, GtidSet, note_names, parse_gtid, parse_listed, parse_text

A, B = "3e11fa47-71ca-11e1-9e33-c80aa9429562", "3e11fa47-71ca-11e1-9e33-c80aa9429563"


def listed(**servers: list[tuple[int, int]]) -> bytes:
    """Return MySQL's event of a set, intervals with their last number included."""
    body = struct.pack("<Q", len(servers))
    for name, intervals in servers.items():
        body += uuid.UUID({"a": A, "b": B}[name]).bytes + struct.pack("<Q", len(intervals))
        body += b"".join(struct.pack("<QQ", first, last + 1) for first, last in intervals)
    return body


@pytest.mark.parametrize(
    ("text", "event"),
    [
        ("", {}),
        (f"{A}:1-5", {"a": [(1, 5)]}),
        (f"{A}:1-5:7:9-10,\n{B}:1", {"a": [(1, 5), (7, 7), (9, 10)], "b": [(1, 1)]}),
        (f"{A.upper()}:7:1-5:6", {"a": [(1, 7)]}),
    ],
)
def test_a_set_of_mysql_is_the_same_in_text_and_in_an_event(text: str, event: dict[str, list[tuple[int, int]]]) -> None:
    found = parse_text(text, is_mariadb=False)
    assert found == parse_listed(listed(**event), is_mariadb=False)
    assert parse_text(str(found), is_mariadb=False) == found


@pytest.mark.parametrize("text", ["0-1-5", f"{A}", f"{A}:1-x", "shop:1-5", f"{A}:tag:1-5"])
def test_what_is_no_set_of_mysql(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - from several places
        parse_text(text, is_mariadb=False)


def test_tagged_ids_are_not_taken_for_others() -> None:
    with pytest.raises(ValueError, match="tagged"):
        parse_listed(struct.pack("<Q", 1 << 56 | 1), is_mariadb=False)


def test_sets_of_mysql_are_compared_by_their_intervals() -> None:
    have, had = parse_text(f"{A}:1-10:20-30", is_mariadb=False), parse_text(f"{A}:1-5:25,{B}:1-2", is_mariadb=False)
    assert have.beyond(had) == (f"{A}:6-10", f"{A}:20-24", f"{A}:26-30")
    assert had.beyond(have) == (f"{B}:1-2",)
    assert not have.is_within(had)
    assert parse_text(f"{A}:2-9:21", is_mariadb=False).is_within(have)
    assert have.holds(Gtid(A, 20))
    assert not have.holds(Gtid(A, 15))
    assert not have.holds(Gtid(B, 1))
    grown = have.with_all([Gtid(A, n) for n in range(19, 10, -1)] + [Gtid(B, 1)])
    assert str(grown) == f"{A}:1-30,{B}:1"


def test_sets_of_mariadb_know_the_last_of_each_domain() -> None:
    event = struct.pack("<I", 3 | 1 << 28) + struct.pack("<IIQ", 0, 2, 7) + struct.pack("<IIQ", 0, 1, 9)
    found = parse_listed(event + struct.pack("<IIQ", 5, 1, 3), is_mariadb=True)
    assert found == parse_text("0-1-9,5-1-3", is_mariadb=True)
    assert found.beyond(parse_text("0-1-4", is_mariadb=True)) == ("0-1-5..9", "5-1-1..3")
    assert found.with_all([Gtid("0", 10, 2)]) == parse_text("0-2-10,5-1-3", is_mariadb=True)


def test_events_that_begin_a_transaction() -> None:
    mariadb = struct.pack("<QIB", 77, 3, 0)
    assert str(parse_gtid(mariadb, 4, is_mariadb=True)) == "3-4-77"
    mysql = b"\x01" + uuid.UUID(A).bytes + struct.pack("<Q", 12)
    assert str(parse_gtid(mysql, 4, is_mariadb=False)) == f"{A}:12"


@pytest.mark.parametrize(
    ("text", "is_mariadb"), [("0-1-9,5-2-3", True), (f"{A}:1-30,{B}:1", False), ("", True), ("", False)]
)
def test_notes_keep_a_set_beside_its_position_and_no_other(text: str, is_mariadb: bool) -> None:
    gtids = parse_text(text, is_mariadb=is_mariadb)
    notes = gtids.notes(500)
    assert set(notes) <= set(note_names(gtids.origins))
    assert GtidSet.of_notes(notes, 500) == gtids
    assert GtidSet.of_notes(notes, 501) is None  # a later commit that could not note any
    assert GtidSet.of_notes({}, 500) is None


def test_a_set_with_holes_has_no_notes_until_they_are_filled() -> None:
    gtids = parse_text(f"{A}:1-5:7", is_mariadb=False)
    notes = gtids.notes(1)
    assert GtidSet.of_notes(notes, 1) is None
    filled = gtids.with_all([Gtid(A, 6)])
    assert GtidSet.of_notes({**notes, **filled.notes(2)}, 2) == filled
