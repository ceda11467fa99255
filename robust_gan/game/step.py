"""The game: one train state, one train step, whoever the adversary is.

    minimise over theta, maximise over phi:   E[ CE(D_theta(x), y) + CE(D_theta(x + epsilon G_phi(x)), y) ]

One step lets the adversary improve, lets it perturb the batch, and lets the classifier D (the released code's
discriminator) learn from clean and perturbed images. For the game of Wang and Yu the adversary is a generator G; with
PGD or with nobody it is adversarial or standard training: the same step.

Who plays, and the state, is in `players.py`; what the classifier minimises, penalty included, in `objective.py`; the
adversaries are in `adversaries/`.

References:
    Wang and Yu, "A Direct Approach to Robust Deep Learning Using Adversarial Networks", ICLR 2019,
    https://arxiv.org/abs/1905.09591
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from robust_gan import prng
from robust_gan.game import weights
from robust_gan.game.objective import attacked_classifier, classifier_gradient
from robust_gan.game.state import Game, TrainState, Variables, at_step, from_config
from robust_gan.types import Batch, Metrics, PlayerState

__all__ = [
    "Game", "StepKeys", "TrainState", "Variables", "classifier_gradient", "from_config", "image_keys", "init",
    "step_keys", "train_step",
]  # fmt: skip


class StepKeys(NamedTuple):
    """The keys of one step, by purpose."""

    augment: jax.Array
    improve: jax.Array
    perturb: jax.Array


def init(game: Game, key: jax.Array, images: jax.Array) -> TrainState:
    """Starts a game.

    Args:
        game: The game.
        key: One typed key: initialises both players and becomes the root of all further randomness.
        images: `[B, H, W, C]`; only the shape matters.

    Returns:
        The state at step 0.

    >>> from robust_gan import adversaries, networks
    >>> game = Game(networks.build_classifier("digits_cnn", 10), optax.sgd(0.1), adversaries.none(),
    ...             adversarial_weight=0.0)
    >>> int(init(game, jax.random.key(0), jnp.zeros((1, 8, 8, 1))).step)
    0
    """
    root, classifier_key, adversary_key = jax.random.split(prng.threefry(key), 3)
    params, batch_stats = game.classifier.init(classifier_key, images)
    classifier = PlayerState(params, batch_stats, game.optimizer.init(params))
    adversary = game.adversary.init(adversary_key, images)
    # A copy: a step may donate its state, and no buffer can be given away twice.
    average = Variables(*jax.tree.map(jnp.array, (params, batch_stats))) if game.ema_decay else None
    return TrainState(jnp.zeros((), jnp.int32), root, classifier, adversary, average)


def step_keys(state: TrainState) -> StepKeys:
    """Derives the keys of the coming step: `fold_in` by step, then one split by purpose.

    >>> state = TrainState(jnp.int32(3), jax.random.key(0), PlayerState({}, {}, ()), ())
    >>> step_keys(state).perturb.shape
    ()
    """
    return StepKeys(*jax.random.split(jax.random.fold_in(state.key, state.step), len(StepKeys._fields)))


def image_keys(key: jax.Array, count: int, axis_name: str | None = None) -> jax.Array:
    """Derives one key for each image of this device's share of the global batch.

    Args:
        key: The key of a purpose.
        count: Images on this device.
        axis_name: The mapped axis, if there is one.

    Returns:
        Keys `[count]`: those of positions 0..count-1, after those of the devices before this one. So the images of a
        global batch get the same keys on any number of devices.

    >>> image_keys(jax.random.key(0), 4).shape
    (4,)
    """
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * count
    return prng.keys_at(key, first + jnp.arange(count))


def train_step(
    game: Game, state: TrainState, batch: Batch, *, earlier: Batch | None = None, axis_name: str | None = None
) -> tuple[TrainState, Metrics]:
    """Lets the adversary improve and then the classifier: one iteration of the game.

    Pure and jit-able; under `pmap`, `vmap` or `shard_map` (with `check_vma=False`) over `axis_name` it is the same step
    on the global batch.

    Args:
        game: The game.
        state: The state before.
        batch: The minibatch, on this device; images `[B, H, W, C]`.
        earlier: Minibatches `[M, B, H, W, C]` on which the adversary alone improves first (the released MNIST code).
        axis_name: The mapped axis, if there is one.

    Returns:
        The state after, and scalar metrics averaged over the axis. The accuracies are in training, with the
        statistics of the batch.

    Guarantees:
        `test_one_device_is_four`, `test_the_penalty_matches_finite_differences`,
        `test_positive_penalty_converges_and_negative_diverges_on_the_bilinear_game`.

    >>> from robust_gan import LinfThreat, adversaries, networks
    >>> game = Game(networks.build_classifier("digits_cnn", 10), optax.sgd(0.1),
    ...             adversaries.pgd(LinfThreat(0.15), num_steps=1))
    >>> batch = Batch(jnp.zeros((2, 8, 8, 1)), jnp.array([3, 7]))
    >>> state, metrics = train_step(game, init(game, jax.random.key(0), batch.images), batch)
    >>> int(state.step), sorted(metrics)[:2]
    (1, ['adversarial_accuracy', 'adversarial_loss'])
    """
    game = at_step(game, state.step)
    keys, count = step_keys(state), batch.labels.shape[0]
    classifier_fn = attacked_classifier(game, state.classifier, axis_name)
    adversary = state.adversary
    metrics: Metrics = {}
    if game.adversarial_weight:
        batches = [] if earlier is None else [Batch(*leaves) for leaves in zip(*earlier, strict=True)]
        for index, improve_on in enumerate([*batches, batch]):
            improve_keys = image_keys(jax.random.fold_in(keys.improve, index), count, axis_name)
            adversary, metrics = game.adversary.improve(
                adversary, classifier_fn, improve_on, improve_keys, axis_name=axis_name
            )

    perturb_keys = image_keys(keys.perturb, count, axis_name)
    gradient, batch_stats, measured = classifier_gradient(
        game, state.classifier, adversary, batch, perturb_keys, axis_name=axis_name
    )
    updates, opt_state = game.optimizer.update(gradient, state.classifier.opt_state, state.classifier.params)
    params = optax.apply_updates(state.classifier.params, updates)
    metrics = metrics | measured | {"classifier_gradient_norm": optax.tree.norm(gradient)}
    classifier, average = PlayerState(params, batch_stats, opt_state), state.average
    if average is not None:
        average = weights.update_average(average, Variables(params, batch_stats), state.step, game.ema_decay)
    return TrainState(state.step + 1, state.key, classifier, adversary, average), metrics
