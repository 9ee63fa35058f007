"""MoCo v3 of a ResNet-50 on ImageNet-1k: 300 epochs in mixed precision."""

_base_ = "mocov3_resnet50_8xb512-amp-coslr-100e_in1k.py"

optim_wrapper = dict(optimizer=dict(lr=4.8))

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
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=300)
