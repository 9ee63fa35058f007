"""LARS for 200 epochs: 10 of warm-up, then a cosine that falls once an epoch."""

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="LARS", lr=4.8, momentum=0.9, weight_decay=1e-6),
)

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
        T_max=190,
        begin=10,
        end=200,
        by_epoch=True,
    ),
]

train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=200)
