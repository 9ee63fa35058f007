"""The commands of the tutorial as they are printed, run small."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from imagenet_files import PICTURES, SMALL, TINY, make_imagenet

from errors import assert_says, refuses
from quadriga.engine.logs.directory import RunDirectory
from quadriga.errors import UserError
from quadriga.launch import torchrun
from quadriga.surfaces.mmselfsup import launch, main
from quadriga.surfaces.mmselfsup.config import read_config
from quadriga.surfaces.mmselfsup.main import in_keys, train
from quadriga.surfaces.mmselfsup.methods import mae
from quadriga.weights.load import load_weights
from ranks import free_port
from tiny import assert_bit_equal, read_checkpoint, read_metrics

SURFACE = Path(__file__).resolve().parents[3] / "surfaces" / "mmselfsup"
MAE = "configs/selfsup/mae/mae_vit-base-p16_8xb512-coslr-400e_in1k.py"
NAME = Path(MAE).stem

TUTORIAL: tuple[tuple[str, Mapping[str, str]], ...] = (
    (f"python tools/train.py {MAE}", {}),
    ("export CUDA_VISIBLE_DEVICES=-1\npython tools/train.py ${CONFIG_FILE}", {}),
    ("sh tools/dist_train.sh ${CONFIG_FILE} ${GPUS}", {"GPUS": "2"}),
    (f"sh tools/dist_train.sh {MAE} 8", {}),
    (
        "GPUS_PER_NODE=${GPUS_PER_NODE} GPUS=${GPUS} SRUN_ARGS=${SRUN_ARGS} "
        "sh tools/slurm_train.sh ${PARTITION} ${JOB_NAME} ${CONFIG_FILE}",
        {"GPUS_PER_NODE": "4", "GPUS": "16", "SRUN_ARGS": "--quotatype=auto"},
    ),
    (f"sh tools/slurm_train.sh Dummy Test_job {MAE}", {}),
    (
        "NNODES=2 NODE_RANK=0 PORT=${MASTER_PORT} MASTER_ADDR=${MASTER_ADDR} "
        "sh tools/dist_train.sh ${CONFIG} ${GPUS}",
        {"GPUS": "8"},
    ),
    (
        "NNODES=2 NODE_RANK=1 PORT=${MASTER_PORT} MASTER_ADDR=${MASTER_ADDR} "
        "sh tools/dist_train.sh ${CONFIG} ${GPUS}",
        {"GPUS": "8"},
    ),
    (
        "CUDA_VISIBLE_DEVICES=0,1,2,3 PORT=29500 sh tools/dist_train.sh ${CONFIG_FILE} 4 "
        "--work-dir tmp_work_dir_1",
        {},
    ),
    (
        "CUDA_VISIBLE_DEVICES=4,5,6,7 PORT=29501 sh tools/dist_train.sh ${CONFIG_FILE} 4 "
        "--work-dir tmp_work_dir_2",
        {},
    ),
    (
        "CUDA_VISIBLE_DEVICES=0,1,2,3 GPUS=4 sh tools/slurm_train.sh ${PARTITION} ${JOB_NAME} "
        "config1.py",
        {},
    ),
    (
        "CUDA_VISIBLE_DEVICES=4,5,6,7 GPUS=4 sh tools/slurm_train.sh ${PARTITION} ${JOB_NAME} "
        "config2.py",
        {},
    ),
    (
        "CUDA_VISIBLE_DEVICES=0,1,2,3 GPUS=4 sh tools/slurm_train.sh ${PARTITION} ${JOB_NAME} "
        "config1.py --work-dir tmp_work_dir_1 --cfg-options env_cfg.dist_cfg.port=29500",
        {},
    ),
    (
        "CUDA_VISIBLE_DEVICES=4,5,6,7 GPUS=4 sh tools/slurm_train.sh ${PARTITION} ${JOB_NAME} "
        "config2.py --work-dir tmp_work_dir_2 --cfg-options env_cfg.dist_cfg.port=29501",
        {},
    ),
)
"""(command as printed, values of its placeholders) in the tutorial's order."""

