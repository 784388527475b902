"""JSON as people write it, made strict: comments, single quotes, bare names and the like, each only where an option takes it.

Called with the few records that are no JSON; what is strict already never comes here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Final

from connectors.files.options import JsonOptions

__all__ = ["masked", "strict_json"]

_TOKEN: Final = re.compile(
    r"""(?P<space>[ \t\r\n]+)
      | (?P<comment>//[^\n]*|/\*.*?\*/)
      | (?P<double>"(?:[^"\\]|\\.)*")
      | (?P<single>'(?:[^'\\]|\\.)*')
      | (?P<constant>[+-]?(?:NaN|Infinity|INF)(?![\w$]))
      | (?P<number>-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?(?![\w$]))
      | (?P<word>[A-Za-z_$][\w$-]*)
      | (?P<mark>[\[\]{}:,])""",
    re.X | re.S,
)
_ESCAPE: Final = re.compile(r"\\(.)", re.S)
_CONTROL: Final = re.compile(r"[\x00-\x1f]")
_ZEROS: Final = re.compile(r"^(-?)0+(?=[0-9])")
_MASKED: Final = re.compile(  # what is open at the end goes on in the next block
    rb'"(?:[^"\\]|\\.)*(?:"|\\?\Z)' + rb"|'(?:[^'\\]|\\.)*(?:'|\\?\Z)" + rb"|//[^\n]*|/\*.*?(?:\*/|\Z)", re.S
)


class _Strict(Exception):
    """The text is not taken."""


def strict_json(value: bytes, options: JsonOptions) -> bytes | None:
    """Return a record as strict JSON, or None if the options do not take it either. Constants such as NaN become text."""
    try:
        text = value.decode("utf-8")
        strict = "".join(_strict_tokens(text, options))
        json.loads(strict)
    except (_Strict, ValueError, RecursionError):
        return None
    return strict.encode("utf-8")


def _strict_tokens(text: str, options: JsonOptions) -> Iterator[str]:
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            raise _Strict
        yield _strict_token(
            match.lastgroup, match[0], text[match.end() :].lstrip()[:1] if match["word"] else "", options
        )
        at = match.end()


def _strict_token(kind: str, token: str, after: str, options: JsonOptions) -> str:
    if kind in ("space", "mark"):
        return token
    if kind in ("double", "single"):
        if kind == "single" and not options.allow_single_quotes:
            raise _Strict
        return _strict_text(token[1:-1], options)
    if kind == "number":
        bare = _ZEROS.sub(r"\1", token)
        if bare != token and not options.allow_numeric_leading_zeros:
            raise _Strict
        return bare
    if kind == "word" and token in ("true", "false", "null") and after != ":":
        return token
    is_taken = {
        "comment": options.allow_comments,
        "constant": options.allow_non_numeric_numbers,
        "word": options.allow_unquoted_field_names and after == ":",
    }[kind]
    if not is_taken:
        raise _Strict
    return " " if kind == "comment" else json.dumps(token)


def _strict_text(inner: str, options: JsonOptions) -> str:
    def escape(match: re.Match[str]) -> str:
        sign = match[1]
        if sign in '"\\/bfnrtu':
            return match[0]
        if sign != "'" and not options.allow_backslash_escaping_any_character:
            raise _Strict
        return json.dumps(sign, ensure_ascii=False)[1:-1]

    parts = []
    for index, part in enumerate(_ESCAPE.split(inner)):
        if index % 2:
            parts.append(escape(re.match(r"\\(.)", "\\" + part, re.S)))  # type: ignore[arg-type]
            continue
        if _CONTROL.search(part):
            if not options.allow_unquoted_control_chars:
                raise _Strict
            part = _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", part)
        parts.append(part.replace('"', '\\"'))
    return '"' + "".join(parts) + '"'


def masked(data: bytes, options: JsonOptions) -> bytes:
    """Return ``data`` with what stands inside comments and single quotes blanked, so that brackets can be counted."""
    if not (options.allow_comments or options.allow_single_quotes):
        return data
    has_quotes, has_comments = options.allow_single_quotes, options.allow_comments

    def blank(match: re.Match[bytes]) -> bytes:
        token = match[0]
        if token[:1] == b'"' or (token[:1] == b"'" and not has_quotes) or (token[:1] == b"/" and not has_comments):
            return token
        return b" " * len(token)

    return _MASKED.sub(blank, data)
