"""CIFAR-10 with ResNet-18, epsilon 8/255: the network and the radius that later work compares on, in a short schedule.

    robust-gan-train --config=cifar10_resnet18:cond_generator_adv_only --workdir=runs/cifar10_cond
    robust-gan-train --config=cifar10_resnet18:pgd --workdir=runs/cifar10_pgd

The schedule, the augmentation and the weight decay come from Wong, Rice and Kolter, "Fast is Better than Free", ICLR
2020, in 30 epochs of larger batches; the generator is a light one. For a comparison at equal wall time, set
`--config.num_steps` and `--config.classifier.optimizer.schedule_steps` to what each method can do in that time.

Measured: not run.
"""

from robust_gan.config import Config, DataConfig, OptimizerConfig, PenaltyConfig, ValidationConfig, methods

_STEPS = 30 * 191  # 30 epochs of 49,000 images.


def get_config(choice: str = "cond_generator_adv_only") -> Config:
    """Returns the config of `METHOD` or `METHOD/BUDGET`, see `robust_gan.config.methods.parse_choice`."""
    config, _, _ = methods.build(
        choice,
        data=DataConfig(name="cifar10", validation_size=1_000, augmentation="crop_flip", padding=4),
        epsilon=8 / 255,
        classifier="resnet18",
        classifier_optimizer=OptimizerConfig(
            name="sgd", learning_rate=0.2, momentum=0.9, weight_decay=5e-4, schedule="one_cycle", schedule_steps=_STEPS
        ),
        generator="resnet_generator_light",
        generator_optimizer=OptimizerConfig(name="adam", learning_rate=0.0005, b1=0.5, weight_decay=1e-5),
        penalty=PenaltyConfig(coefficient=0.01, step=0.01),
        batch_size=256,
        num_steps=_STEPS,
        validation=ValidationConfig(every=1_000, size=1_000),
    )
    config.precision = "bfloat16"
    return config
