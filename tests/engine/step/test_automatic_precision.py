"""``precision=auto``: decided by the processor once, and kept."""

from pathlib import Path

import pytest
import torch

from quadriga.config.provenance import Resolved
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.resume import Request, begun_with
from quadriga.engine.run_config import RunConfig
from quadriga.engine.step.precision import automatic, decided
from quadriga.recipes.mae import mae_digits

MAE = mae_digits()


def processor(monkeypatch: pytest.MonkeyPatch, avx: bool, amx: bool = False) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)


@pytest.mark.parametrize(
    ("device", "avx", "amx", "found"),
    [
        ("cpu", True, False, "bfloat16"),
        ("cpu", False, True, "bfloat16"),
        ("cpu", False, False, "float32"),
        ("cuda", True, True, "float32"),
    ],
)
def test_the_processor_decides(
    device: str, avx: bool, amx: bool, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor(monkeypatch, avx, amx)
    assert automatic(device) == found
    assert decided(MAE, device) == dict.fromkeys(("train.precision", "evaluation.precision"), found)


def test_evaluation_follows_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, avx=True)
    exact = MAE.override({"train.precision": "float32"})
    assert decided(exact, "cpu") == {"evaluation.precision": "float32"}
    reduced = MAE.override({"train.precision": "bfloat16"})
    assert decided(reduced, "cuda") == {"evaluation.precision": "float32"}
    assert decided(MAE.override({"evaluation.precision": "float32"}), "cpu") == {
        "train.precision": "bfloat16"
    }


def test_a_run_keeps_what_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, avx=True)
    request = Request(tmp_path)
    assert begun_with(request) is None
    began = Resolved.of(MAE, "recipe").override(decided(MAE, "cpu"), "auto")
    RunDirectory(tmp_path).write_config(began)
    processor(monkeypatch, avx=False)
    (tmp_path / "checkpoints" / "step_00000001").mkdir(parents=True)
    elsewhere = Path("elsewhere")
    for asked in (
        request,
        Request(elsewhere, resume_from=tmp_path),
        Request(elsewhere, resume_from=tmp_path / "checkpoints" / "step_00000001"),
    ):
        assert decided(MAE, "cpu", begun_with(asked)) == {
            "train.precision": "bfloat16",
            "evaluation.precision": "bfloat16",
        }


def test_a_config_of_before_was_evaluated_in_float32() -> None:
    saved = MAE.override({"train.precision": "bfloat16"}).as_dict()
    del saved["evaluation"]["precision"]
    RunConfig.upgraded(saved, {})
    assert RunConfig.from_dict(saved).evaluation.precision == "float32"
