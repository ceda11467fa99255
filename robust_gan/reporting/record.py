"""Reads what runs, evaluations and reproductions have recorded in their folders."""

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from etils import epath

from robust_gan.errors import UserError
from robust_gan.reporting import details, evaluation_record, noise_images, threats
from robust_gan.reporting.details import Details
from robust_gan.reporting.noise_images import NoiseImages
from robust_gan.storage import files, workdir

REPRODUCTION = "reproduction.json"
SCHEMAS = {
    evaluation_record.RECORD: evaluation_record.SCHEMA,
    threats.RECORD: threats.SCHEMA,
    REPRODUCTION: "robust_gan.reproduction/3",
}
"""The last as in `reproduction.run`, which imports this package."""

_DEPTH = 4
_SKIPPED_FOLDERS = ("checkpoints", "tensorboard", noise_images.FOLDER, "cards")


class Run(NamedTuple):
    """A training run.

    Attributes:
        name: The displayed name.
        group: Shared by the runs of one configuration with different seeds.
        folder: The workdir.
        config: As in `config.json`.
        metrics: Lines of `metrics.jsonl`.
        timing: Lines of `timing.jsonl`.
        starts: Lines of `starts.jsonl`; empty in the folder of an older version.
        noise: The generator's noise; None if there is none.
    """

    name: str
    group: str
    folder: str
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    timing: list[dict[str, Any]]
    starts: list[dict[str, Any]]
    noise: NoiseImages | None


class Evaluation(NamedTuple):
    """An evaluation.

    Attributes:
        name: To show.
        report: As in `report.json`.
        details: Image by image; None in the folder of an older version.
    """

    name: str
    report: dict[str, Any]
    details: Details | None


class Found(NamedTuple):
    """All runs, evaluations and reproductions of some folders.

    Attributes:
        runs: Runs.
        evaluations: Evaluations.
        reproductions: What `reproduction.json` holds, by folder.
        threats: What `threats.json` holds, by folder.
    """

    runs: list[Run]
    evaluations: list[Evaluation]
    reproductions: dict[str, dict[str, Any]]
    threats: dict[str, dict[str, Any]] = {}  # noqa: RUF012  # Never changed.


def find(directories: Sequence[epath.PathLike]) -> Found:
    """Finds runs, evaluations and reproductions in folders and up to four levels below.

    Args:
        directories: The folders.

    Raises:
        UserError: One is no folder or holds nothing of the kind, or a file is damaged.

    >>> find([]).runs
    []
    """
    found, seen = Found([], [], {}, {}), set[str]()
    for directory in directories:
        root = epath.Path(os.path.abspath(os.path.expanduser(os.fspath(directory))))
        if not root.is_dir():
            raise UserError(f"there is no folder {root}: give those of runs and evaluations")
        before = len(found.runs) + len(found.evaluations) + len(found.reproductions)
        folders = {os.fspath(folder): folder for folder in _folders(root, _DEPTH)}
        for path in folders.keys() - seen:
            _add(found, folders[path], root)
        after = len(found.runs) + len(found.evaluations) + len(found.reproductions)
        if after == before and not folders.keys() & seen:
            raise UserError(
                f"{root} holds no run, evaluation or reproduction: give folders that train.py, evaluate.py or "
                "reproduce.py wrote"
            )
        seen |= folders.keys()
    named = _shorten({run.folder for run in found.runs})
    runs = [run._replace(name=named[run.folder]) for run in sorted(found.runs, key=lambda run: run.folder)]
    return Found(_group(runs), sorted(found.evaluations, key=lambda one: one.name), found.reproductions, found.threats)


def _group(runs: list[Run]) -> list[Run]:
    """Gives the runs of one configuration with different seeds one group, named after all of them."""
    same: dict[str, list[Run]] = {}
    for run in runs:
        config = {name: value for name, value in run.config.items() if name != "seed"}
        same.setdefault(json.dumps(config, sort_keys=True), []).append(run)
    groups: dict[str, str] = {}
    for members in same.values():
        if len({run.config.get("seed") for run in members}) == len(members) > 1:
            first, *_, last = [os.path.basename(run.folder) for run in members]
            groups |= {run.folder: first if first == last else f"{first} to {last}" for run in members}
    return [run._replace(group=groups.get(run.folder, run.name)) for run in runs]


def _shorten(paths: set[str]) -> dict[str, str]:
    """Returns the shortest distinct names of paths, made of their last parts.

    >>> sorted(_shorten({"/a/b/c", "/a/d/c", "/a/e"}).values())
    ['b/c', 'd/c', 'e']
    """
    named: dict[str, str] = {}
    for depth in range(1, 2 + max((path.count("/") for path in paths), default=0)):
        ends = {path: "/".join(path.split("/")[-depth:]) for path in paths}
        for path, end in ends.items():
            if list(ends.values()).count(end) == 1:
                named.setdefault(path, end)
    return named


def _folders(folder: epath.Path, depth: int) -> Iterator[epath.Path]:
    yield folder
    if depth:
        for path in sorted(folder.iterdir()):
            if path.is_dir() and path.name not in _SKIPPED_FOLDERS and not path.name.startswith("."):
                yield from _folders(path, depth - 1)


def _add(found: Found, folder: epath.Path, root: epath.Path) -> None:
    name = folder.name if folder == root else f"{root.name}/{folder.relative_to(root)}"
    if (folder / workdir.CONFIG).exists() and (folder / workdir.METRICS).exists():
        where, config = os.fspath(folder), _json(folder / workdir.CONFIG)
        metrics, timing, starts = (_lines(folder / f) for f in (workdir.METRICS, workdir.TIMING, workdir.STARTS))
        found.runs.append(Run(where, where, where, config, metrics, timing, starts, noise_images.read(folder)))
    if (folder / evaluation_record.RECORD).exists():
        found.evaluations.append(Evaluation(name, _of_schema(folder / evaluation_record.RECORD), details.read(folder)))
    if (folder / REPRODUCTION).exists():
        found.reproductions[name] = _of_schema(folder / REPRODUCTION)
    if (folder / threats.RECORD).exists():
        found.threats[name] = _of_schema(folder / threats.RECORD)


def _of_schema(path: epath.Path) -> dict[str, Any]:
    values = _json(path)
    if values.get("schema") != SCHEMAS[path.name]:
        raise UserError(
            f"{path} is of the schema {values.get('schema')!r}, not {SCHEMAS[path.name]}: make it again, or leave its "
            "folder out"
        )
    return values


def _json(path: epath.Path) -> dict[str, Any]:
    try:
        values = files.read_json(path)
    except (files.UnreadableError, FileNotFoundError) as error:
        raise UserError(f"{path} is damaged ({error}): leave its folder out") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged (it holds no object): leave its folder out")
    return values


def _lines(path: epath.Path) -> list[dict[str, Any]]:
    """Reads JSON lines; the last may be incomplete while training is running."""
    try:
        lines = files.read_lines(path)
    except files.UnreadableError as error:
        raise UserError(f"{path} is damaged ({error}): leave its folder out") from error
    return [line for line in lines if isinstance(line.get("step"), int)]
