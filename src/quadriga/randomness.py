"""The keyed generators: every random draw in the package comes from here.

Nothing random is state. A draw is a pure function of a 64-bit *key*, and a key is folded from
what the draw belongs to: ``fold(seed, "augment", epoch, index)`` belongs to one sample,
``fold(seed, "initialise", name)`` to one tensor, whose element ``i`` has draw ``i``. The
generator is SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators",
OOPSLA 2014) used as a counter-based hash: draw ``i`` of key ``k`` is ``mix(k + (i+1) * GAMMA)``.
The same numbers come out in plain Python, in numpy and in torch, on any device.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

Item = TypeVar("Item")

_MASK = 0xFFFFFFFFFFFFFFFF
_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def mix(value: int) -> int:
    """Hash a 64-bit integer to a 64-bit integer (the SplitMix64 finaliser, a bijection)."""
    value &= _MASK
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK
    return value ^ (value >> 31)


def fold(*parts: int | str) -> int:
    """Fold `parts`, which identify what a draw belongs to, into one 64-bit key; order matters.

    Args:
        *parts: Integers (any size, negative ones too) and names.

    Returns:
        A key in [0, 2**64).
    """
    key = 0
    for part in parts:
        if isinstance(part, str):
            part = _number_of(part)
        key = mix((key + _GAMMA) & _MASK ^ mix(part + _GAMMA))
    return key


@functools.lru_cache(maxsize=1024)
def _number_of(name: str) -> int:
    # Cached, since the same few names are folded several times for every sample.
    digest = hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


class Stream:
    """A sequence of scalar draws from one key, for augmentation and the like on the CPU."""

    def __init__(self, key: int) -> None:
        """Start at draw 0 of `key`."""
        self._key = key & _MASK
        self._count = 0

    def _next(self) -> int:
        self._count += 1
        return mix((self._key + self._count * _GAMMA) & _MASK)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Draw from [low, high) with 53 random bits."""
        return low + (high - low) * ((self._next() >> 11) * 2.0**-53)

    def integer(self, bound: int) -> int:
        """Draw an integer from [0, bound); the bias is below bound / 2**64."""
        if bound < 1:
            raise ValueError(f"bound must be at least 1, but is {bound}")
        return (self._next() * bound) >> 64

    def normal(self, mean: float = 0.0, deviation: float = 1.0) -> float:
        """Draw from a normal distribution (Box and Muller, 1958); uses two draws."""
        radius = math.sqrt(-2.0 * math.log(1.0 - self.uniform()))
        return mean + deviation * radius * math.cos(2.0 * math.pi * self.uniform())

    def choice(self, items: Sequence[Item]) -> Item:
        """Draw one of `items`, each with the same probability."""
        return items[self.integer(len(items))]


def bits_numpy(key: int, count: int, first: int = 0) -> npt.NDArray[np.uint64]:
    """Return uint64 (count,): the bits of draws `first` to ``first + count - 1`` of the key."""
    counters = np.arange(first + 1, first + count + 1, dtype=np.uint64) * np.uint64(_GAMMA)
    return _mix_numpy(counters + np.uint64(key & _MASK))


def shuffled(positions: npt.NDArray[np.int64], size: int, key: int) -> npt.NDArray[np.int64]:
    """Map positions to a keyed permutation of ``range(size)`` without building it.

    A balanced Feistel network over the next power of four, walked until the value falls inside
    (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002). Memory is that of
    `positions`, whatever `size` is.

    Args:
        positions: int64 positions, each in [0, size).
        size: Number of elements that are permuted.
        key: The permutation's key.

    Returns:
        int64 array shaped like `positions`: the element at each position of the permutation.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, but is {size}")
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    half_mask = np.uint64((1 << half_bits) - 1)
    shift = np.uint64(half_bits)
    round_keys = [np.uint64(fold(key, "feistel", r)) for r in range(6)]
    values = positions.astype(np.uint64).ravel()
    pending = np.arange(values.size)
    while pending.size:
        block = values[pending]
        left, right = block >> shift, block & half_mask
        for round_key in round_keys:
            left, right = right, left ^ (_mix_numpy(right + round_key) & half_mask)
        values[pending] = (left << shift) | right
        pending = pending[values[pending] >= size]
    return values.astype(np.int64).reshape(positions.shape)


def fold_numpy(key: int, values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Fold each value into `key`: the vector form of one more part of `fold`.

    Args:
        key: A key from `fold`.
        values: int64 values of any shape.

    Returns:
        int64 keys (the 64 bits reinterpreted as signed), shaped like `values`, so that
        ``fold_numpy(fold(a, b), [c])[0] & (2**64 - 1) == fold(a, b, c)``.
    """
    offset = np.uint64((key + _GAMMA) & _MASK)
    inner = _mix_numpy(values.astype(np.uint64) + np.uint64(_GAMMA))
    return _mix_numpy(offset ^ inner).view(np.int64)


