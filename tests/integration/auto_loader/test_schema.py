"""Where columns come from: a sample, hints, folders; and where goes what no column holds."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import waxlake as wl
from tests.integration.auto_loader.test_formats import FORMATS, avro, orc_bytes, parquet
from tests.integration.files_lab import FilesLab, Flow, ids, run
from waxlake.stream.errors import DefinitionError, WaxlakeError


def types(lab: FilesLab, **options: Any) -> dict[str, str]:
    return {field.name: str(field.type) for field in lab.connector(**options).resolve_schema()}


def test_al_03_inference_reads_no_more_than_its_sample(lab: FilesLab) -> None:
    lab.schema = None
    for index in range(21):
        lab.write(f"{index:02d}.json", [{f"c{index}": 1, "pad": "x" * 100}], age_s=100 - index)
    assert list(types(lab, schema_inference_files=3)) == ["c0", "pad", "c10", "c20"]
    lab.write("big.json", [{f"k{index // 100}": "x" * 90} for index in range(1000)], age_s=1)
    few = types(lab, schema_inference_bytes=22 * 2000)
    assert {"c0", "c20", "k0"} <= set(few)
    assert "k9" not in few


def test_al_03_a_first_record_longer_than_its_share_is_still_seen(lab: FilesLab) -> None:
    lab.schema = None
    for index in range(4):
        lab.write(f"{index}.json", [{f"c{index}": "x" * 3000}, {"late": "x" * 3000}], age_s=100 - index)
    assert list(types(lab, schema_inference_bytes=4000)) == ["c0", "c1", "c2", "c3"]


@pytest.mark.parametrize(
    ("format", "content", "options"),
    [
        ("json", '{"a":1,"b":{"c":true}}\n', {}),
        ("csv", "a,b\n1,2024-01-02\n", {}),
        ("xml", "<r><row><a>1</a><b>2024-01-02</b></row></r>", {"row_tag": "row"}),
    ],
)
def test_al_03_without_types_every_column_is_text(
    lab: FilesLab, format: str, content: str, options: dict[str, Any]
) -> None:
    lab.format, lab.schema = format, None
    lab.write("a.data", content)
    assert types(lab, infer_column_types=False, **options) == {"a": "string", "b": "string"}
    assert types(lab, **options)["a"] == "int64"
    flow = Flow()
    run(lab.connector(infer_column_types=False, **options), flow)
    assert flow.rows[0]["a"] == "1"


def test_al_04_schema_hints(lab: FilesLab) -> None:
    lab.schema = None
    lab.write("a.json", [{"id": 1, "b": {"c": 2, "d": "x"}, "m": {"k": 1}, "l": [{"x": 1}], "t": "2024-01-02"}])
    hints = "id INT, b.c STRING, m MAP<STRING,INT>, l.element.x DECIMAL(5,2), t DATE, new.deep TIMESTAMP, `a b` STRING"
    assert types(lab, schema_hints=hints) == {
        "id": "int32",
        "b": "struct<c: string, d: string>",
        "m": "map<string, int32>",
        "l": "list<element: struct<x: decimal128(5, 2)>>",
        "t": "date32[day]",
        "new": "struct<deep: timestamp[us, tz=UTC]>",
        "a b": "string",
    }
    flow = Flow()
    run(lab.connector(schema_hints=hints), flow)
    row = flow.rows[0]
    assert (row["b"], row["m"], row["t"]) == ({"c": "2", "d": "x"}, [("k", 1)], date(2024, 1, 2))
    assert row["_rescued_data"] is None


@pytest.mark.parametrize(
    ("hints", "words"), [("id", "a name and a type"), ("id BIGNIT", "BIGINT"), ("id.x INT", "SCHEMA_HINT")]
)
def test_al_04_hints_that_cannot_be(lab: FilesLab, hints: str, words: str) -> None:
    lab.schema = None
    lab.write("a.json", [{"id": 1}])
    with pytest.raises(WaxlakeError, match=words):
        lab.connector(schema_hints=hints).resolve_schema()


# Undeclared, of another type, in another case: in every format that names its values.
_ODD = {"id": "x", "more": 7, "NAME": "n"}
_RESCUED: dict[str, tuple[str, bytes, dict[str, Any], dict[str, Any]]] = {
    "json": ("json", json.dumps(_ODD).encode(), {}, _ODD),
    "json array": ("json", json.dumps([_ODD], indent=2).encode(), {"multi_line": True}, _ODD),
    "csv": ("csv", b"id,more,NAME\nx,7,n\n", {}, {**_ODD, "more": "7"}),
    "xml": (
        "xml",
        b"<r><row><id>x</id><more>7</more><NAME>n</NAME></row></r>",
        {"row_tag": "row"},
        {**_ODD, "more": "7"},
    ),
    "parquet": ("parquet", parquet(pa.Table.from_pylist([_ODD])), {}, _ODD),
    "orc": ("orc", orc_bytes(pa.Table.from_pylist([_ODD])), {}, _ODD),
    "avro": (
        "avro",
        avro(
            [_ODD],
            {
                "type": "record",
                "name": "r",
                "fields": [
                    {"name": "id", "type": "string"},
                    {"name": "more", "type": "int"},
                    {"name": "NAME", "type": "string"},
                ],
            },
        ),
        {},
        _ODD,
    ),
}


@pytest.mark.parametrize("kind", _RESCUED)
def test_al_06_rescued_data_holds_what_no_column_does_and_names_the_file(lab: FilesLab, kind: str) -> None:
    lab.format, content, lab.options, lost = _RESCUED[kind]
    path = lab.write("a.data", content)
    flow = Flow()
    run(lab.connector(), flow)
    (row,) = flow.rows
    assert (row["id"], row["name"]) == (None, None)
    assert json.loads(row["_rescued_data"]) == {**lost, "_file_path": str(path)}
    renamed = Flow()
    run(lab.connector(rescued_data_column="_left"), renamed)
    assert json.loads(renamed.rows[0]["_left"])["id"] == "x"
    assert "_rescued_data" not in renamed.rows[0]
    assert lab.connector(rescued_data_column="_left").empty().column_names == ["id", "name", "_left", "_metadata"]


def test_al_13_partition_columns_are_found_and_typed(lab: FilesLab) -> None:
    lab.schema = None
    lab.write("day=2024-01-02/country=DE/a.json", [{"id": 1}], age_s=60)
    lab.write("day=2024-01-03/country=A%20B/b.json", [{"id": 2}], age_s=50)
    lab.write("day=__HIVE_DEFAULT_PARTITION__/c.json", [{"id": 3}], age_s=40)
    lab.write("plain/d.json", [{"id": 4}], age_s=30)
    assert types(lab) == {"id": "int64", "day": "date32[day]", "country": "string"}
    flow = Flow()
    run(lab.connector(), flow)
    found = [(row["id"], row["day"], row["country"]) for row in flow.rows]
    assert found == [
        (1, date(2024, 1, 2), "DE"),
        (2, date(2024, 1, 3), "A B"),
        (3, None, None),
        (4, None, None),
    ]
    lab.write("day=soon/country=FR/e.json", [{"id": 5}], age_s=20)
    run(lab.connector(), flow)
    assert (flow.rows[4]["day"], flow.rows[4]["country"]) == (None, "FR")
    assert json.loads(flow.rows[4]["_rescued_data"])["day"] == "soon"


def test_al_13_partition_columns_can_be_chosen_and_turned_off(lab: FilesLab) -> None:
    lab.schema = None
    lab.write("day=2024-01-02/n=7/a.json", [{"id": 1, "n": 8}])
    assert list(types(lab, partition_columns="")) == ["id", "n"]
    assert list(types(lab, partition_columns="day")) == ["id", "n", "day"]
    assert list(types(lab, partition_columns="month, day")) == ["id", "n", "month", "day"]
    flow = Flow()
    run(lab.connector(), flow)
    assert (flow.rows[0]["n"], flow.rows[0]["day"]) == (8, date(2024, 1, 2)), "what the file holds counts"


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind not in ("text", "binaryfile")])
def test_al_13_declared_partition_columns_in_every_format(lab: FilesLab, kind: str) -> None:
    lab.format, write, _, lab.options = FORMATS[kind]
    lab.schema = "id BIGINT, name STRING, day DATE"
    lab.write("day=2024-01-02/k=v/a.data", write([{"id": 1, "name": "a"}]))
    flow = Flow()
    run(lab.connector(partition_columns="k,day"), flow)
    assert (flow.rows[0]["day"], flow.rows[0]["k"]) == (date(2024, 1, 2), "v")
    plain = Flow()
    run(lab.connector(), plain)
    assert plain.rows == [{"id": 1, "name": "a", "day": date(2024, 1, 2), "_rescued_data": None}]
    off = Flow()
    run(lab.connector(partition_columns=""), off)
    assert off.rows[0]["day"] is None
    assert ids(off) == [1]


def test_al_18_options_are_validated_where_they_are_written(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match="'schema_hints'"):
        wl.read_files(str(tmp_path), format="json", schema_hint="a INT")
    with pytest.raises(DefinitionError, match="Its name here is 'infer_column_types'"):
        wl.read_files(str(tmp_path), format="json", **{"cloudFiles.inferColumnTypes": "true"})
