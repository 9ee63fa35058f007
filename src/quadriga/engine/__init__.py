"""The one engine: run config, loop, executor, checkpoints, metrics, console."""
