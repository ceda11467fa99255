"""One training step: the adversary learns, then the classifier, as in the algorithm of Wang and Yu."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from robust_gan import prng
from robust_gan.game import memory as memory_lib
from robust_gan.game.objective import attacked_classifier, classifier_gradient
from robust_gan.game.state import Game, TrainState, at_step
from robust_gan.types import Batch, Metrics, PlayerState, Variables


class StepKeys(NamedTuple):
    """The keys of one step, by purpose."""

    augment: jax.Array
    improve: jax.Array
    perturb: jax.Array


def train_step(
    game: Game,
    state: TrainState,
    batch: Batch,
    *,
    earlier: Sequence[Batch] = (),
    keys: StepKeys | None = None,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """Runs one training step: updates the adversary, then the classifier.

    Pure and jit-able; under `pmap`, `vmap` or `shard_map` (with `check_vma=False`) over `axis_name` it computes the
    same step on the global batch.

    Args:
        game: The game.
        state: The state before the step.
        batch: This device's share of the batch, augmented already; images `[B, H, W, C]`.
        earlier: Batches on which the adversary alone learns first, as in the released MNIST code.
        keys: `step_keys(state)`, where the caller has derived them already for the augmentation.
        axis_name: The mapped axis, if there is one.

    Returns:
        The state after the step, and scalar metrics averaged over the axis. The accuracies are those of training, with
        the statistics of the batch. The adversary's metrics are 0 in a step in which it is not updated.

    Raises:
        ValueError: It is mapped by `shard_map` with `check_vma=True`, under which JAX sums gradients over the devices
            by itself, before their mean is taken here.

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
    if axis_name in getattr(getattr(jax.typeof(batch.images), "manual_axis_type", None), "varying", ()):
        raise ValueError("train_step averages gradients over the devices itself: give shard_map check_vma=False")
    game = at_step(game, state.step)
    keys, count = step_keys(state) if keys is None else keys, len(batch.labels)
    step, root, classifier, adversary, average, memory = state
    batch = batch if memory is None else batch._replace(start=memory_lib.unpack(memory))

    # The adversary ascends the loss of the classifier, which stays as it is.
    metrics: Metrics = {}
    if game.adversarial_weight:
        classifier_fn = attacked_classifier(game, classifier, axis_name)
        adversary, metrics = _improve(game, adversary, classifier_fn, [*earlier, batch], keys.improve, step, axis_name)

    # The classifier descends its loss on the clean and the adversarial images.
    perturb_keys = image_keys(keys.perturb, count, axis_name)
    gradient, batch_stats, classifier_metrics, images = classifier_gradient(
        game, classifier, adversary, batch, perturb_keys, axis_name=axis_name
    )
    updates, opt_state = game.optimizer.update(gradient, classifier.opt_state, classifier.params)
    classifier = PlayerState(optax.apply_updates(classifier.params, updates), batch_stats, opt_state)

    if average is not None:
        average = _update_average(average, classifier.variables, step, game.ema_decay)
    metrics = metrics | classifier_metrics | {"classifier_gradient_norm": optax.tree.norm(gradient)}
    if game.memory is not None and memory is not None and images is not None:
        memory = memory_lib.pack(images, batch.images, game.memory)
    return TrainState(step + 1, root, classifier, adversary, average, memory), metrics


def _improve(game, adversary, classifier_fn, batches, key, step, axis_name):
    """Updates the adversary with each of the batches, in every `update_every`-th step."""

    def improve(adversary):
        metrics: Metrics = {}
        for index, batch in enumerate(batches):
            keys = image_keys(jax.random.fold_in(key, index), len(batch.labels), axis_name)
            adversary, metrics = game.adversary.improve(adversary, classifier_fn, batch, keys, axis_name=axis_name)
        return adversary, metrics

    if game.update_every == 1:
        return improve(adversary)
    # The last of every `update_every` steps, so that the lines of metrics are of steps with an update.
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(improve, adversary)[1])
    due = (step + 1) % game.update_every == 0
    return jax.lax.cond(due, improve, lambda adversary: (adversary, zeros), adversary)


def init(game: Game, key: jax.Array, images: jax.Array) -> TrainState:
    """Returns the state at step 0.

    Args:
        game: The game.
        key: One typed key: initialises both players and becomes the root of all further randomness.
        images: `[B, H, W, C]`; only the shape matters.

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
    # A copy: a step may donate its state, and no buffer can be donated twice.
    average = jax.tree.map(jnp.array, classifier.variables) if game.ema_decay else None
    return TrainState(jnp.zeros((), jnp.int32), root, classifier, adversary, average)


def step_keys(state: TrainState) -> StepKeys:
    """Returns the keys of the next step: `fold_in` by step, then one split by purpose.

    >>> state = TrainState(jnp.int32(3), jax.random.key(0), PlayerState({}, {}, ()), ())
    >>> step_keys(state).perturb.shape
    ()
    """
    return StepKeys(*jax.random.split(jax.random.fold_in(state.key, state.step), len(StepKeys._fields)))


def image_keys(key: jax.Array, count: int, axis_name: str | None = None) -> jax.Array:
    """Returns one key for each image of this device's share of the global batch.

    Args:
        key: The key of a purpose.
        count: Images on this device.
        axis_name: The mapped axis, if there is one.

    Returns:
        Keys `[count]`. The keys of a global batch are the same on any number of devices.

    >>> image_keys(jax.random.key(0), 4).shape
    (4,)
    """
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * count
    return prng.keys_at(key, first + jnp.arange(count))


def _update_average(average: Variables, new: Variables, step: jax.Array, decay: float) -> Variables:
    """Computes the exponential moving average d a + (1 - d) new with d = min(decay, (1 + step) / (10 + step)).

    The smaller decay of the first steps lets the average forget the initialisation, as TensorFlow's does.

    References:
        Gowal, Qin, Uesato, Mann and Kohli, "Uncovering the Limits of Adversarial Training against Norm-Bounded
        Adversarial Examples", 2020, section 4.3.
    """
    rate = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    # The share of what optax calls new is exact, so it is the average: 1 - (1 - rate) is not rate in float32.
    return optax.incremental_update(average, new, rate)
