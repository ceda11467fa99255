"""What an evaluation found image by image, kept beside its figures: what each was taken for, and some to look at."""

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from etils import epath

from robust_gan.errors import UserError
from robust_gan.storage import files, workdir

if TYPE_CHECKING:
    from robust_gan.evaluation import Scores

FILE = "details.npz"
CLEAN = "clean"
SEQUENTIAL = "attacks in turn"

_PREDICTED, _SHOWN = "predicted: ", "shown: "


class Details(NamedTuple):
    """Findings image by image; N images, of which E are to look at.

    Attributes:
        labels: `[N]`.
        label_names: Of the classes.
        stood: For each target bool `[N]`: right clean and under every attack in the open.
        predicted: For each (target, attack in the open), `clean` and `attacks in turn` included, `[N]`: the class that
            an image is taken for.
        images: `[E, H, W, C]` in [0, 1], clean.
        positions: `[E]`, which of the N they are.
        shown: For each target the adversarial ones, `[E, H, W, C]`.
        attack: By which they were made; empty where none are shown.
    """

    labels: np.ndarray
    label_names: tuple[str, ...]
    stood: dict[str, np.ndarray]
    predicted: dict[tuple[str, str], np.ndarray]
    images: np.ndarray
    positions: np.ndarray
    shown: dict[str, np.ndarray]
    attack: str


def choose(labels: np.ndarray, most: int = 10) -> np.ndarray:
    """Returns the positions of some images to look at: the first of each class, in their order.

    Args:
        labels: `[N]`.
        most: How many at most.

    >>> choose(np.array([3, 3, 1, 3, 0]), 2).tolist()
    [0, 2]
    """
    return np.sort(np.unique(labels, return_index=True)[1])[:most]


def get_robust(scores: "Scores", standing: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns for each target which images are right clean and under every attack in the open, bool `[N]`.

    Args:
        scores: Of an evaluation.
        standing: For each target bool `[N]`, what stood under attacks in turn; empty where there were none.
    """
    stood = {}
    for index, target in enumerate(scores.targets):
        rows = [row for (name, maker, _), row in scores.robust.items() if name == maker == target]
        sequential = [standing[target]] if target in standing else []
        stood[target] = np.all([scores.clean[index], *rows, *sequential], axis=0)
    return stood


def write(directory: epath.PathLike, details: Details) -> None:
    """Writes `details.npz`, whole or not at all.

    >>> found = Details(np.zeros(2, int), ("a",), {}, {("m", "clean"): np.zeros(2, int)}, np.zeros((1, 2, 2, 1)),
    ...                 np.zeros(1, int), {}, "")
    >>> write(getfixture("tmp_path"), found)
    >>> read(getfixture("tmp_path")).predicted.keys()
    dict_keys([('m', 'clean')])
    """
    arrays = {
        "labels": details.labels,
        "label_names": np.asarray(details.label_names, np.str_),
        "images": details.images,
        "positions": details.positions,
        "attack": np.asarray(details.attack),
        **{f"stood: {target}": row for target, row in details.stood.items()},
        **{f"{_PREDICTED}{attack}: {target}": row for (target, attack), row in details.predicted.items()},
        **{f"{_SHOWN}{target}": images for target, images in details.shown.items()},
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    workdir.write_bytes(epath.Path(directory) / FILE, buffer.getvalue())


def read(directory: epath.PathLike) -> Details | None:
    """Reads what `write` wrote; None where there is none, as in the folder of an older version.

    Raises:
        UserError: The file is damaged.

    >>> read(getfixture("tmp_path")) is None
    True
    """
    path = epath.Path(directory) / FILE
    if not path.exists():
        return None
    try:
        arrays = files.read_arrays(path)
        stood, predicted, shown = {}, {}, {}
        for name, array in arrays.items():
            if name.startswith("stood: "):
                stood[name.removeprefix("stood: ")] = array
            elif name.startswith(_PREDICTED):
                attack, _, target = name.removeprefix(_PREDICTED).partition(": ")
                predicted[target, attack] = array
            elif name.startswith(_SHOWN):
                shown[name.removeprefix(_SHOWN)] = array
        return Details(
            arrays["labels"], tuple(map(str, arrays["label_names"])), stood, predicted, arrays["images"],
            arrays["positions"], shown, str(arrays["attack"]),
        )  # fmt: skip
    except (files.UnreadableError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}): remove it, and evaluate again with --overwrite") from error


def per_class(details: Details, values: np.ndarray) -> list[float]:
    """Returns the mean of a value for each class; NaN for a class without images.

    Args:
        details: Of an evaluation.
        values: `[N]`.

    Returns:
        K means.
    """
    labels, count = details.labels.astype(np.int64), len(details.label_names)
    totals, sums = np.bincount(labels, minlength=count), np.bincount(labels, values, count)
    return [float(total / number) if number else float("nan") for total, number in zip(sums, totals, strict=True)]


def confusion(details: Details, target: str, attack: str) -> np.ndarray | None:
    """Returns how often each class is taken for each: counts `[K, K]`, the true classes in rows.

    Args:
        details: Of an evaluation.
        target: Which model.
        attack: Made on it, or `clean`.

    Returns:
        None where it is not known of every image.
    """
    row, count = details.predicted.get((target, attack)), len(details.label_names)
    if row is None or row.min() < 0:
        return None
    inside, labels = row < count, details.labels.astype(np.int64)
    return np.bincount(labels[inside] * count + row[inside], minlength=count * count).reshape(count, count)


def most_confused(details: Details, target: str, attack: str, most: int) -> list[tuple[int, int, int]] | None:
    """Returns which classes are taken for which others most often, where a matrix of all would be too large to look at.

    Args:
        details: Of an evaluation.
        target: Which model.
        attack: Made on it, or `clean`.
        most: How many pairs at most.

    Returns:
        The true class, the one that it is taken for, and how often; None where it is not known of every image.
    """
    row = details.predicted.get((target, attack))
    if row is None or row.min() < 0:
        return None
    wrong = np.flatnonzero(row != details.labels)
    pairs, counts = np.unique(np.stack([details.labels[wrong], row[wrong]], axis=1), axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:most]
    return [(int(pairs[place][0]), int(pairs[place][1]), int(counts[place])) for place in order]
