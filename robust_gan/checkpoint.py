"""Checkpoints that know what they are; the only file that imports orbax.

A step holds two items: `state`, the arrays, and `config`, a JSON record of the run's configuration, the shape of its
images, its validation figures, and a SHA-256 digest of every array and of the record itself. Orbax checks its manifests
but not the array data: a flipped byte would restore as a silently different classifier, so digests are compared on
every restore.

What is saved are host arrays without a device axis: they restore on any number of devices.
"""

import contextlib
import dataclasses
import gc
import hashlib
import importlib.metadata
import json
import logging
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from robust_gan import config as config_lib
from robust_gan import leaves as leaves_lib
from robust_gan import networks
from robust_gan.config import Config
from robust_gan.errors import CheckpointError, UserError
from robust_gan.networks import inference
from robust_gan.types import LogitsFn, Network, PyTree
from robust_gan.version import __version__

FORMAT = 2
"""Raised when older versions could not read what is written; format 1 had no digest of its record."""

FOLDER = "checkpoints"
SELECTION = "selection"
"""The metric by which the best step is chosen; see `training`."""

_DAMAGED = "checkpoints_damaged"
_LATE = 0.1  # Seconds after a failure in which other threads still report theirs.
_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")


class DataInfo(NamedTuple):
    """What a network must know of its data.

    Attributes:
        name: The data set.
        image_shape: (H, W, C).
        num_classes: K.
        label_names: Names of the classes.
    """

    name: str
    image_shape: tuple[int, int, int]
    num_classes: int
    label_names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Record:
    """What a step says of itself, without its arrays.

    Attributes:
        directory: The folder of the checkpoints.
        step: Classifier steps taken.
        config: The run's configuration.
        data: What the networks know of the data.
        metrics: The validation figures at that step.
        versions: Versions of the libraries that wrote it.
        leaves: For each array its shape, dtype and SHA-256 digest.
    """

    directory: epath.Path
    step: int
    config: Config
    data: DataInfo
    metrics: dict[str, float]
    versions: dict[str, str]
    leaves: dict[str, dict[str, Any]]


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
        self._directory = epath.Path(workdir).expanduser().resolve() / FOLDER
        self._selection = {step: _selection(self._directory, step) for step in _steps(self._directory)}
        # Creating directories in the background would hang the process for minutes where the folder is not writable.
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_NewestAndBest(config.keep_last, self._selection),
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        with contextlib.ExitStack() as stack:
            stack.enter_context(_late_reports_dropped())
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
        record = {
            "format": FORMAT,
            "step": step,
            "config": config_lib.to_dict(self._config),
            "data": self._data._asdict(),
            "metrics": metrics,
            "versions": _versions(),
            "leaves": {
                name: leaves_lib.layout(leaf) | {"sha256": leaves_lib.digest(leaf)} for name, leaf in leaves.items()
            },
        }
        with self._writing():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(leaves_lib.nested(leaves)),
                    config=ocp.args.JsonSave(record | {"sha256": _record_digest(record)}),
                ),
                force=True,
            )

    def restore_latest(self, like: PyTree, warn=print) -> tuple[PyTree, int] | None:
        """Restores the newest step that is whole; sets damaged newer ones aside and says so.

        Args:
            like: A state of the run: its structure, shapes and dtypes.
            warn: Called with one sentence for every damaged step.

        Returns:
            The state, of NumPy arrays and typed keys, and its step; None where there is no step.

        Raises:
            CheckpointError: There are steps but none is whole, or they are of another configuration.
        """
        steps = _steps(self._directory)
        for step in reversed(steps):
            try:
                return _fill(like, read_record(self._directory, step)), step
            except _DamagedError as error:
                aside = self._directory.parent / _DAMAGED / str(step)
                warn(f"{error.finding}; it is set aside as {aside} and the step before it is used")
                aside.parent.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(aside, ignore_errors=True)
                (self._directory / str(step)).rename(aside)
                self._selection.pop(step, None)
                self._manager.reload()
        if steps:
            raise CheckpointError(
                f"no step of {self._directory} is whole: start anew in another workdir, or restore it from a copy"
            )
        return None

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
            with _quiet():
                try:
                    yield
                except Exception:
                    time.sleep(_LATE)
                    raise
        except Exception as error:
            raise CheckpointError(
                f"checkpoints cannot be written to {self._directory} ({_first_line(error)}): make room there, or give "
                "a workdir that can be written; finished checkpoints are as they were"
            ) from error


class _DamagedError(CheckpointError):
    """A step whose files are not what was written.

    Args:
        folder: The folder of the checkpoints.
        step: Which.
        why: What was found.
    """

    def __init__(self, folder: epath.Path, step: int, why: str) -> None:
        self.finding = f"the checkpoint {folder / str(step)} is damaged ({why})"
        others = ", ".join(str(number) for number in _steps(folder) if number != step)
        super().__init__(self.finding + (f": name another step, of {others}" if others else ""))


