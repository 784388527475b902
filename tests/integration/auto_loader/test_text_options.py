"""Options of json, csv, xml and text: each does what it says, or is refused by name."""

from __future__ import annotations

import json
import math
import uuid
from datetime import date, datetime, timezone
from decimal import Decimal
from typing import Any

import pytest

from tests.integration.files_lab import FilesLab, Flow, ids, run
from waxlake.stream.delta_table import TableLocation
from waxlake.stream.errors import TerminalError, UsageError, WaxlakeError


def read(lab: FilesLab, *contents: bytes | str, **options: Any) -> list[dict[str, Any]]:
    """Read files; what was rescued comes as a dictionary, without the path of the file."""
    for index, content in enumerate(contents):
        lab.write(f"{index}.data", content, age_s=60 - index)
    flow = Flow()
    run(lab.connector(**options), flow)
    for row in flow.rows:
        if row.get("_rescued_data"):
            row["_rescued_data"] = json.loads(row["_rescued_data"])
            assert row["_rescued_data"].pop("_file_path").startswith(str(lab.inbox))
    return flow.rows


def types(lab: FilesLab, content: bytes | str, **options: Any) -> dict[str, str]:
    lab.schema = None
    lab.write("0.data", content)
    lab.ledger = TableLocation(str(lab.root / uuid.uuid4().hex))  # a ledger remembers what was inferred
    return {field.name: str(field.type) for field in lab.connector(**options).resolve_schema()}


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=timezone.utc)  # type: ignore[misc,arg-type]


# -- json --------------------------------------------------------------------------------------------------------------


def test_al_23_json_multi_line_takes_documents_and_arrays_and_loses_nothing(lab: FilesLab) -> None:
    lab.schema = "id BIGINT, s STRING"
    content = '[{"id":1,\n "s":"]}\\","},\n{"id":2}]\n{"id":3}{"id":4} junk {"id":5} ] [] [6] {"id":7'
    rows = read(lab, content, multi_line=True)
    assert [row["id"] for row in rows] == [1, 2, 3, 4, None, 5, None, None, None]
    assert [row["_rescued_data"]["_raw"] for row in rows if row["_rescued_data"]] == ["junk", "]", "6", '{"id":7']
    assert rows[0]["s"] == ']}",'


def test_al_23_json_mode_says_what_becomes_of_malformed_records(lab: FilesLab) -> None:
    lab.schema = "id BIGINT"
    content = '{"id":1}\n{bad\n{"id":"x"}\n'
    assert [row["id"] for row in read(lab, content)] == [1, None, None]
    dropped = Flow()
    run(lab.connector(mode="DROPMALFORMED"), dropped)
    assert [row["id"] for row in dropped.rows] == [1, None]
    assert sum(batch.read for batch in dropped.batches) == 3
    with pytest.raises(TerminalError, match=r"0\.data.*1 malformed.*FILE_RECORD_MALFORMED"):
        run(lab.connector(mode="failfast"), Flow())


def test_al_23_json_column_name_of_corrupt_record(lab: FilesLab) -> None:
    lab.schema = "id BIGINT, bad STRING"
    rows = read(lab, '{"id":1}\n{bad\n{"id":"x"}\n', column_name_of_corrupt_record="bad")
    assert [row["bad"] for row in rows] == [None, "{bad", None]
    assert [row["_rescued_data"] for row in rows] == [None, None, {"id": "x"}]
    lab.schema = None
    names = lab.connector(column_name_of_corrupt_record="bad").resolve_schema().names
    assert names == ["id", "bad"]
    lab.schema = "id BIGINT, _corrupt_record BIGINT"
    with pytest.raises(WaxlakeError, match=r"_corrupt_record.*STRING"):
        run(lab.connector(), Flow())


def test_al_23_json_inference_options(lab: FilesLab) -> None:
    content = '{"i":1,"f":1.25,"b":true,"o":{"x":12.5},"n":null,"e":[],"m":{}}\n{"i":2,"f":10.5}\n'
    assert types(lab, content) == {
        "i": "int64",
        "f": "double",
        "b": "bool",
        "o": "struct<x: double>",
        "n": "string",
        "e": "list<element: string>",
        "m": "string",
    }
    strings = types(lab, content, primitives_as_string=True)
    assert {strings[name] for name in "ifbn"} == {"string"}
    assert strings["o"] == "struct<x: string>"
    decimals = types(lab, content, prefers_decimal=True)
    assert (decimals["f"], decimals["i"], decimals["o"]) == ("decimal128(4, 2)", "int64", "struct<x: decimal128(3, 1)>")
    assert list(types(lab, content, drop_field_if_all_null=True)) == ["i", "f", "b", "o"]
    rows = read(lab, content, primitives_as_string=True)
    assert (rows[0]["i"], rows[0]["f"], rows[0]["b"]) == ("1", "1.25", "true")


