"""Checks for attacks, adversaries and networks of your own: what the tests of this package require of its own ones.

Each check raises `AssertionError` with one sentence that names the first requirement that is not met, and returns
nothing otherwise. They use small random images and a small classifier, and run within seconds on a CPU.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from robust_gan import prng
from robust_gan.attacks._checks import check_signature, find_violation
from robust_gan.losses import cross_entropy
from robust_gan.threat_model import L2Threat, LinfThreat
from robust_gan.types import Adversary, Attack, Batch, LogitsFn, Network, ThreatModel

_COUNT = 8
_CLOSE = 1e-5
"""Largest difference of a pixel between two orders of the same computation in float32."""


def check_attack(
    attack: Attack,
    logits_fn: LogitsFn | None = None,
    *,
    image_shape: tuple[int, int, int] = (8, 8, 1),
    num_classes: int = 5,
    threats: Sequence[ThreatModel] = (LinfThreat(0.1), L2Threat(0.5)),
    seed: int = 0,
) -> None:
    """Checks that a function is an attack: pure, inside the ball and the range, image by image.

    Requirements: the result has the shape and dtype of the images and lies inside the ball and the range, for every
    threat model and with epsilon 0 (where it is the images themselves); the same key gives the same images; an image's
    result does not depend on the images beside it; the results under `jax.jit`, under `jax.vmap`, and on several
    devices (where there are several) are those of a direct call.

    Args:
        attack: `(logits_fn, key, images, labels, threat) -> images`.
        logits_fn: A classifier; None for a small random one.
        image_shape: `(H, W, C)`.
        num_classes: K, for the random classifier and the labels.
        threats: Threat models to check with.
        seed: Of the images, the classifier and the keys.

    Raises:
        AssertionError: A requirement is not met.

    Guarantees:
        `test_every_attack_of_the_package_passes_the_check`.

    >>> from robust_gan import attacks
    >>> check_attack(attacks.fgsm)
    >>> check_attack(lambda logits_fn, key, images, labels, threat: images + 1)
    Traceback (most recent call last):
    AssertionError: the attack leaves the range of pixels [0, 1]: they lie in [1, 2]
    """
    try:
        check_signature("the attack", attack)
    except ValueError as error:
        raise AssertionError(str(error)) from error
    logits_fn = _random_classifier(image_shape, num_classes, seed) if logits_fn is None else logits_fn
    images, labels = _random_batch(image_shape, num_classes, seed)
    keys = prng.per_image_keys(prng.make_key(seed), _COUNT)

    def call(keys, images, labels, *, threat):
        return attack(logits_fn, keys, images, labels, threat)

    for threat in threats:
        run = functools.partial(call, threat=threat)
        direct = run(keys, images, labels)
        _check_images("the attack", direct, images, threat)
        _assert_close(run(keys, images, labels), direct, "the attack gives other images for the same key", exact=True)
        _check_ways_to_call("the attack", run, (keys, images, labels), direct)
        nothing = type(threat)(0.0)  # type: ignore[call-arg]
        _assert_close(call(keys, images, labels, threat=nothing), images, "the attack changes images at epsilon 0")


def check_adversary(
    adversary: Adversary,
    threat: ThreatModel,
    *,
    image_shape: tuple[int, int, int] = (8, 8, 1),
    num_classes: int = 5,
    reach: float = 1.0,
    steps: int = 20,
    seed: int = 0,
) -> None:
    """Checks that a tuple of functions is an adversary that trains a classifier against images inside the ball.

    Requirements: `perturb` returns images inside the ball (of `reach` times epsilon) and the range, before and after
    `improve`; `improve` keeps the structure, shapes and dtypes of the state; the same keys give the same images; both
    run under `jax.jit`; after some steps on one batch the loss of the classifier is not below that of clean images;
    `response`, where there is one, returns the images of `perturb`.

    Args:
        adversary: The adversary.
        threat: Its threat model.
        image_shape: `(H, W, C)`.
        num_classes: K.
        reach: How far it may go in units of epsilon; some adversaries overshoot on purpose.
        steps: Number of calls of `improve`.
        seed: Of the images, the classifier and the keys.

    Raises:
        AssertionError: A requirement is not met.

    Guarantees:
        `test_every_adversary_of_the_package_passes_the_check`.

    >>> from robust_gan import LinfThreat, adversaries
    >>> check_adversary(adversaries.fgsm(LinfThreat(0.1)), LinfThreat(0.1))
    >>> check_adversary(adversaries.fgsm(LinfThreat(0.2)), LinfThreat(0.1))
    Traceback (most recent call last):
    AssertionError: perturb leaves the ball: a perturbation has size 0.2, and epsilon is 0.1
    """
    for name in ("init", "improve", "perturb"):
        _require(callable(getattr(adversary, name, None)), f"the adversary has no function {name!r}")
    logits_fn = _random_classifier(image_shape, num_classes, seed)
    batch = Batch(*_random_batch(image_shape, num_classes, seed))
    ball = type(threat)(reach * float(threat.epsilon))  # type: ignore[call-arg]
    state = adversary.init(prng.make_key(seed), batch.images)
    kind = jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)), state)
    improve = jax.jit(lambda state, keys: adversary.improve(state, logits_fn, batch, keys)[0])
    perturb = jax.jit(lambda state, keys: adversary.perturb(state, logits_fn, batch, keys))
    keys = [prng.per_image_keys(key, _COUNT) for key in jax.random.split(prng.make_key(seed), steps + 1)]
    _check_images("perturb", perturb(state, keys[0]), batch.images, ball)
    for step in range(steps):
        state = improve(state, keys[step])
        found = jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)), state)
        _require(found == kind, f"improve changes the state: {found} in place of {kind}")
    images = perturb(state, keys[-1])
    _check_images("perturb", images, batch.images, ball)
    _assert_close(perturb(state, keys[-1]), images, "perturb gives other images for the same keys", exact=True)
    direct = adversary.perturb(state, logits_fn, batch, keys[-1])
    _assert_close(direct, images, "perturb gives other images under jax.jit")
    losses = [float(cross_entropy(logits_fn(points), batch.labels).mean()) for points in (batch.images, images)]
    _require(losses[1] >= losses[0] - _CLOSE, f"perturb lowers the loss, from {losses[0]:.4g} to {losses[1]:.4g}")
    if adversary.response is not None:
        params, images_fn = adversary.response(state, logits_fn, batch, keys[-1])
        _assert_close(images_fn(params), images, "response returns other images than perturb")


def check_network(
    network: Network, image_shape: tuple[int, int, int], output_shape: Sequence[int], *, seed: int = 0
) -> None:
    """Checks that a tuple of functions is a network: pure, and image by image at inference.

    Requirements: outputs are finite floats of the given shape; with `train=False` the statistics are returned
    unchanged and the output for an image does not depend on the images beside it; with `train=True` the statistics
    keep their structure and shapes; both run under `jax.jit`, and the outputs have gradients in the parameters.

    Args:
        network: The network.
        image_shape: `(H, W, C)` of its inputs.
        output_shape: Of the outputs for one image: `(K,)` for a classifier, `(H, W, C)` for a generator.
        seed: Of the parameters and the images.

    Raises:
        AssertionError: A requirement is not met.

    Guarantees:
        `test_every_network_of_the_package_passes_the_check`.

    >>> from robust_gan.types import Network
    >>> mean = Network(lambda key, images: ({"scale": jnp.ones(2)}, {}),
    ...                lambda params, stats, images, *, train, axis_name=None:
    ...                    (images.mean((1, 2, 3))[:, None] * params["scale"], stats))
    >>> check_network(mean, (8, 8, 1), (2,))
    >>> check_network(mean, (8, 8, 1), (3,))
    Traceback (most recent call last):
    AssertionError: the outputs have shape (8, 2), not (8, 3)
    """
    images, _ = _random_batch(image_shape, 2, seed)
    params, stats = network.init(prng.make_key(seed), images)
    infer = jax.jit(lambda params, stats, images: network.apply(params, stats, images, train=False))
    outputs, same = infer(params, stats, images)
    expected = (_COUNT, *output_shape)
    _require(outputs.shape == expected, f"the outputs have shape {outputs.shape}, not {expected}")
    _require(jnp.issubdtype(outputs.dtype, jnp.floating), f"the outputs are {outputs.dtype}, not floats")
    _require(bool(jnp.isfinite(outputs).all()), "the outputs are not finite")
    _assert_trees_equal(same, stats, "with train=False the statistics change")
    for index in (0, _COUNT - 1):
        # In a batch of the same size, since each size is compiled.
        alone = infer(params, stats, jnp.zeros_like(images).at[index].set(images[index]))[0]
        _assert_close(alone[index], outputs[index], "with train=False an output depends on the other images of the "
                      "batch", scale=float(jnp.abs(outputs).max()))  # fmt: skip

    def loss(params):
        outputs, moved = network.apply(params, stats, images, train=True)
        return outputs.astype(jnp.float32).sum(), moved

    gradients, moved = jax.jit(jax.grad(loss, has_aux=True))(params)
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (stats, moved)]
    _require(shapes[0] == shapes[1], f"with train=True the statistics become {shapes[1]}, not {shapes[0]}")
    finite = all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradients))
    _require(finite, "the gradients in the parameters are not finite")


def _require(condition: object, sentence: str) -> None:
    # Not an assert statement, which `python -O` leaves out.
    if not condition:
        raise AssertionError(sentence)


def _random_batch(image_shape, num_classes, seed):
    rng = np.random.default_rng(seed)
    images = rng.uniform(size=(_COUNT, *image_shape))
    images = np.where(rng.uniform(size=images.shape) < 0.2, images.round(), images)  # The corners of the range, too.
    return jnp.asarray(images, jnp.float32), jnp.asarray(rng.integers(0, num_classes, _COUNT), jnp.int32)


def _random_classifier(image_shape, num_classes, seed):
    rng = np.random.default_rng(seed + 1)
    size = int(np.prod(image_shape))
    hidden = jnp.asarray(rng.normal(size=(size, 16)) / np.sqrt(size), jnp.float32)
    out = jnp.asarray(rng.normal(size=(16, num_classes)), jnp.float32)
    return lambda images: jnp.tanh(3 * (images.reshape(images.shape[0], -1) - 0.5) @ hidden) @ out


def _check_images(who, adversarial, images, threat):
    why = find_violation(adversarial, images, threat)
    _require(not why, f"{who} {why}")
    _require(adversarial.dtype == images.dtype, f"{who} returns {adversarial.dtype} for {images.dtype} images")


def _check_ways_to_call(
    who: str, run: Callable[..., jax.Array], batch: tuple[jax.Array, ...], direct: jax.Array
) -> None:
    """Compares a direct call with smaller batches, `jax.jit`, `jax.vmap` and several devices."""
    compiled = jax.jit(run)
    _assert_close(compiled(*batch), direct, f"{who} gives other images under jax.jit")
    for size in (1, 3):
        part = compiled(*(array[:size] for array in batch))
        _assert_close(part, direct[:size], f"{who} gives an image other pixels in a batch of {size} than of {_COUNT}")
    halves = [array.reshape(2, _COUNT // 2, *array.shape[1:]) for array in batch]
    mapped = jax.jit(jax.vmap(run))(*halves)
    _assert_close(mapped.reshape(direct.shape), direct, f"{who} gives other images under jax.vmap")
    count = max(count for count in (1, 2, 4, 8) if count <= jax.local_device_count())
    if count > 1:
        parts = [array.reshape(count, _COUNT // count, *array.shape[1:]) for array in batch]
        split = np.asarray(jax.pmap(run, devices=jax.local_devices()[:count])(*parts))
        _assert_close(split.reshape(direct.shape), direct, f"{who} gives other images on {count} devices")


def _assert_close(found, expected, sentence, *, exact=False, scale=1.0):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    _require(found.shape == expected.shape, f"{sentence}: shape {found.shape} in place of {expected.shape}")
    largest = float(np.abs(found - expected).max(initial=0.0))
    _require(largest <= (0.0 if exact else _CLOSE * max(scale, 1.0)), f"{sentence} (by up to {largest:.2g})")


def _assert_trees_equal(found, expected, sentence):
    _require(str(jax.tree.structure(found)) == str(jax.tree.structure(expected)), sentence)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        _require(np.array_equal(np.asarray(one), np.asarray(other), equal_nan=True), sentence)
