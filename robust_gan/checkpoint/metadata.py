"""The location and the record of a checkpoint: written, signed with a digest, and read without its arrays."""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import re
import time
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from robust_gan import config as config_lib
from robust_gan import networks
from robust_gan.checkpoint import exported
from robust_gan.config import Config
from robust_gan.errors import CheckpointError, UserError
from robust_gan.storage import leaves as leaves_lib
from robust_gan.storage import paths
from robust_gan.version import __version__, get_commit

FOLDER = "checkpoints"

FORMAT = 2
"""Increased with every change of the saved files; no other format is read."""

SELECTION = "selection"
"""The metric that selects the best step, see `training.evaluator`."""

_FINISHED = "commit_success.txt"
_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")
_DIGEST = "sha256"
_DELETING = 0.1  # Seconds within which a training process deletes a step.


class DataInfo(NamedTuple):
    """The data of a network.

    Attributes:
        name: The data set.
        image_shape: (H, W, C).
        num_classes: K.
        label_names: Names of the classes.
        digest: Of the images and labels; empty in checkpoints of earlier versions.
    """

    name: str
    image_shape: tuple[int, int, int]
    num_classes: int
    label_names: tuple[str, ...]
    digest: str = ""


@dataclasses.dataclass(frozen=True)
class Record:
    """The record of a step.

    Attributes:
        directory: The folder of the checkpoints; or of an exported model the file, or `zoo:NAME`.
        step: Steps taken.
        config: The configuration of the run.
        data: The data of the run.
        metrics: The validation metrics at that step.
        versions: Versions of the libraries that wrote it, and the `commit` of robust_gan, where it ran from a clone.
        leaves: Shape, dtype and SHA-256 digest of each array.
    """

    directory: epath.Path
    step: int
    config: Config
    data: DataInfo
    metrics: dict[str, float]
    versions: dict[str, str]
    leaves: dict[str, dict[str, Any]]

    @property
    def path(self) -> epath.Path:
        """The folder of the step, or the file of the exported model."""
        return _path(self.directory, self.step)


class DamagedError(CheckpointError):
    """A step whose files differ from the saved ones.

    Args:
        folder: The folder of the checkpoints, or the exported model.
        step: The step.
        why: The damage.
    """

    def __init__(self, folder: epath.Path, step: int, why: str) -> None:
        self.finding = f"the checkpoint {_path(folder, step)} is damaged ({why})"
        others = ", ".join(str(number) for number in list_steps(folder) if number != step)
        super().__init__(self.finding + (f": name another step, of {others}" if others else ""))


def parse_location(text: str) -> tuple[str, str | int]:
    """Splits `DIR[@STEP]` into the folder and the step: a number, `last`, or `best`, the default.

    The folder may also be a file of `export`, or `zoo:NAME`. Its name may contain `@`.

    Raises:
        UserError: The text after the last `@` is no step, and there is no folder of that name.

    >>> parse_location("runs/a@1000"), parse_location("runs/a"), parse_location("me@home/runs/a")
    (('runs/a', 1000), ('runs/a', 'best'), ('me@home/runs/a', 'best'))
    """
    directory, _, step = text.rpartition("@")
    if directory and step in ("best", "last"):
        return directory, step
    if directory and _NUMBER.fullmatch(step):
        return directory, int(step)
    if "@" not in os.path.basename(text) or paths.exists(paths.locate(text)):
        return text, "best"
    raise UserError(f"the step of a checkpoint is a number, best or last, not {step!r} (in {text!r})")


