"""THE table: every key and every type of a config, and what becomes of it.

``docs/mmselfsup_keys.md`` is written from it by ``python tools/mmselfsup_keys.py``.
"""

from __future__ import annotations

from quadriga.surfaces.mmselfsup.methods import METHODS, NOT_BUILT, parts
from quadriga.surfaces.mmselfsup.rows import Row, honoured, no_effect, refused

_EVALUATED = "nothing is evaluated while it pre-trains; quadriga eval does it afterwards"
_WORKERS = "the engine's own workers read the samples (env_cfg, train_dataloader.num_workers)"
_ALWAYS = "the engine does this in every run"

TOP = (
    honoured("model", "the method and its model"),
    honoured("train_dataloader", "the images, the batch and the workers"),
    honoured("train_cfg", "length of the run"),
    honoured("optim_wrapper", "optimizer, precision, clipping, accumulation"),
    honoured("param_scheduler", "the learning rate over time; a list is chained"),
    honoured("default_hooks", "logging and checkpoints"),
    honoured("custom_hooks", "EMAHook, SimSiamHook, SwAVHook"),
    honoured("env_cfg", "port and back end of the processes"),
    honoured("randomness", "the seed"),
    honoured(
        "load_from", "weights to start from, or with resume=True the checkpoint to go on from"
    ),
    honoured("resume", "go on with the run in the work directory"),
    honoured("work_dir", "the work directory; --work-dir comes first"),
    honoured("launcher", "as --launcher, which comes first", ("none", "pytorch", "slurm", "mpi")),
    honoured("auto_scale_lr", "batch of record where the file's name has none"),
    honoured("visualizer", "further places for the metrics"),
    honoured("compile", "compiles the blocks of the model", (True, False)),
    no_effect("vis_backends", "a name for the list in visualizer"),
    no_effect("default_scope", "types are known by name"),
    no_effect("log_processor", "each logged value is that of its own step"),
    no_effect("log_level", "messages are few and always shown"),
    no_effect("experiment_name", "the run is named after its file"),
    no_effect("find_unused_parameters", "every parameter of a method is used"),
    no_effect("sync_bn", "statistics of a batch always span all processes"),
    no_effect("val_interval", _EVALUATED),
    refused("val_dataloader", _EVALUATED),
    refused("val_cfg", _EVALUATED),
    refused("val_evaluator", _EVALUATED),
    refused("test_dataloader", _EVALUATED),
    refused("test_cfg", _EVALUATED),
    refused("test_evaluator", _EVALUATED),
    refused("custom_imports", "a config runs no code; give own code to quadriga train --code FILE"),
    refused("activation_checkpointing", "use quadriga train with train.recompute=full"),
    refused("model_wrapper_cfg", "use quadriga train with train.parallel=fsdp"),
    refused("strategy", "use quadriga train with train.parallel=fsdp"),
    refused("runner_type", "there is one engine", ("Runner",)),
)

