"""Four fake CPU devices for everything parallel, before anything imports jax; a trained run, and the launchers."""

import contextlib
import io
import os
import pathlib
import runpy
import shutil
import sys
import types
import warnings
from typing import NamedTuple

from robust_gan.cli import xla_flags

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Nearly all the time of these tests goes into compiling, so the compiler does not optimise, and does nothing twice.
FLAGS = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
QUICK_FLAG = "--xla_cpu_use_fusion_emitters=false"
"""An older generator of code, which compiles in 0.4 of the time; jaxlib 0.12 does not know it."""
os.environ["XLA_FLAGS"] = f"{FLAGS} {os.environ.get('XLA_FLAGS', '')}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Kept from run to run: the next compiles only what has changed. Workers and launchers, started later, find it set.
    compiled = ROOT / ".pytest_cache" / xla_flags.cache_name()
    if compiled.exists() and sum(path.stat().st_size for path in compiled.iterdir()) > 2 * 2**30:
        shutil.rmtree(compiled)  # Of many versions of the code.
    compiled.mkdir(parents=True, exist_ok=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(compiled)

import pytest  # noqa: E402

# What needs torch, the extra `reference`; and programs of their own.
collect_ignore = ["reference", "faults", "pod_program.py", "bucket_program.py"]


def quick_flags():
    """Returns `XLA_FLAGS` for a program whose results need not be equal to others' to the bit."""
    flags = [os.environ["XLA_FLAGS"].partition(" ")[2], *([QUICK_FLAG] if xla_flags._is_known(QUICK_FLAG) else [])]
    return " ".join(flags)  # Without the devices: one is compiled for sooner than four.


class Ended(NamedTuple):
    """How a launcher ended."""

    code: int
    out: str
    err: str


def _launch(script, *arguments):
    # Imported first by whoever needs it; its own flags, defined then, must not be forgotten with the launcher's.
    import array_record.python.array_record_data_source  # noqa: F401
    from absl import app, flags, logging
    from absl.testing import flagsaver

    app.define_help_flags()
    out, err, argv, verbosity = io.StringIO(), io.StringIO(), sys.argv, logging.get_verbosity()
    sys.argv = [str(ROOT / "launch" / f"{script}.py"), *map(str, arguments)]
    code = None
    try:
        # Flags that the launcher defines are forgotten again.
        with (
            flagsaver.flagsaver(),
            warnings.catch_warnings(),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            # As in a process of its own: ml_collections loads configs in a deprecated way.
            warnings.simplefilter("ignore", DeprecationWarning)
            flags.FLAGS.unparse_flags()
            sys.modules.pop("config_config", None)  # The config file before.
            # It defines its flags when it is imported.
            sys.modules.pop(f"robust_gan.cli.{script}", None)
            try:
                runpy.run_path(sys.argv[0], run_name="__main__")
            except SystemExit as end:
                code = end.code or 0
    finally:
        sys.argv = argv
        logging.set_verbosity(verbosity)
        flags.FLAGS.mark_as_parsed()
    return Ended(code, out.getvalue(), err.getvalue())


MARKERS = ("browser", "data", "docs", "packaging", "remote", "slow")
"""Tests with one of them are left out without `--all`; pyproject.toml describes them."""

MEMORY = 2 * 2**30
"""Bytes of a process above which its compiled functions are cleared."""


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help=f"run the tests marked {', '.join(MARKERS)} too")


def pytest_collection_modifyitems(config, items):
    """Leaves out the marked tests, but for `--all` and for tests that are selected by keyword, marker or name."""
    chosen = config.option.keyword or config.option.markexpr or any("::" in argument for argument in config.args)
    if config.option.all or chosen:
        return
    marked = {item for item in items if any(item.get_closest_marker(name) for name in MARKERS)}
    config.hook.pytest_deselected(items=[item for item in items if item in marked])
    items[:] = [item for item in items if item not in marked]


def _resident_bytes():
    statm = pathlib.Path("/proc/self/statm")
    # Where this cannot be read, it is taken to be too much.
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else MEMORY + 1


@pytest.fixture(autouse=True, scope="module")
def bounded_memory():
    """Clears the compiled functions when they have become large: without this a worker grows to 4 GB."""
    yield
    if _resident_bytes() > MEMORY:
        import jax

        jax.clear_caches()


@pytest.fixture
def launch(monkeypatch):
    """Runs a launcher in this process, from the root: `launch("train", "--config=configs/digits.py")`."""
    monkeypatch.chdir(ROOT)
    return _launch


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """The workdir of a run of two validated steps with a generator, on digits; not to be written to."""
    from robust_gan import parallel, training
    from robust_gan.config import AdversaryConfig, Config, DataConfig, GeneratorConfig, ValidationConfig

    config = Config(
        data=DataConfig(train_size=64, validation_size=32),
        adversary=AdversaryConfig(generator=GeneratorConfig(steps=1)),
        batch_size=16,
        num_steps=2,
        validation=ValidationConfig(every=1, pgd_steps=1),
    )
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    training.train(config, directory, devices=parallel.find_devices(num_devices=1), progress=False)
    return directory


@pytest.fixture
def own_model(tmp_path, monkeypatch):
    """Returns a function that makes a model importable and saves images: fields of an `EvaluationConfig`."""
    import numpy as np

    def save(make, images, labels, name="f"):
        module = types.ModuleType("models_of_order")
        setattr(module, name, make)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        np.savez(tmp_path / "d.npz", images=images, labels=labels)
        return {"models": [f"{module.__name__}:{name}"], "data": str(tmp_path / "d.npz")}

    return save


@pytest.fixture
def tiny_networks(monkeypatch):
    """Whatever networks a configuration names, it gets those of `tiny_networks.py`."""
    import tiny_networks as tiny

    from robust_gan import networks

    monkeypatch.setattr(
        networks, "build_classifier", lambda name, num_classes, dtype="float32": tiny.build_classifier(num_classes)
    )
    monkeypatch.setattr(
        networks, "build_generator", lambda name, channels, dtype="float32", remat=False: tiny.build_generator(channels)
    )


@pytest.fixture
def tiny_names():
    """Whole runs with the networks of `tiny_networks.py`: a configuration names both of them `tiny`."""
    import tiny_networks as tiny

    from robust_gan.networks import classifiers, generators

    tiny.register()
    yield
    for modules in (classifiers.MODULES, generators.MODULES):
        del modules["tiny"]
