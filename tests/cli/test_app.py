"""What the commands share: flags, configs, help, exit codes, and a mistake told before jax is loaded."""

import ast
import errno
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import time
import types

import jax
import pytest
from conftest import ROOT

from robust_gan import cli
from robust_gan.cli import memory, xla_flags
from robust_gan.config import from_dict
from robust_gan.errors import CheckpointError, DataError, UserError

CONFIG = "--config=configs/digits.py"


@pytest.mark.parametrize("script", sorted(path.stem for path in (ROOT / "launch").glob("*.py")))
def test_help_fits_a_screen_groups_every_flag_and_shows_an_example(launch, script, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    ended = launch(script, "--help")
    assert (ended.code, ended.err) == (0, "")
    source = (ROOT / "robust_gan" / "cli" / f"{script}.py").read_text()
    assert len(ended.out.splitlines()) <= (60 if "pod=True" in source else 45)
    assert f"robust-gan-{script.replace('_', '-')} " in ended.out
    if "pod=True" in source:
        source += (ROOT / "robust_gan" / "cli" / "distributed.py").read_text()
    defined = set(re.findall(r"DEFINE_\w+\(\s*\"(\w+)\"", source))
    shown = re.findall(r"^  --(?:\[no\])?(\w+)(?=[\[=. ])(?!\.)", ended.out, re.M)
    assert sorted(shown) == sorted(defined)


@pytest.mark.packaging
def test_help_is_at_once_and_loads_no_jax():
    for path in (ROOT / "launch").glob("*.py"):
        program = (
            f"import runpy, sys, time\nsys.argv = [{str(path)!r}, '--help']\nbegan = time.process_time()\n"
            "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
            "finally:\n    print('jax' in sys.modules, file=sys.stderr)\n"
            "    print(time.process_time() - began, file=sys.stderr)"
        )
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
        loaded, seconds = ended.stderr.splitlines()
        assert loaded == "False"
        assert float(seconds) < 2


def test_a_configuration_prints_itself_and_can_be_read_back(launch):
    ended = launch("train", f"{CONFIG}:pgd", "--config.seed=7", "--config.threat.epsilon=8/256", "--print_config")
    assert (ended.code, ended.err) == (0, "")
    config = from_dict(json.loads(ended.out))
    assert (config.seed, config.threat.epsilon, config.adversary.name) == (7, 0.03125, "pgd")
    ended = launch("train", CONFIG, "--config.batch_size=0", "--print_config")
    assert (ended.code, ended.out) == (2, "")


@pytest.mark.packaging
def test_a_mistake_is_told_before_jax_is_loaded():
    program = (
        "import runpy, sys\n"
        "sys.argv = sys.argv[1:]\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally:\n    print([name for name in ('jax', 'flax', 'orbax', 'numpy.linalg') if name in sys.modules])"
    )
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", program, "launch/train.py", CONFIG, "--workdir=/nosuch", "--config.nosuch=1"],
        capture_output=True, text=True, timeout=60, cwd=ROOT, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (2, "[]\n")
    assert ended.stderr.startswith("error: the configuration has no field nosuch: the fields are seed, data, threat,")
    assert time.monotonic() - started < 10


RETRAINED = """
import sys
from robust_gan import cli, config, errors
from robust_gan.storage import workdir
import robust_gan
assert robust_gan.__version__
assert set(robust_gan.__all__) <= set(dir(robust_gan))
print("jax" in sys.modules)
assert robust_gan.UserError is errors.UserError and robust_gan.Config is config.Config
print("jax" in sys.modules)
from robust_gan import *
assert all(globals()[name] is getattr(robust_gan, name) for name in robust_gan.__all__)
assert robust_gan.losses.margin is robust_gan.margin is margin
try:
    robust_gan.nosuch
except AttributeError as error:
    print(error)
"""


@pytest.mark.packaging
def test_public_names_are_loaded_when_they_are_first_used():
    ended = subprocess.run([sys.executable, "-c", RETRAINED], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.splitlines() == ["False", "False", "module 'robust_gan' has no attribute 'nosuch'"]


def test_type_checkers_see_every_public_name():
    import robust_gan

    (block,) = (node for node in ast.parse((ROOT / "robust_gan/__init__.py").read_text()).body
                if isinstance(node, ast.If))  # fmt: skip
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert {*seen, "__version__"} == set(robust_gan.__all__)
    homes = {name: f"robust_gan.{home}" for name, home in robust_gan._HOME_OF.items()}
    assert seen == homes | dict.fromkeys(robust_gan._MODULES, "robust_gan")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (UserError("seed must be\n  at least 0"), "error: seed must be at least 0\n"),
        (DataError("no data"), "error: no data\n"),
        (CheckpointError("no checkpoint"), "error: no checkpoint\n"),
        (PermissionError(errno.EACCES, "Permission denied", "/a"), "error: /a cannot be read or written (permission"),
        (PermissionError(), "error: a file cannot be read or written (permission denied)"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/a"),
            "error: /a cannot be written (no space left on device)",
        ),
        (OSError(errno.EROFS, "Read-only file system"), "error: a file cannot be written (read-only file system)"),
    ],
)
def test_what_a_user_can_put_right_is_one_sentence_and_exit_code_2(capsys, error, sentence):
    def main(argv):
        raise error

    assert cli.guard(main, ["train.py"]) == 2
    heard = capsys.readouterr()
    assert heard.out == ""
    assert heard.err.startswith(sentence)
    assert heard.err.count("\n") == 1


