"""Files of pipeline stages: ours, those in the reference's layout, and Hugging Face's names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from errors import refuses
from quadriga.distributed.environment import SINGLE
from quadriga.engine.checkpoint.store import CheckpointStore
from quadriga.engine.run_config import CheckpointConfig
from quadriga.methods.masked_lm import MaskedLMConfig
from quadriga.models.bert import BertConfig
from quadriga.surfaces.pipedream_bert.stage_files import (
    StageFiles,
    choose_files,
    read_stages,
    stage_file,
    write_missing,
    write_stage,
    write_stage_files,
)
from quadriga.weights.layouts.pipedream import assemble, foreign_names, own_names
from tiny import assert_bit_equal

LAYERS = 12
SIZES = BertConfig(vocabulary_size=13, width=4, depth=LAYERS, heads=2, mlp_width=6, max_positions=8)


def tensors() -> dict[str, Tensor]:
    objective = MaskedLMConfig().build(SIZES)
    objective.initialise(3)
    return dict(objective.state_dict())


class Weights:
    """An executor that has a state and nothing else."""

    def state_dict(self) -> dict[str, Tensor]:
        return {f"objective.{name}": tensor for name, tensor in tensors().items()}


def config(folder: Path, *modules: tuple[int, ...], steps: int = 10) -> StageFiles:
    return StageFiles(folder=folder, epoch_steps=4, total_steps=steps, modules=modules)


def save(folder: Path, step: int, stage_files: StageFiles | None = None) -> Path:
    saving, hook = CheckpointConfig(asynchronous=False), stage_files and stage_files.on_saved
    with CheckpointStore(folder, SINGLE, saving, "hash", on_saved=hook) as store:
        return store.save(step, Weights())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "modules", [((12,),), ((6, 6),), ((1, 10), (1,)), ((4,), (4,), (4,)), ((12,), ())]
)
def test_the_files_of_any_cut_make_up_the_model(
    tmp_path: Path, modules: tuple[tuple[int, ...], ...]
) -> None:
    checkpoint = save(tmp_path / "checkpoints", 8)
    written = write_stage_files(config(tmp_path, *modules), checkpoint)
    assert written == [stage_file(tmp_path, stage, 1) for stage in range(len(modules))]
    assert choose_files(tmp_path, -1, -1) == written
    assert_bit_equal(own_names(read_stages(written)), tensors())
    last = torch.load(written[-1], weights_only=True)
    assert (last["epoch"], last["arch"], last["stages"]) == (2, "bert", len(modules))
    names = [f"module{i}" for i in range(len(modules[-1]) + 1)]
    assert list(last["state_dict"]) == names
    assert not last["state_dict"][names[-1]]  # the loss


def test_files_come_with_the_checkpoints_that_end_an_epoch(tmp_path: Path) -> None:
    stage_files = config(tmp_path, (12,))
    for step in (3, 4, 8, 10):
        save(tmp_path / "checkpoints", step, stage_files)
    found = sorted(path.name for path in tmp_path.glob("checkpoint.*"))
    assert found == [f"checkpoint.0.pth.tar.epoch.{epoch}" for epoch in range(3)]
    stage_file(tmp_path, 0, 1).unlink()
    assert write_missing(stage_files, tmp_path / "checkpoints") == [stage_file(tmp_path, 0, 1)]
    assert write_missing(stage_files, tmp_path / "checkpoints") == []


def reference_modules() -> list[dict[str, Tensor]]:
    """Return the same tensors as the reference system names them: layers anew in each module."""
    whole = {**foreign_names(tensors()), "cls.predictions.decoder.weight": torch.ones(13, 4)}
    modules: list[dict[str, Tensor]] = [{}, {}]
    for name, tensor in whole.items():
        part = name.partition("bert.encoder.layer.")[2]
        if part:
            number, _, rest = part.partition(".")
            place, local = (0, int(number)) if int(number) < 11 else (1, 0)
            modules[place][f"module.layers.{local}.{rest}"] = tensor
        elif name.startswith("bert.embeddings."):
            plain = name.replace("bert.embeddings", "embedding_layer")
            old = plain.replace("LayerNorm.weight", "LayerNorm.gamma")
            modules[0][f"module.{old.replace('LayerNorm.bias', 'LayerNorm.beta')}"] = tensor
        else:
            plain = name.replace("bert.pooler.dense", "pooling_layer.dense_act")
            modules[1][f"module.{plain.replace('cls.', 'pre_training_heads_layer.')}"] = tensor
    modules[0]["module.attention_mask"] = torch.zeros(1)
    return modules


def test_files_of_the_reference_are_read(tmp_path: Path) -> None:
    """In its layers 0 to 10 of one module; `10` does not come before `2`."""
    expected = tensors()
    assert_bit_equal(own_names(assemble(reference_modules(), "here")), expected)
    for stage, module in enumerate(reference_modules()):
        state: Mapping[str, object] = {"module0": module}
        content = {"epoch": 6, "arch": "bert", "state_dict": state, "optimizer": {"state": {}}}
        torch.save(content, stage_file(tmp_path, stage, 5))
    assert_bit_equal(own_names(read_stages(choose_files(tmp_path, 5, 2))), expected)


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    with refuses("--checkpoint_path", tmp_path):
        choose_files(tmp_path, -1, -1)
    for epoch in (0, 2):
        write_stage(tmp_path, 1, 2, epoch, [{}])
    with refuses("checkpoint.0.pth.tar.epoch.2"):
        choose_files(tmp_path, -1, -1)
    with refuses("--epoch", "0, 2", "is 1"):
        choose_files(tmp_path, 1, -1)
    write_stage(tmp_path, 0, 2, 2, [foreign_names(tensors())])
    with refuses("--num_stages", "2 stages", "is 1"):
        read_stages(choose_files(tmp_path, 2, 1))
    path = stage_file(tmp_path, 0, 2)
    path.write_bytes(path.read_bytes()[:200])
    with refuses(path, "torch"):
        read_stages(choose_files(tmp_path, 2, 2))
    torch.save({"epoch": 1, "state_dict": {"module0": {}}, "optimizer": Path("x")}, path)
    with refuses(path, "Python objects"):
        read_stages(choose_files(tmp_path, 2, 2))
    whole = foreign_names(tensors())
    with refuses("'conv.weight'", "BERT"):
        assemble([{"conv.weight": torch.ones(1)}], "here")
    with refuses("embeddings.word_embeddings.weight", "twice"):
        assemble([whole, {"embeddings.word_embeddings.weight": torch.ones(1)}], "here")
    del whole["bert.encoder.layer.3.output.dense.bias"]
    with refuses("15", "layer 3"):
        assemble([whole], "here")


def test_names_are_those_of_hugging_face(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertForPreTraining(
        transformers.BertConfig(
            vocab_size=13,
            hidden_size=4,
            num_hidden_layers=LAYERS,
            num_attention_heads=2,
            intermediate_size=6,
            max_position_embeddings=8,
        )
    )
    named = foreign_names(tensors())
    result = theirs.load_state_dict(named, strict=False)
    assert not result.unexpected_keys
    assert set(result.missing_keys) <= {
        "cls.predictions.decoder.weight",
        "cls.predictions.decoder.bias",
        "bert.embeddings.position_ids",
    }
    state = {n: t for n, t in theirs.state_dict().items() if not n.endswith("position_ids")}
    assert_bit_equal(own_names(assemble([state], "here")), tensors())
