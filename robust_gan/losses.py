"""Unreduced losses `[B]`, and the value of the game.

The caller weights, masks and averages. An attack maximises these losses and the classifier minimises them. Logits
narrower than float32 are converted to float32 first.

Logits are `[B, K]`, labels (and targets) integers `[B]` in 0..K-1; other arguments raise `UserError`. Traced labels
cannot be checked: a label out of 0..K-1 then has the loss NaN and is never correct.
"""

import jax
import jax.numpy as jnp
import numpy as np

from robust_gan.errors import UserError
from robust_gan.threat_model import known
from robust_gan.types import get_compute_dtype


def cross_entropy(logits: jax.Array, labels: jax.Array, *, label_smoothing: float = 0.0) -> jax.Array:
    """Computes the cross-entropy of the softmax of the logits against integer labels.

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


def margin(logits: jax.Array, labels: jax.Array, targets: jax.Array | None = None) -> jax.Array:
    """Computes the largest logit of a wrong class, or the logit of a target class, minus the logit of the label.

    Positive only where the image is misclassified, negative only where it is classified correctly; 0 on a tie, where
    the class of the lower number is the prediction.

    Args:
        logits: `[B, K]`, K at least 2.
        labels: int32 `[B]`.
        targets: int32 `[B]`, the target classes; without them the largest wrong logit counts.

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
    if targets is not None:
        return _at(logits, check_labels(targets, logits.shape, "targets")) - _at(logits, labels)
    return jnp.max(_mask_label(logits, labels), axis=-1) - _at(logits, labels)


def dlr(logits: jax.Array, labels: jax.Array, targets: jax.Array | None = None) -> jax.Array:
    """Computes the difference of logits ratio, a margin invariant to shift and scaling of the logits.

    Args:
        logits: `[B, K]`; K at least 3, and at least 4 with targets.
        labels: int32 `[B]`.
        targets: int32 `[B]`, the target classes; without them the largest wrong logit counts.

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
    return margin(logits, labels, targets) / (ordered[:, -1] - 0.5 * (ordered[:, -3] + ordered[:, -4]) + 1e-12)


def kl(logits: jax.Array, reference_logits: jax.Array) -> jax.Array:
    """Computes the Kullback-Leibler divergence KL(softmax(reference) || softmax(logits)).

    Args:
        logits: `[B, K]`.
        reference_logits: `[B, K]`.

    Returns:
        `[B]`, in nats, at least 0.

    Raises:
        UserError: The shapes differ.

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
    # Rounding can make it negative; clipping leaves the gradient of the sum.
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
    """Computes the classifier's loss, the value of the game: cross-entropy on clean and on adversarial images.

    Args:
        clean_logits: `[B, K]`.
        adversarial_logits: `[B, K]`, for the perturbed images.
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
    """Computes the TRADES loss: clean cross-entropy and the divergence of the adversarial from the clean prediction.

    Args:
        clean_logits: `[B, K]`.
        adversarial_logits: `[B, K]`, for the perturbed images.
        labels: int32 `[B]`.
        clean_weight: Weight of the clean term.
        adversarial_weight: beta, the weight of KL(clean || adversarial), which is differentiable in both arguments.
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
    """Computes the generator's loss: minus the adversarial term of the classifier's loss, so the game is zero-sum.

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
    """Returns which images are classified correctly; never where a logit is NaN or +inf.

    Args:
        logits: `[B, K]`; -inf masks a class.
        labels: int32 `[B]`.

    Returns:
        bool `[B]`; False for a label out of 0..K-1.

    Raises:
        UserError: A shape or type is wrong.

    >>> is_correct(jnp.array([[0.0, 1.0], [jnp.nan, jnp.nan]]), jnp.array([1, 0])).tolist()
    [True, False]
    """
    logits, labels = check_logits(logits), check_labels(labels, logits.shape, refuse=False)
    predicted = jnp.argmax(logits, axis=-1).astype(labels.dtype)
    return (predicted == labels) & has_class(logits)


def has_class(logits: jax.Array) -> jax.Array:
    """Returns which images have a predicted class: logits without NaN and +inf, and not all -inf.

    Args:
        logits: `[B, K]`.

    Returns:
        bool `[B]`.

    >>> has_class(jnp.array([[0.0, -jnp.inf], [0.0, jnp.nan], [0.0, jnp.inf], [-jnp.inf, -jnp.inf]])).tolist()
    [True, False, False, False]
    """
    # Not by the largest logit: a maximum may lose NaN.
    return jnp.all((logits < jnp.inf), axis=-1) & jnp.any(logits > -jnp.inf, axis=-1)


def check_logits(logits: jax.Array) -> jax.Array:
    """Returns the logits, at least float32, after a check of type and shape.

    Args:
        logits: `[B, K]`, numbers.

    Raises:
        UserError: They are not an array of numbers with two axes.

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
    """Returns the labels as int32 after a check; labels out of 0..K-1 that are not refused become K.

    Args:
        labels: Integers `[B]`.
        shape: (B, K), of the logits; or (B,) where K is not known yet.
        name: Their name in the error message.
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
    # Compared before the cast, which would wrap, and with at least 32 bits, for K may exceed the range of int8.
    integers = jnp.asarray(labels) if labels.dtype.itemsize >= 4 else jnp.asarray(labels, jnp.int32)
    return jnp.where((integers >= 0) & (integers < classes), integers, classes).astype(jnp.int32)


def _at(values: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.take_along_axis(values, labels[:, None], axis=-1, mode="fill", fill_value=jnp.nan)[:, 0]


def _mask_label(logits: jax.Array, labels: jax.Array) -> jax.Array:
    at_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    return jnp.where(at_label, -jnp.inf, logits)
