"""Datasets, transforms, sampling and the loader: from disk to a batch, by index."""

DATASETS = {
    "cifar": "quadriga.data.cifar:CifarConfig",
    "clutter": "quadriga.data.clutter:ClutterConfig",
    "digits": "quadriga.data.digits:DigitsConfig",
    "glue": "quadriga.data.glue:GlueConfig",
    "image_folder": "quadriga.data.image_folder:ImageFolderConfig",
    "image_list": "quadriga.data.image_list:ImageListConfig",
    "inaturalist": "quadriga.data.inaturalist:InaturalistConfig",
    "part": "quadriga.data.part:PartConfig",
    "pydoc_corpus": "quadriga.data.pydoc_corpus:PydocCorpusConfig",
    "shapes": "quadriga.data.shapes:ShapesConfig",
    "tar_shards": "quadriga.data.tar_shards:TarShardsConfig",
    "text_corpus": "quadriga.data.text_corpus:TextCorpusConfig",
}
"""Kinds of `DatasetConfig`: name -> ``module:Class``, imported when used."""

VIEWS = {
    "image_views": "quadriga.data.image_views:ImageViewsConfig",
    "sentence_pairs": "quadriga.data.sentence_pairs:SentencePairsConfig",
    "shifted_views": "quadriga.data.shifted_views:ShiftedViewsConfig",
    "supervised_views": "quadriga.data.supervised_views:SupervisedViewsConfig",
    "text_pairs": "quadriga.data.text_pairs:TextPairsConfig",
}
"""Kinds of `ViewsConfig`: name -> ``module:Class``, imported when used."""
