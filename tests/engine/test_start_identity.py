"""A run goes on only with the vocabulary it began with, wherever the file lies."""

from __future__ import annotations

import pytest

from quadriga.engine.run_config import RunConfig, config_hash
from quadriga.optim.adam import AdamWConfig
from quadriga.recipes.bert import bert_mini, bert_tiny_pydoc
from quadriga.recipes.deep_incubation import deep_incubation_digits
from quadriga.recipes.deit import deit_cifar10
from quadriga.recipes.glue import glue_rte
from quadriga.recipes.mae import mae_digits

FOLDER = {"kind": "image_folder", "root": "here"}
LIST = {"kind": "image_list", "root": "here", "files": "a.txt", "test_files": "b.txt"}
TEXT = {"data.files": "a.txt", "data.test_files": "b.txt", "data.vocabulary": "v.txt"}


THEN = {"train.precision": "float32"}
MAE = mae_digits().override(
    {"optim.no_decay": AdamWConfig.model_fields["no_decay"].default, **THEN}
)
"""As the recipe was then: the tokens did not decay."""


def node(name: str) -> RunConfig:
    return next(node.config for node in deep_incubation_digits().nodes if node.name == name)


@pytest.mark.parametrize(
    ("config", "beginning"),
    [
        (MAE, "b4aa8048c007ff52"),
        (MAE.override({"data": FOLDER}), "b39b66c2a9c010a1"),
        (
            MAE.override({"data": {"kind": "part", "of": LIST, "fraction": 0.5}}),
            "4e07e79d67d3b520",
        ),
        (bert_tiny_pydoc(), "6717f3ab57a71032"),
        (bert_mini().override(TEXT), "8857bd58a3727d49"),
        (glue_rte().override({"data.vocabulary": "v.txt"}), "e8073a752760470182"),
        (deit_cifar10().override(THEN), "08e6ca91b800fe4a"),
        (node("module_0"), "46e2ccecf1522ad3"),
        (node("finetune"), "5572eb3b45bbdf6f"),
    ],
)
def test_a_run_has_the_hash_that_revision_7f9c01b_gave_it(
    config: RunConfig, beginning: str
) -> None:
    assert config_hash(config, 1000, "digest").startswith(beginning)


def test_what_lies_elsewhere_is_the_same_run() -> None:
    config = mae_digits().override({"data": {"kind": "part", "of": LIST, "fraction": 0.5}})
    assert list(config.locations()) == ["data.of.root", "data.of.files", "data.of.test_files"]
    moved = config.override({"data.of.root": "there", "data.of.files": "none"})
    assert config_hash(config, 10) == config_hash(moved, 10)
    assert config_hash(config, 10) != config_hash(config.override({"data.fraction": 0.6}), 10)


def test_the_vocabulary_counts_by_its_content():
    config = bert_mini()
    moved = config.override({"data.vocabulary": "elsewhere/vocab.txt"})
    assert config_hash(config, 10, "digest") == config_hash(moved, 10, "digest")
    assert config_hash(config, 10, "digest") != config_hash(config, 10, "another")
    assert config_hash(config, 10) == config_hash(config, 10, "")


def test_the_cut_is_no_part_of_a_run_but_its_delay_is():
    late = bert_tiny_pydoc()
    for values in (
        {"executor.stages": 1},
        {"executor.depths": "[2, 0]"},
        {"executor.deferred_update": "false"},
        {"train.accumulate": 8},
    ):
        assert config_hash(late.override(values), 10) == config_hash(late, 10)
    prompt = [late.override({"executor.schedule": name}) for name in ("1f1b", "gpipe", "zbv")]
    assert len({config_hash(config, 10) for config in prompt}) == 1
    assert config_hash(late, 10) != config_hash(prompt[0], 10)
    for values in ({"executor.flushed_steps": 3}, {"executor.error_feedback": 0.5}):
        assert config_hash(late.override(values), 10) != config_hash(late, 10)
