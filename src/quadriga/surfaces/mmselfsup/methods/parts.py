"""Parts of several methods: the ResNet, heads and losses; their rows, and their values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quadriga.errors import UserError
from quadriga.surfaces.mmselfsup.lengths import Lengths
from quadriga.surfaces.mmselfsup.rows import Row, honoured, no_effect, refused

Part = Mapping[str, Any]

_NORM = "batch normalisation"
_PLAIN = "only the plain network is built"
_START = "the initial values are the method's own"
_DEPTHS = (18, 34, 50)

ROWS: tuple[Row, ...] = (
    honoured("ResNet", "a residual network, the mean of its last maps"),
    honoured("ResNet.depth", "its layers", _DEPTHS),
    honoured("ResNet.stem_channels", "channels of the stem; as base_channels"),
    honoured("ResNet.base_channels", "channels of the first stage"),
    honoured("ResNet.zero_init_residual", "whether branches start at zero"),
    honoured("ResNet.norm_cfg", "who shares the statistics of a batch"),
    honoured("ResNet.init_cfg", "weights to start from"),
    no_effect("ResNet.in_channels", "images have three channels", (3,)),
    no_effect("ResNet.out_indices", "the last stage is what a method gets", ([4], 4)),
    no_effect("ResNet.num_stages", "there are four", (4,)),
    no_effect("ResNet.style", "the stride is in the 3x3 convolution", ("pytorch",)),
    no_effect("ResNet.with_cp", "use quadriga train with train.recompute=full"),
    refused("ResNet.deep_stem", _PLAIN, (False,)),
    refused("ResNet.avg_down", _PLAIN, (False,)),
    refused("ResNet.frozen_stages", "every stage is trained", (-1, 0)),
    refused("ResNet.norm_eval", "statistics are those of the batch", (False,)),
    refused("ResNet.expansion", _PLAIN),
    refused("ResNet.strides", _PLAIN, ([1, 2, 2, 2],)),
    refused("ResNet.dilations", _PLAIN, ([1, 1, 1, 1],)),
    refused("ResNet.conv_cfg", _PLAIN),
    refused("ResNet.drop_path_rate", _PLAIN, (0, 0.0)),
    refused("ResNeXt", "only ResNet is built"),
    refused("ResNetV1d", "only ResNet is built"),
    honoured("SyncBN", "statistics of an iteration over all processes"),
    honoured("BN", "statistics of an iteration of each process"),
    *(
        row
        for name in ("SyncBN", "BN")
        for row in (
            no_effect(f"{name}.requires_grad", "norms are trained", (True,)),
            no_effect(f"{name}.eps", "1e-5 is added to the variance", (1e-5,)),
            no_effect(f"{name}.momentum", "running statistics follow by a tenth", (0.1,)),
        )
    ),
    honoured("NonLinearNeck", "linear maps with batch normalisation and ReLU between them"),
    honoured("NonLinearNeck.in_channels", "must be what comes in"),
    honoured("NonLinearNeck.hid_channels", "features of the hidden layers"),
    honoured("NonLinearNeck.out_channels", "features that come out"),
    honoured("NonLinearNeck.num_layers", "maps; the method says how many"),
    honoured("NonLinearNeck.with_last_bn", "whether the output is normalised, as the method says"),
    honoured("NonLinearNeck.with_last_bn_affine", "whether with factors, as the method says"),
    honoured("NonLinearNeck.with_last_bias", "whether the last map has a bias, as the method says"),
    honoured("NonLinearNeck.with_avg_pool", "must be true for the maps of a ResNet only"),
    no_effect("NonLinearNeck.vit_backbone", "the class token is what a head gets of a ViT"),
    no_effect("NonLinearNeck.with_bias", f"{_NORM} subtracts the bias of a map before it"),
    no_effect("NonLinearNeck.norm_cfg", f"{_NORM} of a head always spans the step"),
    no_effect("NonLinearNeck.init_cfg", _START),
    honoured("ContrastiveHead", "cross entropy over similarities"),
    honoured("ContrastiveHead.temperature", "divides the similarities"),
    honoured("ContrastiveHead.loss", "the cross entropy"),
    honoured("CrossEntropyLoss", "the cross entropy"),
    honoured("CrossEntropyLoss.loss_weight", "as the method says"),
    refused("CrossEntropyLoss.label_smoothing", "not built"),
    refused("CrossEntropyLoss.use_sigmoid", "not built", (False,)),
    refused("CrossEntropyLoss.use_soft", "not built", (False,)),
    honoured("LatentPredictHead", "cosine between predictions and projections"),
    honoured("LatentPredictHead.predictor", "the predictor"),
    honoured("LatentPredictHead.loss", "the cosine"),
    honoured("CosineSimilarityLoss", "the cosine"),
    no_effect("CosineSimilarityLoss.shift_factor", "a constant of the loss", (0, 0.0)),
    no_effect("CosineSimilarityLoss.scale_factor", "a factor of the loss", (1, 1.0)),
    refused("LinearNeck", "it is the head of MoCo v1 or NPID, which are not built here yet"),
    *(
        refused(name, "a momentum encoder follows by itself; set the model's momentum")
        for name in ("MomentumUpdateHook", "MoCoHook", "BYOLHook")
    ),
)
"""The keys and types."""


def method_rows(name: str, why: str, *more: Row) -> tuple[Row, ...]:
    """Return the rows of a method's own type: of the parts that every method has, and `more`."""
    return (
        honoured(name, why),
        honoured(f"{name}.data_preprocessor", "how pixels are normalised"),
        honoured(f"{name}.backbone", "the encoder"),
        honoured(f"{name}.neck", "the projector"),
        honoured(f"{name}.head", "what it is compared with"),
        honoured(f"{name}.pretrained", "weights to start from"),
        honoured(f"{name}.init_cfg", "weights to start from"),
        refused(f"{name}.target_generator", f"not built for {name}"),
        *more,
    )


