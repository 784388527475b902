"""The files of a new project, as `waxlake init` writes them. The project runs as it is."""

from __future__ import annotations

import json
import re
from pathlib import Path

from waxlake.stream.errors import TerminalError, UsageError

__all__ = ["create_project"]

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")

_SPEC = """\
# The pipeline's spec. Relative paths start at this file's folder.
name: {name}
storage: ./lake
libraries:
  - glob: {{include: "flows/**"}}
configuration:
  orders_path: data
"""

_MAIN = '''\
"""Deploy with `python -m bytewax.run flows.main`."""

from waxlake.pipeline.deploy import flow

__all__ = ["flow"]
'''

_ORDERS = '''\
"""Orders as they arrive in files, checked, and the revenue by country."""

import waxlake as wl


@wl.table(comment="Orders that can be used")
@wl.expect("has_customer", "customer IS NOT NULL")
@wl.expect_or_drop("is_positive", "amount > 0")
@wl.expect_or_quarantine("is_known_country", "country IN ('DE', 'FR', 'NL')")
def orders():
    return wl.read_files(
        wl.conf("orders_path"),
        format="json",
        schema="id BIGINT, customer STRING, country STRING, amount DOUBLE, ordered_at TIMESTAMP",
    )


@wl.materialized_view(comment="Revenue by country")
def revenue_by_country():
    return wl.sql("SELECT country, count(*) AS orders, sum(amount) AS revenue FROM orders GROUP BY country")
'''

_ROWS = (
    (1, "ada", "DE", 20.5, "2026-01-05T09:30:00Z"),
    (2, "bram", "NL", 12.0, "2026-01-05T09:31:12Z"),
    (3, None, "DE", 7.25, "2026-01-05T09:33:40Z"),
    (4, "chloe", "FR", -1.0, "2026-01-05T09:35:02Z"),
    (5, "dan", "XX", 30.0, "2026-01-05T09:40:59Z"),
    (6, "elif", "DE", 44.9, "2026-01-05T09:41:00Z"),
)

_TEST = '''\
"""The pipeline under test: in process, on storage of the test's own, with rows in place of its files."""

from pathlib import Path

import waxlake as wl

PROJECT = Path(__file__).resolve().parent.parent


def order(number, customer="ada", country="DE", amount=10.0):
    return {"id": number, "customer": customer, "country": country, "amount": amount}


def test_orders_are_checked():
    rows = [order(1), order(2, customer=None), order(3, amount=-1.0), order(4, country="XX")]

    result = wl.testing.run(PROJECT, {"files:data": rows})

    wl.testing.assert_rows(result["orders"], [{"id": 1}, {"id": 2}])
    wl.testing.assert_rows(result.quarantine("orders"), [{"id": 4, "_failed_rules": ["is_known_country"]}])
    assert result.metrics("orders").expectations["has_customer"].failed == 1
    assert result.metrics("orders").dropped == 1


def test_revenue_follows_the_orders():
    pipeline = wl.testing.Pipeline(PROJECT)
    pipeline.run({"files:data": [order(1), order(2)]})

    result = pipeline.run({"files:data": [order(3, country="NL")]})

    wl.testing.assert_rows(
        result["revenue_by_country"],
        [{"country": "DE", "orders": 2, "revenue": 20.0}, {"country": "NL", "orders": 1, "revenue": 10.0}],
    )
'''

_README = """\
# {name}

A Waxlake pipeline: the files under `data/` become the Delta tables `orders` and `revenue_by_country` under `lake/`.

    waxlake run                                       # read what is new, then stop
    waxlake run --continuous                          # until Ctrl-C
    waxlake sql "SELECT * FROM revenue_by_country"
    waxlake show orders_quarantine                    # rows that broke a rule, and which
    waxlake status
    python -m pytest                                  # the pipeline's own test

Put another file beside `data/orders-1.json` and run again: only that file is read. The definitions are in
`flows/orders.py`, the settings in `waxlake.yml`.
"""

_IGNORE = """\
/lake/
__pycache__/
.pytest_cache/
.venv/
"""


def create_project(folder: Path) -> tuple[Path, ...]:
    """Write a new project.

    Args:
        folder: Folder to create; its last part is the pipeline's name. It may exist if it is empty.

    Returns:
        The files written, in order.

    Raises:
        UsageError: The folder holds something already, or its name is no pipeline name. Not retryable.
        TerminalError: It cannot be written. Not retryable.
    """
    name = folder.absolute().name
    if not _NAME.fullmatch(name):
        raise UsageError(
            "a project cannot have this name",
            code="NAME_INVALID",
            found=repr(name),
            expected="letters, digits, '_', '-' and '.'",
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            f"cannot make a project at {folder}",
            code="PROJECT_EXISTS",
            found="something there already",
            expected="a new or empty folder",
            remedy="Choose another name: nothing is ever overwritten",
        )
    try:
        return tuple(_write(folder / path, text) for path, text in _files(name).items())
    except OSError as exc:
        raise TerminalError(
            f"cannot make a project at {folder}", code="PROJECT_NOT_WRITABLE", found=exc.strerror or str(exc)
        ) from None


def _files(name: str) -> dict[str, str]:
    return {
        "waxlake.yml": _SPEC.format(name=name),
        "flows/__init__.py": "",
        "flows/main.py": _MAIN,
        "flows/orders.py": _ORDERS,
        "data/orders-1.json": "".join(json.dumps(_order(*row)) + "\n" for row in _ROWS),
        "tests/test_orders.py": _TEST,
        "README.md": _README.format(name=name),
        ".gitignore": _IGNORE,
    }


def _order(number: int, customer: str | None, country: str, amount: float, ordered_at: str) -> dict[str, object]:
    return {"id": number, "customer": customer, "country": country, "amount": amount, "ordered_at": ordered_at}


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
