"""The classifier's gradient: of its loss on clean and adversarial images, with the gradient penalty and AWP."""

import functools

import jax
import jax.numpy as jnp
import optax

from robust_gan import certification
from robust_gan.game.state import Game
from robust_gan.losses import classifier_loss, cross_entropy, is_correct, trades
from robust_gan.optimizers import kernels, mean_over
from robust_gan.types import Batch, LogitsFn, Metrics, Params, PlayerState, PyTree


def attacked_classifier(game: Game, classifier: PlayerState, axis_name: str | None) -> LogitsFn:
    """Returns the classifier that the adversary attacks.

    Args:
        game: The game.
        classifier: Its state.
        axis_name: The mapped axis, if there is one.

    Returns:
        Images to logits, with the BatchNorm statistics of `game.attack_bn_mode`; no gradient reaches the parameters.

    >>> from robust_gan import adversaries, networks
    >>> game = Game(networks.build_classifier("digits_cnn", 10), optax.sgd(0.1), adversaries.none())
    >>> images = jnp.zeros((2, 8, 8, 1))
    >>> params, batch_stats = game.classifier.init(jax.random.key(0), images)
    >>> attacked_classifier(game, PlayerState(params, batch_stats, ()), None)(images).shape
    (2, 10)
    """
    train = game.attack_bn_mode == "batch"

    def classifier_fn(images):
        params, batch_stats = jax.lax.stop_gradient((classifier.params, classifier.batch_stats))
        return game.classifier.apply(params, batch_stats, images, train=train, axis_name=axis_name)[0]

    return classifier_fn


def classifier_gradient(
    game: Game,
    classifier: PlayerState,
    adversary: PyTree,
    batch: Batch,
    keys: jax.Array,
    *,
    axis_name: str | None = None,
) -> tuple[PyTree, PyTree, Metrics, jax.Array | None]:
    """Computes the gradient of the classifier's loss on clean and adversarial images, penalty included.

    Args:
        game: The game.
        classifier: Its state before the step.
        adversary: The adversary's state after its update.
        batch: This device's share of the batch.
        keys: One key per image, `[B]`.
        axis_name: The mapped axis, if there is one.

    Returns:
        The gradient in the classifier's parameters (weight decay is the optimiser's), the new running statistics and
        scalar metrics, averaged over the axis; and the adversarial images, None where nothing is attacked.

    Raises:
        ValueError: There is a gradient penalty, but the adversary has no parameters.

    >>> from robust_gan import adversaries, networks
    >>> game = Game(networks.build_classifier("digits_cnn", 10), optax.sgd(0.1), adversaries.none(),
    ...             adversarial_weight=0.0)
    >>> batch = Batch(jnp.zeros((2, 8, 8, 1)), jnp.array([3, 7]))
    >>> params, batch_stats = game.classifier.init(jax.random.key(0), batch.images)
    >>> gradient, _, metrics, _ = classifier_gradient(game, PlayerState(params, batch_stats, ()), (), batch, None)
    >>> sorted(metrics)
    ['classifier_loss', 'clean_accuracy', 'clean_loss']
    """
    attacked, images = attacked_classifier(game, classifier, axis_name), None
    if game.gradient_penalty:
        if game.adversary.response is None:
            raise ValueError("the gradient penalty needs an adversary with parameters; set gradient_penalty to 0")
        phi, images_fn = game.adversary.response(adversary, attacked, batch, keys, axis_name=axis_name)
        gradient_at = functools.partial(_penalised_gradient, game, classifier, batch, phi, images_fn, axis_name)
        if game.memory is not None:
            images = images_fn(phi)
    else:
        if game.adversarial_weight:
            images = game.adversary.perturb(adversary, attacked, batch, keys, axis_name=axis_name)
        gradient_at = functools.partial(_loss_gradient, game, classifier, batch, images, axis_name)
    params = classifier.params
    if game.awp_gamma:
        params = perturb_weights(params, mean_over(axis_name, gradient_at(params)[0]), game.awp_gamma)
    gradient, batch_stats, metrics = gradient_at(params)
    gradient, metrics = mean_over(axis_name, (gradient, metrics))
    return gradient, batch_stats, metrics, images


