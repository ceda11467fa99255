"""The states of one run, saved in the background: the newest and the best are kept, damaged ones set aside."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util

from robust_gan.checkpoint import locations, metadata, orbax_io
from robust_gan.checkpoint.metadata import SELECTION, DamagedError, DataInfo
from robust_gan.checkpoint.restore import fill
from robust_gan.config import Config
from robust_gan.errors import CheckpointError, one_line
from robust_gan.storage import leaves as leaves_lib
from robust_gan.storage import paths
from robust_gan.types import PyTree

_DAMAGED = "checkpoints_damaged"


class Writer:
    """Saves the states of one run, in the background, keeping the newest and the best.

    Args:
        workdir: The run's folder; checkpoints go to `checkpoints/` in it.
        config: The run's configuration, kept with every step.
        data: What the networks know of the data.

    Raises:
        CheckpointError: The folder cannot be written.

    Guarantees:
        `test_newest_and_best_are_kept_after_any_sequence_of_metrics`,
        `test_a_flipped_byte_is_found_or_changes_nothing`.
    """

    def __init__(self, workdir: epath.PathLike, config: Config, data: DataInfo) -> None:
        """Opens the folder, making it where there is none, and clears what a killed save left."""
        self._config, self._data = config, data
        self._directory = paths.locate(workdir) / locations.FOLDER
        self._selection = {step: _selection(self._directory, step) for step in locations.steps(self._directory)}
        # Creating directories in the background would hang the process for minutes where the folder is not writable.
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_NewestAndBest(config.max_to_keep, self._selection),
            cleanup_tmp_directories=True,
            create=False,  # Not with `multiprocessing_options`.
            multiprocessing_options=orbax_io.alone(),
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        with contextlib.ExitStack() as stack:
            stack.enter_context(orbax_io.late_reports_dropped())
            with self._writing():
                self._directory.mkdir(parents=True, exist_ok=True)
                self._manager = ocp.CheckpointManager(self._directory, options=options)
            self._closed = stack.pop_all()

    def save(self, step: int, state: PyTree, metrics: dict[str, float]) -> None:
        """Saves a state in the background; returns when its arrays are copied to the host.

        Args:
            step: Classifier steps taken; a step that is saved already is left alone.
            state: Any pytree of arrays; typed keys are stored as their data.
            metrics: Validation figures; `SELECTION` among them chooses the best step, where one that is not finite
                counts as the worst.

        Raises:
            CheckpointError: It cannot be written, or the one before could not.
        """
        if step in self._manager.all_steps():
            return
        leaves = {name: leaves_lib.to_host(leaf) for name, leaf in leaves_lib.named(state).items()}
        # JSON has no NaN, and no comparison finds a best among NaNs.
        metrics = {name: float(value) if math.isfinite(value) else -1.0 for name, value in metrics.items()}
        self._selection[step] = metrics[SELECTION]
        record = metadata.to_json(step, self._config, self._data, metrics, leaves)
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(traverse_util.unflatten_dict(leaves, sep="/")),
            config=ocp.args.JsonSave(record),
        )  # fmt: skip
        with self._writing():
            self._manager.save(step, args=items, force=True)

    def restore_latest(self, like: PyTree, warn: Callable[[str], Any] = print) -> tuple[PyTree, int] | None:
        """Restores the newest step that is whole; sets damaged newer ones aside and says so.

        Args:
            like: A state of the run: its structure, shapes and dtypes.
            warn: Called with one sentence for every damaged step.

        Returns:
            The state, of NumPy arrays and typed keys, and its step; None where there is no step.

        Raises:
            CheckpointError: There are steps but none is whole, or they are of another configuration or format.
        """
        steps = locations.steps(self._directory)
        for step in reversed(steps):
            try:
                return fill(like, metadata.read_step(self._directory, step)), step
            except DamagedError as error:
                aside = self._directory.parent / _DAMAGED / str(step)
                warn(f"{error.finding}; it is set aside as {aside} and the step before it is used")
                aside.parent.mkdir(parents=True, exist_ok=True)
                aside.rmtree(missing_ok=True)
                (self._directory / str(step)).rename(aside)
                self._selection.pop(step, None)
                self._manager.reload()
        if steps:
            raise CheckpointError(
                f"no step of {self._directory} is whole: start anew in another workdir, or restore it from a copy"
            )
        return None

    def best(self) -> tuple[int | None, float | None]:
        """Returns the best step so far, the newest of equals, and its metric; None where nothing was saved."""
        known = {step: value for step, value in self._selection.items() if value is not None}
        step = max(known, key=lambda step: (known[step], step), default=None)
        return step, None if step is None else known[step]

    def close(self) -> None:
        """Waits for the last save and releases the folder.

        Raises:
            CheckpointError: The last save failed.
        """
        with self._closed, self._writing():
            try:
                self._manager.wait_until_finished()
            finally:
                self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with orbax_io.quiet():
                try:
                    yield
                except Exception:
                    time.sleep(orbax_io.LATE)
                    raise
        except Exception as error:
            raise CheckpointError(
                f"checkpoints cannot be written to {self._directory} ({one_line(error)[:120]}): make room there, "
                "or give a workdir that can be written; finished checkpoints are as they were"
            ) from error


class _NewestAndBest:
    """Which steps Orbax keeps: its own `max_to_keep` with `best_fn` would drop the newest.

    Args:
        count: How many of the newest.
        selection: The metric of each step, None where it cannot be read: nobody knows whether that is the best.
    """

    def __init__(self, count: int, selection: dict[int, float | None]) -> None:
        self._count, self._selection = count, selection

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        selection = {info.step: self._selection.get(info.step) for info in checkpoints}
        if not selection:
            return []
        unknown = {step for step, value in selection.items() if value is None}
        kept = {*sorted(selection)[-self._count :], *unknown, metadata.best(selection)}
        return [step in kept for step in selection]


def _selection(folder: epath.Path, step: int) -> float | None:
    try:
        return metadata.read_step(folder, step).metrics.get(SELECTION)
    except CheckpointError:
        return None
