"""Every mistake in a configuration is one sentence; everything else survives JSON."""

import dataclasses
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robust_gan import config as config_lib
from robust_gan.config import (
    AdversaryConfig,
    ClassifierConfig,
    Config,
    DataConfig,
    EnsembleConfig,
    OptimizerConfig,
    ThreatConfig,
    check_epsilon,
    differences,
    from_dict,
    to_dict,
    validate,
)
from robust_gan.errors import UserError


def replaced(**fields):
    """A configuration with single fields, given as `a__b__c=value`, replaced."""
    config = Config()
    for name, value in fields.items():
        *path, last = name.split("__")
        node = config
        for part in path:
            node = getattr(node, part)
        setattr(node, last, value)
    return config


AT_LEAST = {
    "seed": 0,
    "batch_size": 1,
    "num_steps": 1,
    "log_every": 1,
    "steps_per_call": 0,
    "adversary__epsilon_warmup_steps": 0,
    "max_to_keep": 1,
    "data__validation_size": 1,
    "data__train_size": 0,
    "data__extra_size": 0,
    "data__padding": 0,
    "data__image_size": 0,
    "adversary__pgd__num_steps": 1,
    "adversary__ensemble__pgd_steps": 1,
    "classifier__ibp__warmup_steps": 0,
    "classifier__ibp__ramp_steps": 0,
    "adversary__generator__num_refinements": 1,
    "adversary__generator__latent_size": 0,
    "validation__patience": 0,
    "adversary__generator__steps": 1,
    "adversary__generator__update_every": 1,
    "adversary__generator__batches_per_step": 1,
    "validation__every": 1,
    "validation__size": 0,
    "validation__batch_size": 1,
    "validation__pgd_steps": 1,
}
NOT_NEGATIVE = (
    "adversary__fgsm__step_size",
    "adversary__pgd__step_size",
    "adversary__generator__diversity",
    "adversary__generator__final_fgsm_step",
    "classifier__clean_weight",
    "classifier__adversarial_weight",
    "classifier__awp_gamma",
    "classifier__ibp__epsilon",
    "classifier__consistency",
)
PLAYERS = ("classifier__optimizer__", "adversary__generator__optimizer__")

BAD = [
    *((name, low - 1, f"must be at least {low}, not {low - 1}") for name, low in AT_LEAST.items()),
    *((name, 2**31, r"must be below 2\*\*31, not 2147483648") for name in AT_LEAST if name != "seed"),
    *((name, 10**400, r"must be below 2\*\*31") for name in AT_LEAST if name != "seed"),
    *((name, bad, f"must be at least 0.0, not {bad}") for name in NOT_NEGATIVE for bad in (-0.5, math.nan, math.inf)),
    ("seed", 2**32, r"must be below 2\*\*32, not 4294967296"),
    ("threat__epsilon", 8, r"is 8, but pixels are in \[0, 1\]: for 8 grey levels of 255 write 8/255 \(0.03137\)"),
    ("threat__epsilon", 1.5, "is 1.5, but .* write 1.5/255"),
    *(("threat__epsilon", bad, r"must be a number in \(0, 1\], not ") for bad in (0.0, -0.1, math.nan, math.inf)),
    ("classifier__ibp__weight", math.nan, "must be above 0 and at most 1, not nan"),
    ("threat__norm", "l1", "must be one of linf, l2, not 'l1'"),
    ("adversary__name", "gan", "must be one of none, fgsm, pgd, ensemble, generator, not 'gan'"),
    ("adversary__fgsm__start", "", "must be one of random, noise, not ''"),
    ("adversary__pgd__loss", "dlr", "must be one of cross_entropy, kl, margin, not 'dlr'"),
    ("adversary__ensemble__scheme", "", "must be one of paper, tramer, not ''"),
    ("adversary__ensemble__sources", ("runs/a", ""), "has an empty name"),
    ("adversary__generator__parametrization", "project", "must be one of clip, rescale, not 'project'"),
    ("adversary__generator__start", "zero", "must be one of none, uniform, vertex, noise, memory, not 'zero'"),
    ("adversary__generator__inputs", ("loss",), "must be one of gradient, perturbation, label, not 'loss'"),
    ("adversary__generator__inputs", ("label", "label"), "names something twice: label, label"),
    ("classifier__loss", "mart", "must be one of cross_entropy, trades, ibp, not 'mart'"),
    *(
        (field, bad, r"must be in \[0, 1\), not")
        for field in ("classifier__label_smoothing", "classifier__ema_decay", "adversary__ensemble__clean_share")
        for bad in (-0.1, 1.0, math.nan)
    ),
    ("precision", "float16", "must be one of float32, bfloat16, not 'float16'"),
    ("penalty__form", "Exact", "must be one of exact, finite_difference, not 'Exact'"),
    ("classifier__attack_bn_mode", "", "must be one of batch, running, not ''"),
    ("data__augmentation", "flip", "must be one of none, crop, crop_flip, not 'flip'"),
    *(("penalty__coefficient", bad, "must be finite, not ") for bad in (math.nan, math.inf, -math.inf)),
    *(("penalty__step", bad, "must be a positive number, not ") for bad in (0.0, -1.0, math.nan, math.inf)),
]
for player in PLAYERS:
    BAD += [
        (f"{player}name", "rmsprop", "must be one of sgd, adam, adamw, not 'rmsprop'"),
        *((f"{player}learning_rate", bad, "must be a positive number, not") for bad in (0.0, -1.0, math.nan, math.inf)),
        *(
            (player + field, bad, r"must be in \[0, 1\), not")
            for field in ("momentum", "b1", "b2")
            for bad in (-0.1, 1.0, math.nan)
        ),
        (f"{player}schedule", "step", "must be one of piecewise, cosine, one_cycle, not 'step'"),
        *((f"{player}schedule_steps", bad, "must be 0 with the schedule 'piecewise'") for bad in (-1, 100)),
        *((f"{player}weight_decay", bad, "must be at least 0, not") for bad in (-1e-4, math.nan, math.inf)),
        *((f"{player}decay_factor", bad, r"must be in \(0, 1\], not") for bad in (0.0, 1.5, math.nan)),
        *(
            (f"{player}decay_steps", bad, "must be increasing positive steps")
            for bad in ((0,), (-1, 5), (5, 3), (5, 5), (2**31,))
        ),
    ]

