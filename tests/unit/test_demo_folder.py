"""The demo's work folder: made, made anew, never over anything else."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from waxlake.demo.folder import demo_folder
from waxlake.demo.publish import PARTITIONS, TOPIC
from waxlake.pipeline.resolve import load_graph
from waxlake.pipeline.spec import load_spec
from waxlake.stream.errors import UsageError

ROOT = Path(__file__).parents[2]


def test_it_holds_a_pipeline_that_loads(tmp_path: Path) -> None:
    with demo_folder(tmp_path / "demo") as place:
        graph = load_graph(load_spec(place.spec, environ={}))
    assert {"bronze.flights", "silver.flights", "gold.delay_by_carrier"} <= set(graph.order)
    actions = {rule.action for rule in graph.datasets["silver.flights"].expectations}
    assert actions == {"warn", "drop", "quarantine", "fail"}


def test_a_second_demo_starts_fresh(tmp_path: Path) -> None:
    with demo_folder(tmp_path / "demo") as place:
        (place.path / "lake").mkdir()
        (place.path / "lake" / "rows").touch()
        (place.landing / "weather.csv").touch()
        (place.path / "notes.txt").write_text("mine")
    with demo_folder(tmp_path / "demo") as place:
        assert not (place.path / "lake").exists()
        assert list(place.landing.iterdir()) == []
        assert (place.path / "notes.txt").read_text() == "mine"


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    with demo_folder(tmp_path) as place:
        assert place.spec.exists()


@pytest.mark.parametrize("name", ["README.md", "pipeline.py", "landing/photo.jpg"])
def test_anothers_folder_is_left_alone(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    with pytest.raises(UsageError, match="--folder") as error, demo_folder(tmp_path):
        pass
    assert error.value.code == "DEMO_FOLDER_TAKEN"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]
    assert file.read_text() == "mine"


def test_a_file_in_its_place_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "demo"
    file.write_text("mine")
    with pytest.raises(UsageError, match="DEMO_FOLDER_TAKEN"), demo_folder(file):
        pass
    assert file.read_text() == "mine"


def test_two_demos_at_once_are_refused(tmp_path: Path) -> None:
    with demo_folder(tmp_path / "demo") as place:
        (place.landing / "weather.csv").touch()
        with pytest.raises(UsageError, match="DEMO_RUNNING"), demo_folder(tmp_path / "demo"):
            pass
        assert (place.landing / "weather.csv").exists()


def test_the_deployment_has_what_the_pipeline_asks_for() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    spec = load_spec(ROOT / "deploy" / "waxlake.yml", environ=services["app"]["environment"])
    image = spec.model_copy(update={"path": ROOT / "waxlake.yml"})  # where the image has it, beside flows/
    topics = {name for flow in load_graph(image).datasets["bronze.flights"].flows for name in flow.inputs}
    assert topics == {f"kafka:{TOPIC}"}
    assert f"topic create {TOPIC} --partitions {PARTITIONS} " in services["topics"]["command"][0]
    assert f"./deploy/landing:/app/{image.configuration['landing'].removeprefix('./')}:ro" in services["app"]["volumes"]
