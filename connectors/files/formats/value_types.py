"""The types of values that carry none of their own, records of JSON and rows of XML, merged over a sample; for inference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, TypeAlias

import pyarrow as pa

__all__ = ["Fraction", "TypeChoice", "ValueTypes"]

_MAX_PRECISION: Final = 38
_INT64: Final = 1 << 63


class Fraction(str):
    """A number with a point or an exponent, as it was written."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeChoice:
    """What types inference chooses.

    Attributes:
        texts: Type of a column of texts.
        has_primitives: Whether numbers and booleans have types; else they are STRING.
        prefers_decimal: Whether fractions are DECIMAL where that holds them all.
        drops_null: Whether fields without any value are left out.
        value_tag: Where values repeat instead of being lists, as in XML: the member that takes the text of a STRUCT.
    """

    texts: Callable[[list[str]], pa.DataType] = lambda texts: pa.string()
    has_primitives: bool = True
    prefers_decimal: bool = False
    drops_null: bool = False
    value_tag: str | None = None


_Merged: TypeAlias = "dict[str, ValueTypes]"


@dataclass(slots=True)
class ValueTypes:
    """What was seen of one value, over all records of a sample."""

    members: _Merged | None = None
    element: ValueTypes | None = None
    texts: list[str] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)
    whole_digits: int = 0
    scale: int = 0

    def see(self, value: Any) -> None:
        """Take one more value of JSON into account."""
        if isinstance(value, Mapping):
            members = self._struct()
            for key, item in value.items():
                members.setdefault(key, ValueTypes()).see(item)
        elif isinstance(value, list):
            self.kinds.add("array")
            self.element = self.element or ValueTypes()
            for item in value:
                self.element.see(item)
        elif isinstance(value, (bool, int, Fraction)):
            self._see_number(value)
        elif value is not None:
            self.kinds.add("text")
            self.texts.append(value)

    def see_element(self, value: Any) -> None:
        """Take one more value of XML into account: texts, members, and lists of those that repeat."""
        if isinstance(value, list):
            self.kinds.add("array")
            for item in value:
                self.see_element(item)
        elif isinstance(value, Mapping):
            members = self._struct()
            for key, item in value.items():
                members.setdefault(key, ValueTypes()).see_element(item)
        elif value is not None:
            self.kinds.add("text")
            self.texts.append(value)

    def _struct(self) -> _Merged:
        self.kinds.add("struct")
        self.members = {} if self.members is None else self.members
        return self.members

    def _see_number(self, value: bool | int | Fraction) -> None:
        if isinstance(value, bool):
            self.kinds.add("bool")
            return
        self.kinds.add("fraction" if isinstance(value, Fraction) else "int")
        if not isinstance(value, Fraction) and not -_INT64 <= value < _INT64:
            self.kinds.add("huge")
        number = Decimal(value) if isinstance(value, Fraction) else Decimal(int(value))
        _, digits, exponent = number.as_tuple()
        exponent = exponent if isinstance(exponent, int) else 0
        self.whole_digits = max(self.whole_digits, len(digits) + exponent)
        self.scale = max(self.scale, -exponent)

    def fields(self, choice: TypeChoice) -> list[pa.Field]:
        """Return the members, in the order in which they were first seen."""
        found = [(name, types.type(choice)) for name, types in (self.members or {}).items() if name]
        return [
            pa.field(name, kind or pa.string()) for name, kind in found if kind is not None or not choice.drops_null
        ]

    def type(self, choice: TypeChoice) -> pa.DataType | None:
        """Return the narrowest type that holds all values; None if there was none."""
        kinds = self.kinds
        if choice.value_tag is not None:
            kind = self._element_type(choice, choice.value_tag)
            return pa.list_(kind or pa.string()) if "array" in kinds else kind
        if kinds == {"struct"}:
            fields = self.fields(choice)
            return pa.struct(fields) if fields else None if choice.drops_null else pa.string()
        if kinds == {"array"}:
            kind = None if self.element is None else self.element.type(choice)
            return None if kind is None and choice.drops_null else pa.list_(kind or pa.string())
        if not kinds:
            return None
        if kinds == {"text"}:
            return choice.texts(self.texts)
        return self._number_type(choice) if choice.has_primitives else pa.string()

    def _element_type(self, choice: TypeChoice, value_tag: str) -> pa.DataType | None:
        if self.members is None:
            return choice.texts(self.texts) if self.texts else None
        fields = self.fields(choice)
        if self.texts and value_tag not in self.members:
            fields.append(pa.field(value_tag, choice.texts(self.texts)))
        return pa.struct(fields) if fields else pa.string()

    def _number_type(self, choice: TypeChoice) -> pa.DataType:
        kinds = self.kinds
        if kinds == {"bool"}:
            return pa.bool_()
        if kinds == {"int"}:
            return pa.int64()
        if not kinds <= {"int", "fraction", "huge"}:
            return pa.string()
        precision = max(self.whole_digits, 0) + self.scale
        if choice.prefers_decimal and 0 < precision <= _MAX_PRECISION:
            return pa.decimal128(precision, self.scale)
        return pa.string() if "huge" in kinds else pa.float64()
