"""Every flag of the documented BERT commands, as values of the config; no process starts."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from pipedream_files import Files, make_files

from errors import assert_says, refuses
from quadriga.engine.run_config import RunConfig
from quadriga.errors import UserError
from quadriga.models.bert import BertConfig
from quadriga.surfaces.pipedream_bert.cut import process_environ, read_cut
from quadriga.surfaces.pipedream_bert.flags import parser as flags_parser
from quadriga.surfaces.pipedream_bert.flags import read_flags
from quadriga.surfaces.pipedream_bert.glue import config_tree as glue_tree
from quadriga.surfaces.pipedream_bert.glue_flags import parser as glue_parser
from quadriga.surfaces.pipedream_bert.glue_flags import read_flags as read_glue_flags
from quadriga.surfaces.pipedream_bert.launch import parser as launch_parser
from quadriga.surfaces.pipedream_bert.launch import place_of
from quadriga.surfaces.pipedream_bert.messages import in_flags
from quadriga.surfaces.pipedream_bert.pretrain import read_command

SURFACE = Path(__file__).resolve().parents[3] / "surfaces" / "pipedream_bert"
TWO = {"RANK": "0", "WORLD_SIZE": "2"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return make_files(tmp_path_factory.mktemp("bert"))


def leaves_of(words: list[str], environ: dict[str, str] | None = None) -> dict[str, Any]:
    return dict(read_command(words, environ or {}).resolved.config.leaves())


def refused(words: list[str], environ: dict[str, str] | None = None) -> str:
    with pytest.raises(UserError) as caught:
        read_command(words, environ or {})
    return in_flags(str(caught.value))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), {"model.depth": 4, "model.width": 8, "model.mlp_width": 16, "seed": 42}),
        ((), {"optim.kind": "bert_adam", "optim.lr": 3e-5, "optim.lr_scaling": "none"}),
        ((), {"optim.weight_decay": 0.01, "optim.eps": 1e-6, "optim.clip_norm": 1.0}),
        ((), {"views.pairing": "adjacent", "views.max_length": 16, "data.lowercase": True}),
        ((), {"train.device": "cpu", "train.precision": "float32", "train.recompute": "none"}),
        ((), {"executor.kind": "data_parallel", "train.accumulate": 1, "train.batch_size": 4}),
        # 20 documents of 2, 3, 4 and 5 sentences: 50 samples, 12 updates of 4, 3 epochs.
        ((), {"train.steps": 36, "checkpoint.every_steps": 12, "schedule.warmup_steps": 4}),
        (("--num_train_epochs", "1.5"), {"train.steps": 18, "checkpoint.every_steps": 12}),
        (("--num_minibatches", "9"), {"train.steps": 9, "checkpoint.every_steps": 9}),
        (("--warmup_proportion", "0.5"), {"schedule.warmup_steps": 18}),
        (("--gradient_accumulation_steps", "3"), {"train.accumulate": 3, "train.batch_size": 12}),
        (("--learning_rate", "2e-5"), {"optim.lr": 2e-5}),
        (("--seed", "7"), {"seed": 7}),
        (("--fp16",), {"train.precision": "bfloat16"}),
        (("--recompute_step",), {"train.recompute": "full"}),
        (("--partitioned_data",), {"views.pairing": "segments", "views.max_predictions": 20}),
        (("--verbose_frequency", "50"), {"log.every_steps": 50}),
        (("-v", "8", "--gradient_accumulation_steps", "2"), {"log.every_steps": 4}),
        ((), {"log.every_steps": 20}),
        (("--num_minibatches", "4"), {"log.every_steps": 1}),
        (("--configurable_model",), {"model.depth": 4}),
        (
            ("--configurable_model", "--num_stages", "2", "--num_layers_per_stage", "3"),
            {"model.depth": 6},
        ),
        (("--override", "loader.workers=5"), {"loader.workers": 5}),
        (("--override", "train.epochs=1"), {"train.epochs": 1.0, "train.steps": None}),
    ],
)
def test_a_flag_is_a_value(files: Files, words: tuple[str, ...], expected: dict[str, Any]) -> None:
    found = leaves_of(files.words(*words))
    assert {path: found[path] for path in expected} == expected


@pytest.mark.parametrize(
    ("words", "schedule", "accumulate"),
    [
        ((), "2bw", 2),
        (("--gradient_accumulation_steps", "3"), "2bw", 6),
        (("--gpipe",), "gpipe", 2),
        (("--no_input_pipelining",), "sequential", 2),
    ],
)
def test_the_schedule_and_the_micro_batches_of_stages(
    files: Files, words: tuple[str, ...], schedule: str, accumulate: int
) -> None:
    found = leaves_of(files.words("--config_path", str(files.conf), *words), TWO)
    assert found["executor.schedule"] == schedule
    assert found["executor.conf"] == str(files.conf)
    assert found["train.accumulate"] == accumulate
    assert found["train.batch_size"] == 4 * accumulate
    assert found["train.steps"] == 3 * (50 // (4 * accumulate))
    assert found["schedule.warmup_steps"] == round(0.1 * found["train.steps"])


def test_one_stage_is_data_parallel(files: Files) -> None:
    found = leaves_of(files.words("--config_path", str(files.data_parallel), "--use_apex"), TWO)
    assert found["executor.kind"] == "data_parallel"
    assert (found["train.accumulate"], found["train.batch_size"]) == (1, 8)


def test_configurable_stages_need_no_conf(files: Files) -> None:
    words = files.words("--configurable_model", "--num_stages", "2", "--num_layers_per_stage", "3")
    found = leaves_of(words, {"RANK": "0", "WORLD_SIZE": "4"})
    assert (found["executor.schedule"], found["executor.stages"]) == ("2bw", 2)
    assert (found["model.depth"], found["train.batch_size"]) == (6, 4 * 2 * 2)


def test_the_folders_of_the_user(files: Files, tmp_path: Path) -> None:
    words = files.words("--checkpoint_dir", str(tmp_path), "--config_path", str(files.conf))
    stage_files = read_command(words, TWO).stage_files
    assert stage_files is not None
    assert (stage_files.folder, stage_files.modules) == (tmp_path, ((2,), (2,)))
    assert (stage_files.epoch_steps, stage_files.total_steps) == (6, 18)
    relative = {str(files.text): ".", str(files.vocabulary): "vocab.txt"}
    words = [relative.get(word, word) for word in files.words()]
    words += ["--data_dir", str(files.text), "--checkpoint_dir", ""]
    found = leaves_of(words)
    assert found["data.root"] == str(files.text)
    assert read_command(words, {}).stage_files is None
    assert found["data.vocabulary"] == str(files.vocabulary)


def test_what_a_run_does_otherwise_is_said(files: Files) -> None:
    words = files.words("--on_memory", "--use_apex", "--fp16", "--num_minibatches", "7")
    words += ["--gradient_accumulation_steps", "2"]
    command = read_command(words, {})
    assert dict(command.resolved.config.leaves())["train.steps"] == 3
    for said in ("--on_memory:", "--use_apex:", "--fp16:", "3 updates of 2 are made"):
        assert len([note for note in command.notes if said in note]) == 1


def test_every_documented_flag_is_there() -> None:
    documented = """
        train_path partitioned_dataset bert_config_path vocab_path max_seq_length num_minibatches
        do_train train_batch_size learning_rate num_train_epochs warmup_proportion no_cuda on_memory
        do_lower_case local_rank module configurable_model num_stages num_layers_per_stage
        master_addr config_path no_input_pipelining rank checkpoint_dir num_ranks_in_server
        verbose_frequency recompute_step pipedream gpipe seed gradient_accumulation_steps use_apex
        fp16 loss_scale log_dir data_dir model_dir load"""
    of_glue = """
        data_dir bert_config_path checkpoint_path bert_model task_name module num_stages epoch
        max_seq_length do_train do_eval do_lower_case train_batch_size eval_batch_size learning_rate
        final_learning_rate final_lr lr_decay_rate num_train_epochs warmup_proportion local_rank
        seed gradient_accumulation_steps fp16 loss_scale focal gamma files_location no_cuda random
        """
    for names, made in ((documented, flags_parser()), (of_glue, glue_parser())):
        assert {f"--{name}" for name in names.split()} - set(made._option_string_actions) == set()
    for made in (flags_parser(), glue_parser(), launch_parser()):
        assert "examples:" in made.format_help()


def test_layers_that_do_not_divide_are_spread(files: Files, tmp_path: Path) -> None:
    conf = tmp_path / "conf.json"
    ranks = {str(s): [s] for s in range(3)}
    conf.write_text(json.dumps({"module_to_stage_map": [0, 1, 2, 2], "stage_to_rank_map": ranks}))
    words = files.words("--config_path", str(conf))
    words[words.index("models.bert4.depth=2")] = "models.bert8.depth=3"
    cut = read_cut(read_flags(words), 3)
    assert cut.blocks_by_stage() == [[2], [3], [3]]
    assert sum(map(sum, cut.blocks_by_stage())) == cut.layers == 8


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (("--pipedream",), ("--pipedream", "PipeDream-2BW")),
        (("--gpipe", "--no_input_pipelining"), ("--gpipe", "--no_input_pipelining")),
        (("--loss_scale", "128"), ("--loss_scale", "0", "128")),
        (("--model_dir", "x"), ("--model_dir", "meaning")),
        (("--train_batch_size", "0"), ("--train_batch_size", "at least 1", "is 0")),
        (("--train_batch_size", "x"), ("--train_batch_size", "integer", "'x'")),
        (("--train_batch_size", "51"), ("--train_batch_size", "50", "lower")),
        (("--num_minibatches", "0"), ("--num_minibatches", "at least 1")),
        (("--num_train_epochs", "0"), ("--num_train_epochs", "above 0")),
        (("--warmup_proportion", "1"), ("--warmup_proportion", "below 1")),
        (("--module", "models.bert.depth=8"), ("--module", "models.bert24.depth=8")),
        (("--module", "models.bert4.depth=8"), ("--module", "4 layers", "8 modules")),
        (("--learning_rate", "-1"), ("--learning_rate", "at least 0")),
        (("--train_path", "nowhere"), ("--train_path", "nowhere")),
        (("--vocab_path", "nowhere"), ("--vocab_path", "nowhere")),
        (("--bert_config_path", "nowhere"), ("nowhere", "bert_config.json")),
        (("--config_path", "nowhere"), ("--config_path", "nowhere")),
        (("--checkpoint_dir", "nowhere"), ("--checkpoint_dir", "nowhere")),
        (("--seed", "-1"), ("--seed", "at least 0")),
        (("--no_such_flag",), ("--no_such_flag", "unknown")),
        (("--override", "optim.lrr=1"), ("optim.lrr", "--learning_rate")),
    ],
)
def test_what_is_refused(
    files: Files, words: tuple[str, ...], fragments: tuple[object, ...]
) -> None:
    assert_says(refused(files.words(*words)), *fragments)


def test_training_must_be_asked_for(files: Files) -> None:
    words = [word for word in files.words() if word != "--do_train"]
    assert_says(refused(words), "--do_train", "given")


def test_several_processes_must_fit_the_conf(files: Files) -> None:
    assert_says(refused(files.words(), TWO), "--config_path", "2 processes")
    words = files.words("--config_path", str(files.conf))
    assert_says(refused(words), "2 processes", "1")
    assert_says(refused(words, {"RANK": "0", "WORLD_SIZE": "4"}), "2 processes", "4")
    assert_says(refused([*words, "--use_apex"], TWO), "--use_apex", "2")
    assert_says(refused([*words, "-m", "models.bert4.depth=4"], TWO), "5 entries")


@pytest.mark.parametrize(
    ("conf", "fragments"),
    [
        ("[1, 2]", ("JSON",)),
        ("__import__('os').getcwd()", ("JSON",)),
        (
            "{'module_to_stage_map': [0, 1, 0], 'stage_to_rank_map': {'0': [0], '1': [1]}}",
            ("order",),
        ),
        (
            "{'module_to_stage_map': [0, 1, 'b'], 'stage_to_rank_map': {'0': [0], '1': [1]}}",
            ("order",),
        ),
        (
            "{'module_to_stage_map': [0, 1, 1], 'stage_to_rank_map': {'0': [0], '1': [0]}}",
            ("once",),
        ),
        ("{'module_to_stage_map': [0, 1, 1], 'stage_to_rank_map': [[0], [1]]}", ("stages",)),
    ],
)
def test_a_conf_that_is_none(
    files: Files, tmp_path: Path, conf: str, fragments: tuple[object, ...]
) -> None:
    path = tmp_path / "conf.json"
    path.write_text(conf)
    assert_says(refused(files.words("--config_path", str(path)), TWO), path, *fragments)


def test_the_shipped_files() -> None:
    """Every conf fits its model; the example of the documentation is the one that is shipped."""
    large = SURFACE / "configs" / "bert_config_bert-large-uncased.json"
    base = SURFACE / "configs" / "bert_config_bert-base-uncased.json"
    assert BertConfig.from_bert_config(large) == BertConfig.large()
    assert BertConfig.from_bert_config(base) == BertConfig.base()
    confs = sorted(SURFACE.glob("**/*conf.json"))
    assert len(confs) == 12
    for conf in confs:
        depth = conf.parent.name.partition("=")[2] or "8"
        words = ["--train_path=t", "--vocab_path=v", "--bert_config_path=b", "--do_train"]
        flags = read_flags([*words, f"-m=models.bert24.depth={depth}", f"--config_path={conf}"])
        cut = read_cut(flags, None)
        assert cut.stages == (1 if conf.name == "dp_conf.json" else int(depth))
        assert sum(map(sum, cut.blocks_by_stage())) == 24
    documented = {
        "module_to_stage_map": [0, 1, 2, 3, 4, 5, 6, 7, 7],
        "stage_to_rank_map": {str(s): list(range(8 * s, 8 * s + 8)) for s in range(8)},
    }
    assert json.loads((SURFACE / "conf.json").read_text()) == documented
    assert ast.literal_eval(repr(documented)) == documented


def test_a_process_that_no_launcher_started(files: Files) -> None:
    words = files.words("--config_path", str(files.conf), "--rank", "1", "--num_ranks_in_server")
    flags = read_flags([*words, "2", "--master_addr", "10.0.0.1", "--local-rank=1"])
    assert process_environ(flags, {}, 2) == {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "12345",
    }
    assert process_environ(flags, {"RANK": "1"}, 2) == {}
    with refuses("--rank", "RANK"):
        process_environ(flags, {"RANK": "0"}, 2)


def place(*words: str, **environ: str) -> tuple[int, int, int, str, int | None]:
    made = place_of(launch_parser().parse_args([*words]), environ)
    return made.nodes, made.node_rank, made.processes, made.address, made.port


def test_where_processes_meet() -> None:
    script = ("main_with_runtime.py", "--module", "m", "--master_addr", "10.0.0.1")
    eight = ("--nnodes", "8", "--node_rank", "3", "--nproc_per_node=8")
    assert place(*eight, *script) == (8, 3, 8, "10.0.0.1", 12345)
    assert place(*eight, "--master_port", "7", *script)[4] == 7
    assert place(*eight, *script, "--master_port=8")[4] == 8
    assert place(*eight, *script, MASTER_PORT="9")[4] == 9
    assert place(*eight, "s.py", MASTER_ADDR="h")[3] == "h"
    assert place("s.py") == (1, 0, 1, "127.0.0.1", None)  # two runs on one server do not meet
    assert place("s.py", "--master_port=8")[4] == 8
    with refuses("--master_addr", "given"):
        place(*eight, "s.py")
    with refuses("--node_rank", "0 to 1"):
        place("--nnodes", "2", "--node_rank", "2", *script)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), {"model.depth": 4, "objective.outputs": 2, "optim.lr": 5e-5, "seed": 42}),
        ((), {"train.batch_size": 32, "train.epochs": 3.0, "data.task": "rte"}),
        ((), {"data.lowercase": False, "evaluation.every_epochs": 1.0}),
        ((), {"schedule.final_factor": 0.0, "schedule.warmup_epochs": pytest.approx(0.3)}),
        (("--task_name", "STS-B"), {"objective.outputs": 1, "objective.regression": True}),
        (("--task_name", "mnli"), {"objective.outputs": 3}),
        (("--final_lr", "5e-6"), {"schedule.final_factor": pytest.approx(0.1)}),
        (("--gradient_accumulation_steps", "2"), {"train.accumulate": 2, "train.batch_size": 64}),
        (("--eval_batch_size", "9"), {"evaluation.protocols.0.batch_size": 9}),
        (("--do_lower_case", "--fp16"), {"data.lowercase": True, "train.precision": "bfloat16"}),
        (("--local-rank=0", "--local_rank=0"), {"train.device": "cpu"}),
    ],
)
def test_a_flag_of_fine_tuning_is_a_value(
    files: Files, words: tuple[str, ...], expected: dict[str, Any]
) -> None:
    own = ("--do_train", "--do_eval", "--random", "--vocab_path", str(files.vocabulary))
    tree = glue_tree(read_glue_flags(files.glue_arguments(*own, *words)), 1)
    found = dict(RunConfig.from_dict(tree).leaves())
    assert {path: found[path] for path in expected} == expected


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        ((), ("--do_train", "--do_eval")),
        (("--do_eval",), ("--output_dir",)),
        (("--do_train", "--focal"), ("--focal", "offered")),
        (("--do_train", "--gamma", "2"), ("--gamma", "offered")),
        (("--do_train", "--lr_decay_rate", "0.9"), ("--lr_decay_rate", "offered")),
        (("--do_train", "--files_location", "x"), ("--files_location", "offered")),
        (("--do_train", "--final_lr", "1"), ("--final_learning_rate",)),
        (("--do_train", "--task_name", "snli"), ("'snli'",)),
        (("--do_train",), ("bert-large-uncased", "downloaded")),
        (("--do_train", "--random", "--checkpoint_path", "x"), ("--random", "--checkpoint_path")),
        (("--do_train", "--random"), ("--vocab_path", "vocab.txt")),
    ],
)
def test_what_fine_tuning_refuses(
    files: Files, words: tuple[str, ...], fragments: tuple[object, ...]
) -> None:
    with refuses(*fragments):
        glue_tree(read_glue_flags(files.glue_arguments(*words)), 1)
