"""The merge sink: change rows become current rows (SCD type 1) or histories (SCD type 2)."""

from sinks.cdc.rules import BoundRules, ChangeRules, TargetShape
from sinks.cdc.sink import MergeSink

__all__ = ["BoundRules", "ChangeRules", "MergeSink", "TargetShape"]
