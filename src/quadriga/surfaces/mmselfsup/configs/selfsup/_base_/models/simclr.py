"""SimCLR: ResNet-50, a projector of two layers, and all other views of the step as negatives."""

model = dict(
    type="SimCLR",
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
    backbone=dict(
        type="ResNet",
        depth=50,
        in_channels=3,
        out_indices=[4],
        norm_cfg=dict(type="SyncBN"),
        zero_init_residual=True,
    ),
    neck=dict(
        type="NonLinearNeck",
        in_channels=2048,
        hid_channels=2048,
        out_channels=128,
        num_layers=2,
        with_avg_pool=True,
    ),
    head=dict(
        type="ContrastiveHead",
        loss=dict(type="mmcls.CrossEntropyLoss"),
        temperature=0.1,
    ),
)
