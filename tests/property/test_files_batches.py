"""Any batch bounds, fences and restarts of a files source give every flow the same rows, in the same order."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from connectors.files import contents
from connectors.files.formats import json_lines
from tests.integration.files_lab import FilesLab, Flow, run

_ids = itertools.count()


def _content(format: str, rows: int, flavour: int) -> tuple[str, bytes]:
    """Return a name and the bytes of a file with that many rows, some of them odd."""
    numbers = [next(_ids) for _ in range(rows)]
    if format == "parquet":
        sink = io.BytesIO()
        pq.write_table(pa.table({"id": pa.array(numbers, pa.int64())}), sink, row_group_size=1 + flavour)
        return ".parquet", sink.getvalue()
    if format == "json":
        lines = [json.dumps({"id": i}) if (i + flavour) % 5 else f"{{bad {i}" for i in numbers]
        data = ("\r\n\n" if flavour == 1 else "\n").join(lines).encode()
    else:
        lines = [str(i) if (i + flavour) % 5 else f'{i},"odd\n{i}"' for i in numbers]
        data = "\n".join(["id", *lines]).encode()
    return (f".{format}.gz", gzip.compress(data)) if flavour == 2 else (f".{format}", data)


_step = st.fixed_dictionaries(
    {
        "max_rows_per_batch": st.sampled_from([1, 2, 3, 7, 1000]),
        "max_bytes_per_batch": st.sampled_from([1, 50, 1 << 20]),
        "max_files_per_trigger": st.sampled_from([None, 1, 3]),
    }
)


@given(
    format=st.sampled_from(["json", "csv", "parquet"]),
    sizes=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2)), min_size=1, max_size=7),
    runs=st.lists(st.tuples(st.sets(st.integers(0, 2), min_size=1), _step, st.integers(1, 6)), max_size=4),
    small_bytes=st.sampled_from([1, 80, 1 << 20]),
    block_bytes=st.sampled_from([16, 1 << 20]),
)
def test_any_cut_gives_the_same_rows(
    format: str, sizes: list[tuple[int, int]], runs: list[Any], small_bytes: int, block_bytes: int
) -> None:
    before = contents._SMALL_BYTES, json_lines._BLOCK_BYTES
    contents._SMALL_BYTES, json_lines._BLOCK_BYTES = small_bytes, block_bytes  # type: ignore[misc]
    try:
        with tempfile.TemporaryDirectory() as folder:
            lab = FilesLab(Path(folder), format=format, schema="id BIGINT")
            for index, (rows, flavour) in enumerate(sizes):
                suffix, content = _content(format, rows, flavour)
                lab.write(f"{index}{suffix}", content, age_s=600 - index)
            whole = Flow()
            run(lab.connector(), whole)
            flows = [Flow() for _ in range(3)]
            for members, bounds, batches in runs:
                chosen = [flows[index] for index in sorted(members)]
                run(lab.connector(**bounds), chosen[0], others=chosen[1:], max_batches=batches)
            for flow in flows:
                run(lab.connector(), flow)
                assert flow.rows == whole.rows
                assert flow.position == whole.position
    finally:
        contents._SMALL_BYTES, json_lines._BLOCK_BYTES = before  # type: ignore[misc]
