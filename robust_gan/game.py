"""The game: one train state, one train step, whoever the adversary is.

    minimise over theta, maximise over phi:   E[ CE(D_theta(x), y) + CE(D_theta(x + epsilon G_phi(x)), y) ]

One step lets the adversary improve, lets it perturb the batch, and lets the classifier D (the paper's discriminator)
learn from clean and perturbed images. For the paper's game the adversary is a generator G; with PGD or with nobody it
is adversarial or standard training: the same step.

References:
    Wang and Yu, "A Direct Approach to Robust Deep Learning Using Adversarial Networks", ICLR 2019,
    https://arxiv.org/abs/1905.09591
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from robust_gan import adversaries, networks, optimizers, random, threat_model, weights
from robust_gan.config import Config, adversarial_weight
from robust_gan.losses import classifier_loss, cross_entropy, is_correct, trades
from robust_gan.metrics import mean_over
from robust_gan.types import Adversary, Batch, LogitsFn, Metrics, Network, PlayerState, PyTree


class WeightAverage(NamedTuple):
    """The moving average of a classifier, as it evaluates.

    Attributes:
        params: Of its weights.
        batch_stats: Of its running statistics.
    """

    params: PyTree
    batch_stats: PyTree


class TrainState(NamedTuple):
    """Everything that changes, arrays only.

    Attributes:
        step: int32 `[]`, classifier steps taken.
        key: The constant root key; a step's randomness is a function of (key, step), so resuming needs nothing else.
        classifier: The minimising player.
        adversary: The maximising player's state; `()` where it does not learn.
        average: Moving average of the classifier's weights and running statistics; None where it is not wanted.
    """

    step: jax.Array
    key: jax.Array
    classifier: PlayerState
    adversary: PyTree
    average: WeightAverage | None = None


@dataclasses.dataclass(frozen=True)
class Game:
    """Everything that stays: functions and numbers, closed over by the compiled step.

    Attributes:
        classifier: The classifier network D.
        optimizer: How the classifier moves, weight decay included.
        adversary: The maximising player.
        loss: `cross_entropy` (`losses.classifier_loss`) or `trades` (`losses.trades`).
        clean_weight: Weight of the clean cross-entropy.
        adversarial_weight: Weight of the adversarial term; at 0 the adversary is never called.
        label_smoothing: Of the classifier's cross-entropy.
        gradient_penalty: Coefficient of R = 1/2 ||grad_phi CE||^2, added to the classifier's loss. Positive damps the
            game, negative is the released code, 0 is none and costs nothing.
        penalty_form: `exact`, or `finite_difference` as in the released code.
        penalty_step: Size h of the finite difference.
        attacked_batch_norm: `batch` or `running`: the statistics with which the classifier's BatchNorm normalises
            while the adversary attacks it in training. Its own update always uses those of the batch, clean and
            adversarial images apart, and moves the running ones by both in turn; at test the running ones are used.
        weight_perturbation: Size of the adversarial weight perturbation, see `weights.perturb_weights`; 0 for none.
        average_decay: Decay of the moving average of the weights, see `weights.update_average`; 0 for none.
    """

    classifier: Network
    optimizer: optax.GradientTransformation
    adversary: Adversary
    loss: str = "cross_entropy"
    clean_weight: float = 1.0
    adversarial_weight: float = 1.0
    label_smoothing: float = 0.0
    gradient_penalty: float = 0.0
    penalty_form: str = "exact"
    penalty_step: float = 0.01
    attacked_batch_norm: str = "batch"
    weight_perturbation: float = 0.0
    average_decay: float = 0.0


def from_config(config: Config, *, num_classes: int, channels: int, sources: Sequence[LogitsFn] = ()) -> Game:
    """Builds the game of a configuration.

    Args:
        config: Validated already.
        num_classes: K of the data.
        channels: C of the data.
        sources: The classifiers of `config.adversary.ensemble.sources`, where that is the adversary.

    Returns:
        The game.

    Raises:
        UserError: A network's name is unknown.

    >>> from_config(Config(), num_classes=10, channels=1).attacked_batch_norm
    'batch'
    """
    return Game(
        classifier=networks.build_classifier(config.classifier.network, num_classes),
        optimizer=optimizers.build(config.classifier.optimizer),
        adversary=adversaries.from_config(
            config.adversary,
            threat_model.from_config(config.threat),
            channels=channels,
            num_classes=num_classes,
            sources=sources,
        ),
        loss=config.classifier.loss,
        clean_weight=config.classifier.clean_weight,
        adversarial_weight=adversarial_weight(config),
        label_smoothing=config.classifier.label_smoothing,
        gradient_penalty=config.penalty.coefficient,
        penalty_form=config.penalty.form,
        penalty_step=config.penalty.step,
        attacked_batch_norm=config.classifier.attacked_batch_norm,
        weight_perturbation=config.classifier.weight_perturbation,
        average_decay=config.classifier.average_decay,
    )


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
    root, classifier_key, adversary_key = jax.random.split(key, 3)
    params, batch_stats = game.classifier.init(classifier_key, images)
    classifier = PlayerState(params, batch_stats, game.optimizer.init(params))
    adversary = game.adversary.init(adversary_key, images)
    # A copy: a step may donate its state, and no buffer can be given away twice.
    average = WeightAverage(*jax.tree.map(jnp.array, (params, batch_stats))) if game.average_decay else None
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
    return random.keys_at(key, first + jnp.arange(count))


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
        earlier: Minibatches `[M, B, H, W, C]` on which the adversary alone improves first (the paper's MNIST recipe).
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
    keys, count = step_keys(state), batch.labels.shape[0]
    classifier_fn = _attacked_classifier(game, state.classifier, axis_name)
    adversary, metrics = state.adversary, {}
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
        average = weights.update_average(average, WeightAverage(params, batch_stats), state.step, game.average_decay)
    return TrainState(state.step + 1, state.key, classifier, adversary, average), metrics


def classifier_gradient(
    game: Game, classifier: PlayerState, adversary: PyTree, batch: Batch, keys: jax.Array, *, axis_name=None
) -> tuple[PyTree, PyTree, Metrics]:
    """Returns the direction in which the classifier learns: its loss on clean and perturbed images, and the penalty.

    Args:
        game: The game.
        classifier: The classifier before the step.
        adversary: The adversary's state, improved already.
        batch: The minibatch.
        keys: One key per image, `[B]`.
        axis_name: The mapped axis, if there is one.

    Returns:
        The gradient in the classifier's parameters (weight decay is the optimiser's), the new running statistics, and
        scalar metrics; all averaged over the axis.
    """
    attacked = _attacked_classifier(game, classifier, axis_name)
    if game.gradient_penalty:
        if game.adversary.response is None:
            raise ValueError("the gradient penalty needs an adversary with parameters; set gradient_penalty to 0")
        phi, images_fn = game.adversary.response(adversary, attacked, batch, keys, axis_name=axis_name)
        gradient_at = functools.partial(_penalised_gradient, game, classifier, batch, phi, images_fn, axis_name)
    else:
        images = None
        if game.adversarial_weight:
            images = game.adversary.perturb(adversary, attacked, batch, keys, axis_name=axis_name)
        gradient_at = functools.partial(_loss_gradient, game, classifier, batch, images, axis_name)
    params = classifier.params
    if game.weight_perturbation:
        params = weights.perturb_weights(
            params, mean_over(axis_name, gradient_at(params)[0]), game.weight_perturbation
        )  # fmt: skip
    gradient, batch_stats, metrics = gradient_at(params)
    gradient, metrics = mean_over(axis_name, (gradient, metrics))
    return gradient, batch_stats, metrics


def _loss_gradient(game, classifier, batch, images, axis_name, params):
    """Returns this device's gradient of the loss, the new running statistics, and metrics."""

    def mean_loss(params):
        batch_stats, logits = classifier.batch_stats, {}
        # Apart, because BatchNorm normalises clean and adversarial images apart; a term of weight 0 is not computed.
        if game.clean_weight:
            logits["clean"], batch_stats = game.classifier.apply(
                params, batch_stats, batch.images, train=True, axis_name=axis_name
            )
        if game.adversarial_weight:
            logits["adversarial"], batch_stats = game.classifier.apply(
                params, batch_stats, jax.lax.stop_gradient(images), train=True, axis_name=axis_name
            )
        return _mean_loss(game, logits, batch.labels), (logits, batch_stats)

    gradient, (logits, batch_stats) = jax.grad(mean_loss, has_aux=True)(params)
    return gradient, batch_stats, _measure(game, logits, batch.labels)


