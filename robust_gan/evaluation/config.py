"""The configuration of an evaluation: the flags of `robust-gan-evaluate`, one field each."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from robust_gan.errors import UserError
from robust_gan.evaluation.suites import CORRUPTIONS

PLOTS = ("examples", "curve", "transfer", "trace")
"""Plots of a report: adversarial examples, robust accuracy against epsilon, the transfer matrix, an attack's steps."""

_LISTS = ("checkpoints", "models", "surrogates", "plots", "attacks", "sequential", "certify")
_OUTPUTS = ("output", "overwrite", "plots", "progress", "platform", "num_devices", "batch_size", "require")


def _parse_radii(given: Any) -> list[float | None]:
    """Returns the radii of a number, of several, or of a string such as `4/255,8/255`."""
    radii = []
    for part in given.split(",") if isinstance(given, str) else given if isinstance(given, tuple | list) else (given,):
        try:
            # A fraction of two floats, as everywhere on the command line.
            above, _, below = part.partition("/") if isinstance(part, str) else (part, "", "")
            radii.append(part if part is None else float(above) / float(below) if below else float(above))
        except (ValueError, TypeError, ZeroDivisionError):
            raise UserError(f"epsilon must be a number, or several, such as 4/255,8/255, not {given!r}") from None
    return radii


