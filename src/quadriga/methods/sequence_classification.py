"""Fine-tuning BERT to label texts (Devlin et al., arXiv:1810.04805, section 4.1).

The vector of the first token passes through the pooler, dropout and one linear map. The loss is the
cross-entropy over classes, or the squared error for a regression.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from quadriga import randomness
from quadriga.contracts import (
    Batch,
    Dataset,
    LossOutput,
    ModelConfig,
    Objective,
    ObjectiveConfig,
    Stage,
    ViewsConfig,
    with_initial_values,
)
from quadriga.contracts.stage import check_depths
from quadriga.errors import UserError
from quadriga.models.bert import BertConfig, BertSlice, Pooler
from quadriga.models.parts.initialise import initialise
from quadriga.models.parts.transformer import Dropout


@final
class SequenceClassificationConfig(ObjectiveConfig):
    """Classification of, or regression on, one or two texts."""

    outputs: int = Field(2, ge=1, le=2**24)
    """Number of classes; 1 for a regression."""
    regression: bool = False
    """Whether the label is a real number instead of a class."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Probability that a feature of the pooled vector is dropped."""

    @model_validator(mode="after")
    def _outputs_of_the_task(self) -> SequenceClassificationConfig:
        if self.regression and self.outputs != 1:
            raise ValueError(f"outputs must be 1 when regression is true, but is {self.outputs}")
        if not self.regression and self.outputs < 2:
            raise ValueError(f"outputs must be at least 2 for classes, but is {self.outputs}")
        return self

    def build(self, model: ModelConfig) -> SequenceClassification:
        """Make the objective.

        Raises:
            UserError: `model` is not a BERT.
        """
        if not isinstance(model, BertConfig):
            raise UserError(
                f"sequence_classification needs model.kind=bert, but model.kind is {model.kind()}"
            )
        return with_initial_values(
            lambda: SequenceClassification(self, model), SequenceClassification.initialise_all
        )

    def check(self, model: ModelConfig, dataset: Dataset | None, views: ViewsConfig) -> None:
        """Check that the model's tables are large enough; see `BertConfig.check_texts`.

        Raises:
            UserError: They are not.
        """
        if isinstance(model, BertConfig):
            model.check_texts(dataset, views)


@final
class SequenceClassification(Objective):
    """BERT with a classifier on its first token.

    Encoder and pooler have the same names as in `quadriga.methods.masked_lm`.
    """

    entry_points = ("scores",)

    new_parts: ClassVar[tuple[str, ...]] = ("classifier.",)
    optional_parts: ClassVar[tuple[str, ...]] = ("pooler.",)

    def __init__(self, config: SequenceClassificationConfig, model: BertConfig) -> None:
        """Make encoder, pooler and classifier with undefined values."""
        super().__init__()
        self.outputs, self.regression = config.outputs, config.regression
        self.metric_names = () if config.regression else ("accuracy",)
        self.depth = model.depth
        self.encoder = model.build()
        self.pooler = Pooler(model.width)
        self.drop = Dropout(config.dropout, randomness.fold("dropout", "classifier"))
        self.classifier = nn.Linear(model.width, config.outputs)

    def initialise(self, seed: int) -> None:
        """Fill every tensor: N(0, 0.02^2) for linear maps and tables, norms 1 and 0, biases 0."""
        initialise(self, seed, "normal")

    def forward(self, batch: Batch) -> LossOutput:
        """Sum the cross-entropy, or the squared error, over the samples.

        Args:
            batch: Text with ``label``: int64 classes, or float32 numbers.
        """
        return _output(self.scores(batch), batch["label"], self.regression)

    def scores(self, batch: Batch) -> Float[Tensor, "batch outputs"]:
        """Return one logit per class, or the predicted number, of each sample."""
        pooled = self.pooler(self.encoder(batch), batch)
        scores: Tensor = self.classifier(self.drop(pooled))
        return scores

    def stages(self, depths: Sequence[int]) -> list[Stage]:
        """Cut into stages of `depths` blocks; see `quadriga.contracts.Splittable`.

        Raises:
            UserError: The depths do not add up to the model's.
        """
        check_depths(depths, self.depth)
        return [ClassificationStage(self, index, depths) for index in range(len(depths))]


@final
class ClassificationStage(Stage):
    """Consecutive blocks of a BERT; the first stage has the embeddings, the last the classifier."""

    def __init__(self, whole: SequenceClassification, index: int, depths: Sequence[int]) -> None:
        """Take the modules of stage `index` from the objective."""
        super().__init__()
        self.index, self.regression = index, whole.regression
        start = sum(depths[:index])
        blocks = range(start, start + depths[index])
        self.is_last = index == len(depths) - 1
        # No head shares the word embedding, so only the first stage has it.
        self.encoder = BertSlice(whole.encoder, blocks, is_first=index == 0, is_last=False)
        if self.is_last:
            self.pooler, self.drop, self.classifier = whole.pooler, whole.drop, whole.classifier

    def initialise(self, seed: int) -> None:
        """Fill every tensor with its values in the whole objective."""
        initialise(self, seed, "normal")

    def hidden_shape(self, batch: Batch) -> tuple[int, ...]:
        """Return (tokens, width), for the real tokens of all samples in one dimension."""
        return (batch["tokens"].shape[0], self.encoder.width)

    def forward(
        self, hidden: Float[Tensor, "tokens width"] | None, batch: Batch
    ) -> Tensor | LossOutput:
        """Map the previous stage's output to the next one's input, or to the loss."""
        hidden = self.encoder(hidden, batch)
        if not self.is_last:
            return hidden
        scores = self.classifier(self.drop(self.pooler(hidden, batch)))
        return _output(scores, batch["label"], self.regression)


def _output(scores: Tensor, labels: Tensor, regression: bool) -> LossOutput:
    """Return the summed loss and the number of samples; for classes also the accuracy."""
    scores = scores.float()
    count = scores.new_full((), scores.shape[0])
    if regression:
        loss = functional.mse_loss(scores[:, 0], labels.float(), reduction="sum")
        return LossOutput.of(loss, count, {})
    loss = functional.cross_entropy(scores, labels, reduction="sum")
    hits = (scores.argmax(dim=1) == labels).sum().to(scores.dtype)
    return LossOutput.of(loss, count, {"accuracy": (hits, count)})
