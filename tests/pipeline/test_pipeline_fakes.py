"""The fake objective of the pipeline's tests: its stages in turn are the whole."""

import json

import pytest
import torch

from pipeline_fakes import words_run
from quadriga import randomness
from quadriga.contracts import LossOutput, Splittable
from quadriga.engine.build import build_objective
from quadriga.engine.run_config import RunConfig


@pytest.mark.parametrize("depths", [[4], [1, 3], [2, 0, 2], [0, 4, 0]])
def test_stages_in_turn_are_the_whole(depths: list[int]) -> None:
    config = words_run(model__dropout=0.3)
    objective = build_objective(config, torch.device("cpu"), seed=1)
    assert isinstance(objective, Splittable)
    batch = config.views.build("train").example(3, torch.device("cpu"))
    with randomness.micro_batch(1, 0, 0, 0):
        whole = objective(batch)
    hidden = None
    with randomness.micro_batch(1, 0, 0, 0):
        for stage in objective.stages(depths):
            if hidden is not None:
                assert hidden.shape == stage.hidden_shape(batch)
            hidden = stage(hidden, batch)
    assert isinstance(hidden, LossOutput)
    assert torch.equal(hidden.only.total, whole.only.total)
    assert torch.equal(hidden.only.targets, whole.only.targets)


def test_stages_have_the_names_of_the_whole() -> None:
    objective = build_objective(words_run(), torch.device("cpu"), seed=1)
    names = [
        {name for name, _ in stage.named_parameters()} for stage in objective.stages([1, 1, 2])
    ]
    assert set.union(*names) == {name for name, _ in objective.named_parameters()}
    assert names[0] & names[2] == {"embeddings.weight"}


def test_config_round_trips_through_json() -> None:
    config = words_run(train__steps=3)
    assert RunConfig.from_dict(json.loads(config.as_json())) == config
