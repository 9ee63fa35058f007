"""Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, final

from quadriga.contracts.logging import Logger, LoggerConfig, LoggerContext
from quadriga.files import write_text


@final
class WandbConfig(LoggerConfig):
    """A run of Weights & Biases; a resumed run continues the same one."""

    package: ClassVar[str | None] = "wandb"
    extra: ClassVar[str | None] = "wandb"

    project: str = "quadriga"
    """The project that the run belongs to."""
    entity: str | None = None
    """User or team; none for the account's default."""
    mode: Literal["online", "offline", "disabled"] | None = None
    """offline: files in ``WORK_DIR/wandb`` that ``wandb sync`` sends later; none for the value of
    wandb's environment variables."""

    def open(self, context: LoggerContext) -> Wandb:
        """Start a run, or continue the one whose id is in the run directory."""
        return Wandb(self, context)


@final
class Wandb(Logger):
    """Sends each record; wandb's own process waits for the network, not this one.

    A step that is repeated after a resumption has the same metrics, and wandb keeps the first
    record of it.
    """

    def __init__(self, config: WandbConfig, context: LoggerContext) -> None:
        """Start or continue the run."""
        import wandb

        known = context.folder / "wandb_run_id.txt"
        identity = known.read_text(encoding="utf-8").strip() if known.exists() else None
        self._run: Any = wandb.init(
            project=config.project,
            entity=config.entity,
            mode=config.mode,
            name=context.name,
            dir=str(context.folder),
            id=identity,
            resume="allow",
            config=dict(context.config),
            settings=wandb.Settings(console="off", silent=True),
        )
        if identity is None:
            write_text(known, f"{self._run.id}\n")
        url = None if self._run.offline else self._run.url
        self.place = url or str(context.folder / "wandb")

    def log(self, record: Mapping[str, float], step: int) -> None:
        """Send a record."""
        self._run.log(dict(record), step=step)

    def close(self) -> None:
        """Send the remaining records and end wandb's process."""
        self._run.finish()
