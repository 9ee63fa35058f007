"""SGD for 200 epochs of a cosine that falls once an epoch."""

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="SGD", lr=0.03, momentum=0.9, weight_decay=1e-4),
)

param_scheduler = [
    dict(
        type="CosineAnnealingLR",
        T_max=200,
        begin=0,
        end=200,
        by_epoch=True,
    ),
]

train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=200)
