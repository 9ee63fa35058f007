"""SimSiam of a ResNet-50 on ImageNet-1k: 100 epochs, 8 GPUs with 32 images each."""

_base_ = [
    "../_base_/models/simsiam.py",
    "../_base_/datasets/imagenet_mocov2.py",
    "../_base_/schedules/sgd_coslr-200e_in1k.py",
    "../_base_/default_runtime.py",
]

# The rate of the predictor does not fall.
optim_wrapper = dict(
    optimizer=dict(lr=0.05),
    paramwise_cfg=dict(custom_keys=dict(predictor=dict(fix_lr=True))),
)
custom_hooks = [dict(type="SimSiamHook", priority="HIGH", fix_pred_lr=True, lr=0.05)]

param_scheduler = [
    dict(
        type="CosineAnnealingLR",
        T_max=100,
        begin=0,
        end=100,
        by_epoch=True,
    ),
]
train_cfg = dict(max_epochs=100)
default_hooks = dict(checkpoint=dict(interval=10, max_keep_ckpts=3))
