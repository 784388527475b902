"""One element of XML to a Python value: texts, dictionaries of attributes and children, lists of what repeats."""

from __future__ import annotations

from typing import Any
from xml.parsers import expat

from connectors.files.options import XmlOptions

__all__ = ["MalformedXml", "parse_row"]

MAX_DEPTH = 200


class MalformedXml(ValueError):
    """The text is not one well-formed element."""


def parse_row(text: bytes, options: XmlOptions) -> dict[str, Any]:
    """Return the attributes and children of a row; an element without either is its text, or None if that is empty.

    Raises:
        MalformedXml: It is not well-formed, nests too deep, or uses an entity of its own.
    """
    builder = _Builder(options)
    parser = expat.ParserCreate("UTF-8")
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.text
    parser.EntityDeclHandler = builder.refuse
    parser.StartDoctypeDeclHandler = builder.refuse
    try:
        parser.Parse(text, True)
    except expat.ExpatError as exc:
        raise MalformedXml(str(exc)) from exc
    value = builder.row
    return value if isinstance(value, dict) else {} if value is None else {options.value_tag: value}


class _Builder:
    """Collects what expat reports."""

    def __init__(self, options: XmlOptions) -> None:
        self._options = options
        self._open: list[tuple[str, dict[str, Any], list[str]]] = []
        self.row: Any = None

    def start(self, name: str, attributes: dict[str, str]) -> None:
        """Open an element."""
        if len(self._open) >= MAX_DEPTH:
            raise MalformedXml("it nests too deep")
        options = self._options
        members: dict[str, Any] = {}
        if not options.exclude_attribute:
            for key, value in attributes.items():
                if not (options.ignore_namespace and (key == "xmlns" or key.startswith("xmlns:"))):
                    members[options.attribute_prefix + self._local(key)] = self._clean(value)
        self._open.append((self._local(name), members, []))

    def end(self, name: str) -> None:
        """Close an element."""
        own, members, texts = self._open.pop()
        text = self._clean("".join(texts))
        value: Any = text
        if members:
            value = members
            if text is not None and text.strip():
                _add(members, self._options.value_tag, text)
        if self._open:
            _add(self._open[-1][1], own, value)
        else:
            self.row = value

    def text(self, data: str) -> None:
        """Take some text."""
        self._open[-1][2].append(data)

    def refuse(self, *args: object) -> None:
        """Refuse a declaration: no row has any."""
        raise MalformedXml("it declares a document type")

    def _local(self, name: str) -> str:
        return name.rpartition(":")[2] if self._options.ignore_namespace else name

    def _clean(self, text: str) -> str | None:
        text = text.strip() if self._options.ignore_surrounding_spaces else text
        return None if not text or text == self._options.null_value else text


def _add(members: dict[str, Any], name: str, value: Any) -> None:
    """Add a child; the second of a name makes a list of them."""
    if name not in members:
        members[name] = value
    elif isinstance(members[name], list):
        members[name].append(value)
    else:
        members[name] = [members[name], value]
