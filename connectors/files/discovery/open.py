"""Opens what a source's settings name: its store, its manifests and its notifications; called by the connector."""

from __future__ import annotations

from collections.abc import Callable

from connectors.files.discovery.channel import Channel
from connectors.files.discovery.discover import Discovery
from connectors.files.discovery.manifest import Manifest
from connectors.files.ledger import Ledger
from connectors.files.local_store import LocalStore
from connectors.files.problems import log_warning
from connectors.files.remote_store import URI, RemoteStore
from connectors.files.settings import FilesSettings
from connectors.files.store import Store

__all__ = ["open_discovery", "open_store"]


def open_store(settings: FilesSettings) -> Store:
    """Return the store behind the path; touches nothing yet but the local file system."""
    return _store(settings, settings.path, settings.path_glob_filter, is_recursive=settings.recursive)


def open_discovery(
    settings: FilesSettings, store: Store, ledger: Ledger, warn: Callable[[str], None] = log_warning
) -> Discovery:
    """Return what looks for new files as the settings say; touches nothing yet."""
    manifest = None
    if settings.manifest is not None:
        manifest = Manifest(_store(settings, settings.manifest, None, is_recursive=True))
    return Discovery(settings, store, ledger, channel=_channel(settings), manifest=manifest, warn=warn)


def _store(settings: FilesSettings, path: str, name_glob: str | None, *, is_recursive: bool) -> Store:
    match = URI.match(path)
    if match is None or match.group(1).lower() in ("file", "local"):
        return LocalStore(path[match.end() :] if match else path, name_glob, is_recursive)
    return RemoteStore(path, settings.storage_options, name_glob, is_recursive, settings.fetch_parallelism)


def _channel(settings: FilesSettings) -> Channel | None:
    if settings.queue_url is not None:
        from connectors.files.discovery.sqs_channel import SqsChannel

        return SqsChannel(settings.queue_url, settings.region, settings.storage_options)
    if settings.notification_topic is not None and settings.notification_bootstrap_servers is not None:
        from connectors.files.discovery.kafka_channel import KafkaChannel

        servers = settings.notification_bootstrap_servers
        return KafkaChannel(settings.notification_topic, servers, settings.notification_options)
    return None
