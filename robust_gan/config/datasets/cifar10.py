"""CIFAR-10 with ResNet-20, epsilon 8/256.

    robust-gan-train --config=cifar10 --workdir=runs/cifar10
    robust-gan-train --config=cifar10:pgd --workdir=runs/cifar10_pgd

The constants are the ones of the released code of Wang and Yu (ICLR 2019), but 1,000 training images are
held out to choose the best checkpoint.

The method `released` has the gradient penalty of the released code; the default, `generator`, has an exact one with the
sign that damps the game. docs/method.md lists the remaining differences from the released code.

The budget `short` is 15 epochs at 8/255, in the schedule of Wong, Rice and Kolter, "Fast is Better than Free", ICLR
2020, with averaged weights and label smoothing:

    robust-gan-train --config=cifar10:n_fgsm/short --workdir=runs/cifar10_n_fgsm
    robust-gan-train --config=cifar10:cond_generator_sdi/short --workdir=runs/cifar10_sdi

Measured: the budget `short` of both, 84 and 51 minutes on one core of an AMD EPYC, see docs/results.md; the others: not
run.
"""

from robust_gan.config import Config, DataConfig, OptimizerConfig, PenaltyConfig, methods


def get_config(choice: str = "generator") -> Config:
    """Returns the config of `METHOD` or `METHOD/BUDGET`, see `robust_gan.config.methods.parse_choice`."""
    config, name, budget = methods.build(
        choice,
        data=DataConfig(name="cifar10", validation_size=1_000, augmentation="crop_flip", padding=2),
        epsilon=8 / 256,
        classifier="resnet20",
        classifier_optimizer=OptimizerConfig(
            name="sgd", learning_rate=0.1, momentum=0.9, weight_decay=1e-5, decay_steps=(100_000,),
            restart_momentum=True,
        ),
        generator_optimizer=OptimizerConfig(name="adam", learning_rate=0.002, b1=0.5, b2=0.999, weight_decay=1e-5),
        penalty=PenaltyConfig(coefficient=0.01, step=0.01),
        batch_size=64,
        num_steps=200_000,
        budgets=methods.BUDGETS,
    )  # fmt: skip
    return _shortened(config) if budget == "short" else methods.as_released(config, name)


def _shortened(config: Config) -> Config:
    """Returns the budget `short`: 15 epochs of 49,000 images, with a small generator."""
    steps = 15 * 49_000 // 128
    config.data.padding, config.threat.epsilon = 4, 8 / 255
    config.batch_size, config.num_steps, config.validation.every = 128, steps, steps // 6
    config.classifier.optimizer = OptimizerConfig(
        name="sgd", learning_rate=0.2, momentum=0.9, weight_decay=5e-4, schedule="one_cycle", schedule_steps=steps
    )
    config.classifier.ema_decay, config.classifier.label_smoothing = 0.998, 0.1
    config.classifier.attack_bn_mode, config.adversary.epsilon_warmup_steps = "running", 300
    config.adversary.generator.network = "resnet_generator_small"
    config.adversary.generator.optimizer = OptimizerConfig(name="adam", learning_rate=0.002, b1=0.5, weight_decay=1e-5)
    return config
