"""MAE of a ViT-H/14 on ImageNet-1k: 1600 epochs in mixed precision; patches are of 14 pixels."""

_base_ = "mae_vit-base-p16_8xb512-amp-coslr-1600e_in1k.py"

model = dict(
    backbone=dict(arch="h", patch_size=14),
    neck=dict(embed_dim=1280, patch_size=14, num_patches=256),
    head=dict(patch_size=14),
)