def test_al_23_json_dates_and_times_in_patterns_and_zones(lab: FilesLab) -> None:
    lab.schema = "d DATE, t TIMESTAMP, n TIMESTAMP_NTZ, a ARRAY<DATE>, o STRUCT<t: TIMESTAMP>"
    options = {
        "date_format": "dd.MM.yyyy",
        "timestamp_format": "MM/dd/yyyy hh:mm a[ XXX]",
        "timestamp_ntz_format": "yyyyMMdd'T'HHmmss",
        "time_zone": "Europe/Berlin",
    }
    rows = read(
        lab,
        '{"d":"31.12.2024","t":"07/01/2024 01:02 PM","n":"20240102T030405","a":["01.02.2024",null],'
        '"o":{"t":"01/02/2024 12:30 am +05:00"}}\n'
        '{"d":"2024-12-31","t":"13/01/2024 01:02 PM","a":["01.02.2024","x"],"more":1}\n{"id":null}\n',
        **options,
    )
    assert rows[0] == {
        "d": date(2024, 12, 31),
        "t": utc(2024, 7, 1, 11, 2),
        "n": datetime(2024, 1, 2, 3, 4, 5),
        "a": [date(2024, 2, 1), None],
        "o": {"t": utc(2024, 1, 1, 19, 30)},
        "_rescued_data": None,
    }
    assert [rows[1][name] for name in "dtnao"] == [None] * 5
    lost = {"more": 1, "d": "2024-12-31", "t": "13/01/2024 01:02 PM", "a": ["01.02.2024", "x"]}
    assert rows[1]["_rescued_data"] == lost


@pytest.mark.parametrize(
    ("option", "record"),
    [
        ("allow_comments", b'{"id": /* one */ 1} // end'),
        ("allow_single_quotes", b"{'id': 1}"),
        ("allow_unquoted_field_names", b"{id: 1}"),
        ("allow_numeric_leading_zeros", b'{"id": 001}'),
        ("allow_backslash_escaping_any_character", b'{"id": 1, "s": "\\q"}'),
        ("allow_unquoted_control_chars", b'{"id": 1, "s": "a\tb"}'),
    ],
)
def test_al_23_json_that_is_not_strict_is_taken_where_an_option_says_so(
    lab: FilesLab, option: str, record: bytes
) -> None:
    lab.schema = "id BIGINT, s STRING"
    assert [row["id"] for row in read(lab, record)] == [None]
    assert [row["id"] for row in read(lab, record, **{option: True})] == [1]
    both = b"[" + record.removesuffix(b" // end") + b",\n {'id': 2}]"
    if option in ("allow_comments", "allow_single_quotes"):
        found = read(lab, both, multi_line=True, **{option: True, "allow_single_quotes": True})
        assert [row["id"] for row in found] == [1, 2]


def test_al_23_json_allow_non_numeric_numbers(lab: FilesLab) -> None:
    lab.schema = "x DOUBLE, a ARRAY<DOUBLE>"
    rows = read(lab, '{"x": NaN, "a": [-Infinity, 1]}\n{"x": 1.5}\n', allow_non_numeric_numbers=True)
    assert math.isnan(rows[0]["x"])
    assert rows[0]["a"] == [-math.inf, 1.0]
    assert rows[1]["x"] == 1.5
    assert rows[0]["_rescued_data"] is None


def test_al_23_json_single_variant_column(lab: FilesLab) -> None:
    lab.schema = None
    rows = read(lab, '{"id": 1}\n{bad\n[1]\n', single_variant_column="v")
    assert [row["v"] for row in rows] == ['{"id": 1}', None, "[1]"]
    assert rows[1]["_rescued_data"] == {"_raw": "{bad"}
    lab.schema = "id BIGINT"
    with pytest.raises(UsageError, match="single_variant_column is the whole schema"):
        lab.connector(single_variant_column="v")


