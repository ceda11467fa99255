"""The stock builders of TensorFlow Datasets, made to write array_record without TensorFlow.

The stock builders parse files and encode images with TensorFlow. These have the same names, versions and features, so
that the stock reader opens what they write; the files are parsed by `published`, and the images encoded by Pillow.
Importing this module imports tensorflow_datasets.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import PIL.Image
import tensorflow_datasets as tfds
from tensorflow_datasets.datasets.svhn_cropped import svhn_cropped_dataset_builder
from tensorflow_datasets.image_classification import cifar, mnist
from tqdm import tqdm

from robust_gan.data.parsing import Contents, Examples


class _FromContents:
    """Generates the examples out of `contents`, which is set after the builder is made.

    Attributes:
        contents: What to write.
        progress: Whether to show a progress bar on stderr.
        stock: The stock builder, which knows the addresses and hashes of the published files.
        id_format: How the feature `id` is made of the name of the split and the number of the image, if there is one.
    """

    contents: Contents
    progress: bool = False
    id_format: str | None = None
    stock: type[tfds.core.GeneratorBasedBuilder]

    def _info(self) -> tfds.core.DatasetInfo:
        info = super()._info()
        # It would ask a bucket on the Internet for the statistics of the split, and leave a temporary folder behind.
        info.initialize_from_bucket = lambda: None
        return info

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> Mapping[str, Iterator]:
        for feature, names in self.contents.names.items():
            self.info.features[feature].names = list(names)
        return {split: self._generate_examples(split) for split in self.contents.splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        examples: Examples = self.contents.splits[split]()
        numbers = tqdm(range(len(examples.images)), f"{self.name} {split}", unit=" images", disable=not self.progress)
        for number in numbers:
            image = examples.images[number]
            record: dict[str, Any] = {key: int(labels[number]) for key, labels in examples.labels.items()}
            record["image"] = PIL.Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
            if self.id_format:
                record["id"] = self.id_format.format(split, number)
            yield number, record


class Mnist(_FromContents, mnist.MNIST, skip_registration=True):
    """MNIST as array_record."""

    name = "mnist"
    stock = mnist.MNIST


class Cifar10(_FromContents, cifar.Cifar10, skip_registration=True):
    """CIFAR-10 as array_record."""

    name = "cifar10"
    stock = cifar.Cifar10
    id_format = "{}_{:05d}"


class Cifar100(_FromContents, cifar.Cifar100, skip_registration=True):
    """CIFAR-100 as array_record."""

    name = "cifar100"
    stock = cifar.Cifar100
    id_format = "{}_{:05d}"


class SvhnCropped(_FromContents, svhn_cropped_dataset_builder.Builder, skip_registration=True):
    """SVHN (cropped digits) as array_record."""

    name = "svhn_cropped"
    stock = svhn_cropped_dataset_builder.Builder
    id_format = "{}_{:06d}"
    # The stock method looks for the description and the citation beside the class, which would be here.
    get_metadata = staticmethod(svhn_cropped_dataset_builder.Builder.get_metadata)


class _DigitsInfo(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="The 1,797 handwritten digits that scikit-learn carries along, 8x8 pixels.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://doi.org/10.24432/C50P49",
        )


class Digits(_FromContents, _DigitsInfo, skip_registration=True):
    """scikit-learn's digits as array_record."""

    name = "digits"


BUILDERS: Mapping[str, type[tfds.core.GeneratorBasedBuilder]] = {
    builder.name: builder for builder in (Cifar10, Cifar100, Digits, Mnist, SvhnCropped)
}
