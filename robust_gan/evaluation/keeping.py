"""What an evaluation has found so far, kept on disk, so that a stopped one goes on where it was."""

import copy
import hashlib
import io
from collections.abc import Sequence

import numpy as np
from etils import epath

from robust_gan import files, parallel, workdir
from robust_gan.errors import UserError
from robust_gan.evaluation.models import Model, answers
from robust_gan.types import ThreatModel

_DONE = "done: "
_TOLERANCE = 1e-4
"""By how much logits may differ, beside the largest: they are rounded otherwise on another device."""


class Kept:
    """Findings image by image, under names, and of which images each is known already.

    Args:
        path: An `.npz` file, read if it is there and written by `save`; None to keep them in memory.

    Raises:
        UserError: The file is there but is not one of these.

    >>> kept = Kept()
    >>> stood, done = kept.part("pgd10", 3)
    >>> stood[1], done[1] = True, True
    >>> kept.part("pgd10", 3)[0].tolist()
    [False, True, False]
    """

    def __init__(self, path: epath.PathLike | None = None) -> None:
        """Reads what is there."""
        self._path = None if path is None else epath.Path(path)
        self._arrays: dict[str, np.ndarray] = {}
        self._prefix = ""
        if self._path is not None and self._path.exists():
            try:
                self._arrays = files.read_arrays(self._path)
            except files.UnreadableError as error:
                raise UserError(
                    f"{self._path} is damaged ({error}): remove it, and the evaluation begins anew"
                ) from error

    def part(self, name: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the findings of a name and of which images they are known, to be filled in place.

        Args:
            name: Whose.
            count: N, images.

        Returns:
            bool `[N]` each; all False where nothing is known.
        """
        return self.array(name, np.zeros(count, bool)), self.array(_DONE + name, np.zeros(count, bool))

    def array(self, name: str, start: np.ndarray) -> np.ndarray:
        """Returns the array of a name, to be filled in place.

        Args:
            name: Which.
            start: What it is where nothing is known; copied.

        Raises:
            UserError: The one on disk has another shape.
        """
        found = self._arrays.setdefault(self._prefix + name, np.array(start))
        if found.shape != start.shape:
            raise UserError(f"{self._path} is of another number of images: remove it, and the evaluation begins anew")
        return found

    def differs(
        self, models: Sequence[Model], images: np.ndarray, labels: np.ndarray, threat: ThreatModel, seed: int
    ) -> str:
        """Says in what another evaluation was that found this; where nothing was found, remembers of which this is.

        A model is known by its logits on the first images: under the same name it may have been trained on.

        Args:
            models: Whom to evaluate, and on whom attacks are made.
            images: uint8 or float `[N, H, W, C]`.
            labels: `[N]`.
            threat: The threat model.
            seed: Of the attacks.

        Returns:
            What is another; empty where nothing is.

        >>> from robust_gan import LinfThreat
        >>> kept, images, labels = Kept(), np.zeros((2, 2, 2, 1), np.float32), np.zeros(2, int)
        >>> kept.differs([], images, labels, LinfThreat(0.1), 0), kept.differs([], images, labels, LinfThreat(0.2), 0)
        ('', 'another threat model')
        """
        radius = np.array([threat.norm == "l2", float(threat.epsilon), *threat.bounds], np.float64)
        parts = {"other images": _digest(images), "other labels": _digest(labels.astype(np.int64)),
                 "another threat model": radius, "another seed": np.array(seed),
                 **{f"another {model.name}": answers(model, images) for model in models}}  # fmt: skip
        return next((what for what, value in parts.items() if not self._agrees(f"of {what}", value)), "")

    def belong(
        self, models: Sequence[Model], images: np.ndarray, labels: np.ndarray, threat: ThreatModel, seed: int
    ) -> None:
        """Refuses what was found in another evaluation; the arguments are those of `differs`.

        Raises:
            UserError: The findings are of another.

        >>> from robust_gan import LinfThreat
        >>> Kept().belong([], np.zeros((2, 2, 2, 1), np.float32), np.zeros(2, int), LinfThreat(0.1), 0)
        """
        if what := self.differs(models, images, labels, threat, seed):
            name = "what was kept" if self._path is None else self._path
            raise UserError(f"{name} is of {what}: give a new file for this evaluation")

    def _agrees(self, name: str, value: np.ndarray) -> bool:
        there = self._arrays.setdefault(self._prefix + name, np.array(value))
        if there.shape != value.shape:
            return False
        largest = np.abs(value[np.isfinite(value)]).max(initial=0)  # Logits may be infinite or NaN.
        return np.allclose(there, value, rtol=0, atol=_TOLERANCE * largest, equal_nan=True)

    def under(self, prefix: str) -> "Kept":
        """Returns the same findings, with a prefix before every name: those of one evaluation of several."""
        part = copy.copy(self)
        part._prefix = self._prefix + prefix
        return part

    def save(self) -> None:
        """Writes everything, all or nothing."""
        if self._path is None:
            return
        workdir.write_bytes(self._path, self._packed())

    def shared(self) -> "Kept":
        """Returns, in every process, what the first has; it alone writes it.

        >>> kept = Kept()
        >>> kept.shared() is kept
        True
        """
        if parallel.number()[1] == 1:
            return self
        content = parallel.bytes_from_first(self._packed)
        if not parallel.is_first():
            self._path, self._arrays = None, files.unpack_arrays(content)
        return self

    def _packed(self) -> bytes:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **self._arrays)  # type: ignore[arg-type]
        return buffer.getvalue()


def _digest(array: np.ndarray) -> np.ndarray:
    layout = f"{array.dtype} {array.shape}".encode()
    digest = hashlib.sha256(layout + np.ascontiguousarray(array).tobytes()).digest()
    return np.frombuffer(digest, np.uint8).astype(np.int16)
