"""The game of Wang and Yu: state, objective and training step.

    minimise over theta, maximise over phi:   E[ CE(D_theta(x), y) + CE(D_theta(x + epsilon G_phi(x)), y) ]

D is the classifier (the released code's discriminator), G the generator. Any other adversary takes the place of G: with
PGD the same step is adversarial training, with `none` standard training. `state.py` holds `Game`, which is constant,
and `TrainState`, which changes; `step.py` the training step; `objective.py` the classifier's gradient with the
gradient penalty; `memory.py` the last perturbation of each training image. The adversaries are in
`robust_gan.adversaries`.

References:
    Wang and Yu, "A Direct Approach to Robust Deep Learning Using Adversarial Networks", ICLR 2019,
    https://arxiv.org/abs/1905.09591
"""

from robust_gan.game import memory
from robust_gan.game.objective import attacked_classifier, classifier_gradient
from robust_gan.game.state import Game, TrainState, at_step, from_config
from robust_gan.game.step import StepKeys, image_keys, init, step_keys, train_step
from robust_gan.types import Variables

__all__ = [
    "Game", "StepKeys", "TrainState", "Variables", "at_step", "attacked_classifier", "classifier_gradient",
    "from_config", "image_keys", "init", "memory", "step_keys", "train_step",
]  # fmt: skip
