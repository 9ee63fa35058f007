"""BYOL of a ResNet-50 on ImageNet-1k: 200 epochs, 8 GPUs with 16 times 32 images each."""

_base_ = "byol_resnet50_16xb256-coslr-200e_in1k.py"

train_dataloader = dict(batch_size=32)
optim_wrapper = dict(accumulative_counts=16)
