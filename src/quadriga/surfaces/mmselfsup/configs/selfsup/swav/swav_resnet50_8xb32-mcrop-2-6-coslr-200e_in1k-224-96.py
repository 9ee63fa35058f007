"""SwAV of a ResNet-50 on ImageNet-1k: 200 epochs on 8 GPUs with 32 images, views of 224 and 96."""

_base_ = [
    "../_base_/models/swav.py",
    "../_base_/datasets/imagenet_swav_mcrop-2-6.py",
    "../_base_/schedules/lars_coslr-200e_in1k.py",
    "../_base_/default_runtime.py",
]

optim_wrapper = dict(optimizer=dict(lr=0.6))

# An epoch has 5004 iterations.
custom_hooks = [
    dict(
        type="SwAVHook",
        priority="VERY_HIGH",
        batch_size=32,
        epoch_queue_starts=15,
        crops_for_assign=[0, 1],
        feat_dim=128,
        queue_length=3840,
        frozen_layers_cfg=dict(prototypes=5005),
    )
]

param_scheduler = [
    dict(
        type="CosineAnnealingLR",
        T_max=200,
        begin=0,
        end=200,
        by_epoch=True,
        convert_to_iter_based=True,
        eta_min=6e-4,
    ),
]
default_hooks = dict(checkpoint=dict(interval=10, max_keep_ckpts=3))
