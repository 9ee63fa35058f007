"""BERT (Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers", NAACL 2019)."""

from __future__ import annotations

from pathlib import Path
from typing import final

import torch
from jaxtyping import Float, Int
from pydantic import Field, ValidationError, model_validator
from torch import Tensor, nn

from quadriga import randomness
from quadriga.contracts import Batch, Dataset, ModelConfig, ViewsConfig, with_initial_values
from quadriga.errors import UserError, nearest_divisors
from quadriga.files import parse_json
from quadriga.models.parts.bert_blocks import BertBlock, BertShape, Places, collect_rows
from quadriga.models.parts.initialise import initialise
from quadriga.models.parts.transformer import Dropout

_GOOGLE_KEYS = {
    "vocab_size": "vocabulary_size",
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "intermediate_size": "mlp_width",
    "max_position_embeddings": "max_positions",
    "type_vocab_size": "segment_types",
    "layer_norm_eps": "norm_eps",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
}
"""Field of a bert_config.json -> field of `BertConfig`."""
_GOOGLE_OPTIONAL = frozenset({"layer_norm_eps"})


@final
class BertConfig(ModelConfig):
    """BERT of any size."""

    vocabulary_size: int = Field(30522, ge=1, le=2**24)
    """Rows of the word embedding."""
    width: int = Field(768, ge=1, le=2**20)
    """Features of a token."""
    depth: int = Field(12, ge=0, le=10_000)
    """Number of blocks."""
    heads: int = Field(12, ge=1, le=10_000)
    """Attention heads."""
    mlp_width: int = Field(3072, ge=1, le=2**20)
    """Hidden features of the MLP."""
    max_positions: int = Field(512, ge=1, le=2**20)
    """Longest sequence, in tokens."""
    segment_types: int = Field(2, ge=1, le=10_000)
    """Kinds of segments: the first and the second sentence."""
    norm_eps: float = Field(1e-12, gt=0, le=1.0)
    dropout: float = Field(0.1, ge=0, lt=1)
    """Probability that a feature of an embedding or of a residual branch is dropped."""
    attention_dropout: float = Field(0.1, ge=0, lt=1)
    """Probability that a query's weight on a key is dropped."""

    @model_validator(mode="after")
    def _fields_agree(self) -> BertConfig:
        if self.width % self.heads:
            raise ValueError(
                f"heads must divide width ({self.width}), but is {self.heads}; "
                + nearest_divisors(self.heads, self.width)
            )
        return self

    def block_shape(self) -> BertShape:
        """Return the shape that all blocks share."""
        return BertShape(
            width=self.width,
            heads=self.heads,
            mlp_width=self.mlp_width,
            norm_eps=self.norm_eps,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
        )

    def build(self) -> Bert:
        """Make the module; see `ModelConfig.build`."""
        return with_initial_values(lambda: Bert(self), initialise)

    def check_texts(self, dataset: Dataset | None, views: ViewsConfig) -> None:
        """Check that the embeddings have a row for every word and every position of the data.

        Args:
            dataset: The training data; None where it is not available.
            views: How its records become samples.

        Raises:
            UserError: An embedding is too small, or the samples are not texts.
        """
        length = getattr(views, "max_length", None)
        if length is None:
            raise UserError(
                f"views.kind must be one of texts for model.kind=bert, such as sentence_pairs, but "
                f"is {views.kind()}; set it, or another model.kind"
            )
        if length > self.max_positions:
            raise UserError(
                f"views.max_length must be at most {self.max_positions} (model.max_positions), but "
                f"is {length}; lower it"
            )
        words = None if dataset is None else dataset.vocabulary_size
        if words is not None and words > self.vocabulary_size:
            raise UserError(
                f"model.vocabulary_size must be at least {words} (the tokens of data.vocabulary), "
                f"but is {self.vocabulary_size}; raise it"
            )

    @classmethod
    def tiny(cls, vocabulary_size: int = 30522) -> BertConfig:
        """Return BERT-tiny: 2 blocks of width 128 (Turc et al., arXiv:1908.08962)."""
        return cls(vocabulary_size=vocabulary_size, width=128, depth=2, heads=2, mlp_width=512)

    @classmethod
    def mini(cls, vocabulary_size: int = 30522) -> BertConfig:
        """Return BERT-mini: 4 blocks of width 256 (Turc et al., arXiv:1908.08962)."""
        return cls(vocabulary_size=vocabulary_size, width=256, depth=4, heads=4, mlp_width=1024)

    @classmethod
    def base(cls, vocabulary_size: int = 30522) -> BertConfig:
        """Return BERT-base: 12 blocks of width 768 (Devlin et al., 2019, section 3)."""
        return cls(vocabulary_size=vocabulary_size)

    @classmethod
    def large(cls, vocabulary_size: int = 30522) -> BertConfig:
        """Return BERT-large: 24 blocks of width 1024 (Devlin et al., 2019, section 3)."""
        return cls(vocabulary_size=vocabulary_size, width=1024, depth=24, heads=16, mlp_width=4096)

    @classmethod
    def from_bert_config(cls, path: Path | str) -> BertConfig:
        """Read the ``bert_config.json`` of a published BERT model.

        Args:
            path: The file; its activation must be gelu.

        Raises:
            UserError: It is missing or not a bert_config.json, lacks a size, or describes another
                model.
        """
        path = Path(path)
        try:
            content = parse_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValueError) as error:
            raise UserError(f"{path} must be a bert_config.json: {error}") from error
        if not isinstance(content, dict):
            raise UserError(
                f"{path} must hold one JSON object, but holds a {type(content).__name__}"
            )
        lacking = sorted(_GOOGLE_KEYS.keys() - content.keys() - _GOOGLE_OPTIONAL)
        if lacking:
            raise UserError(f"{path} must give {', '.join(lacking)}, but does not; add them")
        activation = content.get("hidden_act", "gelu")
        if activation != "gelu":
            raise UserError(f"{path}: hidden_act must be gelu, but is {activation!r}")
        try:
            return cls(
                **{ours: content[key] for key, ours in _GOOGLE_KEYS.items() if key in content}
            )
        except ValidationError as error:
            problem = error.errors()[0]
            field = ".".join(map(str, problem["loc"]))
            raise UserError(f"{path}: {field} {problem['msg']}") from error


