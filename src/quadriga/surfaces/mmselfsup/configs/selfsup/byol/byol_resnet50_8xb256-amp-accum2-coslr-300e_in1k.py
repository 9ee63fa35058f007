"""BYOL of a ResNet-50 on ImageNet-1k: 300 epochs, 8 GPUs with 2 times 256 images each."""

_base_ = "byol_resnet50_8xb256-amp-accum2-coslr-200e_in1k.py"

param_scheduler = [
    dict(
        type="LinearLR",
        start_factor=1e-4,
        begin=0,
        end=10,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
    dict(
        type="CosineAnnealingLR",
        T_max=290,
        begin=10,
        end=300,
        by_epoch=True,
    ),
]
train_cfg = dict(max_epochs=300)
