"""Names of earlier versions: none is an alias, and each is refused with the name that replaced it."""

FIELDS = {
    "keep_last": "max_to_keep",
    "adversary.warmup_steps": "adversary.epsilon_warmup_steps",
    "adversary.generator.box": "adversary.generator.parametrization",
    "adversary.generator.final_step": "adversary.generator.final_fgsm_step",
    "adversary.generator.hops": "adversary.generator.num_refinements",
    "adversary.generator.minibatches": "adversary.generator.batches_per_step",
    "adversary.generator.sees": "adversary.generator.inputs",
    "classifier.attacked_batch_norm": "classifier.attack_bn_mode",
    "classifier.average_decay": "classifier.ema_decay",
    "classifier.weight_perturbation": "classifier.awp_gamma",
}
"""Fields of `Config`."""

VALUES = {
    "adversary.generator.parametrization": {"project": "clip", "map": "rescale"},
    "adversary.generator.optimizer.schedule": {"cyclic": "one_cycle"},
    "classifier.optimizer.schedule": {"cyclic": "one_cycle"},
}
"""Values of fields of `Config`."""

METHODS = {
    "generator_gradient": "cond_generator",
    "generator_step": "cond_generator_fgsm",
    "generator_hops": "cond_generator_refined",
    "generator_hops_alone": "cond_generator_adv_only",
}
"""Names of `methods.METHODS`."""

BUDGETS = {"cpu": "short", "smoke": "debug"}
"""Names of `methods.BUDGETS`."""

FLAGS = {
    "batch_statistics": "use_batch_stats",
    "contestants": "methods",
    "count": "num_examples",
    "in_turn": "sequential",
    "pictures": "plots",
    "sources": "surrogates",
}
"""Flags of the commands."""

ATTACKS = {
    "fresh_generator": "retrained_generator",
    "fresh_generator_label": "retrained_generator_label",
    "fresh_generator_hops": "retrained_generator_refined",
}
"""Names of attacks."""


def hint(names: dict[str, str], name: str) -> str:
    """Returns the end of a sentence that refuses a name: the new name of an old one, or nothing.

    >>> hint(METHODS, "generator_step"), hint(METHODS, "pgd")
    (" ('generator_step' is now called 'cond_generator_fgsm')", '')
    """
    return f" ({name!r} is now called {names[name]!r})" if name in names else ""