DATA = (
    honoured("train_dataloader.batch_size", "samples of an iteration on each process"),
    honoured("train_dataloader.num_workers", "reading processes of each process"),
    honoured("train_dataloader.dataset", "the images"),
    honoured("train_dataloader.sampler", "the order of the images"),
    honoured(
        "train_dataloader.drop_last", "as sampler.round_up=False: every step has the whole batch"
    ),
    no_effect("train_dataloader.persistent_workers", "workers always live as long as the run"),
    no_effect("train_dataloader.pin_memory", "memory is pinned for a GPU always"),
    no_effect("train_dataloader.collate_fn", _WORKERS),
    no_effect("train_dataloader.prefetch_factor", _WORKERS),
    no_effect("train_dataloader.timeout", _WORKERS),
    no_effect("train_dataloader.worker_init_fn", _WORKERS),
    refused("train_dataloader.batch_sampler", "set batch_size and drop_last"),
    no_effect("default_collate", _WORKERS),
    honoured("DefaultSampler", "each epoch in an order of its own, the same on any processes"),
    honoured(
        "DefaultSampler.shuffle", "images are always shuffled; there is no other order", (True,)
    ),
    honoured("DefaultSampler.seed", "the run's seed alone decides the order", (None,)),
    honoured(
        "DefaultSampler.round_up",
        "whether left-over images make an epoch's last step, filled up to the batch, or begin the "
        "next epoch",
        (True, False),
    ),
    refused("InfiniteSampler", "use DefaultSampler; a run by iterations goes round it as well"),
    honoured("ImageNet", "images that a list names, or all below a folder"),
    honoured("CustomDataset", "as ImageNet, with any images"),
    honoured("ImageNet.data_root", "folder that the paths start in"),
    honoured("ImageNet.ann_file", "list of the images; empty: all below the folder"),
    honoured("ImageNet.data_prefix", "folder of the images below data_root"),
    honoured("ImageNet.data_prefix.img_path", "that folder"),
    honoured("ImageNet.pipeline", "the view of an image"),
    no_effect("ImageNet.metainfo", "pre-training uses no names of classes"),
    no_effect("ImageNet.with_label", "pre-training uses no labels"),
    no_effect("ImageNet.test_mode", "the list is that of training", (False,)),
    no_effect("ImageNet.lazy_init", "the list is read once"),
    no_effect("ImageNet.serialize_data", "names are packed in any case"),
    no_effect("ImageNet.max_refetch", "an unreadable image is replaced and counted"),
    refused("ImageNet.indices", "write a shorter list and name it in ann_file"),
    refused("ImageNet.filter_cfg", "write a shorter list and name it in ann_file"),
    refused("ImageNet.classes", "pre-training uses no labels"),
    refused("ImageNet.extensions", "every format that Pillow reads is found"),
    refused("CocoDataset", "needs mmdet; name the folder with mmcls.CustomDataset"),
    refused("Places205", "name the folder with mmcls.CustomDataset"),
    refused("ImageList", "name the list in ann_file of mmcls.CustomDataset"),
    honoured("LoadImageFromFile", "images are read from local files"),
    no_effect("LoadImageFromFile.file_client_args", "images are read from local files"),
    no_effect("LoadImageFromFile.backend_args", "images are read from local files"),
    no_effect("LoadImageFromFile.to_float32", "images are float32 after they are normalised"),
    no_effect("LoadImageFromFile.color_type", "images are read in colour", ("color",)),
    no_effect("LoadImageFromFile.imdecode_backend", "there is one decoder"),
    no_effect("LoadImageFromFile.ignore_empty", "an unreadable image is replaced and counted"),
    honoured("RandomResizedCrop", "a random crop, resized with antialiasing"),
    honoured("MAERandomResizedCrop", "as RandomResizedCrop with Pillow's bicubic filter"),
    honoured("RandomResizedCrop.size", "side of the view in pixels"),
    honoured("RandomResizedCrop.scale", "share of the image's area"),
    honoured("RandomResizedCrop.ratio", "width / height"),
    honoured("RandomResizedCrop.crop_ratio_range", "area share, as scale"),
    honoured("RandomResizedCrop.aspect_ratio_range", "width / height, as ratio"),
    honoured("RandomResizedCrop.interpolation", "the filter", ("bicubic", "bilinear")),
    no_effect("RandomResizedCrop.backend", "there is one resize, with antialiasing as Pillow's"),
    no_effect("RandomResizedCrop.max_attempts", "ten, as usual"),
    honoured("RandomFlip", "mirrored left to right"),
    honoured("RandomFlip.prob", "its probability"),
    honoured("RandomFlip.direction", "other flips are not built", ("horizontal",)),
    no_effect("PackSelfSupInputs", "samples are packed by the method"),
    no_effect("PackSelfSupInputs.*", "samples are packed by the method"),
    no_effect("PackInputs", "samples are packed by the method"),
    no_effect("PackInputs.*", "samples are packed by the method"),
    honoured("MultiView", "several views of an image, each by its own transforms"),
    honoured("MultiView.num_views", "their number, or numbers"),
    honoured("MultiView.transforms", "a pipeline for each number"),
    honoured("RandomApply", "transforms with a probability; only ColorJitter is built in it"),
    honoured("RandomApply.transforms", "these"),
    honoured("RandomApply.prob", "that probability"),
    honoured("ColorJitter", "brightness, contrast, saturation and hue in a random order"),
    *(
        honoured(f"ColorJitter.{name}", "strength, a number")
        for name in ("brightness", "contrast", "saturation", "hue")
    ),
    no_effect("ColorJitter.backend", "there is one, as Pillow's"),
    honoured("RandomGrayscale", "the grey of a pixel in all channels"),
    honoured("RandomGrayscale.prob", "its probability"),
    honoured("RandomGrayscale.channel_weights", "only those of the usual grey"),
    no_effect("RandomGrayscale.keep_channels", "there are three", (True,)),
    no_effect("RandomGrayscale.color_format", "the grey is that of an RGB image", ("bgr",)),
    honoured("RandomGaussianBlur", "a Gaussian of a random width"),
    honoured("RandomGaussianBlur.sigma_min", "least width in pixels"),
    honoured("RandomGaussianBlur.sigma_max", "greatest width"),
    honoured("RandomGaussianBlur.prob", "its probability"),
    honoured("GaussianBlur", "as RandomGaussianBlur"),
    honoured("GaussianBlur.magnitude_range", "least and greatest width in pixels"),
    honoured("GaussianBlur.magnitude_std", "a uniform draw from the range", ("inf",)),
    honoured("GaussianBlur.prob", "its probability"),
    refused("GaussianBlur.radius", "set magnitude_range and magnitude_std='inf'"),
    refused("GaussianBlur.magnitude_level", "set magnitude_std='inf'"),
    no_effect("GaussianBlur.total_level", "the range is in pixels"),
    honoured("RandomSolarize", "levels from 128 on are inverted"),
    honoured("RandomSolarize.threshold", "only the middle", (128, 128.0)),
    honoured("RandomSolarize.prob", "its probability"),
    honoured("Solarize", "as RandomSolarize"),
    honoured("Solarize.thr", "only the middle", (128, 128.0)),
    honoured("Solarize.prob", "its probability"),
    *(
        refused(name, "not built for views of pre-training")
        for name in ("RandomRotation", "RandomCrop", "Resize", "RandomErasing", "Normalize")
    ),
)

