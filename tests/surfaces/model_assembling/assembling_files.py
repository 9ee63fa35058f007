"""Tiny images and words for the documented model-assembling command."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog", "fox")
TRAIN, TEST = 24, 9
"""Samples of the splits."""


def make_images(root: Path) -> Path:
    """Write train/CLASS and val/CLASS; return their folder."""
    source = np.random.default_rng(0)
    for split, count in (("train", TRAIN), ("val", TEST)):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count // len(CLASSES)):
                pixels = source.integers(0, 128, (32, 32, 3), dtype=np.uint8)
                pixels[:, :, label] += 100
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def small(images: Path, *more: str) -> list[str]:
    """Return the words that make any command here a matter of a second; they come last."""
    return [
        *("--input-size", "32", "--data-path", str(images), "--device", "cpu"),
        *("--num_workers", "0", "--override", "log.loggers=[]", *more),
    ]


PT = """
PHASE=PT
MODEL=tiny
NGPUS=8

args=(
--phase ${PHASE} 
--model deit_${MODEL}_patch16_224   # for base, large
# --model vit_${MODEL}_patch14_224   # for huge
--divided_depths 1 1 1 1 
--output_dir ./log_dir/${PHASE}_${MODEL}

--batch_size 256
--epochs 300 
--drop-path 0 
)

python -m torch.distributed.launch --nproc_per_node=${NGPUS} --master_port=23346 \
--use_env main.py "${args[@]}"
"""
"""The documented commands as they are printed, with another model and depth."""

_MT = """
PHASE=MT
MODEL=tiny DEPTH=8
NGPUS=8

args=(
--phase ${PHASE} 
--model deit_${MODEL}_patch16_224   # for base, large
# --model vit_${MODEL}_patch14_224   # for huge
--meta_model ./log_dir/PT_${MODEL}/finished_checkpoint.pth  # loading the pre-trained meta model

--batch_size 128
--update_freq 2
--epochs 100 
--drop-path 0.1
)

# Modular training each target module. Each line can be executed in parallel.
"""

MT = _MT + "\n".join(
    "python -m torch.distributed.launch --nproc_per_node=${NGPUS} --master_port=23346 --use_env "
    f'main.py "${{args[@]}}" --idx {index} --divided_depths '
    + " ".join("$((DEPTH/4))" if place == index else "1" for place in range(4))
    + f" --output_dir ./log_dir/${{PHASE}}_${{MODEL}}_{index}"
    for index in range(4)
)

FT = r"""
PHASE=FT
MODEL=tiny DEPTH=8
NGPUS=8

args=(
--phase ${PHASE} 
--model deit_${MODEL}_patch16_224   # for base, large
# --model vit_${MODEL}_patch14_224   # for huge
--incubation_models ./log_dir/MT_${MODEL}_*/finished_checkpoint.pth  # for assembling
--divided_depths $((DEPTH/4)) $((DEPTH/4)) $((DEPTH/4)) $((DEPTH/4)) \
--output_dir ./log_dir/${PHASE}_${MODEL}

--batch_size 64
--update_freq 4
--epochs 100 
--warmup-epochs 0
--clip-grad 1
--drop-path 0.1  # for base
# --drop-path 0.5  # for large
# --drop-path 0.6  # for huge
)

torchrun \
--nnodes=$NODES \
--nproc_per_node=$NGPUS \
--rdzv_backend=c10d \
--rdzv_endpoint=$MASTER_ADDR:60900 \
main.py "${args[@]}"
"""


def commands(script: str, folder: Path) -> list[list[str]]:
    """Return the arguments of `main.py` of each command of a bash script, run in a folder."""
    shown = 'show() { printf "%s\\n" "$@" "<end>"; }'
    shown += '\npython() { show "$@"; }\ntorchrun() { show "$@"; }'
    done = subprocess.run(
        ["bash", "-euc", f"NODES=1 MASTER_ADDR=127.0.0.1\n{shown}\n{script}"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    parts = [part.strip().split("\n") for part in done.stdout.split("<end>")]
    return [part[part.index("main.py") + 1 :] for part in parts if "main.py" in part]
