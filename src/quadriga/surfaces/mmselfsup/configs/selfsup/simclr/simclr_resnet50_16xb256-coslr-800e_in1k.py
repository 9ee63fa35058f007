"""SimCLR of a ResNet-50 on ImageNet-1k: 800 epochs, 16 GPUs with 256 images each."""

_base_ = "simclr_resnet50_16xb256-coslr-200e_in1k.py"

param_scheduler = [
    dict(
        type="LinearLR",
        start_factor=1e-4,
        begin=0,
        end=10,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
    dict(
        type="CosineAnnealingLR",
        T_max=790,
        begin=10,
        end=800,
        by_epoch=True,
    ),
]
train_cfg = dict(max_epochs=800)
