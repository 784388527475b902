"""``FROM STREAM a WATERMARK … JOIN STREAM b WATERMARK … ON …``: a join of two streams in SQL, as ``Stream.join`` makes it.

Each side hands its rows over as one struct named as the stream is in the query, so ``a.x`` means the same behind the join; beside
it are the values that the join compares and the event time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlglot import expressions as exp

from waxlake.pipeline.definitions import Query, at_line
from waxlake.pipeline.sql import STREAM
from waxlake.pipeline.sqlfile.cursor import Cursor
from waxlake.pipeline.sqlfile.windows import (
    grouped,
    interval,
    is_of_window,
    not_streaming,
    offset_of,
    parsed,
    quoted,
    require_streaming,
)
from waxlake.pipeline.stateful_methods import duration_us
from waxlake.pipeline.stream import Stream

__all__ = ["Reference", "joined"]

_ROWS: Final = "__waxlake_rows"
_HOW: Final = {
    ("", ""): "inner", ("", "INNER"): "inner", ("", "SEMI"): "semi", ("LEFT", "SEMI"): "semi",
    **{(side, kind): side.lower() for side in ("LEFT", "RIGHT", "FULL") for kind in ("", "OUTER")},
}  # fmt: skip
_FROM: Final = "from_" if "from_" in exp.Select.arg_types else "from"
_FLIPPED: Final = {exp.GT: exp.LT, exp.GTE: exp.LTE, exp.LT: exp.GT, exp.LTE: exp.GTE, exp.EQ: exp.EQ}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A stream as a query names it.

    Attributes:
        stream: It.
        alias: Name in the query, or empty.
        shown: The same as the query has it behind the stream.
        watermark: Column and delay of its watermark, or None.
        start: Offset in the text where it begins.
        end: Offset after it, its alias and its watermark.
    """

    stream: Stream
    alias: str
    shown: str
    watermark: tuple[str, str] | None
    start: int
    end: int


def joined(query: Cursor, references: Sequence[Reference], text: str) -> Stream:
    """Return what a query over two streams says.

    Args:
        query: The query as written, for mistakes.
        references: Its streams.
        text: The query over ``stream_0`` and ``stream_1``.

    Raises:
        DefinitionError: Streams that are not joined, or by a condition that would keep rows for ever. Not retryable.
    """
    tree = parsed(text, query)
    with at_line(query.source.where(offset_of(query, "JOIN"))):
        require_streaming(tree, query)
        return _Joined(query, references, tree).stream()


@dataclass(slots=True)
class _Condition:
    """What a join compares: keys of both sides, and how far the right time may lie from the left one in microseconds."""

    keys: list[tuple[Any, Any]] = field(default_factory=list)
    low: int | None = None
    high: int | None = None
    rest: list[Any] = field(default_factory=list)

    def bound(self, kind: type[Any], value: int) -> None:
        """Take ``right time - left time`` compared with a value."""
        if kind in (exp.GTE, exp.GT, exp.EQ):
            low = value + (kind is exp.GT)
            self.low = low if self.low is None else max(low, self.low)
        if kind in (exp.LTE, exp.LT, exp.EQ):
            high = value - (kind is exp.LT)
            self.high = high if self.high is None else min(high, self.high)


