"""Replication slots as somebody who looks after them sees them. Called by `waxlake status` and `waxlake slots`."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from connectors.postgres.client import connect, postgres_errors, server_label
from connectors.postgres.preparation import Slot, find_slot
from connectors.postgres.settings import PostgresSettings
from waxlake.stream.errors import TerminalError

__all__ = ["SlotStatus", "drop_slot", "slot_statuses"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotStatus:
    """A slot and what is wrong with it.

    Attributes:
        server: ``host:port/database``.
        slot: Its name.
        is_used: Whether this pipeline reads it.
        is_active: Whether somebody reads it now.
        wal_status: ``reserved``, ``extended``, ``unreserved``, ``lost``, or ``missing``.
        lag_bytes: Log that the tables do not hold yet.
        held_bytes: Log that the server keeps for it.
        confirmed: Position up to which the tables hold everything.
        warnings: Sentences; empty if all is well.
    """

    server: str
    slot: str
    is_used: bool
    is_active: bool
    wal_status: str
    lag_bytes: int
    held_bytes: int
    confirmed: int
    warnings: tuple[str, ...] = ()


def slot_statuses(settings: PostgresSettings, *, only_used: bool) -> list[SlotStatus]:
    """Return the slot of a source, or all logical slots of its database with it.

    Raises:
        ExternalError: The server cannot be asked.
    """
    dsn = settings.dsn.get_secret_value()
    names = [settings.slot]
    with contextlib.closing(connect(dsn)) as connection:
        if not only_used:
            with postgres_errors("list slots"), connection.cursor() as cursor:
                cursor.execute(
                    "SELECT slot_name::text FROM pg_replication_slots WHERE slot_type = 'logical' AND NOT temporary "
                    "AND database = current_database() ORDER BY 1"
                )
                names = sorted({*names, *(row[0] for row in cursor.fetchall())})
        found = {name: find_slot(connection, name) for name in names}
    return [_status(settings, name, slot) for name, slot in found.items() if slot is not None or name == settings.slot]


def drop_slot(settings: PostgresSettings, name: str) -> bool:
    """Drop a slot that nobody reads; return whether it was there.

    Raises:
        TerminalError: ``POSTGRES_SLOT_IN_USE``: somebody reads it. Not retryable.
    """
    with contextlib.closing(connect(settings.dsn.get_secret_value())) as connection:
        slot = find_slot(connection, name)
        if slot is None:
            return False
        if slot.active_pid is not None:
            raise TerminalError(
                f"cannot drop slot {name!r}",
                code="POSTGRES_SLOT_IN_USE",
                found=f"process {slot.active_pid} of the server, which reads it",
                remedy="Stop the pipeline that reads it first",
            )
        with postgres_errors(f"drop slot {name!r}"), connection.cursor() as cursor:
            cursor.execute("SELECT pg_drop_replication_slot(%s)", (name,))
    return True


def _status(settings: PostgresSettings, name: str, slot: Slot | None) -> SlotStatus:
    server, is_used = server_label(settings.dsn.get_secret_value()), name == settings.slot
    if slot is None:
        return SlotStatus(
            server=server,
            slot=name,
            is_used=is_used,
            is_active=False,
            wal_status="missing",
            lag_bytes=0,
            held_bytes=0,
            confirmed=0,
            warnings=(
                "It is not there: the first run creates it; if it was there, the next run stops, or loads again",
            ),
        )
    return SlotStatus(
        server=server,
        slot=name,
        is_used=is_used,
        is_active=slot.active_pid is not None,
        wal_status=slot.wal_status,
        lag_bytes=slot.lag_bytes,
        held_bytes=max(0, slot.server - slot.restart) if slot.restart else 0,
        confirmed=slot.confirmed,
        warnings=tuple(_warnings(settings, slot)),
    )


def _warnings(settings: PostgresSettings, slot: Slot) -> Sequence[str]:
    warnings = []
    if slot.is_lost:
        warnings.append(
            "It is lost: the server deleted log that it needed. on_slot_lost='resnapshot' loads the tables again"
        )
    elif slot.wal_status == "unreserved":
        warnings.append("The server may delete log that it needs at the next checkpoint: run the pipeline now")
    elif slot.safe_bytes is not None and slot.safe_bytes < settings.lag_warning_bytes:
        warnings.append(f"{slot.safe_bytes:,} more bytes of log and it may be lost (max_slot_wal_keep_size)")
    if slot.lag_bytes >= settings.lag_warning_bytes:
        warnings.append(f"It holds back {slot.lag_bytes:,} bytes of log, which fill the server's disk")
    return warnings
