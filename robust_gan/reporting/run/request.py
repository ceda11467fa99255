"""What an evaluation is asked for."""

import dataclasses
from collections.abc import Sequence

import jax
from etils import epath

PLOTS = ("examples", "curve", "transfer")
"""What can be drawn: adversarial images, robust accuracy against epsilon, and who breaks whom."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What an evaluation is asked for; the flags of `launch/evaluate.py`.

    Attributes:
        targets: `DIR[@STEP]` each: the models under attack; their attacks are tried on each other too.
        models: `package.module:function` each: further models under attack; the function returns a `logits_fn`.
        sources: `DIR[@STEP]` each: further models to make attacks on.
        attacks: Names, separated by commas: each is made on every model and tried on every target. None for those of
            the suite.
        sequential: Names, separated by commas: made on each target alone, each on the images that all before it left
            standing, as AutoAttack does. None for those of the suite.
        suite: A name of `evaluation.SUITES`; without one `clean,fgsm,pgd10,generator`.
        dataset: A TFDS data set, or an `.npz` of images and labels; empty for that of the first checkpoint.
        split: `test`, `validation` or `train`.
        count: Only the first images of the split; 0 for all.
        norm: `linf` or `l2`; empty for that of the first target's training.
        epsilon: Radius in the unit of [0, 1]; None for that of the first target's training.
        batch_size: Images at once.
        seed: Of the attacks.
        devices: Where; None for all.
        data_dir: Where the prepared data lie; empty for what the first target was trained with.
        channels: `last` to take the images of a file as they are where their shape looks like channels first.
        output: Folder of the report; None for no report. Stopped, the same evaluation goes on there.
        overwrite: Begin anew where the folder holds another evaluation.
        pictures: Any of `PLOTS`, drawn into the folder (needs the extra `plot`).
        save_adversarial: Write the images that attacks in turn broke to `adversarial.npz`.
        use_batch_stats: Normalise with the statistics of each evaluated batch, as the released code of the paper does:
            lenient, and dependent on the batch size; the report says so.
        progress: A bar; None for only where stderr is a terminal.

    >>> Request(["runs/digits"]).batch_size
    500
    """

    targets: Sequence[str] = ()
    models: Sequence[str] = ()
    sources: Sequence[str] = ()
    attacks: str | None = None
    sequential: str | None = None
    suite: str = ""
    dataset: str = ""
    split: str = "test"
    count: int = 0
    norm: str = ""
    epsilon: float | None = None
    batch_size: int = 500
    seed: int = 0
    devices: Sequence[jax.Device] | None = None
    data_dir: str = ""
    channels: str = ""
    output: epath.PathLike | None = None
    overwrite: bool = False
    pictures: Sequence[str] = ()
    save_adversarial: bool = False
    use_batch_stats: bool = False
    progress: bool | None = None