def find_folder(directory: epath.PathLike) -> epath.Path:
    """Returns the absolute path of the folder of the checkpoints.

    Args:
        directory: A run's workdir, or its `checkpoints` folder.

    Raises:
        CheckpointError: There is no such folder.

    >>> workdir = getfixture("tmp_path")
    >>> (workdir / FOLDER).mkdir()
    >>> find_folder(workdir) == find_folder(workdir / FOLDER)
    True
    """
    path = paths.locate(directory)
    if not paths.exists(path):
        raise CheckpointError(f"there is no folder {path}: give the workdir of a run")
    if not path.is_dir():
        raise CheckpointError(
            f"{path} is a file: give the workdir of a run, which is a folder, or a file of robust-gan-export"
        )
    nested = path / FOLDER
    return nested if nested.exists() else path


def list_steps(folder: epath.Path) -> list[int]:
    """Returns the finished steps of a folder, the newest last.

    Orbax renames a finished step; in an object store, where that is not atomic, it writes a file into it.

    >>> folder = epath.Path(getfixture("tmp_path"))
    >>> for name in ("20", "3", "40.orbax-checkpoint-tmp"):
    ...     (folder / name).mkdir()
    >>> list_steps(folder)
    [3, 20]
    """
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NUMBER.fullmatch(path.name) and path.is_dir()]
    if paths.is_remote(folder):
        found = [path for path in found if (path / _FINISHED).exists()]
    return sorted(int(path.name) for path in found)


def has_steps(directory: epath.PathLike) -> bool:
    """Returns whether a workdir, which need not exist, holds a finished step.

    >>> has_steps(getfixture("tmp_path"))
    False
    """
    return bool(list_steps(paths.locate(directory) / FOLDER))


