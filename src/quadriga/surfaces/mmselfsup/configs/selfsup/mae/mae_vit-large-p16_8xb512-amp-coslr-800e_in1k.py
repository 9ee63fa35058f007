"""MAE of a ViT-L/16 on ImageNet-1k: 800 epochs in mixed precision."""

_base_ = "mae_vit-base-p16_8xb512-amp-coslr-800e_in1k.py"

model = dict(backbone=dict(arch="l"), neck=dict(embed_dim=1024))
