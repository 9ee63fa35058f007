"""SimSiam of a ResNet-50 on ImageNet-1k: 200 epochs, 8 GPUs with 32 images each."""

_base_ = "simsiam_resnet50_8xb32-coslr-100e_in1k.py"

param_scheduler = [
    dict(
        type="CosineAnnealingLR",
        T_max=200,
        begin=0,
        end=200,
        by_epoch=True,
    ),
]
train_cfg = dict(max_epochs=200)
