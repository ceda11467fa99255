"""The order of the images as a function of (seed, step): a resumed run needs no saved iterator."""

import functools

import numpy as np

_ORDER = 0


def permutation(num_images: int, seed: int, stream: int = 0, purpose: int = _ORDER) -> np.ndarray:
    """Returns a fixed random permutation of 0..num_images-1.

    It sorts the raw output of the Philox counter-based generator, which NumPy keeps stable across versions (NEP 19),
    unlike `Generator.permutation`.

    Args:
        num_images: At least 0.
        seed: 0..2**64-1.
        stream: 0..2**64-1, such as the epoch; each stream has another permutation.
        purpose: 0..2**64-1; permutations of different purposes are independent.

    Returns:
        int32 `[num_images]`, read-only.

    Raises:
        ValueError: `seed`, `stream` or `purpose` is outside its range.

    References:
        J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
        NEP 19, Random number generator policy, https://numpy.org/neps/nep-0019-rng-policy.html

    >>> permutation(5, seed=0).tolist() == permutation(5, seed=0).tolist()
    True
    >>> sorted(permutation(5, seed=0, stream=1).tolist())
    [0, 1, 2, 3, 4]
    """
    for name, value in (("seed", seed), ("stream", stream), ("purpose", purpose)):
        if not 0 <= value < 2**64:
            raise ValueError(f"{name} must be in 0..2**64-1, but is {value}")
    key, counter = np.array([seed, stream], np.uint64), np.array([0, 0, 0, purpose], np.uint64)
    raw = np.random.Philox(key=key, counter=counter).random_raw(num_images)
    order = np.argsort(raw, kind="stable").astype(np.int32)
    order.flags.writeable = False
    return order


# Enough for batches across two epochs in two loops at once; a permutation of 60,000 takes 0.24 MB.
_cached_permutation = functools.lru_cache(maxsize=4)(permutation)


def batch_indices(seed: int, step: int, batch_size: int, num_images: int) -> np.ndarray:
    """Returns the positions of the images of one batch.

    The images come in the order of one permutation per epoch. Batches cross epoch boundaries, so that every image
    occurs exactly once per epoch for any batch size, even above the number of images.

    Guarantees:
        test_every_epoch_sees_every_image_exactly_once
        test_a_batch_is_a_function_of_seed_and_step_alone

    Args:
        seed: 0..2**64-1, the seed of the run.
        step: 0 for the first batch of the run.
        batch_size: B, at least 1.
        num_images: The size N of the split, at least 1.

    Returns:
        int32 `[B]` in 0..N-1.

    Raises:
        ValueError: An argument is outside its range.

    >>> np.sort(np.concatenate([batch_indices(0, step, 3, 6) for step in range(2)])).tolist()
    [0, 1, 2, 3, 4, 5]
    """
    if step < 0 or batch_size < 1 or num_images < 1:
        raise ValueError(
            "step must be at least 0, and batch_size and num_images at least 1, but they are "
            f"{step}, {batch_size} and {num_images}"
        )
    position, missing, pieces = int(step) * int(batch_size), int(batch_size), []
    while missing:
        epoch, offset = divmod(position, int(num_images))
        piece = _cached_permutation(int(num_images), int(seed), epoch)[offset : offset + missing]
        pieces.append(piece)
        position, missing = position + len(piece), missing - len(piece)
    return np.concatenate(pieces)
