"""MNIST, epsilon 0.3.

    python launch/train.py --config=configs/mnist.py --workdir=runs/mnist
    python launch/train.py --config=configs/mnist.py:pgd/cpu --workdir=runs/mnist_pgd

The constants are those of Wang and Yu (ICLR 2019) as their released code runs them: 200,000 minibatches, 40,000
classifier steps.

The method `released` is the game as the released code plays it; in `generator`, the default, the gradient penalty
has the sign that damps the game, and is exact. What still differs from the released code: docs/method.md.

Measured: the budget cpu, 3,000 updates of light networks, see the README; the released code's 40,000: not run.
"""

from robust_gan.config import (
    AdversaryConfig,
    ClassifierConfig,
    Config,
    DataConfig,
    GeneratorConfig,
    OptimizerConfig,
    PenaltyConfig,
    PGDConfig,
    ThreatConfig,
    ValidationConfig,
    methods,
)


def get_config(choice: str = "generator") -> Config:
    """Returns the recipe of `METHOD` or `METHOD/BUDGET`, see `robust_gan.config.methods`."""
    name, budget = methods.read(choice)
    config = Config(
        data=DataConfig(name="mnist", validation_size=5_000),
        threat=ThreatConfig(norm="linf", epsilon=0.3),
        classifier=ClassifierConfig(
            network="mnist_cnn",
            optimizer=OptimizerConfig(
                name="sgd",
                learning_rate=0.01,
                momentum=0.9,
                weight_decay=1e-5,
                decay_steps=(20_000,),
                restart_momentum=True,
            ),
        ),
        adversary=AdversaryConfig(
            name="generator",
            pgd=PGDConfig(num_steps=10),
            generator=GeneratorConfig(
                network="mnist_generator",
                steps=5,
                # The classifier moves on every fifth minibatch: 25 generator steps to one of its own.
                batches_per_step=5,
                optimizer=OptimizerConfig(name="sgd", learning_rate=0.01, momentum=0.9, weight_decay=1e-5),
            ),
        ),
        penalty=PenaltyConfig(coefficient=0.01, step=0.001),
        batch_size=64,
        num_steps=40_000,
        log_every=100,
        validation=ValidationConfig(every=1_000, size=1_000, batch_size=500),
    )
    if budget == "smoke":
        config = methods.smoke(config)
    config = methods.method(config, name)
    return _shortened(config) if budget == "cpu" else methods.as_released(config, name)


def _shortened(config: Config) -> Config:
    """Lets every method of MNIST be trained in an evening on two cores: light networks, and a fast schedule.

    The classifier, its one_cycle rate and the number of epochs (8 here) are those of Wong et al., "Fast is Better than
    Free", ICLR 2020. The radius grows over the first quarter of the steps: from adversarial images of radius 0.3 alone
    a new classifier learns nothing, neither against PGD nor against a generator.
    """
    config.batch_size, config.num_steps = 128, 3_000
    config.validation.every = 500
    config.classifier.network = "mnist_cnn_strided"
    config.classifier.optimizer = OptimizerConfig(
        name="adam", learning_rate=0.005, weight_decay=1e-5, schedule="one_cycle", schedule_steps=3_000
    )
    config.adversary.epsilon_warmup_steps = 750
    config.adversary.generator.network = "mnist_generator_light"
    config.adversary.generator.batches_per_step = 1
    config.adversary.generator.optimizer = OptimizerConfig(name="adam", learning_rate=0.0005, b1=0.5, weight_decay=1e-5)
    return config
