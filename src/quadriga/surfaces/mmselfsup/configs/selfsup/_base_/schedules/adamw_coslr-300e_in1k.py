"""AdamW for 300 epochs: 40 of warm-up, then a cosine, both in every iteration."""

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1),
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
        T_max=260,
        begin=40,
        end=300,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]

train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=300)
