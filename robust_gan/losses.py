"""Unreduced losses `[B]`, and the value of the game.

Nothing here averages: the caller weights, masks and takes the mean. Larger is worse for the classifier throughout, so
an attack maximises and the classifier minimises. Logits narrower than float32 are widened to it first.
"""

import jax
import jax.numpy as jnp


def cross_entropy(logits: jax.Array, labels: jax.Array, *, label_smoothing: float = 0.0) -> jax.Array:
    """Cross-entropy of the softmax of the logits against integer labels.

    Args:
        logits: `[B, K]`.
        labels: int32 `[B]` in 0..K-1.
        label_smoothing: Share of the probability that the target spreads evenly over all classes.

    Returns:
        `[B]`, in nats.

    >>> print(cross_entropy(jnp.zeros((1, 4)), jnp.array([2])))
    [1.3862944]
    """
    # Unlike the difference of a log-sum-exp and a logit, this is exact to 1e-7 at any common offset of the logits.
    log_probabilities = jax.nn.log_softmax(_widen(logits))
    at_label = -_at(log_probabilities, labels)
    if not label_smoothing:
        return at_label
    return (1 - label_smoothing) * at_label - label_smoothing * jnp.mean(log_probabilities, axis=-1)


def margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Largest logit of a wrong class minus the logit of the label: positive only where the image is misclassified.

    Negative only where it is classified right; 0 on a tie, where the class of the lower number counts as predicted.

    Args:
        logits: `[B, K]`, K at least 2.
        labels: int32 `[B]`.

    Returns:
        `[B]`.

    References:
        Carlini and Wagner, "Towards Evaluating the Robustness of Neural Networks", S&P 2017, section V (f6).

    >>> margin(jnp.array([[1.0, 3.0, 2.0]]), jnp.array([1])).tolist()
    [-1.0]
    """
    logits = _widen(logits)
    return jnp.max(_mask_label(logits, labels), axis=-1) - _at(logits, labels)


def dlr(logits: jax.Array, labels: jax.Array, targets: jax.Array | None = None) -> jax.Array:
    """Difference of logits ratio: a margin that neither a shift nor a scaling of the logits changes.

    Args:
        logits: `[B, K]`; K at least 3, and at least 4 with targets.
        labels: int32 `[B]`.
        targets: int32 `[B]`, the classes aimed at; without them the largest wrong one counts.

    Returns:
        `[B]`.

    Raises:
        ValueError: Too few classes for the ratio to be defined.

    References:
        Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
        attacks", ICML 2020, equations 6 and 7, https://arxiv.org/abs/2003.01690

    >>> dlr(jnp.array([[4.0, 1.0, 3.0, 2.0]]), jnp.array([0])).tolist()
    [-0.5]
    >>> print(f"{dlr(jnp.array([[4.0, 1.0, 3.0, 2.0]]), jnp.array([0]), jnp.array([3]))[0]:.4f}")
    -0.8000
    """
    needed = 3 if targets is None else 4
    if logits.shape[-1] < needed:
        raise ValueError(f"the {'targeted ' * (needed == 4)}DLR loss needs {needed} classes, not {logits.shape[-1]}")
    logits = _widen(logits)
    ordered = jnp.sort(logits, axis=-1)
    if targets is None:
        return margin(logits, labels) / (ordered[:, -1] - ordered[:, -3] + 1e-12)
    gap = _at(logits, targets) - _at(logits, labels)
    return gap / (ordered[:, -1] - 0.5 * (ordered[:, -3] + ordered[:, -4]) + 1e-12)


def kl(logits: jax.Array, reference_logits: jax.Array) -> jax.Array:
    """Kullback-Leibler divergence KL(softmax(reference) || softmax(logits)).

    Args:
        logits: `[B, K]`.
        reference_logits: `[B, K]`.

    Returns:
        `[B]`, in nats, at least 0.

    >>> kl(jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 2.0]])).tolist()
    [0.0]
    """
    log_reference = jax.nn.log_softmax(_widen(reference_logits))
    reference = jnp.exp(log_reference)
    gap = jnp.where(reference > 0, log_reference - jax.nn.log_softmax(_widen(logits)), 0.0)
    divergence = jnp.sum(reference * gap, axis=-1)
    # Rounding can leave it just below 0; the gradient stays that of the sum.
    return divergence + jax.lax.stop_gradient(jnp.maximum(divergence, 0.0) - divergence)


def classifier_loss(
    clean_logits: jax.Array,
    adversarial_logits: jax.Array,
    labels: jax.Array,
    *,
    clean_weight: float = 1.0,
    adversarial_weight: float = 1.0,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """What the classifier minimises: cross-entropy on clean and on adversarial images; the value of the game.

    Args:
        clean_logits: `[B, K]`.
        adversarial_logits: `[B, K]`, for the same images perturbed.
        labels: int32 `[B]`.
        clean_weight: Weight of the clean term.
        adversarial_weight: Weight of the adversarial term.
        label_smoothing: Of both terms; the game is zero-sum without it.

    Returns:
        `[B]`.

    Guarantees:
        `test_the_game_is_zero_sum`: its gradient in the generator's parameters is minus that of `generator_loss`
            when `adversarial_weight` is 1.

    References:
        Wang and Yu, "A Direct Approach to Robust Deep Learning Using Adversarial Networks", ICLR 2019, section 3.

    >>> logits = jnp.zeros((1, 2))
    >>> print(classifier_loss(logits, logits, jnp.array([0])))
    [1.3862944]
    """
    clean = cross_entropy(clean_logits, labels, label_smoothing=label_smoothing)
    adversarial = cross_entropy(adversarial_logits, labels, label_smoothing=label_smoothing)
    return clean_weight * clean + adversarial_weight * adversarial


def trades(
    clean_logits: jax.Array,
    adversarial_logits: jax.Array,
    labels: jax.Array,
    *,
    clean_weight: float = 1.0,
    adversarial_weight: float = 6.0,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """What a TRADES classifier minimises: clean cross-entropy, and that the prediction stays where it was.

    Args:
        clean_logits: `[B, K]`.
        adversarial_logits: `[B, K]`, for the same images perturbed.
        labels: int32 `[B]`.
        clean_weight: Weight of the clean term.
        adversarial_weight: beta, the weight of KL(clean || adversarial); differentiated in both of its arguments.
        label_smoothing: Of the clean term.

    Returns:
        `[B]`.

    References:
        Zhang, Yu, Jiao, Xing, El Ghaoui and Jordan, "Theoretically Principled Trade-off between Robustness and
        Accuracy", ICML 2019, equation 5 and algorithm 1, https://arxiv.org/abs/1901.08573

    >>> logits = jnp.zeros((1, 2))
    >>> print(trades(logits, logits, jnp.array([0])))
    [0.6931472]
    """
    clean = cross_entropy(clean_logits, labels, label_smoothing=label_smoothing)
    return clean_weight * clean + adversarial_weight * kl(adversarial_logits, clean_logits)


def generator_loss(adversarial_logits: jax.Array, labels: jax.Array) -> jax.Array:
    """What the generator minimises: minus the adversarial term of the classifier's loss, so the game is zero-sum.

    Args:
        adversarial_logits: `[B, K]`.
        labels: int32 `[B]`.

    Returns:
        `[B]`, at most 0.

    >>> print(generator_loss(jnp.zeros((1, 2)), jnp.array([0])))
    [-0.6931472]
    """
    return -cross_entropy(adversarial_logits, labels)


def is_correct(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Tells which images are classified right; never where a logit is NaN or +inf. A class at -inf is masked out.

    Args:
        logits: `[B, K]`.
        labels: int32 `[B]`.

    Returns:
        bool `[B]`.

    >>> is_correct(jnp.array([[0.0, 1.0], [jnp.nan, jnp.nan]]), jnp.array([1, 0])).tolist()
    [True, False]
    """
    return (jnp.argmax(logits, axis=-1) == labels) & has_class(logits)


def has_class(logits: jax.Array) -> jax.Array:
    """Tells which images have logits that name a class: no NaN, no +inf, and not -inf throughout.

    Args:
        logits: `[B, K]`.

    Returns:
        bool `[B]`.

    >>> has_class(jnp.array([[0.0, -jnp.inf], [0.0, jnp.nan], [0.0, jnp.inf], [-jnp.inf, -jnp.inf]])).tolist()
    [True, False, False, False]
    """
    # Not by the largest logit: a maximum may drop NaN.
    return jnp.all((logits < jnp.inf), axis=-1) & jnp.any(logits > -jnp.inf, axis=-1)


def _widen(logits: jax.Array) -> jax.Array:
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def _at(values: jax.Array, labels: jax.Array) -> jax.Array:
    if jnp.ndim(labels) != 1 or not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
        raise ValueError(
            f"labels must be integers [B], the number of a class each, not {jnp.result_type(labels)} "
            f"{jnp.shape(labels)}: of one-hot labels take argmax(-1)"
        )
    return jnp.take_along_axis(values, labels[:, None], axis=-1)[:, 0]


def _mask_label(logits: jax.Array, labels: jax.Array) -> jax.Array:
    at_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    return jnp.where(at_label, -jnp.inf, logits)
