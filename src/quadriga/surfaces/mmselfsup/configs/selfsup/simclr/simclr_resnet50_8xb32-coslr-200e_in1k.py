"""SimCLR of a ResNet-50 on ImageNet-1k: 200 epochs, 8 GPUs with 32 images each."""

_base_ = [
    "../_base_/models/simclr.py",
    "../_base_/datasets/imagenet_simclr.py",
    "../_base_/schedules/lars_coslr-200e_in1k.py",
    "../_base_/default_runtime.py",
]

optim_wrapper = dict(
    optimizer=dict(lr=0.3),
    paramwise_cfg=dict(
        custom_keys={
            "bn": dict(decay_mult=0.0, lars_exclude=True),
            "bias": dict(decay_mult=0.0, lars_exclude=True),
            "downsample.1": dict(decay_mult=0.0, lars_exclude=True),
        }
    ),
)
default_hooks = dict(checkpoint=dict(interval=10, max_keep_ckpts=3))
