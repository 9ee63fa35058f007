"""Collapses that are made on purpose are reported while the run goes on."""

from pathlib import Path

import pytest

from quadriga.cli.entry import run
from quadriga.methods.dino import DINO

STEPS = 70


@pytest.mark.long
@pytest.mark.parametrize("is_centred", [True, False])
def test_a_teacher_without_centring_is_reported(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    is_centred: bool,
) -> None:
    """Without a centre the teacher's entropy is 0 within 40 steps, which is said 20 steps later."""
    after_step = DINO.after_step

    def without_centre(self: DINO, *given: object) -> object:
        found = after_step(self, *given)  # type: ignore[arg-type]
        self.centre.zero_()
        return found

    if not is_centred:
        monkeypatch.setattr(DINO, "after_step", without_centre)
    words = [f"train.steps={STEPS}", "log.every_steps=5", "health.collapse_steps=20"]
    words += ["evaluation.protocols=[]", "--ranks", "1", "--work-dir", str(tmp_path / "run")]
    assert run(["train", "dino_digits", *words]) == 0
    said = capsys.readouterr().err
    assert ("teacher_entropy is 0" in said) != is_centred, said
