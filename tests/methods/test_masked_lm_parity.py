"""Hugging Face's BERT models on the same weights and sentences."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from errors import refuses
from quadriga import randomness
from quadriga.contracts import Batch
from quadriga.methods.masked_lm import MaskedLM, MaskedLMConfig
from quadriga.models.bert import Bert, BertConfig
from quadriga.weights import export_weights, load_weights
from text_batches import text_batch

transformers = pytest.importorskip("transformers", reason="needs the extra quadriga[hf]")
pytestmark = pytest.mark.filterwarnings("ignore")

TOLERANCE = 1e-5
"""Largest difference of a tensor, relative to its largest value."""

MODEL = BertConfig(
    vocabulary_size=60,
    width=48,
    depth=3,
    heads=4,
    mlp_width=96,
    max_positions=32,
    dropout=0.0,
    attention_dropout=0.0,
)
BATCHES = {"padded": [20, 9, 31, 14], "full": [24, 24, 24]}


def theirs(name: str = "BertForPreTraining") -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=60,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return getattr(transformers, name)(config).train()


def disturbed(objective: MaskedLM | Bert) -> Any:
    """Move biases and norms from 0 and 1, where a mistake in their place could go unnoticed."""
    with torch.no_grad():
        for name, parameter in objective.named_parameters():
            source = randomness.generator(3, "disturb", name)
            parameter += 0.02 * torch.empty(parameter.shape).normal_(generator=source)
    return objective


def ours(next_sentence: bool = True) -> MaskedLM:
    objective = MaskedLMConfig(next_sentence=next_sentence).build(MODEL)
    objective.initialise(4)
    return disturbed(objective)


def loaded(folder: Path, name: str = "BertForPreTraining", **options: bool) -> nn.Module:
    """Load a folder the way its users do."""
    theirs(name).config.save_pretrained(folder)
    model, info = getattr(transformers, name).from_pretrained(
        folder, output_loading_info=True, **options
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model.train()


def arguments(batch: Batch) -> dict[str, Tensor]:
    """Return the padded batch as Hugging Face's models take it."""
    labels = torch.full_like(batch["ids"], -100).view(-1)
    labels[batch["tokens"][batch["masked"]]] = batch["targets"]
    columns = torch.arange(batch["ids"].shape[1])
    return {
        "input_ids": batch["ids"],
        "token_type_ids": batch["segments"],
        "attention_mask": (columns < batch["lengths"][:, None]).long(),
        "labels": labels.view_as(batch["ids"]),
    }


