"""Digits: scikit-learn's 1,797 handwritten digits of 8x8 pixels, epsilon 0.15. The data set of the quickstart.

    robust-gan-train --config=digits --workdir=runs/digits
    robust-gan-train --config=digits:pgd --workdir=runs/digits_pgd

The generator's rate and the penalty were chosen on the validation split, among some twenty settings with one seed each.

Measured: see the README.
"""

from robust_gan.config import Config, DataConfig, OptimizerConfig, PenaltyConfig, ValidationConfig, methods


def get_config(choice: str = "generator") -> Config:
    """Returns the config of `METHOD` or `METHOD/BUDGET`, see `robust_gan.config.methods.parse_choice`."""
    config, _, budget = methods.build(
        choice,
        data=DataConfig(name="digits", validation_size=180),
        epsilon=0.15,
        classifier="digits_cnn",
        classifier_optimizer=OptimizerConfig(
            name="sgd", learning_rate=0.05, momentum=0.9, weight_decay=1e-4, decay_steps=(600,)
        ),
        generator="digits_generator",
        generator_optimizer=OptimizerConfig(name="adam", learning_rate=0.0005, b1=0.5, weight_decay=1e-5),
        penalty=PenaltyConfig(coefficient=0.1),
        batch_size=64,
        num_steps=800,
        log_every=50,
        validation=ValidationConfig(every=200),
        budgets=methods.BUDGETS,
    )
    # The budgets `paper` and `short` are the same: the data set is small.
    if config.classifier.loss == "ibp" and budget != "debug":
        return methods.certifiable(config, network="certifiable_cnn_light", num_steps=4_800, epsilon=0.2)
    return config
