"""Turns notebooks in Databricks' source format into Jupyter's: to_jupyter.py NOTEBOOK.py ... writes NOTEBOOK.ipynb."""

from __future__ import annotations

import sys
from pathlib import Path

import jupytext
from nbformat import NotebookNode

MAGIC = "# MAGIC"


def read_notebook(path: Path) -> NotebookNode:
    """The notebook, by way of Jupytext's percent format."""
    source = path.read_text(encoding="utf-8").removeprefix("# Databricks notebook source\n")
    return jupytext.reads("\n".join(_cell(cell.strip("\n")) for cell in source.split("# COMMAND ----------")), fmt="py:percent")


def _cell(source: str) -> str:
    if not source.startswith(f"{MAGIC} %md"):
        return f"# %%\n{source}\n"
    lines = [f"#{line.removeprefix(MAGIC)}" for line in source.splitlines()[1:]]
    return "\n".join(["# %% [markdown]", *lines, ""])


if __name__ == "__main__":
    for name in sys.argv[1:]:
        jupytext.write(read_notebook(Path(name)), Path(name).with_suffix(".ipynb"))
