"""Kafka clusters for tests: Apache Kafka itself, from its Maven jars, or one that is there already."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol
from xml.sax.saxutils import escape

from confluent_kafka.admin import AdminClient, NewTopic

from tests.services import ServiceMissing, cache_directory
from tests.services.maven import fetched_jars
from waxlake.demo.broker import broker_answers
from waxlake.demo.process import ChildProcess, free_port

KAFKA_VERSION = "4.0.1"
_DEPENDENCIES = [
    ("org.apache.kafka", "kafka_2.13", KAFKA_VERSION),
    ("org.slf4j", "slf4j-simple", "1.7.36"),
]
_MIN_JAVA = 17
_JVM_OPTIONS = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
_START_TIMEOUT_S = 60


class KafkaCluster(Protocol):
    """What a test may ask of a cluster, whichever broker it is."""

    @property
    def bootstrap_servers(self) -> str:
        """Address for clients; the same after `restart`."""

    def start(self) -> None:
        """Start it and wait until it answers. Does nothing when it runs."""

    def stop(self) -> None:
        """Stop it in good order. Does nothing when it is not running."""

    def restart(self) -> None:
        """Stop it, if need be, and start it at the same address."""


class ExternalKafka:
    """A cluster that was running before the tests and outlives them, named by `WAXLAKE_KAFKA_BOOTSTRAP`."""

    def __init__(self, bootstrap_servers: str) -> None:
        self.bootstrap_servers = bootstrap_servers

    def start(self) -> None:
        """Do nothing: it runs."""

    def stop(self) -> None:
        """Refuse: it is not ours."""
        raise ServiceMissing("this test stops its broker, and the one that WAXLAKE_KAFKA_BOOTSTRAP names is not ours")

    restart = stop


class ApacheKafka:
    """One Apache Kafka node (KRaft: broker and controller), its data in a temporary folder that survives `restart`.

    Old records are looked for every second, so that a topic with a small ``retention.ms`` and ``segment.bytes`` loses
    its first offsets soon; `AdminClient.delete_records` does it at once.

    Args:
        options: Server properties besides, or instead of, the ones set here.
        sasl_user: With ``sasl_password``: opens a second listener, SASL/PLAIN, at `sasl_bootstrap_servers`.
        sasl_password: The one accepted password.
        heap_mb: Heap of the JVM, MiB.
    """

    def __init__(
        self,
        *,
        options: Mapping[str, str | int] | None = None,
        sasl_user: str | None = None,
        sasl_password: str = "",
        heap_mb: int = 512,
    ) -> None:
        self._classpath = f"{jar_directory()}/*"
        self._heap_mb = heap_mb
        self._directory = Path(tempfile.mkdtemp(prefix="waxlake-kafka-"))
        self._port, self._controller_port, self._sasl_port = free_port(), free_port(), free_port()
        self._child: ChildProcess | None = None
        self.log_path = self._directory / "server.log"
        properties = self._properties()
        if sasl_user is not None:
            properties |= self._sasl_properties(sasl_user, sasl_password)
        self._write_properties(properties | {key: str(value) for key, value in (options or {}).items()})
        self._format()

    @property
    def bootstrap_servers(self) -> str:
        """Address of the listener without authentication."""
        return f"127.0.0.1:{self._port}"

    @property
    def sasl_bootstrap_servers(self) -> str:
        """Address of the SASL/PLAIN listener (``security.protocol=SASL_PLAINTEXT``)."""
        return f"127.0.0.1:{self._sasl_port}"

    @property
    def pid(self) -> int | None:
        """Process id, or None when it is not running."""
        return self._child.pid if self._child is not None and self._child.is_running else None

    def start(self) -> None:
        """Start the node and wait until it answers. Does nothing when it runs."""
        if self.pid is not None:
            return
        self._child = ChildProcess(
            [*self._java(self._heap_mb), "kafka.Kafka", str(self._directory / "server.properties")],
            log_path=self.log_path,
            directory=self._directory,
        )
        self._child.wait_until(lambda: broker_answers(self.bootstrap_servers), timeout_s=_START_TIMEOUT_S)

    def stop(self) -> None:
        """Stop the node in good order; its topics stay on disk. Does nothing when it is not running."""
        if self._child is not None:
            self._child.stop(grace_s=15)
            self._child = None

    def kill(self) -> None:
        """Kill the node, as a crash would; its topics stay on disk."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def restart(self) -> None:
        """Stop it, if need be, and start it with the same address, cluster id and topics."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Kill the node and delete its data."""
        self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _java(self, heap_mb: int) -> list[str]:
        return ["java", f"-Xmx{heap_mb}m", *_JVM_OPTIONS, "-cp", self._classpath]

    def _properties(self) -> dict[str, str]:
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller_port}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL:SASL_PLAINTEXT",
            "listeners": f"PLAINTEXT://127.0.0.1:{self._port},CONTROLLER://127.0.0.1:{self._controller_port}",
            "log.dirs": str(self._directory / "data"),
            "auto.create.topics.enable": "false",
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "1",
            "group.initial.rebalance.delay.ms": "0",
            "message.max.bytes": str(16 << 20),
            # A restarted node waits until its former self is given up: 9 s by default.
            "broker.heartbeat.interval.ms": "500",
            "broker.session.timeout.ms": "3000",
            "log.initial.task.delay.ms": "500",
            "log.retention.check.interval.ms": "1000",
            "log.segment.delete.delay.ms": "500",
        }

    def _sasl_properties(self, user: str, password: str) -> dict[str, str]:
        login = "org.apache.kafka.common.security.plain.PlainLoginModule"
        return {
            "listeners": f"{self._properties()['listeners']},SASL://127.0.0.1:{self._sasl_port}",
            "sasl.enabled.mechanisms": "PLAIN",
            "listener.name.sasl.plain.sasl.jaas.config": f'{login} required user_{user}="{password}";',
        }

    def _write_properties(self, properties: Mapping[str, str]) -> None:
        lines = [f"{key}={value}\n" for key, value in properties.items()]
        (self._directory / "server.properties").write_text("".join(lines))

    def _format(self) -> None:
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        command = ["kafka.tools.StorageTool", "format", f"--cluster-id={cluster_id}", "--config", "server.properties"]
        done = subprocess.run(
            [*self._java(128), *command], cwd=self._directory, capture_output=True, text=True, timeout=_START_TIMEOUT_S
        )
        if done.returncode != 0:
            raise RuntimeError(f"cannot format Kafka's storage in {self._directory}:\n{done.stdout}{done.stderr}")


