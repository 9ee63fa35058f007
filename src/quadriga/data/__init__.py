"""Data: records on disk become samples and batches. Here: the tables of datasets and views."""

DATASETS = {
    "cifar": "quadriga.data.images.cifar:CifarConfig",
    "clutter": "quadriga.data.images.clutter:ClutterConfig",
    "digits": "quadriga.data.images.digits:DigitsConfig",
    "glue": "quadriga.data.text.glue.dataset:GlueConfig",
    "image_folder": "quadriga.data.images.folder:ImageFolderConfig",
    "image_list": "quadriga.data.images.list:ImageListConfig",
    "inaturalist": "quadriga.data.images.inaturalist:InaturalistConfig",
    "mixture": "quadriga.data.parts.mixture:MixtureConfig",
    "part": "quadriga.data.parts.subsets:PartConfig",
    "pydoc_corpus": "quadriga.data.text.pydoc:PydocCorpusConfig",
    "shapes": "quadriga.data.shapes.dataset:ShapesConfig",
    "tar_shards": "quadriga.data.images.tar_shards:TarShardsConfig",
    "text_corpus": "quadriga.data.text.corpus:TextCorpusConfig",
}
"""Kinds of `DatasetConfig`: name -> ``module:Class``, imported when used."""

VIEWS = {
    "image_views": "quadriga.data.views.crops:ImageViewsConfig",
    "mixture": "quadriga.data.parts.mixture:MixtureViewsConfig",
    "multi_crop": "quadriga.data.views.multi_crop:MultiCropConfig",
    "sentence_pairs": "quadriga.data.text.sentence_pairs:SentencePairsConfig",
    "shifted_views": "quadriga.data.views.shifts:ShiftedViewsConfig",
    "supervised_views": "quadriga.data.views.supervised:SupervisedViewsConfig",
    "text_pairs": "quadriga.data.text.text_pairs:TextPairsConfig",
}
"""Kinds of `ViewsConfig`: name -> ``module:Class``, imported when used."""
