"""Square attack: a black-box random search that uses logits only.

The first query adds stripes (in L2 tiles) of random sign; the next change squares that shrink by a schedule.

Unlike in the authors' implementation every image has squares of its own, and a square can touch the last row and the
last column: on images of 8 x 8 pixels three in a hundred more are misclassified; `all_places=False` gives theirs.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_gan import prng, threat_model
from robust_gan.attacks._best import where
from robust_gan.attacks._checks import aim, check_counts, checked
from robust_gan.attacks._compaction import update_remaining
from robust_gan.errors import UserError
from robust_gan.losses import is_correct, margin
from robust_gan.types import LogitsFn, ThreatModel, get_compute_dtype

_QUERIES_AT_ONCE = 100
"""Queries between two compactions of the remaining images."""
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""After which queries the share of the pixels that a square covers halves."""


class SquareResult(NamedTuple):
    """Result of the attack.

    Attributes:
        images: Adversarial images `[B, H, W, C]`.
        margins: `[B]`, their margin losses.
        fooled: bool `[B]`, whether they are misclassified.
        queries: int32 `[B]`, the number of queries of each image.
    """

    images: jax.Array
    margins: jax.Array
    fooled: jax.Array
    queries: jax.Array


def square(
    logits_fn: LogitsFn,
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    threat: ThreatModel,
    *,
    num_queries: int = 5000,
    p_init: float = 0.8,
    all_places: bool = True,
    target: int | jax.Array | None = None,
) -> jax.Array:
    """Square attack with the margin loss: a random search over squares of the perturbation.

    Args:
        logits_fn: Only its values are used; this and the four arguments after it as in `types.Attack`.
        num_queries: Queries of an image at most.
        p_init: Share of the pixels that the first squares cover.
        all_places: As `count_queries`, which also returns the number of queries.
        target: As `count_queries`.

    Returns:
        Adversarial images `[B, H, W, C]`.

    >>> from robust_gan import LinfThreat
    >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), 1.5 - x.sum((1, 2, 3))], -1)
    >>> x = jnp.full((1, 2, 2, 1), 0.25)
    >>> found = square(logits_fn, jax.random.key(0), x, jnp.array([0]), LinfThreat(0.125), num_queries=50)
    >>> bool(found.sum() < 0.75)
    True
    """
    settings = {"num_queries": num_queries, "p_init": p_init, "all_places": all_places, "target": target}
    return count_queries(logits_fn, key, images, labels, threat, **settings).images


