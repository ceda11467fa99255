"""Auto-PGD: the authors' rules followed to the letter, known optima reached, the right classes aimed at."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_problems import (
    HIDDEN,
    KEY,
    OUT,
    SHAPE,
    THREATS,
    ascent_of_two,
    assert_inside,
    assert_the_fourth_target_counts,
    compiled,
    curved,
    flat,
    images_between,
    linear,
    predicted,
    three_lines,
    two,
    unit_step,
)

from robust_gan import LinfThreat, attacks, losses, prng
from robust_gan.attacks._eot import is_randomised, loss_gradient
from robust_gan.attacks.apgd import checkpoints, likely_wrong
from robust_gan.attacks.noise import sphere_noise


def test_the_checkpoints_of_100_iterations_are_the_authors():
    assert checkpoints(100) == (22, 41, 57, 70, 80, 87, 93, 99)


@pytest.mark.parametrize("num_steps", [1, 2, 5, 10, 33, 50, 99, 100, 250, 1000])
def test_the_checkpoints_are_where_a_counter_as_the_authors_meets_them(num_steps):
    interval, counter, met = max(int(0.22 * num_steps), 1), 0, []
    for step in range(num_steps):
        counter += 1
        if counter == interval:
            met.append(step + 1)
            counter, interval = 0, max(interval - max(int(0.03 * num_steps), 1), max(int(0.06 * num_steps), 1))
    assert checkpoints(num_steps) == tuple(met)


@pytest.mark.parametrize("norm", THREATS)
def test_apgd_reaches_the_optimum_on_a_linear_classifier(norm):
    images, epsilon = images_between(0.3, 0.7), 0.1
    labels = predicted(two, images)
    adversarial = compiled(functools.partial(attacks.apgd, num_steps=30), two)(
        KEY, images, labels, THREATS[norm](epsilon)
    )
    optimum = flat(np.float64(images)) + epsilon * unit_step(ascent_of_two(labels), norm)
    if norm == "linf":
        np.testing.assert_allclose(flat(adversarial), optimum, atol=1e-6)
    best = losses.margin(two(jnp.float32(optimum)), labels)
    np.testing.assert_allclose(losses.margin(two(adversarial), labels), best, atol=1e-4 if norm == "linf" else 5e-3)


def test_apgd_reaches_the_optimum_where_the_range_cuts_the_ball():
    images = images_between(-0.3, 1.3).clip(0, 1)
    labels = predicted(two, images)
    adversarial = compiled(functools.partial(attacks.apgd, num_steps=20), two)(KEY, images, labels, LinfThreat(0.2))
    optimum = (flat(np.float64(images)) + 0.2 * np.sign(ascent_of_two(labels))).clip(0, 1)
    np.testing.assert_allclose(flat(adversarial), optimum, atol=1e-6)


def rough(images):
    """Five classes, with many maxima within reach: which one is found depends on every rule."""
    return jnp.sin(5 * flat(images) @ np.float64(HIDDEN)) @ np.float64(OUT)


def numpy_apgd(start, centre, label, epsilon, num_steps, norm):
    """The authors' program for one image of `rough`: all points, losses and successes, and how often a step halved."""
    hidden, out = np.float64(HIDDEN), np.float64(OUT)

    def look(x):
        logits = np.sin(5 * x @ hidden) @ out
        softmax = np.exp(logits - logits.max())
        softmax /= softmax.sum()
        loss = -np.log(softmax[label])
        softmax[label] -= 1
        return loss, ((softmax @ out.T) * np.cos(5 * x @ hidden) * 5) @ hidden.T, logits.argmax() != label

    def project(x):
        if norm == "linf":
            return np.clip(x, centre - epsilon, centre + epsilon).clip(0, 1)
        delta = x - centre
        length = np.linalg.norm(delta)
        if length > epsilon * (1 - 2.0**-21):  # The margins of `threat_model.project`; the authors have none.
            delta = delta * (epsilon * (1 - 2.0**-20) / length)
        return (centre + delta).clip(0, 1)

    interval, shrink, least = (max(int(share * num_steps), 1) for share in (0.22, 0.03, 0.06))
    x = x_old = project(start)
    size, halvings = 2 * epsilon, 0
    loss, gradient, fooled = look(x)
    points, values, wrong = [x], [loss], [fooled]
    top, last_top, reduced, counter = (loss, x, gradient), loss, True, 0
    for step in range(num_steps):
        share = 0.75 if step else 1.0
        direction = np.sign(gradient) if norm == "linf" else gradient / np.linalg.norm(gradient)
        z = project(x + size * direction)
        x, x_old = project(x + share * (z - x) + (1 - share) * (x - x_old)), x
        loss, gradient, fooled = look(x)
        points.append(x), values.append(loss), wrong.append(fooled)
        if loss > top[0]:
            top = loss, x, gradient
        counter += 1
        if counter == interval:
            rises = sum(values[-i] > values[-i - 1] for i in range(1, interval + 1))
            halve = rises <= 0.75 * interval or (not reduced and last_top >= top[0])
            reduced, last_top, counter, interval = halve, top[0], 0, max(interval - shrink, least)
            if halve:
                size, x, gradient, halvings = size / 2, top[1], top[2], halvings + 1
    return np.array(points), np.array(values), np.array(wrong), halvings


