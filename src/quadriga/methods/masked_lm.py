"""Masked language modelling with next-sentence prediction (Devlin et al., BERT, NAACL 2019).

Some tokens are masked, and the model predicts them from the context on both sides. It also predicts
whether the second segment follows the first in its document, or is from another document.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, final

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

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
from quadriga.losses.cross_entropy import CHUNK_ELEMENTS, linear_cross_entropy
from quadriga.models.bert import BertConfig, BertSlice, Pooler
from quadriga.models.parts.bert_blocks import collect_rows
from quadriga.models.parts.initialise import Filler, initialise

METRICS = ("masked_lm_loss", "masked_lm_accuracy")
SENTENCE_METRICS = ("next_sentence_loss", "next_sentence_accuracy")


@final
class MaskedLMConfig(ObjectiveConfig):
    """Masked language modelling, optionally with next-sentence prediction."""

    next_sentence: bool = True
    """Whether next-sentence prediction is part of the loss."""
    reduction: Literal["micro_batch", "token"] = "micro_batch"
    """micro_batch: all micro-batches have equal weight; the loss of each is the mean over its
    masked tokens plus the mean over its sentence pairs. token: all masked tokens of a step have
    equal weight."""
    chunk_elements: int = Field(CHUNK_ELEMENTS, ge=1, le=2**40)
    """Maximum number of logits over the vocabulary in memory at once."""

    @model_validator(mode="after")
    def _fields_agree(self) -> MaskedLMConfig:
        if self.reduction == "token" and self.next_sentence:
            raise ValueError(
                "reduction must be micro_batch for next_sentence=true, since its two losses have "
                "two denominators, but is token; set next_sentence=false to weigh words alike"
            )
        return self

    def build(self, model: ModelConfig) -> MaskedLM:
        """Make the objective for a BERT.

        Raises:
            UserError: `model` is of another kind.
        """
        if not isinstance(model, BertConfig):
            raise UserError(f"masked_lm needs model.kind=bert, but model.kind is {model.kind()}")
        return with_initial_values(lambda: MaskedLM(self, model), MaskedLM.initialise_all)

    def check(self, model: ModelConfig, dataset: Dataset | None, views: ViewsConfig) -> None:
        """Check that the model's tables are large enough; see `BertConfig.check_texts`.

        Raises:
            UserError: They are not.
        """
        if isinstance(model, BertConfig):
            model.check_texts(dataset, views)


@final
class MaskedLMHead(nn.Module):
    """Logits over the vocabulary for masked tokens; the last linear map is the word embedding."""

    def __init__(self, model: BertConfig) -> None:
        """Make the head with undefined values."""
        super().__init__()
        self.transform = nn.Linear(model.width, model.width)
        self.norm = nn.LayerNorm(model.width, eps=model.norm_eps)
        self.bias = nn.Parameter(torch.empty(model.vocabulary_size))

    def fill(self, filler: Filler) -> None:
        """Set the biases of the vocabulary to 0."""
        filler.constant("bias", 0.0)

    def forward(self, hidden: Float[Tensor, "masked width"]) -> Float[Tensor, "masked width"]:
        """Return the rows that are multiplied with the word embedding."""
        output: Tensor = self.norm(functional.gelu(self.transform(hidden)))
        return output

    def losses(
        self,
        hidden: Float[Tensor, "tokens width"],
        table: Float[Tensor, "words width"],
        batch: Batch,
        chunk_elements: int,
    ) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
        """Return the summed loss of the masked tokens, and the number of correct predictions."""
        rows = self(collect_rows(hidden, batch["masked"]))
        return linear_cross_entropy(rows, table, self.bias, batch["targets"], chunk_elements)


class Heads(NamedTuple):
    """The modules that compute the losses from the encoded tokens."""

    masked_lm: MaskedLMHead
    table: nn.Embedding
    """The word embedding, which the head shares with the input embeddings."""
    pooler: Pooler | None
    next_sentence: nn.Linear | None
    """(width -> 2), logits that the second segment follows, and that it is a random one."""


@final
class MaskedLM(Objective):
    """A BERT that is trained to predict masked tokens."""

    def __init__(self, config: MaskedLMConfig, model: BertConfig) -> None:
        """Make encoder and heads with undefined values."""
        super().__init__()
        self.config = config
        self.metric_names = METRICS + (SENTENCE_METRICS if config.next_sentence else ())
        self.depth = model.depth
        self.encoder = model.build()
        self.head = MaskedLMHead(model)
        self.pooler = Pooler(model.width) if config.next_sentence else None
        self.next_sentence = nn.Linear(model.width, 2) if config.next_sentence else None

    def initialise(self, seed: int) -> None:
        """Fill every tensor: N(0, 0.02^2) for linear maps and tables, norms 1 and 0, biases 0."""
        initialise(self, seed, "normal")

    def forward(self, batch: Batch) -> LossOutput:
        """Predict the masked tokens and, if configured, whether the second segment follows.

        Args:
            batch: Text as `quadriga.contracts.Batch` describes it, with `masked`, `targets` and
                `is_random`.
        """
        return _output(self.config, self.heads(), self.encoder(batch), batch)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the number of masked tokens, or 1 for the mean of a micro-batch."""
        masked = batch["masked"]
        targets = masked.shape[0] if self.config.reduction == "token" else 1
        return {"loss": torch.tensor(targets, device=masked.device)}

    def heads(self) -> Heads:
        """Return the modules that compute the losses."""
        return Heads(self.head, self.encoder.embeddings.word, self.pooler, self.next_sentence)

    def stages(self, depths: Sequence[int]) -> list[Stage]:
        """Cut into stages of `depths` blocks; see `quadriga.contracts.Splittable`.

        Raises:
            UserError: The depths do not add up to the model's.
        """
        check_depths(depths, self.depth)
        return [MaskedLMStage(self, index, depths) for index in range(len(depths))]