def token_places(batch: Batch) -> Places:
    """Return the positions of the real tokens; decisions depend only on shapes.

    If `tokens` covers the whole grid there may still be padding (views of a fixed shape), so the
    key mask always comes from the lengths.
    """
    size, length = batch["ids"].shape
    tokens = batch["tokens"]
    columns = torch.arange(length, device=tokens.device)
    keys = columns < batch["lengths"][:, None]
    covering = tokens.shape[0] == size * length
    return Places(size, length, None if covering else tokens, keys[:, None, None, :])


def first_tokens(batch: Batch) -> Int[Tensor, " batch"]:
    """Return the row of each sequence's first token in the flat (tokens, width) matrix, int64."""
    size, length = batch["ids"].shape
    if batch["tokens"].shape[0] == size * length:
        return torch.arange(0, size * length, length, device=batch["ids"].device)
    lengths = batch["lengths"]
    return lengths.cumsum(0) - lengths


def _table(rows: int, width: int) -> nn.Embedding:
    """Return a table with undefined values; torch's own would be drawn here, which on the meta
    device imports ``torch._dynamo``.
    """
    return nn.Embedding(rows, width, _weight=torch.empty(rows, width))


@final
class BertEmbeddings(nn.Module):
    """The sum of word, position and segment embeddings, with layer normalisation and dropout."""

    def __init__(self, config: BertConfig) -> None:
        """Make the tables with undefined values."""
        super().__init__()
        self.max_positions = config.max_positions
        self.word = _table(config.vocabulary_size, config.width)
        self.position = _table(config.max_positions, config.width)
        self.segment = _table(config.segment_types, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.drop = Dropout(config.dropout, randomness.fold("dropout", "embeddings"))

    def forward(self, batch: Batch) -> Float[Tensor, "tokens width"]:
        """Embed the real tokens of a micro-batch.

        Raises:
            UserError: The sequences are longer than the position embedding.
        """
        length = batch["ids"].shape[1]
        if length > self.max_positions:
            raise UserError(
                f"sequences must have at most model.max_positions={self.max_positions} tokens, "
                f"but have {length}; raise it, or lower views.max_length"
            )
        tokens = batch["tokens"]
        embedded = self.word(batch["ids"].view(-1)[tokens])
        embedded = embedded + self.position(tokens % length)
        embedded = embedded + self.segment(batch["segments"].view(-1)[tokens])
        output: Tensor = self.drop(self.norm(embedded))
        return output


@final
class Bert(nn.Module):
    """Embeds the real tokens of a micro-batch and applies post-norm blocks.

    Parameters of block ``i`` are named ``blocks.<i>...`` with the global number ``i``, so that a
    slice of the model keeps the names.
    """

    def __init__(self, config: BertConfig) -> None:
        """Make the module of `config` with undefined values."""
        super().__init__()
        self.config = config
        self.embeddings = BertEmbeddings(config)
        shape = config.block_shape()
        self.blocks = nn.ModuleList(BertBlock(shape, layer) for layer in range(config.depth))

    def forward(self, batch: Batch) -> Float[Tensor, "tokens width"]:
        """Return one vector per real token, in the order of ``batch["tokens"]``.

        Args:
            batch: Text as `quadriga.contracts.Batch` describes it.
        """
        hidden: Tensor = self.embeddings(batch)
        places = token_places(batch)
        for block in self.blocks:
            hidden = block(hidden, places)
        return hidden


@final
class Pooler(nn.Module):
    """The vector of a sequence for classifiers: ``tanh(linear(first token))``."""

    def __init__(self, width: int) -> None:
        """Make the map of `width` features."""
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(
        self, hidden: Float[Tensor, "tokens width"], batch: Batch
    ) -> Float[Tensor, "batch width"]:
        """Return one vector per sequence from the output of `Bert` for `batch`."""
        pooled: Tensor = self.dense(collect_rows(hidden, first_tokens(batch))).tanh()
        return pooled


@final
class WordTable(nn.Module):
    """The word embedding without the other embeddings, under its name in `BertEmbeddings`."""

    def __init__(self, word: nn.Embedding) -> None:
        """Hold the word embedding of a model."""
        super().__init__()
        self.word = word


@final
class BertSlice(nn.Module):
    """Consecutive blocks of a `Bert`: the same modules under the same parameter names."""

    def __init__(self, whole: Bert, blocks: range, is_first: bool, is_last: bool) -> None:
        """Hold some blocks of `whole`.

        Args:
            whole: The model.
            blocks: Global numbers of the blocks.
            is_first: Whether the slice has the embeddings.
            is_last: Whether the slice has the word embedding even if it is not the first.
        """
        super().__init__()
        self.width = whole.config.width
        self.embeddings: BertEmbeddings | WordTable | None = None
        if is_first:
            self.embeddings = whole.embeddings
        elif is_last:
            self.embeddings = WordTable(whole.embeddings.word)
        # A ModuleDict with the blocks' numbers as keys keeps the names of the ModuleList.
        self.blocks = nn.ModuleDict({str(number): whole.blocks[number] for number in blocks})

    @property
    def word(self) -> nn.Embedding:
        """The word embedding; AttributeError in a slice that has none."""
        if self.embeddings is None:
            raise AttributeError("a slice from the middle has no table of words")
        return self.embeddings.word

    def forward(
        self, hidden: Float[Tensor, "tokens width"] | None, batch: Batch
    ) -> Float[Tensor, "tokens width"]:
        """Apply the blocks; `hidden` is the output of the previous slice, None for the first."""
        if isinstance(self.embeddings, BertEmbeddings):
            hidden = self.embeddings(batch)
        if hidden is None:
            raise ValueError("a slice after the first needs what the one before it returned")
        places = token_places(batch)
        for block in self.blocks.values():
            hidden = block(hidden, places)
        return hidden
