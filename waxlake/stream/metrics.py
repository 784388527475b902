"""Prometheus metrics of a run. Imported only where a port was asked for."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

__all__ = ["RunMetrics"]


class RunMetrics:
    """Counters and gauges of one process, by table.

    Args:
        registry: Where they are registered; a new one by default, so that two runs in a process do not collide.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        labels = ("table",)

        def counter(name: str, text: str, names: tuple[str, ...] = labels) -> Counter:
            return Counter(name, text, names, registry=self.registry)

        self._rows = counter("waxlake_rows", "Rows committed")
        self._bytes = counter("waxlake_bytes", "Bytes of data files committed")
        self._read = counter("waxlake_records_read", "Records read from sources")
        self._quarantined = counter("waxlake_rows_quarantined", "Rows sent to the quarantine table")
        self._dropped = counter("waxlake_rows_dropped", "Rows dropped by expectations")
        self._commits = counter("waxlake_commits", "Table commits")
        self._failures = counter("waxlake_failures", "Flows that failed")
        self._retries = counter("waxlake_retries", "Transient errors that were retried")
        self._violations = counter("waxlake_rule_violations", "Rows that broke a rule", ("table", "rule", "action"))
        self._backlog = Gauge("waxlake_backlog_records", "Records still to read", labels, registry=self.registry)
        self._version = Gauge("waxlake_table_version", "Version of the last commit", labels, registry=self.registry)
        self._committed_at = Gauge(
            "waxlake_last_commit_timestamp_seconds", "When the last commit was made", labels, registry=self.registry
        )

    def serve(self, port: int, address: str = "127.0.0.1") -> int:
        """Serve the metrics over HTTP at ``/metrics`` in a background thread; return the port, chosen if 0 was given.

        Raises:
            OSError: The port is taken.
        """
        server, _ = start_http_server(port, addr=address, registry=self.registry)
        return int(server.server_port)

    def committed(
        self,
        table: str,
        *,
        version: int,
        rows: int,
        size_bytes: int,
        read: int,
        quarantined: int,
        dropped: int,
        backlog_records: int | None,
        at_s: float,
    ) -> None:
        """Count one commit."""
        self._commits.labels(table).inc()
        self._rows.labels(table).inc(rows)
        self._bytes.labels(table).inc(size_bytes)
        self._read.labels(table).inc(read)
        self._quarantined.labels(table).inc(quarantined)
        self._dropped.labels(table).inc(dropped)
        self._version.labels(table).set(version)
        self._committed_at.labels(table).set(at_s)
        if backlog_records is not None:
            self._backlog.labels(table).set(backlog_records)

    def violated(self, table: str, rule: str, action: str, rows: int) -> None:
        """Count rows that broke a rule."""
        self._violations.labels(table, rule, action).inc(rows)

    def failed(self, table: str) -> None:
        """Count a flow that failed."""
        self._failures.labels(table).inc()

    def retried(self, table: str) -> None:
        """Count a retry."""
        self._retries.labels(table).inc()
