"""The folder of an evaluation: made for one, gone on with where that one was stopped, refused to any other."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath

from robust_gan import files, places, workdir
from robust_gan.entrants import Chosen, Entrant
from robust_gan.errors import UserError
from robust_gan.evaluation import Kept
from robust_gan.types import ThreatModel

SUBJECT, SCORES = "evaluation.json", "scores.npz"


def subject(
    entrants: Sequence[Entrant],
    chosen: Chosen,
    threat: ThreatModel,
    *,
    attacks: Sequence[str],
    in_turn: Sequence[str],
    **settings: Any,
) -> dict[str, Any]:
    """Returns what an evaluation is of: everything that its findings depend on.

    Args:
        entrants: The models.
        chosen: The images.
        threat: The threat model.
        attacks: Made on every model.
        in_turn: Made in turn.
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
        "in_turn": list(in_turn),
        **settings,
    }


def check(directory: epath.PathLike) -> epath.Path:
    """Refuses a folder that cannot be written as far as can be seen without making it.

    Raises:
        UserError: It is a file, lies below one, or is known not to be writable.
    """
    path = places.locate(directory)
    if places.is_remote(path):
        places.exists(path)
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
    differs: Callable[[Kept], str] = lambda kept: "",
    overwrite: bool = False,
) -> Kept:
    """Makes the folder of an evaluation, or finds what a stopped one had found there.

    Args:
        path: Of `check`.
        what: Of `subject`.
        differs: Says of what other models the findings are: `Kept.differs`. A classifier that somebody brought has
            the same name when it was trained on.
        overwrite: Begin anew where the folder holds another evaluation.

    Returns:
        What is known already.

    Raises:
        UserError: The folder holds another evaluation (the sentence says what differs), or cannot be made.
    """
    file, scores = path / SUBJECT, path / SCORES
    if file.exists():
        try:
            there = files.read_json(file)
        except files.UnreadableError:
            there = {}
        if there != json.loads(json.dumps(what)):
            if not overwrite:
                names = [name for name in what if there.get(name) != what[name]] if isinstance(there, dict) else []
                raise UserError(
                    f"{path} holds another evaluation (of other {', '.join(names) or 'settings'}): "
                    "give another folder, or --overwrite"
                )
            scores.unlink(missing_ok=True)
    else:
        # Findings without their subject are nobody's.
        scores.unlink(missing_ok=True)
    kept = Kept(scores)
    if other := differs(kept):
        if not overwrite:
            raise UserError(f"{path} holds an evaluation of {other}: give another folder, or --overwrite")
        scores.unlink()
        kept = Kept(scores)
    try:
        path.mkdir(parents=True, exist_ok=True)
        workdir.write_text(file, json.dumps(what, indent=2) + "\n")
    except OSError as error:
        raise UserError(
            f"the output {path} cannot be made ({str(error.strerror).lower()}): give another folder"
        ) from error
    return kept
