"""The game: one train state, one train step, whoever the adversary is.

    minimise over theta, maximise over phi:   E[ CE(D_theta(x), y) + CE(D_theta(x + epsilon G_phi(x)), y) ]

`state.py` holds what stays (`Game`) and what changes (`TrainState`), `step.py` the training step, `objective.py` the
classifier's loss with the gradient penalty. The adversaries are in `robust_gan.adversaries`.

References:
    Wang and Yu, "A Direct Approach to Robust Deep Learning Using Adversarial Networks", ICLR 2019,
    https://arxiv.org/abs/1905.09591
"""

from robust_gan.game.objective import attacked_classifier, classifier_gradient
from robust_gan.game.state import Game, TrainState, Variables, at_step, from_config
from robust_gan.game.step import StepKeys, image_keys, init, step_keys, train_step

__all__ = [
    "Game", "StepKeys", "TrainState", "Variables", "at_step", "attacked_classifier", "classifier_gradient",
    "from_config", "image_keys", "init", "step_keys", "train_step",
]  # fmt: skip
