"""The registered model as others load it: `mlflow.pyfunc.load_model("models:/wares_SOURCE@champion")`.

It takes rows with a column for each feature, as the model's signature names them: the columns of gold.user_features,
product_features, pair_features, type_features and affinities, joined, each with the name of its part before it, such as
`user_baskets`, but for `product_id`. Null stands for a past that is not there. It returns the probability of a purchase for
each row, computed by the Keras network itself. MLflow runs this file when it loads the model.
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa

from wares.model.encoding import Encoding, encode_parts
from wares.model.spec import Spec


class WideDeep(mlflow.pyfunc.PythonModel):
    """The network behind MLflow's interface."""

    def load_context(self, context: mlflow.pyfunc.PythonModelContext) -> None:
        # TensorFlow is loaded where a model is, not where one is logged.
        import keras

        import wares.model.network  # noqa: F401  (registers the layers with Keras)

        folder = Path(context.artifacts["wide_deep"])
        self._spec = Spec.model_validate_json((folder / "spec.json").read_text(encoding="utf-8"))
        self._encoding = Encoding.load(folder / "encoding.json")
        self._network = keras.models.load_model(folder / "model.keras", compile=False)

    def predict(
        self, context: mlflow.pyfunc.PythonModelContext, model_input: pd.DataFrame, params: dict[str, object] | None = None
    ) -> pd.DataFrame:
        wanted = [feature.column for feature in self._spec.stored]
        if missing := sorted(set(wanted) - set(model_input.columns)):
            raise ValueError(f"columns of features are missing: {', '.join(missing)}; one that is not known may be null")
        rows = pa.Table.from_pandas(model_input[wanted], preserve_index=False)
        logits = self._network.predict(encode_parts(self._spec, self._encoding, rows), batch_size=8192, verbose=0)[:, 0]
        return pd.DataFrame({"probability": 1 / (1 + np.exp(-logits))})


mlflow.models.set_model(WideDeep())