@pytest.mark.parametrize("norm", THREATS)
def test_apgd_follows_the_authors_rules(norm):
    epsilon, num_steps, count = {"linf": 0.02, "l2": 0.06}[norm], 40, 32
    # In float64: in float32 rounding would soon lead another way.
    with jax.enable_x64(True):
        images = jnp.asarray(np.random.default_rng(3).uniform(size=(count, *SHAPE)))
        labels, threat, keys = predicted(rough, images), THREATS[norm](epsilon), jax.random.split(KEY, count)
        attack = functools.partial(attacks.apgd, num_steps=num_steps)
        returned = flat(np.asarray(compiled(attack, rough)(keys, images, labels, threat)))
        start_keys = prng.split_per_image(prng.split_per_image(keys, 1)[0], 2)[0]
        noise = flat(np.asarray(sphere_noise(start_keys, images, threat)))
    centres, labels, all_halvings, all_wrong = flat(np.asarray(images)), np.asarray(labels), [], []
    for i, centre in enumerate(centres):
        points, values, wrong, halvings = numpy_apgd(
            centre + epsilon * noise[i], centre, labels[i], epsilon, num_steps, norm
        )
        # What is returned is the best iterate: those that fool first, then the highest loss.
        best = np.where(wrong, values + 1e6, values).argmax()
        np.testing.assert_allclose(returned[i], points[best], atol=1e-6)
        all_halvings.append(halvings)
        all_wrong.append(wrong.any())
    # The case is not trivial: steps halve, once and many times, and some images are misclassified, not all.
    assert min(all_halvings) < max(all_halvings)
    assert max(all_halvings) >= 3
    assert 0 < sum(all_wrong) < count


def test_apgd_is_no_weaker_than_pgd_of_the_same_budget():
    images = images_between(0, 1, seed=5, count=256)
    labels, threat = predicted(curved, images), LinfThreat(0.06)

    def broken(attack):
        return int((~losses.is_correct(curved(compiled(attack, curved)(KEY, images, labels, threat)), labels)).sum())

    auto, plain = broken(attacks.by_name("apgd_ce40")), broken(attacks.by_name("pgd40"))
    assert auto >= plain - 3
    assert 64 < auto < 256


def test_restarts_spare_what_is_broken_and_never_hurt():
    images = images_between(0, 1, seed=4, count=96)
    labels, threat = predicted(curved, images), LinfThreat(0.05)

    def attacked(num_restarts):
        attack = functools.partial(attacks.apgd, num_steps=3, num_restarts=num_restarts)
        logits = curved(compiled(attack, curved)(KEY, images, labels, threat))
        return np.asarray(losses.is_correct(logits, labels))

    one, many = attacked(1), attacked(6)
    assert many.sum() < one.sum()


@pytest.mark.slow
def test_the_targeted_attack_tries_one_class_after_the_other():
    images, labels = images_between(0.78, 0.8), jnp.zeros(8, jnp.int32)
    assert likely_wrong(three_lines(images), labels, 9).tolist() == [[1, 2, 3, 4]] * 8
    assert_the_fourth_target_counts(attacks.apgd_targeted, images, labels)


def test_the_targeted_attack_aims_at_the_targets_it_is_given():
    images = images_between(0.3, 0.7)
    labels = predicted(linear, images)
    targets = ((labels + 3) % 5)[:, None]
    adversarial = attacks.apgd_targeted(linear, KEY, images, labels, LinfThreat(0.5), targets=targets, num_steps=30)
    before, after = (losses.dlr(linear(x), labels, targets[:, 0]) for x in (images, adversarial))
    assert (after > before + 0.3).all()
    assert not losses.is_correct(linear(adversarial), labels).any()


