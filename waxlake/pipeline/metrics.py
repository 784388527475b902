"""A listener that turns events into Prometheus metrics, served where ``--metrics-port`` or its variable asks for it."""

from __future__ import annotations

from waxlake.pipeline.event import Event
from waxlake.stream.errors import TerminalError
from waxlake.stream.metrics import RunMetrics

__all__ = ["MetricsListener"]


class MetricsListener:
    """Serves the metrics of one process while it runs.

    Args:
        port: Port on this machine's loopback interface; 0 chooses one.
        address: Interface; ``0.0.0.0`` lets other machines read the metrics.

    Raises:
        TerminalError: The port is taken. Not retryable.
    """

    def __init__(self, port: int, address: str = "127.0.0.1") -> None:
        self.metrics = RunMetrics()
        try:
            self.port = self.metrics.serve(port, address)
        except OSError as exc:
            raise TerminalError(
                f"cannot serve metrics on {address}:{port}",
                code="METRICS_PORT",
                found=str(exc),
                remedy="Choose another port",
            ) from exc

    def on_event(self, event: Event) -> None:
        """Count what an event says."""
        progress = event.progress
        table = event.dataset or ""
        status = progress.get("status")
        if status == "FAILED":
            self.metrics.failed(table)
        elif status == "RETRYING":
            self.metrics.retried(table)
        if not event.is_commit:
            return
        counts, quality = progress["metrics"], progress["data_quality"]
        self.metrics.committed(
            table,
            version=progress["table_version"],
            rows=counts["num_output_rows"],
            size_bytes=counts["num_output_bytes"],
            read=counts["num_read_records"],
            quarantined=counts["num_quarantined_rows"],
            dropped=quality["dropped_records"],
            backlog_records=counts["backlog_records"],
            at_s=event.timestamp.timestamp(),
        )
        for rule in quality["expectations"]:
            self.metrics.violated(table, rule["name"], rule["action"], rule["failed_records"])

    def close(self) -> None:
        """The server ends with the process."""
