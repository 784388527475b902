"""What one commit will say about the batches in it: sources, counts, rule results. It travels in the commit's metadata."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from waxlake.stream.batch import MicroBatch

__all__ = ["CommitTally"]


@dataclass(slots=True)
class CommitTally:
    """Adds batches up between two commits."""

    _flows: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, batch: MicroBatch, flow: str) -> None:
        """Count one admitted batch of a flow."""
        facts = self._flows.setdefault(
            flow, {"read": 0, "rows": 0, "dropped": 0, "quarantined": 0, "rules": {}, "sources": {}, "skipped": []}
        )
        facts["read"] += batch.read
        facts["rows"] += batch.table.num_rows
        facts["dropped"] += batch.dropped
        facts["quarantined"] += batch.rejected.num_rows if batch.rejected is not None else 0
        for count in batch.rules:
            rule = facts["rules"].setdefault((count.dataset, count.rule, count.action), [0, 0])
            rule[0] += count.passed
            rule[1] += count.failed
        source = facts["sources"].setdefault((batch.source, batch.partition), {"start": batch.start})
        source["end"] = batch.end
        if batch.backlog is not None:
            source["backlog"] = {
                "records": batch.backlog.records,
                "files": batch.backlog.files,
                "bytes": batch.backlog.size_bytes,
            }
        if batch.skipped is not None:
            facts["skipped"].append(
                {"source": batch.source, "partition": batch.partition, "positions": list(batch.skipped)}
            )

    def facts(self) -> dict[str, Any]:
        """Return the counts as plain JSON values."""
        return {
            "flows": {
                flow: {
                    **{key: facts[key] for key in ("read", "rows", "dropped", "quarantined", "skipped")},
                    "rules": [
                        {"dataset": dataset, "rule": rule, "action": action, "passed": passed, "failed": failed}
                        for (dataset, rule, action), (passed, failed) in facts["rules"].items()
                    ],
                    "sources": [
                        {"source": source, "partition": partition, **moved}
                        for (source, partition), moved in facts["sources"].items()
                    ],
                }
                for flow, facts in self._flows.items()
            }
        }
