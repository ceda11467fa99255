"""Saves and restores the arrays of checkpoints with Orbax; moves damaged checkpoints to another folder."""

import contextlib
import gc
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util

from robust_gan.checkpoint import metadata
from robust_gan.checkpoint.metadata import SELECTION, DamagedError, DataInfo
from robust_gan.checkpoint.restoring import fill
from robust_gan.config import Config
from robust_gan.errors import CheckpointError, one_line
from robust_gan.storage import leaves as leaves_lib
from robust_gan.storage import paths
from robust_gan.types import PyTree

_DAMAGED = "checkpoints_damaged"
_MAX_CHARACTERS = 120
"""Length of an Orbax error in a sentence."""

_LATE = 0.1
"""Seconds after a failure in which other threads of Orbax still report errors."""


class Writer:
    """Saves the states of one run in the background, and keeps the newest and the best.

    Args:
        workdir: The workdir; checkpoints are in `checkpoints/` below it.
        config: The configuration, saved with every step.
        data: Name, shapes and classes of the data.

    Raises:
        CheckpointError: The folder cannot be written.

    Guarantees:
        `test_newest_and_best_are_kept_after_any_sequence_of_metrics`,
        `test_a_flipped_byte_is_found_or_changes_nothing`.
    """

    def __init__(self, workdir: epath.PathLike, config: Config, data: DataInfo) -> None:
        self._config, self._data = config, data
        self._directory = paths.locate(workdir) / metadata.FOLDER
        self._selection = {step: _selection(self._directory, step) for step in metadata.list_steps(self._directory)}
        # Creating directories in the background would hang the process for minutes where the folder is not writable.
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_NewestAndBest(config.max_to_keep, self._selection),
            cleanup_tmp_directories=True,
            create=False,  # Not with `multiprocessing_options`.
            multiprocessing_options=_single_process(),
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        with contextlib.ExitStack() as stack:
            stack.enter_context(_ignore_late_errors())
            with self._writing():
                self._directory.mkdir(parents=True, exist_ok=True)
                self._manager = ocp.CheckpointManager(self._directory, options=options)
            self._closed = stack.pop_all()

    def save(self, step: int, state: PyTree, metrics: dict[str, float]) -> None:
        """Saves a state in the background, after its arrays are copied to the host.

        Args:
            step: Steps taken; a step that is saved already is skipped.
            state: Any pytree of arrays; typed keys are stored as their data.
            metrics: Validation metrics, including `SELECTION`, which selects the best step; a value that is not finite
                is saved as -1.

        Raises:
            CheckpointError: It, or the previous one, cannot be written.
        """
        if step in self._manager.all_steps():
            return
        leaves = {name: leaves_lib.to_host(leaf) for name, leaf in leaves_lib.named(state).items()}
        # JSON has no NaN, and NaN has no order.
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
        """Restores the newest undamaged step; moves damaged newer ones to `checkpoints_damaged/`.

        Args:
            like: A state of the run: its structure, shapes and dtypes.
            warn: Called with a sentence for each damaged step.

        Returns:
            The state, of NumPy arrays and typed keys, and its step; None if there is no step.

        Raises:
            CheckpointError: All steps are damaged, or of another configuration or format.
        """
        steps = metadata.list_steps(self._directory)
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
        """Returns the best step, the newest of equals, and its metric; None if nothing is saved."""
        known = {step: value for step, value in self._selection.items() if value is not None}
        step = max(known, key=lambda step: (known[step], step), default=None)
        return step, None if step is None else known[step]

    def close(self) -> None:
        """Waits for the last save.

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
            with _quiet():
                try:
                    yield
                except Exception:
                    time.sleep(_LATE)
                    raise
        except Exception as error:
            raise CheckpointError(
                f"checkpoints cannot be written to {self._directory} ({one_line(error)[:_MAX_CHARACTERS]}): make room "
                "there, or give a workdir that can be written; finished checkpoints are as they were"
            ) from error


class _NewestAndBest:
    """Preservation policy of Orbax; its own `max_to_keep` with `best_fn` would delete the newest.

    Args:
        count: Number of newest steps to keep.
        selection: The metric of each step, None if it cannot be read: such a step is kept.
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


def _single_process() -> ocp.options.MultiprocessingOptions:
    """Returns options by which Orbax waits for no other process: one alone reads or writes replicated arrays."""
    number = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=number, active_processes={number}, barrier_sync_key_prefix=f"process_{number}"
    )


def read_arrays(item: epath.Path, layouts: dict[str, dict[str, Any]]) -> dict[str, np.ndarray]:
    """Reads arrays by name, given the `shape` and `dtype` of each; Orbax does not verify their bytes.

    Raises:
        ValueError: They cannot be read; the message is the first line of the Orbax error.
    """
    target = {name: np.empty(layout["shape"], layout["dtype"]) for name, layout in layouts.items()}
    args = ocp.args.StandardRestore(traverse_util.unflatten_dict(target, sep="/"))
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=_single_process())
    restored, failure = None, ""
    with _quiet(), _ignore_late_errors():
        try:
            with ocp.Checkpointer(handler, multiprocessing_options=_single_process()) as reader:
                restored = reader.restore(item, args=args)
        except Exception as error:
            failure = one_line(error)[:_MAX_CHARACTERS]
        if failure:
            # Other reads report later; unawaited ones when they are garbage collected.
            time.sleep(_LATE)
            gc.collect()
    if failure:
        raise ValueError(failure)
    return {name: np.asarray(leaf) for name, leaf in traverse_util.flatten_dict(restored, sep="/").items()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the logs of Orbax, whose exceptions hold the error."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _ignore_late_errors() -> Iterator[None]:
    """Ignores errors of other reads and writes after one has failed: C++ threads report them to a closed loop."""
    before = sys.unraisablehook

    def hook(late: Any) -> None:
        if str(late.exc_value) != "Event loop is closed":
            before(late)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