@final
class MaskedLMStage(Stage):
    """Consecutive blocks of a BERT; the first stage has the embeddings, the last the heads.

    The word embedding is in the first and in the last stage, under the same name.
    """

    def __init__(self, whole: MaskedLM, index: int, depths: Sequence[int]) -> None:
        """Take the modules of stage `index` from the objective."""
        super().__init__()
        self.index = index
        self.config = whole.config
        start = sum(depths[:index])
        is_last = index == len(depths) - 1
        blocks = range(start, start + depths[index])
        self.encoder = BertSlice(whole.encoder, blocks, is_first=index == 0, is_last=is_last)
        self.head = whole.head if is_last else None
        self.pooler = whole.pooler if is_last else None
        self.next_sentence = whole.next_sentence if is_last else None

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
        if self.head is None:
            return hidden
        heads = Heads(self.head, self.encoder.word, self.pooler, self.next_sentence)
        return _output(self.config, heads, hidden, batch)


def _output(config: MaskedLMConfig, heads: Heads, hidden: Tensor, batch: Batch) -> LossOutput:
    """Compute the loss and the metrics from the encoded tokens.

    For a micro-batch without masked tokens their loss and its gradients are 0.
    """
    words = batch["masked"].shape[0]
    total, hits = heads.masked_lm.losses(hidden, heads.table.weight, batch, config.chunk_elements)
    count = total.new_full((), words)
    metrics = dict(zip(METRICS, ((total.detach(), count), (hits.float(), count)), strict=True))
    if config.reduction == "token":
        return LossOutput.of(total, count, metrics)
    loss = total / max(1, words)
    if heads.pooler is not None and heads.next_sentence is not None:
        if "is_random" not in batch:
            raise UserError(
                "objective.next_sentence must be false for views that do not say which second "
                "segments are random, but is true; set objective.next_sentence=false"
            )
        labels = batch["is_random"]
        logits = heads.next_sentence(heads.pooler(hidden, batch)).float()
        # The mean over no pairs would be NaN; the sum over no logits is 0, with a graph.
        mean = functional.cross_entropy(logits, labels) if len(labels) else logits.sum()
        loss = loss + mean
        pairs = total.new_full((), labels.shape[0])
        right = (logits.argmax(dim=1) == labels).sum().float()
        values = ((mean.detach() * pairs, pairs), (right, pairs))
        metrics.update(zip(SENTENCE_METRICS, values, strict=True))
    return LossOutput.of(loss, None, metrics)
