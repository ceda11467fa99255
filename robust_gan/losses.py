"""Unreduced losses `[B]`, and the value of the game.

Nothing here averages: the caller weights, masks and takes the mean. Larger is worse for the classifier throughout, so
an attack maximises and the classifier minimises. Logits narrower than float32 are widened to it first.

Logits are `[B, K]`, labels (and targets) integers `[B]` in 0..K-1. What is not raises `UserError`; where labels are
traced and cannot be seen, one out of 0..K-1 has the loss NaN and is never correct.
"""

import jax
import jax.numpy as jnp
import numpy as np

from robust_gan.errors import UserError
from robust_gan.threat_model import known
from robust_gan.types import get_compute_dtype


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
    logits, labels = check_logits(logits), check_labels(labels, logits.shape)
    # Unlike the difference of a log-sum-exp and a logit, this is exact to 1e-7 at any common offset of the logits.
    log_probabilities = jax.nn.log_softmax(logits)
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

    Raises:
        UserError: There is one class only.

    References:
        Carlini and Wagner, "Towards Evaluating the Robustness of Neural Networks", S&P 2017, section V (f6).

    >>> margin(jnp.array([[1.0, 3.0, 2.0]]), jnp.array([1])).tolist()
    [-1.0]
    """
    logits, labels = check_logits(logits), check_labels(labels, logits.shape)
    if logits.shape[1] < 2:
        raise UserError("the margin loss needs 2 classes, not 1")
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
        UserError: Too few classes for the ratio to be defined.

    References:
        Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
        attacks", ICML 2020, equations 6 and 7, https://arxiv.org/abs/2003.01690

    >>> dlr(jnp.array([[4.0, 1.0, 3.0, 2.0]]), jnp.array([0])).tolist()
    [-0.5]
    >>> print(f"{dlr(jnp.array([[4.0, 1.0, 3.0, 2.0]]), jnp.array([0]), jnp.array([3]))[0]:.4f}")
    -0.8000
    """
    logits, labels = check_logits(logits), check_labels(labels, logits.shape)
    needed = 3 if targets is None else 4
    if logits.shape[-1] < needed:
        raise UserError(f"the {'targeted ' * (needed == 4)}DLR loss needs {needed} classes, not {logits.shape[-1]}")
    ordered = jnp.sort(logits, axis=-1)
    if targets is None:
        return margin(logits, labels) / (ordered[:, -1] - ordered[:, -3] + 1e-12)
    targets = check_labels(targets, logits.shape, "targets")
    gap = _at(logits, targets) - _at(logits, labels)
    return gap / (ordered[:, -1] - 0.5 * (ordered[:, -3] + ordered[:, -4]) + 1e-12)


