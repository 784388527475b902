"""One look for new files: by listing, from the last known path on, by manifest or by notifications; called by the connector.

Whatever the way, what it finds goes through the same door: ``Ledger.record`` gives a number to what is new, and only to
that. So a file that is found twice, by two ways or by two runs, is one file. A way that may miss files (notifications,
incremental listing) is backed by a full listing every ``backfill_interval``.

Failure points: before the ledger's commit nothing was found; after it everything was. Positions of a notification topic are in
that commit, SQS messages are deleted after it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from connectors.files.discovery.channel import Channel, ChannelLost, Heard
from connectors.files.discovery.manifest import Manifest
from connectors.files.discovery.settings import DiscoverySettings
from connectors.files.discovery.settling import settled
from connectors.files.ledger import Ledger
from connectors.files.problems import log_warning
from connectors.files.store import FileGone, FoundFile, FoundFiles, Store, everything
from waxlake.stream.errors import UserError

__all__ = ["LISTED", "Discovery"]

LISTED: Final = "waxlake/ledger/listed"  # when the last full listing began, milliseconds since 1970
_MARKS_LAG: Final = 10_000


class Discovery:
    """Finds new files of one source and records them in its ledger. Used by one thread at a time.

    Args:
        settings: The source's settings.
        store: Where the files are.
        ledger: The ledger.
        channel: Notifications, or None.
        manifest: Manifests, or None.
        warn: Takes what is strange and no failure, for people; each text comes once.
        clock_s: Seconds since 1970.
    """

    def __init__(
        self,
        settings: DiscoverySettings,
        store: Store,
        ledger: Ledger,
        *,
        channel: Channel | None = None,
        manifest: Manifest | None = None,
        warn: Callable[[str], None] = log_warning,
        clock_s: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._store, self._ledger = settings, store, ledger
        self._channel, self._manifest, self._warn, self._clock_s = channel, manifest, warn, clock_s
        self._told: set[str] = set()
        self._waits = False

    def close(self) -> None:
        """Free the channel."""
        if self._channel is not None:
            self._channel.close()

    def look(self, *, waits: bool = False) -> int:
        """Find what is new and record it; return how many files.

        Args:
            waits: Wait a moment for local files that were just written; else they are left for the next look.

        Raises:
            UserError: ``MANIFEST_UNREADABLE``, ``MANIFEST_PATH_OUTSIDE``. Not retryable.
            TerminalError: A store or a channel refuses. Not retryable.
            TransientError: A store does not answer. Retryable.
        """
        self._waits = waits
        if self._manifest is not None:
            return self._record([FoundFiles.of(self._from_manifest(self._manifest))])
        if self._is_listing_due():
            return self._list_all()
        if self._channel is not None:
            return self._hear(self._channel)
        after = self._ledger.path_to_resume_after()
        return self._record(self._listed(after))

    def _is_listing_due(self) -> bool:
        every_s = self._settings.full_listing_every_s
        if not every_s or self._ledger.begin is None:
            return True
        listed_ms = self._ledger.stored(LISTED)
        return listed_ms is None or not 0 <= self._clock_s() - listed_ms / 1000 < every_s

    def _list_all(self) -> int:
        """List everything; notifications are heard from the moment at which the listing began."""
        marks: dict[str, int] = {}
        if self._settings.full_listing_every_s:
            marks[LISTED] = int(self._clock_s() * 1000)
        if self._channel is not None:
            try:
                marks |= self._channel.ends()
            except ChannelLost as reason:
                self._tell(f"{self._channel.name} is not to be heard ({reason}): the path is listed instead")
        return self._record(self._listed(), marks, is_due=bool(marks))

    def _listed(self, after: str = "") -> Iterator[FoundFiles]:
        unknown = everything if self._settings.tracks_versions else self._ledger.known().unknown
        return self._store.list_files(unknown, after=after, with_empty=True)

    def _hear(self, channel: Channel) -> int:
        count, has_more = 0, True
        while has_more:
            try:
                heard = channel.hear(self._ledger.stored)
            except ChannelLost as reason:
                self._tell(f"{channel.name} cannot tell what is new ({reason}): the path is listed instead")
                return count + self._list_all()
            has_more = heard.has_more
            if heard.ignored:
                self._tell(f"{channel.name}: messages that are no S3 events are left out")
            count += self._record([self._looked_at(heard)], heard.positions, is_due=self._lags(heard.positions))
            try:
                channel.recorded()
            except ChannelLost as reason:
                self._tell(f"{channel.name} does not take back what was read ({reason}): it comes again, and is known")
        return count

    def _lags(self, positions: Mapping[str, int]) -> bool:
        """Return whether the stored positions are so far behind that they are worth a commit of their own."""
        return sum(position - (self._ledger.stored(app) or 0) for app, position in positions.items()) > _MARKS_LAG

    def _looked_at(self, heard: Heard) -> FoundFiles:
        """Return the objects of events as they are now; without those that are gone, or not of this source."""
        paths = dict.fromkeys(self._store.path_of(event.bucket, event.key) for event in heard.events)
        wanted = [path for path in paths if path is not None and self._store.admits(path)]
        if not self._settings.tracks_versions:
            wanted = [wanted[index] for index in self._ledger.known().unknown(wanted)]
        return FoundFiles.of(file for _, file in self._stats(wanted) if file is not None)

    def _from_manifest(self, manifest: Manifest) -> list[FoundFile]:
        """Return the files of all manifests that are there, and tell those that are not."""
        paths = dict.fromkeys(self._absolute(path) for each in manifest.paths() for path in each)
        start = f"{self._store.root.rstrip('/')}/"
        outside = [path for path in paths if not path.startswith(start) or ".." in path[len(start) :].split("/")]
        if outside:
            raise UserError(
                "cannot read files of a manifest",
                code="MANIFEST_PATH_OUTSIDE",
                found=f"{len(outside)} paths that are not below the source's path, such as '{outside[0]}'",
                expected=f"paths below '{self._store.root}'",
                remedy="Correct them, or give read_files the folder above all of them",
            )
        wanted = [path for path in paths if self._store.admits(path)]
        if len(wanted) < len(paths):
            left = next(path for path in paths if not self._store.admits(path))
            self._tell(
                f"{len(paths) - len(wanted)} files of the manifest {self._settings.manifest} do not fit, such as '{left}'"
            )
        if not self._settings.tracks_versions:
            wanted = [wanted[index] for index in self._ledger.known().unknown(wanted)]
        stats = list(self._stats(wanted))
        missing = [path for path, file in stats if file is None]
        if missing:
            self._tell(
                f"{len(missing)} files of the manifest {self._settings.manifest} are not there, such as '{missing[0]}'"
            )
        return [file for _, file in stats if file is not None]

    def _absolute(self, path: str) -> str:
        if path.startswith("/") or "://" in path:
            return path
        return f"{self._store.root.rstrip('/')}/{path}"

    def _stats(self, paths: Sequence[str]) -> Iterator[tuple[str, FoundFile | None]]:
        if not paths:
            return
        with ThreadPoolExecutor(self._settings.fetch_parallelism, thread_name_prefix="files-stat") as pool:
            yield from zip(paths, pool.map(self._stat, paths), strict=True)

    def _stat(self, path: str) -> FoundFile | None:
        try:
            return self._store.stat(path)
        except FileGone:
            return None

    def _record(
        self, blocks: Iterable[FoundFiles], marks: Mapping[str, int] | None = None, *, is_due: bool = False
    ) -> int:
        settings = self._settings
        oldest_us = self._ledger.oldest_considered_us(settings.max_file_age, self._clock_s())
        if settings.modified_after is not None:
            oldest_us = max(oldest_us, int(settings.modified_after.timestamp() * 1e6) + 1)
        newest_us = int(settings.modified_before.timestamp() * 1e6) if settings.modified_before else 1 << 62
        found = FoundFiles.concat(
            block.where((block.modified_us >= oldest_us) & (block.modified_us < newest_us)) for block in blocks
        )
        found = settled(found, self._store, settings.settle_s, waits=self._waits)
        if not found and not is_due and self._ledger.begin is not None:
            return 0
        self._ledger.refresh()
        return self._ledger.record(
            found,
            include_existing=settings.include_existing_files,
            by_path=settings.ordering == "path",
            marks=marks or {},
            is_due=is_due,
        )

    def _tell(self, text: str) -> None:
        """Warn, once for each text."""
        if text not in self._told:
            self._told.add(text)
            self._warn(text)