OPTIMIZER = (
    honoured("OptimWrapper", "float32"),
    honoured("AmpOptimWrapper", "matrix products in float16 with a loss scale, or in dtype"),
    honoured("OptimWrapper.optimizer", "the optimizer"),
    honoured("OptimWrapper.accumulative_counts", "iterations of an optimizer step"),
    honoured("OptimWrapper.clip_grad", "greatest norm of the gradient"),
    honoured("OptimWrapper.clip_grad.max_norm", "that norm"),
    honoured("OptimWrapper.clip_grad.norm_type", "only the 2-norm is built", (2, 2.0)),
    honoured("OptimWrapper.clip_grad.type", "only the norm is clipped", ("norm",)),
    no_effect("OptimWrapper.clip_grad.error_if_nonfinite", "such a step always ends the run"),
    honoured("OptimWrapper.paramwise_cfg", "rates and decays of single parameters"),
    honoured("OptimWrapper.paramwise_cfg.custom_keys", "the longest part of a name wins"),
    honoured("OptimWrapper.paramwise_cfg.custom_keys.*", "part of the reference's name"),
    honoured("OptimWrapper.paramwise_cfg.custom_keys.*.lr_mult", "factor of the rate"),
    honoured(
        "OptimWrapper.paramwise_cfg.custom_keys.*.decay_mult",
        "factor of the decay; only 0 and 1 are built",
        (0, 0.0, 1, 1.0),
    ),
    honoured(
        "OptimWrapper.paramwise_cfg.custom_keys.*.lars_exclude",
        "neither adapted by LARS nor decayed; only together with decay_mult=0",
    ),
    honoured("OptimWrapper.paramwise_cfg.custom_keys.*.fix_lr", "a constant rate with SimSiamHook"),
    honoured("OptimWrapper.paramwise_cfg.bias_lr_mult", "factor of the rate of biases"),
    *(
        honoured(
            f"OptimWrapper.paramwise_cfg.{name}_decay_mult",
            "factor of the decay; only 0 and 1 are built",
            (0, 0.0, 1, 1.0),
        )
        for name in ("norm", "bias", "flat")
    ),
    no_effect("OptimWrapper.paramwise_cfg.dwconv_decay_mult", "no model has such convolutions"),
    no_effect("OptimWrapper.paramwise_cfg.dcn_offset_lr_mult", "no model has such convolutions"),
    no_effect("OptimWrapper.paramwise_cfg.bypass_duplicate", "a parameter is never listed twice"),
    refused("OptimWrapper.constructor", "layer decay is for quadriga finetune"),
    honoured("AmpOptimWrapper.loss_scale", "dynamic, from 65536, or a number that stays"),
    honoured("AmpOptimWrapper.dtype", "float16 or bfloat16", ("float16", "bfloat16")),
    no_effect("AmpOptimWrapper.use_fsdp", "use quadriga train with train.parallel=fsdp", (False,)),
    honoured("AdamW", "torch's fused AdamW"),
    honoured("AdamW.lr", "the rate at the batch of record"),
    honoured("AdamW.betas", "decay of the moments"),
    honoured("AdamW.eps", "added to the root of the second moment"),
    honoured("AdamW.weight_decay", "decoupled weight decay"),
    refused("AdamW.amsgrad", "not built", (False,)),
    honoured("SGD", "torch's SGD"),
    honoured("SGD.lr", "the rate at the batch of record"),
    honoured("SGD.momentum", "its momentum"),
    honoured("SGD.nesterov", "its kind"),
    honoured("SGD.weight_decay", "added to the gradient"),
    refused("SGD.dampening", "not built", (0, 0.0)),
    honoured("LARS", "You et al., 2017, with the rate inside the momentum"),
    honoured("LARS.lr", "the rate at the batch of record"),
    honoured("LARS.momentum", "its momentum"),
    honoured("LARS.weight_decay", "added to the gradient"),
    honoured("LARS.eta", "length of a step as part of the tensor's"),
    honoured("LARS.eps", "added to the denominator of that"),
    refused("LARS.nesterov", "not built", (False,)),
    refused("LARS.dampening", "not built", (0, 0.0)),
)

