"""The contracts between the rooms: what a method, a dataset, an executor and an evaluator are.

Four kinds of pre-training stand on these: self-supervised, generalist, modular and pipelined
(docs/contracts.md walks a batch of each through them). Two rules keep them apart. *Time and
tensors apart*: the loop knows steps and never losses; an objective knows losses and never steps
beyond `Progress`. *Sum and count*: an objective returns the sum of its losses over targets and
the number of targets; the division happens once, in the executor, over all micro-batches and
ranks, so that accumulation and uneven batches are exact.
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
)
from quadriga.contracts.stage import Splittable, Stage
from quadriga.contracts.step import EmaConfig, StepPlan, TrainConfig
from quadriga.contracts.weights import WeightSource

__all__ = [
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
]