def test_al_23_json_reader_case_sensitive(lab: FilesLab) -> None:
    lab.schema = "id BIGINT, Name STRING"
    content = '{"ID":1,"name":"a"}\n{"id":2,"NAME":"b"}\n{"id":3,"ID":4,"Name":"c"}\n{"Id":"x","z":1}\n'
    strict = read(lab, content)
    assert [row["id"] for row in strict] == [None, 2, 3, None]
    assert strict[0]["_rescued_data"] == {"ID": 1, "name": "a"}
    rows = read(lab, content, reader_case_sensitive=False)
    assert [(row["id"], row["Name"]) for row in rows] == [(1, "a"), (2, "b"), (3, "c"), (None, None)]
    assert [row["_rescued_data"] for row in rows] == [None, None, {"ID": 4}, {"Id": "x", "z": 1}]


def test_al_23_json_in_another_encoding(lab: FilesLab) -> None:
    lab.schema = "id BIGINT, s STRING"
    content = '{"id":1,"s":"ä€"}\n{"id":2}\n'.encode("utf-16")
    assert [(row["id"], row["s"]) for row in read(lab, content, encoding="utf-16")] == [(1, "ä€"), (2, None)]


# -- csv ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def csv_lab(lab: FilesLab) -> FilesLab:
    lab.format = "csv"
    return lab


def test_al_24_csv_skip_rows_and_comments(csv_lab: FilesLab) -> None:
    content = '\ufeffmade by hand\n\n# id,name\nid,name\n# "no\n1,"a\n#b"\n#2,c\n3,#d\n'
    rows = read(csv_lab, content, skip_rows=2, comment="#")
    assert [(row["id"], row["name"]) for row in rows] == [(1, "a\n#b"), (3, "#d")]
    again = Flow()
    for _ in range(4):
        run(csv_lab.connector(skip_rows=2, comment="#", max_rows_per_batch=1), again, max_batches=1)
    assert ids(again) == [1, 3]


def test_al_24_csv_delimiter_is_sep(csv_lab: FilesLab) -> None:
    assert read(csv_lab, "id|name\n1|a\n", delimiter="|")[0]["name"] == "a"
    with pytest.raises(UsageError, match="sep and delimiter are one option"):
        csv_lab.connector(delimiter="|", sep="|")


def test_al_24_csv_names_of_nothing_and_of_numbers_that_are_none(csv_lab: FilesLab) -> None:
    csv_lab.schema = "id BIGINT, s STRING, x DOUBLE"
    rows = read(
        csv_lab,
        'id,s,x\n1,-,n/a\n2,"",+oo\n3,b,-oo\n4,c,NaN\n',
        null_value="-",
        empty_value="(empty)",
        nan_value="n/a",
        positive_inf="+oo",
        negative_inf="-oo",
    )
    assert [row["s"] for row in rows] == [None, "(empty)", "b", "c"]
    assert math.isnan(rows[0]["x"])
    assert [row["x"] for row in rows[1:3]] == [math.inf, -math.inf]


def test_al_24_csv_white_space_and_limits(csv_lab: FilesLab) -> None:
    options = {"ignore_leading_white_space": True, "ignore_trailing_white_space": True, "max_chars_per_column": 3}
    rows = read(csv_lab, "id,name\n 1,  ab \n2,abcd\n", **options)
    assert [row["name"] for row in rows] == ["ab", None]
    assert rows[1]["_rescued_data"] == {"name": "abcd"}
    with pytest.raises(TerminalError, match="max_columns is 1"):
        run(csv_lab.connector(max_columns=1), Flow())


def test_al_24_csv_types_of_an_inferred_schema(csv_lab: FilesLab) -> None:
    content = "d,t,g\n2024-01-02,2024-01-02T03:04:05Z,02.01.2024\n"
    assert types(csv_lab, content) == {"d": "date32[day]", "t": "timestamp[us, tz=UTC]", "g": "string"}
    assert types(csv_lab, content, prefer_date=False)["d"] == "timestamp[us, tz=UTC]"
    german = types(csv_lab, content, date_format="dd.MM.yyyy")
    assert german == {"d": "timestamp[us, tz=UTC]", "t": "timestamp[us, tz=UTC]", "g": "date32[day]"}
    csv_lab.write("1.data", "d,late\n2024-01-02,1\n", age_s=10)
    assert csv_lab.connector().resolve_schema().names == ["d", "t", "g", "late"]
    assert csv_lab.connector(merge_schema=False).resolve_schema().names == ["d", "t", "g"]


