"""SimCLR of a ResNet-50 on ImageNet-1k: 200 epochs, 8 GPUs with 64 images each."""

_base_ = "simclr_resnet50_8xb32-coslr-200e_in1k.py"

train_dataloader = dict(batch_size=64)
optim_wrapper = dict(optimizer=dict(lr=0.6))
