"""MoCo v3 of a ResNet-50 on ImageNet-1k: 800 epochs, with a slower momentum encoder."""

_base_ = "mocov3_resnet50_8xb512-amp-coslr-300e_in1k.py"

model = dict(base_momentum=0.996)
optim_wrapper = dict(optimizer=dict(weight_decay=1.5e-6))

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
        T_max=790,
        begin=10,
        end=800,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=800)
