"""Attacks: pure, jit-able functions from images and true labels to adversarial images inside the threat model.

The arguments `(logits_fn, key, images, labels, threat)` are described in `types.Attack`; further settings are keyword
arguments, fixed with `functools.partial`. `by_name` returns the attacks of the command line, `autoattack` those of
AutoAttack in their order, for `run_sequential`.
"""

from robust_gan.attacks._eot import randomised
from robust_gan.attacks.apgd import apgd, apgd_targeted
from robust_gan.attacks.autoattack import VERSIONS, SequentialResult, autoattack, run_sequential
from robust_gan.attacks.fab import fab, fab_targeted
from robust_gan.attacks.fmn import SmallestPerturbations, fmn, smallest_perturbations
from robust_gan.attacks.generator import generator
from robust_gan.attacks.noise import transfer, uniform_noise
from robust_gan.attacks.pgd import fgsm, input_gradient, pgd, pgd_multi_targeted
from robust_gan.attacks.registry import by_name, classes_needed
from robust_gan.attacks.retrained_generator import retrained_generator, train_generator
from robust_gan.attacks.spsa import spsa
from robust_gan.attacks.square import square
from robust_gan.attacks.trace import Trace, trace

__all__ = [
    "VERSIONS",
    "SequentialResult",
    "SmallestPerturbations",
    "Trace",
    "apgd",
    "apgd_targeted",
    "autoattack",
    "by_name",
    "classes_needed",
    "fab",
    "fab_targeted",
    "fgsm",
    "fmn",
    "generator",
    "input_gradient",
    "pgd",
    "pgd_multi_targeted",
    "randomised",
    "retrained_generator",
    "run_sequential",
    "smallest_perturbations",
    "spsa",
    "square",
    "trace",
    "train_generator",
    "transfer",
    "uniform_noise",
]