def _pair(norms: Sequence[str], radii: Sequence[float | None]) -> list[tuple[str, float | None]]:
    """Returns the threat models of norms and radii: in pairs, or one of either with all of the other."""
    count = max(len(norms), len(radii))
    if {len(norms), len(radii)} - {1, count}:
        raise UserError(
            f"{len(norms)} norms and {len(radii)} radii do not pair: give as many --norm as --epsilon, or one of either"
        )
    if count > 1 and None in radii:
        raise UserError("--epsilon is missing: radii of two norms differ; give one for each, such as 8/255,0.5")
    pairs = [(norms[index % len(norms)], radii[index % len(radii)]) for index in range(count)]
    labels = [f"{norm} epsilon {radius:g}".strip() for norm, radius in pairs if radius is not None]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise UserError(f"the threat model {twice[0]} is given twice")
    return pairs


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """The configuration of an evaluation.

    Every field is a flag of `robust-gan-evaluate` (`checkpoints` is `--checkpoint`, `models` is `--model`). Lists are
    tuples; a string is split at its commas. `identity` returns the part that the results depend on; the report
    contains it all.

    Attributes:
        checkpoints: The models under attack, `DIR[@STEP]`, exported files or `zoo:NAME`; their attacks are tried on
            each other too.
        models: Further models under attack, `package.module:function` each; the function returns a `logits_fn`.
        surrogates: Checkpoints of held-out models on which black-box attacks are made.
        suite: A name of `evaluation.SUITES`; empty for `fgsm,pgd10,generator`.
        attacks: Attacks made on every model and tried on every target: names of `attacks.by_name`, `generator`,
            retrained generators, or `package.module:function` for an attack of your own. None for those of the suite.
        sequential: Attacks of the sequential evaluation, on each target. None for those of the suite.
        certify: Methods of certification. Bounds, of `certification.METHODS`: images that one of them certifies are
            robust under every attack, and the sequential attacks leave them out. `smoothing`: figures of the smoothed
            classifier. Under several norms, each method counts where it covers the norm.
        smoothing_sigma: Standard deviation of the noise of smoothing, in units of [0, 1].
        smoothing_samples: Noisy images of each image.
        smoothing_alpha: Probability of a wrong certificate of an image.
        norm: `linf` or `l2`; empty for the norm that the first checkpoint was trained with. Several, separated by
            commas, for an evaluation under several threat models, see `per_threat`.
        epsilon: Radius in units of [0, 1], or several; a string may contain fractions, `4/255,8/255`. None for the
            radius that the first checkpoint was trained with.
        seed: Of the attacks.
        data: A TFDS data set, `FILE.npz` with images and labels, `IMAGES.npy,LABELS.npy`, which is read batch by
            batch, or a folder with one per class; empty for the data set of the first checkpoint.
        data_dir: Folder of the prepared data; empty for the one of the training.
        split: `test`, `validation` or `train`.
        num_examples: Only the first images of the split; 0 for all.
        image_size: Height and width of the images of a folder; 0 for as they are.
        channels: `last` to accept images of a file whose shape looks like channels first.
        output: Folder of the report, empty for none; rerun the same evaluation to resume it there.
        overwrite: Replace another evaluation in the folder.
        plots: Any of `PLOTS`; needs the extra `plot`.
        save_adversarial: Write the adversarial images of the sequential evaluation to `adversarial.npz`.
        use_batch_stats: Normalise with the statistics of each evaluated batch, as the released code of the paper
            does; the results then depend on the batch size.
        batch_size: Images at once; no result depends on it, except with `use_batch_stats`.
        platform: `cpu`, `gpu` or `tpu`; empty for the best available.
        num_devices: Number of devices; 0 for all.
        progress: Whether to show a progress bar; None for only where stderr is a terminal.
        adversarial: `FILE.npz` of adversarial images that another program made of the evaluated ones, in their order;
            scored as an attack of the file's name. Without `suite` and `attacks`, no others are made.
        require: Least accuracies, such as `autoattack>=0.45,clean>=0.9`; see `requirements.parse_requirements`.

    >>> EvaluationConfig(["runs/digits"], attacks="fgsm,pgd10").attacks
    ('fgsm', 'pgd10')
    """

    checkpoints: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    surrogates: tuple[str, ...] = ()
    suite: str = ""
    attacks: tuple[str, ...] | None = None
    sequential: tuple[str, ...] | None = None
    certify: tuple[str, ...] = ()
    smoothing_sigma: float = 0.25
    smoothing_samples: int = 10_000
    smoothing_alpha: float = 0.001
    norm: str = ""
    epsilon: float | tuple[float, ...] | None = None
    seed: int = 0
    data: str = ""
    data_dir: str = ""
    split: str = "test"
    num_examples: int = 0
    image_size: int = 0
    channels: str = ""
    output: str = ""
    overwrite: bool = False
    plots: tuple[str, ...] = ()
    save_adversarial: bool = False
    use_batch_stats: bool = False
    batch_size: int = 500
    platform: str = ""
    num_devices: int = 0
    progress: bool | None = None
    require: str = ""
    adversarial: str = ""

    def __post_init__(self) -> None:
        """Converts lists and paths, and refuses values that no model and no image could make valid."""
        for name in _LISTS:
            value = getattr(self, name)
            if value is not None:
                one_string = isinstance(value, str)
                parts = value.split(",") if isinstance(value, str) else value
                object.__setattr__(
                    self, name, tuple(os.fspath(part).strip() for part in parts if part or not one_string)
                )
        object.__setattr__(self, "output", os.fspath(self.output or ""))
        object.__setattr__(self, "data", os.fspath(self.data))
        if self.batch_size < 1 or self.num_examples < 0:
            raise UserError(
                f"batch_size must be at least 1 and num_examples at least 0, not {self.batch_size} and "
                f"{self.num_examples}"
            )
        norms = [name.strip() for name in (self.norm.split(",") if isinstance(self.norm, str) else self.norm)]
        if unknown := [name for name in norms if name not in ("", "linf", "l2")]:
            raise UserError(f"the norm must be one of linf, l2, not {unknown[0]!r}")
        object.__setattr__(self, "norm", ",".join(norms))
        radii = _parse_radii(self.epsilon)
        object.__setattr__(self, "epsilon", tuple(radii) if len(radii) > 1 else radii[0])
        if len(_pair(norms, radii)) > 1 and self.suite == CORRUPTIONS:
            raise UserError("--suite=corruptions has no threat model: give one norm and one epsilon, for the alarms")
        if len(_pair(norms, radii)) > 1 and self.adversarial:
            raise UserError("--adversarial has images of one threat model: give one norm and one epsilon")
        if unknown := [name for name in self.plots if name not in PLOTS]:
            raise UserError(f"there is no plot {unknown[0]!r}: the plots are {', '.join(PLOTS)}")
        if not self.output and (self.plots or self.save_adversarial):
            raise UserError("plots and adversarial images are written to the report folder: give --output")

    @property
    def has_one_threat(self) -> bool:
        """Whether there is one norm and one radius."""
        return "," not in self.norm and not isinstance(self.epsilon, tuple)

    @property
    def radius(self) -> float | None:
        """The radius, where there is one threat model.

        Raises:
            UserError: There are several.
        """
        if isinstance(self.epsilon, tuple) or not self.has_one_threat:
            raise UserError(
                "one norm and one epsilon are expected here: robust-gan-evaluate and evaluation.evaluate_threats take "
                "several"
            )
        return self.epsilon

    def per_threat(self) -> list["EvaluationConfig"]:
        """Returns a configuration for each threat model: norms and radii in pairs, or each of one kind with the other.

        >>> config = EvaluationConfig(norm="linf,l2", epsilon="8/256,0.5")
        >>> [(part.norm, part.epsilon) for part in config.per_threat()]
        [('linf', 0.03125), ('l2', 0.5)]
        >>> [part.epsilon for part in EvaluationConfig(epsilon=(0.1, 0.2)).per_threat()]
        [0.1, 0.2]
        """
        radii = self.epsilon if isinstance(self.epsilon, tuple) else (self.epsilon,)
        return [
            dataclasses.replace(self, norm=norm, epsilon=radius) for norm, radius in _pair(self.norm.split(","), radii)
        ]

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields as a JSON-able dictionary, for the report.

        >>> EvaluationConfig(attacks="fgsm").as_dict()["attacks"]
        ['fgsm']
        """
        fields = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}

    def identity(self) -> dict[str, Any]:
        """Returns the fields that the results depend on: neither outputs nor devices.

        The batch size counts only where BatchNorm uses the statistics of the batch.

        >>> [name for name in ("seed", "batch_size", "output") if name in EvaluationConfig().identity()]
        ['seed']
        """
        left_out = [name for name in _OUTPUTS if not (name == "batch_size" and self.use_batch_stats)]
        return {name: value for name, value in self.as_dict().items() if name not in left_out}
