"""What the Square attack adds to images: the sides of its squares over the queries, and its patterns for L2.

All of it is known before the first query, so it is made with NumPy and becomes constants of the compiled attack.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""After which queries the share of the pixels that a square covers halves."""


class Sides(NamedTuple):
    """The squares of all queries.

    Attributes:
        of_query: int32 `[queries]`, the side of the square in pixels.
        level: int32 `[queries]`, which of `patterns` has that side.
        patterns: `[levels, S, S]`, the patterns of L2, each in the upper left of its array.
    """

    of_query: jax.Array
    level: jax.Array
    patterns: jax.Array


def sides(size: tuple[int, int], norm: str, num_queries: int, p_init: float) -> Sides:
    """Returns the squares of all queries but the first.

    Args:
        size: Height and width of the images.
        norm: `linf` or `l2`, where sides are odd and at least 3.
        num_queries: How many squares.
        p_init: Share of the pixels that the first one covers.

    References:
        Andriushchenko et al. 2020 (as `square`), section 3.2; the reference implementation's schedule for AutoAttack,
        which does not stretch with the number of queries.

    >>> [int(sides((32, 32), "linf", 5000, 0.8).of_query[i]) for i in (0, 10, 11, 51, 4001)]
    [29, 29, 20, 14, 3]
    """
    height, width = size

    def side(query):
        share = p_init / 2 ** sum(query > halving for halving in HALVINGS)
        least = {"linf": 1, "l2": 3}[norm]
        length = max(round(math.sqrt(share * height * width)), least)
        return min(length + (norm == "l2" and length % 2 == 0), height, width)

    # One at least, so that the arrays of an attack with a single query are not empty.
    of_query = [side(query) for query in range(max(num_queries, 1))]
    levels = sorted(set(of_query))
    patterns = np.zeros((len(levels), levels[-1], levels[-1]), np.float32)
    for level, length in enumerate(levels):
        patterns[level, :length, :length] = pattern(length)
    return Sides(
        jnp.asarray(of_query, jnp.int32),
        jnp.asarray([levels.index(length) for length in of_query], jnp.int32),
        jnp.asarray(patterns),
    )


def pattern(side: int) -> np.ndarray:
    """Returns the pattern of a square for L2, of unit norm: `[side, side]`.

    A bump in the upper half and its opposite in the lower one; the middle of an even side is right of it.

    References:
        Andriushchenko et al. 2020 (as `square`), section 3.4 and equation 2.

    >>> pattern(2).round(2).tolist()
    [[0.14, 0.69], [-0.14, -0.69]]
    """
    upper, lower = _bump(side // 2, side), _bump(side - side // 2, side)
    both = np.concatenate([upper, -lower])
    return both / np.linalg.norm(both)


def tiling(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns where the first query of L2 puts its patterns: five of them along the height, and as many as fit.

    Returns:
        The patterns of all tiles, upright and turned, `[2, H, W]`, and the number of the tile of every pixel,
        `[H, W]`; 0 also at the border that belongs to no tile, where the patterns are 0.

    >>> tiling((10, 10))[1][:, 0].tolist()
    [0, 0, 5, 5, 10, 10, 15, 15, 20, 20]
    """
    height, width = size
    side = min(max(height // 5, 1), width)
    rows, columns = height // side, width // side
    top, left = (height - rows * side) // 2, (width - columns * side) // 2
    area = slice(top, top + rows * side), slice(left, left + columns * side)
    patterns, tile_of = np.zeros((2, height, width), np.float32), np.zeros((height, width), np.int32)
    patterns[0][area] = np.tile(pattern(side), (rows, columns))
    patterns[1][area] = np.tile(pattern(side).T, (rows, columns))
    tile_of[area] = np.kron(np.arange(rows * columns).reshape(rows, columns), np.ones((side, side), np.int32))
    return patterns, tile_of


def _bump(height, width):
    """Nested rectangles around the middle, higher towards it; of unit norm."""
    total = np.zeros((height, width))
    centre = height // 2, width // 2
    for ring in range(max(centre) + 1):
        low, high = [max(c - ring, 0) for c in centre], [c + ring + 1 for c in centre]
        total[low[0] : high[0], low[1] : high[1]] += 1 / (ring + 1) ** 2
    return total / max(np.linalg.norm(total), 1e-12)
