"""MoCo v3 of a ResNet-50 on ImageNet-1k: 100 epochs in mixed precision, 8 GPUs with 512 images."""

_base_ = [
    "../_base_/models/mocov3_resnet50.py",
    "../_base_/datasets/imagenet_mocov3.py",
    "../_base_/schedules/lars_coslr-200e_in1k.py",
    "../_base_/default_runtime.py",
]

optim_wrapper = dict(
    type="AmpOptimWrapper",
    loss_scale="dynamic",
    optimizer=dict(lr=9.6),
    paramwise_cfg=dict(
        custom_keys={
            "bn": dict(decay_mult=0.0, lars_exclude=True),
            "bias": dict(decay_mult=0.0, lars_exclude=True),
            "downsample.1": dict(decay_mult=0.0, lars_exclude=True),
        }
    ),
)

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
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=100)
default_hooks = dict(checkpoint=dict(interval=10, max_keep_ckpts=3))
