"""Square attack: random squares, kept where they raise the margin; looks at logits only, never at a gradient.

Unlike in the authors' implementation every image has squares of its own, and a square can touch the last row and the
last column: on images of 8 x 8 pixels that breaks three in a hundred more, and theirs can be had for comparison.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from robust_gan import prng, threat_model
from robust_gan.attacks import _square_patterns
from robust_gan.attacks._best import where
from robust_gan.attacks._compaction import update_remaining
from robust_gan.attacks.checking import check_counts, checked
from robust_gan.errors import UserError
from robust_gan.losses import is_correct, margin
from robust_gan.types import LogitsFn, ThreatModel, wide_dtype

_QUERIES_AT_ONCE = 100
"""Queries between two looks at which images still stand."""


class Found(NamedTuple):
    """What the attack found.

    Attributes:
        images: Adversarial images `[B, H, W, C]`.
        margins: `[B]`, their margin losses.
        fooled: bool `[B]`, whether they are misclassified.
        queries: int32 `[B]`, how often the classifier was asked about each image.
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
) -> jax.Array:
    """Square attack with the margin loss: squares of the perturbation change at random, and what helps is kept.

    Args:
        logits_fn: The classifier; only its logits are used.
        key: One key, or one per image (`[B]`).
        images: `[B, H, W, C]`.
        labels: int32 `[B]`.
        threat: The threat model.
        num_queries: Forward passes for an image that stands.
        p_init: Share of the pixels that the first squares cover.
        all_places: See `count_queries`, which tells how many queries were spent too.

    Returns:
        Adversarial images `[B, H, W, C]`.

    >>> from robust_gan import LinfThreat
    >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), 1.5 - x.sum((1, 2, 3))], -1)
    >>> x = jnp.full((1, 2, 2, 1), 0.25)
    >>> found = square(logits_fn, jax.random.key(0), x, jnp.array([0]), LinfThreat(0.125), num_queries=50)
    >>> bool(found.sum() < 0.75)
    True
    """
    return count_queries(
        logits_fn, key, images, labels, threat, num_queries=num_queries, p_init=p_init, all_places=all_places
    ).images


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
) -> Found:
    """Square attack with the margin loss; an image that is misclassified is not asked about again.

    The first query is about stripes (squares in L2) of random sign. Every other changes a square of it, whose side
    falls by a schedule of the queries, and is kept where the margin rose.

    Args:
        logits_fn: The classifier; only its values are used.
        key: One key, or one per image.
        images: `[B, H, W, C]`.
        labels: int32 `[B]`.
        threat: The threat model.
        num_queries: How often the classifier is asked about an image at most.
        p_init: Share of the pixels that the first squares cover.
        all_places: Squares lie anywhere in the image; False keeps them off its last row and column, as the authors'
            program does.

    Returns:
        What was found.

    Raises:
        UserError: `num_queries` is below 1, `p_init` not in (0, 1], the images are not `[B, H, W, C]`, or an argument
            cannot be meant; see `checking`.

    Guarantees:
        `test_square_asks_as_often_as_it_says`, `test_square_never_looks_at_a_gradient`.

    References:
        Andriushchenko, Croce, Flammarion and Hein, "Square Attack: a query-efficient black-box adversarial attack via
        random search", ECCV 2020, https://arxiv.org/abs/1912.00049

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
    start_keys, keys = prng.split_per_image(prng.per_image_keys(key, images.shape[0]), 2)
    begin, change = {"linf": (_stripes, _change_linf), "l2": (_tiles, _change_l2)}[threat.norm]
    height, width = images.shape[1:3]
    sides = _square_patterns.sides((height, width), threat.norm, num_queries - 1, p_init)
    window = functools.partial(_window, (height, width), int(all_places))

    def apply_logits(points, images, labels):
        points = threat_model.project(points, images, threat)
        logits = logits_fn(points)
        return points, margin(logits, labels), ~is_correct(logits, labels)

    def one_query(index, found, keys, images, labels):
        keys = jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)
        changed = change(keys, found.images, images, threat, sides, index, window)
        points, margins, fooled = apply_logits(changed, images, labels)
        better = ~found.fooled & (fooled | (margins > found.margins))
        return Found(
            where(better, points, found.images),
            jnp.where(better, margins, found.margins),
            found.fooled | fooled,
            found.queries + (~found.fooled).astype(jnp.int32),
        )

    def some_queries(round_index, found):
        first = round_index * _QUERIES_AT_ONCE
        last = jnp.minimum(first + _QUERIES_AT_ONCE, num_queries - 1)

        def update(found, inputs):
            def going_on(carry):
                return (carry[0] < last) & ~jnp.all(carry[1].fooled)

            def ask_again(carry):
                return carry[0] + 1, one_query(*carry, *inputs)

            return jax.lax.while_loop(going_on, ask_again, (first, found))[1]

        return update_remaining(update, ~found.fooled, found, (keys, images, labels))

    points, margins, fooled = apply_logits(begin(start_keys, images, threat), images, labels)
    found = Found(points, margins, fooled, jnp.ones_like(labels, jnp.int32))
    return jax.lax.fori_loop(0, -(-(num_queries - 1) // _QUERIES_AT_ONCE), some_queries, found)


def _stripes(keys, images, threat):
    """Columns of pixels at the border of the cube."""
    signs = _signs(prng.uniform_per_image(keys, (1, *images.shape[2:])))
    return images + jnp.asarray(threat.epsilon, signs.dtype) * signs


def _change_linf(keys, points, images, threat, sides, index, window):
    """Moves a square of pixels to the border of the cube, each channel to a random side."""
    draws = prng.uniform_per_image(keys, (2 + images.shape[3],))
    inside = window(draws[:, 0], draws[:, 1], sides.of_query[index])[0]
    signs = _signs(draws[:, 2:])[:, None, None, :]
    return points + jnp.where(inside, 2 * jnp.asarray(threat.epsilon, signs.dtype) * signs, 0.0)


def _tiles(keys, images, threat):
    """A chequer of small patterns, each of random sign and orientation, stretched to the sphere."""
    pattern, tile_of = _square_patterns.tiling(images.shape[1:3])
    count = int(tile_of.max()) + 1
    draws = prng.uniform_per_image(keys, (count, 1 + images.shape[3]))
    turned = (draws[:, :, 0] > 0.5)[:, tile_of]
    patterns = jnp.where(turned, pattern[1], pattern[0])[..., None] * _signs(draws[:, :, 1:])[:, tile_of]
    return images + jnp.asarray(threat.epsilon, draws.dtype) * threat_model.steepest_ascent(patterns, threat)


def _change_l2(keys, points, images, threat, sides, index, window):
    """Moves the mass of a second window, and what the sphere has left, into a pattern in a first window."""
    channels = images.shape[3]
    compute_dtype = wide_dtype(images.dtype)
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
    """Which pixels lie in a square at a random place, `[B, H, W, 1]`, and where in it, `[B, H, 1]` and `[B, 1, W]`."""
    height, width = size
    top = jnp.floor(row * jnp.maximum(height - side + spare, 1).astype(row.dtype)).astype(jnp.int32)
    left = jnp.floor(column * jnp.maximum(width - side + spare, 1).astype(column.dtype)).astype(jnp.int32)
    rows = (jnp.arange(height)[None] - top[:, None])[:, :, None]
    columns = (jnp.arange(width)[None] - left[:, None])[:, None, :]
    inside = (rows >= 0) & (rows < side) & (columns >= 0) & (columns < side)
    return inside[..., None], rows, columns


def _signs(uniform):
    return jnp.where(uniform < 0.5, -1.0, 1.0)
