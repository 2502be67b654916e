from __future__ import annotations

from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
import yaml
from wares.errors import ModelError, SettingsError
from wares.model.spec import Spec, load_spec
from wares.model.training import check_columns
from wares.settings import validate


def test_the_projects_spec_fits_the_examples() -> None:
    check_columns(load_spec("conf/wide_deep.yaml"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeding": 3}, "embeding: unknown key"),
        ({"side": "left"}, "side"),
        ({"from": "shelf.height"}, "from"),
        ({"kind": "magic"}, "magic"),
        ({"name": ""}, "name: String should match"),
        ({"name": "a/b c"}, "name: String should match"),
    ],
)
def test_a_spec_with_a_mistake_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    feature = {
        "name": "type",
        "from": "product.type",
        "kind": "categorical",
        "side": "deep",
        "vocabulary": 9,
        "embedding": 2,
    } | change
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump({"network": {"hidden": [4, 2]}, "features": [feature]}))
    with pytest.raises(SettingsError, match=message):
        load_spec(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("network", "hidden", [0, 16]), "network.hidden.0: .* greater than 0"),
        (("network", "hidden", [64, -1]), "network.hidden.1: .* greater than 0"),
        (("features", -1, "buckets", 10**12), "buckets: .* less than or equal to 134217728"),
        (("features", []), "features: .* at least 1 item"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused(spec: Spec, change: tuple[Any, ...], message: str) -> None:
    data = spec.model_dump(mode="json", by_alias=True)
    *path, last, value = change
    reduce(getitem, path, data)[last] = value
    with pytest.raises(SettingsError, match=message):
        validate(Spec, data, "spec.yaml")


def test_a_cross_with_what_does_not_exist_is_refused(tmp_path: Path, spec: Spec) -> None:
    data = spec.model_dump(mode="json", by_alias=True)
    data["features"][-1]["of"] = ["age", "colour"]
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump(data))
    with pytest.raises(SettingsError, match="'colour', which is no category of the product"):
        load_spec(file)


def test_a_feature_without_a_column_is_named(spec: Spec) -> None:
    data = spec.model_dump(mode="json", by_alias=True)
    for feature in data["features"]:
        feature["from"] = {"user.age_band": "user.age", "pair.gap": "pair.product_id"}.get(
            feature.get("from"), feature.get("from")
        )
    data["features"] = [{key: value for key, value in feature.items() if value is not None} for feature in data["features"]]
    with pytest.raises(ModelError, match=r"age \(from: user.age\), pair_gap \(from: pair.product_id\)"):
        check_columns(Spec.model_validate(data))


def test_a_column_of_another_type_is_named(spec: Spec) -> None:
    data = spec.model_dump(mode="json", by_alias=True)
    moved = {"user.baskets": "user.age_band", "product.weeks": "product.baskets"}
    data["features"] = [
        {key: moved.get(value, value) if key == "from" else value for key, value in feature.items()}
        for feature in data["features"]
    ]
    with pytest.raises(ModelError) as error:
        check_columns(Spec.model_validate(data), "wares_shop@3")
    assert error.value.wrong.startswith("wares_shop@3 names columns")
    assert "user_baskets (from: user.age_band, which is string and cannot be numeric)" in error.value.found
    assert "weeks (from: product.baskets, which is int and cannot be vector)" in error.value.found
