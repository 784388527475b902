"""Flows of one target: they come, go and change their names, and nobody else's positions move."""

from __future__ import annotations

from tests.e2e.project import Project

HEAD = '\nwl.create_streaming_table("events")\n'


def _flow(name: str, folder: str) -> str:
    return (
        f'\n@wl.append_flow(target="events")\ndef {name}():\n'
        f'    return wl.read_files("{folder}", format="json", schema="id BIGINT")\n'
    )


def test_p20_flows_come_and_go_without_touching_the_others(project: Project) -> None:
    project.define(HEAD + _flow("east", "east"))
    project.land("1.json", {"id": 1}, folder="east")
    project.land("1.json", {"id": 101}, folder="west")
    project.run()
    project.define(HEAD + _flow("east", "east") + _flow("west", "west"))
    project.run()
    assert project.rows("events", "id") == [1, 101]

    project.define(HEAD + _flow("west", "west"))
    project.land("2.json", {"id": 2}, folder="east")
    project.land("2.json", {"id": 102}, folder="west")
    project.run()
    assert project.rows("events", "id") == [1, 101, 102]

    project.define(HEAD + _flow("west", "west") + _flow("east", "east"))  # it goes on where it was
    project.run()
    assert project.rows("events", "id") == [1, 2, 101, 102]

    project.define(HEAD + _flow("west", "west") + _flow("renamed", "east"))  # another name is another flow
    project.run()
    assert project.rows("events", "id") == [1, 1, 2, 2, 101, 102]