SCHEDULE = (
    *(
        honoured(f"{name}.{key}", why)
        for name in (
            "LinearLR",
            "ConstantLR",
            "CosineAnnealingLR",
            "PolyLR",
            "ExponentialLR",
            "MultiStepLR",
        )
        for key, why in (
            ("begin", "where it begins"),
            ("end", "where it ends"),
            ("by_epoch", "whether these are epochs or iterations"),
            ("convert_to_iter_based", "whether it changes at each iteration"),
        )
    ),
    honoured("LinearLR", "a line; its last step has the end factor"),
    honoured("LinearLR.start_factor", "first factor"),
    honoured("LinearLR.end_factor", "last factor"),
    honoured("ConstantLR", "a factor until its end"),
    honoured("ConstantLR.factor", "that factor"),
    honoured("CosineAnnealingLR", "half a cosine"),
    honoured("CosineAnnealingLR.T_max", "its length"),
    honoured("CosineAnnealingLR.eta_min", "where it ends; scaled with the rate"),
    honoured("CosineAnnealingLR.eta_min_ratio", "the same as a factor"),
    honoured("PolyLR", "a power of what is left"),
    honoured("PolyLR.power", "its exponent"),
    honoured("PolyLR.eta_min", "where it ends; scaled with the rate"),
    honoured("ExponentialLR", "a factor for each epoch or iteration"),
    honoured("ExponentialLR.gamma", "that factor"),
    honoured("MultiStepLR", "a factor at each milestone"),
    honoured("MultiStepLR.milestones", "counted from begin"),
    honoured("MultiStepLR.gamma", "that factor"),
    refused("StepLR", "write its milestones into MultiStepLR"),
    refused("OneCycleLR", "chain LinearLR and CosineAnnealingLR"),
    refused("CosineRestartLR", "chain several CosineAnnealingLR"),
)

