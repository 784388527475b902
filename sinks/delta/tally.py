"""What one commit will say about the batches in it: sources, counts, rule results. It travels in the commit's metadata."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from waxlake.stream.batch import MicroBatch, RuleCount
from waxlake.stream.file_counts import FILES_FACT, FileTally

__all__ = ["CommitTally"]


_COUNTS = ("read", "rows", "dropped", "quarantined", "released", "skipped")


@dataclass(slots=True)
class CommitTally:
    """Adds batches up between two commits."""

    _flows: dict[str, dict[str, Any]] = field(default_factory=dict)
    _files: dict[tuple[str, str, str], FileTally] = field(default_factory=dict)

    @property
    def files(self) -> int:
        """How many files it says something about."""
        return sum(tally.files for tally in self._files.values())

    def add(self, batch: MicroBatch, flow: str) -> None:
        """Count one admitted batch of a flow."""
        rejected = batch.rejected.num_rows if batch.rejected is not None else 0
        facts = self.add_counts(
            flow, rules=batch.rules, dropped=batch.dropped, quarantined=0 if batch.released else rejected
        )
        facts["read"] += batch.read
        facts["rows"] += batch.table.num_rows
        if batch.released:
            facts["released"] = facts.get("released", 0) + batch.read - rejected
        source = facts["sources"].setdefault((batch.source, batch.partition), {"start": batch.start})
        source["end"] = batch.end
        if FILES_FACT in batch.facts:
            key = (flow, batch.source, batch.partition)
            self._files.setdefault(key, FileTally()).add(batch.facts[FILES_FACT])
        if batch.backlog is not None:
            source["backlog"] = {
                "records": batch.backlog.records,
                "files": batch.backlog.files,
                "bytes": batch.backlog.size_bytes,
            }
        if batch.skipped is not None:
            facts["skipped"].append(
                {"source": batch.source, "partition": batch.partition, "positions": list(batch.skipped), **_lost(batch)}
            )

    def add_counts(self, flow: str, *, rules: Sequence[RuleCount], dropped: int, quarantined: int) -> dict[str, Any]:
        """Count what rules did to rows of a flow, and return its facts."""
        facts = self._flows.setdefault(
            flow, {"read": 0, "rows": 0, "dropped": 0, "quarantined": 0, "rules": {}, "sources": {}, "skipped": []}
        )
        facts["dropped"] += dropped
        facts["quarantined"] += quarantined
        for count in rules:
            rule = facts["rules"].setdefault((count.dataset, count.rule, count.action), [0, 0])
            rule[0] += count.passed
            rule[1] += count.failed
        return facts

    def facts(self) -> dict[str, Any]:
        """Return the counts as plain JSON values."""
        return {
            "flows": {
                flow: {
                    **{key: facts[key] for key in _COUNTS if key in facts},
                    "rules": [
                        {"dataset": dataset, "rule": rule, "action": action, "passed": passed, "failed": failed}
                        for (dataset, rule, action), (passed, failed) in facts["rules"].items()
                    ],
                    "sources": [
                        {"source": source, "partition": partition, **moved, **self._files_of(flow, source, partition)}
                        for (source, partition), moved in facts["sources"].items()
                    ],
                }
                for flow, facts in self._flows.items()
            }
        }

    def _files_of(self, flow: str, source: str, partition: str) -> dict[str, Any]:
        tally = self._files.get((flow, source, partition))
        return {} if tally is None else {FILES_FACT: tally.facts()}


def _lost(batch: MicroBatch) -> dict[str, Any]:
    """Return which file was left out, and why, if it was one."""
    counts = batch.facts.get(FILES_FACT)
    if counts is None or not counts.left_out:
        return {}
    lost = counts.left_out[0]
    return {"file": lost.path, "state": lost.state, "error": lost.error}