def kl(logits: jax.Array, reference_logits: jax.Array) -> jax.Array:
    """Kullback-Leibler divergence KL(softmax(reference) || softmax(logits)).

    Args:
        logits: `[B, K]`.
        reference_logits: `[B, K]`.

    Returns:
        `[B]`, in nats, at least 0.

    Raises:
        UserError: The two are not of one shape.

    >>> kl(jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 2.0]])).tolist()
    [0.0]
    """
    logits, reference_logits = check_logits(logits), check_logits(reference_logits)
    if logits.shape != reference_logits.shape:
        raise UserError(
            f"reference_logits must have the shape of the logits, {logits.shape}, not {reference_logits.shape}"
        )
    log_reference = jax.nn.log_softmax(reference_logits)
    reference = jnp.exp(log_reference)
    gap = jnp.where(reference > 0, log_reference - jax.nn.log_softmax(logits), 0.0)
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
        logits: `[B, K]`; -inf is that of a class which is ruled out.
        labels: int32 `[B]`.

    Returns:
        bool `[B]`; False for a label out of 0..K-1, which no prediction is.

    Raises:
        UserError: A shape or type is wrong.

    >>> is_correct(jnp.array([[0.0, 1.0], [jnp.nan, jnp.nan]]), jnp.array([1, 0])).tolist()
    [True, False]
    """
    logits, labels = check_logits(logits), check_labels(labels, logits.shape, refuse=False)
    predicted = jnp.argmax(logits, axis=-1).astype(labels.dtype)
    return (predicted == labels) & has_class(logits)


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


def check_logits(logits: jax.Array) -> jax.Array:
    """Returns logits at least as wide as float32.

    Args:
        logits: `[B, K]`, numbers.

    Raises:
        UserError: It is no array of numbers of two axes: of what a model returned beside its logits, say.

    >>> check_logits(jnp.zeros((2, 3, 4)))
    Traceback (most recent call last):
    robust_gan.errors.UserError: logits must be numbers [B, K], not float32 (2, 3, 4)
    """
    if not hasattr(logits, "dtype"):
        raise UserError(f"logits must be an array [B, K], not {type(logits).__name__}")
    real = jnp.issubdtype(logits.dtype, jnp.floating) or jnp.issubdtype(logits.dtype, jnp.integer)
    if not real or logits.ndim != 2:
        raise UserError(f"logits must be numbers [B, K], not {logits.dtype} {logits.shape}")
    logits = jnp.asarray(logits)
    return logits.astype(get_compute_dtype(logits.dtype))


def check_labels(labels: jax.Array, shape: tuple[int, ...], name: str = "labels", *, refuse: bool = True) -> jax.Array:
    """Returns labels as int32; those that are out of 0..K-1 and not refused as K, which no class has.

    Args:
        labels: Integers `[B]`.
        shape: (B, K), of the logits; K may be left out where it is not known yet.
        name: What they are called in the sentence.
        refuse: Whether known labels out of 0..K-1 are refused.

    Raises:
        UserError: They are not integers `[B]`, or a known one is out of 0..K-1.

    >>> check_labels(jnp.array([0, 3]), (2, 3))
    Traceback (most recent call last):
    robust_gan.errors.UserError: labels must be in 0..2, but range from 0 to 3
    """
    if not hasattr(labels, "dtype"):
        raise UserError(f"{name} must be an array of integers [B], not {type(labels).__name__}")
    if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
        remedy = ""
        if labels.ndim == 2:
            remedy = f": take {name}[:, 0]" if labels.shape[1] == 1 else ": of one-hot labels take argmax(-1)"
        raise UserError(
            f"{name} must be integers [B], the number of a class each, not {labels.dtype} {labels.shape}{remedy}"
        )
    if labels.shape[0] != shape[0]:
        raise UserError(f"{name} must be {shape[0]}, one for each image, not {labels.shape[0]}")
    classes = shape[1] if len(shape) > 1 else 2**31 - 1
    values = known(labels)
    inside = values is not None and bool(np.all((values >= 0) & (values < classes)))
    if refuse and values is not None and not inside:
        allowed = f"in 0..{classes - 1}" if len(shape) > 1 else "class numbers from 0"
        raise UserError(f"{name} must be {allowed}, but range from {values.min()} to {values.max()}")
    if inside or len(shape) == 1:
        return jnp.asarray(labels).astype(jnp.int32)
    # Compared before the cast, which would wrap; and as at least 32 bits, for K may be beyond what int8 can hold.
    compute_dtype = jnp.asarray(labels) if labels.dtype.itemsize >= 4 else jnp.asarray(labels, jnp.int32)
    return jnp.where((compute_dtype >= 0) & (compute_dtype < classes), compute_dtype, classes).astype(jnp.int32)


def _at(values: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.take_along_axis(values, labels[:, None], axis=-1, mode="fill", fill_value=jnp.nan)[:, 0]


def _mask_label(logits: jax.Array, labels: jax.Array) -> jax.Array:
    at_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    return jnp.where(at_label, -jnp.inf, logits)
