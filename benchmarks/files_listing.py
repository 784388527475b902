"""What a triggered run costs when a million files are known: ``waxlake run`` as a process, imports included.

A folder of files is made known without reading it (``include_existing_files=False``). Then a run with 100 new files, and one
with nothing new, are measured: wall time and peak memory. Asked for: under 12 s and 700 MB at one million files.

    python benchmarks/files_listing.py [--files N] [--store local|s3] [--folder PATH]

``--store s3`` needs the environment of the tests' MinIO (it is started by them) and puts N objects first: use fewer.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

_PER_FOLDER = 1000
_ROW = b'{"id": 1}\n'
_DEFINITIONS = """
import waxlake as wl

@wl.table
def landed():
    return wl.read_files("{path}", format="json", schema="id BIGINT", include_existing_files=False)
"""
_SPEC = "name: listing\nstorage: ./lake\n{options}"


def make_files(inbox: Path, first: int, count: int) -> None:
    """Write small files, a thousand to a folder, last modified a minute ago."""
    modified_s = time.time() - 60
    for number in range(first, first + count):
        folder = inbox / f"{number // _PER_FOLDER:05d}"
        if number % _PER_FOLDER == 0 or not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
        path = f"{folder}/part-{number:09d}.json"
        handle = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.write(handle, _ROW)
        os.close(handle)
        os.utime(path, (modified_s, modified_s))


def make_objects(uri: str, options: dict[str, str], first: int, count: int) -> None:
    """Put small objects, a thousand to a prefix."""
    import fsspec

    from connectors.files.store_options import s3fs_options

    filesystem = fsspec.filesystem("s3", **s3fs_options(options))
    keys = [f"{uri}/{number // _PER_FOLDER:05d}/part-{number:09d}.json" for number in range(first, first + count)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: filesystem.pipe_file(key, _ROW), keys))


class Figures(NamedTuple):
    """What a run took: wall time and processor time in seconds, peak memory in MB."""

    wall_s: float
    cpu_s: float
    peak_mb: float


def measured_run(folder: Path) -> Figures:
    """Run the pipeline once and return what it took.

    Raises:
        RuntimeError: It failed.
    """
    began_s = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-m", "waxlake", "run"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise RuntimeError(f"exit code {child.returncode}")
    return Figures(time.monotonic() - began_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def listing_figures(files: int, folder: Path) -> dict[str, Figures]:
    """Return what runs over local files took: the first, one with 100 new files, one without."""
    _write_project(folder, str(folder / "inbox"), "")
    make_files(folder / "inbox", 0, files)
    figures = {"first listing": measured_run(folder)}
    make_files(folder / "inbox", files, 100)
    figures["100 new files"] = measured_run(folder)
    figures["nothing new"] = measured_run(folder)
    return figures


def object_figures(files: int, folder: Path) -> dict[str, Figures]:
    """Return the same of objects in a MinIO that is started here."""
    from tests.services.s3 import MinIO

    store = MinIO()
    store.start()
    try:
        store.create_bucket("listing")
        options = "".join(f"  {name}: {value!r}\n" for name, value in store.storage_options.items())
        _write_project(folder, "s3://listing/inbox", "storage_options:\n" + options)
        make_objects("s3://listing/inbox", store.storage_options, 0, files)
        figures = {"first listing": measured_run(folder)}
        make_objects("s3://listing/inbox", store.storage_options, files, 100)
        figures["100 new files"] = measured_run(folder)
        figures["nothing new"] = measured_run(folder)
    finally:
        store.close()
    return figures


def _write_project(folder: Path, path: str, options: str) -> None:
    (folder / "flows").mkdir(parents=True)
    (folder / "flows" / "tables.py").write_text(_DEFINITIONS.format(path=path))
    (folder / "waxlake.yml").write_text(_SPEC.format(options=options))


def main() -> None:
    """Print what each run took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--store", choices=("local", "s3"), default="local")
    parser.add_argument("--folder", type=Path, default=None)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        figures = (listing_figures if given.store == "local" else object_figures)(given.files, Path(name) / "project")
    for what, took in figures.items():
        print(
            f"{given.files:,} files, {what}: {took.wall_s:.1f} s ({took.cpu_s:.1f} s of processor), {took.peak_mb:.0f} MB"
        )


if __name__ == "__main__":
    main()
