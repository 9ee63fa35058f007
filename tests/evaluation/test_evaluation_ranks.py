"""Two real processes find what one finds. Started as a script, this file is one of them."""

import os
import sys
from pathlib import Path

import evaluation_fakes as fakes

from quadriga.distributed.environment import SINGLE
from quadriga.distributed.process_group import process_group
from quadriga.evaluation.knn import KNNConfig
from quadriga.evaluation.linear_probe import LinearProbeConfig
from quadriga.evaluation.reconstruction import ReconstructionConfig

CONFIGS = (
    KNNConfig(neighbours=5),
    LinearProbeConfig(epochs=2, batch_size=16),
    ReconstructionConfig(images=2),
)


def found_by(env, output):
    context = fakes.context_of(Path(output), env=env)
    return repr([config.build().run(context) for config in CONFIGS])


def test_ranks_find_what_one_process_finds(tmp_path):
    from ranks import run_ranks

    expected = found_by(SINGLE, tmp_path)
    for done in run_ranks([sys.executable, __file__, str(tmp_path)], 2):
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == expected


if __name__ == "__main__":
    with process_group("cpu", os.environ) as rank_env:
        print(found_by(rank_env, sys.argv[1]))