def test_al_24_csv_malformed_records(csv_lab: FilesLab) -> None:
    csv_lab.schema = "id BIGINT, name STRING, _corrupt_record STRING"
    rows = read(csv_lab, "id,name\n1,a\n2\n3,b,c\n")
    assert [row["_corrupt_record"] for row in rows] == [None, "2", "3,b,c"]
    assert [row["_rescued_data"] for row in rows] == [None] * 3
    dropped = Flow()
    run(csv_lab.connector(mode="DROPMALFORMED"), dropped)
    assert ids(dropped) == [1]
    with pytest.raises(TerminalError, match="FILE_RECORD_MALFORMED"):
        run(csv_lab.connector(mode="FAILFAST"), Flow())


def test_al_24_csv_encoding_and_case_of_names(csv_lab: FilesLab) -> None:
    rows = read(csv_lab, "ID,Name\n1,é\n".encode("cp1252"), encoding="windows-1252", reader_case_sensitive=False)
    assert [(row["id"], row["name"], row["_rescued_data"]) for row in rows] == [(1, "é", None)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"unescaped_quote_handling": "SKIP_VALUE"}, "STOP_AT_DELIMITER"),
        ({"multi_line": False}, "multi_line"),
        ({"sep": "||"}, "at most 1 character"),
        ({"sep": '"'}, "sep and quote are both"),
        ({"comment": ","}, "sep and comment are both"),
        ({"timestamp_format": "yyyy-MM-dd VV"}, "'VV' is not available"),
        ({"date_format": "dd.MM"}, "no year"),
        ({"time_zone": "Berlin"}, "unknown time zone 'Berlin'"),
        ({"encoding": "latin-99"}, "unknown encoding"),
        ({"locale": "de-DE"}, "locale"),
        ({"bad_records_path": "/x"}, "not available.*_rescued_data"),
        ({"char_to_escape_quote_escaping": "x"}, "not available"),
        ({"mode": "STRICT"}, "PERMISSIVE"),
        ({"allow_comments": True}, "belongs to format 'json'"),
        ({"skip_row": 1}, "'skip_rows'"),
        ({"skipRows": 1}, "Its name here is 'skip_rows'"),
        ({"cloudFiles.schemaHints": "a INT"}, "Its name here is 'schema_hints'"),
        ({"schema_hints": "a INT"}, "contradict each other"),
        ({"validate_options": False}, "validate_options"),
    ],
)
def test_al_18_what_an_option_cannot_do_is_an_error_that_says_what_to_do(
    csv_lab: FilesLab, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        csv_lab.connector(**options)


# -- xml ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def xml_lab(lab: FilesLab) -> FilesLab:
    lab.format, lab.options = "xml", {"row_tag": "row"}
    return lab


def test_al_25_xml_attributes_children_lists_and_texts(xml_lab: FilesLab) -> None:
    xml_lab.schema = None
    content = """<all><row id="1"><price cur="EUR">1.5</price><tag>x</tag><tag>y</tag><at>2024-01-02</at></row>
        <row id="2"><price>2</price><tag>z</tag><deep><a>1</a></deep></row></all>"""
    rows = read(xml_lab, content)
    first, second = rows
    assert first["_id"] == 1
    assert first["price"] == {"_cur": "EUR", "_VALUE": 1.5}
    assert first["tag"] == ["x", "y"]
    assert first["at"] == date(2024, 1, 2)
    assert second["price"] == {"_cur": None, "_VALUE": 2.0}
    assert (second["tag"], second["deep"]) == (["z"], {"a": 1})
    assert {row["_rescued_data"] for row in rows} == {None}
    other = {"attribute_prefix": "@", "value_tag": "text"}
    assert types(xml_lab, content, **other)["price"] == "struct<@cur: string, text: double>"
    assert types(xml_lab, content, exclude_attribute=True)["price"] == "double"
    assert types(xml_lab, content, infer_schema=False)["_id"] == "string"


def test_al_25_xml_rows_are_found_wherever_they_are(xml_lab: FilesLab) -> None:
    xml_lab.schema = "_id BIGINT, v STRING"
    content = b"""\xef\xbb\xbf<?xml version="1.0"?><!-- <row id="0"/> --><x:all xmlns:x="u">
        <row id="1"/><rows/><![CDATA[<row>]]><row id='2' x=">"><v><![CDATA[</row>]]></v></row>
        <row id="3"><row id="4"/></row></x:all><row id="5">"""
    rows = read(xml_lab, content)
    assert [row["_id"] for row in rows] == [1, 2, 3, None]
    assert [row["v"] for row in rows] == [None, "</row>", None, None]
    assert rows[3]["_rescued_data"] == {"_raw": '<row id="5">'}


def test_al_25_xml_values_that_do_not_fit_are_rescued(xml_lab: FilesLab) -> None:
    xml_lab.schema = "_id BIGINT, o STRUCT<a: INT>, l ARRAY<INT>, m MAP<STRING,INT>, t TIMESTAMP, d DECIMAL(4,2)"
    rows = read(
        xml_lab,
        "<all><row id='x' new='1'><o><a>no</a><b>2</b></o><l>1</l><l>y</l></row>"
        "<row id='2'><o>text</o><l>3</l><m><k>1</k><j>2</j></m><t>01.02.2024</t><d>1.25</d></row></all>",
        timestamp_format="dd.MM.yyyy",
    )
    assert rows[0]["o"] == {"a": None}
    assert rows[0]["_rescued_data"] == {"_id": "x", "_new": "1", "o": {"a": "no", "b": "2"}, "l": ["1", "y"]}
    assert (rows[1]["l"], rows[1]["m"], rows[1]["t"]) == ([3], [("k", 1), ("j", 2)], utc(2024, 2, 1))
    assert rows[1]["d"] == Decimal("1.25")
    assert rows[1]["_rescued_data"] == {"o": "text"}


def test_al_25_xml_malformed_rows_and_entities_of_their_own(xml_lab: FilesLab) -> None:
    xml_lab.schema = "_id BIGINT, v STRING"
    bomb = '<!DOCTYPE all [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    content = f"{bomb}<all><row id='1'><v>&b;</v></row><row id='2'><v>&lt;&#65;</v></row><row><x></row></all>"
    rows = read(xml_lab, content)
    assert [(row["_id"], row["v"]) for row in rows] == [(None, None), (2, "<A"), (None, None)]
    assert rows[0]["_rescued_data"] == {"_raw": "<row id='1'><v>&b;</v></row>"}
    dropped = Flow()
    run(xml_lab.connector(mode="DROPMALFORMED"), dropped)
    assert [row["_id"] for row in dropped.rows] == [2]
    xml_lab.schema = "_corrupt_record STRING"
    assert read(xml_lab, content)[2]["_corrupt_record"] == "<row><x></row>"


def test_al_25_xml_namespaces_spaces_case_encoding(xml_lab: FilesLab) -> None:
    xml_lab.schema = "Id BIGINT, v STRING"
    options = {"attribute_prefix": "", "ignore_namespace": True, "reader_case_sensitive": False}
    content = "<a:all xmlns:a='u'><a:row a:id='1'><a:v> ä </a:v></a:row></a:all>".encode("iso-8859-1")
    rows = read(xml_lab, content, encoding="iso-8859-1", ignore_surrounding_spaces=False, **options)
    assert [(row["Id"], row["v"], row["_rescued_data"]) for row in rows] == [(1, " ä ", None)]


def test_al_25_xml_single_variant_column_and_null_value(xml_lab: FilesLab) -> None:
    xml_lab.schema = None
    rows = read(xml_lab, "<r><row><a>1</a><b>-</b></row></r>", single_variant_column="v", null_value="-")
    assert rows[0]["v"] == '{"a":"1","b":null}'


def test_al_25_xml_needs_row_tag_and_has_no_xsd(lab: FilesLab) -> None:
    lab.format = "xml"
    with pytest.raises(UsageError, match="row_tag"):
        lab.connector()
    with pytest.raises(UsageError, match="no XSD engine"):
        lab.connector(row_tag="row", row_validation_xsd_path="x.xsd")


# -- text --------------------------------------------------------------------------------------------------------------


def test_al_28_text_lines_whole_files_and_separators(lab: FilesLab) -> None:
    lab.format, lab.schema = "text", None
    content = b"a\r\nb\n\rc\n\xff"
    rows = read(lab, content)
    assert [row["value"] for row in rows] == ["a", "b", "", "c", None]
    assert rows[4]["_rescued_data"] == {"value": "\\xff"}
    whole = read(lab, b"a\nb\n", whole_text=True)
    assert [row["value"] for row in whole] == ["a\nb\n"]
    cut = read(lab, "a||b|\n||".encode("utf-16"), encoding="utf-16", line_sep="||")
    assert [row["value"] for row in cut] == ["a", "b|\n"]
    with pytest.raises(UsageError, match="whole_text=True and line_sep contradict"):
        lab.connector(whole_text=True, line_sep="x")
