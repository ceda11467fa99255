"""MNIST, epsilon 0.3.

    robust-gan-train --config=mnist --workdir=runs/mnist
    robust-gan-train --config=mnist:pgd/short --workdir=runs/mnist_pgd

The constants are the ones of the released code of Wang and Yu (ICLR 2019): 200,000 batches, 40,000
classifier steps.

The method `released` has the gradient penalty of the released code; the default, `generator`, has an exact one with the
sign that damps the game. docs/method.md lists the remaining differences from the released code.

The budget `short` is 3,000 updates of light networks. Its method `released` is the released code's: networks,
optimisers and 25 generator steps, but 2,000 updates instead of 40,000, some 2.5 hours on one core by its 0.27 TFLOP per
update. The budget `long` is 12,000 updates of the networks of `short` with averaged weights, whose best checkpoint is
chosen under PGD, margin-PGD and Square.

Measured: the budget `short` but for `released`, see docs/results.md; `ibp` and `generator_ibp`, an hour on one core
each, see docs/certification.md; the others: not run.
"""

from robust_gan.config import Config, DataConfig, OptimizerConfig, PenaltyConfig, ValidationConfig, methods


def get_config(choice: str = "generator") -> Config:
    """Returns the config of `METHOD` or `METHOD/BUDGET`, see `robust_gan.config.methods.parse_choice`."""
    config, name, budget = methods.build(
        choice,
        data=DataConfig(name="mnist", validation_size=5_000),
        epsilon=0.3,
        classifier="mnist_cnn",
        classifier_optimizer=OptimizerConfig(
            name="sgd", learning_rate=0.01, momentum=0.9, weight_decay=1e-5, decay_steps=(20_000,),
            restart_momentum=True,
        ),
        generator="mnist_generator",
        generator_optimizer=OptimizerConfig(name="sgd", learning_rate=0.01, momentum=0.9, weight_decay=1e-5),
        penalty=PenaltyConfig(coefficient=0.01, step=0.001),
        batch_size=64,
        num_steps=40_000,
        validation=ValidationConfig(every=1_000, size=1_000),
        budgets=("paper", "long", "short", "debug"),
    )  # fmt: skip
    if budget != "debug":
        # The classifier is updated on every fifth batch: after 25 generator steps.
        config.adversary.generator.batches_per_step = 5
    if config.classifier.loss == "ibp" and budget != "debug":
        config.batch_size = 128
        _lighten_generator(config)
        config.adversary.generator.steps = 1
        # An hour on one core for both methods: a step with the generator takes more than twice the time.
        num_steps = 24_000 if name == "ibp" else 12_000
        return methods.certifiable(config, network="certifiable_cnn", num_steps=num_steps, epsilon=0.31)
    if budget == "short" and name == "released":
        config.num_steps, config.classifier.optimizer.decay_steps = 2_000, (1_000,)
        config.validation.every = 250
        return config
    if budget == "short":
        return _shortened(config, 3_000)
    if budget == "long":
        config = _shortened(config, 12_000)
        config.classifier.ema_decay, config.validation.attacks = 0.998, "margin_pgd10,square500"
        return config
    return methods.as_released(config, name)


def _shortened(config: Config, steps: int) -> Config:
    """Returns the budget `short`, an evening on two cores for all methods: light networks and a fast schedule.

    The classifier, its one_cycle rate and the number of epochs (8 in `short`) come from Wong et al., "Fast is Better
    than Free", ICLR 2020. The radius grows over the first quarter of the steps: without that, training on adversarial
    images of radius 0.3 alone fails, against PGD and against a generator.
    """
    config.batch_size, config.num_steps, config.validation.every = 128, steps, steps // 6
    config.classifier.network = "mnist_cnn_strided"
    config.classifier.optimizer = OptimizerConfig(
        name="adam", learning_rate=0.005, weight_decay=1e-5, schedule="one_cycle", schedule_steps=steps
    )
    config.adversary.epsilon_warmup_steps = steps // 4
    _lighten_generator(config)
    return config


def _lighten_generator(config: Config) -> None:
    config.adversary.generator.network = "mnist_generator_light"
    config.adversary.generator.batches_per_step = 1
    config.adversary.generator.optimizer = OptimizerConfig(name="adam", learning_rate=0.0005, b1=0.5, weight_decay=1e-5)