RUN = (
    honoured("EpochBasedTrainLoop", "length in epochs"),
    honoured("EpochBasedTrainLoop.by_epoch", "the kind of loop"),
    honoured("EpochBasedTrainLoop.max_epochs", "that length"),
    no_effect("EpochBasedTrainLoop.val_interval", _EVALUATED),
    no_effect("EpochBasedTrainLoop.val_begin", _EVALUATED),
    no_effect("EpochBasedTrainLoop.dynamic_intervals", _EVALUATED),
    honoured("IterBasedTrainLoop", "length in iterations"),
    honoured("IterBasedTrainLoop.by_epoch", "the kind of loop"),
    honoured("IterBasedTrainLoop.max_iters", "that length"),
    no_effect("IterBasedTrainLoop.val_interval", _EVALUATED),
    no_effect("IterBasedTrainLoop.val_begin", _EVALUATED),
    no_effect("IterBasedTrainLoop.dynamic_intervals", _EVALUATED),
    *(
        no_effect(f"default_hooks.{name}", _ALWAYS)
        for name in ("runtime_info", "timer", "param_scheduler", "sampler_seed")
    ),
    no_effect("default_hooks.visualization", "quadriga eval draws reconstructions"),
    honoured("default_hooks.logger", "what is logged"),
    honoured("default_hooks.checkpoint", "what is saved"),
    honoured("LoggerHook", "log lines and vis_data/*.json"),
    honoured("LoggerHook.interval", "iterations between two of them"),
    no_effect("LoggerHook.ignore_last", "the first and the last step are always logged"),
    no_effect("LoggerHook.interval_exp_name", "the file of each log is named after its start"),
    no_effect("LoggerHook.log_metric_by_epoch", "both are logged"),
    refused("LoggerHook.out_dir", "set work_dir"),
    honoured("CheckpointHook", "epoch_N.pth or iter_N.pth, and last_checkpoint"),
    honoured("CheckpointHook.interval", "epochs or iterations between two; -1: only at the end"),
    honoured("CheckpointHook.by_epoch", "which of the two"),
    honoured("CheckpointHook.max_keep_ckpts", "how many are kept; -1: all"),
    honoured("CheckpointHook.save_optimizer", "whether files hold the optimizer"),
    no_effect("CheckpointHook.save_param_scheduler", "its state is a function of the step"),
    no_effect("CheckpointHook.save_last", "the last step is always saved", (True,)),
    no_effect("CheckpointHook.save_begin", "saving begins at once", (0,)),
    refused("CheckpointHook.save_best", "nothing is evaluated while it pre-trains"),
    refused("CheckpointHook.out_dir", "set work_dir"),
    refused("CheckpointHook.published_keys", "quadriga checkpoint export writes the weights alone"),
    honoured("EMAHook", "a moving average of the weights, in the files as ema_state_dict"),
    honoured("EMAHook.momentum", "1 - the decay of the average"),
    no_effect("EMAHook.strict_load", "a checkpoint is always read whole"),
    no_effect("EMAHook.update_buffers", "buffers are constants"),
    refused("EMAHook.ema_type", "only the exponential average", ("ExponentialMovingAverage",)),
    refused("EMAHook.interval", "the average follows every step", (1,)),
    refused("EMAHook.begin_iter", "the average begins with the run", (0,)),
    refused("EMAHook.begin_epoch", "the average begins with the run", (0,)),
    refused("EarlyStoppingHook", _EVALUATED),
    no_effect("env_cfg.cudnn_benchmark", "shapes of a run are fixed, and its results too"),
    no_effect("env_cfg.mp_cfg", _WORKERS),
    no_effect("env_cfg.mp_cfg.mp_start_method", _WORKERS),
    no_effect("env_cfg.mp_cfg.opencv_num_threads", "images are not decoded by OpenCV"),
    no_effect("env_cfg.resource_limit", "the limit of open files is that of the shell"),
    honoured("env_cfg.dist_cfg", "how processes meet"),
    honoured("env_cfg.dist_cfg.backend", "nccl or gloo; CPUs always use gloo", ("nccl", "gloo")),
    honoured("env_cfg.dist_cfg.port", "where they meet, under every launcher; before PORT"),
    honoured("env_cfg.dist_cfg.timeout", "seconds that a collective may take"),
    honoured("randomness.seed", "the seed; none: 0"),
    no_effect("randomness.diff_rank_seed", "draws belong to a sample, on whatever process it is"),
    no_effect("randomness.deterministic", "a run is always a function of its config and its seed"),
    honoured("auto_scale_lr.base_batch_size", "batch of record"),
    no_effect("auto_scale_lr.enable", "the rate is always scaled from the batch of record"),
    honoured("SelfSupVisualizer", "further places for the metrics"),
    honoured("Visualizer", "further places for the metrics"),
    honoured("UniversalVisualizer", "further places for the metrics"),
    *(
        row
        for name in ("SelfSupVisualizer", "Visualizer", "UniversalVisualizer")
        for row in (
            honoured(f"{name}.vis_backends", "those places"),
            no_effect(f"{name}.name", "there is one"),
            refused(f"{name}.save_dir", "set work_dir"),
        )
    ),
    honoured("LocalVisBackend", "vis_data/*.json, which is always written"),
    refused("LocalVisBackend.save_dir", "set work_dir"),
    honoured("TensorboardVisBackend", "event files below run/"),
    refused("TensorboardVisBackend.save_dir", "set work_dir"),
    honoured("WandbVisBackend", "Weights & Biases"),
    refused("WandbVisBackend.init_kwargs", "set WANDB_PROJECT and the like"),
    honoured("MLflowVisBackend", "MLflow"),
    *(
        refused(name, "there is tensorboard, wandb and mlflow")
        for name in ("ClearMLVisBackend", "NeptuneVisBackend", "DVCLiveVisBackend", "AimVisBackend")
    ),
)