@pytest.mark.parametrize("error", [KeyError("a"), RuntimeError("a"), ValueError("a"), OSError(errno.EIO, "a")])
def test_what_is_our_mistake_keeps_its_traceback(error):
    def main(argv):
        raise error

    with pytest.raises(type(error)):
        cli.guard(main, ["train.py"])


def test_ctrl_c_before_there_is_anything_to_save_ends_without_a_traceback(capsys):
    def main(argv):
        raise KeyboardInterrupt

    assert cli.guard(main, ["train.py"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


@pytest.mark.packaging
def test_a_reader_that_has_had_enough_is_no_mistake():
    program = "from robust_gan import cli\n" \
              "cli.run(lambda argv: [print('line', flush=True) for _ in range(99999)] and 0)"  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    process.stdout.close()
    assert (process.wait(timeout=60), process.stderr.read()) == (0, "")
    process.stderr.close()


SEEN = """
from robust_gan.config import Config
def get_config(text=""):
    config = Config(seed=len(text))
    return config
"""
SHOW = """
import json
from absl import flags
from ml_collections import config_flags
from robust_gan import cli, config
_CONFIG = config_flags.DEFINE_config_file("config", None, "The config.")
_EPSILON = flags.DEFINE_float("epsilon", None, "A number.")
_NAME = flags.DEFINE_string("name", "", "A text.")
def main(argv):
    print(json.dumps([config.to_dict(cli.read_config(_CONFIG.value)), _EPSILON.value, _NAME.value]))
cli.run(main)
"""


@pytest.fixture
def show(launch, tmp_path):
    """Runs a launcher that prints its flags; the config is given."""
    import json

    (tmp_path / "seen.py").write_text(SEEN)
    (tmp_path / "show.py").write_text(SHOW)

    def run(*arguments, config="seen.py"):
        ended = launch(tmp_path / "show", f"--config={tmp_path}/{config}", *arguments)
        assert (ended.code, ended.err) == (0, "")
        return json.loads(ended.out)

    return run


def test_fields_are_set_and_what_follows_the_colon_reaches_the_config(show):
    config, epsilon, name = show(
        "--config.batch_size=32", "--config.threat.epsilon", "0.25", "--config.classifier.optimizer.decay_steps=(3, 5)",
        "-config.adversary.name=none", config="seen.py:abc",
    )  # fmt: skip
    assert (config["seed"], config["batch_size"], config["threat"]["epsilon"]) == (3, 32, 0.25)
    assert (config["adversary"]["name"], config["classifier"]["optimizer"]["decay_steps"]) == ("none", [3, 5])
    assert (epsilon, name) == (None, "")


def test_a_fraction_is_a_number_where_a_number_is_wanted(show):
    config, epsilon, name = show("--config.threat.epsilon=8/255", "--epsilon=4/255", "--name=8/255")
    assert (config["threat"]["epsilon"], epsilon, name) == (8 / 255, 4 / 255, "8/255")


def test_a_file_of_flags_is_as_good_as_the_command_line(show, tmp_path):
    (tmp_path / "more").write_text("--epsilon=4/255\n")
    (tmp_path / "flags").write_text(f"# Seen.\n--config.threat.epsilon=8/255\n--flagfile={tmp_path}/more\n--name=a\n")
    config, epsilon, name = show(f"--flagfile={tmp_path}/flags", "--name=b")
    assert (config["threat"]["epsilon"], epsilon, name) == (8 / 255, 4 / 255, "b")


@pytest.mark.parametrize("script", ["train", "evaluate", "prepare_data"])
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--flagfile={tmp}/nosuch"],
            r"the file '\S+/nosuch' of --flagfile cannot be read \(no such file or directory\)",
        ),
        (["--flagfile", "{tmp}"], r"the file '\S+' of --flagfile cannot be read \(is a directory\): give one with"),
        (["--flagfile={tmp}/nested"], r"the file '\S+/nosuch' of --flagfile cannot be read"),
        (["--flagfile={tmp}/binary"], r"a file of --flagfile is no text \(.*\): give one with a flag on each line"),
        (["--flagfile={tmp}/unknown"], r"Unknown command line flag 'nosuch'"),
        (["--flagfile"], r"--flagfile with no argument: see --help"),
    ],
)
def test_a_file_of_flags_that_cannot_be_read(launch, tmp_path, script, arguments, sentence):
    (tmp_path / "nested").write_text(f"--flagfile={tmp_path}/nosuch\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "unknown").write_text("--nosuch=1\n")
    ended = launch(script, *(argument.format(tmp=tmp_path) for argument in arguments))
    assert (ended.code, ended.out) == (2, "")
    assert re.fullmatch(rf"error: {sentence}[^\n]*\n", ended.err)


def test_a_field_in_a_file_of_flags_is_checked_like_one_on_the_command_line(launch, tmp_path):
    (tmp_path / "flags").write_text(f"{CONFIG}\n--config.nosuch=1\n")
    ended = launch("train", f"--flagfile={tmp_path}/flags")
    assert ended.code == 2
    assert ended.err.startswith("error: the configuration has no field nosuch: the fields are seed, data, threat,")


@pytest.mark.parametrize(
    ("field", "end"),
    [
        ("epsilon", "init_players; is it threat.epsilon or classifier.ibp.epsilon?"),
        ("threat.epsilno", "norm, epsilon; is it threat.epsilon or classifier.ibp.epsilon?"),
        (
            "classifier.learning_rate",
            "is it classifier.optimizer.learning_rate or adversary.generator.optimizer.learning_rate?",
        ),
        ("nosuch", "init_players"),
    ],
)
def test_a_field_that_is_elsewhere_is_named(launch, field, end):
    ended = launch("train", CONFIG, f"--config.{field}=1")
    assert ended.code == 2
    assert ended.err.startswith(f"error: the configuration has no field {field}: ")
    assert ended.err.endswith(f"{end}\n")


def test_launchers_do_not_disturb_one_another_in_these_tests(launch):
    for _ in range(2):
        for script in ("train", "evaluate"):
            assert launch(script, "--num_devices=x").code == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", "{fast} {spread}={cores}"),
        ("--xla_force_host_platform_device_count=3", "--xla_force_host_platform_device_count=3 {fast}"),
        ("--xla_cpu_experimental_ynn_fusion_type=", "--xla_cpu_experimental_ynn_fusion_type= {spread}={cores}"),
    ],
)
def test_the_compiler_is_told_what_the_user_has_not(given, expected):
    program = """
import os
from robust_gan.cli import memory, xla_flags
xla_flags.set_flags(spread=True)
flags = os.environ["XLA_FLAGS"]
xla_flags.set_flags(spread=True)
assert os.environ["XLA_FLAGS"] == flags
print(flags)
import jax
xla_flags.set_flags()
assert os.environ["XLA_FLAGS"] == flags
assert jax.numpy.ones(2).sum() == 2  # An unknown flag would have ended the process.
"""
    environment = {**os.environ, "XLA_FLAGS": given}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    names = {"fast": xla_flags.FAST_CONVOLUTIONS, "spread": xla_flags.SPREAD, "cores": len(os.sched_getaffinity(0))}
    assert ended.stdout.strip() == expected.format(**names)


