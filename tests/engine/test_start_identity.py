"""A run goes on only with the vocabulary it began with, wherever the file lies."""

from __future__ import annotations

from quadriga.engine.run_config import config_hash
from quadriga.recipes.bert import bert_mini, bert_tiny_pydoc


def test_the_vocabulary_counts_by_its_content():
    config = bert_mini()
    moved = config.override({"data.vocabulary": "elsewhere/vocab.txt"})
    assert config_hash(config, 10, "digest") == config_hash(moved, 10, "digest")
    assert config_hash(config, 10, "digest") != config_hash(config, 10, "another")
    assert config_hash(config, 10) == config_hash(config, 10, "")


def test_the_cut_is_no_part_of_a_run_but_its_delay_is():
    late = bert_tiny_pydoc()
    for values in (
        {"pipeline.stages": 1},
        {"pipeline.depths": "[2, 0]"},
        {"pipeline.deferred_update": "false"},
        {"train.accumulate": 8},
    ):
        assert config_hash(late.override(values), 10) == config_hash(late, 10)
    prompt = [late.override({"pipeline.schedule": name}) for name in ("1f1b", "gpipe", "zbv")]
    assert len({config_hash(config, 10) for config in prompt}) == 1
    assert config_hash(late, 10) != config_hash(prompt[0], 10)
    for values in ({"pipeline.flushed_steps": 3}, {"pipeline.error_feedback": 0.5}):
        assert config_hash(late.override(values), 10) != config_hash(late, 10)
