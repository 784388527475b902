"""When a first load may read from a database: hours of some days. Called by the settings of database sources, and their loads."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Final
from zoneinfo import ZoneInfo

from waxlake.stream.clock import utc_now
from waxlake.stream.errors import SourceChanged

__all__ = ["LOAD_WINDOW_HELP", "LoadWindow", "checked_window", "is_load_open", "window_closed"]

LOAD_WINDOW_HELP: Final = (
    "Hours in which first loads may read, `[days] HH:MM-HH:MM [time zone]` as `mon-fri 22:00-06:00 Europe/Berlin`; at any time "
    "if not given"
)

_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY: Final = f"(?:{'|'.join(_DAYS)})"
_FORM: Final = re.compile(
    rf"(?:(?P<days>{_DAY}(?:-{_DAY})?(?:,{_DAY}(?:-{_DAY})?)*) +)?"
    r"(?P<h0>\d\d?):(?P<m0>\d\d)-(?P<h1>\d\d?):(?P<m1>\d\d)(?: +(?P<zone>\S+))?",
    re.I,
)
_DAY_MIN: Final = 24 * 60


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadWindow:
    """Hours of some days.

    Attributes:
        days: Days on which it opens, Monday is 0.
        opens_min: Minute of the day at which it opens, in [0, 1440).
        closes_min: Minute at which it closes, counted from the start of that day, in (0, 2880): after midnight if above 1440.
        zone: Whose days and hours.
    """

    days: frozenset[int]
    opens_min: int
    closes_min: int
    zone: tzinfo

    @classmethod
    def parse(cls, text: str) -> LoadWindow:
        """Return the window of a text such as ``sat,sun 22:00-06:00 Europe/Berlin``: every day and UTC if they are not named.

        Raises:
            ValueError: Not such a text. Not retryable.
        """
        match = _FORM.fullmatch(" ".join(text.split()))
        if match is None:
            raise ValueError(
                f"{text!r} is no window: expected '[days] HH:MM-HH:MM [time zone]', as 'mon-fri 22:00-06:00'"
            )
        opens, closes = (_minutes(match[f"h{i}"], match[f"m{i}"]) for i in (0, 1))
        if opens in (_DAY_MIN, closes):
            raise ValueError(f"{text!r} is no window: it never opens; all day is 00:00-24:00")
        zone: tzinfo = timezone.utc
        if match["zone"] is not None:
            try:
                zone = ZoneInfo(match["zone"])
            except (KeyError, ValueError, OSError):  # unknown, no name at all, a folder of zones
                raise ValueError(f"unknown time zone {match['zone']!r}, expected one such as Europe/Berlin") from None
        days = _days(match["days"].lower()) if match["days"] else frozenset(range(7))
        return cls(days=days, opens_min=opens, closes_min=closes + _DAY_MIN * (closes < opens), zone=zone)

    def is_open(self, at: datetime) -> bool:
        """Return whether it is open at a time, given with its zone."""
        there = at.astimezone(self.zone)
        minute = there.hour * 60 + there.minute
        yesterday = (there - timedelta(days=1)).weekday()
        is_todays = there.weekday() in self.days and self.opens_min <= minute < self.closes_min
        return is_todays or (yesterday in self.days and minute + _DAY_MIN < self.closes_min)


def checked_window(text: str) -> str:
    """Return the text of a window; empty for none.

    Raises:
        ValueError: It is none. Not retryable.
    """
    if text:
        LoadWindow.parse(text)
    return text


def is_load_open(text: str) -> bool:
    """Return whether loads may read now, of the text of a setting."""
    return not text or LoadWindow.parse(text).is_open(utc_now())


def window_closed(name: str, text: str) -> SourceChanged:
    """Return the error with which a run that ends stops loading: planned again, it leaves the rest to a later one.

    Args:
        name: What is loaded.
        text: The setting.
    """
    return SourceChanged(
        f"the load of {name} does not go on now",
        code="LOAD_WINDOW_CLOSED",
        found=f"load_window {text!r}, which closed",
        remedy="A later run goes on with it where it stopped",
    )


def _minutes(hours: str, minutes: str) -> int:
    found = int(hours) * 60 + int(minutes)
    if int(minutes) > 59 or found > _DAY_MIN:
        raise ValueError(f"{hours}:{minutes} is no time of day")
    return found


def _days(text: str) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        begin, end = _DAYS.index(first), _DAYS.index(last or first)
        found |= {(begin + i) % 7 for i in range((end - begin) % 7 + 1)}
    return frozenset(found)
