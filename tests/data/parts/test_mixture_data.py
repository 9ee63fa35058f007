"""The config, the data and the checks of a mixture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from quadriga.cli.entry import run
from quadriga.config.provenance import Resolved
from quadriga.contracts import ModelConfig, Objective, ObjectiveConfig, PooledObjective
from quadriga.data.images.clutter import ClutterConfig
from quadriga.data.parts.mixture import MixtureConfig, TaskData
from quadriga.engine.classes import infer_num_classes
from quadriga.engine.dry_run import dry_run
from quadriga.engine.preflight import check_start
from quadriga.engine.run_config import RunConfig, config_hash, identity
from quadriga.errors import UserError
from quadriga.recipes.mixture import mixture_digits


def inferred(**words: Any) -> RunConfig:
    values = {name.replace("__", "."): value for name, value in words.items()}
    return infer_num_classes(Resolved.of(mixture_digits().override(values), "test")).config


def clutter(*sizes: int) -> MixtureConfig:
    tasks = {
        f"t{number}": TaskData(data=ClutterConfig(train_samples=size), batch_size=2)
        for number, size in enumerate(sizes)
    }
    return MixtureConfig(tasks=tasks, blocks=2)


def test_a_mixture_reads_back_from_json() -> None:
    config = mixture_digits()
    assert RunConfig.from_dict(json.loads(config.as_json())) == config


def test_keys_of_a_task_are_set_by_their_path() -> None:
    config = mixture_digits().override(
        {
            "data.tasks.digits.batch_size": "5",
            "data.tasks.shapes.data.kind": "digits",
            "views.tasks.shapes.image_px": "32",
            "objective.tasks.digits.objective.smoothing": "0.3",
            "objective.tasks.digits.model.kind": "resnet",
        }
    )
    assert isinstance(config.data, MixtureConfig)
    assert config.data.tasks["digits"].batch_size == 5
    assert config.data.tasks["shapes"].data.kind() == "digits"
    assert config.views.by_task()["shapes"].as_dict()["image_px"] == 32
    objective, model = config.objective.by_task(config.model)["digits"]
    assert objective.as_dict()["smoothing"] == 0.3
    assert model.kind() == "resnet"
    with pytest.raises(UserError, match=r"data\.tasks\.digits\.batch_sise"):
        config.override({"data.tasks.digits.batch_sise": 3})


def test_records_lie_one_task_after_the_other() -> None:
    dataset = clutter(7, 3).build("train")
    first, second = dataset.of_task("t0"), dataset.of_task("t1")
    assert (dataset.tasks, len(dataset)) == (("t0", "t1"), 10)
    names = [first.name(n) for n in range(7)] + [second.name(n) for n in range(3)]
    assert [dataset.name(n) for n in range(10)] == names
    assert (dataset.read(8).data == second.read(1).data).all()


def test_a_run_is_another_one_where_the_size_of_one_data_set_is() -> None:
    config = mixture_digits()
    hashes = set()
    for sizes in ((7, 3), (6, 4), (3, 7)):
        dataset = clutter(*sizes).build("train")
        hashes.add(config_hash(config, len(dataset), dataset.identity))
    assert len(hashes) == 3


def test_the_data_of_a_task_may_move(tmp_path: Path) -> None:
    def of(root: str) -> dict[str, Any]:
        data = {"kind": "image_folder", "root": str(tmp_path / root)}
        tasks = {"digits": {"data": data, "batch_size": 3}}
        return identity(mixture_digits().override({"data.tasks": tasks}))

    assert of("here") == of("there")
    assert identity(inferred(data__tasks__digits__weight=3)) != identity(inferred())


def test_steps_are_counted_and_classes_come_from_each_tasks_data() -> None:
    config = inferred()
    assert dict(config.leaves())["objective.tasks.digits.objective.classes"] == 10
    dataset, plan = check_start(config, world_size=2)
    assert (plan.accumulate, plan.batch_size, plan.dataset_size) == (2, 56, len(dataset))
    counts = [plan.samples(step + 1) - plan.samples(step) for step in range(200)]
    assert {*counts} <= {4 * 10 + 6 * n for n in range(5)}
    assert abs(sum(counts) / 200 - 56) < 2
    assert plan.progress(7).samples == sum(counts[:7])
    rows = dict(dry_run(config, world_size=2))
    assert rows["data"].startswith("2437 samples")


@pytest.mark.parametrize(
    ("words", "ranks", "field"),
    [
        ({}, 3, "data.blocks"),
        ({"train.accumulate": 2}, 1, "train.accumulate"),
        ({"train.repeats": 2}, 1, "train.repeats"),
        ({"train.batch_size": 64}, 1, "train.batch_size"),
        ({"evaluation.protocols": "knn"}, 1, "evaluation.protocols"),
        ({"views.tasks.more": {"kind": "image_views"}}, 1, "views.tasks"),
        ({"objective.kind": "mae"}, 1, "objective.tasks"),
        ({"views.tasks.digits.image_px": 32}, 1, "model.image_px"),
        ({"views.tasks.shapes.image_px": 32}, 1, "objective.tasks.shapes.model.image_px"),
        ({"objective.tasks.shapes.model.patch_px": 24}, 1, "objective.tasks.shapes.model.patch_px"),
        (
            {"objective.tasks.digits.objective.classes": 4},
            1,
            "objective.tasks.digits.objective.classes must be at least 10",
        ),
        (
            {"data.tasks.digits.data": {"kind": "image_folder", "root": "/nowhere"}},
            1,
            "data.tasks.digits.data.root",
        ),
    ],
)
def test_what_does_not_fit_is_named(words: dict[str, Any], ranks: int, field: str) -> None:
    with pytest.raises(UserError) as raised:
        check_start(
            infer_num_classes(Resolved.of(mixture_digits().override(words), "test")).config, ranks
        )
    assert field in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["Digits", "a.b", ""])
def test_names_are_words(name: str) -> None:
    data = TaskData(data=ClutterConfig(), batch_size=2)
    with pytest.raises(ValueError, match="small letters"):
        MixtureConfig(tasks={name: data}, blocks=1)


def test_a_name_that_torch_has_is_refused() -> None:
    with pytest.raises(UserError, match=r"objective\.tasks"):
        mixture_digits().override({"objective.tasks": {"training": {"objective": {"kind": "mae"}}}})


class CoupledConfig(ObjectiveConfig):
    def build(self, model: ModelConfig) -> Objective:
        return Coupled()


class Coupled(PooledObjective):
    def initialise(self, seed: int) -> None: ...

    def embed(self, batch: Any) -> Any: ...

    def combine(self, rows: Any, targets: Any, slots: Any) -> Any: ...


def test_a_method_that_couples_samples_is_refused() -> None:
    kind = f"{__name__}:CoupledConfig"
    config = inferred().override({"objective.tasks.shapes.objective": {"kind": kind}})
    with pytest.raises(UserError, match=r"objective\.tasks\.shapes\.objective\.kind"):
        config.objective.build(config.model)


def test_a_mixture_is_told_in_one_line_on_the_command_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["data.blocks=3", "train.batch_size=42", "--ranks", "2", "--dry-run"]
    assert run(["train", "mixture_digits", *words]) == 2
    assert "data.blocks" in capsys.readouterr().err


def test_tasks_of_the_same_shape_begin_with_different_values() -> None:
    config = inferred(objective__tasks__shapes__objective={"kind": "supervised", "classes": 10})
    config = config.override({"objective.tasks.shapes.model": None})
    objective = config.objective.build(config.model)
    objective.initialise(seed=1)
    state = objective.state_dict()
    names = [n for n in state if n.startswith("tasks.digits.") and n.endswith("head.weight")]
    assert names
    for name in names:
        assert not torch.equal(state[name], state[name.replace("digits", "shapes")])