@checked
def count_queries(
    logits_fn: LogitsFn,
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    threat: ThreatModel,
    *,
    num_queries: int = 5000,
    p_init: float = 0.8,
    all_places: bool = True,
    target: int | jax.Array | None = None,
) -> SquareResult:
    """Square attack with the margin loss; an image that is misclassified is not queried again.

    Args:
        logits_fn: Only its values are used; this and the four arguments after it as in `types.Attack`.
        num_queries: Queries of an image at most.
        p_init: Share of the pixels that the first squares cover.
        all_places: Squares lie anywhere; False keeps them off the last row and column, as the authors' code does.
        target: A class, or int32 `[B]`, to be reached, as in `pgd`; `fooled` tells where it is.

    Returns:
        The adversarial images and the number of queries.

    Raises:
        UserError: An argument is invalid (`_checks`).

    Guarantees:
        `test_square_counts_its_queries`, `test_black_box_attacks_use_no_gradient`.

    References:
        Andriushchenko et al., "Square Attack", ECCV 2020, https://arxiv.org/abs/1912.00049

    >>> from robust_gan import LinfThreat
    >>> wrong = lambda x: jnp.stack([x.sum((1, 2, 3)), 9 + x.sum((1, 2, 3))], -1)
    >>> count_queries(wrong, jax.random.key(0), jnp.ones((1, 2, 2, 1)), jnp.array([0]), LinfThreat(0.1)).queries.item()
    1
    """
    check_counts(num_queries=num_queries)
    if isinstance(p_init, bool | str) or not 0 < p_init <= 1:
        raise UserError(f"p_init must be above 0 and at most 1, not {p_init}")
    if images.ndim != 4:
        raise UserError(f"square needs images [B, H, W, C], not of shape {images.shape}")
    labels, loss_fn, targeted = aim(labels, target, margin)  # type: ignore[arg-type]
    start_keys, keys = prng.split_per_image(prng.per_image_keys(key, images.shape[0]), 2)
    begin, change = {"linf": (_stripes, _change_linf), "l2": (_tiles, _change_l2)}[threat.norm]
    sides = get_squares(images.shape[1:3], threat.norm, num_queries - 1, p_init)  # type: ignore[arg-type]
    window = functools.partial(_window, images.shape[1:3], int(all_places))

    def apply_logits(points, images, labels):
        points = threat_model.project(points, images, threat)
        logits = logits_fn(points)
        return points, loss_fn(logits, labels), is_correct(logits, labels) == targeted

    def one_query(index, best, keys, images, labels):
        keys = jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)
        points = change(keys, best.images, images, threat, sides, index, window)
        return _keep_better(best, *apply_logits(points, images, labels))

    def some_queries(round_index, best):
        first, last = _QUERIES_AT_ONCE * round_index, jnp.minimum(_QUERIES_AT_ONCE * (round_index + 1), num_queries - 1)

        def update(best, inputs):
            return _query_until_fooled(one_query, first, last, best, inputs)

        return update_remaining(update, ~best.fooled, best, (keys, images, labels))

    points, margins, fooled = apply_logits(begin(start_keys, images, threat), images, labels)
    best = SquareResult(points, margins, fooled, jnp.ones_like(labels, jnp.int32))
    return jax.lax.fori_loop(0, -(-(num_queries - 1) // _QUERIES_AT_ONCE), some_queries, best)


def _keep_better(best, points, margins, fooled):
    """Returns the result after one more query of each image that is not fooled yet."""
    better = ~best.fooled & (fooled | (margins > best.margins))
    return SquareResult(
        where(better, points, best.images),
        jnp.where(better, margins, best.margins),
        best.fooled | fooled,
        best.queries + (~best.fooled).astype(jnp.int32),
    )


def _query_until_fooled(one_query, first, last, best, inputs):
    """Makes the queries from `first` to `last`, fewer once all images are fooled."""

    def unfinished(carry):
        return (carry[0] < last) & ~jnp.all(carry[1].fooled)

    def query(carry):
        return carry[0] + 1, one_query(*carry, *inputs)

    return jax.lax.while_loop(unfinished, query, (first, best))[1]


def _stripes(keys, images, threat):
    """Moves columns of pixels to the border of the cube, the first query of L-infinity."""
    signs = _signs(prng.uniform_per_image(keys, (1, *images.shape[2:])))
    return images + jnp.asarray(threat.epsilon, signs.dtype) * signs


def _change_linf(keys, points, images, threat, sides, index, window):
    """Moves a square of pixels to the border of the cube, each channel to a random side."""
    draws = prng.uniform_per_image(keys, (2 + images.shape[3],))
    inside = window(draws[:, 0], draws[:, 1], sides.of_query[index])[0]
    signs = _signs(draws[:, 2:])[:, None, None, :]
    return points + jnp.where(inside, 2 * jnp.asarray(threat.epsilon, signs.dtype) * signs, 0.0)


def _tiles(keys, images, threat):
    """Adds tiles of small patterns, each of random sign and orientation, on the sphere: the first query of L2."""
    pattern, tile_of = get_tiles(images.shape[1:3])
    count = int(tile_of.max()) + 1
    draws = prng.uniform_per_image(keys, (count, 1 + images.shape[3]))
    turned = (draws[:, :, 0] > 0.5)[:, tile_of]
    patterns = jnp.where(turned, pattern[1], pattern[0])[..., None] * _signs(draws[:, :, 1:])[:, tile_of]
    return images + jnp.asarray(threat.epsilon, draws.dtype) * threat_model.steepest_ascent(patterns, threat)


def _change_l2(keys, points, images, threat, sides, index, window):
    """Moves the mass of a second window, and the rest up to the sphere, into a pattern in a first window."""
    channels = images.shape[3]
    compute_dtype = get_compute_dtype(images.dtype)
    delta = points.astype(compute_dtype) - images.astype(compute_dtype)
    draws = prng.uniform_per_image(keys, (5 + channels,))
    side = sides.of_query[index]
    inside, rows, columns = window(draws[:, 0], draws[:, 1], side)
    emptied = window(draws[:, 2], draws[:, 3], side)[0]
    turned = (draws[:, 4] > 0.5)[:, None, None]
    pattern = sides.patterns[sides.level[index]]
    pattern = pattern[jnp.where(turned, columns, rows), jnp.where(turned, rows, columns)][..., None]

    over_pixels = functools.partial(jnp.sum, axis=(1, 2), keepdims=True)
    squares = jnp.square(delta)
    old = jnp.where(inside, delta, 0) / (1e-12 + jnp.sqrt(over_pixels(jnp.where(inside, squares, 0))))
    new = jnp.where(inside, pattern * _signs(draws[:, 5:])[:, None, None, :] + old, 0)
    left = jnp.maximum(
        jnp.square(jnp.asarray(threat.epsilon, compute_dtype)) - jnp.sum(squares, (1, 2, 3), keepdims=True), 0
    )
    mass = left / channels + over_pixels(jnp.where(inside | emptied, squares, 0))
    new *= jnp.sqrt(mass) / (1e-12 + jnp.sqrt(over_pixels(jnp.square(new))))
    delta = jnp.where(inside, new, jnp.where(emptied, 0, delta))
    return images + jnp.asarray(threat.epsilon, compute_dtype) * threat_model.steepest_ascent(delta, threat)


def _window(size, spare, row, column, side):
    """Returns which pixels lie in a random square, `[B, H, W, 1]`, and their rows and columns in it."""
    height, width = size
    top = jnp.floor(row * jnp.maximum(height - side + spare, 1).astype(row.dtype)).astype(jnp.int32)
    left = jnp.floor(column * jnp.maximum(width - side + spare, 1).astype(column.dtype)).astype(jnp.int32)
    rows = (jnp.arange(height)[None] - top[:, None])[:, :, None]
    columns = (jnp.arange(width)[None] - left[:, None])[:, None, :]
    inside = (rows >= 0) & (rows < side) & (columns >= 0) & (columns < side)
    return inside[..., None], rows, columns


def _signs(uniform):
    return jnp.where(uniform < 0.5, -1.0, 1.0)


class Squares(NamedTuple):
    """The squares of all queries, computed with NumPy: constants of the compiled attack.

    Attributes:
        of_query: int32 `[queries]`, the side of the square in pixels.
        level: int32 `[queries]`, the index of that side in `patterns`.
        patterns: `[levels, S, S]`, the patterns of L2, each in the upper left of its array.
    """

    of_query: jax.Array
    level: jax.Array
    patterns: jax.Array


def get_squares(size: tuple[int, int], norm: str, num_queries: int, p_init: float) -> Squares:
    """Computes the squares of all queries but the first.

    Args:
        size: Height and width of the images.
        norm: `linf` or `l2`, where sides are odd and at least 3.
        num_queries: Number of squares.
        p_init: Share of the pixels that the first one covers.

    References:
        Andriushchenko et al. 2020 (as `square`), section 3.2; the reference implementation's schedule for AutoAttack,
        which does not stretch with the number of queries.

    >>> [int(get_squares((32, 32), "linf", 5000, 0.8).of_query[i]) for i in (0, 10, 11, 51, 4001)]
    [29, 29, 20, 14, 3]
    """
    height, width = size

    def side(query):
        share = p_init / 2 ** sum(query > halving for halving in HALVINGS)
        least = {"linf": 1, "l2": 3}[norm]
        length = max(round(math.sqrt(share * height * width)), least)
        return min(length + (norm == "l2" and length % 2 == 0), height, width)

    # At least one: the arrays of an attack with a single query are not empty.
    of_query = [side(query) for query in range(max(num_queries, 1))]
    levels = sorted(set(of_query))
    patterns = np.zeros((len(levels), levels[-1], levels[-1]), np.float32)
    for level, length in enumerate(levels):
        patterns[level, :length, :length] = get_pattern(length)
    return Squares(
        jnp.asarray(of_query, jnp.int32),
        jnp.asarray([levels.index(length) for length in of_query], jnp.int32),
        jnp.asarray(patterns),
    )


def get_pattern(side: int) -> np.ndarray:
    """Computes the pattern of a square for L2, of unit norm: `[side, side]`.

    A bump in the upper half and its opposite in the lower one; the middle of an even side is right of it.

    References:
        Andriushchenko et al. 2020 (as `square`), section 3.4 and equation 2.

    >>> get_pattern(2).round(2).tolist()
    [[0.14, 0.69], [-0.14, -0.69]]
    """
    upper, lower = _bump(side // 2, side), _bump(side - side // 2, side)
    both = np.concatenate([upper, -lower])
    return both / np.linalg.norm(both)


def get_tiles(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Computes the tiles of the first query of L2: five along the height, and as many as fit along the width.

    Returns:
        The patterns of all tiles, upright and turned, `[2, H, W]`, and the number of the tile of every pixel,
        `[H, W]`; 0 also at the border that belongs to no tile, where the patterns are 0.

    >>> get_tiles((10, 10))[1][:, 0].tolist()
    [0, 0, 5, 5, 10, 10, 15, 15, 20, 20]
    """
    height, width = size
    side = min(max(height // 5, 1), width)
    rows, columns = height // side, width // side
    top, left = (height - rows * side) // 2, (width - columns * side) // 2
    area = slice(top, top + rows * side), slice(left, left + columns * side)
    patterns, tile_of = np.zeros((2, height, width), np.float32), np.zeros((height, width), np.int32)
    patterns[0][area] = np.tile(get_pattern(side), (rows, columns))
    patterns[1][area] = np.tile(get_pattern(side).T, (rows, columns))
    tile_of[area] = np.kron(np.arange(rows * columns).reshape(rows, columns), np.ones((side, side), np.int32))
    return patterns, tile_of


def _bump(height, width):
    """Computes nested rectangles around the middle, higher towards it, of unit norm."""
    total = np.zeros((height, width))
    centre = height // 2, width // 2
    for ring in range(max(centre) + 1):
        low, high = [max(c - ring, 0) for c in centre], [c + ring + 1 for c in centre]
        total[low[0] : high[0], low[1] : high[1]] += 1 / (ring + 1) ** 2
    return total / max(np.linalg.norm(total), 1e-12)