def create_topic(
    cluster: KafkaCluster, topic: str, *, partitions: int = 1, config: Mapping[str, str] | None = None
) -> None:
    """Create a topic and wait until the cluster has done so."""
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap_servers})
    new = NewTopic(topic, num_partitions=partitions, replication_factor=1, config=dict(config or {}))
    admin.create_topics([new])[topic].result(timeout=30)


def jar_directory() -> Path:
    """Return the folder of Kafka's jars.

    Raises:
        ServiceMissing: They were not prepared, or there is no Java that runs them.
    """
    _check_java()
    directory = cache_directory() / f"kafka-{KAFKA_VERSION}"
    if not directory.is_dir():
        raise ServiceMissing(f"no {directory}; `python -m tests.services prepare kafka` fetches it (needs Maven)")
    return directory


def prepare() -> Path:
    """Fetch Kafka's jars with Maven into the cache, unless they are there.

    Raises:
        ServiceMissing: No Java, no Maven, or Maven could not fetch them.
    """
    _check_java()
    directory = cache_directory() / f"kafka-{KAFKA_VERSION}"
    if directory.is_dir():
        return directory
    options = ["-DincludeScope=runtime"]
    with fetched_jars("Kafka's jars", directory, "copy-dependencies", options, pom=_pom()) as jars:
        jars.rename(directory)
    return directory


def _check_java() -> None:
    if shutil.which("java") is None:
        raise ServiceMissing(f"found no java, expected Java {_MIN_JAVA} or later")
    told = subprocess.run(["java", "-version"], capture_output=True, text=True).stderr
    version = re.search(r'version "(\d+)', told)
    if version is None or int(version[1]) < _MIN_JAVA:
        raise ServiceMissing(f"found {told.splitlines()[:1]}, expected Java {_MIN_JAVA} or later")


def _pom() -> str:
    def element(name: str, *content: str) -> str:
        return f"<{name}>{''.join(content)}</{name}>"

    def coordinates(group: str, artifact: str, version: str) -> str:
        pairs = {"groupId": group, "artifactId": artifact, "version": version}
        return "".join(element(name, escape(value)) for name, value in pairs.items())

    dependencies = [element("dependency", coordinates(*dependency)) for dependency in _DEPENDENCIES]
    return element(
        "project",
        element("modelVersion", "4.0.0"),
        coordinates("waxlake.tests", "kafka", "1"),
        element("dependencies", *dependencies),
    )
