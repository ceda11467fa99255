"""What an evaluation has found so far, kept on disk, so that a stopped one goes on where it was."""

import copy
import io

import numpy as np
from etils import epath

from robust_gan import parallel, workdir
from robust_gan.errors import UserError

_DONE = "done: "


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
                self._arrays = _unpacked(self._path.read_bytes())
            except (ValueError, OSError, EOFError, KeyError) as error:
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
            self._path, self._arrays = None, _unpacked(content)
        return self

    def _packed(self) -> bytes:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **self._arrays)  # type: ignore[arg-type]
        return buffer.getvalue()


def _unpacked(content: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return {name: np.array(file[name]) for name in file.files}
