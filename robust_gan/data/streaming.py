"""Images that are read when they are indexed: of mapped files, of folders, of prepared sets."""

import functools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

MAX_IN_MEMORY = 2**31
"""Bytes of the images of a folder or split; larger ones are streamed. A constant, since checksums depend on it."""

Reader = Callable[[np.ndarray], np.ndarray]
"""Reads the images at positions int `[M]` as uint8 `[M, H, W, C]`."""


class StreamedImages:
    """Images `[N, H, W, C]` of which each access reads some, as uint8; nothing of them stays in memory.

    Args:
        read: Reads images.
        positions: Those of the N images, int `[N]`.
        image_shape: `(H, W, C)`.

    >>> images = StreamedImages(lambda positions: np.uint8(positions)[:, None, None, None], np.array([4, 5]), (1, 1, 1))
    >>> images.shape, images[1:].ravel().tolist()
    ((2, 1, 1, 1), [5])
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, read: Reader, positions: np.ndarray, image_shape: tuple[int, ...]) -> None:
        self._read, self._positions = read, positions
        self.shape = (len(positions), *image_shape)

    def __len__(self) -> int:
        """Returns N."""
        return len(self._positions)

    def __getitem__(self, rows: np.ndarray | slice) -> np.ndarray:
        """Reads images.

        Raises:
            DataError: A file became shorter, is damaged or is gone.
        """
        return self._read(self._positions[rows])

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        """Reads all images into memory."""
        return self[:] if dtype is None else self[:].astype(dtype)

    def astype(self, dtype: type) -> np.ndarray:
        """Reads all images into memory."""
        return self[:].astype(dtype)

    def select(self, positions: np.ndarray) -> "StreamedImages":
        """Returns some of the images, which are not read yet."""
        return StreamedImages(self._read, self._positions[positions], self.shape[1:])


def is_large(count: int, image_shape: tuple[int, ...]) -> bool:
    """Returns whether images are streamed for their size.

    >>> is_large(1_000, (32, 32, 3)), is_large(200_000, (64, 64, 3))
    (False, True)
    """
    return count * math.prod(image_shape) > MAX_IN_MEMORY


@functools.cache
def threads() -> ThreadPoolExecutor:
    """Returns the threads that decode images."""
    return ThreadPoolExecutor(thread_name_prefix="decode")
