"""Hands batches over, each once as far as the other side can tell.

Where a crash can fall, and what the next run does:

1. before the ledger's commit: staged files that no commit names; positions are unchanged; the rows are read again.
2. after it, before or in the middle of the hand-over: the batch has its number and its rows for good. The other side is asked
   whether it has the batch (Kafka can tell: the number is part of the transaction); if not, or if it cannot tell (a function),
   the same rows are handed over under the same number.
3. after the hand-over, before the ledger says so: as 2; Kafka says that it has it, a function is called once more.
4. after the ledger says so: nothing is left to do but to delete files.

Two runs at once: the newer takes the ledger's fence before it hands anything over, so the older can decide no batch any more. The
one batch that the older may still be handing over has the same number, and Kafka takes one of the two.

Any failure of the other side has one treatment: close it, wait, make sure that the ledger is still ours, open it anew, ask what
it has.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import pyarrow as pa

from sinks.batches.staging import BATCH_APP_ID, DELIVERED_APP_ID, StagedBatch, Staging, staged_number
from sinks.delta.protocol import Committer
from waxlake.stream.clock import Clock
from waxlake.stream.delta_table import TableLocation
from waxlake.stream.errors import TransientError
from waxlake.stream.failpoints import failpoint

__all__ = ["Delivery", "Handoff", "Patience"]

_ATTEMPT_APP_ID: Final = "waxlake/attempt"
_LONGEST_WAIT_S: Final = 5.0


class Handoff(Protocol):
    """The other side of a sink, as one run sees it. Used by one thread at a time."""

    def open(self, ledger_id: str) -> None:
        """Connect, and shut out whoever was connected for this ledger before. Called again after ``close``.

        Args:
            ledger_id: Identity of the ledger, which stays the same for good.

        Raises:
            TransientError: It does not answer. Retryable.
            TerminalError: It refuses. Not retryable.
        """
        ...

    def has(self, batch: StagedBatch, *, is_first: bool) -> bool:
        """Return whether a batch was handed over; False where nobody can tell.

        Args:
            batch: The batch.
            is_first: Whether no batch of this ledger is known to have been handed over.
        """
        ...

    def deliver(self, batch: StagedBatch, rows: pa.Table, attempt: int) -> None:
        """Hand a batch over, all of it or nothing where the other side has transactions.

        Raises:
            TransientError: It may pass; the batch may or may not have been taken. Retryable, after ``open`` and ``has``.
            WaxlakeError: It will not pass. Not retryable.
        """
        ...

    def close(self) -> None:
        """Disconnect. Never raises; idempotent."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a hand-over is tried again.

    Attributes:
        give_up_after_s: Seconds of failing after which the sink fails; None tries for ever.
        is_draining: Whether the run is to end: then it is tried no more.
        on_retry: Told of an error and the seconds until the next attempt.
    """

    give_up_after_s: float | None = 60.0
    is_draining: Callable[[], bool] = lambda: False
    on_retry: Callable[[TransientError, float], None] = lambda error, wait_s: None


@dataclass(slots=True)
class Delivery:
    """Hands over what one ledger has decided.

    Args:
        ledger: The ledger; it must exist.
        handoff: The other side.
        patience: How long to try.
    """

    ledger: TableLocation
    handoff: Handoff
    patience: Patience = field(default_factory=Patience)
    _staging: Staging | None = None
    _is_open: bool = False
    _clock: Clock = field(default_factory=Clock)

    @property
    def staging(self) -> Staging:
        """The staged files."""
        if self._staging is None:
            self._staging = Staging(self.ledger)
        return self._staging

    def finish(self, committer: Committer) -> int:
        """Hand over what an earlier run has decided and may not have handed over.

        Returns:
            How many batches there were.

        Raises:
            CommitConflict: A newer run has the ledger. Not retryable.
            WaxlakeError: The other side refuses, or does not answer for too long.
        """
        batches = self.staging.pending(committer.handle)
        leftovers = self.staging.files() - self.staging.files_of(batches)
        if batches or leftovers:
            attempt = max(1, staged_number(committer.handle, _ATTEMPT_APP_ID)) + 1 if batches else 1
            committer.commit(
                [], {}, identities={_ATTEMPT_APP_ID: attempt}
            )  # takes the fence: no other run decides any more
        self.staging.delete(leftovers)
        if batches:
            self.hand_over(committer, batches, attempt=attempt)
        return len(batches)

    def hand_over(
        self,
        committer: Committer,
        batches: Sequence[StagedBatch],
        rows: Sequence[pa.Table] | None = None,
        *,
        attempt: int = 1,
    ) -> None:
        """Hand over batches that the ledger has decided, and let it know.

        Args:
            committer: The ledger's, with the fence.
            batches: All that is pending.
            rows: Their rows, if they are at hand.
            attempt: 1 if nobody has tried before.

        Raises:
            CommitConflict: A newer run has the ledger. Not retryable.
            WaxlakeError: The other side refuses, or does not answer for too long.
        """
        for index, batch in enumerate(batches):
            self._hand_over(committer, batch, None if rows is None else rows[index], attempt)
        failpoint("batch-delivered")
        identities = {DELIVERED_APP_ID: batches[-1].number, _ATTEMPT_APP_ID: 1}
        committer.commit([], {}, identities=identities)
        failpoint("batch-recorded")
        self.staging.delete(self.staging.files_of(batches))

    def forget(self, committer: Committer) -> dict[str, int]:
        """Return the app ids to store so that nothing is pending: what was decided is not handed over any more."""
        return {DELIVERED_APP_ID: staged_number(committer.handle, BATCH_APP_ID)}

    def close(self) -> None:
        """Disconnect."""
        self.handoff.close()
        self._is_open = False

    def _hand_over(self, committer: Committer, batch: StagedBatch, rows: pa.Table | None, attempt: int) -> None:
        is_unsure, since_s, wait_s = attempt > 1, self._clock.now_s(), 0.2
        while True:
            try:
                self._attempt(committer, batch, rows, attempt, is_unsure=is_unsure)
                return
            except TransientError as error:
                self.close()
                limit_s = self.patience.give_up_after_s
                if self.patience.is_draining() or (limit_s is not None and self._clock.now_s() - since_s > limit_s):
                    raise
                self.patience.on_retry(error, wait_s)
            time.sleep(wait_s)
            committer.refresh()  # a newer run may have taken over
            is_unsure, attempt, wait_s = True, attempt + 1, min(wait_s * 2, _LONGEST_WAIT_S)

    def _attempt(
        self, committer: Committer, batch: StagedBatch, rows: pa.Table | None, attempt: int, *, is_unsure: bool
    ) -> None:
        if not self._is_open:
            self.handoff.open(str(committer.handle.metadata().id))
            self._is_open = True
        is_first = staged_number(committer.handle, DELIVERED_APP_ID) == 0 and batch.number == 1
        if is_unsure and self.handoff.has(batch, is_first=is_first):
            return
        self.handoff.deliver(batch, self.staging.read(batch) if rows is None else rows, attempt)
