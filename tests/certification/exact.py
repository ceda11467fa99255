"""The exact least difference of logits of a small ReLU network, and how far below it the bounds are.

python tests/certification/exact.py
"""

import functools
import itertools

import jax
import numpy as np
import scipy.optimize

from robust_gan import LinfThreat, certification


def make(rng, sizes):
    """Draws the weights and biases of a network, and an image of `sizes[0]` pixels."""
    weights = [(rng.normal(size=pair) / np.sqrt(pair[0])).astype(np.float32) for pair in itertools.pairwise(sizes)]
    biases = [rng.normal(size=size).astype(np.float32) / 4 for size in sizes[1:]]
    return weights, biases, rng.uniform(size=(1, 1, sizes[0], 1)).astype(np.float32)


def logits_of(weights, biases):
    """Returns the network as a function of images."""

    def logits_fn(x):
        x = x.reshape(len(x), -1)
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            x = jax.nn.relu(x @ weight + bias)
        return x @ weights[-1] + biases[-1]

    return logits_fn


@functools.partial(jax.jit, static_argnums=5)
def bounds(weights, biases, image, label, epsilon, method):
    """Computes the bounds of `certification.margin_bounds`; compiled once for networks of one shape."""
    logits_fn, threat = logits_of(weights, biases), LinfThreat(epsilon)
    return certification.margin_bounds(logits_fn, image, label[None], threat, method=method)[0]


def exact_margins(weights, biases, image, epsilon, label):
    """Returns the exact minima in float64 by a mixed-integer program: a binary number says which ReLUs are active."""
    lower, upper = np.clip(image - epsilon, 0, 1).astype(float), np.clip(image + epsilon, 0, 1).astype(float)
    kinds, rows, last = [0] * len(image), [], np.arange(len(image))
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        centre, radius = (lower[last] + upper[last]) / 2, (upper[last] - lower[last]) / 2
        middle, around = centre @ weight + bias, radius @ np.abs(weight)
        first = len(kinds)
        for unit, (low, high) in enumerate(zip(middle - around, middle + around, strict=True)):
            # For z = w x + b between low and high: y >= 0, y >= z, y <= z - low (1 - active), y <= high active.
            y, active, terms = first + 2 * unit, first + 2 * unit + 1, dict(zip(last, -weight[:, unit], strict=True))
            low, high = min(low, 0), max(high, 0)
            rows += [({**terms, y: 1}, bias[unit], np.inf), ({**terms, y: 1, active: -low}, -np.inf, bias[unit] - low),
                     ({y: 1, active: -high}, -np.inf, 0)]  # fmt: skip
            kinds += [0, 1]
            lower, upper = np.append(lower, [0, 0]), np.append(upper, [high, 1])
        last = first + 2 * np.arange(len(bias))
    matrix = np.zeros((len(rows), len(kinds)))
    for index, (terms, *_) in enumerate(rows):
        matrix[index, list(terms)] = list(terms.values())
    limits = scipy.optimize.LinearConstraint(matrix, *np.array([row[1:] for row in rows]).reshape(-1, 2).T)
    found = np.zeros(len(biases[-1]))
    for other in set(range(len(found))) - {label}:
        cost = np.zeros(len(kinds))
        cost[last] = weights[-1][:, label] - weights[-1][:, other]
        solved = scipy.optimize.milp(
            cost, integrality=kinds, bounds=scipy.optimize.Bounds(lower, upper), constraints=limits if rows else (),
            options={"mip_rel_gap": 0},
        )  # fmt: skip
        assert solved.success, solved.message
        found[other] = solved.fun + biases[-1][label] - biases[-1][other]
    return found


def main(count=20):
    """Prints how far the bounds are below the exact minima, over random networks."""
    for sizes, epsilon in itertools.product(([8, 10, 5], [8, 20, 5], [8, 10, 10, 5]), (0.02, 0.1, 0.3)):
        gaps, least = {method: [] for method in certification.METHODS}, []
        for seed in range(count):
            weights, biases, image = make(np.random.default_rng(seed), sizes)
            label = int(np.argmax(logits_of(weights, biases)(image)[0]))
            exact = exact_margins(weights, biases, image.ravel(), epsilon, label)
            least.append(np.delete(exact, label))
            for method, found in gaps.items():
                found.append(np.delete(exact - bounds(weights, biases, image, np.int32(label), epsilon, method), label))
        shares = {name: f"{np.mean(found):.4f} (largest {np.max(found):.4f})" for name, found in gaps.items()}
        print(f"{sizes} epsilon {epsilon}: exact {np.mean(least):.3f}; below it: {shares}", flush=True)


if __name__ == "__main__":
    main()
