"""ImageNet-1k's training images: as for a ResNet, in crops of any size."""

view_pipeline1 = [
    dict(
        type="RandomResizedCrop",
        size=224,
        scale=(0.08, 1.0),
        backend="pillow",
    ),
    dict(type="RandomFlip", prob=0.5),
    dict(
        type="RandomApply",
        transforms=[
            dict(
                type="ColorJitter",
                brightness=0.4,
                contrast=0.4,
                saturation=0.2,
                hue=0.1,
            )
        ],
        prob=0.8,
    ),
    dict(
        type="RandomGrayscale",
        prob=0.2,
        keep_channels=True,
        channel_weights=(0.114, 0.587, 0.2989),
    ),
    dict(type="RandomGaussianBlur", sigma_min=0.1, sigma_max=2.0, prob=1.0),
    dict(type="RandomSolarize", prob=0.0),
]
view_pipeline2 = [
    dict(
        type="RandomResizedCrop",
        size=224,
        scale=(0.08, 1.0),
        backend="pillow",
    ),
    dict(type="RandomFlip", prob=0.5),
    dict(
        type="RandomApply",
        transforms=[
            dict(
                type="ColorJitter",
                brightness=0.4,
                contrast=0.4,
                saturation=0.2,
                hue=0.1,
            )
        ],
        prob=0.8,
    ),
    dict(
        type="RandomGrayscale",
        prob=0.2,
        keep_channels=True,
        channel_weights=(0.114, 0.587, 0.2989),
    ),
    dict(type="RandomGaussianBlur", sigma_min=0.1, sigma_max=2.0, prob=0.1),
    dict(type="RandomSolarize", prob=0.2),
]

train_dataloader = dict(
    batch_size=256,
    num_workers=4,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="mmcls.ImageNet",
        data_root="data/imagenet/",
        ann_file="meta/train.txt",
        data_prefix=dict(img_path="train/"),
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(
                type="MultiView",
                num_views=[1, 1],
                transforms=[view_pipeline1, view_pipeline2],
            ),
            dict(type="PackSelfSupInputs", meta_keys=["img_path"]),
        ],
    ),
)
