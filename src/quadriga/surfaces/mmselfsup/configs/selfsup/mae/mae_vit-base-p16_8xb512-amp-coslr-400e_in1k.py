"""MAE of a ViT-B/16 on ImageNet-1k: 400 epochs in mixed precision."""

_base_ = "mae_vit-base-p16_8xb512-coslr-400e_in1k.py"

optim_wrapper = dict(type="AmpOptimWrapper", loss_scale="dynamic")
