"""Per-image results of an evaluation: predictions, robust images, and a few adversarial images."""

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
SEQUENTIAL = "sequential attacks"

_ROBUST, _PREDICTED, _ADVERSARIAL = "robust: ", "predicted: ", "adversarial: "


class Details(NamedTuple):
    """Results per image, for N images, of which E are stored.

    Attributes:
        labels: `[N]`.
        label_names: Names of the K classes.
        robust: For each target bool `[N]`: classified correctly clean and under every white-box attack.
        predicted: For each (target, white-box attack), `clean` and `SEQUENTIAL` included, the predicted classes `[N]`.
        images: `[E, H, W, C]` in [0, 1], clean.
        positions: `[E]`, their positions among the N.
        adversarial: For each target the adversarial images `[E, H, W, C]`.
        attack: The attack that made them; empty if there are none.
    """

    labels: np.ndarray
    label_names: tuple[str, ...]
    robust: dict[str, np.ndarray]
    predicted: dict[tuple[str, str], np.ndarray]
    images: np.ndarray
    positions: np.ndarray
    adversarial: dict[str, np.ndarray]
    attack: str


def choose(labels: np.ndarray, max_images: int = 10) -> np.ndarray:
    """Returns the positions of a few images: the first of each class, in their order.

    Args:
        labels: `[N]`.
        max_images: Most images.

    >>> choose(np.array([3, 3, 1, 3, 0]), 2).tolist()
    [0, 2]
    """
    return np.sort(np.unique(labels, return_index=True)[1])[:max_images]


def get_robust(scores: "Scores", sequential: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns for each target which images are robust: correct clean and under every white-box attack, bool `[N]`.

    Args:
        scores: Of an evaluation.
        sequential: For each target bool `[N]`, robust under the sequential attacks; empty if there were none.
    """
    robust = {}
    for index, target in enumerate(scores.targets):
        rows = [row for (name, source, _), row in scores.robust.items() if name == source == target]
        rows += [sequential[target]] if target in sequential else []
        robust[target] = np.all([scores.clean[index], *rows], axis=0)
    return robust


def write(directory: epath.PathLike, details: Details) -> None:
    """Writes `details.npz` atomically.

    >>> details = Details(np.zeros(2, int), ("a",), {}, {("m", "clean"): np.zeros(2, int)}, np.zeros((1, 2, 2, 1)),
    ...                   np.zeros(1, int), {}, "")
    >>> write(getfixture("tmp_path"), details)
    >>> read(getfixture("tmp_path")).predicted.keys()
    dict_keys([('m', 'clean')])
    """
    arrays = {
        "labels": details.labels,
        "label_names": np.asarray(details.label_names, np.str_),
        "images": details.images,
        "positions": details.positions,
        "attack": np.asarray(details.attack),
        **{f"{_ROBUST}{target}": row for target, row in details.robust.items()},
        **{f"{_PREDICTED}{attack}: {target}": row for (target, attack), row in details.predicted.items()},
        **{f"{_ADVERSARIAL}{target}": images for target, images in details.adversarial.items()},
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    workdir.write_bytes(epath.Path(directory) / FILE, buffer.getvalue())


def read(directory: epath.PathLike) -> Details | None:
    """Reads `details.npz`; returns None if the file does not exist.

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
        robust, predicted, adversarial = {}, {}, {}
        for name, array in arrays.items():
            if name.startswith(_ROBUST):
                robust[name.removeprefix(_ROBUST)] = array
            elif name.startswith(_PREDICTED):
                attack, _, target = name.removeprefix(_PREDICTED).partition(": ")
                predicted[target, attack] = array
            elif name.startswith(_ADVERSARIAL):
                adversarial[name.removeprefix(_ADVERSARIAL)] = array
        return Details(
            arrays["labels"], tuple(map(str, arrays["label_names"])), robust, predicted, arrays["images"],
            arrays["positions"], adversarial, str(arrays["attack"]),
        )  # fmt: skip
    except (files.UnreadableError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}): remove it, and evaluate again with --overwrite") from error


def per_class(details: Details, values: np.ndarray) -> list[float]:
    """Returns the mean of values `[N]` for each of the K classes; NaN for a class without images."""
    labels, count = details.labels.astype(np.int64), len(details.label_names)
    totals, sums = np.bincount(labels, minlength=count), np.bincount(labels, values, count)
    return [float(total / number) if number else float("nan") for total, number in zip(sums, totals, strict=True)]


def confusion(details: Details, target: str, attack: str) -> np.ndarray | None:
    """Returns the confusion matrix `[K, K]`, true classes in rows; None if the prediction of an image is unknown.

    Args:
        details: Of an evaluation.
        target: Name of the model.
        attack: A white-box attack, or `clean`.
    """
    row, count = details.predicted.get((target, attack)), len(details.label_names)
    if row is None or row.min() < 0:
        return None
    inside, labels = row < count, details.labels.astype(np.int64)
    return np.bincount(labels[inside] * count + row[inside], minlength=count * count).reshape(count, count)


def most_confused(details: Details, target: str, attack: str, max_pairs: int) -> list[tuple[int, int, int]] | None:
    """Returns the most frequent confusions, for data with too many classes for a matrix.

    Args:
        details: Of an evaluation.
        target: Name of the model.
        attack: A white-box attack, or `clean`.
        max_pairs: Most pairs.

    Returns:
        True class, predicted class and count; None if the prediction of an image is unknown.
    """
    row = details.predicted.get((target, attack))
    if row is None or row.min() < 0:
        return None
    wrong = np.flatnonzero(row != details.labels)
    pairs, counts = np.unique(np.stack([details.labels[wrong], row[wrong]], axis=1), axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:max_pairs]
    return [(int(pairs[place][0]), int(pairs[place][1]), int(counts[place])) for place in order]