WRONG_TYPES = [
    ("seed", 1.0, "int"),
    ("seed", True, "int"),
    ("batch_size", "64", "int"),
    ("num_steps", None, "int"),
    ("threat__epsilon", "8/255", "float"),
    ("threat__epsilon", True, "float"),
    ("threat__norm", 2, "str"),
    ("penalty__coefficient", 10**400, "float"),
    ("classifier__network", None, "str"),
    ("classifier__optimizer", {"name": "sgd"}, "OptimizerConfig"),
    ("classifier__optimizer__decay_steps", 5, r"tuple\[int, \.\.\.\]"),
    ("classifier__optimizer__decay_steps", (1.5,), r"tuple\[int, \.\.\.\]"),
    ("classifier__optimizer__decay_steps", (True,), r"tuple\[int, \.\.\.\]"),
    ("data", None, "DataConfig"),
]


@pytest.mark.parametrize(("name", "value", "sentence"), BAD)
def test_a_value_that_cannot_be_right_is_one_sentence(name, value, sentence):
    with pytest.raises(UserError, match=f"^{name.replace('__', '[.]')} {sentence}") as error:
        validate(replaced(**{name: value}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "value", "kind"), WRONG_TYPES)
def test_a_value_of_the_wrong_type_is_one_sentence(name, value, kind):
    with pytest.raises(UserError, match=f"^{name.replace('__', '[.]')} must be of type {kind}, not "):
        validate(replaced(**{name: value}))


def test_every_number_of_the_configuration_has_a_bad_value_here():
    named = {name for name, _, _ in BAD}

    def numbers(node, prefix=""):
        for field in dataclasses.fields(node):
            value = getattr(node, field.name)
            if dataclasses.is_dataclass(value):
                yield from numbers(value, f"{prefix}{field.name}__")
            elif not isinstance(value, str | bool):
                yield prefix + field.name

    assert set(numbers(Config())) == {name for name in named if not isinstance(getattr_path(name), str)}


