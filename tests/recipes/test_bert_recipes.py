"""The recipes of BERT say what the paper and the reference system say."""

import inspect
import os

import pytest
import torch

from quadriga.cli.resolve import resolve
from quadriga.engine.run_config import RunConfig
from quadriga.engine.run_plan import make_plan
from quadriga.models.bert import BertConfig
from quadriga.optim.parts.groups import groups_of
from quadriga.pipeline.config import pipeline_of
from quadriga.recipes import bert

RECIPES = [
    recipe
    for name, recipe in inspect.getmembers(bert, inspect.isfunction)
    if name.startswith("bert_")
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_all_have_in_common(recipe: object) -> None:
    config = recipe()
    assert config.name == recipe.__name__
    assert f"quadriga train {config.name}" in " ".join(recipe.__doc__.split())
    assert RunConfig.from_dict(config.as_dict()) == config
    assert config.views.max_length <= config.model.max_positions
    with torch.device("meta"):
        objective = config.objective.build(config.model)
    named = list(objective.named_parameters())
    groups = groups_of(config.optim, named)
    decays = {id(p) for group in groups if group["weight_decay"] > 0 for p in group["params"]}
    for name, parameter in named:
        exempt = "norm" in name.rpartition(".")[0].rpartition(".")[2] or name.endswith("bias")
        # The head of the sentences is called next_sentence, the norms end in "norm".
        assert (id(parameter) in decays) != exempt, name


def test_the_pipeline_of_the_reference() -> None:
    config = bert.bert_large_2bw_8x8()
    assert config.model == BertConfig.large()
    pipeline = pipeline_of(config)
    replicas = config.train.ranks // pipeline.stages
    assert (pipeline.schedule, pipeline.stages, replicas) == ("2bw", 8, 8)
    assert config.train.batch_size == 1024
    assert config.train.batch_size // (replicas * config.train.accumulate) == 16
    assert config.views.max_length == 128


def test_the_rate_is_the_papers_at_the_recipes_batch() -> None:
    for config in (bert.bert_base(), bert.bert_large(), bert.bert_large_2bw_8x8()):
        plan = make_plan(config, 10**8, config.train.ranks)
        assert plan.lr == pytest.approx(1e-4)
        assert config.schedule.warmup_steps == 10_000


@pytest.mark.parametrize("recipe", ["bert_mini", "bert_base", "bert_large", "bert_large_2bw_8x8"])
def test_the_vocabulary_lies_beside_the_text(recipe: str) -> None:
    given = [["data.root=books"], ["root=books"], ["data.root=books", "data.vocabulary=v.txt"]]
    found = [resolve(recipe, None, words).config.data.vocabulary_file() for words in given]
    assert [str(path) for path in found] == [
        os.path.abspath(name) for name in ("books/vocab.txt", "books/vocab.txt", "v.txt")
    ]
