"""The exports of a BERT, run beside the model."""

from pathlib import Path
from typing import Any

import pytest
import torch

from errors import refuses
from quadriga.data.text.pydoc import PydocCorpusConfig
from quadriga.data.text.sentence_pairs import SentencePairsConfig
from quadriga.engine.build import build_objective
from quadriga.engine.run_config import RunConfig, TrainConfig
from quadriga.export import huggingface, safetensors, timm
from quadriga.export.subject import Subject, greatest_difference
from quadriga.methods.masked_lm import MaskedLMConfig
from quadriga.models.bert import BertConfig
from quadriga.optim.adam import AdamWConfig
from quadriga.schedules.curves import LinearConfig

CONFIG = RunConfig(
    name="bert",
    model=BertConfig(vocabulary_size=70, width=24, depth=2, heads=2, mlp_width=40),
    objective=MaskedLMConfig(),
    data=PydocCorpusConfig(),
    views=SentencePairsConfig(),
    optim=AdamWConfig(lr=1e-4, weight_decay=0.01),
    schedule=LinearConfig(),
    train=TrainConfig(steps=1, batch_size=2),
)


def subject(part: Any, **changes: Any) -> Subject:
    config = CONFIG.override(changes)
    objective = build_objective(config, torch.device("cpu"), 3)
    with torch.no_grad():
        for tensor in objective.state_dict().values():
            tensor += 0.1 * torch.linspace(-1, 1, tensor.numel()).view(tensor.shape)
    return Subject(config=config, objective=objective.eval(), part=part, step=1, weights="raw")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("part", "changes", "name"),
    [
        ("encoder", {}, "BertModel"),
        ("all", {}, "BertForPreTraining"),
        ("all", {"objective.next_sentence": False}, "BertForMaskedLM"),
        (
            "all",
            {"objective.next_sentence": False, "objective.reduction": "token"},
            "BertForMaskedLM",
        ),
    ],
)
def test_hugging_face_computes_the_same(
    part: str, changes: dict[str, Any], name: str, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra quadriga[hf]")
    made, form = subject(part, **changes), huggingface.HuggingFaceFormat()
    form.check(made.config, made.part)
    form.write(made, tmp_path / "hf")
    check = form.verify(made, tmp_path / "hf")
    assert f"with transformers {transformers.__version__}" in str(check)
    assert check.difference < 1e-5
    assert "vocab.txt" in str(form.remark(made))
    # Without the library the same file is read back by this project.
    with torch.no_grad():
        pairs = huggingface.bert_read_back(made, tmp_path / "hf")
        assert greatest_difference(pairs) < 1e-6
    model = getattr(transformers, name).from_pretrained(tmp_path / "hf")
    assert model.config.architectures == [name]
    assert model.config.quadriga["part"] == part
    with torch.no_grad():
        made.bert.blocks[1].mlp_norm.weight.mul_(2.0)
    assert not form.verify(made, tmp_path / "hf").passed


@pytest.mark.parametrize("part", ["encoder", "all"])
def test_own_names_rebuild_the_model(part: str, tmp_path: Path) -> None:
    made, form = subject(part), safetensors.SafetensorsFormat()
    form.write(made, tmp_path / "bert.safetensors")
    check = form.verify(made, tmp_path / "bert.safetensors")
    assert check.difference == 0
    rebuilt = safetensors.rebuild(tmp_path / "bert.safetensors")
    for name, tensor in made.module.state_dict().items():
        assert torch.equal(rebuilt.state_dict()[name], tensor), name


def test_timm_has_no_bert() -> None:
    with refuses("--to timm", "model.kind=vit", "bert", "--to safetensors"):
        timm.TimmFormat().check(CONFIG, "encoder")
