"""MoCo v1 and v2: CIFAR-10 on a CPU, and the papers' ImageNet recipes."""

from __future__ import annotations

from pathlib import Path

from quadriga.data.views.multi_crop import MultiCropConfig
from quadriga.data.views.policies import PolicyChanges
from quadriga.engine.run_config import RunConfig
from quadriga.methods.moco import MoCoConfig
from quadriga.models.resnet import ResNetConfig
from quadriga.optim.sgd import SGDConfig
from quadriga.recipes._self_supervised import cifar10_run, imagenet_run
from quadriga.schedules.curves import StepDecayConfig, WarmupCosineConfig


def moco_v2_cifar10(root: Path = Path("data/cifar10"), epochs: float = 7) -> RunConfig:
    """MoCo v2 of a narrow ResNet-18 on CIFAR-10 at 32 px.

    Command: ``quadriga train moco_v2_cifar10 data.root=CIFAR10_FOLDER``; the folder holds
    ``train`` and ``test`` with one folder of images per class.
    """
    objective = MoCoConfig(
        queue=4096,
        # The average of a run of 1400 steps has to be shorter than that of one of a million.
        momentum=0.99,
        temperature=0.1,
        hidden_width=512,
        output_width=64,
        statistics_group=32,
    )
    return cifar10_run("moco_v2_cifar10", objective, root, epochs)


def moco_v2_resnet50(root: Path = Path("data/imagenet"), epochs: float = 200) -> RunConfig:
    """MoCo v2 of a ResNet-50 with the paper's ImageNet recipe: batch 256, SGD.

    Command: ``quadriga train moco_v2_resnet50 data.root=IMAGENET --ranks 4``. The paper reports
    67.5 % linear probing after 200 epochs, and 71.1 % after 800. On one GPU with memory for 256
    images, ``objective.shuffled_groups=8`` mixes as the paper's 8 GPUs do.
    """
    return imagenet_run(
        "moco_v2_resnet50",
        ResNetConfig(),
        MoCoConfig(statistics_group=32, shuffled_groups=2),
        MultiCropConfig(augmentation="moco_v2"),
        SGDConfig(lr=0.03, lr_batch=256, weight_decay=1e-4, no_decay=()),
        WarmupCosineConfig(),
        (root, epochs, 256),
    )


def moco_v1_resnet50(root: Path = Path("data/imagenet"), epochs: float = 200) -> RunConfig:
    """MoCo v1 of a ResNet-50: a linear head, colours without blur, a rate that falls twice.

    Command: ``quadriga train moco_v1_resnet50 data.root=IMAGENET --ranks 4``. The paper reports
    60.6 % linear probing after 200 epochs.
    """
    colours = PolicyChanges(jitter_probability=1.0, hue=0.4, blur_probability=0.0)
    changes = {
        "name": "moco_v1_resnet50",
        "objective": MoCoConfig(
            temperature=0.07, hidden_width=None, statistics_group=32, shuffled_groups=2
        ),
        "views": MultiCropConfig(augmentation="moco_v2", every=colours),
        "schedule": StepDecayConfig(milestone_epochs=(0.6 * epochs, 0.8 * epochs)),
    }
    return moco_v2_resnet50(root, epochs).model_copy(update=changes)
