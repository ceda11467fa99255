"""What a run leaves behind, as its first process writes it; to the others it is the same object, and writes nothing."""

import contextlib
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from robust_gan import checkpoint, evaluation, parallel
from robust_gan.config import Config
from robust_gan.game import TrainState
from robust_gan.parallel import interruption
from robust_gan.reporting import noise_images
from robust_gan.storage import workdir
from robust_gan.training.tensorboard import TensorBoardWriter

_SKIPPED = "skipped_steps"


class RunWriter:
    """The folder of a run while it is trained: claimed, with its checkpoints, metrics and timing.

    Args:
        stack: Closes everything, whatever happens.
        directory: The folder.
        config: The run.
        info: Its data.
        say: Called with a sentence where there is something to say.

    Attributes:
        folder: The folder.
        best_step: The best step so far, None where nothing was saved.
        best_value: The figure that it was chosen by.
        skipped: Steps that were not taken before, see `finiteness`.

    Raises:
        UserError: The folder cannot be had; in all processes.
    """

    def __init__(
        self,
        stack: contextlib.ExitStack,
        directory: epath.PathLike,
        config: Config,
        info: checkpoint.DataInfo,
        say: Callable[[str], Any],
    ) -> None:
        """Claims the folder."""
        self._stack, self._say = stack, say
        self._first = parallel.is_primary()
        self._claim: workdir.WorkdirLock | None = None
        self._writer: checkpoint.Writer | None = None
        self._metrics: workdir.JsonlWriter | None = None
        self._timing: workdir.JsonlWriter | None = None
        self._board: TensorBoardWriter | None = None
        self._config = config
        self.folder = epath.Path(directory)
        self.best_step: int | None = None
        self.best_value: float | None = None
        self.skipped = 0

        def claim() -> str:
            self._claim = stack.enter_context(workdir.claim(directory, config))
            self.folder = self._claim.path
            self._writer = checkpoint.Writer(self.folder, config, info)
            stack.enter_context(interruption.closed(self._writer.close))
            return os.fspath(self.folder)

        self.folder = epath.Path(parallel.broadcast_from_primary(claim))

    def restore(self, state: TrainState, *, tensorboard: bool = False) -> tuple[TrainState, int]:
        """Returns the state of the last checkpoint and its step, or the given one and 0, the same in all processes.

        Args:
            state: That of step 0.
            tensorboard: Write for TensorBoard too.

        Raises:
            UserError: No checkpoint is whole; in all processes.
        """

        def read() -> tuple[TrainState, int]:
            assert self._writer is not None
            restored = self._writer.restore_latest(state, warn=self._say)
            if restored is None:
                return state, 0
            self._say(f"going on from step {restored[1]} of {self.folder}")
            self.skipped = int(checkpoint.read_record(self.folder, restored[1]).metrics.get(_SKIPPED, 0))
            return restored

        state, start = parallel.broadcast_state_from_primary(read, state)
        if self._first:
            self._metrics = workdir.JsonlWriter(self.folder / workdir.METRICS, start)
            self._timing = workdir.JsonlWriter(self.folder / workdir.TIMING, start)
            self._stack.enter_context(interruption.closed(self._metrics.close))
            self._stack.enter_context(interruption.closed(self._timing.close))
            if tensorboard:
                self._board = TensorBoardWriter(self.folder, self._config)
                self._stack.enter_context(interruption.closed(self._board.close))
        self.skipped = parallel.broadcast_from_primary(lambda: self.skipped)
        self._find_best()
        return state, start

    def record(self, step: int, values: dict[str, float]) -> None:
        """Writes a line of metrics."""
        if self._metrics is not None:
            self._metrics.write(step, values)
        if self._board is not None:
            self._board.scalars(step, values)

    def draw(self, step: int, images: np.ndarray, noise: Mapping[str, np.ndarray]) -> None:
        """Keeps what the attacks of a validation did to a few images: the generator's, where there is one.

        Args:
            step: Steps taken.
            images: `[E, H, W, C]` in [0, 1], clean.
            noise: For each attack `[E, H, W, C]` in [-1, 1], perturbations in units of epsilon.
        """
        if self._claim is not None:
            self._claim.require()
        if self._first and evaluation.GENERATOR in noise:
            noise_images.write(self.folder, step, images, noise[evaluation.GENERATOR])
        if self._board is not None:
            self._board.perturbations(step, images, noise)

    def time(self, step: int, values: dict[str, float]) -> None:
        """Writes a line of timing."""
        if self._timing is not None:
            self._timing.write(step, values)

    def save(self, step: int, state: TrainState, metrics: dict[str, float], *, skipped: int = 0) -> None:
        """Saves a checkpoint in the background; see `checkpoint.Writer.save`.

        Args:
            step: Steps taken.
            state: The state.
            metrics: Validation figures, with the one by which the best is chosen.
            skipped: Steps that were not taken.

        Raises:
            UserError: It cannot be written, or the folder is no longer this run's own.
        """
        if self._writer is not None and self._claim is not None:
            self._claim.require()
            self._writer.save(step, state, metrics | {_SKIPPED: float(skipped)})
        self._find_best()

    def _find_best(self) -> None:
        writer = self._writer
        self.best_step, self.best_value = parallel.broadcast_from_primary(
            lambda: (None, None) if writer is None else writer.best()
        )