def test_a_flag_that_this_jaxlib_does_not_know_is_not_given(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    flags = [xla_flags.FAST_CONVOLUTIONS, "--xla_cpu_no_such_flag=1", f"{xla_flags.FAST_CONVOLUTIONS}_at_all"]
    assert [xla_flags._is_known(flag) for flag in flags] == [True, False, False]
    monkeypatch.setattr(xla_flags.subprocess, "run", None)  # Each is asked for once.
    assert [xla_flags._is_known(flag) for flag in flags] == [True, False, False]
    assert len(list((tmp_path / "robust_gan" / "flags").iterdir())) == 3


LARGE_PAGES = """
import os, pathlib, sys
from robust_gan.cli import memory
memory._MODE = pathlib.Path(sys.argv[1])
print(os.getpid(), os.environ.get("GLIBC_TUNABLES"))
memory.use_large_pages()
print(sys.argv[2:], sys.stdin.read())
"""


@pytest.mark.packaging
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="large pages are glibc's")
@pytest.mark.parametrize(("mode", "starts"), [("always [madvise] never", 2), ("[always] madvise never", 1), (None, 1)])
def test_a_program_starts_again_with_large_pages_where_they_are_given_on_request(tmp_path, mode, starts):
    if mode:
        (tmp_path / "mode").write_text(mode)
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    ended = subprocess.run(
        [sys.executable, "-c", LARGE_PAGES, str(tmp_path / "mode"), "an argument"],
        env=environment, input="input", capture_output=True, text=True, check=True,
    )  # fmt: skip
    *started, last = ended.stdout.splitlines()
    tunables = [None, "glibc.malloc.hugetlb=1"][:starts]
    assert [line.split()[1] for line in started] == list(map(str, tunables))
    assert len({line.split()[0] for line in started}) == 1  # The same process.
    assert last == "['an argument'] input"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc_trim is glibc's")
