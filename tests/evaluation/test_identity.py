"""What was found belongs to what it depends on: models as they are now, and nothing of others."""

import gc
import tracemalloc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_gan import LinfThreat, evaluation, networks
from robust_gan.attacks.generator import trained
from robust_gan.errors import UserError
from robust_gan.evaluation import EvaluationState, Model, alarms, state
from robust_gan.networks import inference
from robust_gan.reporting.run import additions

THREAT = LinfThreat(0.05)
RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(16, 4)).astype(np.float32)
IMAGES = RNG.integers(0, 256, (120, 4, 4, 1), np.uint8)
LABELS = np.argmax((IMAGES.reshape(120, -1) / np.float32(255) - 0.5) @ WEIGHTS, -1).astype(np.int32)


def linear(x, weights=WEIGHTS):
    return (x.reshape(len(x), -1) - 0.5) @ weights


def rounded(x):
    return linear(jnp.round(x * 255) / 255)


class Plain:
    """A classifier that is trained in place."""

    def __init__(self, weights):
        self.weights = weights

    def __call__(self, x):
        return linear(x, self.weights)


def clean(logits_fn):
    return evaluation.evaluate_transfer(
        [Model("a", logits_fn)], IMAGES, LABELS, THREAT, attacks=["fgsm"]
    ).clean_accuracy("a")


def test_a_model_that_is_changed_in_place_is_met_as_it_is():
    plain = Plain(WEIGHTS[:, ::-1])
    model = Model("a", plain)

    def figures():
        standing, _ = evaluation.evaluate_sequential(model, IMAGES, LABELS, THREAT, attacks=["fgsm"])
        curve = evaluation.trace_curve([model], IMAGES, LABELS, THREAT, attack="fgsm")
        told = {alarm.name: alarm.fired for alarm in alarms.check_model(plain, IMAGES, LABELS, THREAT)}
        return clean(plain), curve.robust_accuracy["a"][0], standing.any(), told["near_chance"]

    wrong = float((np.argmax(linear(IMAGES / 255.0, WEIGHTS[:, ::-1]), -1) == LABELS).mean())
    before = figures()
    assert before[:2] == pytest.approx((wrong, wrong))
    plain.weights = WEIGHTS
    after = figures()
    assert after[:2] == (1.0, 1.0)
    assert (before[2:], after[2:]) == ((False, True), (True, False))


def test_nothing_keeps_a_function_that_was_evaluated():
    functions = []
    for scale in (1.0, 2.0):
        weights = jnp.asarray(scale * WEIGHTS)

        def logits_fn(x, weights=weights):
            return linear(x, weights)

        functions += [weakref.ref(logits_fn), weakref.ref(weights)]
        clean(logits_fn)
        clean(jax.tree_util.Partial(logits_fn))
        alarms.check_model(logits_fn, IMAGES[:8], LABELS[:8], THREAT)
        evaluation.trace_curve([Model("a", logits_fn)], IMAGES, LABELS, THREAT, attack="fgsm", state=EvaluationState())
        trained(lambda params, batch_stats, seen, weights=weights: seen)
        del logits_fn, weights
    gc.collect()
    assert [reference() for reference in functions] == [None] * 4


def test_networks_of_this_package_are_compiled_once_for_all_their_weights(monkeypatch):
    traces = []
    network = networks.build_classifier("digits_cnn", 10)

    def apply(params, batch_stats, images):
        traces.append(images.shape)
        return network.apply(params, batch_stats, images, train=False)[0]

    inference.as_architecture(apply, "counted")
    images, labels = np.zeros((4, 8, 8, 1), np.float32), np.zeros(4, np.int32)
    counts = []
    for seed in range(3):
        variables = network.init(jax.random.key(seed), images)
        evaluation.evaluate_transfer([Model("a", jax.tree_util.Partial(apply, *variables))], images, labels, THREAT,
                            attacks=["fgsm"])  # fmt: skip
        counts.append(len(traces))
    # JAX 0.12 traces anew for the shape of the logits, and for nothing that is compiled.
    assert max(counts[1] - counts[0], counts[2] - counts[1]) <= 1 < counts[0]


def one_class_other(x):
    logits = linear(x)
    return jnp.where(jnp.argmax(logits, -1, keepdims=True) == 2, 1.1 * logits, logits)


def last_image_other(x):
    last = jnp.all(x == IMAGES[-1] / np.float32(255), axis=(1, 2, 3))
    return jnp.where(last[:, None], -linear(x), linear(x))


OTHERS = {
    "mended": (rounded, linear),
    "its gradient is stopped": (linear, lambda x: linear(jax.lax.stop_gradient(x))),
    "its gradient is halved": (linear, lambda x: linear(0.5 * x + 0.5 * jax.lax.stop_gradient(x))),
    "one class": (linear, one_class_other),
    "one image": (linear, last_image_other),
    "beside a large logit": (lambda x: linear(x).at[0, 0].set(1e9), lambda x: 1.01 * linear(x).at[0, 0].set(1e9)),
    "beside a NaN": (lambda x: linear(x).at[0].set(jnp.nan), lambda x: linear(x).at[1].set(jnp.nan)),
    "bound arrays": (jax.tree_util.Partial(linear, weights=WEIGHTS),
                     jax.tree_util.Partial(linear, weights=np.nextafter(WEIGHTS, 9))),
}  # fmt: skip


