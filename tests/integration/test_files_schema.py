"""The schema of a files source: declared, inferred from a sample, remembered."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from tests.integration.files_lab import FilesLab, Flow, ids, parquet, run
from waxlake.stream.errors import DefinitionError, SchemaError, UserError


def test_no_schema_and_no_file(lab: FilesLab) -> None:
    lab.schema = None
    with pytest.raises(UserError) as caught:
        lab.connector().inspect()
    assert caught.value.code == "FILES_SCHEMA_UNKNOWN"
    assert "schema='id BIGINT" in caught.value.remedy
    assert not lab.location.exists()


def test_a_typo_in_the_schema_is_an_error(lab: FilesLab) -> None:
    lab.schema = "id BIGNIT"
    with pytest.raises((SchemaError, DefinitionError), match="BIGINT"):
        lab.connector().resolve_schema()


def test_inference_and_empty_write_nothing(lab: FilesLab) -> None:
    lab.schema = None
    lab.write("a.json", [{"id": 1, "tags": ["x"], "at": {"lat": 1.5, "n": 2}, "ok": True}])
    before = sorted(lab.root.rglob("*"))
    connector = lab.connector()
    empty = connector.empty()
    assert sorted(lab.root.rglob("*")) == before
    assert empty.column_names == ["id", "tags", "at", "ok", "_rescued_data", "_metadata"]
    assert empty.num_rows == 0
    assert connector.resolve_schema().field("at").type == pa.struct([("lat", pa.float64()), ("n", pa.int64())])
    assert connector.metadata_columns == ("_metadata",)


def test_an_inferred_schema_is_remembered(lab: FilesLab) -> None:
    lab.schema = None
    first = lab.write("a.json", [{"id": 1}])
    flow = Flow()
    run(lab.connector(schema_evolution_mode="rescue"), flow)
    lab.write("b.json", [{"id": "x", "more": True}, {"id": 2}])
    first.unlink()
    run(lab.connector(schema_evolution_mode="rescue"), flow)
    assert ids(flow) == [1, None, 2]
    assert json.loads(flow.rows[1]["_rescued_data"]) == {
        "id": "x",
        "more": True,
        "_file_path": str(lab.inbox / "b.json"),
    }
    assert lab.location.open().metadata().configuration["waxlake.schema"].upper() == "ID BIGINT"


def test_csv_inference(lab: FilesLab) -> None:
    lab.format, lab.schema = "csv", None
    lab.write("a.csv", "n,code,price,day,at,ok,text\n1,007,1.5,2024-01-02,2024-01-02T03:04:05Z,true,x\n", age_s=90)
    lab.write("b.csv", "n,late\n2,3\n")
    types = {field.name: str(field.type) for field in lab.connector().resolve_schema()}
    assert types == {
        "n": "int64",
        "code": "string",
        "price": "double",
        "day": "date32[day]",
        "at": "timestamp[us, tz=UTC]",
        "ok": "bool",
        "text": "string",
        "late": "int64",
    }


def test_parquet_inference_from_footers(lab: FilesLab) -> None:
    lab.format, lab.schema = "parquet", None
    lab.write("a.parquet", parquet(id=pa.array([1], pa.int32()), t=pa.array([1], pa.timestamp("ns"))), age_s=90)
    lab.write("b.parquet", parquet(id=pa.array([2], pa.int64()), x=pa.array([1], pa.uint16()), ID=pa.array([5])))
    schema = lab.connector().resolve_schema()
    assert schema == pa.schema([("id", pa.int64()), ("t", pa.timestamp("us")), ("x", pa.int32())])
    flow = Flow()
    run(lab.connector(), flow)
    assert ids(flow) == [1, 2]
    assert json.loads(flow.rows[1]["_rescued_data"])["ID"] == 5


def test_inference_looks_at_a_bounded_sample(lab: FilesLab) -> None:
    lab.schema = None
    for i in range(12):
        lab.write(f"{i:02d}.json", [{f"c{i}": 1}], age_s=100 - i)
    assert lab.connector(schema_inference_files=3).resolve_schema().names == ["c0", "c5", "c11"]
