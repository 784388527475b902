"""Hours of some days in which first loads may read."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from waxlake.stream.load_window import LoadWindow


@pytest.mark.parametrize(
    ("window", "at", "is_open"),
    [
        ("22:00-23:30", "2026-11-20 22:00", True),
        ("22:00-23:30", "2026-11-20 23:30", False),
        ("22:00-06:00", "2026-11-20 03:00", True),
        ("22:00-06:00", "2026-11-20 12:00", False),
        ("00:00-24:00", "2026-11-20 23:59", True),
        ("sat,sun 00:00-24:00", "2026-11-20 12:00", False),
        ("Sat,Sun 00:00-24:00", "2026-11-21 12:00", True),
        ("mon-fri 22:00-06:00", "2026-11-21 05:59", True),  # the night that began on Friday
        ("mon-fri 22:00-06:00", "2026-11-23 05:59", False),  # the night that began on Sunday
        ("fri-mon 8:00-9:00", "2026-11-22 08:30", True),
        ("22:00-23:00 Europe/Berlin", "2026-11-20 21:30", True),
        ("22:00-23:00 Europe/Berlin", "2026-07-20 20:30", True),  # summer time
    ],
)
def test_c21_a_window_is_open_in_its_hours_of_its_days(window: str, at: str, is_open: bool) -> None:
    found = LoadWindow.parse(window).is_open(datetime.fromisoformat(at).replace(tzinfo=timezone.utc))
    assert found is is_open


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("night", "as 'mon-fri 22:00-06:00'"),
        ("someday 22:00-06:00", "is no window"),
        ("25:00-26:00", "25:00 is no time of day"),
        ("22:60-23:00", "no time of day"),
        ("22:00-22:00", "it never opens"),
        ("22:00-06:00 Middle/Earth", "unknown time zone 'Middle/Earth'"),
        ("22:00-06:00 ../etc", "unknown time zone"),
    ],
)
def test_what_is_no_window_is_said(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LoadWindow.parse(text)
