"""Find the spec file and read it into plain values; fill in `${env:NAME}` and `${file:path}`. Called by `load_spec`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from waxlake.stream.errors import UsageError

__all__ = ["find_spec_file", "read_spec_file"]

_NAMES = ("waxlake.yml", "waxlake.yaml")
_VARIABLE = re.compile(r"\$\{(\w+):([^}]*)\}")
_TEXT_MAPS = ("configuration", "storage_options")
_STRING_TAG = "tag:yaml.org,2002:str"
_NULL_TAG = "tag:yaml.org,2002:null"
_BOOL_TAG = "tag:yaml.org,2002:bool"
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def find_spec_file(path: str | Path | None, environ: Mapping[str, str]) -> Path:
    """Return the spec file, absolute.

    Raises:
        UsageError: None is there, or a folder holds two. Not retryable.
    """
    given = path if path is not None else environ.get("WAXLAKE_SPEC") or None
    if given is not None:
        place = Path(given).expanduser().absolute()
        origin = "--spec" if path is not None else "WAXLAKE_SPEC"
        found = _in_folder(place) if place.is_dir() else place if place.is_file() else None
        if found is None:
            raise UsageError(
                f"no spec at {place} ({origin})",
                code="SPEC_NOT_FOUND",
                expected="a file, or a folder that holds waxlake.yml",
            )
        return found
    start = Path.cwd()
    for folder in (start, *start.parents):
        found = _in_folder(folder)
        if found is not None:
            return found
    raise UsageError(
        f"no spec found: neither {start} nor a folder above it holds waxlake.yml",
        code="SPEC_NOT_FOUND",
        remedy="Change to the project's folder, name the spec with --spec or WAXLAKE_SPEC, or run `waxlake init NAME`",
    )


def _in_folder(folder: Path) -> Path | None:
    found = [folder / name for name in _NAMES if (folder / name).is_file()]
    if len(found) > 1:
        raise UsageError(
            f"two specs in {folder}", code="SPEC_AMBIGUOUS", found=" and ".join(_NAMES), remedy="Remove one"
        )
    return found[0] if found else None


def read_spec_file(file: Path, environ: Mapping[str, str]) -> dict[Any, Any]:
    """Return the spec's values. Scalars of ``configuration`` and ``storage_options`` stay text, exactly as written.

    Raises:
        UsageError: Not readable, not YAML, not a map, a key twice, or a variable that is not there. Not retryable.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"cannot read {file}", code="SPEC_UNREADABLE", found=_reason(exc)) from None
    try:
        values = _parsed(file, text)
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        where = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else str(file)
        raise UsageError(f"{where}: not valid YAML: {exc.problem or exc.context}", code="SPEC_SYNTAX") from None
    except yaml.YAMLError as exc:
        raise UsageError(f"{file}: not valid YAML: {exc}", code="SPEC_SYNTAX") from None
    return {key: _filled(value, str(key), file, environ) for key, value in values.items()}


def _reason(exc: OSError | UnicodeDecodeError) -> str:
    return exc.strerror or str(exc) if isinstance(exc, OSError) else "bytes that are not UTF-8"


def _parsed(file: Path, text: str) -> dict[Any, Any]:
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            raise UsageError(
                f"{file}: not a spec",
                code="SPEC_INVALID",
                found="an empty file" if root is None else "a list or a single value",
                expected="a map with the keys name and storage",
            )
        _refuse_twice(file, root)
        _name_keys(root)
        for key, value in root.value:
            if key.value in _TEXT_MAPS and isinstance(value, yaml.MappingNode):
                _keep_text(value)
        values: dict[Any, Any] = loader.construct_document(root)
        return values
    finally:
        loader.dispose()


def _refuse_twice(file: Path, node: yaml.Node) -> None:
    """YAML parsers let the last of two equal keys win; a spec that says two things is refused."""
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            _refuse_twice(file, child)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen and key.value != "<<":
                line, column = key.start_mark.line + 1, key.start_mark.column + 1
                raise UsageError(f"{file}:{line}:{column}: key {key.value!r} is there twice", code="SPEC_SYNTAX")
            seen.add(key.value)
        _refuse_twice(file, value)


def _name_keys(node: yaml.Node) -> None:
    """Make keys such as ``on`` the names they are: YAML 1.1 takes that one for true."""
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            _name_keys(child)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag == _BOOL_TAG:
                key.tag = _STRING_TAG
            _name_keys(value)


def _keep_text(node: yaml.MappingNode) -> None:
    """Make ``1.10`` and ``true`` of a text map stay as they are written."""
    for key, value in node.value:
        for scalar in (key, value):
            if isinstance(scalar, yaml.ScalarNode) and scalar.tag != _NULL_TAG and key.value != "<<":
                scalar.tag = _STRING_TAG


def _filled(value: Any, place: str, file: Path, environ: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _filled(item, f"{place}.{key}", file, environ) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, f"{place}.{index}", file, environ) for index, item in enumerate(value)]
    if not isinstance(value, str):
        return value
    return _VARIABLE.sub(lambda match: _variable(match[1], match[2].strip(), place, file, environ), value)


def _variable(kind: str, name: str, place: str, file: Path, environ: Mapping[str, str]) -> str:
    if kind == "env":
        if name not in environ:
            raise UsageError(
                f"{file}: key {place!r}: environment variable {name!r} is not set",
                code="SPEC_ENV_MISSING",
                remedy=f"Set {name}, or write the value itself",
            )
        return environ[name]
    if kind == "file":
        target = file.parent / Path(name).expanduser()
        try:
            return target.read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as exc:
            raise UsageError(
                f"{file}: key {place!r}: cannot read {target}", code="SPEC_FILE_MISSING", found=_reason(exc)
            ) from None
    raise UsageError(
        f"{file}: key {place!r}: unknown variable '${{{kind}:{name}}}'",
        code="SPEC_VARIABLE",
        expected="${env:NAME} or ${file:path}",
    )