@pytest.mark.parametrize("how", OTHERS)
def test_models_of_one_name_are_told_apart(how):
    one, other = OTHERS[how]
    for first, second, differs in ((one, one, ""), (one, other, "another a"), (other, one, "another a")):
        kept = EvaluationState()
        assert kept.differs([Model("a", first)], IMAGES, LABELS, THREAT, 0) == ""
        assert kept.differs([Model("a", second)], IMAGES, LABELS, THREAT, 0) == differs


def test_a_model_without_a_gradient_is_known_by_its_logits():
    def asked(x, scale=1.0):
        shape = jax.ShapeDtypeStruct((len(x), 4), np.float32)
        return jax.pure_callback(lambda x: np.asarray(linear(scale * x), np.float32), shape, x)

    kept = EvaluationState()
    for model, differs in ((asked, ""), (asked, ""), (lambda x: asked(x, 2.0), "another a")):
        assert kept.differs([Model("a", model)], IMAGES, LABELS, THREAT, 0) == differs


def test_a_randomised_model_is_itself_again():
    rng = np.random.default_rng(0)

    def noisy(x, weights=WEIGHTS):
        return linear(x + 0.2 * rng.standard_normal((1, 4, 4, 1)).astype(np.float32), weights)

    kept = EvaluationState()
    for _ in range(5):
        assert kept.differs([Model("a", noisy)], IMAGES, LABELS, THREAT, 0) == ""
    assert kept.differs([Model("a", lambda x: noisy(x, 10 * WEIGHTS))], IMAGES, LABELS, THREAT, 0) == "another a"


def test_the_batch_size_counts_where_logits_depend_on_the_batch():
    def by_batch(x):
        logits = linear(x)
        return logits - logits.mean(0)

    for model, differs in ((linear, ""), (by_batch, "a in batches of another size, on which its logits depend")):
        kept = EvaluationState()
        for size, expected in ((64, ""), (64, ""), (100, differs)):
            found = kept.differs([Model("a", model)], IMAGES, LABELS, THREAT, 0, batch_size=size)
            assert found == expected


def test_a_generator_is_known_by_its_arrays_or_by_what_it_makes():
    def made(sign, logits_fn, key, images, labels, threat):
        return images + sign * threat.epsilon

    for bind in (jax.tree_util.Partial, lambda made, sign: lambda *rest: made(sign, *rest)):
        kept = EvaluationState()
        for sign, differs in ((1.0, ""), (1.0, ""), (-1.0, "another a")):
            model = Model("a", linear, bind(made, sign))
            assert kept.differs([model], IMAGES, LABELS, THREAT, 0) == differs


def test_other_constants_of_an_attack_and_other_versions_are_other_findings(monkeypatch):
    kept, model = EvaluationState(), Model("a", linear)

    def found():
        return kept.differs([model], IMAGES, LABELS, THREAT, 0, attacks=["pgd10", "fgsm"])

    assert (found(), found()) == ("", "")
    with monkeypatch.context() as patch:
        patch.setattr(state.attacks_lib, "by_name", lambda name: lambda x, step_size=2.0: x)
        assert found() == "another pgd10"
    monkeypatch.setattr(state, "__version__", "9.9")
    assert found().startswith("another version (robust_gan 0.")


def test_a_state_file_of_an_older_layout_is_refused(tmp_path):
    np.savez(tmp_path / "kept.npz", **{"done: fgsm": np.ones(120, bool), "fgsm": np.ones(120, bool)})
    with pytest.raises(UserError, match=r"kept\.npz is a state file of an older layout, which cannot be continued"):
        evaluation.evaluate_sequential(
            Model("a", linear), IMAGES, LABELS, THREAT, attacks=["fgsm"], state=EvaluationState(tmp_path / "kept.npz")
        )


def test_an_attack_that_is_a_function_is_known_by_what_it_makes():
    def pushed(by):
        def attack(logits_fn, key, images, labels, threat):
            return jnp.clip(images + by * threat.epsilon, 0, 1)

        return attack

    kept, model = EvaluationState(), Model("a", linear)
    for by in (1.0, 1.0):
        evaluation.evaluate_transfer([model], IMAGES, LABELS, THREAT, attacks={"mine": pushed(by)}, state=kept)
    with pytest.raises(UserError, match="is of another mine"):
        evaluation.evaluate_transfer([model], IMAGES, LABELS, THREAT, attacks={"mine": pushed(-1.0)}, state=kept)