class _NewestAndBest:
    """Which steps Orbax keeps: its own `max_to_keep` with `best_fn` would drop the newest.

    Args:
        count: How many of the newest.
        selection: The metric of each step, None where it cannot be read: nobody knows whether that is the best.
    """

    def __init__(self, count: int, selection: dict[int, float | None]) -> None:
        self._count, self._selection = count, selection

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        del context
        steps = [info.step for info in checkpoints]
        if not steps:
            return []
        unknown = {step for step in steps if self._selection.get(step) is None}
        kept = {*sorted(steps)[-self._count :], *unknown, _best(steps, self._selection)}
        return [step in kept for step in steps]


def parse_location(text: str) -> tuple[str, str | int]:
    """Splits `DIR[@STEP]` into the folder and the step: a number, `best` or `last`; `best` where none is given.

    A folder that has an `@` in its own name is found as it is, or with a step after it.

    Raises:
        UserError: What follows the last `@` is none of these, and there is no folder of that name.

    >>> parse_location("runs/a@1000"), parse_location("runs/a"), parse_location("me@home/runs/a")
    (('runs/a', 1000), ('runs/a', 'best'), ('me@home/runs/a', 'best'))
    """
    directory, _, step = text.rpartition("@")
    if directory and step in ("best", "last"):
        return directory, step
    if directory and _NUMBER.fullmatch(step):
        return directory, int(step)
    if "@" not in os.path.basename(text) or epath.Path(text).expanduser().exists():
        return text, "best"
    raise UserError(f"the step of a checkpoint is a number, best or last, not {step!r} (in {text!r})")


def read_record(directory: epath.PathLike, step: str | int = "best") -> Record:
    """Reads what a step says of itself, without reading its arrays.

    Args:
        directory: A run's workdir, or its `checkpoints` folder.
        step: A number, `best` or `last`.

    Raises:
        CheckpointError: The folder or the step is missing, empty, damaged or of a newer format.
    """
    folder = _find_folder(directory)
    steps = _steps(folder)
    if not steps:
        raise CheckpointError(f"{folder} holds no finished checkpoint: train first, or name another folder")
    if step == "best":
        records = {}
        for number in steps:
            try:
                records[number] = _read_step(folder, number)
            except _DamagedError:
                time.sleep(_LATE)
                if (folder / str(number)).exists() or number == steps[-1]:
                    raise  # Else a run that goes on has just dropped it.
        return records[_best(list(records), {number: records[number].metrics.get(SELECTION) for number in records})]
    number = steps[-1] if step == "last" else step
    if number not in steps:
        raise CheckpointError(f"{folder} has no step {step}: the steps there are {', '.join(map(str, steps))}")
    return _read_step(folder, int(number))


def load_classifier(directory: epath.PathLike, step: str | int = "best") -> LogitsFn:
    """Rebuilds the classifier of a checkpoint, with nothing else given.

    Args:
        directory: A run's workdir, or its `checkpoints` folder.
        step: A number, `best` (by validation) or `last`.

    Returns:
        Images `[B, H, W, C]` in [0, 1] to logits `[B, K]`, with running BatchNorm statistics: a
        `jax.tree_util.Partial`, so it can be called, or passed to jitted functions as an argument.

    Raises:
        CheckpointError: The checkpoint is missing, damaged, or of another architecture than its configuration says.
    """
    return classifier_of(read_record(directory, step))


def load_generator(directory: epath.PathLike, step: str | int = "best"):
    """Rebuilds the generator of a checkpoint.

    Args:
        directory: A run's workdir, or its `checkpoints` folder.
        step: A number, `best` (by validation) or `last`.

    Returns:
        Images `[B, H, W, C]` in [0, 1] to noise `[B, H, W, C]` in [-1, 1], with running BatchNorm statistics.

    Raises:
        CheckpointError: As for `load_classifier`, or the run had no generator.
    """
    return generator_of(read_record(directory, step))


def classifier_of(record: Record) -> LogitsFn:
    """Rebuilds the classifier of a record that is read already; see `load_classifier`."""
    name, data = record.config.classifier.network, record.data
    like = {"classifier": _shapes(networks.build_classifier(name, data.num_classes), data.image_shape)}
    filled = _fill(like, record)["classifier"]
    classify = inference.classify(name, data.num_classes)
    return jax.tree_util.Partial(classify, filled["params"], filled["batch_stats"])


def generator_of(record: Record):
    """Rebuilds the generator of a record that is read already; see `load_generator`."""
    if not has_generator(record):
        raise CheckpointError(
            f"the run in {record.directory} has no generator: its adversary is {record.config.adversary.name!r}"
        )
    name, channels = record.config.adversary.generator.network, record.data.image_shape[-1]
    like = {"adversary": _shapes(networks.build_generator(name, channels), record.data.image_shape)}
    filled = _fill(like, record)["adversary"]
    return jax.tree_util.Partial(inference.generate(name, channels), filled["params"], filled["batch_stats"])


def has_generator(record: Record) -> bool:
    """Tells whether the run trained a generator."""
    return record.config.adversary.name == "generator"


def _shapes(network: Network, image_shape: tuple[int, ...]) -> PyTree:
    images = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
    params, batch_stats = jax.eval_shape(network.init, jax.random.key(0), images)
    return {"params": params, "batch_stats": batch_stats}