def getattr_path(name):
    node = Config()
    for part in name.split("__"):
        node = getattr(node, part)
    return node


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"penalty__coefficient": 0.1, "adversary__name": "pgd"},
            "penalty.coefficient is 0.1, but adversary 'pgd' has no parameters .* set it to 0, or adversary.name to",
        ),
        (
            {"penalty__coefficient": -0.1, "classifier__adversarial_weight": 0.0},
            "penalty.coefficient must be 0 when classifier.adversarial_weight is 0",
        ),
        ({"classifier__clean_weight": 0, "classifier__adversarial_weight": 0}, "leave nothing to learn from"),
        ({"classifier__clean_weight": 0.0, "adversary__name": "none"}, "leave nothing to learn from"),
        ({"adversary__name": "ensemble"}, "sources is empty: give the checkpoints of trained classifiers"),
        (
            {"adversary__generator__diversity": 0.1},
            "diversity is 0.1, but with latent_size 0 a perturbation has nothing to differ by",
        ),
        ({"adversary__generator__parametrization": "rescale", "threat__norm": "l2"}, "must be 'clip' in L2"),
        ({"adversary__generator__start": "vertex", "threat__norm": "l2"}, "its ball has no corners"),
        (
            {"adversary__generator__start": "memory", "adversary__generator__batches_per_step": 5},
            "batches_per_step must be 1 with start 'memory'",
        ),
        ({"classifier__consistency": 1.0, "adversary__name": "none"}, "classifier.consistency needs an adversary"),
        ({"classifier__consistency": 1.0, "penalty__coefficient": 0.1}, "penalty.coefficient 0: set them, or it to 0"),
        ({"classifier__loss": "trades", "classifier__clean_weight": 0.0}, "the TRADES loss needs clean_weight"),
        ({"classifier__loss": "trades", "adversary__name": "none"}, "needs .* an adversary that makes images"),
        ({"classifier__loss": "trades", "penalty__coefficient": 0.1}, "must be 0 with the loss .trades."),
        ({"penalty__decay": True}, "penalty.decay is of the form 'finite_difference'"),
        ({"adversary__ensemble__clean_share": 1.0}, r"clean_share must be in \[0, 1\), not 1.0"),
        (
            {"precision": "bfloat16", "penalty__coefficient": 0.1, "penalty__form": "finite_difference"},
            "must be 'exact' with precision 'bfloat16'",
        ),
        ({"classifier__optimizer__schedule": "cosine"}, "schedule_steps must be at least 1 with the schedule 'cosine'"),
        (
            {
                "classifier__optimizer__schedule": "one_cycle",
                "classifier__optimizer__schedule_steps": 9,
                "classifier__optimizer__decay_steps": (3,),
            },
            "decay_steps must be empty with the schedule 'one_cycle'",
        ),
    ],
)
def test_values_that_do_not_go_together_are_one_sentence(fields, sentence):
    with pytest.raises(UserError, match=sentence):
        validate(replaced(**fields))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"seed": 2**32 - 1},
        {"threat__epsilon": 1},
        {"threat__norm": "l2", "threat__epsilon": 3.0},
        {"penalty__coefficient": -1},
        {"adversary__name": "none"},
        {"adversary__name": "pgd", "classifier__clean_weight": 0.0},
        {"classifier__optimizer__decay_steps": [10, 20]},
        {"classifier__optimizer__decay_factor": 1.0, "classifier__optimizer__momentum": 0},
        {"adversary__pgd__step_size": 0.0, "validation__size": 0, "data__train_size": 0},
        {"adversary__name": "ensemble", "adversary__ensemble__sources": ["runs/a", "runs/b@100"]},
        {"adversary__generator__num_refinements": 3},
        {"adversary__generator__latent_size": 4, "adversary__generator__diversity": 0.1},
        {"classifier__loss": "trades", "classifier__adversarial_weight": 6},
        {"classifier__optimizer__schedule": "cosine", "classifier__optimizer__schedule_steps": 100},
    ],
)
def test_what_is_right_is_accepted(fields):
    validate(replaced(**fields))


def test_epsilon_is_a_number_in_the_unit_of_the_pixels():
    check_epsilon(8 / 255)
    check_epsilon(1)
    check_epsilon("0.1")
    check_epsilon(2.5, norm="l2")
    with pytest.raises(UserError, match=r"^radius is 8, but .* write 8/255"):
        check_epsilon(8, "radius")
    check_epsilon(25, norm="l2")
    check_epsilon(25, norm="l2", image_shape=(32, 32, 3))
    with pytest.raises(UserError, match=r"^epsilon is 128, but .* of shape \(32, 32, 3\) are farther apart than 55.43"):
        check_epsilon(128, norm="l2", image_shape=(32, 32, 3))
    for bad in (0, -1, "inf", "nan"):
        with pytest.raises(UserError, match=f"must be a number above 0, not {bad}"):
            check_epsilon(bad, norm="l2")
    for bad in ("8/255", None, [0.1], "nan", 10**400):
        with pytest.raises(UserError, match=r"^epsilon must be a number in \(0, 1\], not "):
            check_epsilon(bad)