def test_rows_are_written_as_they_change_and_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "SECONDS", 0.0)
    path = tmp_path / "kept.npz"
    start = np.zeros((5, 3), np.float32)
    first = EvaluationState(path).rows("images", start)
    assert first[:].sum() == 0
    kept = EvaluationState(path)
    rows = kept.rows("images", start)
    for indices, value in (([0, 3], 0.5), ([3], 1.0)):
        rows[np.array(indices)] = np.full((len(indices), 3), value)
        kept.save()
    sizes = [len(np.load(file)["indices"]) for file in sorted((tmp_path / "kept.parts").iterdir())]
    assert sizes == [2, 1]
    for found in (rows, EvaluationState(path).rows("images", start)):
        assert found[:][:, 0].tolist() == [0.5, 0.0, 0.0, 1.0, 0.0]
        assert found[np.array([4, 3, 0])][:, 1].tolist() == [0.0, 1.0, 0.5]
    path.unlink()
    anew = EvaluationState(path)
    assert anew.rows("images", start)[:].sum() == 0
    anew.save()
    assert not (tmp_path / "kept.parts").exists()


def test_rows_that_a_kill_left_without_marks_are_replaced(tmp_path, monkeypatch):
    """Large parts are written before the file that marks their images as done."""
    monkeypatch.setattr(state, "PART", 1)
    path, start = tmp_path / "kept.npz", np.zeros((5, 3), np.uint8)
    kept = EvaluationState(path)
    kept.save()
    kept.flush()
    kept.rows("images", start)[np.array([1, 2])] = np.full((2, 3), 0.25)
    again = EvaluationState(path).rows("images", start)
    again[np.array([2, 1])] = np.array([[0.5] * 3, [0.75] * 3])
    assert again[:][:, 0].tolist() == [0.0, 0.75, 0.5, 0.0, 0.0]
    assert EvaluationState(path).rows("images", start)[:][:, 0].tolist() == [0.0, 0.75, 0.5, 0.0, 0.0]
    (tmp_path / "kept.parts" / "000001.npz").write_bytes(b"garbled")
    with pytest.raises(
        UserError, match=r"000001\.npz is damaged .*: remove .*kept\.npz, and the evaluation begins anew"
    ):
        EvaluationState(path).rows("images", start)


def test_what_was_found_is_written_every_interval_and_when_an_evaluation_is_interrupted(tmp_path):
    path, seen = tmp_path / "kept.npz", []

    def interrupt(count):
        seen.append(path.exists())
        if len(seen) == 3:
            raise KeyboardInterrupt

    def run(advance):
        return evaluation.evaluate_transfer(
            [Model("a", linear)], IMAGES, LABELS, THREAT, attacks=["fgsm"], batch_size=32, state=EvaluationState(path),
            progress_fn=advance,
        )  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        run(interrupt)
    assert seen == [False] * 3
    with np.load(path) as file:
        assert file["done: fgsm, made on a: a"].sum() == 96
    whole = evaluation.evaluate_transfer([Model("a", linear)], IMAGES, LABELS, THREAT, attacks=["fgsm"])
    assert np.array_equal(run(lambda count: None).robust["a", "a", "fgsm"], whole.robust["a", "a", "fgsm"])


def test_a_model_that_fails_while_it_is_identified_is_one_sentence():
    def ask(images):
        raise RuntimeError("the camera is off")

    def fails(x):
        return jax.pure_callback(ask, jax.ShapeDtypeStruct((len(x), 4), np.float32), x)

    with pytest.raises(UserError, match=r"^a fails on the images: .*the camera is off$"):
        EvaluationState().differs([Model("a", fails)], IMAGES, LABELS, THREAT, 0)


def test_an_evaluation_needs_memory_for_a_batch_and_not_for_all_images(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "PART", 2**16)

    def peak(count):
        np.save(tmp_path / "images.npy", RNG.integers(0, 256, (count, 32, 32, 3), np.uint8))
        images = np.load(tmp_path / "images.npy", mmap_mode="r")
        model, labels = Model("a", lambda x: x.mean((1, 2))), np.zeros(count, int)
        tracemalloc.start()
        try:
            for evaluate in (evaluation.evaluate_transfer, evaluation.evaluate_sequential):
                given = [model] if evaluate is evaluation.evaluate_transfer else model
                evaluate(given, images, labels, THREAT, attacks=["fgsm"], batch_size=16, state=EvaluationState())
            kept = EvaluationState(tmp_path / f"{count}.npz")
            rows = kept.rows("images", images)
            robust, _ = evaluation.evaluate_sequential(
                model, images, labels, THREAT, attacks=["fgsm"], batch_size=16, state=kept, adversarial=rows
            )
            assert robust.mean() < 0.8
            additions.write_adversarial(tmp_path, labels, {"a": rows})
            evaluation.trace_curve([model], images, labels, THREAT, attack="fmn2", batch_size=16)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    small = peak(32)  # First, so that what JAX keeps of a first call counts here.
    images_as_floats = 256 * 32 * 32 * 3 * 4
    assert peak(256) - small < images_as_floats / 3