MODEL = (
    honoured("SelfSupDataPreprocessor", "how pixels are normalised"),
    honoured("SelfSupDataPreprocessor.mean", "mean of each channel, 0 to 255"),
    honoured("SelfSupDataPreprocessor.std", "deviation of each channel, 0 to 255"),
    honoured("SelfSupDataPreprocessor.bgr_to_rgb", "images are read as RGB, as with true", (True,)),
    no_effect("SelfSupDataPreprocessor.rgb_to_bgr", "images stay RGB", (False,)),
    no_effect("SelfSupDataPreprocessor.non_blocking", _WORKERS),
    no_effect("SelfSupDataPreprocessor.pad_size_divisor", "views have one size", (1,)),
    no_effect("LN", "layer normalisation"),
    honoured("LN.eps", "added to the variance"),
    no_effect("LN.requires_grad", "norms are trained", (True,)),
    honoured("Pretrained", "weights to start from"),
    honoured("Pretrained.checkpoint", "a file; nothing is downloaded"),
    no_effect("Pretrained.prefix", "prefixes of names are found", ("backbone.",)),
    no_effect("Pretrained.map_location", "tensors are read to the CPU first"),
    *(
        refused(name, f"{method} is not built here yet; so far there is: {', '.join(METHODS)}")
        for name, method in NOT_BUILT.items()
    ),
    *(
        refused(name, "evaluation is quadriga eval and quadriga train warm_start.path=FILE")
        for name in ("ImageClassifier", "MaskRCNN", "FasterRCNN", "EncoderDecoder")
    ),
)

SECTIONS: dict[str, tuple[Row, ...]] = {
    "Top of the file": TOP,
    "Data": DATA,
    "Optimizer": OPTIMIZER,
    "Schedule": SCHEDULE,
    "Run": RUN,
    "Model, all methods": MODEL,
    "Parts of several methods": parts.ROWS,
    **{name: method.ROWS for name, method in METHODS.items()},
}
"""The rows, by the heading under which the page shows them."""

TABLE: dict[str, Row] = {row.key: row for rows in SECTIONS.values() for row in rows}

LIKE = {
    "AmpOptimWrapper": "OptimWrapper",
    "CustomDataset": "ImageNet",
    "MAERandomResizedCrop": "RandomResizedCrop",
}
"""Type -> type whose keys it has as well."""

DEFAULT_TYPES = {
    "optim_wrapper": "OptimWrapper",
    "data_preprocessor": "SelfSupDataPreprocessor",
    "visualizer": "Visualizer",
}
"""Name of a key -> type of a dict there that names none."""

SCOPES = ("mmselfsup", "mmcls", "mmpretrain", "mmengine", "mmcv")
"""What may stand before a type."""

OLD = (
    *("data", "runner", "lr_config", "optimizer_config", "checkpoint_config", "log_config"),
    *("dist_params", "workflow", "prefetch"),
)
"""Keys at the top of configs of 0.x."""
