"""SimCLR of a ResNet-50 on ImageNet-1k: 200 epochs, 16 GPUs with 256 images each."""

_base_ = "simclr_resnet50_8xb32-coslr-200e_in1k.py"

train_dataloader = dict(batch_size=256)
optim_wrapper = dict(optimizer=dict(lr=4.8))