def _penalised_gradient(game, classifier, batch, phi, images_fn, axis_name, params):
    """Returns the same with the gradient penalty: the two terms apart, for the penalty shares the adversarial one."""
    labels, batch_stats = batch.labels, classifier.batch_stats

    def mean_loss(params, batch_stats, images):
        logits, batch_stats = game.classifier.apply(params, batch_stats, images, train=True, axis_name=axis_name)
        loss = jnp.mean(cross_entropy(logits, labels, label_smoothing=game.label_smoothing))
        return loss, (logits, batch_stats)

    terms, logits = [], {}
    if game.clean_weight:
        gradient, (logits["clean"], batch_stats) = jax.grad(mean_loss, has_aux=True)(params, batch_stats, batch.images)
        terms.append((game.clean_weight, gradient))
    images, pullback = jax.vjp(images_fn, phi)
    # One backward pass gives both the gradient in theta and the cotangent of the pixels for the pullback to phi.
    (gradient, cotangent), (logits["adversarial"], batch_stats) = jax.grad(mean_loss, argnums=(0, 2), has_aux=True)(
        params, batch_stats, images
    )
    v = mean_over(axis_name, pullback(cotangent)[0])
    gradient_at = functools.partial(
        jax.grad(lambda params, images: mean_loss(params, classifier.batch_stats, images)[0]), params
    )
    penalty_gradient = _penalty_gradient(game, gradient_at, gradient, images, images_fn, phi, v)
    terms += [(game.adversarial_weight, gradient), (game.gradient_penalty, penalty_gradient)]
    factors, trees = zip(*terms, strict=True)
    total = jax.tree.map(lambda *leaves: sum(w * g for w, g in zip(factors, leaves, strict=True)), *trees)
    penalty = {"penalty": 0.5 * optax.tree.norm(v, squared=True)}
    return total, batch_stats, penalty | _measure(game, logits, labels)


