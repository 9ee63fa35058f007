"""BERT: a demo on the text that comes with Python, the paper's sizes, and pipelines of them."""

from __future__ import annotations

from pathlib import Path

from quadriga.data.text.corpus import TextCorpusConfig
from quadriga.data.text.pydoc import PydocCorpusConfig
from quadriga.data.text.sentence_pairs import SentencePairsConfig
from quadriga.engine.run_config import (
    CheckpointConfig,
    EvaluationConfig,
    LoaderConfig,
    LogConfig,
    RunConfig,
    TrainConfig,
)
from quadriga.evaluation.held_out import HeldOutConfig
from quadriga.methods.masked_lm import MaskedLMConfig
from quadriga.models.bert import BertConfig
from quadriga.optim.adam import AdamWConfig
from quadriga.pipeline.config import PipelineConfig
from quadriga.schedules.curves import LinearConfig

_CORPUS = Path("data/corpus")


def bert_tiny_pydoc(steps: int = 1200) -> RunConfig:
    """BERT-tiny over two pipeline stages with 2BW, on Python's own documentation: the demo.

    Command: ``quadriga train bert_tiny_pydoc``, a few minutes on 2 cores. Expected: masked-LM
    accuracy from 0 to about 20 % (loss from 6.9 to 4.9 nats), next sentence about 65 %.
    """
    return RunConfig(
        name="bert_tiny_pydoc",
        model=BertConfig.tiny(vocabulary_size=1024).override(
            {"dropout": 0.0, "attention_dropout": 0.0}
        ),
        objective=MaskedLMConfig(),
        data=PydocCorpusConfig(vocabulary_size=1024),
        views=SentencePairsConfig(max_length=64),
        optim=_adamw(lr=1e-3, batch=32),
        schedule=LinearConfig(warmup_steps=60),
        train=TrainConfig(steps=steps, batch_size=32, accumulate=4, ranks=2, dataset_size=3_024),
        loader=LoaderConfig(workers=0),
        log=LogConfig(every_steps=20),
        evaluation=EvaluationConfig(protocols=(HeldOutConfig(),)),
        executor=PipelineConfig(schedule="2bw", stages=2),
    )


def _adamw(lr: float, batch: int) -> AdamWConfig:
    """Return the paper's optimizer: decay on all but norms and biases, also on the positions."""
    return AdamWConfig(
        lr=lr,
        lr_batch=batch,
        lr_scaling="none",
        betas=(0.9, 0.999),
        eps=1e-6,
        weight_decay=0.01,
        no_decay=("norm", "bias"),
        clip_norm=1.0,
    )


def _pretraining(name: str, model: BertConfig, root: Path, vocabulary: Path | None) -> RunConfig:
    """Return the paper's recipe: a million steps of 256 sequences, appendix A.2.

    Without `vocabulary` the file ``vocab.txt`` in `root` is used.
    """
    return RunConfig(
        name=name,
        model=model,
        objective=MaskedLMConfig(),
        data=TextCorpusConfig(root=root, vocabulary=vocabulary),
        views=SentencePairsConfig(max_length=128, pairing="segments", max_predictions=20),
        optim=_adamw(lr=1e-4, batch=256),
        schedule=LinearConfig(warmup_steps=10_000, start_factor=0.0),
        train=TrainConfig(
            steps=1_000_000, batch_size=256, precision="bfloat16", dataset_size=100_000_000
        ),
        loader=LoaderConfig(workers=4),
        log=LogConfig(every_steps=100),
        checkpoint=CheckpointConfig(keep_every_steps=100_000),
        evaluation=EvaluationConfig(protocols=(HeldOutConfig(),), test_samples=10_000),
    )


def bert_mini(root: Path = _CORPUS, vocabulary: Path | None = None) -> RunConfig:
    """BERT-mini (4 blocks of width 256) with the paper's optimizer, in float32.

    Command: ``quadriga train bert_mini data.root=CORPUS --ranks 2``. For experiments: within a few
    thousand steps (``train.steps=5000 schedule.warmup_steps=500``) the loss falls on any text.
    """
    config = _pretraining("bert_mini", BertConfig.mini(), root, vocabulary)
    return config.override({"train.precision": "float32", "optim.lr": 5e-4})


def bert_base(root: Path = _CORPUS, vocabulary: Path | None = None) -> RunConfig:
    """BERT-base with the paper's recipe: sequences of 128 tokens for the first 90 % of the steps.

    Command: ``quadriga train bert_base data.root=CORPUS --ranks 8``; then with
    ``views.max_length=512 train.steps=100000 warm_start.path=RUN`` for the rest. The paper reports
    after both: 79.6 GLUE average (test), 84.6 MNLI.
    """
    return _pretraining("bert_base", BertConfig.base(), root, vocabulary)


def bert_large(root: Path = _CORPUS, vocabulary: Path | None = None) -> RunConfig:
    """BERT-large with the paper's recipe, in data parallel.

    Command: ``quadriga train bert_large data.root=CORPUS --ranks 8``, and then as for `bert_base`.
    The paper reports 82.1 GLUE average (test), 86.7 MNLI.
    """
    return _pretraining("bert_large", BertConfig.large(), root, vocabulary)


def bert_large_2bw_8x8(root: Path = _CORPUS, vocabulary: Path | None = None) -> RunConfig:
    """BERT-large over 8 stages and 8 replicas with PipeDream-2BW: the reference's 64 GPUs.

    Command, on each of 8 hosts with 8 GPUs: ``torchrun --nnodes 8 --nproc-per-node 8
    --rdzv-backend c10d --rdzv-endpoint HOST:29500 -m quadriga train bert_large_2bw_8x8
    data.root=CORPUS``. A step is 8 micro-batches of 16 sequences in each of 8 replicas: 1024
    sequences. The PipeDream-2BW paper reports, with this batch size and learning rate on another
    corpus, the same MNLI accuracy as without delay (87.8 %).

    Gradients are one step late, which halves the largest stable learning rate (a quadratic loss of
    curvature a is stable for ``0 < lr * a < 1``, without delay for < 2): where a rate is near its
    limit, lower it, flush at the start (``executor.flushed_steps=10000``), or correct the delay
    (``executor.error_feedback=1``).
    """
    config = _pretraining("bert_large_2bw_8x8", BertConfig.large(), root, vocabulary)
    changes = {
        "optim.lr_batch": 1024,
        "train.batch_size": 1024,
        "train.accumulate": 8,
        "train.ranks": 64,
        "train.steps": 500_000,
        "executor.kind": "pipeline",
        "executor.schedule": "2bw",
        "executor.stages": 8,
    }
    return config.override(changes)
