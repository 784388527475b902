"""What is deployed and installed: the parts name each other, and what they name exists."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from waxlake.pipeline.spec import load_spec
from waxlake.stream.errors import SchemaGrown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
OURS = ("connectors", "flows", "sinks", "waxlake")
ONE_SHOT = {"buckets", "topics"}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def dockerfile() -> list[str]:
    """Instructions of the Dockerfile, continued lines joined, comments gone."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_compose_has_the_services_and_the_app(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {"redpanda", "minio", "postgres", "mysql", "app"} | ONE_SHOT


def test_every_lasting_service_has_a_health_check(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert ("healthcheck" in service) == (name not in ONE_SHOT), name


def test_every_dependency_waits_for_the_right_thing(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for name, dependency in service.get("depends_on", {}).items():
            wanted = "service_completed_successfully" if name in ONE_SHOT else "service_healthy"
            assert name in compose["services"]
            assert dependency == {"condition": wanted}


def test_the_app_waits_for_everything(compose: dict[str, Any]) -> None:
    waits, todo = set(), ["app"]
    while todo:
        new = compose["services"][todo.pop()].get("depends_on", {})
        waits |= set(new)
        todo += list(new)
    assert waits == set(compose["services"]) - {"app"}


def test_databases_publish_their_changes(compose: dict[str, Any]) -> None:
    assert "wal_level=logical" in compose["services"]["postgres"]["command"]
    assert {
        "--binlog-format=ROW",
        "--binlog-row-image=FULL",
        "--binlog-row-metadata=FULL",
        "--gtid-mode=ON",
        "--enforce-gtid-consistency=ON",
    } <= set(compose["services"]["mysql"]["command"])


def test_mounted_files_and_volumes_exist(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in compose["volumes"]


def test_ports_are_open_to_this_machine_only(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_no_port_is_published_twice(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    published = [port.split(":")[1] for port in ports]
    assert len(published) == len(set(published))


def test_images_have_a_version(compose: dict[str, Any]) -> None:
    images = [service["image"] for service in compose["services"].values() if "image" in service]
    images += [line.split()[1] for line in dockerfile() if line.startswith("FROM ")]
    assert all(re.fullmatch(r"[a-z0-9/-]+:(?!latest)[\w.-]+", image) for image in images), images


def test_the_apps_spec_gets_every_variable_it_reads(compose: dict[str, Any]) -> None:
    app = compose["services"]["app"]
    spec = (ROOT / "deploy/waxlake.yml").read_text()
    wanted = set(re.findall(r"\$\{env:(\w+)\}", spec))
    assert wanted
    assert wanted <= set(app["environment"])
    assert f"./deploy/waxlake.yml:{app['environment']['WAXLAKE_SPEC']}:ro" in app["volumes"]


def test_the_apps_spec_is_a_spec(compose: dict[str, Any]) -> None:
    spec = load_spec(ROOT / "deploy/waxlake.yml", environ=compose["services"]["app"]["environment"])
    assert spec.mode == "continuous"
    assert spec.configuration["bootstrap_servers"] == "redpanda:9092"


def test_the_app_is_started_again_when_it_asks_for_it_by_its_exit_code(compose: dict[str, Any]) -> None:
    assert SchemaGrown.exit_code != 0
    assert compose["services"]["app"]["restart"] == "on-failure"
    deploy = (ROOT / "README.md").read_text().partition("## Deploy")[2].partition("\n## ")[0]
    assert f"Code {SchemaGrown.exit_code}" in deploy


def test_the_apps_bucket_is_the_one_that_is_made(compose: dict[str, Any]) -> None:
    storage = yaml.safe_load((ROOT / "deploy/waxlake.yml").read_text())["storage"]
    bucket = storage.removeprefix("s3://").split("/")[0]
    assert f"lake/{bucket}" in shlex.split(compose["services"]["buckets"]["command"][0])


def test_what_the_image_copies_exists_and_is_let_in() -> None:
    let_in = {
        line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    sources = []
    for line in dockerfile():
        if line.startswith("COPY ") and "--from=" not in line:
            sources += [word for word in line.split()[1:-1] if not word.startswith("--")]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source.split("/")[0] in let_in, source


def test_the_image_runs_the_deployment_as_an_ordinary_user() -> None:
    lines = dockerfile()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users
    assert users[-1] != "root"
    assert 'ENTRYPOINT ["python", "-m", "bytewax.run", "flows.main"]' in lines
    assert any(line.startswith("HEALTHCHECK ") for line in lines)


def test_extras_that_the_image_installs_exist(pyproject: dict[str, Any]) -> None:
    wanted = re.search(r"'\.\[([\w,]+)\]'", (ROOT / "Dockerfile").read_text())
    assert wanted
    assert set(wanted[1].split(",")) <= set(pyproject["project"]["optional-dependencies"])


def test_every_package_is_listed_for_the_wheel(pyproject: dict[str, Any]) -> None:
    found = [
        ".".join(file.parent.relative_to(ROOT).parts) for name in OURS for file in (ROOT / name).rglob("__init__.py")
    ]
    assert sorted(pyproject["tool"]["setuptools"]["packages"]) == sorted(found)


def test_the_extra_all_is_all_of_them(pyproject: dict[str, Any]) -> None:
    extras = pyproject["project"]["optional-dependencies"]
    (everything,) = extras["all"]
    names = re.fullmatch(r"waxlake\[([\w,]+)\]", everything)
    assert names
    assert sorted(names[1].split(",")) == sorted(set(extras) - {"all"})


def test_constraints_pin_every_direct_dependency(pyproject: dict[str, Any]) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line.split(";")[0].split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pin) == 2 for pin in pins)
    pinned = {normal(name) for name, _ in pins}
    project = pyproject["project"]
    direct = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    wanted = {normal(re.match(r"[\w.-]+", one)[0]) for one in direct} - {"waxlake"}
    assert wanted <= pinned


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_license_is_whole(pyproject: dict[str, Any]) -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert pyproject["project"]["license"] == "Apache-2.0"


@pytest.mark.parametrize("script", [".ci/run", "scripts/make-venv"])
def test_scripts_are_sound(script: str) -> None:
    path = ROOT / script
    assert path.stat().st_mode & 0o111
    shell = path.read_text().splitlines()[0].split("/")[-1].split()[-1]
    assert subprocess.run([shell, "-n", str(path)], capture_output=True).returncode == 0


def test_every_make_target_of_the_house_has_a_line_of_help() -> None:
    listed = subprocess.run(["make", "-C", str(ROOT), "help"], capture_output=True, text=True).stdout
    for target in ("setup", "demo", "test", "check", "bench", "up", "down", "help"):
        assert re.search(rf"^  make {target} +\w", listed, re.MULTILINE), target


def test_hooks_run_what_make_check_runs() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    steps = re.search(r"^check: ([\w -]+?) ##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert steps
    assert [hook["entry"] for hook in repository["hooks"]] == [f"make {step}" for step in steps[1].split()]
