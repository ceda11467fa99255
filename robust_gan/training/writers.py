"""The files of a run: checkpoints, metrics, timing, noise images, TensorBoard. Only the primary process writes."""

import contextlib
import datetime
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from etils import epath

from robust_gan import checkpoint, evaluation, parallel
from robust_gan.config import Config, imports, to_dict
from robust_gan.errors import UserError
from robust_gan.game import TrainState
from robust_gan.parallel import interruption
from robust_gan.reporting import noise_images
from robust_gan.storage import workdir
from robust_gan.training.setup import Setup
from robust_gan.version import made_by

TENSORBOARD = "tensorboard"
_SKIPPED = "skipped_steps"


class MetricWriter(Protocol):
    """Receives the metrics of a run, to send them to a server or to write them to a file."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes metrics by name, `train/...` every `log_every` steps, `validation/...` and others at validations.

        Args:
            step: Steps taken. A resumed run repeats the steps after its checkpoint.
            values: Finite numbers.
        """

    def close(self) -> None:
        """Ends writing, also after an error."""


def load_writers(names: Sequence[str], config: Config, directory: epath.PathLike) -> list[MetricWriter]:
    """Imports functions that return a `MetricWriter` each, and calls them in the primary process.

    Args:
        names: `package.module:function`; the function takes any of `config`, as nested dictionaries, and `workdir`.
        config: The run.
        directory: Its workdir.

    Raises:
        UserError: A function cannot be imported or fails, or returns something else.

    >>> load_writers([], Config(), "runs/digits")
    []
    """
    found = []
    for name in names if parallel.is_primary() else ():
        arguments = {"config": to_dict(config), "workdir": os.fspath(directory)}
        writer = imports.call_function(name, "metric writer", "a writer of metrics", arguments)
        if not all(callable(getattr(writer, method, None)) for method in ("write", "close")):
            raise UserError(
                f"{name} must return an object with the methods write(step, values) and close(), not "
                f"{type(writer).__name__}"
            )
        found.append(writer)
    return found


