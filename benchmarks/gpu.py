"""The rows that need a GPU, within a budget of seconds; started by `gpu.sh`.

All processes start at once and compile side by side, JAX's one after the other, since they time kernels to choose among
them. What is measured is measured alone: a row waits until nobody compiles with the GPU.
"""

import argparse
import sys
import tempfile
import threading
import time
from pathlib import Path

import measuring
import serving
import step

HERE = Path(__file__).parent
ITERATIONS = 200_000
STANDING = {"apgd_ce": 0.85, "apgd_t": 0.52, "fab_t": 0.50, "square": 0.50}
"""Share of the images that each part of AutoAttack meets with a robust ResNet-18 on CIFAR-10: an assumption."""


class Lane(threading.Thread):
    """Starts peers one after the other, each when the one before is ready; pauses while something is measured."""

    def __init__(self, makers: list, end: float) -> None:
        """Takes functions without arguments that start a peer, and when all ends."""
        super().__init__(daemon=True)
        self._makers, self._end = makers, end
        self.peers: dict[str, serving.Peer] = {}
        self._wanted, self._quiet = threading.Event(), threading.Lock()
        self._settled = {name: threading.Event() for name, _ in makers}

    def run(self) -> None:
        """Goes through the peers."""
        for name, make in self._makers:
            while self._wanted.is_set():
                time.sleep(0.05)
            with self._quiet:
                if time.perf_counter() < self._end:
                    self.peers[name] = make()
                    try:
                        self.peers[name].ready(self._end - time.perf_counter())
                    except serving.LateError as error:
                        print(error, file=sys.stderr, flush=True)
                self._settled[name].set()

    def get(self, name: str, seconds: float) -> serving.Peer:
        """Waits for a peer; raises `LateError` where it does not come."""
        if not self._settled[name].wait(max(seconds, 0)) or name not in self.peers:
            raise serving.LateError(f"{name} was not ready in time")
        return self.peers[name]

    def __enter__(self) -> None:
        """Waits until nobody prepares, and keeps it so."""
        self._wanted.set()
        self._quiet.acquire()

    def __exit__(self, *_: object) -> None:
        """Lets the next one prepare."""
        self._wanted.clear()
        self._quiet.release()


