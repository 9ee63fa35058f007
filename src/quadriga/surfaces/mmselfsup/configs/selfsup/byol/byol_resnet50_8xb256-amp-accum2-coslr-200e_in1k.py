"""BYOL of a ResNet-50 on ImageNet-1k: 200 epochs, 8 GPUs with 2 times 256 images each."""

_base_ = "byol_resnet50_16xb256-coslr-200e_in1k.py"

# Mixed precision with a loss scale that stays.
optim_wrapper = dict(type="AmpOptimWrapper", loss_scale=512.0, accumulative_counts=2)
