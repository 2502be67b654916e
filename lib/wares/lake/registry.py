"""Finds table files: what they declare, and, by the names of `build`'s parameters, what each one reads."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from importlib import import_module

from pyspark.sql import DataFrame

from wares.errors import SettingsError
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
    def follows(self) -> tuple[str, ...]:
        """The tables that are refreshed before it: those that `build` reads, and those that its rows refer to."""
        return (*self.inputs, *(reference.table for reference in self.table.references))


def discover(package: str) -> dict[str, TableFile]:
    """All table files under `package`, each after the tables that it reads.

    Raises:
        SettingsError: A file lacks `TABLE` or `build`, a parameter names no table, a reference does not fit the table that it
            names, or tables read each other in a ring.
    """
    files = {}
    for layer in LAYERS:
        try:
            folder = import_module(f"{package}.{layer}")
        except ModuleNotFoundError:
            continue
        for module in pkgutil.iter_modules(folder.__path__):
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
        _check_references(file, files)
    return {name: files[name] for name in _sorted(files)}


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


def _table_file(module_name: str, name: str) -> TableFile:
    module = import_module(module_name)
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
