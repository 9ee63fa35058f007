"""MoCo v3 of a ViT-S/16 on ImageNet-1k: 300 epochs in mixed precision, 16 GPUs with 256 images."""

_base_ = [
    "../_base_/models/mocov3_vit-small-p16.py",
    "../_base_/datasets/imagenet_mocov3_vit.py",
    "../_base_/schedules/adamw_coslr-300e_in1k.py",
    "../_base_/default_runtime.py",
]

train_dataloader = dict(batch_size=256)
optim_wrapper = dict(
    type="AmpOptimWrapper",
    loss_scale="dynamic",
    optimizer=dict(lr=2.4e-3, betas=(0.9, 0.999)),
)
default_hooks = dict(checkpoint=dict(interval=10, max_keep_ckpts=3))
