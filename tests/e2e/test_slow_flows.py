"""A flow that takes long, or fails late, holds back no flow of another source."""

from __future__ import annotations

from tests.e2e.project import Project

DEFINITIONS = """
import pathlib, time

FOLDER = pathlib.Path(__file__).resolve().parents[1]

def read(folder):
    return wl.read_files(folder, format="json", schema="id BIGINT")

def wait_for(name):
    (FOLDER / f"{name}.begun").touch()
    while not (FOLDER / name).exists():
        time.sleep(0.02)

def slowly(rows):
    if rows.num_rows:
        wait_for("map")
    return rows

@wl.table
def fast():
    return read("fast")

@wl.table
def copy():
    return wl.read_stream("fast")

@wl.table
def slow():
    return read("slow").map_batches(slowly)

@wl.table
def slow_copy():
    return wl.read_stream("fast").map_batches(slowly)

@wl.foreach_batch_sink
def store(rows, batch):
    if (FOLDER / "raise").exists():
        raise ValueError("no room")
    wait_for("sink")
    with open(FOLDER / "stored", "a") as file:
        file.write("".join(f"{batch.batch_id} {id}\\n" for id in rows.column("id").to_pylist()))

@wl.append_flow(target="store")
def into_store():
    return wl.read_stream("fast")
"""


def test_p67_a_slow_flow_or_sink_holds_back_no_other(project: Project) -> None:
    project.define(DEFINITIONS)
    project.land("1.json", {"id": 1}, folder="slow")
    project.land("1.json", {"id": 1}, folder="fast")
    with project.continuous() as run:
        run.await_rows("copy", 1)
        for number in range(2, 13):  # more than wait for a slow flow, whose own sources stop meanwhile
            project.land(f"{number}.json", {"id": number}, folder="fast")
            project.land(f"{number}.json", {"id": number}, folder="slow")
            run.await_rows("copy", 1)
        assert (project.folder / "map.begun").exists()
        assert not project.rows("slow", "id") + project.rows("slow_copy", "id")
        for name in ("map", "sink"):
            (project.folder / name).touch()
        run.stop()  # what was handed in is committed, each row once
    project.run()
    everything = list(range(1, 13))
    for table in ("fast", "copy", "slow", "slow_copy"):
        assert project.rows(table, "id") == everything
    stored = [line.split() for line in (project.folder / "stored").read_text().splitlines()]
    assert sorted(int(id) for _, id in stored) == everything

    (project.folder / "raise").touch()
    project.land("13.json", {"id": 13}, folder="fast")
    failed = project.waxlake("run")
    assert "FOREACH_BATCH_FAILED" in failed.err
    assert "'store'" in failed.err
    assert project.rows("copy", "id")[-1] == 13
    (project.folder / "raise").unlink()
    project.run()
    assert (project.folder / "stored").read_text().splitlines()[-1].split()[1] == "13"
