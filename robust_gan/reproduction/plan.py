"""The runs of an experiment: methods and held-out surrogate models, for every seed."""

import dataclasses
from collections.abc import Callable, Sequence

from etils import epath

from robust_gan import evaluation
from robust_gan.config import Config, renamed, validate
from robust_gan.config.methods import BUDGETS, METHODS
from robust_gan.errors import UserError

PAPER_METHODS = (
    "none", "fgsm", "n_fgsm", "pgd", "trades", "ensemble", "ensemble_tramer", "released", "generator",
    "cond_generator", "cond_generator_fgsm", "cond_generator_refined", "cond_generator_adv_only",
)  # fmt: skip
"""The default methods: baselines, the released game, and generators conditioned on the gradient."""

ATTACKS = {
    "paper": "fgsm,pgd10,pgd50x10,margin_pgd50x10,generator",
    "short": "fgsm,pgd10,pgd40x5,margin_pgd40x5,generator",
    "debug": "fgsm,pgd2,generator",
}
SEED = "surrogate"
NETWORK = "surrogate_network"
SOURCE = "source"
SURROGATES = {SEED: 100, NETWORK: 200, SOURCE: 300}
"""Standard classifiers with other seeds; the second has another network, the last is the ensembles' source."""

OTHER_NETWORK = {
    "digits_cnn": "mnist_cnn", "mnist_cnn": "digits_cnn", "mnist_cnn_strided": "mnist_cnn",
    "resnet20": "resnet20_svhn", "resnet20_svhn": "resnet20", "resnet20_wide": "resnet20", "resnet18": "resnet20",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Plan:
    """The plan of an experiment.

    Attributes:
        dataset: The config's name.
        budget: One of `config.methods.BUDGETS`.
        methods: Names, in the order of the tables.
        seeds: Seeds of the methods; a surrogate model's seed is 100, 200 or 300 more.
        attacks: Names, separated by commas.
        runs: The configurations by `(seed, name)`, in the order of training.
    """

    dataset: str
    budget: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    attacks: str
    runs: dict[tuple[int, str], Config]


def plan(
    get_config: Callable[[str], Config], dataset: str, budget: str, output: epath.PathLike, *,
    methods: Sequence[str] = (), seeds: Sequence[int] = (0,), attacks: str = "", data_dir: str = "",
) -> Plan:  # fmt: skip
    """Returns the plan of an experiment, and writes nothing.

    Args:
        get_config: Returns the config of `METHOD/BUDGET`.
        dataset: The config's name.
        budget: One of `config.methods.BUDGETS`.
        output: The folder of the experiment; runs are in `runs/seed-SEED/NAME` below it.
        methods: Names of `config.methods.METHODS`; by default `PAPER_METHODS`.
        seeds: Seeds of the methods.
        attacks: Names, separated by commas; empty for the attacks of the budget.
        data_dir: Folder of the prepared data; empty for the one of the config.

    Raises:
        UserError: A method, an attack or the budget is unknown, a name or seed is given twice, or a config is invalid.

    >>> import functools
    >>> from robust_gan.config import datasets
    >>> digits = functools.partial(datasets.get_config, "digits")
    >>> list(plan(digits, "digits", "debug", "out", methods=["none"]).runs)
    [(0, 'none'), (0, 'surrogate'), (0, 'surrogate_network')]
    """
    names = tuple(methods) or PAPER_METHODS
    for name in names:
        if name not in METHODS:
            raise UserError(
                f"unknown method {name!r}: the methods are {', '.join(METHODS)}{renamed.hint(renamed.METHODS, name)}"
            )
    if budget not in BUDGETS:
        raise UserError(
            f"the budget must be one of {', '.join(BUDGETS)}, not {budget!r}{renamed.hint(renamed.BUDGETS, budget)}"
        )
    if not seeds or any(not 0 <= seed < 100 for seed in seeds):
        raise UserError(f"seeds must be whole numbers from 0 to 99, at least one, not {list(seeds)}")
    if attacks and not any(name != evaluation.GENERATOR for name in evaluation.attack_names(attacks)):
        raise UserError(f"give an attack that can be made on every method, such as pgd10, not {attacks!r} alone")
    for what, given in (("method", names), ("seed", tuple(seeds))):
        if len(set(given)) < len(given):
            raise UserError(f"a {what} is named twice: {', '.join(map(str, given))}")

    def read_config(name: str, seed: int) -> Config:
        config = get_config(f"{name}/{budget}")
        config.seed = seed
        config.data.data_dir = data_dir or config.data.data_dir
        return config

    folder = epath.Path(output).expanduser()
    runs: dict[tuple[int, str], Config] = {}
    for seed in seeds:
        needed = [name for name in SURROGATES if name != SOURCE or any(map(_needs_source, names))]
        surrogates = {name: read_config("none", seed + SURROGATES[name]) for name in needed}
        network = surrogates[NETWORK].classifier.network
        surrogates[NETWORK].classifier.network = OTHER_NETWORK[network]
        # The source first, for the ensembles; then the methods, so that their results come early.
        runs |= {(seed, name): config for name, config in surrogates.items() if name == SOURCE}
        for name in names:
            runs[seed, name] = config = read_config(name, seed)
            if _needs_source(name):
                source = str(run_folder(folder, seed, SOURCE))
                config.adversary.ensemble.sources = (source,)
        runs |= {(seed, name): config for name, config in surrogates.items() if name != SOURCE}
    for config in runs.values():
        validate(config)
    return Plan(dataset, budget, names, tuple(seeds), attacks or ATTACKS[budget], runs)


def run_folder(output: epath.Path, seed: int, name: str) -> epath.Path:
    """Returns the workdir of a run.

    >>> run_folder(epath.Path("out"), 0, "pgd").as_posix()
    'out/runs/seed-0/pgd'
    """
    return output / "runs" / f"seed-{seed}" / name


def _needs_source(name: str) -> bool:
    return name.startswith("ensemble")