def _find_folder(directory: epath.PathLike) -> epath.Path:
    path = epath.Path(directory).expanduser()
    if not path.exists():
        raise CheckpointError(f"there is no folder {path}: give the workdir of a run")
    if not path.is_dir():
        raise CheckpointError(f"{path} is a file: give the workdir of a run, which is a folder")
    nested = path / FOLDER
    return (nested if nested.exists() else path).resolve()


def _steps(folder: epath.Path) -> list[int]:
    """The finished steps of a folder, the newest last; Orbax renames a step when it is finished."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if _NUMBER.fullmatch(path.name) and path.is_dir())


def _best(steps: list[int], selection: dict[int, float | None]) -> int:
    """The step of the largest metric; the newest of equals."""
    values = {step: selection.get(step) for step in steps}
    return max(steps, key=lambda step: (-math.inf if values[step] is None else values[step], step))


def _selection(folder: epath.Path, step: int) -> float | None:
    try:
        return _read_step(folder, step).metrics.get(SELECTION)
    except CheckpointError:
        return None


def _read_step(folder: epath.Path, step: int) -> Record:
    where = f"the checkpoint {folder / str(step)}"
    try:
        saved = _restore(folder / str(step) / "config", ocp.JsonCheckpointHandler(), ocp.args.JsonRestore())
        written = saved.pop("sha256", None)
        if written and written != _record_digest(saved):
            raise ValueError("it is not what was saved")
        if saved["format"] > FORMAT:
            raise CheckpointError(
                f"{where} has format {saved['format']}, and this version reads up to {FORMAT}: update robust_gan"
            )
        if not written and saved["format"] > 1:
            raise ValueError("it has no digest")
        if saved["step"] != step:
            raise ValueError(f"it is that of step {saved['step']}")
        data = saved["data"] | {
            "image_shape": tuple(saved["data"]["image_shape"]),
            "label_names": tuple(saved["data"]["label_names"]),
        }
        return Record(
            folder, step, config_lib.from_dict(saved["config"]), DataInfo(**data), saved["metrics"], saved["versions"],
            saved["leaves"],
        )  # fmt: skip
    except UserError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{where} does not fit this version of robust_gan: {error}") from error
    except Exception as error:
        raise _DamagedError(folder, step, f"its configuration cannot be read: {error}") from error


def _record_digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _fill(like: PyTree, record: Record) -> PyTree:
    """Restores the leaves of `like` from a step, comparing names, shapes, dtypes and digests."""
    where = f"the checkpoint {record.directory / str(record.step)}"
    wanted = leaves_lib.named(like)
    for name, leaf in wanted.items():
        saved = record.leaves.get(name)
        expected = leaves_lib.layout(leaf)
        if saved is None:
            raise CheckpointError(f"{where} is of another architecture: it has no array {name}")
        if {"shape": saved["shape"], "dtype": saved["dtype"]} != expected:
            raise CheckpointError(
                f"{where} is of another architecture: {name} is {saved['dtype']}{saved['shape']} there and "
                f"{expected['dtype']}{expected['shape']} here"
            )
    try:
        target = {name: np.empty(saved["shape"], saved["dtype"]) for name, saved in record.leaves.items()}
        args = ocp.args.StandardRestore(leaves_lib.nested(target))
        restored = _restore(record.directory / str(record.step) / "state", ocp.StandardCheckpointHandler(), args)
        found = {name: np.asarray(leaf) for name, leaf in leaves_lib.named(restored).items()}
    except Exception as error:
        raise _DamagedError(record.directory, record.step, f"its arrays cannot be read: {error}") from error
    for name in wanted:
        if name not in found or leaves_lib.digest(found[name]) != record.leaves[name]["sha256"]:
            raise _DamagedError(record.directory, record.step, f"the array {name} is not what was saved")
    leaves = [leaves_lib.from_host(leaf, found[name]) for name, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _versions() -> dict[str, str]:
    libraries = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
    return {"robust_gan": __version__} | {name: importlib.metadata.version(name) for name in libraries}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def _restore(item: epath.Path, handler: ocp.CheckpointHandler, args: Any) -> Any:
    """Restores an item of a step; what Orbax raises on damage, of many kinds, becomes one `ValueError`."""
    restored, failure = None, ""
    with _quiet(), _late_reports_dropped():
        try:
            with ocp.Checkpointer(handler) as reader:
                restored = reader.restore(item, args=args)
        except Exception as error:
            failure = _first_line(error)
        if failure:
            # The other reads report a little later, and those that nobody waits for when they are collected.
            time.sleep(_LATE)
            gc.collect()
    if failure:
        raise ValueError(failure)
    return restored


@contextlib.contextmanager
def _late_reports_dropped() -> Iterator[None]:
    """When one read or write fails, the others report to a loop that is closed by then, from threads of C++."""
    before = sys.unraisablehook

    def hook(late: Any) -> None:
        if str(late.exc_value) != "Event loop is closed":
            before(late)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax tells at length what it does; a user wants to know what failed, and that is in the exception."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
