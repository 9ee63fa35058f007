"""A map of the features: every test image a point, coloured by its class.

Principal components keep distances as well as a plane can; t-SNE (van der Maaten and Hinton, JMLR
2008) keeps neighbours, and the distances between its clusters mean nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from quadriga.contracts import EvaluationContext, EvaluationResult, Evaluator, EvaluatorConfig
from quadriga.distributed.collectives import from_main
from quadriga.errors import UserError
from quadriga.evaluation.parts.features import (
    FeatureBank,
    Features,
    check_features,
    feature_bank,
)
from quadriga.evaluation.parts.pictures import chosen_rows, principal_components
from quadriga.randomness import fold

FILE = "feature_map.png"
LEGEND_CLASSES = 20
"""More classes are coloured, and not named."""


@final
class FeatureMapConfig(EvaluatorConfig):
    """A picture of the features in two dimensions, beside the random encoder's."""

    method: Literal["pca", "tsne"] = "pca"
    """Principal components, or t-SNE."""
    images: int = Field(2000, ge=4, le=2**20)
    """Largest number of test images."""

    def build(self) -> FeatureMap:
        """Make the evaluator."""
        return FeatureMap(self)


@final
class FeatureMap(Evaluator):
    """Draws ``feature_map.png``; it has no metrics."""

    def __init__(self, config: FeatureMapConfig) -> None:
        """Keep the config."""
        self.config = config

    def check(self, context: EvaluationContext) -> None:
        """Check that there are an encoder, and labels of two classes.

        Raises:
            UserError: The encoder or the labels are missing.
        """
        check_features(context, "feature_map")

    def run(self, context: EvaluationContext) -> EvaluationResult:
        """Draw the map.

        Raises:
            UserError: No encoder, no labels, fewer than four test images, or the picture cannot be
                written.
        """
        bank = feature_bank(context, "feature_map")
        if len(bank.trained.test.labels) < 4:
            raise UserError("feature_map needs at least 4 test images; leave feature_map out")
        details = from_main(lambda: self._draw(bank, context), context.env)
        how = {"pca": "their first two principal components", "tsne": "t-SNE"}[self.config.method]
        caption = f"Features of test images by {how}, coloured by class"
        return EvaluationResult("feature_map", {}, {FILE: caption}, details)

    def _draw(self, bank: FeatureBank, context: EvaluationContext) -> dict[str, float]:
        from matplotlib import colormaps
        from matplotlib.figure import Figure

        figure = Figure(figsize=(12, 6), layout="constrained")
        rows = torch.from_numpy(
            chosen_rows(len(bank.trained.test.labels), self.config.images, context)
        )
        labels = bank.trained.test.labels[rows]
        colours = colormaps["nipy_spectral"]
        details: dict[str, float] = {"images": len(rows)}
        parts = {"this encoder": bank.trained.test, "random encoder": bank.random.test}
        for axes, (title, features) in zip(figure.subplots(1, 2), parts.items(), strict=True):
            points, share = self._points(features, rows, context)
            if share is not None:
                details[f"variance shown, {title}"] = share
            for label, name in enumerate(bank.names):
                x, y = points[labels == label].T.numpy()
                colour = colours((label + 0.5) / bank.classes)
                axes.scatter(x, y, s=8, color=colour, label=name, linewidths=0)
            axes.set(title=title, xticks=[], yticks=[])
        if bank.classes <= LEGEND_CLASSES:
            handles, names = figure.axes[0].get_legend_handles_labels()
            figure.legend(handles, names, loc="outside right center", markerscale=2)
        _save(figure, context.output / FILE)
        return details

    def _points(
        self, features: Features, rows: Tensor, context: EvaluationContext
    ) -> tuple[Float[Tensor, "samples 2"], float | None]:
        """Return the points, and the share of the variance that principal components show."""
        values = features.values[rows]
        if self.config.method == "pca":
            points, share = principal_components(values, 2)
            return points, float(share)
        from sklearn.manifold import TSNE

        made = TSNE(
            perplexity=min(30.0, (len(rows) - 1) / 3),
            random_state=fold(context.seed, "feature map") % 2**32,
        ).fit_transform(values.double().numpy())
        return torch.from_numpy(made), None


def _save(figure: object, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        figure.savefig(temporary, format="png", dpi=100)  # type: ignore[attr-defined]
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; make room") from error