positive = st.floats(1e-6, 1, exclude_max=True)
optimizer = st.builds(
    OptimizerConfig,
    name=st.sampled_from(config_lib.OPTIMIZERS),
    learning_rate=positive,
    weight_decay=positive,
    decay_steps=st.sets(st.integers(1, 1000), max_size=3).map(lambda steps: tuple(sorted(steps))),
)
configs = st.builds(
    Config,
    seed=st.integers(0, 2**32 - 1),
    data=st.builds(DataConfig, name=st.text(max_size=5), train_size=st.integers(0, 100)),
    threat=st.builds(ThreatConfig, norm=st.sampled_from(config_lib.NORMS), epsilon=positive),
    classifier=st.builds(ClassifierConfig, optimizer=optimizer),
    adversary=st.builds(
        AdversaryConfig,
        name=st.sampled_from(config_lib.ADVERSARIES),
        ensemble=st.builds(EnsembleConfig, sources=st.tuples(st.text(min_size=1, max_size=5))),
    ),
    batch_size=st.integers(1, 2**31 - 1),
)


@given(configs)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_a_configuration_survives_json(config):
    again = from_dict(json.loads(json.dumps(to_dict(config), allow_nan=False)))
    assert again == config
    assert type(again.classifier.optimizer.decay_steps) is tuple
    assert differences(config, again) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda values: values.update(sed=1), "unknown field sed: the fields here are seed, data, threat"),
        (lambda values: values["threat"].update(eps=1), "unknown field threat.eps: the fields here are norm, epsilon"),
        (lambda values: values.update({1: 1, "sed": 1}), "unknown field 1"),
        (lambda values: values.update(threat=None), "threat must be a JSON object, not None"),
        (lambda values: values.update(data=[1]), r"data must be a JSON object, not \[1\]"),
        (lambda values: values.update(seed="0"), "seed must be of type int, not '0'"),
        (lambda values: values["threat"].update(epsilon=None), "threat.epsilon must be of type float, not None"),
        (lambda values: values["threat"].update(epsilon=8), "write 8/255"),
        (
            lambda values: values["classifier"]["optimizer"].update(decay_steps="12"),
            r"must be of type tuple\[int, \.\.\.\]",
        ),
    ],
)
def test_what_is_not_a_configuration_is_one_sentence(change, sentence):
    values = to_dict(Config())
    change(values)
    with pytest.raises(UserError, match=sentence):
        from_dict(values)


@pytest.mark.parametrize("values", [None, [], 3, "Config"])
def test_what_is_not_even_an_object_is_one_sentence(values):
    with pytest.raises(UserError, match="the configuration must be a JSON object, not"):
        from_dict(values)


def test_differences_are_those_that_matter():
    other = replaced(
        seed=1, threat__epsilon=0.3, classifier__optimizer__decay_steps=(5,), num_steps=7, log_every=1, max_to_keep=9
    )
    other.data.data_dir = "/elsewhere"
    assert differences(Config(), other) == [
        "seed: 0 != 1",
        "threat.epsilon: 0.15 != 0.3",
        "classifier.optimizer.decay_steps: [] != [5]",
    ]
    assert differences(Config(), replaced(penalty__coefficient=0)) == []
    assert all(name in flat(to_dict(Config())) for name in config_lib.CHANGEABLE)


def flat(values, prefix=""):
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_configurations_share_no_state():
    first, second = Config(), Config()
    first.classifier.optimizer.learning_rate = 7.0
    first.adversary.generator.optimizer.learning_rate = 7.0
    assert second == Config()
    to_dict(first)["threat"]["epsilon"] = 5
    assert first.threat.epsilon == ThreatConfig().epsilon


def test_a_field_that_an_older_version_did_not_have_has_its_default():
    values = to_dict(Config(seed=3))
    del values["classifier"]["ema_decay"], values["adversary"]["fgsm"]
    del values["adversary"]["generator"]["num_refinements"]
    assert from_dict(values) == Config(seed=3)
