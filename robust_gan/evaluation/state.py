"""The saved state of an evaluation, with which a stopped one continues."""

import copy
import dataclasses
import datetime
import functools
import hashlib
import inspect
import io
import json
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from robust_gan import attacks as attacks_lib
from robust_gan import parallel
from robust_gan.attacks.retrained_generator import DESIGNS, train_generator
from robust_gan.data.array_files import chunks, take
from robust_gan.errors import UserError
from robust_gan.evaluation import identity
from robust_gan.evaluation.identity import Trait
from robust_gan.evaluation.models import GENERATOR, Model
from robust_gan.evaluation.sharded_model import ShardedModel, shard_models
from robust_gan.storage import files, paths, workdir
from robust_gan.types import ThreatModel
from robust_gan.version import __version__

SECONDS = 30.0
"""Seconds between two writes: what a kill can lose."""

PART = 2**25
"""Bytes of adversarial images that are kept in memory before they are written."""

LAYOUT = 3
"""Number of the layout of state files; it grows when the names or the meaning of their arrays change."""

_LAYOUT = "layout"
_DONE = "done: "
_RUNS, _IDENTITY = "the runs", "identity"
_VALUE = "value: "
_INDICES, _VALUES = "indices", "values: "


@dataclasses.dataclass
class _State:
    """What all prefixes of one `EvaluationState` share: the time of the last write, and the run."""

    written: float = dataclasses.field(default_factory=time.monotonic)
    pending: bool = False
    anew: bool = True
    files: int = 0
    follows: bool = False
    run: dict[str, Any] | None = None
    began: float = 0.0
    listed: bool = False


class Rows:
    """Images of which some are replaced, such as adversarial images; only the replaced ones need memory or disk space.

    Args:
        images: uint8, or float in [0, 1], `[N, H, W, C]`; read where no image replaces them.
        write: Writes indices and images, and returns a function that reads the images; None to keep them in memory.

    >>> rows = Rows(np.zeros((3, 2), np.float32))
    >>> rows[np.array([2])] = np.ones((1, 2), np.float32)
    >>> rows[1:].tolist()
    [[0.0, 0.0], [1.0, 1.0]]
    """

    dtype = np.dtype(np.float32)

    def __init__(
        self, images: np.ndarray, write: Callable[[np.ndarray, np.ndarray], Callable[[], np.ndarray]] | None = None
    ) -> None:
        """Stores the images."""
        self._images, self._write = images, write
        self.shape = images.shape
        self._parts: list[Callable[[], np.ndarray]] = []
        self._part, self._row = np.full(len(images), -1, np.int32), np.zeros(len(images), np.int32)
        self._unwritten: list[tuple[np.ndarray, np.ndarray]] = []

    def __len__(self) -> int:
        """Returns N."""
        return len(self._images)

    def __setitem__(self, indices: np.ndarray, values: np.ndarray) -> None:
        """Replaces images."""
        if len(indices):
            self._unwritten.append((np.array(indices), np.array(values, np.float32)))
            if sum(values.nbytes for _, values in self._unwritten) >= PART:
                self.flush()

    def __getitem__(self, indices: np.ndarray | slice) -> np.ndarray:
        """Returns images, float32 in [0, 1]."""
        self.flush()
        positions = np.arange(len(self))[indices]
        found, parts = take(self._images, positions), self._part[positions]
        for number in np.unique(parts[parts >= 0]):
            found[parts == number] = self._parts[number]()[self._row[positions[parts == number]]]
        return found

    def flush(self) -> None:
        """Writes the images that were set since the last call."""
        if self._unwritten:
            indices, values = (np.concatenate(arrays) for arrays in zip(*self._unwritten, strict=True))
            self.add(indices, (lambda: values) if self._write is None else self._write(indices, values))
            self._unwritten = []

    def add(self, indices: np.ndarray, read: Callable[[], np.ndarray]) -> None:
        """Replaces images by those that a function reads.

        Args:
            indices: Their positions.
            read: Returns them.
        """
        self._part[indices], self._row[indices] = len(self._parts), np.arange(len(indices))
        self._parts.append(read)


def parts_of(path: epath.Path) -> epath.Path:
    """Returns the folder with the rows of the large arrays of a state file.

    >>> parts_of(epath.Path("report/scores.npz")).name
    'scores.parts'
    """
    return path.with_suffix(".parts")


