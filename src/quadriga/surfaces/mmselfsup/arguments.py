"""The command line of ``tools/train.py``, the file of its config, and its work directory."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quadriga.errors import UserError, nearest
from quadriga.surfaces.command import Parser
from quadriga.surfaces.mmselfsup.methods import FOLDERS

SHIPPED = Path(__file__).with_name("configs")
"""The folder of the configs that come with this package: ``selfsup/mae/...``."""

AUTO = "auto"
_ENDINGS = (".py", ".json", ".yaml", ".yml")

EXAMPLES = """examples:
  python tools/train.py configs/selfsup/mae/mae_vit-base-p16_8xb512-coslr-400e_in1k.py
  CUDA_VISIBLE_DEVICES=-1 python tools/train.py config1.py --work-dir tmp_work_dir_1
  sh tools/dist_train.sh configs/selfsup/mae/mae_vit-base-p16_8xb512-coslr-400e_in1k.py 8 --amp
  sh tools/slurm_train.sh PARTITION JOB_NAME config1.py --cfg-options env_cfg.dist_cfg.port=29501

The page docs/mmselfsup_keys.md tells what becomes of each key of a config."""


def parser() -> Parser:
    """Return the parser of the command."""
    made = Parser("train.py", "Pre-train on images by a config of mmselfsup 1.x.", EXAMPLES)
    made.add_argument("config", nargs="?", help="the config: a .py, .json or .yaml file")
    made.add_argument(
        "--work-dir", "--work_dir", metavar="DIR", help="where checkpoints and logs are saved"
    )
    made.add_argument(
        "--resume",
        nargs="?",
        const=AUTO,
        metavar="CHECKPOINT",
        help="go on from the newest checkpoint of the work directory, or from the one given",
    )
    made.add_argument("--amp", action="store_true", help="mixed precision; bfloat16 on a CPU")
    made.add_argument(
        "--cfg-options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="values of the config, such as randomness.seed=0; [a,b] is a list, '(a,b)' a tuple",
    )
    made.add_argument(
        "--launcher",
        choices=("none", "pytorch", "slurm", "mpi"),
        default=None,
        help="what has started the processes (none)",
    )
    made.add_argument("--local_rank", "--local-rank", type=int, default=0, help="accepted")
    return made


def read_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Read the command line.

    Raises:
        UserError: A flag is unknown or wrong, or there is no config.
    """
    flags = parser().parse_args(list(words))
    if flags.config is None:
        taken = [word for word in (flags.resume or "", *flags.cfg_options) if _is_config(word)]
        hint = f"write {taken[0]} before the flags" if taken else "name one; see train.py --help"
        raise UserError(f"train.py needs a config, but none is given; {hint}")
    return flags


def _is_config(word: str) -> bool:
    return word.endswith(_ENDINGS) and "=" not in word


def config_file(typed: str) -> Path:
    """Return the file of a config; ``configs/selfsup/...`` that is not here is this package's.

    Raises:
        UserError: There is no such file.
    """
    path = Path(typed).expanduser()
    if path.is_file():
        return path
    below = path.parts[path.parts.index("configs") + 1 :] if "configs" in path.parts else ()
    shipped = SHIPPED.joinpath(*below)
    if below and shipped.is_file():
        return shipped
    method = next((FOLDERS[part] for part in below[:-1] if part in FOLDERS), None)
    if method is not None:
        raise UserError(f"{typed} is a config of {method}, which is not built here yet")
    known = {file.stem: file for file in SHIPPED.glob("selfsup/*/*.py")}
    near = nearest(path.stem, known)
    hint = f"did you mean configs/{known[near].relative_to(SHIPPED)}?" if near else "name one"
    raise UserError(f"{typed} must be a config, but there is no such file; {hint}")


def shipped_twin(path: Path) -> Path | None:
    """Return this package's config of the same name; None if there is none."""
    return next(iter(SHIPPED.glob(f"selfsup/*/{path.stem}.py")), None)


def default_work_dir(typed: str) -> Path:
    """Return ``work_dirs/FOLDER/NAME`` for a config.

    FOLDER is the one below ``configs``, or else the second of the path as it was typed; a path
    without either has none: ``work_dirs/NAME``.
    """
    path = Path(os.path.normpath(typed))
    folders = path.parts[:-1]
    if "configs" in folders:
        folders = folders[folders.index("configs") :]
    elif path.is_absolute():
        folders = ()
    return Path("work_dirs", *folders[1:2], path.stem)


def work_dir_of(flags: argparse.Namespace, config: Mapping[str, Any]) -> Path:
    """Return the work directory: the flag's, the config's, or `default_work_dir`."""
    given = flags.work_dir or config.get("work_dir")
    return Path(given).expanduser() if given else default_work_dir(flags.config)