class _Joined:
    def __init__(self, query: Cursor, references: Sequence[Reference], tree: Any) -> None:
        self._query, self._references, self._tree = query, references, tree
        self._dialect = query.source.dialect
        self._aliases = [reference.alias.lower() for reference in references]
        self._how = self._kind()
        self._times = [self._time(reference) for reference in references]

    def stream(self) -> Stream:
        from sinks.state import Join

        tree, first = self._tree, self._tree.args["joins"][0]
        using = [item.name for item in first.args.get("using") or []]
        self._qualify(using)
        found = _Condition(keys=[(self._column(0, name), self._column(1, name)) for name in using])
        for part in _parts(first.args.get("on")):
            self._read(part, found)
        where = [tree.args["where"].this] if tree.args.get("where") else []
        if self._how == "inner" and where:  # a bound may as well stand there
            for part in _parts(where[0]):
                self._read(part, found)
            where = []
        elif found.rest:
            raise not_streaming(
                self._query,
                found.rest[0].sql(dialect=self._dialect),
                "keys that are equal and a bound in time, joined by AND",
                remedy="Filter one side in a temporary view before, or the result in WHERE",
                word="ON",
            )
        self._require_bound(found)
        names = [
            f"{left.sql(dialect=self._dialect)} = {right.sql(dialect=self._dialect)}" for left, right in found.keys
        ]
        sides = [self._packed(side, names, [pair[side] for pair in found.keys]) for side in (0, 1)]
        assert found.low is not None
        assert found.high is not None
        operator = Join(on=tuple(names), within_us=(-found.low, found.high), how=self._how)
        made = sides[0]._joined(sides[1], operator, self._query.source.where(offset_of(self._query, "JOIN")))
        return self._rest(made, [*where, *found.rest])

    # -- what is joined

    def _kind(self) -> str:
        tree, references = self._tree, self._references
        joins = tree.args.get("joins") or []
        names = [getattr(of, "name", "") for of in (tree.args[_FROM].this, *(join.this for join in joins[:1]))]
        if len(references) > 2 or names != [f"{STREAM}_0", f"{STREAM}_1"]:
            raise self._query.source.error(
                "a query reads one stream, or joins two",
                references[-1 if len(references) > 2 else 1].start,
                code="SQL_TWO_STREAMS",
                expected="FROM STREAM(a) WATERMARK … JOIN STREAM(b) WATERMARK … ON … as its first join",
                remedy="Let a table hold the rows of the first join and read STREAM of that, read the other table without STREAM "
                "to join it as it is, or use UNION ALL",
            )
        join = joins[0]
        how = _HOW.get((join.side.upper(), join.kind.upper()))
        if how is None or join.method:
            raise not_streaming(
                self._query,
                " ".join(part for part in (join.method, join.side, join.kind, "JOIN") if part),
                "INNER, LEFT, RIGHT, FULL or LEFT SEMI JOIN of two streams",
                word="JOIN",
            )
        return how

    def _time(self, reference: Reference) -> str:
        if not reference.alias or self._aliases.count(reference.alias.lower()) > 1:
            raise self._query.source.error(
                "each stream of a join needs a name of its own",
                reference.start,
                code="SQL_SYNTAX",
                expected="AS name after it",
            )
        if reference.watermark is None:
            raise self._query.source.error(
                f"the join needs a watermark on '{reference.alias}'",
                reference.start,
                code="WATERMARK_MISSING",
                expected="STREAM(x) WATERMARK column DELAY OF INTERVAL 10 MINUTES",
                remedy="Give one to both streams: it says when rows can be forgotten",
            )
        return reference.watermark[0]

    def _qualify(self, using: Sequence[str]) -> None:
        """Give every column the name of its stream; those without one can only be event times or keys of USING."""
        for column in self._tree.find_all(exp.Column):
            if column.table or is_of_window(column):
                continue
            if column.name in using and self._how != "full":
                column.set("table", exp.to_identifier(self._alias(1 if self._how == "right" else 0)))
                continue
            sides = [side for side in (0, 1) if self._times[side].lower() == column.name.lower()]
            if len(sides) != 1:
                left, right = (reference.alias for reference in self._references)
                raise self._query.source.error(
                    f"column '{column.name}' in a join of streams needs the name of its stream",
                    offset_of(self._query, column.name.upper()),
                    code="SQL_AMBIGUOUS_COLUMN",
                    found=column.name,
                    expected=f"{left}.{column.name} or {right}.{column.name}",
                )
            column.set("table", exp.to_identifier(self._alias(sides[0])))

    def _alias(self, side: int) -> str:
        return self._references[side].alias

    def _column(self, side: int, name: str) -> Any:
        return exp.column(exp.to_identifier(name, quoted=True), table=exp.to_identifier(self._alias(side), quoted=True))

    # -- the condition

    def _read(self, part: Any, found: _Condition) -> None:
        """Take one condition: a bound in time, a key, or neither."""
        if isinstance(part, exp.Between):
            low = exp.GTE(this=part.this, expression=part.args["low"])
            high = exp.LTE(this=part.this, expression=part.args["high"])
            if self._bound(low, found) and self._bound(high, found):
                return
        elif type(part) in _FLIPPED and self._bound(part, found):
            return
        elif isinstance(part, exp.EQ):
            sides = [self._sides(part.this), self._sides(part.expression)]
            if sides in ([{0}, {1}], [{1}, {0}]):
                pair = (part.this, part.expression)
                found.keys.append(pair if sides[0] == {0} else pair[::-1])
                return
        found.rest.append(part)

    def _bound(self, part: Any, found: _Condition) -> bool:
        one, other, kind = self._moment(part.this), self._moment(part.expression), type(part)
        if one is None or other is None or one[0] == other[0]:
            return False
        if one[0] == 0:
            one, other, kind = other, one, _FLIPPED[kind]
        found.bound(kind, other[1] - one[1])  # right + b <kind> left + a
        return True

    def _moment(self, part: Any) -> tuple[int, int] | None:
        """Return the side whose event time an expression is, and the microseconds added to it."""
        if isinstance(part, exp.Paren):
            return self._moment(part.this)
        if isinstance(part, exp.Add | exp.Sub) and isinstance(part.expression, exp.Interval):
            found = self._moment(part.this)
            span = duration_us(interval(part.expression), "JOIN", "INTERVAL", self._query.where, may_be_zero=True)
            return None if found is None else (found[0], found[1] + (span if isinstance(part, exp.Add) else -span))
        if isinstance(part, exp.Column):
            for side in (0, 1):
                if part.table.lower() == self._aliases[side] and part.name.lower() == self._times[side].lower():
                    return side, 0
        return None

    def _sides(self, part: Any) -> set[int]:
        tables = {column.table.lower() for column in part.find_all(exp.Column)}
        return {self._aliases.index(table) if table in self._aliases else -1 for table in tables}

    def _require_bound(self, found: _Condition) -> None:
        left, right = (reference.alias for reference in self._references)
        on = offset_of(self._query, "ON", self._references[1].end)
        if not found.keys:
            raise not_streaming(
                self._query, "no equality of columns", f"ON {left}.id = {right}.id AND a bound in time", word="ON"
            )
        if found.low is not None and found.high is not None:
            return
        times = f"{left}.{self._times[0]}", f"{right}.{self._times[1]}"
        grow = [name for name, bound in ((left, found.high), (right, found.low)) if bound is None]
        all_of = " and ".join(map(repr, grow))
        raise self._query.source.error(
            "a join of two streams needs a bound in time",
            on,
            code="JOIN_UNBOUNDED",
            found=f"nothing that says how long a row of '{grow[0]}' may wait for its partner",
            expected=f"… AND {times[1]} BETWEEN {times[0]} - INTERVAL 1 HOUR AND {times[0]} + INTERVAL 1 HOUR, say",
            remedy=f"Without it every row of {all_of} would have to be kept for ever; to join with all rows of a table as it is "
            "now, name it without STREAM",
        )

    # -- what becomes of it

    def _packed(self, side: int, names: Sequence[str], keys: Sequence[Any]) -> Stream:
        """Return one side: its rows as a struct, its keys, and its event time."""
        reference, query = self._references[side], self._query
        assert reference.watermark is not None
        items = [f"{_ROWS} AS {quoted(reference.alias, query)}"]
        for name, key in zip(names, keys, strict=True):
            own = key.copy()
            for column in own.find_all(exp.Column):
                column.set("table", exp.to_identifier(_ROWS))
            items.append(f"{own.sql(dialect=self._dialect)} AS {quoted(name, query)}")
        items.append(f"{_ROWS}.{quoted(self._times[side], query)} AS {quoted(self._flat_time(side), query)}")
        text = f"SELECT {', '.join(items)} FROM (SELECT * FROM {STREAM}) AS {_ROWS}"
        packed = reference.stream._with(Query(text=text, where=query.source.where(reference.start)))
        return packed.with_watermark(self._flat_time(side), reference.watermark[1])

    def _flat_time(self, side: int) -> str:
        return f"{self._alias(side)}.{self._times[side]}"

    def _rest(self, made: Stream, where: Sequence[Any]) -> Stream:
        """Return the rows of the join as the rest of the query has them."""
        tree = self._tree
        tree.set("where", None)
        if where:
            tree.set("where", exp.Where(this=exp.and_(*where)))
        rest = tree.args["joins"][1:]
        tree.set("joins", rest or None)
        tree.set(_FROM, exp.From(this=exp.to_table(STREAM)))
        if tree.args.get("group"):
            if rest:
                raise not_streaming(self._query, "GROUP BY after a join with a table", word="GROUP")
            return self._aggregated(made)
        tree.set("expressions", list(self._unstarred()))
        if tree.args.get("distinct"):
            return self._distinct(made)
        return made._with(Query(text=tree.sql(dialect=self._dialect), where=self._query.where))

    def _unstarred(self) -> Iterator[Any]:
        for item in self._tree.expressions:
            if not isinstance(item, exp.Star):
                yield item
                continue
            for side in (0,) if self._how == "semi" else (0, 1):
                yield exp.Column(this=exp.Star(), table=exp.to_identifier(self._alias(side), quoted=True))

    def _aggregated(self, made: Stream) -> Stream:
        """Group the rows of the join: the columns that are used become columns of their own."""
        tree, flat = self._tree, {}
        if tree.args.get("where"):
            made = made.where(tree.args["where"].this.sql(dialect=self._dialect))
            tree.set("where", None)
        tree.set(
            "expressions",
            [exp.alias_(i, i.name, quoted=True) if isinstance(i, exp.Column) else i for i in tree.expressions],
        )
        for column in tree.find_all(exp.Column):
            if is_of_window(column):
                continue
            name = self._flat_name(column)
            flat[name] = column.sql(dialect=self._dialect)
            column.set("table", None)
            column.set("this", exp.to_identifier(name, quoted=True))
        return grouped(made.select(*self._flattened(flat)), tree, self._query)

    def _flat_name(self, column: Any) -> str:
        moment = self._moment(column)
        return f"{column.table}.{column.name}" if moment is None else self._flat_time(moment[0])

    def _flattened(self, flat: dict[str, str]) -> Iterator[str]:
        times = {self._flat_time(side) for side in (0, 1)}
        for name, sql in flat.items():
            yield quoted(name, self._query) if name in times else f"{sql} AS {quoted(name, self._query)}"

    def _distinct(self, made: Stream) -> Stream:
        """Keep the first of equal rows; an event time keeps its name until then, so that it bounds what is remembered."""
        tree = self._tree
        if tree.args["distinct"].args.get("on") is not None:
            raise not_streaming(
                self._query, "DISTINCT ON of a join", "DISTINCT, or a view of the join", word="DISTINCT"
            )
        tree.set("distinct", None)
        names, last = [], []
        for item in tree.expressions:
            of, name = item.unalias(), item.alias_or_name
            moment = self._moment(of)
            if of.is_star:
                last.append("*")
                names.append(item)
                continue
            kept = name if moment is None else self._flat_time(moment[0])
            shown = exp.column(exp.to_identifier(kept, quoted=True)) if moment is not None else of
            names.append(exp.alias_(shown, kept, quoted=True))
            last.append(f"{quoted(kept, self._query)} AS {quoted(name, self._query)}")
        tree.set("expressions", names)
        once = made._with(Query(text=tree.sql(dialect=self._dialect), where=self._query.where)).drop_duplicates()
        return once if "*" in last else once.select(*last)


def _parts(condition: Any) -> Iterator[Any]:
    """Yield what a condition joins by AND."""
    if condition is None:
        return
    if isinstance(condition, exp.Paren):
        yield from _parts(condition.this)
    elif isinstance(condition, exp.And):
        yield from _parts(condition.this)
        yield from _parts(condition.expression)
    else:
        yield condition
