"""MAE of a ViT-B/16 on ImageNet-1k: 400 epochs, 8 GPUs with 512 images each."""

_base_ = [
    "../_base_/models/mae_vit-base-p16.py",
    "../_base_/datasets/imagenet_mae.py",
    "../_base_/schedules/adamw_coslr-200e_in1k.py",
    "../_base_/default_runtime.py",
]

train_dataloader = dict(batch_size=512, num_workers=8)

# 1.5e-4 for every 256 of the 8 x 512 images.
optim_wrapper = dict(
    optimizer=dict(lr=1.5e-4 * 4096 / 256),
    paramwise_cfg=dict(
        custom_keys=dict(
            ln=dict(decay_mult=0.0),
            bias=dict(decay_mult=0.0),
            pos_embed=dict(decay_mult=0.0),
            mask_token=dict(decay_mult=0.0),
            cls_token=dict(decay_mult=0.0),
        )
    ),
)

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
        T_max=360,
        begin=40,
        end=400,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=400)

default_hooks = dict(
    logger=dict(interval=100),
    checkpoint=dict(interval=1, max_keep_ckpts=3),
)
randomness = dict(seed=0, diff_rank_seed=True)
resume = True
