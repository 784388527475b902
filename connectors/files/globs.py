"""Globs over paths and names, one dialect everywhere; called by the listing.

``*`` any signs but a slash, ``?`` one of them, ``[a-z]`` and ``[!a-z]`` one of a class, ``{a,b}`` alternatives (they nest),
``**`` any signs and slashes, ``**/`` any number of folders. A class of one sign stands for the sign itself: ``[*]``, ``[[]``.
"""

from __future__ import annotations

import re

from waxlake.stream.errors import UsageError

__all__ = ["glob_regex", "has_magic", "literal_head", "split_glob"]

_MAGIC = re.compile(r"[*?\[{]")


def has_magic(path: str) -> bool:
    """Return whether ``path`` holds a glob character."""
    return _MAGIC.search(path) is not None


def literal_head(glob: str) -> str:
    """Return what every name that fits begins with: the signs before the first glob character."""
    found = _MAGIC.search(glob)
    return glob[: found.start()] if found else glob


def split_glob(path: str) -> tuple[str, str]:
    """Return the folder above the first part with a glob character, and the pattern below it (empty if there is none)."""
    parts = path.split("/")
    for index, part in enumerate(parts):
        if has_magic(part):
            return "/".join(parts[:index]) or ("/" if path.startswith("/") else ""), "/".join(parts[index:])
    return path, ""


def glob_regex(glob: str) -> re.Pattern[str]:
    """Return a regular expression for ``fullmatch``; ``*`` and ``?`` stay inside one path part, ``**`` crosses them."""
    out, i, depth = [], 0, 0
    while i < len(glob):
        char = glob[i]
        if glob.startswith("**/", i):
            out.append("(?:[^/]+/)*")
            i += 3
            continue
        if glob.startswith("**", i):
            out.append(".*")
            i += 2
            continue
        if char == "[" and (end := glob.find("]", i + 2)) > 0:
            inner = re.sub(r"([\\\[&~|])", r"\\\1", glob[i + 1 : end])
            out.append(f"[^/{inner[1:]}]" if inner[0] in "!^" and inner[1:] else f"[{inner}]".replace("[^]", r"\^"))
            i = end + 1
            continue
        if char == "{" and "}" in glob[i:]:
            depth += 1
            out.append("(?:")
        elif char == "}" and depth:
            depth -= 1
            out.append(")")
        elif char == "," and depth:
            out.append("|")
        else:
            out.append({"*": "[^/]*", "?": "[^/]"}.get(char) or re.escape(char))
        i += 1
    try:
        return re.compile("".join(out), re.S)
    except re.error as exc:
        raise UsageError(
            f"cannot use the glob {glob!r}",
            code="GLOB_INVALID",
            found=str(exc),
            expected="* ? [a-z] [!a-z] {a,b} **; [*] for a sign itself",
        ) from exc
