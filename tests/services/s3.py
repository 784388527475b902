"""S3-compatible object stores for tests: MinIO, else moto, or one that is there already.

Both were seen to refuse the second of two concurrent Delta commits of one version (put-if-absent); `test_services`
holds them to it.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import botocore.session

from tests.services import ServiceMissing, cache_directory
from waxlake.demo.process import ChildProcess, free_port

# A release by its commit: the tags of MinIO are no Go module versions.
MINIO_VERSION = "v0.0.0-20260212201848-7aac2a2c5b7c"
_MINIO_MODULE = "github.com/minio/minio"
_ACCESS_KEY, _SECRET_KEY, _REGION = "waxlake", "waxlake-secret", "us-east-1"
_START_TIMEOUT_S = 30


@functools.cache
def _session() -> botocore.session.Session:
    """Return one session for all clients: it reads the descriptions of services, which takes a second."""
    return botocore.session.get_session()


class ObjectStore(Protocol):
    """What a test may ask of an object store, whichever it is."""

    name: str

    @property
    def storage_options(self) -> dict[str, str]:
        """What `DeltaTable(..., storage_options=)` wants."""

    def create_bucket(self, bucket: str) -> None:
        """Create an empty bucket."""

    def client(self, service: str) -> Any:
        """Return a client of botocore for ``s3`` or ``sqs``."""


class _Endpoint:
    """An S3 endpoint and how to log on to it."""

    name = "S3"
    access_key, secret_key, region = _ACCESS_KEY, _SECRET_KEY, _REGION
    endpoint_url: str

    @property
    def storage_options(self) -> dict[str, str]:
        """Options of delta-rs; also understood by `waxlake.yml`."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": self.region,
            "AWS_ALLOW_HTTP": "true",
        }

    def create_bucket(self, bucket: str) -> None:
        """Create an empty bucket; the name must be free."""
        client = self.client("s3")
        try:
            client.create_bucket(Bucket=bucket)
        finally:
            client.close()

    def client(self, service: str) -> Any:
        """Return a client of botocore, which changes no key; the caller closes it."""
        return _session().create_client(
            service,
            endpoint_url=self.endpoint_url,
            region_name=self.region,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
        )


class ExternalS3(_Endpoint):
    """A store that was running before the tests: `WAXLAKE_S3_ENDPOINT`, `_ACCESS_KEY`, `_SECRET_KEY`, `_REGION`."""

    def __init__(self, endpoint_url: str) -> None:
        self.endpoint_url = endpoint_url
        self.access_key = os.environ.get("WAXLAKE_S3_ACCESS_KEY", _ACCESS_KEY)
        self.secret_key = os.environ.get("WAXLAKE_S3_SECRET_KEY", _SECRET_KEY)
        self.region = os.environ.get("WAXLAKE_S3_REGION", _REGION)
        self.name = f"S3 at {endpoint_url}"


class _LocalStore(_Endpoint):
    """A store in a child process, its data in a temporary folder."""

    ready_path: str

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment = dict(environment or {})
        self._directory = Path(tempfile.mkdtemp(prefix="waxlake-s3-"))
        self._port = free_port()
        self._child: ChildProcess | None = None
        self.endpoint_url = f"http://127.0.0.1:{self._port}"

    def _command(self) -> list[str]:
        raise NotImplementedError

    def start(self) -> None:
        """Start it and wait until it answers. Does nothing when it runs."""
        if self._child is not None and self._child.is_running:
            return
        self._child = ChildProcess(
            self._command(),
            log_path=self._directory / "server.log",
            environment={"MINIO_ROOT_USER": _ACCESS_KEY, "MINIO_ROOT_PASSWORD": _SECRET_KEY, **self._environment},
        )
        self._child.wait_until(lambda: _answers(self.endpoint_url + self.ready_path), timeout_s=_START_TIMEOUT_S)

    def stop(self) -> None:
        """Stop it. Does nothing when it is not running."""
        if self._child is not None:
            self._child.stop(grace_s=5)
            self._child = None

    def restart(self) -> None:
        """Stop it, if need be, and start it at the same address."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop it and delete its data."""
        self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)


class MinIO(_LocalStore):
    """MinIO, one node, one drive; buckets survive `restart`.

    Args:
        environment: Further variables of its process, such as targets of notifications.
    """

    name = f"MinIO {MINIO_VERSION}"
    ready_path = "/minio/health/ready"

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._binary = minio_binary()
        super().__init__(environment)

    def _command(self) -> list[str]:
        address = f"127.0.0.1:{self._port}"
        console = f"127.0.0.1:{free_port()}"
        data = str(self._directory / "data")
        return [str(self._binary), "server", "--quiet", "--address", address, "--console-address", console, data]


class MotoServer(_LocalStore):
    """Moto's S3, in memory: buckets are gone after `restart`.

    It answers ``If-None-Match: *`` as S3 does, but looks and writes in two steps: of two writers in the same instant
    both may win. Good for one writer at a time and for a stale one; for races use MinIO.
    """

    name = "moto"
    ready_path = "/moto-api/"

    def __init__(self) -> None:
        check_moto()
        super().__init__()

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self._port)]


def check_moto() -> None:
    """Look for moto's server, without importing it: that takes a second.

    Raises:
        ServiceMissing: It is not installed.
    """
    absent = [name for name in ("moto", "flask") if importlib.util.find_spec(name) is None]
    if absent:
        raise ServiceMissing(f"no package {' and '.join(absent)}; `make setup` installs moto[server]")


def minio_binary() -> Path:
    """Return MinIO's program.

    Raises:
        ServiceMissing: It was not prepared.
    """
    binary = _minio_path()
    if not binary.is_file():
        raise ServiceMissing(f"no {binary}; `python -m tests.services prepare minio` builds it (needs Go; minutes)")
    return binary


def prepare() -> Path:
    """Build MinIO with Go into the cache, unless it is there. Takes several minutes on two cores.

    Raises:
        ServiceMissing: No Go, or Go could not build it.
    """
    binary = _minio_path()
    if binary.is_file():
        return binary
    if shutil.which("go") is None:
        raise ServiceMissing("found no go, expected it to build MinIO")
    binary.parent.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=binary.parent.parent) as scratch:
        done = subprocess.run(
            ["go", "install", "-trimpath", "-ldflags=-s -w", f"{_MINIO_MODULE}@{MINIO_VERSION}"],
            env={**os.environ, "GOBIN": scratch, "CGO_ENABLED": "0"},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode != 0:
            raise ServiceMissing(f"Go could not build MinIO:\n{done.stderr[-2000:]}")
        binary.parent.mkdir(exist_ok=True)
        Path(scratch, "minio").rename(binary)
    return binary


def _minio_path() -> Path:
    return cache_directory() / f"minio-{MINIO_VERSION}" / "minio"


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
