"""Images of your own, epsilon 8/255: what `--data` alone trains with, `own:pgd`.

    robust-gan-train --data=images.npz --workdir=runs/mine
    robust-gan-train --config=own:cond_generator_refined --data=photos --image_size=32 --workdir=runs/photos

Networks, number of steps and size of the validation split follow the images (`robust_gan.training.fitting`).

Measured: 20 steps, as a test of the installation; a whole run: not run.
"""

from robust_gan.config import Config, DataConfig, OptimizerConfig, ValidationConfig, methods


def get_config(choice: str = "generator") -> Config:
    """Returns the config of `METHOD` or `METHOD/BUDGET`, see `robust_gan.config.methods.parse_choice`."""
    return methods.build(
        choice,
        data=DataConfig(name=""),
        epsilon=8 / 255,
        classifier="resnet20",
        classifier_optimizer=OptimizerConfig(
            name="sgd", learning_rate=0.1, momentum=0.9, weight_decay=5e-4, schedule="one_cycle", schedule_steps=3_000
        ),
        generator_optimizer=OptimizerConfig(name="adam", learning_rate=0.0005, b1=0.5, weight_decay=1e-5),
        batch_size=128,
        num_steps=3_000,
        log_every=50,
        validation=ValidationConfig(every=300),
        budgets=methods.BUDGETS,  # `paper` and `short` are the same.
    )[0]
