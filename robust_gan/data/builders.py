"""Builders of TensorFlow Datasets that write array_record without TensorFlow.

The builders of TensorFlow Datasets need TensorFlow. These have the same names, versions and features, so that the stock
reader opens their files; `published` parses the archives and Pillow encodes the images.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import PIL.Image
import tensorflow_datasets as tfds
from tqdm import tqdm

from robust_gan.data.parsing import Contents, Examples
from robust_gan.data.published import SETS


def build(dataset: str, contents: Contents, progress: bool = False) -> type[tfds.core.GeneratorBasedBuilder]:
    """Returns the class of the builder of a data set.

    Args:
        dataset: One of `published.SETS`.
        contents: The images and labels to write.
        progress: Whether to show a progress bar on stderr.
    """
    known = SETS[dataset]

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = dataset
        VERSION = tfds.core.Version(known.version)

        def _info(self) -> tfds.core.DatasetInfo:
            features: dict[str, Any] = {"image": tfds.features.Image(shape=known.image_shape)}
            for label, count in known.num_classes.items():
                names = contents.names.get(label)
                features[label] = tfds.features.ClassLabel(names=names, num_classes=None if names else count)
            info = tfds.core.DatasetInfo(
                builder=self,
                description=known.description,
                features=tfds.features.FeaturesDict(
                    features | ({"id": tfds.features.Text()} if known.id_format else {})
                ),
                supervised_keys=("image", "label"),
                homepage=known.homepage,
            )
            # It would fetch statistics from a bucket on the Internet, and leave a temporary folder.
            info.initialize_from_bucket = lambda: None
            return info

        def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> Mapping[str, Iterator]:
            return {split: self._generate_examples(split) for split in contents.splits}

        def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
            examples: Examples = contents.splits[split]()
            numbers = range(len(examples.images))
            for number in tqdm(numbers, f"{dataset} {split}", unit=" images", disable=not progress):
                image = examples.images[number]
                record: dict[str, Any] = {key: int(labels[number]) for key, labels in examples.labels.items()}
                record["image"] = PIL.Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
                if known.id_format:
                    record["id"] = known.id_format.format(split, number)
                yield number, record

    return Builder
