"""The reference of options, docs/files-options.md, written from the settings models.

python -m connectors.files.option_docs > docs/files-options.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from connectors.files.options import OPTIONS, REFUSED, FormatOptions
from connectors.files.settings import FilesSettings
from waxlake.stream.settings import Settings

__all__ = ["options_reference"]

_HEAD = """# Options of `read_files`

`wl.read_files(path, format=..., schema=None, **options)`, and the same in SQL. Names are those of Auto Loader in snake_case,
without the `cloudFiles.` prefix. An unknown option, one of another format, or two that contradict each other is an error that
names the nearest valid one. Written by `python -m connectors.files.option_docs`; a test compares.

Patterns of dates and times are Java's, of the letters `y M d E H h a m s S X x Z`, with `'text'` and `[optional]` parts. Text
files may be compressed as a whole: `.gz`, `.bz2`, `.zst`, `.lz4`, `.br`. Avro needs the extra: `pip install 'waxlake[avro]'`.
"""


def options_reference() -> str:
    """Return the page."""
    parts = [_HEAD, "\n## Every format\n\n", _table(FilesSettings, hidden=("options",))]
    for name, model in OPTIONS.items():
        parts += [f"\n## {name}\n\n", _about(model), _table(model) if model.model_fields else "No options.\n"]
    parts += ["\n## Not available\n\n", "| Option | Instead |\n|---|---|\n"]
    parts += [f"| `{name}` | {why} |\n" for name, why in REFUSED.items()]
    return "".join(parts)


def _about(model: type[FormatOptions]) -> str:
    text = (model.__doc__ or "").strip()
    return "" if text.startswith("Options of format") and ":" not in text else f"{text}\n\n"


def _table(model: type[Settings], hidden: Iterable[str] = ()) -> str:
    head = "| Option | Values | Default | Meaning |\n|---|---|---|---|\n"
    return head + "".join(_rows(model, frozenset(hidden)))


def _rows(model: type[Settings], hidden: frozenset[str]) -> Iterator[str]:
    for name, field in sorted(
        model.model_fields.items(), key=lambda item: (not item[1].is_required(), item[1].alias or item[0])
    ):
        if name not in hidden:
            cells = (f"`{field.alias or name}`", _values(field), _default(field), (field.description or "").strip())
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _values(field: FieldInfo) -> str:
    return " or ".join(dict.fromkeys(_kinds(field.annotation)))


def _kinds(kind: Any) -> Iterator[str]:
    origin = get_origin(kind)
    if origin is Literal:
        yield ", ".join(f"`{str(value).lower() if isinstance(value, bool) else value}`" for value in get_args(kind))
    elif origin is Annotated:
        yield from _kinds(get_args(kind)[0])
    elif origin is Union or type(kind).__name__ == "UnionType":
        for part in get_args(kind):
            if part is not type(None):
                yield from _kinds(part)
    elif origin is tuple:
        yield "names"
    else:
        names = {
            str: "text",
            datetime: "time",
            SecretStr: "secret",
            int: "integer",
            float: "number",
            bool: "true, false",
        }
        yield names.get(kind, getattr(kind, "__name__", str(kind)))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value == () or value == {}:
        return ""
    return "true" if value is True else "false" if value is False else f"`{value!r}`" if value == "" else f"`{value}`"


if __name__ == "__main__":
    sys.stdout.write(options_reference())