class Bench:
    """The rows.

    Args:
        given: The command line.
    """

    def __init__(self, given: argparse.Namespace) -> None:
        """Starts what has to be compiled."""
        self.end, self.smoke, self.rounds = time.perf_counter() + given.budget, given.smoke, 1 if given.smoke else 5
        self.report = measuring.Report(given.output, "one GPU")
        self.logs = Path(tempfile.mkdtemp(prefix="benchmarks"))
        self.rows, self.again, self.budget = given.rows.split(","), set(), given.budget
        makers = {
            "step64": lambda: self.step_peer("jax_step.py", "ours 64", 64),
            "step512": lambda: self.step_peer("jax_step.py", "ours 512", 512),
            "wide512": lambda: self.step_peer("jax_step.py", "ours wide 512", 512, classifier="resnet20_wide", steps=5),
            "penalty64": lambda: self.step_peer("jax_step.py", "ours penalty 64", 64, penalty="exact"),
            "autoattack": self.attack_peer,
        }
        self.torch = {}
        for row, batch in (("step64", 64), ("step512", 512)):
            if row in self.rows:
                self.torch[row] = self.step_peer("torch_step.py", f"torch {batch}", batch, "--serve")
        self.lane = Lane([(row, makers[row]) for row in self.rows if row in makers], self.end)
        self.lane.start()

    def left(self) -> float:
        """Returns the seconds that are left."""
        return self.end - time.perf_counter()

    def step_peer(self, script: str, name: str, batch: int, *flags: str, **changes: str | int) -> serving.Peer:
        """Starts a step of the paper's nets in bfloat16."""
        chosen = {"classifier": "resnet20", "penalty": "none", "precision": "bfloat16", "batch": batch, "steps": 40}
        chosen |= {"steps": 20} if batch > 64 else {}
        chosen |= changes
        if self.smoke:
            chosen |= {"batch": 2, "steps": 2, "generator-steps": 1, "precision": "float32"}
        options = [f"--{key}={value}" for key, value in chosen.items()]
        return serving.Peer(name, [sys.executable, str(HERE / script), *flags, *options], log=self.logs / f"{name}.log")

    def attack_peer(self) -> serving.Peer:
        """Starts AutoAttack of a ResNet-18."""
        options = ["--network=resnet20", "--images=4"] if self.smoke else ["--network=resnet18", "--images=2048"]
        command = [sys.executable, str(HERE / "evaluate.py"), "--serve", *options]
        return serving.Peer("autoattack", command, log=self.logs / "autoattack.log")

    def run(self) -> None:
        """Measures row after row; what fails or is late is said, and the next one tried."""
        for row in self.rows:
            try:
                getattr(self, row)()
            except Exception as error:  # One row must not take the others with it.
                self.report.add(row, failed=f"{type(error).__name__}: {error}")
        for peer in (*self.torch.values(), *self.lane.peers.values()):
            peer.close()

    def step64(self) -> None:
        """Ours and PyTorch's step, 64 images; and how much one call of many steps saves."""
        ours = self._pair("step64")
        with self.lane:
            many, single = (ours.ask(self.left(), count=count) for count in (0, 2 if self.smoke else 40))
        self.report.add(
            "step64, calls of one step",
            seconds=single["seconds"],
            seconds_in_one_call=many["seconds"],
            share_of_time_between_calls=1 - many["seconds"] / single["seconds"],
            host_busy_in_one_call=many["cpu_seconds"] / many["seconds"],
        )

    def step512(self) -> None:
        """Ours and PyTorch's step, 512 images."""
        self._pair("step512")

    def wide512(self) -> None:
        """Ours with the wide classifier, 512 images."""
        self._alone("wide512")

    def penalty64(self) -> None:
        """The recipe of `configs/cifar10.py` in bfloat16, its penalty included, and the paper's iterations."""
        self._alone("penalty64")

    def graph64(self) -> None:
        """PyTorch's step of 64 images, replayed as one CUDA graph."""
        with self.lane:
            peer = self.torch["graph64"] = self.step_peer("torch_step.py", "torch graph 64", 64, "--serve", "--graph")
            peer.ready(self.left())
            self._report("graph64", [peer])

    def autoattack(self) -> None:
        """AutoAttack by its parts, and what 10,000 images would take."""
        peer = self.lane.get("autoattack", self.left())
        everybody = robust = 0.0
        for part, share in STANDING.items():
            with self.lane:
                answer = peer.ask(self.left(), part=part)
            self.report.add(f"autoattack {part}", **answer)
            everybody += 10_000 * answer["seconds_per_image"]
            robust += 10_000 * answer["seconds_per_image"] * share
        self.report.add(
            "autoattack standard, 10,000 images", seconds_if_all_stand=everybody, seconds_if_half_stand=robust
        )

    def _pair(self, row: str) -> serving.Peer:
        peers, twin = [self.lane.get(row, self.left())], self.torch[row]
        try:
            # Ours is measured alone rather than not at all, and once more when the twin has had its time.
            twin.ready(self.left() - (0 if row in self.again else 0.35 * self.budget))
            peers.append(twin)
        except serving.LateError as error:
            self.report.add(f"{row}, {twin.name}", failed=str(error))
            if row not in self.again and twin.runs():
                self.again.add(row)
                self.rows.append(row)
        self._report(row, peers)
        return peers[0]

    def _alone(self, row: str) -> None:
        self._report(row, [self.lane.get(row, self.left())])

    def _report(self, row: str, peers: list[serving.Peer]) -> None:
        if "graph" in row:
            self._measure(row, peers)
        else:
            with self.lane:
                self._measure(row, peers)

    def _measure(self, row: str, peers: list[serving.Peer]) -> None:
        for peer in peers:
            self.report.add(f"{row}, {peer.name}, ready", **peer.facts)
            peer.facts["matmul_flops_per_second"] = peer.ask(self.left(), matmul=True)["flops_per_second"]
        result = serving.alternate(peers, self.rounds, self.left())
        step.add_rows(self.report, peers, result)
        if peers[0].name.endswith("64"):
            hours = ITERATIONS * result[peers[0].name]["seconds"]["median"] / 3600
            self.report.add(f"{row}, {peers[0].name}: {ITERATIONS} iterations from the time of one", hours=hours)


ROWS = ("step64", "step512", "wide512", "autoattack", "penalty64", "graph64")


def main() -> None:
    """Reads the command line and runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", type=float, default=250, help="seconds, compilation included")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--output", help="a JSON file")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes")
    Bench(parser.parse_args()).run()


if __name__ == "__main__":
    main()
