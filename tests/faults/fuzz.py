"""Fuzzed command lines and configs: one sentence, no traceback, no hang over 10 s, nothing written.

    python tests/faults/fuzz.py [--examples=500] [--seed=0]

Command lines of `train.py` and `evaluate.py` are drawn by hypothesis: fields of the configuration and flags that there
are and that there are not, with values that may be right, and configs that are no Python, no text, or raise. What is
right in all respects is stopped where the run would claim its folder, or the evaluation attack its first image.
"""

import argparse
import collections
import dataclasses
import importlib
import pathlib
import re
import sys
import tempfile
import time
import typing

import smallest  # Before the libraries.

# isort: split
import conftest
import hypothesis
from hypothesis import strategies as st

from robust_gan import parallel, training
from robust_gan.config import Config
from robust_gan.errors import UserError
from robust_gan.storage import workdir
from robust_gan.training import dry_run

SECONDS = 10
REACHED = "everything is in order"
WHOLE = "stopped where it would write"


def fields(kind=Config, prefix=""):
    for name, of in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(of):
            yield from fields(of, f"{prefix}{name}.")
        else:
            yield prefix + name


TEXT = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=12)
NUMBERS = st.one_of(st.integers(-3, 300), st.integers(), st.floats(), st.sampled_from(["8/255", "1/0", "1e999"]))
WORDS = ["", "none", "pgd", "sgd", "adam", "generator", "linf", "l2", "True", "digits", "tiny", "digits_cnn",
         "gradient", "cosine", "()", "(1,)", "(1,2)", "('gradient',)", "[", "None", "..", "/", "../x",
         "-1"]  # fmt: skip
VALUES = st.one_of(NUMBERS.map(str), st.sampled_from(WORDS), TEXT)
FIELDS = st.one_of(st.sampled_from(sorted(fields())), TEXT)
OVERRIDES = st.builds("--config.{}={}".format, FIELDS, VALUES)
TRAIN_FLAGS = st.one_of(
    OVERRIDES,
    OVERRIDES,
    st.builds("--{}={}".format, st.sampled_from(["platform", "num_devices", "on_nan", "progress", "config"]), VALUES),
    st.sampled_from(["--dry_run", "--print_config", "--tensorboard", "--help", "--flagfile=/nosuch", "--"]),
    TEXT,
)  # fmt: skip
EVALUATE_NAMES = ["checkpoint", "surrogates", "suite", "attacks", "sequential", "data", "split", "num_examples", "norm",
                  "epsilon", "batch_size", "seed", "data_dir", "platform", "num_devices", "plots", "model"]  # fmt: skip
EVALUATE_FLAGS = st.one_of(
    st.builds("--{}={}".format, st.sampled_from(EVALUATE_NAMES), VALUES),
    st.sampled_from(["--checkpoint={run}@7", "--checkpoint={run}@best", "--attacks=fgsm,pgd3", "--suite=quick"]),
    TEXT,
)  # fmt: skip
METHODS = st.sampled_from(["", ":none", ":pgd", ":generator", ":trades", ":nosuch", ":", ":pgd/short"])
PROGRAM = "from robust_gan.config import *\ndef get_config(method=''):\n    {}\n"
BODIES = st.one_of(
    st.builds("return Config({}={})".format, st.sampled_from([field.name for field in dataclasses.fields(Config)]),
              st.one_of(st.floats().map("float('{}')".format), st.integers().map(str), TEXT.map(repr))),
    st.sampled_from([
        "raise SystemExit(3)", "raise KeyboardInterrupt", "return 3", "return Config", "1/0", "import nosuch",
        "raise Exception", "raise OSError(2, 'no', 'f')", "return {}", "assert False", "yield 1", "exit()",
        "raise MemoryError", "return get_config()",
    ]),
    TEXT,
)  # fmt: skip
CONFIGS = st.one_of(
    BODIES.map(lambda body: PROGRAM.format(body).encode()),
    TEXT.map(str.encode),
    st.binary(max_size=40),
    st.sampled_from([b"raise SystemExit(1)", b"\xff\xfe", b"def get_config(", b"import sys; sys.exit()"]),
)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    outcomes, slowest, wrong, began = collections.Counter(), [0.0], [], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        training.train(smallest.config(num_steps=2), folder / "run", devices=parallel.find_devices(num_devices=1),
                       progress=False, log_fn=lambda _: None)  # fmt: skip
        workdir.lock = reached
        dry_run.measure = reached
        importlib.import_module("robust_gan.evaluation.evaluate").evaluate_transfer = reached
        config_file = folder / "config.py"

        def one(script, flags, program, method, at):
            if program is not None:
                config_file.write_bytes(program)
            given = f"--config={config_file if program is not None else 'configs/digits.py'}{method}"
            given = [given, f"--workdir={folder}/new"] if script == "train" else []
            flags = [flag.replace("{run}", f"{folder}/run") for flag in flags]
            line = [*flags[:at], *given, *flags[at:]]
            before, started = tree(folder), time.monotonic()
            try:
                ended = conftest._launch(script, *line)
                outcome = judge(ended)
            except BaseException as error:
                outcome = f"RAISED {type(error).__name__}: {error}"
            taken = time.monotonic() - started
            if outcome != WHOLE:  # Else the data were read and the networks compiled.
                slowest.append(taken)
                if taken > SECONDS:
                    outcome = f"HUNG {taken:.0f} s"
            if tree(folder) != before:
                outcome = "WROTE"
            outcomes[outcome if not outcome.isupper() and outcome[:4].islower() else "WRONG"] += 1
            if outcome[:4].isupper():
                wrong.append((script, line, program, outcome))

        train = st.tuples(st.just("train"), st.lists(TRAIN_FLAGS, max_size=4), st.none() | CONFIGS, METHODS)
        evaluate = st.tuples(st.just("evaluate"), st.lists(EVALUATE_FLAGS, max_size=4), st.none(), st.just(""))
        strategy = st.tuples(train | train | evaluate, st.integers(0, 4))
        run = hypothesis.given(strategy)(lambda drawn: one(*drawn[0], drawn[1]))
        run = hypothesis.seed(arguments.seed)(run)
        hypothesis.settings(
            max_examples=arguments.examples, deadline=None, database=None, phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )(run)()  # fmt: skip
    smallest.report("fuzz", {
        **dict(sorted(outcomes.items())), "in all": outcomes.total(), "slowest refusal, s": f"{max(slowest):.1f}",
        "seconds": round(time.monotonic() - began),
    })  # fmt: skip
    for case in wrong:
        print("WRONG", *case, sep="\n  ")
    return bool(wrong)


def reached(*_, **__):
    raise UserError(REACHED)


def judge(ended):
    """Says what a launcher did, in capitals where that is wrong."""
    if "Traceback" in ended.err + ended.out:
        return "TRACEBACK " + ended.err[-300:]
    if ended.code == 0 and not ended.err:
        return "help, or the configuration, printed"
    if ended.code == 130 and ended.err == "error: interrupted\n":
        return "interrupted"
    if ended.code != 2 or not re.fullmatch(r"error: [^\n]+\n", ended.err):
        return f"CODE {ended.code} {ended.err[-300:]!r}"
    return WHOLE if REACHED in ended.err else "refused in one sentence"


def tree(folder):
    return {path: path.read_bytes() for path in folder.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts and path.name != "config.py"}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
