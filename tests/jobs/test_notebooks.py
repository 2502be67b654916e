"""The notebooks run from top to bottom: as plain scripts, and in Jupyter."""

from __future__ import annotations

import os
import runpy
from pathlib import Path

import pytest
from corner_shop import SuiteRun
from nbclient import NotebookClient
from to_jupyter import read_notebook
from wares.settings import PROJECT

NOTEBOOKS = sorted((PROJECT / "notebooks").glob("[0-9]*.py"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_as_a_script(
    notebook: Path, first_run: SuiteRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WARES_LAKE", str(first_run.lake))
    runpy.run_path(str(notebook))
    shown = capsys.readouterr().out
    assert "CONFIDENTIAL + IDENTIFIER" in shown  # a label
    assert "silver.users" in shown  # lineage
    assert "bronze.corner_transactions" in shown  # rows
    assert "wares_corner@1" in shown  # a list


@pytest.mark.slow  # a second session, for what the first test shows of the same code
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_in_jupyter(notebook: Path, first_run: SuiteRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARES_LAKE", str(first_run.lake))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(PROJECT / "lib"), os.environ.get("PYTHONPATH", "")]))
    read = read_notebook(notebook)
    NotebookClient(read, timeout=300, resources={"metadata": {"path": str(notebook.parent)}}).execute()
    assert [cell.cell_type for cell in read.cells][:2] == ["markdown", "code"]
    assert "wares_corner@1" in str(read.cells[-1].outputs)