def difference(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("lengths", BATCHES)
@pytest.mark.parametrize("covering", [False, True])
def test_loss_and_every_gradient(lengths: str, covering: bool, tmp_path: Path) -> None:
    objective = ours()
    export_weights(objective, tmp_path / "model.safetensors", "hf")
    reference = loaded(tmp_path)
    batch = text_batch(BATCHES[lengths], covering=covering)
    expected = reference(**arguments(batch), next_sentence_label=batch["is_random"])
    expected.loss.backward()
    output = objective(batch)
    output.only.total.backward()
    errors = {"loss": difference(output.only.total, expected.loss)}
    # The gradients travel as weights do, so that each meets its counterpart under its own name.
    with torch.no_grad():
        for parameter in [*reference.parameters(), *objective.parameters()]:
            assert parameter.grad is not None
            parameter.copy_(parameter.grad)
    reference.save_pretrained(tmp_path / "gradients")
    counterpart = ours()
    load_weights(counterpart, tmp_path / "gradients" / "model.safetensors", "hf")
    pairs = dict(counterpart.named_parameters())
    for name, parameter in objective.named_parameters():
        assert parameter.abs().max() > 0, name
        if name.endswith("qkv.bias"):
            # A bias of the keys shifts all scores of a query alike: its gradient is rounding.
            query, key, value = parameter.chunk(3)
            assert key.abs().max() < 1e-6 * parameter.abs().max() + 1e-8
            expected_query, _, expected_value = pairs[name].chunk(3)
            errors[f"{name}, query"] = difference(query, expected_query)
            errors[f"{name}, value"] = difference(value, expected_value)
        else:
            errors[name] = difference(parameter, pairs[name])
    worst = max(errors, key=lambda name: errors[name])
    print(f"greatest relative error of loss and gradients: {errors[worst]:.1e} ({worst})")
    assert errors[worst] < TOLERANCE


def test_weights_travel_from_hugging_face_and_back(tmp_path: Path) -> None:
    reference = theirs()
    reference.save_pretrained(tmp_path / "theirs")
    objective = ours()
    report = load_weights(objective, tmp_path / "theirs" / "model.safetensors")
    assert report.layout == "hf"
    assert report.complete
    assert not report.skipped
    assert len(report.matched) == len(objective.state_dict())
    export_weights(objective, tmp_path / "back" / "model.safetensors", "hf")
    again = loaded(tmp_path / "back")
    for (name, tensor), value in zip(
        reference.state_dict().items(), again.state_dict().values(), strict=True
    ):
        assert torch.equal(tensor, value), name


def test_without_next_sentence_it_is_a_masked_lm(tmp_path: Path) -> None:
    objective = ours(next_sentence=False)
    export_weights(objective, tmp_path / "model.safetensors", "hf")
    reference = loaded(tmp_path, "BertForMaskedLM")
    batch = text_batch(BATCHES["padded"])
    assert difference(objective(batch).only.total, reference(**arguments(batch)).loss) < TOLERANCE
    theirs().save_pretrained(tmp_path / "more")
    report = load_weights(objective, tmp_path / "more" / "model.safetensors")
    assert report.complete
    assert {name.split(".")[1] for name in report.skipped} == {"pooler", "seq_relationship"}


def test_encoder_alone_is_a_bert_model(tmp_path: Path) -> None:
    encoder = disturbed(ours().encoder)
    export_weights(encoder, tmp_path / "model.safetensors", "hf")
    reference = loaded(tmp_path, "BertModel", add_pooling_layer=False)
    batch = text_batch(BATCHES["padded"])
    given = arguments(batch)
    del given["labels"]
    grid = reference(**given).last_hidden_state
    assert difference(encoder(batch), grid.view(-1, 48)[batch["tokens"]]) < TOLERANCE
    theirs().save_pretrained(tmp_path / "whole")
    report = load_weights(encoder, tmp_path / "whole" / "model.safetensors")
    assert report.complete
    assert len(report.matched) == len(encoder.state_dict())
    assert report.skipped


def test_our_own_files_of_a_part_and_of_the_whole(tmp_path: Path) -> None:
    objective = ours()
    export_weights(objective, tmp_path / "whole.safetensors")
    export_weights(objective.encoder, tmp_path / "encoder.safetensors")
    bare = MODEL.build()
    for file in ("whole", "encoder"):
        report = load_weights(bare, tmp_path / f"{file}.safetensors")
        assert report.layout == "quadriga"
        assert report.complete
    other = MaskedLMConfig().build(MODEL)
    report = load_weights(other, tmp_path / "encoder.safetensors", strict=False)
    assert {name.split(".")[0] for name in report.missing} == {"head", "pooler", "next_sentence"}
    for name, tensor in objective.encoder.state_dict().items():
        assert torch.equal(other.encoder.state_dict()[name], tensor)
        assert torch.equal(bare.state_dict()[name], tensor)


def older(path: Path) -> dict[str, Tensor]:
    """Return a file's tensors as the first published conversions name them."""
    tensors = {}
    for name, tensor in load_file(path).items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        tensors[name.replace("LayerNorm.bias", "LayerNorm.beta")] = tensor
    words = tensors["bert.embeddings.word_embeddings.weight"]
    tensors["cls.predictions.decoder.weight"] = words.clone()
    tensors["bert.embeddings.position_ids"] = torch.arange(32)[None]
    return tensors


def test_older_names_are_read(tmp_path: Path) -> None:
    theirs().save_pretrained(tmp_path)
    torch.save(older(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    old, new = ours(), ours()
    report = load_weights(old, tmp_path / "pytorch_model.bin")
    assert report.complete
    assert report.skipped == ("bert.embeddings.position_ids",)
    load_weights(new, tmp_path / "model.safetensors")
    for name, tensor in new.state_dict().items():
        assert torch.equal(old.state_dict()[name], tensor), name


def test_an_untied_decoder_is_refused(tmp_path: Path) -> None:
    theirs().save_pretrained(tmp_path)
    tensors = older(tmp_path / "model.safetensors")
    tensors["cls.predictions.decoder.weight"] += 1
    save_file(tensors, tmp_path / "untied.safetensors")
    with refuses("head.decoder.weight", "tied"):
        load_weights(ours(), tmp_path / "untied.safetensors")


def test_timm_has_no_names_for_a_bert(tmp_path: Path) -> None:
    with refuses("timm", "vision transformer"):
        export_weights(ours(), tmp_path / "model.safetensors", "timm")
