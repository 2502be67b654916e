"""Table files are found, put in order by the names of build's parameters, and refused if they are not whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from wares.errors import SettingsError
from wares.lake.registry import discover, downstream
from wares.tables import TABLES

WHOLE = '''"""{title}.

More words."""

from wares.lake.labels import PUBLIC
from wares.lake.table import Column, Table

TABLE = Table(keys=("id",), columns=(Column("id", "string", PUBLIC, "Names the row."),))


def build({parameters}):
    return None
'''

Package = Callable[..., str]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """Writes a package of table files from `silver__name="parameters"` and returns its name."""

    def write(**files: str) -> str:
        name = f"tables_of_{tmp_path.name}"  # for each test another, since Python imports a package once
        for place, text in files.items():
            layer, _, table = place.partition("__")
            (tmp_path / name / layer).mkdir(parents=True, exist_ok=True)
            body = text if "\n" in text else WHOLE.format(title=f"The {table}", parameters=text)
            (tmp_path / name / layer / f"{table}.py").write_text(body, encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        return name

    return write


def test_tables_come_after_what_they_read(package: Package) -> None:
    found = discover(
        package(gold__a_first="silver_z_last, gold_middle, scorer", gold__middle="silver_z_last", silver__z_last="bronze_lines")
    )
    assert list(found) == ["silver.z_last", "gold.middle", "gold.a_first"]
    first = found["gold.a_first"]
    assert first.inputs == ("silver.z_last", "gold.middle")
    assert first.given == ("scorer",)
    assert (first.layer, first.description) == ("gold", "The a_first.")
    assert found["silver.z_last"].inputs == ("bronze.lines",)


def test_a_ring_is_refused(package: Package) -> None:
    with pytest.raises(SettingsError, match="in a ring") as refused:
        discover(package(gold__hen="gold_egg", gold__egg="gold_hen"))
    assert "gold.hen" in refused.value.found and "gold.egg" in refused.value.found


def test_a_parameter_that_names_no_table_is_refused(package: Package) -> None:
    with pytest.raises(SettingsError, match="gold.report reads a table that does not exist") as refused:
        discover(package(gold__report="silver_oders", silver__orders="bronze_orders"))
    assert "silver_oders" in refused.value.found
    assert "silver.orders" in refused.value.do


def test_a_table_that_would_share_its_name_with_rejected_rows_is_refused(package: Package) -> None:
    with pytest.raises(SettingsError, match="Two tables claim one name") as refused:
        discover(package(silver__orders="bronze_lines", silver__orders_rejected="bronze_lines"))
    assert "silver.orders_rejected" in refused.value.found and "silver.orders" in refused.value.found


REFERRING = WHOLE.replace("Table\n", "Reference, Table\n", 1).replace(
    '"Names the row."),))', '"Names the row."),), references=({references},))'
)


def referring(references: str, parameters: str = "bronze_lines") -> str:
    return REFERRING.format(title="Refers", references=f"Reference({references})", parameters=parameters)


def test_a_table_comes_after_those_that_its_rows_refer_to(package: Package) -> None:
    found = discover(package(silver__a=referring('("id",), "silver.z"'), silver__z="bronze_lines", gold__m="silver_a"))
    assert list(found) == ["silver.z", "silver.a", "gold.m"]
    assert found["silver.a"].inputs == ("bronze.lines",)
    assert downstream(found, "silver.z") == ["silver.z", "silver.a", "gold.m"]


@pytest.mark.parametrize(
    ("references", "wrong", "do"),
    [
        ('("id",), "silver.y"', "refers to a table that does not exist", "silver.z"),
        ('("id", "id"), "silver.z"', "by columns that are not its keys", "in this order: id"),
        ('("name",), "silver.z"', "by columns that are not its keys", "in this order: id"),
        ('("id",), "silver.a"', "in a ring", "take one"),
    ],
)
def test_a_reference_that_does_not_fit_is_refused(package: Package, references: str, wrong: str, do: str) -> None:
    with pytest.raises(SettingsError, match=wrong) as refused:
        discover(package(silver__a=referring(references), silver__z="bronze_lines"))
    assert "silver.a" in str(refused.value) and do in refused.value.do


@pytest.mark.parametrize("text", ["x = 1\n", "def build():\n    return None\n", "TABLE = 3\ndef build():\n    return None\n"])
def test_a_file_that_is_not_whole_is_refused(package: Package, text: str) -> None:
    name = package(silver__half=text)
    with pytest.raises(SettingsError, match="silver.half is not whole") as refused:
        discover(name)
    assert "half.py" in refused.value.found and "TABLE" in refused.value.do


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("def build(:\n    return None\n", "SyntaxError: invalid syntax (bad.py, line 1)"),
        ("import os\nimport no_such_library\n", "ModuleNotFoundError in line 2: No module named 'no_such_library'"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_named(package: Package, text: str, found: str) -> None:
    name = package(silver__bad=text)
    with pytest.raises(SettingsError, match="silver.bad cannot be loaded") as refused:
        discover(name)
    assert found in refused.value.found and refused.value.do == "mend tables/silver/bad.py"


def test_a_key_that_is_no_column_is_refused(package: Package) -> None:
    name = package(silver__a=WHOLE.format(title="A", parameters="").replace('keys=("id",)', 'keys=("di",)'))
    with pytest.raises(SettingsError, match="silver.a names columns that it does not declare") as refused:
        discover(name)
    assert refused.value.found == "di, of keys"


def test_a_folder_in_the_place_of_a_table_file_is_refused(package: Package, tmp_path: Path) -> None:
    name = package(silver__a="", gold__b="silver_a")
    (tmp_path / name / "silver" / "a").mkdir()
    (tmp_path / name / "silver" / "a" / "__init__.py").write_text("", encoding="utf-8")
    with pytest.raises(SettingsError, match="one file, and no folder") as refused:
        discover(name)
    assert refused.value.found == "tables/silver/a/"


def test_the_tables_of_wares() -> None:
    names = list(TABLES)
    for name, file in TABLES.items():
        assert file.description and file.table.keys[0] == "source", name
        assert set(file.table.keys) <= set(file.table.by_name), name
        for read in file.inputs:
            assert read.startswith("bronze.") or names.index(read) < names.index(name)
    assert {"silver.users", "silver.products", "silver.orders", "silver.events", "silver.promotions"} <= set(names)