def to_json(
    step: int, config: Config, data: DataInfo, metrics: dict[str, float], leaves: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Returns the signed record of a step.

    Args:
        step: Steps taken.
        config: The configuration of the run.
        data: The data of the run.
        metrics: The validation metrics, all finite: JSON has no NaN.
        leaves: The arrays by name.

    >>> info = DataInfo("digits", (8, 8, 1), 10, tuple("0123456789"))
    >>> written = to_json(3, Config(), info, {SELECTION: 0.5}, {"x": np.zeros(2, np.float32)})
    >>> written["leaves"]["x"]["shape"], written["format"] == FORMAT
    ([2], True)
    """
    return signed(
        {
            "format": FORMAT,
            "step": step,
            "config": config_lib.to_dict(config),
            "data": data._asdict(),
            "metrics": metrics,
            "versions": _versions(),
            "networks": _revisions(config),
            "leaves": {
                name: leaves_lib.layout(leaf) | {"sha256": leaves_lib.digest(leaf)} for name, leaf in leaves.items()
            },
        }
    )


def signed(record: dict[str, Any]) -> dict[str, Any]:
    """Returns a record with the digest of what it holds.

    >>> signed({"step": 3}) == signed(signed({"step": 3})), signed({"step": 3}) == signed({"step": 4})
    (True, False)
    """
    content = {name: value for name, value in record.items() if name != _DIGEST}
    return content | {_DIGEST: hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}


def read_record(directory: epath.PathLike, step: str | int = "best") -> Record:
    """Reads the record of a step, without its arrays.

    Args:
        directory: A run's workdir, or its `checkpoints` folder; or a file of `export`, or `zoo:NAME`.
        step: A number, `best` or `last`.

    Returns:
        The record.

    Raises:
        CheckpointError: The folder or the step is missing, empty, damaged or of another format.
    """
    if exported.is_exported(directory):
        return _read_exported(directory, step)
    folder = find_folder(directory)
    steps = list_steps(folder)
    if not steps:
        raise CheckpointError(f"{folder} holds no finished checkpoint: train first, or name another folder")
    if step == "best":
        records = {}
        for number in steps:
            try:
                records[number] = read_step(folder, number)
            except DamagedError:
                time.sleep(_DELETING)
                if (folder / str(number)).exists() or number == steps[-1]:
                    raise  # Else a training process has just deleted it.
        return records[best({number: record.metrics.get(SELECTION) for number, record in records.items()})]
    wanted = steps[-1] if step == "last" else step
    if wanted not in steps:
        raise CheckpointError(f"{folder} has no step {step}: the steps there are {', '.join(map(str, steps))}")
    return read_step(folder, int(wanted))


def read_step(folder: epath.Path, step: int) -> Record:
    """Reads the record of a step.

    Args:
        folder: The folder of the checkpoints.
        step: The step.

    Raises:
        DamagedError: It differs from the saved one.
        CheckpointError: The format, the configuration or a network is of another version.
    """
    try:
        saved = json.loads((folder / str(step) / "config" / "metadata").read_text())
        record = _from_json(saved, folder, step)
        if record.step != step:
            raise ValueError(f"it is that of step {record.step}")
        return record
    except CheckpointError:
        raise
    except Exception as error:
        raise DamagedError(folder, step, f"its configuration cannot be read: {error}") from error


def _read_exported(location: epath.PathLike, step: str | int) -> Record:
    file = exported.find_file(location)
    # A shipped model keeps its name, which is the same on every machine.
    directory = epath.Path(location) if os.fspath(location).startswith(exported.ZOO) else file
    saved = exported.read(file)[1]
    try:
        record = _from_json(saved, directory, step)
    except CheckpointError:
        raise
    except Exception as error:
        raise DamagedError(directory, 0, f"its record cannot be read: {error}") from error
    if step not in ("best", "last", record.step):
        raise CheckpointError(f"{directory} holds step {record.step} alone, not {step}")
    return record


def _from_json(saved: dict[str, Any], directory: epath.Path, step: str | int) -> Record:
    """Returns the record of what `to_json` returned.

    Raises:
        CheckpointError: The format, the configuration or a network is of another version.
        Exception: It is damaged.
    """
    where = f"the checkpoint {_path(directory, step)}"
    if _DIGEST in saved and saved != signed(saved):
        raise ValueError("it is not what was saved")
    if saved["format"] != FORMAT:
        raise CheckpointError(
            f"{where} has format {saved['format']}, and this version of robust_gan reads format {FORMAT} alone: "
            "load it with the version that wrote it"
        )
    if _DIGEST not in saved:
        raise ValueError("it has no digest")
    data = saved["data"] | {
        "image_shape": tuple(saved["data"]["image_shape"]),
        "label_names": tuple(saved["data"]["label_names"]),
    }
    try:
        config = config_lib.from_dict(saved["config"])
    except UserError as error:
        raise CheckpointError(f"{where} does not fit this version of robust_gan: {error}") from error
    for name, revision in _revisions(config).items():
        if saved.get("networks", {}).get(name, 1) != revision:
            raise CheckpointError(
                f"{where} is of another network {name!r} than that of this version of robust_gan, in which its "
                "weights would mean something else: load it with the version that wrote it, or train again"
            )
    return Record(
        directory, saved["step"], config, DataInfo(**data), saved["metrics"], saved["versions"], saved["leaves"]
    )  # fmt: skip


def _path(directory: epath.Path, step: str | int) -> epath.Path:
    return directory if exported.is_exported(directory) else directory / str(step)


def best(selection: dict[int, float | None]) -> int:
    """Returns the step of the largest metric; the newest of equals.

    Args:
        selection: The metric of each step, None if it has none; at least one step.

    >>> best({1: 0.25, 2: 0.5, 3: 0.5, 4: None})
    3
    """
    values = {step: -math.inf if value is None else value for step, value in selection.items()}
    return max(values, key=lambda step: (values[step], step))


def _revisions(config: Config) -> dict[str, int]:
    """Returns the revisions of a run's networks; see `networks.REVISIONS`."""
    names = [config.classifier.network]
    if config.adversary.name == "generator":
        names.append(config.adversary.generator.network)
    return {name: networks.REVISIONS.get(name, 1) for name in names}


def _versions() -> dict[str, str]:
    libraries = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
    return {"robust_gan": __version__, "commit": get_commit()} | {
        name: importlib.metadata.version(name) for name in libraries
    }
