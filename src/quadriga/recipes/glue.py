"""BERT on the tasks of GLUE, as the paper fine-tunes it (Devlin et al., arXiv:1810.04805, 4.1).

Batch 32, 3 epochs, the rates of appendix A.3. Adam's bias correction and the warm-up over a tenth
of the run keep training on small tasks from diverging (Mosbach et al., arXiv:2006.04884).
"""

from __future__ import annotations

from pathlib import Path

from quadriga.data.text.glue.dataset import GlueConfig
from quadriga.data.text.glue.tasks import TASKS
from quadriga.data.text.text_pairs import TextPairsConfig
from quadriga.engine.run_config import (
    CheckpointConfig,
    EvaluationConfig,
    HealthConfig,
    LogConfig,
    RunConfig,
    TrainConfig,
)
from quadriga.evaluation.glue import GlueConfig as GlueProtocol
from quadriga.methods.sequence_classification import SequenceClassificationConfig
from quadriga.models.bert import BertConfig
from quadriga.optim.adam import AdamWConfig
from quadriga.schedules.curves import LinearConfig

_ROOT = Path("data/glue")


def _glue(name: str, root: Path, epochs: float, lr: float) -> RunConfig:
    task = TASKS[name]
    return RunConfig(
        name=f"glue_{name}",
        model=BertConfig.base(),
        objective=SequenceClassificationConfig(outputs=task.outputs, regression=task.regression),
        data=GlueConfig(root=root, task=name),
        views=TextPairsConfig(max_length=128),
        optim=AdamWConfig(
            lr=lr,
            lr_batch=32,
            lr_scaling="none",
            betas=(0.9, 0.999),
            eps=1e-6,
            weight_decay=0.01,
            no_decay=("norm", "bias"),
            clip_norm=1.0,
        ),
        schedule=LinearConfig(warmup_epochs=0.1 * epochs, start_factor=0.0),
        train=TrainConfig(epochs=epochs, batch_size=32, dataset_size=task.train_size),
        log=LogConfig(every_steps=50),
        checkpoint=CheckpointConfig(keep=1),
        # The mean loss over 32 labels is noisy: a spike is no sign of a failure.
        health=HealthConfig(spike_factor=None),
        evaluation=EvaluationConfig(protocols=(GlueProtocol(),)),
    )


def glue_cola(root: Path = _ROOT, epochs: float = 3) -> RunConfig:
    """BERT on CoLA: is a sentence grammatical? Matthews' correlation.

    Command: ``quadriga train glue_cola data.root=GLUE warm_start.path=RUN``. The paper reports 52.1
    for BERT-base and 60.5 for BERT-large on the test set.
    """
    return _glue("cola", root, epochs, lr=2e-5)


def glue_sst2(root: Path = _ROOT, epochs: float = 3) -> RunConfig:
    """BERT on SST-2: is a film review positive? Accuracy.

    Command: ``quadriga train glue_sst2 data.root=GLUE warm_start.path=RUN``. The paper reports 93.5
    for BERT-base and 94.9 for BERT-large on the test set.
    """
    return _glue("sst2", root, epochs, lr=2e-5)


def glue_mrpc(root: Path = _ROOT, epochs: float = 3) -> RunConfig:
    """BERT on MRPC: do two sentences say the same? Accuracy and F1.

    Command: ``quadriga train glue_mrpc data.root=GLUE warm_start.path=RUN``. The paper reports an
    F1 of 88.9 for BERT-base and 89.3 for BERT-large on the test set.
    """
    return _glue("mrpc", root, epochs, lr=3e-5)


def glue_stsb(root: Path = _ROOT, epochs: float = 3) -> RunConfig:
    """BERT on STS-B: how alike are two sentences, 0 to 5? Pearson and Spearman correlation.

    Command: ``quadriga train glue_stsb data.root=GLUE warm_start.path=RUN``. The paper reports a
    Spearman correlation of 85.8 for BERT-base and 86.5 for BERT-large on the test set.
    """
    return _glue("stsb", root, epochs, lr=3e-5)


def glue_qqp(root: Path = _ROOT, epochs: float = 3) -> RunConfig:
    """BERT on QQP: do two questions ask the same? Accuracy and F1.

    Command: ``quadriga train glue_qqp data.root=GLUE warm_start.path=RUN``. The paper reports an F1
    of 71.2 for BERT-base and 72.1 for BERT-large on the test set.
    """
    return _glue("qqp", root, epochs, lr=2e-5)


def glue_mnli(root: Path = _ROOT, epochs: float = 3) -> RunConfig:
    """BERT on MNLI: does a premise entail a hypothesis? Accuracy, matched and mismatched.

    Command: ``quadriga train glue_mnli data.root=GLUE warm_start.path=RUN``. The paper reports 84.6
    and 83.4 for BERT-base, 86.7 and 85.9 for BERT-large on the test sets.
    """
    return _glue("mnli", root, epochs, lr=2e-5)


def glue_qnli(root: Path = _ROOT, epochs: float = 3) -> RunConfig:
    """BERT on QNLI: does a sentence answer a question? Accuracy.

    Command: ``quadriga train glue_qnli data.root=GLUE warm_start.path=RUN``. The paper reports 90.5
    for BERT-base and 92.7 for BERT-large on the test set.
    """
    return _glue("qnli", root, epochs, lr=2e-5)


def glue_rte(root: Path = _ROOT, epochs: float = 3) -> RunConfig:
    """BERT on RTE: does one text entail another? Accuracy.

    Command: ``quadriga train glue_rte data.root=GLUE warm_start.path=RUN``. The paper reports 66.4
    for BERT-base and 70.1 for BERT-large on the test set.
    """
    return _glue("rte", root, epochs, lr=3e-5)


def glue_wnli(root: Path = _ROOT, epochs: float = 3) -> RunConfig:
    """BERT on WNLI: what does a pronoun stand for? Accuracy.

    Command: ``quadriga train glue_wnli data.root=GLUE warm_start.path=RUN``. The development set
    contradicts the training set, and the paper leaves this task out.
    """
    return _glue("wnli", root, epochs, lr=2e-5)
