"""MoCo v2 of a ResNet-50 on ImageNet-1k: 200 epochs, 8 GPUs with 32 images each."""

_base_ = [
    "../_base_/models/mocov2.py",
    "../_base_/datasets/imagenet_mocov2.py",
    "../_base_/schedules/sgd_coslr-200e_in1k.py",
    "../_base_/default_runtime.py",
]

default_hooks = dict(checkpoint=dict(interval=10, max_keep_ckpts=3))
