"""MoCo v3: ResNet-50, and a momentum encoder that begins with 0.99."""

model = dict(
    type="MoCoV3",
    base_momentum=0.99,
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
    ),
    neck=dict(
        type="NonLinearNeck",
        in_channels=2048,
        hid_channels=4096,
        out_channels=256,
        num_layers=2,
        with_bias=False,
        with_last_bn=True,
        with_last_bn_affine=False,
        with_last_bias=False,
        with_avg_pool=True,
    ),
    head=dict(
        type="MoCoV3Head",
        predictor=dict(
            type="NonLinearNeck",
            in_channels=256,
            hid_channels=4096,
            out_channels=256,
            num_layers=2,
            with_bias=False,
            with_last_bn=False,
            with_last_bias=False,
            with_avg_pool=False,
        ),
        loss=dict(type="mmcls.CrossEntropyLoss", loss_weight=2 * 1.0),
        temperature=1.0,
    ),
)
