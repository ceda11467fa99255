"""The folder of an evaluation: made for one, gone on with where that one was stopped, refused to any other."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from typing import Any

import filelock
from etils import epath

from robust_gan import parallel
from robust_gan.errors import UserError
from robust_gan.evaluation import EvaluationConfig, EvaluationState
from robust_gan.evaluation.state import parts_of
from robust_gan.evaluation.subject import Subject
from robust_gan.reporting import details, evaluation_record
from robust_gan.storage import paths

STATE = "scores.npz"

_LOCK, _OLDER = ".lock", "evaluation.json"


def identify(config: EvaluationConfig, subject: Subject) -> dict[str, Any]:
    """Returns the identity of an evaluation: all that its results depend on, except the values of arrays.

    The arrays (images, labels, weights and logits of each model) are compared by `EvaluationState.differs`.

    Args:
        config: The configuration.
        subject: Models, images and attacks.

    Returns:
        A JSON-able dictionary.
    """
    models = {}
    for evaluated in subject.models:
        models[evaluated.model.name] = dict(evaluated.description)
        if evaluated.record is not None:
            leaves = json.dumps(evaluated.record.leaves, sort_keys=True).encode()
            models[evaluated.model.name]["sha256"] = hashlib.sha256(leaves).hexdigest()
    data, threat = subject.data, subject.threat
    return {
        "models": models,
        "data": {"name": data.name, "split": data.split, "count": len(data.labels)},
        "threat": {"norm": threat.norm, "epsilon": float(threat.epsilon)},
        "attacks": list(subject.attacks.names),
        "sequential": list(subject.attacks.sequential),
        **({"corruptions": True} if subject.attacks.corrupted else {}),
        **{name: value for name, value in config.identity().items() if name in _SETTINGS},
    }


_SETTINGS = ("seed", "certify", "smoothing_sigma", "smoothing_samples", "smoothing_alpha", "use_batch_stats",
             "save_adversarial", "batch_size")  # fmt: skip
"""The other fields of a configuration have been resolved: models, data, threat model and attacks."""


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
    path: epath.Path, identity: dict[str, Any], subject: Subject, config: EvaluationConfig
) -> EvaluationState:  # fmt: skip
    """Opens the folder of an evaluation, with the state of a stopped one.

    Args:
        path: Of `check`.
        identity: Of `identify`.
        subject: Models, images and attacks.
        config: The configuration; its `overwrite` removes another evaluation.

    Returns:
        The state; it is written when the first batch is done.

    Raises:
        UserError: The folder contains another evaluation (the sentence says what differs) or a state of an older
            version.
    """
    if config.overwrite:
        _clear(path)
    state = EvaluationState(path / STATE)
    identity = json.loads(json.dumps(identity))
    there = state.identify(identity)
    if there != identity:
        names = [name for name in identity if there.get(name) != identity[name]]
        raise UserError(
            f"{path} holds another evaluation (of other {', '.join(names) or 'settings'}): "
            "give another folder, or --overwrite"
        )
    other = state.differs(
        subject.sharded, subject.data.images, subject.data.labels, subject.threat, config.seed,
        attacks=[*subject.attacks.names, *subject.attacks.sequential], batch_size=config.batch_size,
        devices=subject.devices,
    )  # fmt: skip
    if other:
        raise UserError(f"{path} holds an evaluation of {other}: give another folder, or --overwrite")
    return state


@contextlib.contextmanager
def lock(path: epath.Path | None) -> Iterator[None]:
    """Locks a folder for this process; where there are several processes, for the primary one.

    An empty folder is removed again where no result was written.

    Args:
        path: Of `check`; None for no folder. An object store has no locks: the caller must exclude other processes.

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
            if parallel.is_primary() and not any((path / name).exists() for name in (STATE, evaluation_record.RECORD)):
                with contextlib.suppress(OSError):  # Other files in the folder stay.
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
    for name in (_OLDER, STATE, *evaluation_record.FILES, details.FILE):
        (path / name).unlink(missing_ok=True)
    if paths.exists(path / evaluation_record.CARDS):
        for card in [file for file in (path / evaluation_record.CARDS).iterdir() if file.name.endswith(".json")]:
            card.unlink()
    if paths.exists(parts_of(path / STATE)):
        parts_of(path / STATE).rmtree()
