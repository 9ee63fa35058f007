"""BYOL of a ResNet-50 on ImageNet-1k: 100 epochs, 8 GPUs with 16 times 32 images each."""

_base_ = "byol_resnet50_8xb32-accum16-coslr-200e_in1k.py"

optim_wrapper = dict(optimizer=dict(lr=7.2))

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
        T_max=90,
        begin=10,
        end=100,
        by_epoch=True,
    ),
]
train_cfg = dict(max_epochs=100)
