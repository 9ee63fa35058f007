"""MAE of a ViT-B/16 on ImageNet-1k: 300 epochs in mixed precision."""

_base_ = "mae_vit-base-p16_8xb512-coslr-400e_in1k.py"

optim_wrapper = dict(type="AmpOptimWrapper", loss_scale="dynamic")

param_scheduler = [
    dict(
        type="LinearLR",
        start_factor=1e-4,
        begin=0,
        end=40,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
    dict(
        type="CosineAnnealingLR",
        T_max=260,
        begin=40,
        end=300,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=300)