def need(part: Part, path: str, key: str) -> Any:
    """Return a value that must be there.

    Raises:
        UserError: It is not.
    """
    if part.get(key) is None:
        raise UserError(f"{path}.{key} must be set, but is not; add it to the config")
    return part[key]


def require(part: Part, path: str, **wanted: tuple[Any, Any, str]) -> None:
    """Check values that the method or another part decides.

    Args:
        part: The part.
        path: Its path.
        wanted: Key -> (value, value of the reference where the key is absent, who decides).

    Raises:
        UserError: One is another.
    """
    for key, (value, default, decides) in wanted.items():
        given = part.get(key, default)
        if given != value:
            raise unequal(f"{path}.{key}", given, decides, value)


def unequal(key: str, given: Any, decides: str, wanted: Any) -> UserError:
    """Return the error of a value that another part decides."""
    return UserError(
        f"{key} must be {wanted} as {decides} says, but is {given}; set {key}={wanted}"
    )


def require_type(part: Part, path: str, *kinds: str) -> None:
    """Check the type of a part.

    Raises:
        UserError: It is another.
    """
    if part.get("type") not in kinds:
        raise UserError(
            f"{path}.type must be {' or '.join(kinds)} for this method, but is {part.get('type')}; "
            "set it"
        )


def resnet(model: Part, view_px: int, lengths: Lengths) -> tuple[dict[str, Any], int | None]:
    """Return the engine's ``model`` of a ResNet, and its ``objective.statistics_group``.

    Raises:
        UserError: It is no ResNet, or its sizes contradict each other.
    """
    backbone, path = model["backbone"], "model.backbone"
    require_type(backbone, path, "ResNet")
    stem = backbone.get("stem_channels", 64)
    require(backbone, path, base_channels=(stem, 64, f"{path}.stem_channels"))
    values = {
        "kind": "resnet",
        "image_px": view_px,
        "depth": need(backbone, path, "depth"),
        "stem_width": stem,
        "zero_init_residual": backbone.get("zero_init_residual", False),
    }
    norm = (backbone.get("norm_cfg") or {}).get("type", "BN")
    # The statistics of a process are those of its micro-batch, whatever that is.
    spans = norm == "SyncBN" and lengths.ranks > 1
    return values, lengths.iteration if spans else None


def width(values: Part) -> int:
    """Return the features that a backbone gives to the neck."""
    if values["kind"] == "vit":
        return int(values["width"])
    return int(values["stem_width"]) * 8 * (4 if values["depth"] >= 50 else 1)


def head(
    part: Part | None,
    path: str,
    inputs: int,
    layers: int,
    last_norm: bool = False,
    last_bias: bool = False,
    affine: bool | None = False,
    pools: bool = False,
) -> tuple[int, int]:
    """Return the hidden and the output features of a `NonLinearNeck`.

    Args:
        part: Its dict.
        path: Its path.
        inputs: Features that come in.
        layers: Maps.
        last_norm: Whether the output is normalised.
        last_bias: Whether the last map has a bias.
        affine: Whether the last normalisation has factors; None: either.
        pools: Whether it gets maps.

    Raises:
        UserError: It is another head.
    """
    part, decides = part or {}, "the method"
    require_type(part, path, "NonLinearNeck")
    require(
        part,
        path,
        in_channels=(inputs, inputs, "what comes in"),
        num_layers=(layers, 2, decides),
        with_last_bn=(last_norm, True, decides),
        with_last_bias=(last_bias, False, decides),
        with_avg_pool=(pools, True, "the backbone"),
    )
    if last_norm and affine is not None:
        require(part, path, with_last_bn_affine=(affine, True, decides))
    return need(part, path, "hid_channels"), need(part, path, "out_channels")


def contrast(part: Part | None, path: str) -> float:
    """Return the temperature of a `ContrastiveHead`.

    Raises:
        UserError: It is another head, or its loss has a weight.
    """
    part = part or {}
    require_type(part, path, "ContrastiveHead")
    loss = part.get("loss") or {}
    require(loss, f"{path}.loss", loss_weight=(1.0, 1.0, "the method"))
    return float(part.get("temperature", 0.1))


def same_widths(path: str, given: tuple[int, int], wanted: tuple[int, int]) -> None:
    """Check that a predictor has the widths of the projector.

    Raises:
        UserError: It has others.
    """
    for key, own, other in zip(("hid_channels", "out_channels"), given, wanted, strict=True):
        if own != other:
            raise unequal(f"{path}.{key}", own, "model.neck", other)


def momentum(model: Part, key: str, default: float | None = None) -> float:
    """Return the weight of the old average in the new one.

    Raises:
        UserError: It is not set, or is that of the new weights, as in mmpretrain.
    """
    value = need({key: default, **model}, "model", key)
    if not isinstance(value, int | float) or not 0.5 <= value <= 1:
        raise UserError(
            f"model.{key} must be the weight of the old average, from 0.5 to 1, but is {value}; "
            f"where a config of mmpretrain says 0.01, set 0.99"
        )
    return float(value)
