"""Settings of a files source, its globs, and the options of its store."""

from __future__ import annotations

import pyarrow as pa
import pytest

from connectors.files import FilesSettings
from connectors.files.globs import glob_regex, split_glob
from connectors.files.options import CsvOptions
from connectors.files.store_options import s3fs_options
from waxlake.stream.errors import UsageError


def test_defaults() -> None:
    settings = FilesSettings.of("/data", format="csv")
    assert (settings.recursive, settings.include_existing_files) == (True, True)
    assert isinstance(settings.options, CsvOptions)
    assert (settings.options.header, settings.options.sep) == (True, ",")
    assert settings.on_data_loss == "fail"


def test_schema_may_be_text_or_arrow() -> None:
    assert FilesSettings.of("/data", format="json", schema="id BIGINT").declared_schema == "id BIGINT"
    schema = pa.schema([("id", pa.int64())])
    assert FilesSettings.of("/data", format="json", schema=schema).declared_schema == schema


def test_unknown_format_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="'parquet'"):
        FilesSettings.of("/data", format="parket")


def test_unknown_option_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown option 'path_glob_filer'.*'path_glob_filter'"):
        FilesSettings.of("/data", format="json", path_glob_filer="*.json")


def test_option_of_another_format_is_an_error() -> None:
    with pytest.raises(UsageError, match="'sep' belongs to format 'csv'"):
        FilesSettings.of("/data", format="json", sep=";")


@pytest.mark.parametrize(
    ("format", "option"),
    [
        ("csv", {"sep": "\n"}),
        ("csv", {"sep": "ä"}),
        ("csv", {"encoding": "klingon"}),
        ("csv", {"multi_line": False}),
        ("json", {"max_files_per_trigger": 0}),
        ("json", {"on_data_loss": "ignore"}),
    ],
)
def test_values_out_of_bounds_are_errors_that_name_the_option(format: str, option: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(option))):
        FilesSettings.of("/data", format=format, **option)


def test_secrets_are_never_shown() -> None:
    options = {"AWS_ACCESS_KEY_ID": "key-id-value", "AWS_SECRET_ACCESS_KEY": "secret-value", "AWS_REGION": "us-east-1"}
    settings = FilesSettings.of("s3://bucket/x", format="json", storage_options=options)
    for text in (repr(settings), str(settings), repr(settings.storage_options)):
        assert "secret-value" not in text
        assert "key-id-value" not in text
    assert settings.storage_options["AWS_SECRET_ACCESS_KEY"] == "secret-value"


def test_s3_options_are_translated() -> None:
    options = {
        "AWS_ENDPOINT_URL": "http://store:9000",
        "aws_access_key_id": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_SESSION_TOKEN": "c",
        "AWS_REGION": "eu-west-1",
        "AWS_ALLOW_HTTP": "true",
    }
    assert s3fs_options(options) == {
        "endpoint_url": "http://store:9000",
        "key": "a",
        "secret": "b",
        "token": "c",
        "client_kwargs": {"region_name": "eu-west-1"},
    }
    assert s3fs_options({"AWS_SKIP_SIGNATURE": "true"}) == {"anon": True}
    with pytest.raises(UsageError, match="AWS_ENDPIONT"):
        s3fs_options({"AWS_ENDPIONT": "x"})


@pytest.mark.parametrize(
    ("glob", "fits", "fits_not"),
    [
        ("*.json", ["a.json", ".json", "a b.json", "a\nb.json"], ["a.json.gz", "d/a.json", "ajson"]),
        ("part-?.csv", ["part-1.csv"], ["part-10.csv", "part-/.csv"]),
        ("[ab]*", ["a1", "b"], ["c", "a/b"]),
        ("[!ab]*", ["c1"], ["a1", "/"]),
        ("*.{json,csv}", ["a.json", "a.csv"], ["a.txt", "a.{json,csv}"]),
        ("**/x.json", ["x.json", "a/x.json", "a/b/x.json"], ["a/y.json", "ax.json"]),
        ("2024-*/**", ["2024-01/a", "2024-01/b/c"], ["2023-01/a"]),
        ("100%.(a)", ["100%.(a)"], ["100%xa"]),
    ],
)
def test_globs(glob: str, fits: list[str], fits_not: list[str]) -> None:
    pattern = glob_regex(glob)
    assert [name for name in fits if not pattern.fullmatch(name)] == []
    assert [name for name in fits_not if pattern.fullmatch(name)] == []


def test_a_glob_is_split_at_its_first_part() -> None:
    assert split_glob("/data/2024-*/x/*.json") == ("/data", "2024-*/x/*.json")
    assert split_glob("/*.json") == ("/", "*.json")
    assert split_glob("/data/plain") == ("/data/plain", "")
