"""A sheet of test images, each with the training images that its features are nearest to."""

from __future__ import annotations

from typing import final

import numpy as np
from PIL import Image
from pydantic import Field
from torch.nn import functional

from quadriga.contracts import EvaluationContext, EvaluationResult, Evaluator, EvaluatorConfig
from quadriga.distributed.collectives import from_main
from quadriga.evaluation.knn import nearest_neighbours
from quadriga.evaluation.parts.features import Encoded, check_features, feature_bank
from quadriga.evaluation.parts.pictures import chosen_rows, read_images, shown
from quadriga.evaluation.reconstruction import draw_grid, save_picture

FILES = {"neighbours.png": "this encoder", "neighbours_random.png": "a random encoder"}


@final
class NeighboursConfig(EvaluatorConfig):
    """A picture of nearest neighbours, by the trained and by the random encoder."""

    images: int = Field(8, ge=1, le=1000)
    """Test images, one a row."""
    neighbours: int = Field(6, ge=1, le=100)
    """Training images beside each, the nearest first, by cosine similarity."""

    def build(self) -> Neighbours:
        """Make the evaluator."""
        return Neighbours(self)


@final
class Neighbours(Evaluator):
    """Draws ``neighbours.png`` and ``neighbours_random.png``; it has no metrics."""

    def __init__(self, config: NeighboursConfig) -> None:
        """Keep the config."""
        self.config = config

    def check(self, context: EvaluationContext) -> None:
        """Check that there are an encoder, and labels of two classes.

        Raises:
            UserError: The encoder or the labels are missing.
        """
        check_features(context, "neighbours")

    def run(self, context: EvaluationContext) -> EvaluationResult:
        """Draw the sheets.

        Raises:
            UserError: No encoder, no labels, or a picture cannot be written.
        """
        bank = feature_bank(context, "neighbours")

        def draw() -> dict[str, str]:
            captions = {}
            for (file, whose), encoded in zip(
                FILES.items(), (bank.trained, bank.random), strict=True
            ):
                sheet, right = self._sheet(encoded, context)
                save_picture(sheet, context.output / file)
                captions[file] = (
                    f"Test images and the training images nearest to them for {whose}: "
                    f"{right:.0%} are of the same class"
                )
            return captions

        return EvaluationResult("neighbours", {}, pictures=from_main(draw, context.env))

    def _sheet(self, encoded: Encoded, context: EvaluationContext) -> tuple[Image.Image, float]:
        """Return the sheet, and the share of its neighbours that are of their image's class."""
        train, test = encoded.train, encoded.test
        rows = chosen_rows(len(test.labels), self.config.images, context)
        count = min(self.config.neighbours, len(train.labels))
        _, index = nearest_neighbours(
            functional.normalize(test.values[rows], dim=1),
            functional.normalize(train.values, dim=1),
            count,
        )
        right = (train.labels[index] == test.labels[rows][:, None]).double().mean()
        queries = read_images(context, context.data("test"), test.rows[rows].numpy())
        columns = [("image", shown(queries, context))]
        for place in range(count):
            near = train.rows[index[:, place]].numpy().astype(np.int64)
            found = read_images(context, context.data("train"), near)
            columns.append((str(place + 1), shown(found, context)))
        return draw_grid(columns), float(right)