class EvaluationState:
    """Results image by image, under names, and for which images each is known.

    Args:
        path: An `.npz` file, read if it exists; written every `SECONDS` and by `flush`. Large arrays are beside it, see
            `parts_of`. None to keep everything in memory.

    Raises:
        UserError: The file is not a state file.

    >>> state = EvaluationState()
    >>> robust, done = state.part("pgd10", 3)
    >>> robust[1], done[1] = True, True
    >>> state.part("pgd10", 3)[0].tolist()
    [False, True, False]
    """

    def __init__(self, path: epath.PathLike | None = None) -> None:
        """Reads the file."""
        self._path = None if path is None else epath.Path(path)
        self._arrays: dict[str, np.ndarray] = {}
        self._rows: dict[str, Rows] = {}
        self._prefix, self._state = "", _State()
        if self._path is None:
            return
        if self._path.exists():
            try:
                self._arrays = files.read_arrays(self._path)
            except files.UnreadableError as error:
                raise UserError(
                    f"{self._path} is damaged ({error}): remove it, and the evaluation begins anew"
                ) from error
            if self._arrays and int(self._arrays.get(_LAYOUT, np.zeros(()))) != LAYOUT:
                raise UserError(
                    f"{self._path} is a state file of an older layout, which cannot be continued: remove it, or "
                    "give --overwrite, and the evaluation starts again"
                )
            self._state.anew = False
            self._state.files = max((int(file.stem) for file in self._files()), default=0)

    def part(self, name: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the results of a name and for which images they are known, to be filled in place.

        Args:
            name: The name.
            count: N, images.

        Returns:
            bool `[N]` each; all False at first.
        """
        return self.array(name, np.zeros(count, bool)), self.array(_DONE + name, np.zeros(count, bool))

    def array(self, name: str, start: np.ndarray) -> np.ndarray:
        """Returns the array of a name, to be filled in place.

        Args:
            name: The name.
            start: Its first value; copied.

        Raises:
            UserError: The one on disk has another shape.
        """
        found = self._arrays.setdefault(self._prefix + name, np.array(start))
        if found.shape != start.shape:
            raise UserError(f"{self._path} is of another number of images: remove it, and the evaluation begins anew")
        return found

    def rows(self, name: str, images: np.ndarray) -> Rows:
        """Returns images of which some will be replaced; those that were replaced before are read when they are needed.

        Args:
            name: The name, without the prefix of `under`.
            images: uint8, or float in [0, 1], `[N, H, W, C]`.

        Raises:
            UserError: The replaced images on disk have another shape, or are damaged.
        """
        if name not in self._rows:
            in_memory = self._path is None and not self._state.follows
            found = Rows(images, None if in_memory else functools.partial(self._write_rows, name))
            for file in () if self._state.anew else self._files():
                part = _read_rows(file)
                if _VALUES + name not in part:
                    continue
                if part[_VALUES + name].shape[1:] != images.shape[1:] or part[_INDICES].max(initial=0) >= len(images):
                    raise UserError(f"{self._parts()} is of other images: remove it, and the evaluation begins anew")
                found.add(part[_INDICES], functools.partial(_read_values, file, name))
            self._rows[name] = found
        return self._rows[name]

    def _write_rows(self, name: str, indices: np.ndarray, values: np.ndarray) -> Callable[[], np.ndarray]:
        if self._state.follows:  # The primary process writes them and reads them.
            return lambda: values[:0]
        self._begin()
        self._parts().mkdir(exist_ok=True)
        self._state.files += 1
        file = self._parts() / f"{self._state.files:06d}.npz"
        with workdir.open_atomically(file) as opened:
            np.savez(opened, **{_INDICES: indices, _VALUES + name: values})  # type: ignore[arg-type]
        return functools.partial(_read_values, file, name)

    def _begin(self) -> None:
        """Removes the images of an earlier state file, which was removed."""
        if self._state.anew and paths.exists(self._parts()):
            self._parts().rmtree()
        self._state.anew = False

    def _files(self) -> list[epath.Path]:
        parts = None if self._path is None else self._parts()
        if parts is None or not paths.exists(parts):
            return []
        return sorted(
            (file for file in parts.iterdir() if re.fullmatch("[0-9]+[.]npz", file.name)), key=lambda f: f.name
        )

    def differs(
        self, models: Sequence[Model | ShardedModel], images: np.ndarray, labels: np.ndarray, threat: ThreatModel,
        seed: int, *, attacks: Sequence[str] = (), batch_size: int = 500, devices: Sequence[jax.Device] | None = None,
    ) -> str:  # fmt: skip
        """Returns in what the evaluation of this state differs from another one; an empty state becomes that one's.

        Models are compared by their fingerprints (`identity.check_model`), since one of the same name may have changed.

        Args:
            models: The models under attack and the surrogates.
            images: uint8 or float `[N, H, W, C]`.
            labels: `[N]`.
            threat: The threat model.
            seed: Seed of the attacks.
            attacks: Names of the attacks.
            batch_size: Images at once; compared if a model's logits depend on the batch.
            devices: The devices; None for all.

        Returns:
            The first difference; empty if there is none.

        >>> from robust_gan import LinfThreat
        >>> state, images, labels = EvaluationState(), np.zeros((2, 2, 2, 1), np.float32), np.zeros(2, int)
        >>> state.differs([], images, labels, LinfThreat(0.1), 0), state.differs([], images, labels, LinfThreat(0.2), 0)
        ('', 'another threat model')
        """
        if other := self._another_version():
            return other
        devices = parallel.find_devices() if devices is None else devices
        functions = {
            name: made for model in models if isinstance(model, ShardedModel) for name, made in model.attacks.items()
        }
        norm = np.array([threat.norm == "l2", float(threat.epsilon), *threat.bounds], np.float64)
        parts = [
            ("other images", Trait("", _digest(images))),
            ("other labels", Trait("", _digest(labels.astype(np.int64)))),
            ("another threat model", Trait("", norm)),
            ("another seed", Trait("", np.array(seed))),
            *((f"another {name}", Trait("", np.array(_described(name, functions)))) for name in attacks),
        ]
        for what, trait in parts:
            if not self._agrees(what, trait):
                return what
        sharded = shard_models(models, images, labels, devices)
        for name, made in functions.items() if sharded else ():
            for trait in identity.check_attack(sharded[0], made, images, labels, threat):
                if not self._agrees(f"another {name}: {trait.name}", trait):
                    return f"another {name}"
        for model in sharded:
            for trait in identity.check_model(model, images, labels, threat, batch_size, len(devices)):
                if not self._agrees(f"another {model.name}: {trait.name}", trait):
                    by_batch = f"{model.name} in batches of another size, on which its logits depend"
                    return by_batch if trait.name == "batches" else f"another {model.name}"
        return ""

    def belong(self, *evaluation: Any, **settings: Any) -> None:
        """Checks that the state is of an evaluation; the arguments are those of `differs`.

        Raises:
            UserError: It is of another one.

        >>> from robust_gan import LinfThreat
        >>> EvaluationState().belong([], np.zeros((2, 2, 2, 1), np.float32), np.zeros(2, int), LinfThreat(0.1), 0)
        """
        if what := self.differs(*evaluation, **settings):
            name = "this state" if self._path is None else self._path
            raise UserError(f"{name} is of {what}: give a new file for this evaluation")

    def _another_version(self) -> str:
        """Returns the difference of the versions, with which constants, algorithms and results may change."""
        here = f"robust_gan {__version__}, jax {jax.__version__}"
        there = str(self._arrays.setdefault("of the versions", np.array(here)))
        return "" if there == here else f"another version ({there}; this is {here})"

    def _agrees(self, what: str, trait: Trait) -> bool:
        return trait.agrees(self._arrays.setdefault(f"{self._prefix}of {what}", np.array(trait.value)))

    def under(self, prefix: str) -> "EvaluationState":
        """Returns the same state with a prefix before every name, for one of several evaluations."""
        part = copy.copy(self)
        part._prefix = self._prefix + prefix
        return part

    def remember(self, name: str, value: Any) -> None:
        """Stores a JSON-able value under a name.

        >>> state = EvaluationState()
        >>> state.remember("alarms", [["randomised", False]])
        >>> state.recall("alarms"), state.recall("other")
        ([['randomised', False]], None)
        """
        self._arrays[_VALUE + name] = np.array(json.dumps(value))
        self.save()

    def recall(self, name: str) -> Any:
        """Returns the value that `remember` stored under a name; None if there is none."""
        return json.loads(str(self._arrays.get(_VALUE + name, "null")))

    def identify(self, identity: dict[str, Any]) -> dict[str, Any]:
        """Returns the identity of the evaluation in this state; in an empty state, sets it first.

        Args:
            identity: JSON-able.

        >>> state = EvaluationState()
        >>> state.identify({"seed": 0}), state.identify({"seed": 1})
        ({'seed': 0}, {'seed': 0})
        """
        return json.loads(str(self._arrays.setdefault(_IDENTITY, np.array(json.dumps(identity)))))

    def start(self, run: dict[str, Any]) -> None:
        """Starts a run; results until `stop` belong to it.

        Args:
            run: Its description, JSON-able.
        """
        self._state.run, self._state.began = run, time.perf_counter()

    def stop(self) -> None:
        """Ends the run."""
        self._state.run = None

    def runs(self) -> list[dict[str, Any]]:
        """Returns the runs with results, each with the time `created` of its last result and the `seconds` until it.

        >>> state = EvaluationState()
        >>> state.start({"device": "cpu"})
        >>> state.runs()
        []
        >>> state.save()
        >>> [run["device"] for run in state.runs()]
        ['cpu']
        """
        return json.loads(str(self._arrays.get(_RUNS, "[]")))

    def save(self) -> None:
        """Notes new results; writes them if the last write is `SECONDS` ago."""
        state = self._state
        if state.run is not None:
            runs = self.runs()
            if not state.listed:
                runs.append({})
                state.listed = True
            created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            runs[-1] = {**state.run, "created": created, "seconds": round(time.perf_counter() - state.began, 3)}
            self._arrays[_RUNS] = np.array(json.dumps(runs))
        state.pending = True
        if time.monotonic() - state.written >= SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes new results, if there are any, atomically."""
        if not self._state.pending:
            return
        if self._path is not None:
            self._begin()
            for rows in self._rows.values():
                rows.flush()  # Before the file that marks them as known.
            workdir.write_bytes(self._path, _packed(self._arrays | {_LAYOUT: np.array(LAYOUT)}))
        self._state.pending, self._state.written = False, time.monotonic()

    def shared(self) -> "EvaluationState":
        """Returns the state of the primary process in every process; only the primary one writes it.

        >>> state = EvaluationState()
        >>> state.shared() is state
        True
        """
        if parallel.process_index_and_count()[1] == 1:
            return self
        content = parallel.broadcast_bytes_from_primary(lambda: _packed(self._arrays))
        if not parallel.is_primary():
            self._path, self._arrays = None, files.unpack_arrays(content)
            self._state.follows = True
        return self

    def _parts(self) -> epath.Path:
        assert self._path is not None
        return parts_of(self._path)


def _described(name, functions):
    """Returns the function and the constants of an attack's name."""
    if name in functions:
        return _signature(functions[name])
    if name == GENERATOR:
        return name
    if name in DESIGNS:
        return f"{DESIGNS[name]} {_signature(train_generator)}"
    return _signature(attacks_lib.by_name(name))


def _signature(function):
    inner = function
    while hasattr(inner, "func"):
        inner = inner.func
    inner = inner if hasattr(inner, "__qualname__") else type(inner)  # An object that is called has no name.
    text = f"{inner.__module__}.{inner.__qualname__}{inspect.signature(function)}"
    return re.sub(" at 0x[0-9a-f]+", "", text)


def _digest(array: np.ndarray) -> np.ndarray:
    digest = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
    for part in chunks(array):
        digest.update(np.ascontiguousarray(part).data)
    return np.frombuffer(digest.digest(), np.uint8).astype(np.int16)


def _read_rows(file: epath.Path) -> dict[str, np.ndarray]:
    try:
        found = files.read_arrays(file)
        if _INDICES not in found:
            raise files.UnreadableError(f"it lacks {_INDICES}")
        return found
    except (files.UnreadableError, FileNotFoundError) as error:
        state = file.parent.with_suffix(".npz")
        raise UserError(f"{file} is damaged ({error}): remove {state}, and the evaluation begins anew") from error


def _read_values(file: epath.Path, name: str) -> np.ndarray:
    return _read_rows(file)[_VALUES + name]


def _packed(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