def test_freed_memory_is_returned_after_a_long_compilation(monkeypatch):
    trimmed, listeners = [], []
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: types.SimpleNamespace(malloc_trim=trimmed.append))
    with monkeypatch.context() as patch:
        patch.setattr(jax.monitoring, "register_event_duration_secs_listener", listeners.append)
        memory.return_after_compiling.__wrapped__()
    jax.monitoring.register_event_duration_secs_listener(*listeners)
    try:
        jax.jit(lambda x: x + 1)(1.0)
        assert trimmed == []
        monkeypatch.setattr(memory, "_LONG", 0.0)
        jax.jit(lambda x: x + 2)(1.0)
        assert set(trimmed) == {0}  # A command run by another test may have registered a listener, too.
    finally:
        jax.monitoring.unregister_event_duration_listener(*listeners)


@pytest.mark.slow
def test_what_was_compiled_is_found_by_the_next_process(tmp_path):
    program = """
import os
from robust_gan.cli import memory, xla_flags
xla_flags.set_cache()
import jax
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
print(os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.jit(lambda x: x + 1)(1.0)
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION")}

    def folder_after(**variables):
        ended = subprocess.run(
            [sys.executable, "-c", program], env=environment | variables, capture_output=True, text=True, check=False
        )
        assert "warn" not in ended.stderr.lower()
        return ended.stdout.strip()

    folder = pathlib.Path(folder_after(XDG_CACHE_HOME=str(tmp_path)))
    assert folder.parent == tmp_path / "robust_gan"
    kept = {path.name for path in folder.iterdir() if path.name.endswith("-cache")}
    assert kept
    assert pathlib.Path(folder_after(XDG_CACHE_HOME=str(tmp_path))) == folder
    assert {path.name for path in folder.iterdir() if path.name.endswith("-cache")} == kept
    # The user's own choice counts, and a home that cannot be written to stops nobody.
    assert folder_after(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own")) == str(tmp_path / "own")
    (tmp_path / "file").touch()
    assert folder_after(XDG_CACHE_HOME=str(tmp_path / "file")) == ""
