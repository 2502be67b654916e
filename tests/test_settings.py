"""Settings: defaults, files, overrides, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, model_validator
from wares.errors import SettingsError
from wares.settings import PROJECT, load_settings, validate


@pytest.mark.parametrize("file", ["conf/local.yaml", "conf/cluster.yaml"])
def test_the_files_of_the_project_fit(file: str) -> None:
    assert load_settings(PROJECT / file).sources == ("completejourney",)


def test_overrides_stand_above_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("lake: {root: /a}\ntrain: {epochs: 2}\n", encoding="utf-8")
    settings = load_settings(file, ["lake.root=/b", "score.exclude_seen=true"])
    assert (settings.lake.root, settings.train.epochs, settings.score.exclude_seen) == ("/b", 2, True)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("lake: {rot: x}", "lake.rot: unknown key"),
        ("train: {epochs: 0}", "train.epochs"),
        ("train: {launcher: mpirun}", "train.launcher"),
        ("train: {launcher: spark, hosts: a.sh}", "only the launcher horovodrun"),
        ("train: {hosts: a.sh, min_ranks: 3}", "min_ranks is above ranks"),
        ("- a list", "a list"),
        ("lake: {root: [", "while parsing"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, text: str, found: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError) as error:
        load_settings(file)
    assert found in error.value.found


def test_a_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("train: {launcher: café}".encode("latin-1"))
    with pytest.raises(SettingsError, match="not in UTF-8") as refused:
        load_settings(tmp_path / "latin.yaml")
    assert refused.value.found == "the byte at 21 is 0xe9"


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().lake.root = "elsewhere"


@pytest.mark.parametrize("text", ["hunter2hunter2hunter2", "env:", "{a: hunter2}"])
def test_a_key_that_was_written_into_the_settings_is_not_shown(text: str) -> None:
    """Where the key is may be told to nobody either, in case it is the key."""
    with pytest.raises(SettingsError, match=r"lake\.secret") as refused:
        load_settings(overrides=[f"lake.secret={text}"])
    assert "hunter2" not in str(refused.value)
    place = load_settings(overrides=["lake.secret=env:hunter2"])
    assert "hunter2" not in f"{place} {place!r} {place.model_dump_json()}"


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("lake: {root: a}\nspark: {master: local}\nlake: {root: b}\n", encoding="utf-8")
    with pytest.raises(SettingsError, match="the key 'lake' stands twice.*line 3"):
        load_settings(path)


def test_what_is_wrong_with_a_group_is_not_buried_by_what_is_in_it(tmp_path: Path) -> None:
    class Group(BaseModel):
        low: int
        high: int

        @model_validator(mode="after")
        def _is_range(self) -> Group:
            if self.low > self.high:
                raise ValueError("low is above high")
            return self

    with pytest.raises(SettingsError) as caught:
        validate(Group, {"low": 2, "high": 1}, "a.yaml")
    assert caught.value.found == "low is above high"
