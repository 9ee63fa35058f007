"""MoCo v3 of a ViT-B/16 on ImageNet-1k: 300 epochs in mixed precision, 16 GPUs with 256 images."""

_base_ = "mocov3_vit-small-p16_16xb256-amp-coslr-300e_in1k.py"

model = dict(backbone=dict(arch="base"), neck=dict(in_channels=768))
