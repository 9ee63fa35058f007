"""Heads made of torch's own layers, as reference implementations write them."""

from __future__ import annotations

from torch import nn

from quadriga.models.parts.heads import ProjectionHead


def as_layers(head: ProjectionHead) -> nn.Sequential:
    """Return `head` as torch's layers with its parameters."""
    found: list[nn.Module] = []
    for number, linear in enumerate(head.maps):
        outputs, inputs = linear.weight.shape
        own = nn.Linear(inputs, outputs, bias=linear.bias is not None)
        own.weight, own.bias = linear.weight, linear.bias
        found.append(own)
        if number < len(head.norms):
            norm = nn.BatchNorm1d(outputs)
            norm.weight, norm.bias = head.norms[number].weight, head.norms[number].bias
            found += [norm, nn.ReLU()]
        elif head.last_norm is not None:
            found.append(nn.BatchNorm1d(outputs, affine=False))
    return nn.Sequential(*found)