def _penalty_gradient(game, gradient_at, gradient_here, images, images_fn, phi, v):
    """Returns this device's share of grad_theta R, given v = grad_phi CE over all devices.

    Exactly, grad_theta R = grad_theta <v(theta), v> = grad_theta <grad_x CE, u>, where u = (d images / d phi) v does
    not depend on theta: one forward-mode pass through the generator, then forward over reverse through the classifier
    alone. The finite difference moves the generator by +h v, as a plain gradient step on its loss does.
    """
    if game.penalty_form == "exact":
        tangent = jax.jvp(images_fn, (phi,), (v,))[1]
        return jax.jvp(gradient_at, (images,), (tangent,))[1]
    virtual = images_fn(jax.tree.map(lambda p, d: p + game.penalty_step * d, phi, v))
    return jax.tree.map(lambda a, b: (a - b) / game.penalty_step, gradient_at(virtual), gradient_here)


def _mean_loss(game, logits, labels):
    loss_fn = trades if game.loss == "trades" else classifier_loss
    given = list(logits.values())  # Where a term has weight 0, the logits of the other stand in for it.
    return jnp.mean(
        loss_fn(
            logits.get("clean", given[0]),
            logits.get("adversarial", given[0]),
            labels,
            clean_weight=game.clean_weight,
            adversarial_weight=game.adversarial_weight,
            label_smoothing=game.label_smoothing,
        )
    )


def _measure(game, logits, labels):
    metrics = {"classifier_loss": _mean_loss(game, logits, labels)}
    for name, values in logits.items():
        metrics[f"{name}_loss"] = jnp.mean(cross_entropy(values, labels))
        metrics[f"{name}_accuracy"] = jnp.mean(is_correct(values, labels))
    return metrics


def _attacked_classifier(game, classifier, axis_name):
    train = game.attacked_batch_norm == "batch"

    def classifier_fn(images):
        params, batch_stats = jax.lax.stop_gradient((classifier.params, classifier.batch_stats))
        return game.classifier.apply(params, batch_stats, images, train=train, axis_name=axis_name)[0]

    return classifier_fn
