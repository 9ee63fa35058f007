"""Barlow Twins of a ResNet-50 on ImageNet-1k: 100 epochs, 8 GPUs with 8 times 32 images each."""

_base_ = "barlowtwins_resnet50_8xb256-coslr-300e_in1k.py"

train_dataloader = dict(batch_size=32)
optim_wrapper = dict(accumulative_counts=8)

param_scheduler = [
    dict(
        type="LinearLR",
        start_factor=1.6e-4,
        begin=0,
        end=10,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
    dict(
        type="CosineAnnealingLR",
        T_max=90,
        begin=10,
        end=100,
        by_epoch=True,
        convert_to_iter_based=True,
        eta_min=0.0016,
    ),
]
train_cfg = dict(max_epochs=100)
