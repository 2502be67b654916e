"""Finds table files: what they declare, and, by the names of `build`'s parameters, what each one reads."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from importlib.util import find_spec

from pyspark.sql import DataFrame

from wares.errors import SettingsError, WaresError
from wares.lake.failures import told_by
from wares.lake.table import Table

REJECTED = "_rejected"
"""Ends the name of the table of the rows that a table rejected."""
LAYERS = ("bronze", "silver", "gold")


@dataclass(frozen=True)
class TableFile:
    """A table file.

    Args:
        name: The table, as `layer.name`.
        table: What it declares.
        build: How its rows are made.
        inputs: The tables that `build` reads, as `layer.name`; `bronze.orders` stands for the mapped rows of every
            source that provides orders.
        given: The parameters of `build` that are no tables.
        description: The first line of the file's docstring.
        code: The text of the file: when it changes, the table is built anew.
    """

    name: str
    table: Table
    build: Callable[..., DataFrame]
    inputs: tuple[str, ...]
    given: tuple[str, ...]
    description: str
    code: str

    @property
    def layer(self) -> str:
        return self.name.partition(".")[0]

    @property
    def path(self) -> str:
        """Where the file is, as people are told."""
        return _path(self.name)

    @property
    def follows(self) -> tuple[str, ...]:
        """The tables that are refreshed before it: those that `build` reads, and those that its rows refer to."""
        return (*self.inputs, *(reference.table for reference in self.table.references))


def discover(package: str) -> dict[str, TableFile]:
    """All table files under `package`, each after the tables that it reads.

    Raises:
        SettingsError: A file cannot be loaded, or lacks `TABLE` or `build`, two claim one name, a parameter names no table or a
            key no column, a reference does not fit the table that it names, or tables read each other in a ring.
    """
    files = {}
    layers = [layer for layer in LAYERS if find_spec(f"{package}.{layer}")]
    found = [(layer, module) for layer in layers for module in pkgutil.iter_modules(import_module(f"{package}.{layer}").__path__)]
    for layer, module in found:
        if module.ispkg:
            raise SettingsError(
                "A table is one file, and no folder; beside a file of that name it would take its place.",
                found=f"tables/{layer}/{module.name}/",
                do="give the folder another place",
            )
    for layer, module in found:
        file = _table_file(f"{package}.{layer}.{module.name}", f"{layer}.{module.name}")
        files[file.name] = file
    for file in files.values():
        if (other := file.name.removesuffix(REJECTED)) != file.name and other in files:
            raise SettingsError(
                "Two tables claim one name.",
                found=f"{file.name}, a table file, and the rejected rows of {other}",
                do="give the table file another name",
            )
        for name in file.inputs:
            if not name.startswith("bronze.") and name not in files:
                raise SettingsError(
                    f"The table file {file.name} reads a table that does not exist.",
                    found=f"build({name.replace('.', '_', 1)}, ...)",
                    do=f"name the parameter after one of: {', '.join(sorted(files))}",
                )
        _check_columns(file)
        _check_references(file, files)
    return {name: files[name] for name in _sorted(files)}


def _check_columns(file: TableFile) -> None:
    table = file.table
    named = {"keys": table.keys, "newest": table.newest, "refresh": table.refresh.keys}
    if unknown := [f"{name}, of {part}" for part, names in named.items() for name in names if name not in table.by_name]:
        raise SettingsError(
            f"The table file {file.name} names columns that it does not declare.",
            found="; ".join(unknown),
            do=f"name some of {', '.join(table.by_name)}, or declare them",
        )


def _check_references(file: TableFile, files: dict[str, TableFile]) -> None:
    for reference in file.table.references:
        other = files.get(reference.table)
        found = f"{', '.join(reference.columns)} -> {reference.table}"
        if other is None:
            raise SettingsError(
                f"The table file {file.name} refers to a table that does not exist.",
                found=found,
                do=f"name one of: {', '.join(sorted(files))}",
            )
        if len(reference.columns) != len(other.table.keys) or not set(reference.columns) <= set(file.table.by_name):
            raise SettingsError(
                f"The table file {file.name} refers to another by columns that are not its keys.",
                found=found,
                do=f"name the columns of {file.name} that hold, in this order: {', '.join(other.table.keys)}",
            )


def downstream(files: dict[str, TableFile], name: str) -> list[str]:
    """A table and all that is built from it by tables alone, each after what it reads."""
    found = [name]
    for file in files.values():  # which are sorted
        if not file.given and set(file.follows) & set(found):
            found.append(file.name)
    return found


def _sorted(files: dict[str, TableFile]) -> list[str]:
    graph = {name: [read for read in file.follows if read in files] for name, file in files.items()}
    try:
        return list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise SettingsError(
            "Tables read each other in a ring.", found=" -> ".join(error.args[1]), do="take one of the parameters away"
        ) from None


def _path(name: str) -> str:
    return f"tables/{name.replace('.', '/')}.py"


def _table_file(module_name: str, name: str) -> TableFile:
    try:
        module = import_module(module_name)
    except Exception as error:
        found = str(error) if isinstance(error, WaresError) else told_by(error, find_spec(module_name).origin)
        raise SettingsError(f"The table file {name} cannot be loaded.", found=found, do=f"mend {_path(name)}") from error
    table, build = getattr(module, "TABLE", None), getattr(module, "build", None)
    if not isinstance(table, Table) or not callable(build):
        raise SettingsError(
            f"The table file {name} is not whole.",
            found=module.__file__ or "",
            do="declare TABLE = Table(...) and def build(...)",
        )
    parameters = list(inspect.signature(build).parameters)
    inputs = tuple(parameter.replace("_", ".", 1) for parameter in parameters if parameter.split("_")[0] in LAYERS)
    given = tuple(parameter for parameter in parameters if parameter.split("_")[0] not in LAYERS)
    description = (inspect.getdoc(module) or "").splitlines()
    return TableFile(name, table, build, inputs, given, description[0] if description else "", inspect.getsource(module))
