"""MoCo v3 of a ViT-L/16 on ImageNet-1k: 300 epochs in mixed precision, 64 GPUs with 64 images."""

_base_ = "mocov3_vit-small-p16_16xb256-amp-coslr-300e_in1k.py"

model = dict(backbone=dict(arch="large"), neck=dict(in_channels=1024))
train_dataloader = dict(batch_size=64, num_workers=8)
optim_wrapper = dict(clip_grad=dict(max_norm=5.0))
