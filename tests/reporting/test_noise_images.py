"""What a run keeps of its generator's noise: pictures in its folder, and for TensorBoard."""

import struct

import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from robust_gan import checkpoint
from robust_gan.config import Config
from robust_gan.errors import UserError
from robust_gan.reporting import noise_images
from robust_gan.storage import workdir
from robust_gan.threat_model import LinfThreat
from robust_gan.training.writers import TensorBoardWriter


@pytest.mark.slow
def test_a_run_keeps_the_noise_of_every_validation(tiny_run):
    film = noise_images.read(tiny_run)
    assert list(film.noise) == [1, 2]
    assert film.images.shape == film.noise[2].shape == (noise_images.SHOWN, 8, 8, 1)
    attack, logits_fn = checkpoint.load_attack(tiny_run, "last"), checkpoint.load_classifier(tiny_run, "last")
    labels = np.zeros(len(film.images), np.int32)
    adversarial = attack(logits_fn, jax.random.key(0), film.images, labels, LinfThreat(0.15))
    noise = noise_images.get_noise(np.asarray(adversarial), film.images, 0.15)
    np.testing.assert_allclose(film.noise[2], noise, atol=1.01 / 127.5)
    assert np.abs(film.noise[2] - film.noise[1]).max() > 0


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_pictures_are_read_as_they_were_written(tmp_path, channels):
    draws = np.random.default_rng(0).uniform(-1, 1, (3, 4, 5, channels))
    noise_images.write(tmp_path, 7, (draws + 1) / 2, draws)
    found = noise_images.read(tmp_path).noise[7]
    expected = draws if channels != 2 else draws.mean(axis=-1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1.01 / 255)
    (tmp_path / noise_images.FOLDER / "00000007.png").write_bytes(b"garbled")
    with pytest.raises(UserError, match=r"00000007.png is damaged"):
        noise_images.read(tmp_path)


def events(folder):
    (path,) = (folder / "tensorboard").iterdir()
    content, at = path.read_bytes(), 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        yield Event.FromString(content[at + 12 : at + 12 + length])
        at += 16 + length


def test_tensorboard_shows_scalars_images_histograms_and_the_config(tmp_path):
    writer = TensorBoardWriter(workdir.epath.Path(tmp_path), Config(seed=37))
    writer.write(5, {"train/clean_loss": 0.5})
    images = np.full((2, 4, 4, 1), 0.5)
    writer.write_perturbations(5, images, {"generator": np.linspace(-1, 1, 32).reshape(images.shape)})
    writer.close()
    text, scalar, histogram, picture = [value for event in events(tmp_path) for value in event.summary.value]
    assert b'"seed": 37' in text.tensor.string_val[0]
    assert (scalar.tag, scalar.simple_value) == ("train/clean_loss", 0.5)
    assert (histogram.tag, histogram.histo.num) == ("perturbation/generator", 32)
    assert (picture.tag, picture.image.height, picture.image.width) == ("perturbation/generator", 8, 8)
