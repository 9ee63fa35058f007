"""Barlow Twins of a ResNet-50 on ImageNet-1k: 300 epochs, 8 GPUs with 256 images each."""

_base_ = [
    "../_base_/models/barlowtwins.py",
    "../_base_/datasets/imagenet_byol.py",
    "../_base_/schedules/lars_coslr-200e_in1k.py",
    "../_base_/default_runtime.py",
]

train_dataloader = dict(batch_size=256)

# 0.2 for every 256 of the 8 x 256 images; biases and norms have 0.0048 for them.
optim_wrapper = dict(
    optimizer=dict(lr=1.6),
    paramwise_cfg=dict(
        custom_keys={
            "bn": dict(decay_mult=0.0, lr_mult=0.024, lars_exclude=True),
            "bias": dict(decay_mult=0.0, lr_mult=0.024, lars_exclude=True),
            "downsample.1": dict(decay_mult=0.0, lr_mult=0.024, lars_exclude=True),
        }
    ),
)

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
        T_max=290,
        begin=10,
        end=300,
        by_epoch=True,
        convert_to_iter_based=True,
        eta_min=0.0016,
    ),
]
train_cfg = dict(max_epochs=300)
default_hooks = dict(checkpoint=dict(interval=10, max_keep_ckpts=3))
