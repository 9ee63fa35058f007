"""Muon for the matrices of the blocks, AdamW for all other parameters (Jordan et al. 2024).

https://kellerjordan.github.io/posts/muon. Liu et al. 2025 (arXiv:2502.16982) match the length of
the step to AdamW's, so that both use the same learning rate and weight decay.

A Newton-Schulz iteration approximates the nearest orthogonal matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.optim.adamw import adamw

from quadriga.config.base import Number
from quadriga.contracts import OptimizerConfig
from quadriga.errors import UserError
from quadriga.optim.parts.foreach import ForeachOptimizer, gathered, state_like, step_counts
from quadriga.optim.parts.groups import groups_of, require_below_one

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the odd quintic polynomial of Jordan et al. 2024, with a large slope at 0: five
steps move singular values that are not tiny to between 0.7 and 1.2."""


def orthogonalise(
    matrices: Float[Tensor, "batch rows columns"], steps: int, dtype: torch.dtype
) -> Float[Tensor, "batch rows columns"]:
    """Move every singular value of each matrix towards 1.

    Jordan et al. 2024: ``X = X / |X|``, then `steps` times
    ``X = a X + (b X X^T + c (X X^T)^2) X``.

    Args:
        matrices: Matrices of one shape, of any floating dtype.
        steps: Number of iterations.
        dtype: Dtype of the computation and of the result.

    Returns:
        For each matrix U S V^T approximately U V^T, with singular values near 1.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    found = matrices.to(dtype)
    # The smaller of the two Gram matrices.
    found = found.mT if tall else found
    norm = torch.linalg.vector_norm(found, dim=(-2, -1), keepdim=True)
    found = found / norm.clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram = found @ found.mT
        inner = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        found = torch.baddbmm(found, inner, found, beta=a)
    return found.mT if tall else found


def orthogonalise_all(
    matrices: Sequence[Float[Tensor, "..."]], steps: int, dtype: torch.dtype
) -> list[Float[Tensor, "..."]]:
    """Apply `orthogonalise` to matrices of any shapes; those of equal shape form one batch.

    Args:
        matrices: Each (rows, columns), of any floating dtype; sharded ones are gathered.
        steps: Number of iterations.
        dtype: Dtype of the computation.

    Returns:
        One matrix for each, in the dtype of the input.
    """
    places: dict[tuple[torch.Size, torch.dtype, torch.device], list[int]] = {}
    for place, matrix in enumerate(matrices):
        places.setdefault((matrix.shape, matrix.dtype, matrix.device), []).append(place)
    found: dict[int, Tensor] = {}
    for (_, original, _), members in places.items():
        batch = torch.stack([gathered(matrices[place]) for place in members])
        results = orthogonalise(batch, steps, dtype).to(original)
        found.update(zip(members, results.unbind(), strict=True))
    return [found[place] for place in range(len(matrices))]


StepLength = Literal["match_rms_adamw", "original"]


@final
class MuonConfig(OptimizerConfig):
    """Muon for hidden matrices, and AdamW for everything else, as one optimizer."""

    lr: float = Field(1e-3, ge=0, le=1e6)
    """Peak learning rate at a batch of `lr_batch` samples."""
    weight_decay: float = Field(0.1, ge=0, le=1e6)
    """Decoupled weight decay of the parameters that `no_decay` does not exempt."""
    hidden: tuple[str, ...] = ("blocks.",)
    """Matrices whose name contains one of these use Muon."""
    momentum: float = Field(0.95, ge=0, lt=1)
    """Decay rate of Muon's first moment."""
    nesterov: bool = True
    """Whether Muon uses Nesterov momentum."""
    newton_schulz_steps: int = Field(5, ge=1, le=20)
    """Iterations that make the update orthogonal."""
    step_length: StepLength = "match_rms_adamw"
    """Factor of a (rows, columns) update: match_rms_adamw: 0.2 sqrt(max(rows, columns)); original:
    sqrt(max(1, rows / columns))."""
    adamw_lr_scale: float = Field(1.0, ge=0, le=1e6)
    """Learning rate of AdamW's parameters as a multiple of Muon's."""
    betas: tuple[Number, Number] = (0.9, 0.95)
    """AdamW's decay rates of the first and second moment."""
    eps: float = Field(1e-8, gt=0, le=1.0)
    """Added to the root of AdamW's second moment."""

    @model_validator(mode="after")
    def _betas_below_one(self) -> MuonConfig:
        require_below_one("betas", self.betas)
        return self

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Make the optimizer over groups by rule; see `groups_of`.

        Raises:
            UserError: No trainable matrix matches `hidden`.
        """
        trained = [(name, p) for name, p in named_parameters if p.requires_grad]
        if not any(self._takes_muon(name, parameter) for name, parameter in trained):
            raise UserError(
                f"optim.hidden must name parts of trainable matrices, but {list(self.hidden)} are "
                "in none of their names; name others or use kind=adamw"
            )

        def settings(name: str, parameter: nn.Parameter) -> dict[str, Any]:
            muon = self._takes_muon(name, parameter)
            return {"muon": muon, "lr_scale": 1.0 if muon else self.adamw_lr_scale}

        return Muon(
            groups_of(self, trained, settings),
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            newton_schulz_steps=self.newton_schulz_steps,
            step_length=self.step_length,
            betas=self.betas,
            eps=self.eps,
        )

    def _takes_muon(self, name: str, parameter: nn.Parameter) -> bool:
        return parameter.ndim == 2 and any(part in name for part in self.hidden)


@final
class Muon(ForeachOptimizer):
    """Orthogonalised momentum in groups whose ``muon`` is true, AdamW in the others.

    With gradient G, weight W (rows x columns), decay b, and NS the iteration of `orthogonalise`::

        M = momentum M + (1 - momentum) G
        U = NS((1 - momentum) G + momentum M)          without Nesterov: NS(M)
        W = (1 - lr b) W - lr step_length(rows, columns) U
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: float,
        momentum: float,
        nesterov: bool,
        newton_schulz_steps: int,
        step_length: StepLength,
        betas: tuple[float, float],
        eps: float,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        """Make the optimizer.

        Args:
            groups: Parameter groups, each with ``weight_decay`` and ``muon``.
            lr: Learning rate.
            momentum: Decay rate of Muon's first moment.
            nesterov: Whether Muon uses Nesterov momentum.
            newton_schulz_steps: Iterations of the orthogonalisation.
            step_length: The factor of an orthogonal update, which depends on its shape.
            betas: AdamW's decay rates.
            eps: Added to the root of AdamW's second moment.
            dtype: Dtype of the orthogonalisation.
        """
        self._momentum, self._nesterov = momentum, nesterov
        self._newton_schulz_steps, self._dtype = newton_schulz_steps, dtype
        self._step_length, self._betas, self._eps = step_length, betas, eps
        super().__init__(groups, {"lr": lr})

    def step_group(
        self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]
    ) -> None:
        """Make the step of one group; see `ForeachOptimizer.step_group`."""
        update = self._muon_step if group["muon"] else self._adamw_step
        update(group, parameters, gradients)

    def _muon_step(
        self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]
    ) -> None:
        moments = state_like(self, parameters, "momentum_buffer")
        torch._foreach_lerp_(moments, gradients, 1.0 - self._momentum)
        ahead: Sequence[Tensor] = moments
        if self._nesterov:
            ahead = torch._foreach_lerp(gradients, moments, self._momentum)
        updates = orthogonalise_all(ahead, self._newton_schulz_steps, self._dtype)
        torch._foreach_mul_(updates, [self._length(*p.shape) for p in parameters])
        torch._foreach_mul_(parameters, 1.0 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])

    def _length(self, rows: int, columns: int) -> float:
        if self._step_length == "match_rms_adamw":
            return float(0.2 * max(rows, columns) ** 0.5)
        return float(max(1.0, rows / columns) ** 0.5)

    def _adamw_step(
        self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]
    ) -> None:
        adamw(
            parameters,
            gradients,
            state_like(self, parameters, "exp_avg"),
            state_like(self, parameters, "exp_avg_sq"),
            [],
            step_counts(self, parameters, on_device=True),
            fused=True,
            amsgrad=False,
            beta1=self._betas[0],
            beta2=self._betas[1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=self._eps,
            maximize=False,
        )
