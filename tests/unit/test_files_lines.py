"""JSON lines: bytes into records."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.files.formats import json_lines
from connectors.files.formats.json_lines import line_blocks, split_files, split_lines

_BOM = b"\xef\xbb\xbf"


def _records(content: bytes) -> list[bytes]:
    """The definition: lines of a file that hold more than white space, without their line ends and the file's mark."""
    lines = content.removeprefix(_BOM).split(b"\n")
    return [line.removesuffix(b"\r") for line in lines if line.removesuffix(b"\r").strip(b" \t\r\n\v\f")]


@pytest.mark.parametrize(
    ("content", "records"),
    [
        (b"", []),
        (b"\n", []),
        (b"1", [b"1"]),
        (b"1\n", [b"1"]),
        (b"1\r\n2\r\n", [b"1", b"2"]),
        (b"\n\n1\n\n2\n\n", [b"1", b"2"]),
        (b" \t\r\n1\n   \n", [b"1"]),
        (_BOM + b"1\n2", [b"1", b"2"]),
        (_BOM, []),
        (_BOM + b"\n1", [b"1"]),
        (b"  {bad\n\x00\n", [b"  {bad", b"\x00"]),
        (b"\xff\xfe\n", [b"\xff\xfe"]),
    ],
)
def test_records_of_one_file(content: bytes, records: list[bytes]) -> None:
    lines, counts = split_files([content])
    assert lines.to_pylist() == records == _records(content)
    assert counts.tolist() == [len(records)]


def test_records_of_many_files_keep_their_file() -> None:
    lines, counts = split_files([b"1\n2", b"", b"\n", _BOM + b"3\r\n", b"4"])
    assert lines.to_pylist() == [b"1", b"2", b"3", b"4"]
    assert counts.tolist() == [2, 0, 0, 1, 1]


def test_a_mark_inside_a_file_is_content() -> None:
    assert split_lines(_BOM + b"1").to_pylist() == [_BOM + b"1"]
    assert split_files([b"1\n" + _BOM + b"2"])[0].to_pylist() == [b"1", _BOM + b"2"]


_contents = st.lists(
    st.lists(st.sampled_from([b"", b" ", b"\r", b"{}", b"\t{", b"x" * 9, _BOM, b"\xff", b"\x00"]), max_size=6).map(
        b"\n".join
    ),
    min_size=1,
    max_size=5,
)


@given(_contents)
def test_many_files_are_split_as_each_alone(contents: list[bytes]) -> None:
    lines, counts = split_files(contents)
    assert lines.to_pylist() == [record for content in contents for record in _records(content)]
    assert counts.tolist() == [len(_records(content)) for content in contents]


@given(_contents, st.integers(1, 12), st.integers(0, 8))
def test_blocks_hold_the_same_records_from_any_row(contents: list[bytes], block_bytes: int, skip_rows: int) -> None:
    content = b"\n".join(contents)
    expected = _records(content)
    before = json_lines._BLOCK_BYTES
    json_lines._BLOCK_BYTES = block_bytes
    try:
        if skip_rows > len(expected):
            with pytest.raises(EOFError) as caught:
                list(line_blocks(io.BytesIO(content), skip_rows))
            assert caught.value.args == (len(expected),)
        else:
            blocks = list(line_blocks(io.BytesIO(content), skip_rows))
            assert [record for block in blocks for record in block.to_pylist()] == expected[skip_rows:]
    finally:
        json_lines._BLOCK_BYTES = before


def test_a_line_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "_BLOCK_BYTES", 4)
    monkeypatch.setattr(json_lines, "MAX_LINE_BYTES", 16)
    with pytest.raises(ValueError, match="16 bytes"):
        list(line_blocks(io.BytesIO(b"x" * 64), 0))
