"""How long a run waits before it tries again what failed for a reason that may pass."""

from __future__ import annotations

from pathlib import Path

from waxlake.pipeline.retry import back_off_s
from waxlake.pipeline.spec import load_spec


def test_p65_waits_double_up_to_a_bound_however_often_it_was_tried(tmp_path: Path) -> None:
    (tmp_path / "waxlake.yml").write_text("name: shop\nstorage: ./lake\nretry_wait: 10s\nretry_max_wait: 5m\n")
    spec = load_spec(tmp_path)
    assert [back_off_s(spec, attempt) for attempt in (0, 1, 2, 5, 5000)] == [10, 20, 40, 300, 300]
