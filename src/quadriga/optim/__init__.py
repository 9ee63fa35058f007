"""Optimizers. Each file is one kind; `KINDS` lists the kinds that share a file."""

KINDS = {
    "adadelta": "quadriga.optim.sgd:AdadeltaConfig",
    "adam": "quadriga.optim.adam:AdamConfig",
    "adamw": "quadriga.optim.adam:AdamWConfig",
    "bert_adam": "quadriga.optim.adam:BertAdamConfig",
    "lamb": "quadriga.optim.lamb:LAMBConfig",
    "lars": "quadriga.optim.lamb:LARSConfig",
    "nadam": "quadriga.optim.adam:NAdamConfig",
    "radam": "quadriga.optim.adam:RAdamConfig",
    "rmsprop": "quadriga.optim.sgd:RMSpropConfig",
    "sgd": "quadriga.optim.sgd:SGDConfig",
}
"""Kinds of `OptimizerConfig` that share a file: name -> ``module:Class``, imported when used."""