def perturb_weights(params: Params, gradient: Params, gamma: float) -> Params:
    """Computes the adversarial weight perturbation: moves every kernel along the gradient by gamma times its own norm.

    Biases and BatchNorm's parameters (arrays of one axis) stay as they are.

    Args:
        params: The weights.
        gradient: Of the loss in them, over all devices.
        gamma: Relative size; 0.005 is usual.

    Returns:
        The weights at which the classifier's gradient is taken.

    References:
        Wu, Xia and Wang, "Adversarial Weight Perturbation Helps Robust Generalization", NeurIPS 2020, equation 10,
        https://arxiv.org/abs/2004.05884

    >>> moved = perturb_weights({"kernel": jnp.full((1, 1), 2.0)}, {"kernel": jnp.full((1, 1), 0.1)}, 0.5)
    >>> moved["kernel"].item()
    3.0
    """

    def move(weight: jax.Array, slope: jax.Array) -> jax.Array:
        if weight.ndim < 2:
            return weight
        norm = jnp.linalg.norm(slope)
        return weight + gamma * jnp.linalg.norm(weight) * slope / jnp.where(norm > 0, norm, 1.0)

    return jax.tree.map(move, params, gradient)


def _loss_gradient(game, classifier, batch, images, axis_name, params):
    """Computes this device's gradient of the loss, the new running statistics, and metrics."""

    def mean_loss(params):
        inputs = {}  # A term of weight 0 is not computed.
        if game.clean_weight or game.consistency:
            inputs["clean"] = batch.images
        if game.adversarial_weight:
            inputs["adversarial"] = jax.lax.stop_gradient(images)
        logits, batch_stats = _logits_of(game, params, classifier.batch_stats, inputs, axis_name)
        loss, bounded = _mean_loss(game, logits, batch.labels), {}
        if game.certified is not None:
            certified, bounded = _certified_loss(game, classifier.batch_stats, batch, params)
            loss = (1 - game.certified.weight) * loss + game.certified.weight * certified
            bounded["classifier_loss"] = loss
        return loss, (logits, batch_stats, bounded)

    gradient, (logits, batch_stats, bounded) = jax.grad(mean_loss, has_aux=True)(params)
    return gradient, batch_stats, _measure(game, logits, batch.labels) | bounded


def _logits_of(game, params, batch_stats, inputs, axis_name):
    """Computes the logits of each of the batches: BatchNorm normalises clean and adversarial images apart."""
    if len(inputs) == 2 and game.classifier.apply_both is not None:
        both, batch_stats = game.classifier.apply_both(params, batch_stats, *inputs.values(), axis_name=axis_name)
        return dict(zip(inputs, both, strict=True)), batch_stats
    logits = {}
    for name, images in inputs.items():
        logits[name], batch_stats = game.classifier.apply(params, batch_stats, images, train=True, axis_name=axis_name)
    return logits, batch_stats


def _certified_loss(game, batch_stats, batch, params):
    """Computes the cross-entropy of the worst logits that interval bounds allow, and metrics.

    BatchNorm has its running statistics there, as in the model that is certified in the end.
    """

    def logits_fn(images):
        return game.classifier.apply(params, batch_stats, images, train=False)[0]

    margins = certification.margin_bounds(logits_fn, batch.images, batch.labels, game.certified.threat)
    certified = jnp.mean(cross_entropy(-margins, batch.labels))
    robust = jnp.mean(jnp.sum(margins > 0, axis=-1) == margins.shape[-1] - 1)
    return certified, {"certified_loss": certified, "certified_accuracy": robust}


