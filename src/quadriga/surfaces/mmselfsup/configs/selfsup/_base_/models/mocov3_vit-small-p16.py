"""MoCo v3: ViT-S/16 of 12 heads, whose patch projection stays as it was drawn."""

model = dict(
    type="MoCoV3",
    base_momentum=0.99,
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
    backbone=dict(
        type="MoCoV3ViT",
        arch="mocov3-small",
        img_size=224,
        patch_size=16,
        stop_grad_conv1=True,
    ),
    neck=dict(
        type="NonLinearNeck",
        in_channels=384,
        hid_channels=4096,
        out_channels=256,
        num_layers=3,
        with_bias=False,
        with_last_bn=True,
        with_last_bn_affine=False,
        with_last_bias=False,
        with_avg_pool=False,
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
            with_last_bn=True,
            with_last_bn_affine=False,
            with_last_bias=False,
            with_avg_pool=False,
        ),
        loss=dict(type="mmcls.CrossEntropyLoss", loss_weight=2 * 0.2),
        temperature=0.2,
    ),
)
