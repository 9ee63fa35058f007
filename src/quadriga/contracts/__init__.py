"""The interfaces between packages: method, dataset, transform, executor, evaluator and logger.

All four kinds of pre-training implement them: self-supervised, generalist, modular and pipelined
(docs/contracts.md follows a batch of each through them). Two rules separate the packages. *Time
and tensors*: the loop handles steps and never losses; an objective handles losses and depends on
steps only through `Progress`. *Sum and count*: an objective returns the sum of its losses over
targets and the number of targets; the executor divides once, over all micro-batches and ranks, so
that gradient accumulation and uneven batches are exact.
"""

from quadriga.contracts.configs import (
    DatasetConfig,
    EvaluatorConfig,
    ModelConfig,
    ModularConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ScheduleConfig,
    ViewsConfig,
)
from quadriga.contracts.data import (
    Dataset,
    Sample,
    Split,
    TaskBlocks,
    Transform,
    UnreadableSample,
    stack,
)
from quadriga.contracts.evaluation import EvaluationContext, EvaluationResult, Evaluator
from quadriga.contracts.executor import Executor, ExecutorConfig, Share, StepConfig, StepOutput
from quadriga.contracts.logging import Logger, LoggerConfig, LoggerContext
from quadriga.contracts.objective import (
    PREDICTED,
    Batch,
    Encoder,
    LossOutput,
    MicroBatch,
    Objective,
    PooledObjective,
    Progress,
    Rows,
    Tallies,
    Term,
    with_initial_values,
)
from quadriga.contracts.stage import Splittable, Stage
from quadriga.contracts.step import EmaConfig, StepPlan, TrainConfig
from quadriga.contracts.weights import FrozenSource, WeightSource

__all__ = [
    "PREDICTED",
    "Batch",
    "Dataset",
    "DatasetConfig",
    "EmaConfig",
    "Encoder",
    "EvaluationContext",
    "EvaluationResult",
    "Evaluator",
    "EvaluatorConfig",
    "Executor",
    "ExecutorConfig",
    "Logger",
    "LoggerConfig",
    "LoggerContext",
    "FrozenSource",
    "LossOutput",
    "MicroBatch",
    "ModelConfig",
    "ModularConfig",
    "Objective",
    "ObjectiveConfig",
    "OptimizerConfig",
    "PooledObjective",
    "Progress",
    "Rows",
    "Sample",
    "ScheduleConfig",
    "Share",
    "Split",
    "Splittable",
    "Stage",
    "StepConfig",
    "StepOutput",
    "StepPlan",
    "Tallies",
    "TaskBlocks",
    "Term",
    "TrainConfig",
    "Transform",
    "UnreadableSample",
    "ViewsConfig",
    "WeightSource",
    "stack",
    "with_initial_values",
]
