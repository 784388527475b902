"""A writer of database tables that remembers what it did, and the check that a change log says the same.

It knows no database: statements are plain SQL that PostgreSQL, MySQL and MariaDB take, handed to a function that runs them in
one transaction and returns where the log stands then. It is the only writer, so its own memory is what the tables must hold;
each row carries a version that grows with each change of it, so each change can be told from every other.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import pyarrow as pa

KEYS = {"accounts": ("id",), "entries": ("a", "b")}
_CREATE = (
    "CREATE TABLE accounts (id BIGINT PRIMARY KEY, v BIGINT NOT NULL, name VARCHAR(100), amount DECIMAL(12,2), document TEXT)",
    "CREATE TABLE entries (a INT NOT NULL, b VARCHAR(20) NOT NULL, v BIGINT NOT NULL, amount DECIMAL(12,2), PRIMARY KEY (a, b))",
)
_COLUMNS = {"accounts": ["id", "v", "name", "amount", "document"], "entries": ["a", "b", "v", "amount"]}

Row = dict[str, Any]
Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class State:
    """What one transaction left.

    Attributes:
        position: A position of the log that is after it and before what the next one writes.
        rows: Table to the rows that it touched, as they are then; None for one that is gone.
    """

    position: int
    rows: dict[str, dict[Key, Row | None]]


@dataclass(slots=True)
class Workload:
    """Changes two tables at random, the same way for the same seed.

    ``states`` are the committed states, each as what differs from the one before. ``moved_documents`` are the keys that rows
    with a large value were moved to: a source that does not send such a value again looks it up later, and may find the row gone.

    Args:
        transact: Runs statements in one transaction, and returns a position of the log after it.
        seed: Of the random choices.
    """

    transact: Callable[[Sequence[str]], int]
    seed: int = 7
    rows: dict[str, dict[Key, Row]] = field(default_factory=lambda: {table: {} for table in KEYS})
    changes: Counter[tuple[str, str, Key, int]] = field(default_factory=Counter)
    before: Counter[tuple[str, str, Key, int]] = field(default_factory=Counter)
    states: list[State] = field(default_factory=list)
    moved_documents: set[Key] = field(default_factory=set)
    _touched: dict[str, set[Key]] = field(default_factory=lambda: {table: set() for table in KEYS})
    _random: random.Random = field(default_factory=random.Random)
    _version: int = 0
    _extra: int = 0

    def __post_init__(self) -> None:
        self._random.seed(self.seed)

    def create(self, rows: int) -> None:
        """Create the tables with some rows."""
        for statement in _CREATE:
            self.transact([statement])
        for _ in range(rows // 50):
            self._commit([self._insert("accounts", 50), self._insert("entries", 20)])
        self.changes.clear()

    def begin(self) -> None:
        """Note that the source is followed by now: what was changed before may be in the log, or only in the first load."""
        self.before += self.changes
        self.changes.clear()

    def run(self, transactions: int) -> None:
        """Make some transactions, one after the other."""
        for _ in range(transactions):
            count = self._random.choice((1, 1, 1, 2, 5))
            self._commit([s for _ in range(count) for s in self._some_statements()])

    def large(self, rows: int) -> None:
        """Make one large transaction."""
        self._commit([self._insert("accounts", 500) for _ in range(rows // 500)])

    def truncate(self) -> None:
        """Empty one table."""
        self._version += 1
        self.changes["entries", "truncate", (), 0] += 1
        self._touched["entries"].update(self.rows["entries"])
        self.rows["entries"].clear()
        self._commit(["TRUNCATE TABLE entries"])

    def add_column(self) -> None:
        """Give a table one column more."""
        self._extra += 1
        name = f"extra_{self._extra}"
        self.transact([f"ALTER TABLE accounts ADD COLUMN {name} INT"])
        for row in self.rows["accounts"].values():
            row[name] = None

    def _commit(self, statements: Sequence[str]) -> None:
        """Run statements whose effect is in ``rows`` already, and remember the state that they leave."""
        position = self.transact(statements)
        touched: dict[str, dict[Key, Row | None]] = {}
        for table, keys in self._touched.items():
            rows = self.rows[table]
            touched[table] = {key: dict(rows[key]) if key in rows else None for key in keys}
            keys.clear()
        self.states.append(State(position, touched))

    def _some_statements(self) -> Iterable[str]:
        table = self._random.choice(("accounts", "accounts", "entries"))
        kind = self._random.random()
        if kind < 0.35 or len(self.rows[table]) < 5:
            yield self._insert(table, self._random.randint(1, 20))
        elif kind < 0.75:
            yield from self._update(table)
        elif kind < 0.85:
            yield from self._move(table)
        else:
            yield from self._delete(table)

    def _next_version(self) -> int:
        self._version += 1
        return self._version

    def _insert(self, table: str, count: int) -> str:
        added = []
        for _ in range(count):
            row = self._new_row(table)
            key = tuple(row[name] for name in KEYS[table])
            if key in self.rows[table]:
                continue
            self.rows[table][key] = row
            self._touched[table].add(key)
            self.changes[table, "insert", key, row["v"]] += 1
            added.append(row)
        names = list(added[0])
        values = ", ".join("(" + ", ".join(_literal(row[name]) for name in names) + ")" for row in added)
        return f"INSERT INTO {table} ({', '.join(names)}) VALUES {values}"

    def _new_row(self, table: str) -> Row:
        version, amount = self._next_version(), Decimal(self._random.randrange(-(10**6), 10**6)) / 100
        if table == "entries":
            return {"a": self._random.randrange(10**6), "b": f"k{version % 7}", "v": version, "amount": amount}
        document = None if version % 5 else "".join(self._random.choices("abcdefghij 'é", k=3000))
        row: Row = {"id": version, "v": version, "name": f"name {version}", "amount": amount, "document": document}
        return row | {f"extra_{i + 1}": self._random.randrange(100) for i in range(self._extra)}

    def _picked(self, table: str, most: int) -> list[Key]:
        keys = list(self.rows[table])
        return self._random.sample(keys, min(len(keys), self._random.randint(1, most)))

    def _update(self, table: str) -> Iterable[str]:
        """Change small columns only, so that a large one may be left out of what the source sends."""
        for key in self._picked(table, 4):
            row = self.rows[table][key]
            row["v"], row["amount"] = self._next_version(), Decimal(self._random.randrange(10**6)) / 100
            self._touched[table].add(key)
            self.changes[table, "update", key, row["v"]] += 1
            yield f"UPDATE {table} SET v = {row['v']}, amount = {row['amount']} WHERE {_where(table, key)}"

    def _move(self, table: str) -> Iterable[str]:
        """Change a key: a delete of the old one and an insert of the new one."""
        (key,) = self._picked(table, 1)
        row = self.rows[table].pop(key)
        self.changes[table, "delete", key, row["v"]] += 1
        name = KEYS[table][0]
        row["v"] = self._next_version()
        row[name] = row["v"] + 10**7
        new = tuple(row[column] for column in KEYS[table])
        self.rows[table][new] = row
        self._touched[table].update((key, new))
        if row.get("document") is not None:
            self.moved_documents.add(new)
        self.changes[table, "insert", new, row["v"]] += 1
        yield f"UPDATE {table} SET {name} = {row[name]}, v = {row['v']} WHERE {_where(table, key)}"

    def _delete(self, table: str) -> Iterable[str]:
        for key in self._picked(table, 3):
            row = self.rows[table].pop(key)
            self._touched[table].add(key)
            self.changes[table, "delete", key, row["v"]] += 1
            yield f"DELETE FROM {table} WHERE {_where(table, key)}"


def replayed(table: str, log: pa.Table) -> dict[Key, Row]:
    """Return the rows that a change log ends with, applied in the order of the source's commits."""
    keys = KEYS[table]
    rows: dict[Key, Row] = {}
    for change in log.sort_by([("_commit_position", "ascending"), ("_change_index", "ascending")]).to_pylist():
        key = tuple(change[name] for name in keys)
        kind = change["_change_type"]
        if kind == "truncate":
            rows.clear()
        elif kind == "delete":
            rows.pop(key, None)
        else:
            kept = {name: rows.get(key, {}).get(name) for name in change["_unchanged"] or ()}  # a first load may follow
            rows[key] = {name: value for name, value in change.items() if not name.startswith("_")} | kept
    return rows


def logged_changes(table: str, log: pa.Table, *, has_old_versions: bool) -> Counter[tuple[str, str, Key, int]]:
    """Return what a change log says happened, rows of the first load left out.

    Args:
        table: The table.
        log: Its change rows.
        has_old_versions: Whether deletes carry the version that was deleted; else it is taken as 0.
    """
    found: Counter[tuple[str, str, Key, int]] = Counter()
    for change in log.to_pylist():
        kind = change["_change_type"]
        if kind == "truncate":
            found[table, kind, (), 0] += 1
        elif kind != "read":
            version = change["v"] if kind != "delete" or has_old_versions else 0
            found[table, kind, tuple(change[name] for name in KEYS[table]), version] += 1
    return found


def _where(table: str, key: Key) -> str:
    return " AND ".join(f"{name} = {_literal(value)}" for name, value in zip(KEYS[table], key, strict=True))


def _literal(value: Any) -> str:
    if value is None:
        return "NULL"
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else str(value)
