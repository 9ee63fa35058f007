"""Fine-tuning BERT to label texts (Devlin et al., arXiv:1810.04805, section 4.1).

The vector of the first token goes through the pooler, dropout and one linear map: the cross-entropy
over classes, or for a number the squared error.
"""

from __future__ import annotations

from typing import ClassVar, final

from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from quadriga import randomness
from quadriga.contracts import Batch, LossOutput, ModelConfig, Objective, ObjectiveConfig
from quadriga.errors import UserError
from quadriga.models.bert import BertConfig, first_tokens
from quadriga.models.initialise import initialise
from quadriga.models.pooler import Pooler
from quadriga.models.transformer import Dropout


@final
class SequenceClassificationConfig(ObjectiveConfig):
    """Classes, or a number, of one or two texts."""

    outputs: int = Field(2, ge=1)
    """Number of classes; 1 for a regression."""
    regression: bool = False
    """Whether the label is a number."""
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
            UserError: `model` is no BERT.
        """
        if not isinstance(model, BertConfig):
            raise UserError(
                f"sequence_classification needs model.kind=bert, but model.kind is {model.kind()}"
            )
        return SequenceClassification(self, model)


@final
class SequenceClassification(Objective):
    """BERT with a classifier on its first token."""

    new_parts: ClassVar[tuple[str, ...]] = ("classifier.",)
    """A warm start leaves the classifier as it is: whatever a file has for one is of another
    task."""
    optional_parts: ClassVar[tuple[str, ...]] = ("pooler.",)
    """Not trained by every pre-training: begins anew where a file has none of it."""
    unused_parts: ClassVar[tuple[str, ...]] = ("masked_lm.", "next_sentence.")
    """What pre-training alone needs."""

    def __init__(self, config: SequenceClassificationConfig, model: BertConfig) -> None:
        """Make encoder, pooler and classifier with undefined values."""
        super().__init__()
        self.outputs, self.regression = config.outputs, config.regression
        self.metric_names = () if config.regression else ("accuracy",)
        self.encoder = model.build()
        self.pooler = Pooler(model.width)
        self.drop = Dropout(config.dropout, randomness.fold("dropout", "classifier"))
        self.classifier = nn.Linear(model.width, config.outputs)

    def initialise(self, seed: int) -> None:
        """Fill every tensor: linear maps and embeddings N(0, 0.02^2), norms 1 and 0."""
        initialise(self, seed, linear="normal")

    def forward(self, batch: Batch) -> LossOutput:
        """Sum the cross-entropy, or the squared error, over the samples.

        Args:
            batch: Text with ``label``: int64 classes, or float32 numbers.
        """
        scores = self.scores(batch).float()
        labels = batch["label"]
        count = scores.new_full((), scores.shape[0])
        if self.regression:
            loss = functional.mse_loss(scores[:, 0], labels.float(), reduction="sum")
            return LossOutput(loss, count, {})
        loss = functional.cross_entropy(scores, labels, reduction="sum")
        hits = (scores.argmax(dim=1) == labels).sum().to(scores.dtype)
        return LossOutput(loss, count, {"accuracy": (hits, count)})

    def scores(self, batch: Batch) -> Float[Tensor, "batch outputs"]:
        """Return one score per class, or the number, of each sample."""
        hidden = self.encoder(batch)
        pooled = self.drop(self.pooler(hidden[first_tokens(batch)]))
        scores: Tensor = self.classifier(pooled)
        return scores