def test_likely_wrong_ranks_all_but_the_label():
    logits = jnp.array([[9.0, jnp.nan, 3.0, -jnp.inf], [1.0, 4.0, 2.0, 3.0]])
    ranked = likely_wrong(logits, jnp.array([0, 1]), 9)
    assert ranked.shape == (2, 3)
    assert sorted(ranked[0].tolist()) == [1, 2, 3]
    assert ranked[1].tolist() == [3, 2, 0]


def test_too_few_classes_for_the_targeted_loss_are_refused():
    def three(images):
        return linear(images)[:, :3]

    images, labels = images_between(0, 1), jnp.zeros(8, jnp.int32)
    with pytest.raises(ValueError, match=r"^the targeted DLR loss needs 4 classes, not 3$"):
        attacks.apgd_targeted(three, KEY, images, labels, LinfThreat(0.1))
    with pytest.raises(ValueError, match=r"^the DLR loss needs 3 classes, not 2$"):
        attacks.apgd(two, KEY, images, labels, LinfThreat(0.1), loss_fn=losses.dlr)


@pytest.mark.parametrize("name", ["num_steps", "num_restarts", "num_samples"])
def test_counts_below_one_are_refused(name):
    for attack in (attacks.apgd, attacks.apgd_targeted):
        with pytest.raises(ValueError, match=f"^{name} must be at least 1, not 0$"):
            attack(linear, KEY, images_between(0, 1), jnp.zeros(8, jnp.int32), LinfThreat(0.1), **{name: 0})


@attacks.randomised
def noisy(images, keys=None):
    """A randomised classifier: the slope of each class has a random part."""
    noise = 0 if keys is None else 3 * prng.normal_per_image(keys, (16, 5))
    return jnp.einsum("bi,bik->bk", flat(images), WEIGHTS_AS_BATCH + noise)


WEIGHTS_AS_BATCH = np.random.default_rng(7).normal(size=(1, 16, 5)).astype(np.float32)


def test_the_gradient_of_a_randomised_classifier_is_the_mean_over_samples():
    images, keys = images_between(0, 1), jax.random.split(KEY, 8)
    labels = jnp.arange(8) % 5
    loss = functools.partial(losses.margin, labels=labels)
    gradient, values, logits = loss_gradient(noisy, loss, images, keys, num_samples=7)
    samples = prng.split_per_image(keys, 7)
    each = [jax.grad(lambda x, k=k: loss(noisy(x, keys=k)).sum())(images) for k in samples]
    np.testing.assert_allclose(gradient, np.mean(each, axis=0), atol=1e-5)
    np.testing.assert_allclose(logits, np.mean([noisy(images, keys=k) for k in samples], axis=0), atol=1e-5)
    np.testing.assert_allclose(values, np.mean([loss(noisy(images, keys=k)) for k in samples], axis=0), atol=1e-5)


@pytest.mark.slow
def test_expectation_helps_against_a_randomised_classifier_and_costs_others_nothing():
    images = images_between(0.2, 0.8, count=32)
    labels = predicted(noisy, images)

    def margin_reached(num_samples):
        attack = functools.partial(attacks.apgd, num_steps=10, loss_fn=losses.margin, num_samples=num_samples)
        return losses.margin(noisy(compiled(attack, noisy)(KEY, images, labels, LinfThreat(0.1))), labels).mean()

    assert margin_reached(16) > margin_reached(1) + 0.5
    assert is_randomised(noisy)
    assert not is_randomised(linear)
    assert not is_randomised(jax.tree_util.Partial(lambda weights, x: x, 0))
    passes = []

    def counted(images):
        passes.append(images)
        return linear(images)

    for num_samples in (1, 20):
        loss_gradient(counted, lambda logits: logits[:, 0], images, jax.random.split(KEY, 32), num_samples=num_samples)
    assert len(passes) == 2


@pytest.mark.parametrize("norm", THREATS)
def test_the_start_is_on_the_surface(norm):
    # Right everywhere with a constant loss: what is returned is the first point, the start.
    def constant(images):
        return jnp.zeros((len(images), 4)).at[:, 0].set(1.0)

    images = jnp.full((8, *SHAPE), 0.5)
    start = attacks.apgd(constant, KEY, images, jnp.zeros(8, jnp.int32), THREATS[norm](0.2), num_steps=2)
    assert_inside(start, images, norm, 0.2)
    delta = flat(np.float64(start) - np.float64(images))
    size = np.abs(delta).max(1) if norm == "linf" else np.linalg.norm(delta, axis=1)
    np.testing.assert_allclose(size, 0.2, rtol=1e-5)
    assert len(np.unique(np.abs(delta).round(6))) > 30