def _mix_numpy(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(_MIX_1)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(_MIX_2)
    return values ^ (values >> np.uint64(31))


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _shift_right(values: Tensor, bits: int) -> Tensor:
    # torch has no logical shift of signed integers: shift, then clear the copies of the sign.
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _mix_tensor(values: Tensor) -> Tensor:
    values = (values ^ _shift_right(values, 30)) * _signed(_MIX_1)
    values = (values ^ _shift_right(values, 27)) * _signed(_MIX_2)
    return values ^ _shift_right(values, 31)


def element_uniform(
    key: int, first: int, count: int, device: torch.device
) -> Float[Tensor, " {count}"]:
    """Draw for `count` elements of a tensor from its key, from the row-major number `first` on.

    float64 in (0, 1), odd multiples of 2^-53; bit-equal on every device and in any division.
    """
    counters = torch.arange(first + 1, first + count + 1, dtype=torch.int64, device=device)
    bits = _mix_tensor(counters.mul_(_signed(_GAMMA)).add_(_signed(key)))
    return _shift_right(bits, 12).to(torch.float64).add_(0.5).mul_(2.0**-52)


def uniform_rows(
    keys: Int[Tensor, " batch"], salt: int | Int[Tensor, ""], count: int
) -> Float[Tensor, "batch {count}"]:
    """Draw `count` uniforms for each sample from its own key, on the keys' device.

    Args:
        keys: int64 key of each sample (`Batch["key"]`).
        salt: `fold("what the draws are for")`, so that two uses of one key do not meet; or
            `salt_tensor` of it.
        count: Draws per sample.

    Returns:
        float32 in [0, 1), shape (batch, count); bit-equal on every device and batch split.
    """
    base = _mix_tensor(keys ^ (salt if isinstance(salt, Tensor) else _signed(salt)))
    counter = torch.arange(1, count + 1, device=keys.device, dtype=torch.int64)
    bits = _mix_tensor(base[:, None] + counter[None, :] * _signed(_GAMMA))
    return _shift_right(bits, 40).to(torch.float32) * 2.0**-24


def pass_keys(keys: Int[Tensor, " batch"], name: str) -> Int[Tensor, " batch"]:
    """Return the samples' keys for one pass: one forward of an encoder on one view.

    Args:
        keys: int64 key of each sample (`Batch["key"]`).
        name: What the step calls the pass. Other passes over the same samples draw other numbers.
    """
    return _mix_tensor(keys ^ _signed(fold("pass", name)))


def salt_tensor(salt: int) -> Int[Tensor, ""]:
    """Return a salt as an int64 CPU scalar.

    A compiled layer takes a tensor as an input, where an int would be a constant of its code: all
    layers of one shape then share one compilation.
    """
    return torch.tensor(_signed(salt), dtype=torch.int64, device="cpu")


def generator(*parts: int | str) -> torch.Generator:
    """Return a new CPU generator keyed by `parts`, for draws made in a fixed order."""
    return torch.Generator().manual_seed(fold(*parts) >> 1)


class _Scope:
    """The key of the micro-batch that is being computed."""

    is_open = False
    value = 0


_scope = _Scope()


@contextlib.contextmanager
def micro_batch(seed: int, step: int, index: int, replica: int) -> Iterator[None]:
    """Open the scope in which the dropout of one micro-batch is drawn.

    Args:
        seed: The run's seed.
        step: Optimizer step, from 0.
        index: Micro-batch within the step, from 0.
        replica: Data-parallel replica, from 0.
    """
    previous = (_scope.is_open, _scope.value)
    _scope.is_open, _scope.value = True, fold(seed, "micro_batch", step, index, replica)
    try:
        yield
    finally:
        _scope.is_open, _scope.value = previous


def layer_generator(salt: int, device: torch.device) -> torch.Generator:
    """Return a generator for a whole-tensor draw (dropout) of a layer of this micro-batch.

    Args:
        salt: `fold` of the layer's global number.
        device: Device of the generator.

    Raises:
        RuntimeError: Outside `micro_batch`.
    """
    if not _scope.is_open:
        raise RuntimeError("a layer draws random numbers outside randomness.micro_batch(...)")
    # The meta device has no generators and draws no numbers, so the generator is never used.
    place = torch.device("cpu") if device.type == "meta" else device
    return torch.Generator(place).manual_seed(fold(_scope.value, "dropout", salt) >> 1)
