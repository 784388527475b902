"""Java's patterns of dates and times, as Spark's options have them, read column by column without a Python loop over rows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["TimePattern"]

_MONTHS: Final = (
    "january february march april may june july august september october november december".split()  # noqa: SIM905
)
_DAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_SHORT_MONTHS: Final = "|".join(name[:3] for name in _MONTHS)
_SHORT_DAYS: Final = "|".join(name[:3] for name in _DAYS)
_OFFSET: Final = r"[+-][0-9]{2}"
# Letters to (field, expression); a field without a name is read and not used.
_FIELDS: Final = {
    **dict.fromkeys(("yyyy", "uuuu"), ("year", "[0-9]{4}")),
    **dict.fromkeys(("y", "u"), ("year", "[0-9]{1,4}")),
    **dict.fromkeys(("yy", "uu"), ("short_year", "[0-9]{2}")),
    **dict.fromkeys(("MM", "LL"), ("month", "[0-9]{2}")),
    **dict.fromkeys(("M", "L"), ("month", "[0-9]{1,2}")),
    **dict.fromkeys(("MMM", "LLL"), ("month_name", f"(?i:{_SHORT_MONTHS})")),
    **dict.fromkeys(("MMMM", "LLLL"), ("month_name", f"(?i:{'|'.join(_MONTHS)})")),
    "dd": ("day", "[0-9]{2}"),
    "d": ("day", "[0-9]{1,2}"),
    **dict.fromkeys(("E", "EE", "EEE"), ("", f"(?i:{_SHORT_DAYS})")),
    "EEEE": ("", f"(?i:{'|'.join(_DAYS)})"),
    "HH": ("hour", "[0-9]{2}"),
    "H": ("hour", "[0-9]{1,2}"),
    "hh": ("hour12", "0[1-9]|1[0-2]"),
    "h": ("hour12", "0?[1-9]|1[0-2]"),
    "a": ("half", "(?i:AM|PM)"),
    "mm": ("minute", "[0-9]{2}"),
    "m": ("minute", "[0-9]{1,2}"),
    "ss": ("second", "[0-9]{2}"),
    "s": ("second", "[0-9]{1,2}"),
    **{"S" * n: ("fraction", f"[0-9]{{1,{n}}}") for n in range(1, 10)},
    "X": ("zone", f"Z|{_OFFSET}(?:[0-9]{{2}})?"),
    "XX": ("zone", f"Z|{_OFFSET}[0-9]{{2}}"),
    **dict.fromkeys(("XXX", "ZZZZZ"), ("zone", f"Z|{_OFFSET}:[0-9]{{2}}")),
    "x": ("zone", f"{_OFFSET}(?:[0-9]{{2}})?"),
    **dict.fromkeys(("xx", "Z", "ZZ", "ZZZ"), ("zone", f"{_OFFSET}[0-9]{{2}}")),
    "xxx": ("zone", f"{_OFFSET}:[0-9]{{2}}"),
}
_TOKEN: Final = re.compile(r"'((?:[^']|'')*)'|([A-Za-z])\2*|([\[\]])|(.)", re.S)


@dataclass(frozen=True, slots=True)
class TimePattern:
    """A pattern, ready to be read.

    Attributes:
        regex: RE2 expression with a group a field; the whole text has to fit.
        fields: Names of the groups.
    """

    regex: str
    fields: frozenset[str]

    @staticmethod
    @lru_cache(maxsize=64)
    def parse(text: str) -> TimePattern:
        """Read a pattern.

        Raises:
            ValueError: A letter that is not available, a field twice, no year, or an open quote or bracket.
        """
        parts, fields, depth = [], [], 0
        for match in _TOKEN.finditer(text):
            quoted, letter, bracket, other = match.groups()
            if letter:
                name, expression = _field(match[0], text)
                parts.append(f"(?P<{name}>{expression})" if name else f"(?:{expression})")
                fields += [name] if name else []
            elif bracket:
                depth += 1 if bracket == "[" else -1
                parts.append("(?:" if bracket == "[" else ")?")
            else:
                parts.append(re.escape(other or quoted.replace("''", "'") or "'"))
            if depth < 0 or other == "'":
                break
        if depth or text.count("'") % 2:
            raise ValueError(f"pattern {text!r} has an open quote or bracket")
        twice = [name for name in fields if fields.count(name) > 1]
        if twice:
            raise ValueError(f"pattern {text!r} has the {twice[0]} twice")
        if not {"year", "short_year"} & set(fields):
            raise ValueError(f"pattern {text!r} has no year (yyyy)")
        if "hour12" in fields and "half" not in fields:
            raise ValueError(f"pattern {text!r} has an hour of 12 (h) without AM or PM (a); HH is the hour of 24")
        return TimePattern("^" + "".join(parts) + "$", frozenset(fields))

    def to_iso(self, texts: pa.Array) -> pa.Array:
        """Return each text as ISO 8601, ``2024-01-02T03:04:05.000000`` with the zone it names; NULL where it does not fit."""
        found = pc.extract_regex(texts, self.regex)
        parts = {name: pc.struct_field(found, name) for name in self.fields}
        year = parts.get("year")
        if year is None:
            year = pc.binary_join_element_wise("20", parts["short_year"], "")
        month = _number(parts, "month", "01")
        if "month_name" in parts:
            month = _month(parts["month_name"])
        hour = _hour12(parts) if "hour12" in parts else _number(parts, "hour", "00")
        second, minute, day = (
            _number(parts, "second", "00"),
            _number(parts, "minute", "00"),
            _number(parts, "day", "01"),
        )
        fraction = "000000"
        if "fraction" in parts:
            fraction = pc.utf8_rpad(parts["fraction"], 6, "0")
        date = pc.binary_join_element_wise(pc.utf8_lpad(year, 4, "0"), month, day, "-")
        time = pc.binary_join_element_wise(hour, minute, second, ":")
        zone = parts.get("zone", pc.if_else(found.is_valid(), "", None))
        whole = pc.binary_join_element_wise(date, "T", time, ".", fraction, zone, "")
        return pc.if_else(found.is_valid(), whole, pa.scalar(None, pa.string()))


def _field(letters: str, text: str) -> tuple[str, str]:
    found = _FIELDS.get(letters)
    if found is None:
        raise ValueError(
            f"pattern {text!r}: {letters!r} is not available; letters are y M d E H h a m s S X x Z, as in "
            "yyyy-MM-dd'T'HH:mm:ss[.SSS][XXX]"
        )
    return found


def _number(parts: dict[str, pa.Array], name: str, default: str) -> pa.Array | str:
    """Return a field as two digits."""
    if name not in parts:
        return default
    digits = pc.if_else(pc.equal(parts[name], ""), default, parts[name])
    return pc.utf8_lpad(digits, 2, "0")


def _month(names: pa.Array) -> pa.Array:
    short = pc.utf8_slice_codeunits(pc.ascii_lower(names), 0, 3)
    index = pc.index_in(short, pa.array([name[:3] for name in _MONTHS]))
    return pa.array([f"{i + 1:02}" for i in range(12)]).take(index)


def _hour12(parts: dict[str, pa.Array]) -> pa.Array:
    hours = pa.array([f"{i}" for i in range(1, 13)])
    index = pc.index_in(pc.utf8_ltrim(parts["hour12"], "0"), hours)
    is_pm = pc.equal(pc.ascii_lower(parts["half"]), "pm")
    morning = pa.array([f"{i % 12:02}" for i in range(1, 13)]).take(index)
    evening = pa.array([f"{i % 12 + 12}" for i in range(1, 13)]).take(index)
    return pc.if_else(is_pm, evening, morning)
