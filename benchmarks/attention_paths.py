"""The paths of attention on one CPU thread, by shape, and what each makes of a training step.

    python benchmarks/attention_paths.py [--repeats 5] [--shapes SHAPE,...] [--no-steps]
                                         [--no-shapes]

The first table has the CPU milliseconds of attention's forward and backward pass in each type by
each path, for sequences of one length and heads of one size; *rule* is what
`quadriga.models.parts.attention.attention_path` chooses, and is marked where another path is more
than a tenth faster. A shape is ``LENGTHxHEADSxSIZE``.

The second table has the CPU milliseconds of a training step (forward and backward pass of a masked
autoencoder in bfloat16) by each path, and of Hugging Face's ViTMAEForPreTraining of the same sizes
where transformers is installed. All are medians of repeats that take turns.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, get_args

import torch

from quadriga import randomness
from quadriga.contracts import Batch
from quadriga.engine.build import build_objective
from quadriga.engine.run_config import RunConfig
from quadriga.models.parts import attention
from quadriga.models.parts.attention import AttentionPath, attention_path
from quadriga.models.vit import ViTConfig
from quadriga.recipes.mae import mae_cifar10, mae_vit_small

PATHS: tuple[AttentionPath, ...] = get_args(AttentionPath)
LENGTHS = (17, 50, 65, 197, 257, 512, 1024)
SHAPES = [
    *(f"{length}x{heads}x64" for heads in (3, 6, 12) for length in LENGTHS),
    *(f"{length}x{heads}x32" for heads in (3, 12) for length in LENGTHS),
    *(f"{length}x4x{size}" for size in (16, 24) for length in (65, 197, 257)),
]
VALUES = 2**20
"""Values of all queries of a shape, about; for longer sequences fewer."""
Work = Callable[[], object]


def main() -> None:
    """Read the command line, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--no-shapes", action="store_true")
    parser.add_argument("--no-steps", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}")
    if not options.no_shapes:
        print(
            f"{'shape':<14}{'type':<10}{'samples':>8}", *(f"{path:>17}" for path in PATHS), " rule"
        )
        for dtype in (torch.bfloat16, torch.float32):
            for shape in options.shapes.split(","):
                length, heads, size = map(int, shape.split("x"))
                print_shape(length, heads, size, dtype, options.repeats)
    if not options.no_steps:
        print_steps("MAE ViT-Ti, 32 px", mae_cifar10(), 128, options.repeats)
        print_steps("MAE ViT-S, 224 px", mae_vit_small(), 16, options.repeats)


def milliseconds(sides: Mapping[str, Work], repeats: int) -> dict[str, float]:
    """Return the median CPU milliseconds of each side, after one call that is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name, work in sides.items():
            began = time.process_time()
            work()
            if repeat:
                taken[name].append(1e3 * (time.process_time() - began))
    return {name: statistics.median(each) for name, each in taken.items()}


def by(path: AttentionPath, work: Work) -> Work:
    """Return `work` with attention computed by `path`, whatever the rule says."""

    def forced() -> object:
        rule, attention.attention_path = attention.attention_path, lambda *_: path
        try:
            return work()
        finally:
            attention.attention_path = rule

    return forced


def print_shape(length: int, heads: int, size: int, dtype: torch.dtype, repeats: int) -> None:
    """Print a row of the first table."""
    samples = max(1, round(VALUES / (length * heads * size) * min(1.0, 256 / length)))
    source = randomness.generator(0, "attention paths")
    fused = torch.empty(samples, length, 3, heads, size).normal_(generator=source)
    fused = fused.to(dtype).requires_grad_()
    gradient = torch.empty(samples, length, heads * size).normal_(generator=source).to(dtype)

    def attend() -> None:
        query, key, value = fused.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = attention.attention(query, key, value).transpose(1, 2)
        torch.autograd.grad(mixed.reshape(samples, length, heads * size), fused, gradient)

    paths = [p for p in PATHS if dtype != torch.float32 or p != "fused in float32"]
    taken = milliseconds({path: by(path, attend) for path in paths}, repeats)
    rule = attention_path("cpu", dtype, length, size)
    mark = " *" if 1.1 * min(taken.values()) < taken[rule] else ""
    cells = [f"{taken[path]:>17.1f}" if path in taken else f"{'-':>17}" for path in PATHS]
    shape = f"{length}x{heads}x{size}"
    print(f"{shape:<14}{str(dtype)[6:]:<10}{samples:>8}", *cells, f" {rule}{mark}", flush=True)


def print_steps(what: str, config: RunConfig, batch: int, repeats: int) -> None:
    """Print a part of the second table."""
    example = config.views.build("train").example(batch, torch.device("cpu"))
    sides: dict[str, Work] = {
        f"ours, {path}": by(path, functools.partial(our_step, build(config), example))
        for path in PATHS
    }
    sides["ours, by the rule"] = functools.partial(our_step, build(config), example)
    if importlib.util.find_spec("transformers") is not None:
        for name in ("sdpa", "eager"):
            theirs = build_theirs(config, name)
            sides[f"transformers, {name}"] = functools.partial(their_step, theirs, example)
    print(f"\n{what}, batch {batch}, bfloat16: CPU ms of forward and backward pass")
    for name, taken in milliseconds(sides, repeats).items():
        print(f"{name:<26}{taken:>8.0f}", flush=True)


def build(config: RunConfig) -> torch.nn.Module:
    """Return our objective, for training."""
    return build_objective(config, torch.device("cpu"), config.seed).train()


def our_step(objective: torch.nn.Module, example: Batch) -> None:
    """Compute the gradients of a step."""
    objective.zero_grad()
    with randomness.micro_batch(0, 0, 0, 0):
        with torch.autocast("cpu", torch.bfloat16):
            loss = objective(example).value
        loss.backward()


def build_theirs(config: RunConfig, implementation: str) -> torch.nn.Module:
    """Return Hugging Face's model of the same sizes, for training."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    model, method = config.model, config.objective
    assert isinstance(model, ViTConfig)
    sizes: dict[str, Any] = {
        name: getattr(method, name) for name in ("decoder_width", "decoder_depth", "decoder_heads")
    }
    theirs: torch.nn.Module = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=model.width,
            num_hidden_layers=model.depth,
            num_attention_heads=model.heads,
            intermediate_size=4 * model.width,
            image_size=model.image_px,
            patch_size=model.patch_px,
            decoder_hidden_size=sizes["decoder_width"],
            decoder_num_hidden_layers=sizes["decoder_depth"],
            decoder_num_attention_heads=sizes["decoder_heads"],
            decoder_intermediate_size=4 * sizes["decoder_width"],
            attn_implementation=implementation,
        )
    )
    return theirs.train()


def their_step(model: torch.nn.Module, example: Batch) -> None:
    """Compute the gradients of a step."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(pixel_values=example["image"]).loss
    loss.backward()


if __name__ == "__main__":
    main()
