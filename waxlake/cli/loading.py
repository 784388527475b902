"""Commands that load files once, into tables that no flow writes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from waxlake.cli.options import JsonOption, SpecOption, app, pairs_of, read_spec
from waxlake.cli.text import echo_rows

if TYPE_CHECKING:
    from waxlake.pipeline.copy_into import CopyOptions
    from waxlake.pipeline.spec import Spec
__all__ = ["copy_into", "upload"]


@app.command()
def upload(
    files: Annotated[list[Path], typer.Argument(help="Local files: csv, tsv, json, parquet, avro, orc, txt or xml.")],
    table: Annotated[str, typer.Option("--table", help="Table to write: name, or schema.name.")],
    mode: Annotated[
        Literal["create", "append", "overwrite"], typer.Option("--mode", help="What to do with the table.")
    ] = "create",
    preview: Annotated[
        bool, typer.Option("--preview", "--dry-run", help="Show columns and the first 50 rows; write nothing.")
    ] = False,
    format: Annotated[str | None, typer.Option("--format", help="Format; else by the names of the files.")] = None,
    header: Annotated[
        bool | None, typer.Option("--header/--no-header", help="csv: the first record names columns.")
    ] = None,
    sep: Annotated[str | None, typer.Option("--sep", help="csv: character between two fields.")] = None,
    multi_line: Annotated[
        bool | None, typer.Option("--multi-line/--single-line", help="json: a document may span lines.")
    ] = None,
    infer: Annotated[bool, typer.Option("--infer-types/--no-infer-types", help="Else all columns are STRING.")] = True,
    option: Annotated[list[str] | None, typer.Option("--option", help="name=value of read_files. Repeatable.")] = None,
    type: Annotated[list[str] | None, typer.Option("--type", help="column=TYPE. Repeatable.")] = None,
    rename: Annotated[list[str] | None, typer.Option("--rename", help="column=new name. Repeatable.")] = None,
    exclude: Annotated[list[str] | None, typer.Option("--exclude", help="Columns to leave out. Repeatable.")] = None,
    rescue: Annotated[bool, typer.Option("--rescue", help="Keep what does not fit in _rescued_data.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Append again what was appended before.")] = False,
    max_files: Annotated[int, typer.Option(min=1, help="Most files.")] = 10,
    max_bytes: Annotated[int, typer.Option(min=1, help="Most bytes of all files.")] = 2 << 30,
    spec: SpecOption = None,
    json: JsonOption = False,
) -> None:
    """Upload local files into a table, all or nothing, and once however often it is repeated."""
    from waxlake.pipeline.upload import Upload, UploadOptions, refuse_owned

    loaded = read_spec(spec, None)
    refuse_owned(loaded, table)
    given = {"header": header, "sep": sep, "multi_line": multi_line, "infer_column_types": None if infer else False}
    options = UploadOptions(
        mode=mode,
        format=format,
        options={**pairs_of("--option", option), **{name: value for name, value in given.items() if value is not None}},
        types=pairs_of("--type", type),
        renames=pairs_of("--rename", rename),
        excludes=tuple(exclude or ()),
        keeps_rescued=rescue,
        is_forced=force,
        max_files=max_files,
        max_bytes=max_bytes,
    )
    work = Upload(loaded, table, files, options)
    if preview:
        if not json:
            typer.echo(f"{table}: " + ", ".join(f"{field.name} {field.type}" for field in work.schema))
        echo_rows(work.preview(), is_json=json)
        return
    receipt = work.run()
    if receipt.was_there:
        typer.echo(f"these files are in {table} already, since version {receipt.version}; --force appends them again")
    else:
        typer.echo(f"{receipt.rows:,} rows in {table}, version {receipt.version}: {work.location.uri}")


@app.command("copy-into")
def copy_into(
    table: Annotated[str, typer.Argument(help="Table to fill; no flow may write it.")],
    path: Annotated[str, typer.Argument(help="Folder, glob or file; local, or an fsspec URI.")],
    format: Annotated[str, typer.Option("--format", help="Format of the files.")],
    option: Annotated[list[str] | None, typer.Option("--option", help="name=value of read_files. Repeatable.")] = None,
    merge_schema: Annotated[bool, typer.Option("--merge-schema", help="Add columns that the table lacks.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Load again what is loaded already.")] = False,
    spec: SpecOption = None,
) -> None:
    """Load the files of a path that a table does not hold yet; all or nothing, each file once."""
    from waxlake.pipeline.copy_into import CopyOptions

    options = CopyOptions(
        format=format, options=pairs_of("--option", option), merges_schema=merge_schema, is_forced=force
    )
    copy_files(read_spec(spec, None), table, path, options)


def copy_files(spec: Spec, table: str, path: str, options: CopyOptions) -> None:
    """Load files into a table, and say how many rows came."""
    from waxlake.pipeline.copy_into import copy_into as copy
    from waxlake.pipeline.upload import refuse_owned

    refuse_owned(spec, table)
    result = copy(spec, table, path, options)
    typer.echo(f"{result.rows:,} rows copied into {table}" if result.commits else f"nothing new for {table}")