class RunWriter:
    """Writes the workdir of a run; in all processes but the primary one the same methods write nothing.

    Args:
        stack: Closes all files when the run ends.
        directory: The workdir.
        setup: The run.
        log_fn: Called with a sentence.
        metric_writers: Receive the metrics too.

    Attributes:
        folder: The workdir, absolute.
        best_step: The best step so far, None if nothing is saved.
        best_value: Its selection metric.
        skipped: Steps that were skipped before the run was resumed.

    Raises:
        UserError: The workdir cannot be locked or written; in all processes.
    """

    def __init__(
        self, stack: contextlib.ExitStack, directory: epath.PathLike, setup: Setup, log_fn: Callable[[str], Any],
        metric_writers: Sequence[MetricWriter] = (),
    ) -> None:  # fmt: skip
        self._stack, self._config, self._info, self._log_fn = stack, setup.config, setup.info, log_fn
        self._lock: workdir.WorkdirLock | None = None
        self._checkpoints: checkpoint.Writer | None = None
        self._metric_writers: list[MetricWriter] = []
        self._timing: workdir.JsonlWriter | None = None
        self._tensorboard: TensorBoardWriter | None = None
        self.best_step: int | None = None
        self.best_value: float | None = None
        self.skipped = 0

        def lock() -> str:
            self._lock = stack.enter_context(workdir.lock(directory, setup.config))
            self._checkpoints = checkpoint.Writer(self._lock.path, setup.config, setup.info)
            self._close_at_end(self._checkpoints)
            for writer in metric_writers:
                self._add(writer)
            return os.fspath(self._lock.path)

        self.folder = epath.Path(parallel.broadcast_from_primary(lock))

    def restore(self, state: TrainState, *, tensorboard: bool = False) -> tuple[TrainState, int]:
        """Returns the state and the step of the last checkpoint, or the given state and 0, equal in all processes.

        Args:
            state: The state at step 0.
            tensorboard: Whether to write for TensorBoard too.

        Raises:
            UserError: All checkpoints are damaged, or are of a run on other data; in all processes.
        """

        def read() -> tuple[TrainState, int]:
            assert self._checkpoints is not None
            restored = self._checkpoints.restore_latest(state, warn=self._log_fn)
            if restored is not None:
                self._check_data(restored[1])
            if restored is None:
                return state, 0
            self._log_fn(f"resuming from step {restored[1]} of {self.folder}")
            self.skipped = int(checkpoint.read_record(self.folder, restored[1]).metrics.get(_SKIPPED, 0))
            return restored

        state, start = parallel.broadcast_state_from_primary(read, state)
        if self._lock is not None:
            self._add(workdir.JsonlWriter(self.folder / workdir.METRICS, start))
            self._timing = workdir.JsonlWriter(self.folder / workdir.TIMING, start)
            self._close_at_end(self._timing)
            starts = workdir.JsonlWriter(self.folder / workdir.STARTS, start)
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            starts.write(start, {"created": now, **made_by()})
            starts.close()
            if tensorboard:
                self._tensorboard = TensorBoardWriter(self.folder, self._config)
                self._add(self._tensorboard)
        self.skipped = parallel.broadcast_from_primary(lambda: self.skipped)
        self._update_best()
        return state, start

    def _check_data(self, step: int) -> None:
        before = checkpoint.read_record(self.folder, step).data.digest
        if before and before != self._info.digest:
            raise UserError(
                f"{self.folder} holds a run on other images or labels of {self._info.name}: give another workdir, or "
                "the data of before to resume it"
            )

    def write_metrics(self, step: int, values: dict[str, float]) -> None:
        """Writes a line of metrics."""
        for writer in self._metric_writers:
            writer.write(step, values)

    def write_timing(self, step: int, values: dict[str, float]) -> None:
        """Writes a line of timing."""
        if self._timing is not None:
            self._timing.write(step, values)

    def write_noise(self, step: int, images: np.ndarray, noise: Mapping[str, np.ndarray]) -> None:
        """Writes the perturbations of a few images: the generator's as PNG, all of them for TensorBoard.

        Args:
            step: Steps taken.
            images: `[E, H, W, C]` in [0, 1], clean.
            noise: For each attack `[E, H, W, C]` in [-1, 1], perturbations in units of epsilon.
        """
        if self._lock is not None:
            self._lock.require()
            if evaluation.GENERATOR in noise:
                noise_images.write(self.folder, step, images, noise[evaluation.GENERATOR])
        if self._tensorboard is not None:
            self._tensorboard.write_perturbations(step, images, noise)

    def save(self, step: int, state: TrainState, metrics: dict[str, float], *, skipped: int = 0) -> None:
        """Saves a checkpoint in the background; see `checkpoint.Writer.save`.

        Args:
            step: Steps taken.
            state: The state.
            metrics: Validation metrics, including `checkpoint.SELECTION`.
            skipped: Steps skipped so far.

        Raises:
            UserError: It cannot be written, or the workdir no longer belongs to this run.
        """
        if self._checkpoints is not None and self._lock is not None:
            self._lock.require()
            self._checkpoints.save(step, state, metrics | {_SKIPPED: float(skipped)})
        self._update_best()

    def _add(self, writer: MetricWriter) -> None:
        self._metric_writers.append(writer)
        self._close_at_end(writer)

    def _close_at_end(self, writer: Any) -> None:
        self._stack.enter_context(interruption.closed(writer.close))

    def _update_best(self) -> None:
        checkpoints = self._checkpoints
        self.best_step, self.best_value = parallel.broadcast_from_primary(
            lambda: (None, None) if checkpoints is None else checkpoints.best()
        )


class TensorBoardWriter:
    """Writes TensorBoard event files (extra `tensorboard`).

    Args:
        folder: The workdir.
        config: The run, written as text.
    """

    def __init__(self, folder: epath.Path, config: Config) -> None:
        import tensorboardX

        self._writer: Any = tensorboardX.SummaryWriter(os.fspath(folder / TENSORBOARD))
        text = json.dumps(to_dict(config), indent=2)
        self._writer.add_text("config", "\n".join(f"    {line}" for line in text.splitlines()), 0)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def write_perturbations(self, step: int, images: np.ndarray, noise: Mapping[str, np.ndarray]) -> None:
        """Writes a histogram and an image of the perturbations of each attack; arguments as `RunWriter.write_noise`."""
        clean = noise_images.concatenate(images)
        for attack, perturbations in noise.items():
            self._writer.add_histogram(f"perturbation/{attack}", perturbations.ravel(), step)
            pixels = np.concatenate([clean, (noise_images.concatenate(perturbations) + 1) / 2])
            pixels = np.rint(255 * pixels).astype(np.uint8)
            self._writer.add_image(f"perturbation/{attack}", pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Flushes and closes the files."""
        self._writer.close()
