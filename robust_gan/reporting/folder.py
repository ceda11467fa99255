"""The folder of an evaluation: made for one, gone on with where that one was stopped, refused to any other."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import filelock
import numpy as np
from etils import epath

from robust_gan import parallel
from robust_gan.errors import UserError
from robust_gan.evaluation import EvaluationState
from robust_gan.evaluation.loading import EvaluatedModel, EvaluationData
from robust_gan.evaluation.state import parts_of
from robust_gan.reporting import details, tables
from robust_gan.storage import files, paths, workdir
from robust_gan.types import ThreatModel

SUBJECT, SCORES = "evaluation.json", "scores.npz"

_LOCK = ".lock"


def subject(
    entrants: Sequence[EvaluatedModel],
    chosen: EvaluationData,
    threat: ThreatModel,
    *,
    attacks: Sequence[str],
    sequential: Sequence[str],
    **settings: Any,
) -> dict[str, Any]:
    """Returns what an evaluation is of: everything that its findings depend on.

    Args:
        entrants: The models.
        chosen: The images.
        threat: The threat model.
        attacks: Made on every model.
        sequential: Made in turn.
        **settings: The seed and whatever else changes findings; not the batch size or the devices, which do not.

    Returns:
        A JSON-able dictionary. A classifier that somebody brought is known by its name alone.
    """
    digest = hashlib.sha256(np.ascontiguousarray(chosen.images).tobytes())
    digest.update(np.ascontiguousarray(chosen.labels).astype(np.int64).tobytes())
    models = {}
    for entrant in entrants:
        models[entrant.model.name] = dict(entrant.description)
        if entrant.record is not None:
            leaves = json.dumps(entrant.record.leaves, sort_keys=True).encode()
            models[entrant.model.name]["sha256"] = hashlib.sha256(leaves).hexdigest()
    return {
        "models": models,
        "data": {"name": chosen.name, "split": chosen.split, "count": len(chosen.labels), "sha256": digest.hexdigest()},
        "threat": {"norm": threat.norm, "epsilon": float(threat.epsilon)},
        "attacks": list(attacks),
        "sequential": list(sequential),
        **settings,
    }


def check(directory: epath.PathLike) -> epath.Path:
    """Refuses a folder that cannot be written as far as can be seen without making it.

    Raises:
        UserError: It is a file, lies below one, or is known not to be writable.
    """
    path = paths.locate(directory)
    if paths.is_remote(path):
        paths.exists(path)
        return path
    nearest = next(folder for folder in (path, *path.parents) if folder.exists())
    if not nearest.is_dir():
        raise UserError(f"the output {path} is a file, or lies below one: give a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"the output {path} cannot be written (permission denied): give another folder")
    return path


def claim(
    path: epath.Path,
    what: dict[str, Any],
    *,
    differs: Callable[[EvaluationState], str] = lambda kept: "",
    overwrite: bool = False,
) -> EvaluationState:
    """Makes the folder of an evaluation, or finds what a stopped one had found there.

    Args:
        path: Of `check`.
        what: Of `subject`.
        differs: Says of what other models the findings are: `EvaluationState.differs`. A classifier that somebody
            brought has the same name when it was trained on.
        overwrite: Begin anew, whatever the folder holds.

    Returns:
        What is known already.

    Raises:
        UserError: The folder holds another evaluation (the sentence says what differs), or cannot be made.
    """
    file, scores = path / SUBJECT, path / SCORES
    if overwrite:
        _clear(path)
    elif file.exists():
        try:
            there = files.read_json(file)
        except files.UnreadableError:
            there = {}
        if there != json.loads(json.dumps(what)):
            names = [name for name in what if there.get(name) != what[name]] if isinstance(there, dict) else []
            raise UserError(
                f"{path} holds another evaluation (of other {', '.join(names) or 'settings'}): "
                "give another folder, or --overwrite"
            )
    else:
        # Findings without their subject are nobody's.
        scores.unlink(missing_ok=True)
    kept = EvaluationState(scores)
    if other := differs(kept):
        raise UserError(f"{path} holds an evaluation of {other}: give another folder, or --overwrite")
    try:
        path.mkdir(parents=True, exist_ok=True)
        workdir.write_text(file, json.dumps(what, indent=2) + "\n")
    except OSError as error:
        raise _unmakeable(path, error) from error
    return kept


@contextlib.contextmanager
def held(path: epath.Path | None) -> Iterator[None]:
    """Makes a folder this process's own while the context lasts; where there are several processes, the first's.

    A folder in which nothing was found belongs to no evaluation: where the context ends so, the claim is taken back.

    Args:
        path: Of `check`; None for no folder. An object store has no locks: there it is for the caller to see to it.

    Raises:
        UserError: Another process evaluates there, or the folder cannot be made.
    """
    if path is None or paths.is_remote(path):
        yield
        return
    with parallel.run_on_all_processes(lambda: _lock(path) if parallel.is_primary() else contextlib.nullcontext()):
        try:
            yield
        finally:
            if parallel.is_primary() and not any((path / name).exists() for name in (SCORES, tables.RECORD)):
                with contextlib.suppress(OSError):  # Other files in the folder stay.
                    (path / SUBJECT).unlink(missing_ok=True)
                    (path / _LOCK).unlink(missing_ok=True)
                    path.rmdir()


def _lock(path):
    try:
        path.mkdir(parents=True, exist_ok=True)
        # The system drops the lock with the process, however it dies.
        return filelock.FileLock(path / _LOCK).acquire(timeout=0)
    except filelock.Timeout as error:
        raise UserError(f"another process evaluates in {path}: wait for it, or give another folder") from error
    except OSError as error:
        raise _unmakeable(path, error) from error


def _unmakeable(path, error):
    return UserError(f"the output {path} cannot be made ({str(error.strerror).lower()}): give another folder")


def _clear(path):
    """Removes what an evaluation left, so that no file of it is taken for one of the next; other files stay."""
    for name in (SUBJECT, SCORES, tables.RECORD, tables.TABLES, tables.ADVERSARIAL, tables.EXAMPLES, tables.CURVE,
                 tables.TRANSFER, details.FILE):  # fmt: skip
        (path / name).unlink(missing_ok=True)
    if paths.exists(path / tables.CARDS):
        for card in [file for file in (path / tables.CARDS).iterdir() if file.name.endswith(".json")]:
            card.unlink()
    if paths.exists(parts_of(path / SCORES)):
        parts_of(path / SCORES).rmtree()
