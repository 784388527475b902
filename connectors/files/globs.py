"""Globs over paths and names: ``*``, ``?``, ``[a-z]``, ``{a,b}`` and ``**``; called by the listing."""

from __future__ import annotations

import re

__all__ = ["glob_regex", "has_magic", "split_glob"]

_MAGIC = re.compile(r"[*?\[{]")


def has_magic(path: str) -> bool:
    """Return whether ``path`` holds a glob character."""
    return _MAGIC.search(path) is not None


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
            inner = glob[i + 1 : end].replace("\\", "\\\\")
            out.append(f"[^/{inner[1:]}]" if inner[0] in "!^" else f"[{inner}]")
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
    return re.compile("".join(out), re.S)
