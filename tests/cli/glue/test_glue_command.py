"""``quadriga glue``: from a pre-training run to the table, stopped and started again."""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path

import pytest
import torch

from errors import assert_command_refused, assert_says
from glue_files import SPECIAL, put
from quadriga.cli.entry import run
from quadriga.cli.glue.results import average_line, markdown, summary
from quadriga.cli.resolve import resolve
from quadriga.config.provenance import Resolved
from quadriga.contracts import Progress
from quadriga.data.text.corpus import TextCorpusConfig
from quadriga.data.text.glue.tasks import TASKS
from quadriga.data.text.sentence_pairs import SentencePairsConfig
from quadriga.engine.run_config import LoaderConfig, LogConfig, RunConfig, TrainConfig
from quadriga.methods.masked_lm import MaskedLMConfig
from quadriga.models.bert import BertConfig
from quadriga.optim.adam import AdamWConfig
from quadriga.schedules.curves import LinearConfig
from quadriga.weights import export_weights
from tiny import assert_bit_equal, read_checkpoint

Capture = pytest.CaptureFixture[str]

WORDS = ("good", "bad", "film", "the", "a", "is", "was", "plot", "actor", ".")

QUICK = (
    "train.steps=12",
    "train.batch_size=8",
    "optim.lr=3e-3",
    "loader.workers=0",
    "evaluation.workers=0",
    "log.loggers=[]",
    "train.device=cpu",
    "checkpoint.every_steps=4",
    "checkpoint.keep=9",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pre-training run of two steps, and tasks that one word decides."""
    folder = tmp_path_factory.mktemp("glue")
    (folder / "vocab.txt").write_text("\n".join((*SPECIAL, *WORDS)) + "\n")
    sentences = [f"the {a} is {b} ." for a in ("film", "plot", "actor") for b in ("good", "bad")]
    text = "\n\n".join("\n".join(sentences) for _ in range(12))
    put(folder / "corpus", "text.txt", text)
    shutil.copy(folder / "vocab.txt", folder / "corpus")
    config = RunConfig(
        name="pretraining",
        model=BertConfig(
            vocabulary_size=16, width=16, depth=2, heads=2, mlp_width=32, max_positions=16
        ),
        objective=MaskedLMConfig(),
        data=TextCorpusConfig(root=folder / "corpus", test_fraction=0.2),
        views=SentencePairsConfig(max_length=16),
        optim=AdamWConfig(),
        schedule=LinearConfig(),
        train=TrainConfig(steps=2, batch_size=8, device="cpu"),
        loader=LoaderConfig(workers=0),
        log=LogConfig(loggers=()),
    )
    (folder / "pretraining.json").write_text(Resolved.of(config, "test").as_json())
    words = ["train", str(folder / "pretraining.json"), "--work-dir", str(folder / "run")]
    assert run(words) == 0
    rows = [f"the {a} {b} {c}\t{int(c == 'good')}" for a in WORDS for b in WORDS for c in WORDS[:2]]
    for name in ("SST-2", "CoLA"):
        lines = rows if name == "SST-2" else [f"x\t{r[-1]}\t\t{r[:-2]}" for r in rows]
        head = ("sentence\tlabel",) if name == "SST-2" else ()
        put(folder / "data" / name, "train.tsv", *head, *lines[:150])
        put(folder / "data" / name, "dev.tsv", *head, *lines[150:])
    return folder


def arguments_of(place: Path, source: str, work_dir: Path, *words: str) -> list[str]:
    set_here = {word.partition("=")[0] for word in words}
    quick = [word for word in QUICK if word.partition("=")[0] not in set_here]
    where = source if source == "scratch" else str(place / source)
    given = ["--data", str(place / "data"), "--work-dir", str(work_dir)]
    return ["glue", where, *given, *quick, *words]


@pytest.fixture(scope="module")
def finished(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    assert run(arguments_of(place, "run", folder, "--tasks", "SST-2", "--seeds", "2")) == 0
    return folder


def test_the_table_is_what_the_runs_found(finished: Path) -> None:
    found = json.loads((finished / "glue.json").read_text())
    scores = []
    for seed in range(2):
        report = finished / "sst2" / f"seed_{seed}" / "report" / "evaluation.json"
        (result,) = json.loads(report.read_text())["results"]
        assert result["numbers"]["accuracy"] == result["numbers"]["score"]
        scores.append(result["numbers"]["score"])
    score = found["tasks"]["sst2"]["score"]
    assert score["by_seed"] == {"0": scores[0], "1": scores[1]}
    assert score["mean"] == pytest.approx(statistics.fmean(scores))
    assert score["deviation"] == pytest.approx(statistics.stdev(scores))
    assert found["average"] == {"of": ["sst2"], "score": score["mean"]}
    assert found["missing"] == []
    assert f"| sst2 | 2 | {score['mean']:.2f} ± " in (finished / "glue.md").read_text()


def test_the_runs_start_from_the_pre_training(place: Path, finished: Path) -> None:
    config = json.loads((finished / "sst2" / "seed_1" / "config.json").read_text())["config"]
    assert config["seed"] == 1
    assert config["model"]["width"] == 16
    assert config["views"]["max_length"] == 16
    assert config["data"]["vocabulary"] == str(place / "run" / "files" / "data.vocabulary.txt")
    assert Path(config["data"]["vocabulary"]).read_bytes() == (place / "vocab.txt").read_bytes()
    log = (finished / "sst2" / "seed_1" / "log.txt").read_text()
    assert "2 begin anew: classifier.weight, classifier.bias" in log
    assert "next_sentence.weight" in log


def test_finished_runs_stay_and_a_stopped_one_goes_on(
    place: Path, finished: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "again"))
    before = read_checkpoint(folder / "sst2" / "seed_1", 12)
    kept = (folder / "sst2" / "seed_0" / "metrics.jsonl").stat().st_mtime_ns
    stopped = folder / "sst2" / "seed_1"
    shutil.rmtree(stopped / "checkpoints" / "step_00000012")
    (stopped / "report" / "evaluation.json").unlink()
    table = json.loads((folder / "glue.json").read_text())
    words = arguments_of(place, "run", folder, "--tasks", "sst2", "--seeds", "2")
    assert run([*words, "--dry-run"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[5] for line in said] == ["finished", "begun"]
    assert run(words) == 0
    assert_says(capsys.readouterr().out, "1/2", "sst2", "seed 0", "finished")
    assert (folder / "sst2" / "seed_0" / "metrics.jsonl").stat().st_mtime_ns == kept
    assert_bit_equal(read_checkpoint(stopped, 12), before)
    assert json.loads((folder / "glue.json").read_text()) == table
    assert_command_refused(
        [word.replace("lr=3e-3", "lr=1") for word in words], capsys, "seed_0", "optim.lr", "0.003"
    )


def test_a_checkpoint_and_random_weights(place: Path, tmp_path: Path) -> None:
    checkpoint = "run/checkpoints/step_00000002"
    more = ("--tasks", "cola", "--seeds", "1")
    assert run(arguments_of(place, checkpoint, tmp_path / "a", *more)) == 0
    assert run(arguments_of(place, "run", tmp_path / "b", *more, "--from-scratch")) == 0
    started = json.loads((tmp_path / "a" / "cola" / "seed_0" / "config.json").read_text())
    assert started["config"]["warm_start"]["path"].endswith(checkpoint)
    started = json.loads((tmp_path / "b" / "cola" / "seed_0" / "config.json").read_text())
    assert started["config"]["warm_start"]["path"] is None
    assert started["config"]["model"]["depth"] == 2
    assert list(json.loads((tmp_path / "b" / "glue.json").read_text())["tasks"]) == ["cola"]


def test_the_folder_of_a_published_model(place: Path, tmp_path: Path) -> None:
    config = Resolved.from_json(RunConfig, (place / "pretraining.json").read_text()).config
    objective = config.objective.build(config.model)
    objective.initialise(5)
    folder = place / "published"
    folder.mkdir()
    export_weights(objective, folder / "model.safetensors", "hf")
    described = {
        "vocab_size": 16,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 16,
        "type_vocab_size": 2,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
    }
    (folder / "config.json").write_text(json.dumps(described))
    shutil.copy(place / "vocab.txt", folder)
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    more = ("--tasks", "cola", "--seeds", "1", "optim.lr=0")
    assert run(arguments_of(place, "published", tmp_path, *more)) == 0
    found = read_checkpoint(tmp_path / "cola" / "seed_0", 12)
    for name, tensor in objective.encoder.state_dict().items():
        assert torch.equal(found[f"objective.encoder.{name}"], tensor), name
    made = json.loads((tmp_path / "cola" / "seed_0" / "config.json").read_text())["config"]
    assert made["data"]["lowercase"] is False


def test_errors(place: Path, tmp_path: Path, capsys: Capture) -> None:
    def refused(source: str, words: list[str], *fragments: object) -> None:
        words = arguments_of(place, source, tmp_path / "never", *words)
        assert_command_refused(words, capsys, *fragments)

    refused("none", [], place / "none")
    refused("data", [], place / "data", "config.json")
    refused("run", ["--tasks", "sst3"], "'sst3'", "sst2")
    refused("run", ["seed=3"], "seed", "glue")
    refused("run", ["optim.learning_rate=1"], "optim.learning_rate", "optim.lr")
    refused("run", ["--tasks", "rte"], "data.root", "RTE")
    refused("scratch", ["--tasks", "sst2"], "data.vocabulary")
    refused("run", ["--seeds", "0"], "--seeds", "1", "0")
    assert not (tmp_path / "never").exists()


def test_numbers_of_several_tasks_and_what_is_missing() -> None:
    both = {"accuracy": 80.0, "accuracy_mismatched": 82.0, "score": 81.0}
    found = {
        "mnli": {0: both, 1: {**both, "accuracy": 81.0, "score": 81.5}},
        "cola": {0: {"mcc": 50.0, "score": 50.0}},
    }
    tasks = [TASKS[name] for name in ("cola", "mnli", "rte")]
    summed = summary("x", range(2), tasks, found)
    assert summed["average"] == {"of": ["cola", "mnli"], "score": (50 + 81.25) / 2}
    assert summed["missing"] == ["cola seed 1", "rte seed 0", "rte seed 1"]
    assert summed["tasks"]["cola"]["mcc"]["deviation"] is None
    text = markdown(summed)
    assert "| cola | 1 | 50.00 | Matthews 50.00 |" in text
    assert_says(text, "80.50 ± 0.71", "82.00 ± 0.00")
    assert "| rte | 0 | - |  |" in text
    assert_says(average_line(summed), "2 tasks", "65.62")


@pytest.mark.parametrize("task", [name for name in TASKS if name != "mnli-mm"])
def test_recipes_are_of_their_task(task: str, place: Path) -> None:
    config = resolve(f"glue_{task}", None, ["epochs=2"]).config
    assert config.data.task == task
    assert config.objective.outputs == TASKS[task].outputs
    assert config.objective.regression == (task == "stsb")
    assert config.schedule.warmup_epochs == pytest.approx(0.2)
    factor = config.schedule.factor
    shares = [factor(Progress(step, 200, 32, 3200)) for step in (0, 19, 20, 110, 199)]
    assert shares == pytest.approx([0, 1, 1, 0.5, 1 / 180])
    assert config.model == BertConfig.base()