def _penalised_gradient(game, classifier, batch, phi, images_fn, axis_name, params):
    """Computes the same with the gradient penalty, which shares the forward pass of the adversarial term."""
    labels, batch_stats = batch.labels, classifier.batch_stats

    def mean_loss(params, batch_stats, images):
        logits, batch_stats = game.classifier.apply(params, batch_stats, images, train=True, axis_name=axis_name)
        loss = jnp.mean(cross_entropy(logits, labels, label_smoothing=game.label_smoothing))
        return loss, (logits, batch_stats)

    terms, logits = [], {}
    if game.clean_weight:
        gradient, (logits["clean"], batch_stats) = jax.grad(mean_loss, has_aux=True)(params, batch_stats, batch.images)
        terms.append((game.clean_weight, gradient))

    def gradients(images):
        # One backward pass gives the gradient in theta and the cotangent of the pixels, which is pulled back to phi.
        return jax.grad(mean_loss, argnums=(0, 2), has_aux=True)(params, batch_stats, images)

    def gradient_at(images):
        return jax.grad(lambda params: mean_loss(params, classifier.batch_stats, images)[0])(params)

    gradient, penalty_gradient, v, aux = _penalty_gradient(game, gradients, gradient_at, images_fn, phi, axis_name)
    logits["adversarial"], batch_stats = aux
    terms += [(game.adversarial_weight, gradient)]
    metrics = _measure(game, logits, labels)
    if game.certified is not None:
        share, bounds = game.certified.weight, functools.partial(_certified_loss, game, classifier.batch_stats, batch)
        certified_gradient, bounded = jax.grad(bounds, has_aux=True)(params)
        terms = [((1 - share) * weight, part) for weight, part in terms] + [(share, certified_gradient)]
        loss = (1 - share) * metrics["classifier_loss"] + share * bounded["certified_loss"]
        metrics |= bounded | {"classifier_loss": loss}
    terms += [(game.gradient_penalty, penalty_gradient)]
    factors, trees = zip(*terms, strict=True)
    total = jax.tree.map(lambda *leaves: sum(w * g for w, g in zip(factors, leaves, strict=True)), *trees)
    penalty = {"penalty": 0.5 * optax.tree.norm(v, squared=True)}
    return total, batch_stats, penalty | metrics


def _penalty_gradient(game, gradients, gradient_at, images_fn, phi, axis_name):
    """Computes this device's gradient of the adversarial term, grad_theta R, v = grad_phi CE over all devices, and aux.

    Exactly, grad_theta R = grad_theta <v(theta), v> = grad_theta <grad_x CE, u>, where u = (d images / d phi) v does
    not depend on theta: forward mode through the generator, then forward over reverse through the classifier alone.
    Each is linearised once, and serves both directions. The finite difference moves the generator by +h v, as a
    gradient step on its loss does, with `game.penalty_decay` as weight decay.
    """
    images, push = jax.linearize(images_fn, phi)
    pull = jax.linear_transpose(push, phi)
    if game.penalty_form == "exact":
        (gradient, cotangent), tangents, aux = jax.linearize(gradients, images, has_aux=True)
        v = mean_over(axis_name, pull(cotangent)[0])
        return gradient, tangents(push(v))[0], v, aux
    (gradient, cotangent), aux = gradients(images)
    v = direction = mean_over(axis_name, pull(cotangent)[0])
    if game.penalty_decay:
        direction = jax.tree.map(lambda p, d, decays: d - game.penalty_decay * decays * p, phi, v, kernels(phi))
    virtual = images_fn(jax.tree.map(lambda p, d: p + game.penalty_step * d, phi, direction))
    difference = jax.tree.map(lambda a, b: (a - b) / game.penalty_step, gradient_at(virtual), gradient)
    return gradient, difference, v, aux


def _mean_loss(game, logits, labels):
    loss_fn = trades if game.loss == "trades" else classifier_loss
    given = list(logits.values())  # A term of weight 0 gets the logits of the other.
    loss = jnp.mean(
        loss_fn(
            logits.get("clean", given[0]),
            logits.get("adversarial", given[0]),
            labels,
            clean_weight=game.clean_weight,
            adversarial_weight=game.adversarial_weight,
            label_smoothing=game.label_smoothing,
        )
    )
    if game.consistency:
        clean, adversarial = (jax.nn.softmax(logits[name]) for name in ("clean", "adversarial"))
        loss += game.consistency * jnp.mean(jnp.sum(jnp.square(clean - adversarial), axis=-1))
    return loss


def _measure(game, logits, labels):
    metrics = {"classifier_loss": _mean_loss(game, logits, labels)}
    for name, values in logits.items():
        metrics[f"{name}_loss"] = jnp.mean(cross_entropy(values, labels))
        metrics[f"{name}_accuracy"] = jnp.mean(is_correct(values, labels))
    return metrics
