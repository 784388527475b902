"""Text to typed values as a source's options say: patterns of dates and times, a time zone, names of infinite numbers.

Called by every format whose values are text. Where no option says otherwise the exact rules of ``text_values`` hold alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from connectors.files.formats.text_values import convert_text, infer_text_type
from connectors.files.formats.time_patterns import TimePattern
from connectors.files.options import TypeOptions

__all__ = ["TextTypes"]

_ZONED = r"[0-9](?:Z|[+-][0-9]{2}(?::?[0-9]{2})?)$"
_AFTER_TIME = 11  # characters of a date and the T behind it: what looks like an offset before is none


@dataclass(frozen=True, slots=True)
class TextTypes:
    """How text becomes typed values.

    Attributes:
        date: Pattern of DATE.
        timestamp: Pattern of TIMESTAMP.
        timestamp_ntz: Pattern of TIMESTAMP_NTZ.
        time_zone: Zone of a TIMESTAMP that names none.
        names: Text of a DOUBLE to the name by which ``convert_text`` knows it.
    """

    date: TimePattern | None = None
    timestamp: TimePattern | None = None
    timestamp_ntz: TimePattern | None = None
    time_zone: str = "UTC"
    names: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, options: TypeOptions, names: Mapping[str, str] | None = None) -> TextTypes:
        """Return what ``options`` say."""
        patterns = (options.date_format, options.timestamp_format, options.timestamp_ntz_format)
        date, timestamp, ntz = (None if text is None else TimePattern.parse(text) for text in patterns)
        return cls(date, timestamp, ntz, options.time_zone, names or {})

    def is_plain(self, kind: pa.DataType) -> bool:
        """Return whether no option changes how a type is read."""
        if pa.types.is_timestamp(kind):
            if kind.tz is None:
                return self.timestamp_ntz is None
            return self.timestamp is None and self.time_zone == "UTC"
        if pa.types.is_date(kind):
            return self.date is None
        return not (self.names and pa.types.is_floating(kind))

    def convert(self, texts: pa.Array, kind: pa.DataType) -> tuple[pa.Array, pa.Array]:
        """Return typed values and which of them were lost, both of the shape of ``texts``; see ``convert_text``."""
        if self.is_plain(kind):
            return convert_text(texts, kind)
        trimmed = pc.ascii_trim_whitespace(texts)
        trimmed = pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), trimmed)
        values = self._converted(trimmed, kind)
        return values, pc.and_(trimmed.is_valid(), values.is_null())

    def infer(self, texts: pa.Array, *, prefer_date: bool = True) -> pa.DataType:
        """Return the narrowest type that holds all texts; see ``infer_text_type``."""
        kinds = [pa.bool_(), *([pa.date32()] if prefer_date else []), pa.timestamp("us", tz="UTC")]
        kinds += [pa.timestamp("us")] if self.timestamp_ntz is not None else []
        return infer_text_type(texts, self.convert, kinds)

    def _converted(self, texts: pa.Array, kind: pa.DataType) -> pa.Array:
        types = pa.types
        if types.is_floating(kind):
            return self._floats(texts, kind)
        if types.is_date(kind):
            iso = texts if self.date is None else self.date.to_iso(texts)
            return convert_text(pc.utf8_slice_codeunits(iso, 0, 10), kind)[0]
        pattern = self.timestamp_ntz if kind.tz is None else self.timestamp
        iso = texts if pattern is None else pattern.to_iso(texts)
        if kind.tz is None or self.time_zone == "UTC":
            return convert_text(iso, kind)[0]
        has_zone = pc.match_substring_regex(pc.utf8_slice_codeunits(iso, _AFTER_TIME), _ZONED)
        zoned = convert_text(pc.if_else(has_zone, iso, pa.scalar(None, pa.string())), kind)[0]
        local = convert_text(pc.if_else(has_zone, pa.scalar(None, pa.string()), iso), pa.timestamp("us"))[0]
        placed = pc.assume_timezone(local, self.time_zone, ambiguous="earliest", nonexistent="latest")
        return pc.coalesce(zoned, placed.cast(kind))

    def _floats(self, texts: pa.Array, kind: pa.DataType) -> pa.Array:
        """Convert numbers, and the names of those that are none; the standard names are no others' then."""
        given = pa.array(list(self.names), pa.string())
        known = pa.array(list(self.names.values()), pa.string())
        named = known.take(pc.index_in(texts, given))
        return convert_text(pc.coalesce(named, texts), kind)[0]
