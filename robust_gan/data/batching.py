"""Batches of one size over a whole split, with a mask: every image counts exactly once."""

from collections.abc import Iterator

import numpy as np


def padded_batches(num_images: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the positions of the images of each batch, and a mask.

    All batches have the same size, so that one compiled function serves all; the last is padded with the last image of
    the split, for which the mask is False.

    Guarantees:
        test_every_image_counts_exactly_once

    Args:
        num_images: The size N of the split, at least 1.
        batch_size: B, at least 1.

    Yields:
        `(indices, mask)`: int32 `[B]` in 0..N-1, and bool `[B]`, False for the padding.

    Raises:
        ValueError: `num_images` or `batch_size` is below 1.

    >>> for indices, mask in padded_batches(5, 3):
    ...     print(indices.tolist(), mask.tolist())
    [0, 1, 2] [True, True, True]
    [3, 4, 4] [True, True, False]
    """
    if num_images < 1 or batch_size < 1:
        raise ValueError(f"num_images and batch_size must be at least 1, but are {num_images} and {batch_size}")
    for start in range(0, num_images, batch_size):
        positions = np.arange(start, start + batch_size)
        yield np.minimum(positions, num_images - 1).astype(np.int32), positions < num_images
