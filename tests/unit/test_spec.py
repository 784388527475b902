"""The spec: where it is found, what it may say, and what each mistake is answered with."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from waxlake.pipeline.guard import guard_packages
from waxlake.pipeline.spec import Spec, load_spec
from waxlake.stream.errors import UsageError

MINIMAL = "name: shop\nstorage: ./lake\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "orders.py").write_text("")
    return tmp_path


def write(folder: Path, text: str, name: str = "waxlake.yml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def load(folder: Path, text: str, **options: object) -> Spec:
    return load_spec(write(folder, text), **options)  # type: ignore[arg-type]


# -- where it is found


def test_an_explicit_path_may_be_a_file_or_its_folder(project: Path) -> None:
    file = write(project, MINIMAL)

    assert load_spec(file) == load_spec(project)
    assert load_spec(file).path == file


def test_it_is_found_in_a_parent_of_the_working_directory(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(project, MINIMAL, "waxlake.yaml")
    deep = project / "a" / "b"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)

    assert load_spec(environ={}).folder == project


def test_the_variable_comes_before_the_working_directory(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(project, MINIMAL)
    elsewhere = project / "elsewhere"
    elsewhere.mkdir()
    other = write(elsewhere, "name: other\nstorage: x\n")
    monkeypatch.chdir(project)

    assert load_spec(environ={"WAXLAKE_SPEC": str(other)}).name == "other"
    assert load_spec(environ={"WAXLAKE_SPEC": ""}).name == "shop"


def test_two_specs_in_one_folder_are_refused(project: Path) -> None:
    write(project, MINIMAL)
    write(project, MINIMAL, "waxlake.yaml")

    with pytest.raises(UsageError, match=r"two specs .*\[SPEC_AMBIGUOUS\]"):
        load_spec(project)


def test_no_spec_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(UsageError, match="waxlake init") as caught:
        load_spec(environ={})
    assert caught.value.code == "SPEC_NOT_FOUND"
    with pytest.raises(UsageError, match="WAXLAKE_SPEC"):
        load_spec(environ={"WAXLAKE_SPEC": str(tmp_path / "nowhere.yml")})


# -- what it may say


def test_locations_are_relative_to_the_spec(project: Path) -> None:
    spec = load(project, MINIMAL)

    assert spec.table_location("orders").uri == f"{project}/lake/tables/default/orders"
    assert spec.table_location("gold.orders").uri == f"{project}/lake/tables/gold/orders"
    assert spec.table_location("gold.orders").label == "gold.orders"
    assert spec.events_location().uri == f"{project}/lake/events"
    assert spec.ledger_location("abc").uri == f"{project}/lake/ledgers/abc"
    assert spec.resolve("data/in") == f"{project}/data/in"
    assert spec.resolve("s3://bucket/in") == "s3://bucket/in"


def test_a_bucket_as_storage(project: Path) -> None:
    text = "name: a\nstorage: s3://b/p/\nschema: silver\nstorage_options: {aws_region: eu-1, n: 5, flag: true}\n"
    spec = load(project, text)

    location = spec.table_location("orders")
    assert location.uri == "s3://b/p/tables/silver/orders"
    assert dict(location.options) == {"aws_region": "eu-1", "n": "5", "flag": "true"}
    assert spec.events_location().options == location.options


@pytest.mark.parametrize("name", ["", "a.b.c", "../x", "a/b", "a b", "a.", ".a", "é", "x" * 129])
def test_a_table_name_cannot_leave_its_place(project: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"\[NAME_INVALID\]"):
        load(project, MINIMAL).table_location(name)


def test_a_ledger_key_that_is_no_name_is_hashed(project: Path) -> None:
    spec = load(project, MINIMAL)

    places = {spec.ledger_location(key).uri for key in ("../x", "..", "a/b", "a/c")}
    assert len(places) == 4
    assert all(Path(place).parent == project / "lake" / "ledgers" for place in places)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5 seconds", 5), ("500ms", 0.5), ("1 minute", 60), ("2h", 7200), ("0.25", 0.25), ("3", 3), ("'7'", 7)],
)
def test_durations(project: Path, text: str, seconds: float) -> None:
    assert load(project, f"{MINIMAL}trigger_interval: {text}\n").trigger_interval == seconds


def test_configuration_keeps_what_is_written_and_params_win(project: Path) -> None:
    text = MINIMAL + "configuration:\n  version: 1.10\n  on: yes\n  n: 007\n  a.b-c: x\n"

    spec = load(project, text, params={"a.b-c": "y", "new": "z"})

    assert spec.configuration == {"version": "1.10", "on": "yes", "n": "007", "a.b-c": "y", "new": "z"}


def test_p72_the_documented_notifications_can_be_read(project: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "updates.md").read_text()
    block = text.partition("```yaml\n")[2].partition("```")[0].replace("${env:ALERT_URL}", "https://alerts/x")

    first, second = load(project, MINIMAL + block).notifications

    assert (first.on, second.on) == (("update-failure", "flow-failure"), ("update-success", "update-failure"))
    assert ([part.get_secret_value() for part in second.command or ()], second.timeout) == (
        ["./tell.sh", "--quietly"],
        20,
    )


def test_variables_are_filled_in_anywhere(project: Path) -> None:
    (project / "key.txt").write_text("s3cret\n")
    text = (
        "name: ${env:NAME}\nstorage: ${env:ROOT}/lake\nmode: ${env:MODE}\n"
        "storage_options: {aws_secret_access_key: '${file:key.txt}'}\nconfiguration: {q: 'SELECT ${other}'}\n"
    )

    spec = load(project, text, environ={"NAME": "n", "ROOT": "/r", "MODE": "continuous"})

    assert (spec.name, spec.storage_uri, spec.mode) == ("n", "/r/lake", "continuous")
    assert spec.storage_options["aws_secret_access_key"] == "s3cret"
    assert spec.configuration == {"q": "SELECT ${other}"}


def test_secrets_are_not_shown(project: Path) -> None:
    text = MINIMAL + "configuration: {db_password: hush}\nstorage_options: {aws_secret_access_key: hush}\n"

    spec = load(project, text)

    assert "hush" not in f"{spec!r} {spec}"
    assert "hush" not in repr(spec.table_location("t"))


def test_a_spec_travels_to_another_process(project: Path) -> None:
    spec = load(project, MINIMAL)

    assert pickle.loads(pickle.dumps(spec)) == spec


# -- which files


def test_p70_definition_files(project: Path) -> None:
    flows = project / "flows"
    for name in ("b/c.py", "__pycache__/x.py", ".hidden/y.py", "b/__init__.py", "notes.md"):
        (flows / name).parent.mkdir(exist_ok=True)
        (flows / name).write_text("")
    (flows / "main.py").write_text("from waxlake.pipeline.deploy import flow\n")
    (flows / "b" / "main.py").write_text("import waxlake\n")

    files = load(project, MINIMAL).definition_files()

    assert [str(file.relative_to(project)) for file in files] == ["flows/b/c.py", "flows/b/main.py", "flows/orders.py"]


@pytest.mark.parametrize("pattern", ["flows/orders.py", "flows/**", "flows/*.py", "**/*.py", "./flows/**"])
def test_patterns(project: Path, pattern: str) -> None:
    spec = load(project, f"{MINIMAL}libraries: [{{glob: {{include: '{pattern}'}}}}]\n")

    assert spec.definition_files() == (project / "flows" / "orders.py",)


def test_an_absolute_pattern(project: Path) -> None:
    spec = load(project, f"{MINIMAL}libraries: [{{glob: {{include: '{project}/flows/**'}}}}]\n")

    assert spec.definition_files() == (project / "flows" / "orders.py",)


def test_a_pattern_that_matches_nothing(project: Path) -> None:
    for libraries in (
        "[{glob: {include: nothing/**}}]",
        "[]",
        "[{glob: {include: flows/orders.py}}, {glob: {include: x}}]",
    ):
        with pytest.raises(UsageError, match=r"\[SPEC_NO_DEFINITIONS\]"):
            load(project, f"{MINIMAL}libraries: {libraries}\n").definition_files()


def test_sql_files_hold_definitions_too(project: Path) -> None:
    (project / "flows" / "gold.sql").write_text("SELECT 1")

    assert [file.name for file in load(project, MINIMAL).definition_files()] == ["gold.sql", "orders.py"]


# -- mistakes


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("", "SPEC_INVALID", "an empty file"),
        ("- a\n", "SPEC_INVALID", "expected a map"),
        ("storage: x\n", "SPEC_INVALID", "'name' is missing"),
        ("name: a\n", "SPEC_INVALID", "'storage' is missing"),
        ("name: a\nstorag: x\n", "SPEC_UNKNOWN_KEY", "'storag'. Did you mean 'storage'"),
        ("name: a\nstorage: x\npath: y\n", "SPEC_UNKNOWN_KEY", "unknown key 'path'"),
        (MINIMAL + "libraries: [{globb: {}}]\n", "SPEC_UNKNOWN_KEY", "'libraries.0.globb'. Did you mean 'glob'"),
        (MINIMAL + "libraries: [{glob: {incl: x}}]\n", "SPEC_UNKNOWN_KEY", "Did you mean 'include'"),
        (MINIMAL + "libraries: flows\n", "SPEC_INVALID", "found text, expected a list"),
        (MINIMAL + "libraries: [flows]\n", "SPEC_INVALID", "'libraries.0': found text"),
        ("name: a\nstorage: [x\n", "SPEC_SYNTAX", "waxlake.yml:3:1: not valid YAML"),
        ("name: a\nname: b\nstorage: x\n", "SPEC_SYNTAX", "waxlake.yml:2:1: key 'name' is there twice"),
        ("name: 5\nstorage: x\n", "SPEC_INVALID", "found the number 5, expected text"),
        ("name: on\nstorage: x\n", "SPEC_INVALID", "found true, which YAML reads as yes or no"),
        ("name: a b\nstorage: x\n", "SPEC_INVALID", "found 'a b', expected text of letters"),
        ("name: a\nstorage: ''\n", "SPEC_INVALID", "'storage'"),
        ("name: a\nstorage: s4://b\n", "SPEC_INVALID", "found scheme 's4'"),
        (MINIMAL + "schema: a.b\n", "SPEC_INVALID", "found 'a.b'"),
        (MINIMAL + "mode: contin\n", "SPEC_INVALID", "found 'contin', expected triggered or continuous"),
        (MINIMAL + "trigger_interval: 5 parsecs\n", "SPEC_INVALID", "found '5 parsecs', expected a time"),
        (MINIMAL + "trigger_interval: 0\n", "SPEC_INVALID", "the number 0"),
        (MINIMAL + "configuration: {a: {b: 1}}\n", "SPEC_INVALID", "'configuration.a': found a map"),
        (MINIMAL + "configuration: {a/b: 1}\n", "SPEC_INVALID", "key 'a/b'"),
        (MINIMAL + "configuration: [a]\n", "SPEC_INVALID", "'configuration': found a list"),
        (MINIMAL + "storage_options: 5\n", "SPEC_INVALID", "'storage_options': found the number 5"),
        (MINIMAL + "storage_options: {a: [b]}\n", "SPEC_INVALID", "'storage_options'"),
        (MINIMAL + "configuration: {k: '${env:NO_SUCH}'}\n", "SPEC_ENV_MISSING", "'configuration.k': environment"),
        (MINIMAL + "configuration: {k: '${file:nope}'}\n", "SPEC_FILE_MISSING", "cannot read"),
        (MINIMAL + "configuration: {k: '${evn:X}'}\n", "SPEC_VARIABLE", "expected ${env:NAME} or ${file:path}"),
    ],
)
def test_p71_mistakes(project: Path, text: str, code: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(project, text, environ={})

    assert caught.value.code == code
    assert caught.value.exit_code == 2
    assert said in str(caught.value)


def test_a_wrong_value_that_may_be_secret_is_not_repeated(project: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load(project, "name: a\nstorage: x\nlibraries: ${env:KEY}\n", environ={"KEY": "hush"})

    assert "hush" not in str(caught.value)


def test_a_file_that_is_not_text(project: Path) -> None:
    (project / "waxlake.yml").write_bytes(b"name: \xff")

    with pytest.raises(UsageError, match=r"not UTF-8.*\[SPEC_UNREADABLE\]"):
        load_spec(project)


# -- the guard


def test_our_packages_pass_the_guard() -> None:
    guard_packages()


def test_a_folder_that_shadows_ours_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    (tmp_path / "sinks").mkdir()
    (tmp_path / "sinks" / "__init__.py").write_text("")
    for name in [name for name in sys.modules if name.partition(".")[0] == "sinks"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))

    with pytest.raises(UsageError, match=r"\[PACKAGE_SHADOWED\]") as caught:
        guard_packages()
    assert str(tmp_path / "sinks") in str(caught.value)