PLACES = {
    "CONFIG_FILE": MAE,
    "CONFIG": MAE,
    "PARTITION": "Dummy",
    "JOB_NAME": "Test_job",
    "MASTER_PORT": "29555",
    "MASTER_ADDR": "10.1.1.1",
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_imagenet(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def folder(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the commands run, with the pictures, and the tutorial's two configs."""
    (tmp_path / "data").symlink_to(pictures / "data")
    for name in ("tools", "configs"):
        (tmp_path / name).symlink_to(SURFACE / name)
    for number, port in ((1, 29500), (2, 29501)):
        text = f"_base_ = '{MAE}'\nenv_cfg = dict(dist_cfg=dict(backend='nccl', port={port}))\n"
        (tmp_path / f"config{number}.py").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(main, "write_report", lambda work_dir: work_dir)
    monkeypatch.setattr(mae, "ARCHITECTURES", mae.ARCHITECTURES | TINY)
    return tmp_path


class Shown(NamedTuple):
    """A command that a script would have started."""

    program: str
    words: list[str]
    devices: str | None
    environ: Mapping[str, str]


def started(script: str, places: Mapping[str, str], folder: Path) -> Shown:
    """Run a command of the tutorial under sh; return what it would have started."""
    stubs = folder / "stubs"
    stubs.mkdir(exist_ok=True)
    for name in ("python", "srun"):
        lines = ["#!/bin/sh", f"echo {name}", "env > env.txt", 'printf "%s\\n" "$@"']
        (stubs / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        (stubs / name).chmod(0o755)
    done = subprocess.run(
        ["sh", "-euc", script],
        cwd=folder,
        env={"PATH": f"{stubs}:{os.environ['PATH']}", **PLACES, **places},
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    environ = dict(
        line.split("=", 1)
        for line in (folder / "env.txt").read_text().splitlines()
        if "=" in line and line.split("=", 1)[0] not in PLACES
    ) | {k: v for k, v in PLACES.items() if f"{k}=" in script}
    if "PORT=${MASTER_PORT}" in script:
        environ["PORT"] = PLACES["MASTER_PORT"]
    program, *words = done.stdout.splitlines()
    return Shown(program, words, environ.get("CUDA_VISIBLE_DEVICES"), environ)


def ranks_of(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> tuple[int, list[str], bool]:
    """Return how many ranks a command of dist_train.sh starts, with which words, and if alone."""
    found: list[Any] = []

    def take(ranks: int, arguments: list[str], module: str, alone: bool) -> int:
        found.append((ranks, arguments, alone))
        return 0

    monkeypatch.setattr(torchrun, "run_ranks", take)
    assert shown.words[:3] == ["-P", "-m", launch.MODULE]
    assert launch.launch(shown.words[3:], shown.environ) == 0
    return found[0]  # type: ignore[no-any-return]


def test_every_command_of_the_tutorial_starts_what_it_says(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a plain sh; the numbers of processes, hosts and ports are those of the words."""
    shown = [started(script, places, folder) for script, places in TUTORIAL]
    assert [s.program for s in shown] == ["python"] * 4 + ["srun"] * 2 + ["python"] * 4 + [
        "srun"
    ] * 4
    assert shown[0].words == shown[1].words == ["tools/train.py", MAE]
    assert shown[1].devices == "-1"
    plain = ["1", "0", "127.0.0.1", "29500", MAE, "--launcher", "pytorch"]
    assert ranks_of(shown[2], monkeypatch) == (2, plain, True)
    assert ranks_of(shown[3], monkeypatch) == (8, plain, True)
    for number, node in ((6, "0"), (7, "1")):
        ranks, words, alone = ranks_of(shown[number], monkeypatch)
        assert (ranks, alone, words[:4]) == (8, False, ["2", node, "10.1.1.1", "29555"])
    for number, work_dir in ((8, "tmp_work_dir_1"), (9, "tmp_work_dir_2")):
        ranks, words, alone = ranks_of(shown[number], monkeypatch)
        assert (ranks, alone, words[-2:]) == (4, True, ["--work-dir", work_dir])
        assert shown[number].devices == ("0,1,2,3", "4,5,6,7")[number - 8]
    assert_srun(shown[4], 16, 4, "--quotatype=auto")
    assert_srun(shown[5], 8, 8)
    for number in range(10, 14):
        assert_srun(shown[number], 4, 4)
        config = "config1.py" if number % 2 == 0 else "config2.py"
        assert config in shown[number].words


def assert_srun(shown: Shown, tasks: int, each: int, *more: str) -> None:
    words = shown.words
    split = words.index("-u") - 1
    own, command = words[:split], words[split:]
    assert own == [
        *("-p", "Dummy", "--job-name=Test_job", f"--gres=gpu:{each}", f"--ntasks={tasks}"),
        *(f"--ntasks-per-node={each}", "--cpus-per-task=5", "--kill-on-bad-exit=1", *more),
    ]
    assert command[:3] == ["python", "-u", "tools/train.py"]
    assert command[-1] == "--launcher=slurm"


def test_both_tutorials_print_these_commands() -> None:
    for name in ("mmselfsup.md", "mmselfsup_zh.md"):
        text = (SURFACE.parents[1] / "docs" / name).read_text(encoding="utf-8")
        printed = {line.removesuffix(" [optional arguments]") for line in text.splitlines()}
        assert {line for script, _ in TUTORIAL for line in script.splitlines()} <= printed


def small(*words: str) -> list[str]:
    return [*words, "--cfg-options", *SMALL, "train_dataloader.batch_size=8"]


def test_a_run_and_its_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The work directory holds what mmengine's does; the files can be read back."""
    assert train(small(MAE), {}) == 0
    said = capsys.readouterr().out
    assert_says(said, "no effect", "env_cfg.mp_cfg", "4096", "batch 4096 (recipe) -> 8")
    work_dir = folder / "work_dirs" / "selfsup" / NAME
    assert (work_dir / "last_checkpoint").read_text() == str(work_dir / "epoch_2.pth")
    assert read_config(work_dir / f"{NAME}.py")["train_cfg"]["max_epochs"] == 2
    (log,) = work_dir.glob("2*_*")
    assert (log / "vis_data" / "config.py").read_text() == (work_dir / f"{NAME}.py").read_text()
    assert_says((log / f"{log.name}.log").read_text(), "Epoch(train) [2][2/2]", "data_time:")
    rows = [
        json.loads(line) for line in (log / "vis_data" / "scalars.json").read_text().splitlines()
    ]
    assert [row["epoch"] for row in rows] == [1, 2]
    keys = {"lr", "data_time", "loss", "time", "epoch", "iter", "memory", "step", "grad_norm"}
    assert set(rows[0]) == keys
    assert [row["loss"] for row in rows] == [row["loss"] for row in read_metrics(work_dir / "run")]
    content = torch.load(work_dir / "epoch_2.pth", weights_only=True)
    assert (content["meta"]["epoch"], content["meta"]["iter"]) == (2, 4)
    assert_optimizer_fits(content)
    objective = RunDirectory(work_dir / "run").read_config().config
    built = objective.objective.build(objective.model)
    assert load_weights(built, work_dir / "epoch_2.pth").complete
    stored = read_checkpoint(work_dir / "run", 4)
    own = {n.removeprefix("objective."): t for n, t in stored.items() if n.startswith("objective.")}
    assert_bit_equal(dict(built.state_dict()), own)


def assert_optimizer_fits(content: Mapping[str, Any]) -> None:
    """The names are the reference's, and torch's AdamW takes the optimizer."""
    names = list(content["state_dict"])
    assert names[:4] == [
        *("backbone.cls_token", "backbone.pos_embed"),
        *("backbone.patch_embed.projection.weight", "backbone.patch_embed.projection.bias"),
    ]
    layer = {
        *("ln1.weight", "attn.qkv.weight", "attn.proj.bias", "ln2.bias"),
        *("ffn.layers.0.0.weight", "ffn.layers.1.weight"),
    }
    assert {f"backbone.layers.0.{name}" for name in layer} < set(names)
    assert {f"neck.decoder_blocks.0.{name}" for name in layer} < set(names)
    assert {"backbone.ln1.weight", "neck.ln1.bias", "neck.mask_token", "neck.decoder_pred.bias"} < (
        set(names)
    )
    assert content["state_dict"][names[2]].shape == (16, 3, 16, 16)
    saved = content["optimizer"]
    groups = [
        {"params": [torch.nn.Parameter(content["state_dict"][group["name"]])]}
        for group in saved["param_groups"]
    ]
    optimizer = torch.optim.AdamW(groups)
    optimizer.load_state_dict(saved)
    decays = {group["name"]: group["weight_decay"] for group in optimizer.param_groups}
    assert decays["backbone.layers.0.attn.qkv.weight"] == 0.05
    exempt = ("backbone.ln1.weight", "neck.mask_token", "backbone.cls_token", "neck.ln1.bias")
    assert {decays[name] for name in exempt} == {0.0}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter in optimizer.state:
                assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape


def test_a_run_goes_on_to_the_bit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the newest checkpoint, from the file of an epoch, and not without being asked."""
    words = small(MAE)
    assert train([*words, "optim_wrapper.accumulative_counts=2"], {}) == 0
    work_dir = folder / "work_dirs" / "selfsup" / NAME
    whole = torch.load(work_dir / "epoch_2.pth", weights_only=True)["state_dict"]
    (work_dir / "epoch_2.pth").unlink()
    go_on = [*words, "optim_wrapper.accumulative_counts=2", "--work-dir", str(work_dir)]
    assert train([*go_on, "--resume", str(work_dir / "epoch_1.pth")], {}) == 0
    assert_says(capsys.readouterr().out, "resumed after step 1")
    again = torch.load(work_dir / "epoch_2.pth", weights_only=True)["state_dict"]
    assert_bit_equal(whole, again)
    shutil.rmtree(work_dir / "run" / "checkpoints" / "step_00000001")
    with refuses("--resume", "step 1"):
        train([*go_on, "--resume", str(work_dir / "epoch_1.pth")], {})
    shutil.rmtree(work_dir / "run" / "checkpoints")
    with refuses("load_from", "--work-dir"):
        train(go_on, {})
    other = ["--work-dir", "weights", "resume=False", f"load_from={work_dir / 'epoch_2.pth'}"]
    start = [other[0], other[1], "--cfg-options", *words[2:], *other[2:], "train_cfg.max_epochs=1"]
    assert train([MAE, *start, "optim_wrapper.optimizer.lr=0"], {}) == 0
    assert_says(capsys.readouterr().out, "given on the command line")
    kept = torch.load(folder / "weights" / "epoch_1.pth", weights_only=True)["state_dict"]
    assert_bit_equal(whole, kept)


def test_what_is_refused(folder: Path) -> None:
    """One line, with the name that was meant."""
    for option, *fragments in (
        ("optimizer.lr=1", "optim_wrapper.optimizer.lr"),
        ("train_dataloader.dataset.pipline=1", "pipeline"),
        ("optim_wrapper.optimizer.lrr=1", "lr"),
        ("train_pipeline.1.size=1", "train_dataloader.dataset.pipeline.1.size"),
        ("optim_wrapper.paramwise_cfg.custom_keys.ln.decay_mult=0.5", "0 or 0.0", "0.5"),
        ("default_hooks.checkpoint.save_best=auto", "default_hooks.checkpoint.save_best"),
        ("model.backbone.drop_rate=0.1", "model.backbone.drop_rate"),
        ("model.head.loss.type=PixelReconstructionLoss", "MAEReconstructionLoss"),
        ("model.type=DenseCL", "DenseCL"),
        ("model.type=MEA", "MAE"),
        ("model.neck.embed_dim=32", "model.neck.embed_dim=16"),
        ("model.backbone.init_cfg.typ=Pretrained", "model.backbone.init_cfg.typ"),
        ("model.pretrained=https://a.b/c.pth", "nothing is downloaded"),
        ("env_cfg.dist_cfg.port=0", "env_cfg.dist_cfg.port"),
        ("train_dataloader.dataset.ann_file=meta/none.txt", "meta/none.txt"),
        ("train_dataloader.batch_size=0", "train_dataloader.batch_size"),
        ("model.backbone.patch_size=15", "model.neck.patch_size=15"),
    ):
        refused(MAE, option, *fragments)
    (folder / "old.py").write_text("model = dict(type='MAE')\nrunner = dict(max_epochs=1)\n")
    refused("old.py", "work_dir=a", "0.x", "1.x")
    with refuses("DenseCL"):
        train(["configs/selfsup/densecl/densecl_resnet50_8xb32-coslr-200e_in1k.py"], {})
    with refuses("mae_vit-base-p16_8xb512-coslr-400e_in1k.py"):
        train(["configs/selfsup/mae/mae_vit-base-p16_8xb512-coslr-40e_in1k.py"], {})
    with refuses("before the flags"):
        train(["--resume", MAE], {})
    with refuses("--launcher", "pytorch"):
        train([MAE], {"WORLD_SIZE": "2", "RANK": "0"})
    with refuses("dist_train.sh"):
        train([MAE, "--launcher", "pytorch"], {})


def refused(config: str, option: str, *fragments: str) -> None:
    with pytest.raises(UserError) as caught:
        train([*small(config), option] if config == MAE else [config, "--cfg-options", option], {})
    assert_says(in_keys(str(caught.value)), *fragments)


def test_other_loops_lists_and_averages(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By iterations; all images below a folder; a moving average; a batch of record."""
    (folder / "own.py").write_text(
        f"_base_ = '{MAE}'\n"
        "train_cfg = dict(_delete_=True, by_epoch=False, max_iters=3)\n"
        "param_scheduler = [dict(type='MultiStepLR', by_epoch=False, milestones=[2], gamma=0.5)]\n"
        "default_hooks = dict(checkpoint=dict(by_epoch=False, interval=2, max_keep_ckpts=1),\n"
        "                     logger=dict(interval=1))\n"
        "custom_hooks = [dict(type='EMAHook', momentum=0.5)]\n"
        "optim_wrapper = dict(clip_grad=dict(max_norm=0.01))\n"
        "auto_scale_lr = dict(base_batch_size=16)\n"
        "train_dataloader = dict(dataset=dict(type='mmcls.CustomDataset'))\n"
    )
    words = [w for w in SMALL if not w.startswith("train_cfg")]
    words += ["train_dataloader.dataset.ann_file=", "train_dataloader.dataset.data_root=data"]
    words += ["train_dataloader.dataset.data_prefix.img_path=", "train_dataloader.batch_size=8"]
    assert train(["own.py", "--cfg-options", *words], {}) == 0
    assert_says(
        capsys.readouterr().out,
        f"{PICTURES} images without labels",
        "from auto_scale_lr.base_batch_size",
    )
    work_dir = folder / "work_dirs" / "own"
    rows = read_metrics(work_dir / "run")
    assert [row["lr"] for row in rows] == [0.0012, 0.0012, 0.0006]
    assert [path.name for path in work_dir.glob("*.pth")] == ["iter_3.pth"]
    content = torch.load(work_dir / "iter_3.pth", weights_only=True)
    stored = read_checkpoint(work_dir / "run", 3)
    assert torch.equal(
        content["state_dict"]["neck.decoder_pred.weight"], stored["ema.decoder.head.weight"]
    )
    assert torch.equal(
        content["ema_state_dict"]["module.neck.decoder_pred.weight"],
        stored["objective.decoder.head.weight"],
    )


@pytest.mark.long
def test_weights_of_a_backbone_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An extracted backbone, or a whole model, of which the decoder is left to its own values."""
    assert train([*small(MAE), "train_cfg.max_epochs=1", "--work-dir", "first"], {}) == 0
    whole = torch.load(folder / "first" / "epoch_1.pth", weights_only=True)["state_dict"]
    own = {n.removeprefix("backbone."): t for n, t in whole.items() if n.startswith("backbone.")}
    torch.save({"state_dict": own}, folder / "backbone.pth")
    (folder / "own.py").write_text(
        f"_base_ = '{MAE}'\n"
        "model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='backbone.pth')))\n"
    )
    words = [*small("own.py"), "train_cfg.max_epochs=1", "optim_wrapper.optimizer.lr=0"]
    assert train([*words, "randomness.seed=3", "--work-dir", "second"], {}) == 0
    assert_says(capsys.readouterr().out, "mmselfsup names")
    second = torch.load(folder / "second" / "epoch_1.pth", weights_only=True)["state_dict"]
    assert_bit_equal(own, {n: second[f"backbone.{n}"] for n in own})
    assert not torch.equal(whole["neck.decoder_pred.weight"], second["neck.decoder_pred.weight"])


@pytest.mark.long
def test_a_job_of_slurm(folder: Path) -> None:
    """Two tasks by a stand-in for srun, which meet at the config's port."""
    (folder / "tiny.py").write_text(f"_base_ = '{MAE}'\n{ARCH}", encoding="utf-8")
    stub = folder / "srun"
    stub.write_text(
        "#!/bin/sh\n"
        'while [ "$1" != python ]; do shift; done\n'
        "export SLURM_NTASKS=2 SLURM_NODELIST=127.0.0.1 SLURM_TASKS_PER_NODE=2\n"
        'SLURM_PROCID=1 SLURM_LOCALID=1 "$@" & other=$!\n'
        'SLURM_PROCID=0 SLURM_LOCALID=0 "$@" && wait $other\n'
    )
    stub.chmod(0o755)
    (folder / "python").symlink_to(sys.executable)
    words = [w for w in SMALL if "arch" not in w] + [f"env_cfg.dist_cfg.port={free_port()}"]
    done = subprocess.run(
        ["sh", "tools/slurm_train.sh", "Dummy", "Test_job", "tiny.py", "--cfg-options", *words],
        env={
            **os.environ,
            **{"PATH": f"{folder}:{os.environ['PATH']}", "GPUS": "2", "OMP_NUM_THREADS": "1"},
            **{"CUDA_VISIBLE_DEVICES": "-1", "PYTHONPATH": os.pathsep.join(sys.path)},
        },
        timeout=120,
        check=False,
    )
    assert done.returncode == 0
    assert (folder / "work_dirs" / "tiny" / "epoch_2.pth").is_file()


ARCH = (
    "model = dict(backbone=dict(arch=dict(_delete_=True, embed_dims=16, num_layers=1,\n"
    "    num_heads=2, feedforward_channels=64)))\n"
)


@pytest.mark.long
def test_two_processes_and_two_hosts_train_alike(folder: Path) -> None:
    """On one host, on two by PORT, and on two by the config's port, as one process does."""
    (folder / "tiny.py").write_text(f"_base_ = '{MAE}'\n{ARCH}", encoding="utf-8")
    words = [
        "--cfg-options",
        *(w for w in SMALL if "arch" not in w),
        "default_hooks.logger.interval=1",
    ]

    def start(work_dir: str, gpus: str, batch: int, *more: str, **environ: str) -> Any:
        return subprocess.Popen(
            [
                *("sh", "tools/dist_train.sh", "tiny.py", gpus, "--work-dir", work_dir),
                *(*words, f"train_dataloader.batch_size={batch}", *more),
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "-1", **environ},
        )

    one, two = start("one", "1", 8), start("two", "2", 4)
    assert one.wait(120) == two.wait(120) == 0
    for name, more in (("env", ()), ("key", (f"env_cfg.dist_cfg.port={free_port()}",))):
        meeting = {"NNODES": "2", "MASTER_ADDR": "127.0.0.1", "PORT": str(free_port())}
        hosts = [start(name, "1", 4, *more, NODE_RANK=str(i), **meeting) for i in range(2)]
        assert [host.wait(120) for host in hosts] == [0, 0]
    losses = [
        [row["loss"] for row in read_metrics(folder / name / "run")]
        for name in ("one", "two", "env", "key")
    ]
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], rel=1e-5)
