"""Two ranks whose unequal shares are one group: outputs, gradients and tallies of the whole."""

from __future__ import annotations

import torch
import torch.distributed as dist
from tallies import apply_tallies, set_groups, take_tallies, tallying
from torch import Tensor

from quadriga import randomness
from quadriga.models.parts.batch_norm import BatchNorm
from quadriga.models.parts.initialise import initialise


class SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(context: object, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: object, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def values(shape: tuple[int, ...], name: str) -> Tensor:
    return torch.empty(shape).normal_(2.0, 3.0, generator=randomness.generator(0, name))


def check(shape: tuple[int, ...], share: slice) -> None:
    given, gradient = values(shape, "values"), values(shape, "gradient")
    alone, shared = BatchNorm(shape[1]), BatchNorm(shape[1])
    for norm in (alone, shared):
        initialise(norm, seed=0)
        norm.weight.data.copy_(values(shape[1:2], "weight"))
    set_groups(shared, None, SumOverRanks.apply)
    whole = given.clone().requires_grad_()
    part = given[share].clone().requires_grad_()
    with tallying(alone), tallying(shared):
        expected, output = alone(whole), shared(part)
    expected.backward(gradient)
    output.backward(gradient[share])
    torch.testing.assert_close(output, expected[share], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(part.grad, whole.grad[share], rtol=1e-5, atol=1e-5)
    for own, other in zip(shared.parameters(), alone.parameters(), strict=True):
        dist.all_reduce(own.grad)
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-5, atol=1e-4)
    sums = take_tallies(shared)
    for tally in sums.values():
        dist.all_reduce(tally)
    apply_tallies(shared, sums)
    apply_tallies(alone, take_tallies(alone))
    torch.testing.assert_close(shared.state_dict(), alone.state_dict(), rtol=1e-5, atol=1e-6)


def main() -> None:
    dist.init_process_group("gloo")
    first = dist.get_rank() == 0
    for shape in ((8, 5), (8, 5, 3, 2)):
        check(shape, slice(0, 3) if first else slice(3, 8))
        check(shape, slice(0, 8) if first else slice(8, 8))
    dist.barrier()
    dist.destroy_process_group()


main()
