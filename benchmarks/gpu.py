"""The rows that need a GPU, within a budget of seconds; started by `gpu.sh`.

PyTorch's twins start at once and compile on the processor's cores. Ours are compiled one after the other, since XLA
times kernels to choose among them, the next ones while a twin is waited for. What is measured is measured alone.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import measuring
import serving
import step

HERE = Path(__file__).parent
ITERATIONS = 200_000
REMAINING = {"apgd_ce": 0.85, "apgd_t": 0.52, "fab_t": 0.50, "square": 0.50}
"""Share of the images that each part of AutoAttack attacks, for a robust ResNet-18 on CIFAR-10: an assumption."""
GRAPHS = "--xla_gpu_enable_command_buffer=+CONVOLUTION --xla_gpu_graph_min_graph_size=1"
LOOPS = "--xla_gpu_enable_command_buffer=+CONVOLUTION,+WHILE,+CONDITIONAL --xla_gpu_graph_min_graph_size=1"
"""XLA records convolutions, and whole loops, as CUDA graphs, which the host launches at once (jaxlib 0.10 and 0.11)."""


class Bench:
    """The rows.

    Args:
        given: The command line.
    """

    def __init__(self, given: argparse.Namespace) -> None:
        """Starts the twins."""
        self.budget, self.smoke, self.rounds = given.budget, given.smoke, 1 if given.smoke else 3
        self.end = time.perf_counter() + given.budget
        self.report = measuring.Report(given.output, "one GPU")
        self.logs = Path(tempfile.mkdtemp(prefix="benchmarks"))
        self.rows, self.again = given.rows.split(","), set()
        self.makers = {
            "step64": lambda: self.step_peer("jax_step.py", "ours 64", 64),
            "step512": lambda: self.step_peer("jax_step.py", "ours 512", 512),
            "wide512": lambda: self.step_peer("jax_step.py", "ours wide 512", 512, classifier="resnet20_wide", steps=5),
            "loops64": lambda: self.step_peer("jax_step.py", "ours, loops as graphs, 64", 64, xla=LOOPS),
            "autoattack": self.attack_peer,
            "penalty64": lambda: self.step_peer("jax_step.py", "ours penalty 64", 64, penalty="exact"),
            "graphs64": lambda: self.step_peer("jax_step.py", "ours, graphs, 64", 64, xla=GRAPHS),
        }
        self.ours: dict[str, serving.Peer] = {}
        self.torch = {
            row: self.step_peer("torch_step.py", f"torch {batch}", batch, "--serve")
            for row, batch in (("step64", 64), ("step512", 512))
            if row in self.rows
        }

    def left(self) -> float:
        """Returns the seconds that are left."""
        return self.end - time.perf_counter()

    def step_peer(
        self, script: str, name: str, batch: int, *flags: str, xla: str = "", **changes: str | int
    ) -> serving.Peer:
        """Starts a step of the paper's nets in bfloat16."""
        chosen = {"classifier": "resnet20", "penalty": "none", "precision": "bfloat16", "batch": batch, "steps": 20}
        chosen |= {"steps": 10} if batch > 64 else {}
        chosen |= changes
        if self.smoke:
            chosen |= {"batch": 2, "steps": 2, "generator-steps": 1, "precision": "float32"}
        options = [f"--{key}={value}" for key, value in chosen.items()]
        command = [sys.executable, str(HERE / script), *flags, *options]
        if xla:
            command = ["env", f"XLA_FLAGS={os.environ.get('XLA_FLAGS', '')} {xla}".strip(), *command]
        return serving.Peer(name, command, self.logs / f"{name}.log")

    def attack_peer(self) -> serving.Peer:
        """Starts AutoAttack of a ResNet-18."""
        options = ["--network=resnet20", "--images=4"] if self.smoke else ["--network=resnet18", "--images=2048"]
        command = [sys.executable, str(HERE / "evaluate.py"), "--serve", *options]
        return serving.Peer("autoattack", command, self.logs / "autoattack.log")

    def run(self) -> None:
        """Measures row after row; reports a row that fails or is late, and continues with the next."""
        for row in self.rows:
            try:
                getattr(self, row, lambda row=row: self.alone(row))()
            except Exception as error:  # One row must not take the others with it.
                self.report.add(row, failed=f"{type(error).__name__}: {error}")
        for peer in (*self.torch.values(), *self.ours.values()):
            peer.close()

    def prepare(self, row: str) -> serving.Peer:
        """Compiles ours of a row, where that has not been done."""
        if row not in self.ours:
            self.ours[row] = self.makers[row]()
        self.ours[row].ready(self.left())
        return self.ours[row]

    def step64(self) -> None:
        """Ours and PyTorch's step, 64 images; and how much one call of many steps saves."""
        ours = self.pair("step64")
        many, single = (ours.ask(self.left(), count=count) for count in (0, 2 if self.smoke else 20))
        self.report.add(
            "step64, calls of one step",
            seconds=single["seconds"],
            seconds_in_one_call=many["seconds"],
            share_of_time_between_calls=1 - many["seconds"] / single["seconds"],
            host_busy_in_one_call=many["cpu_seconds"] / many["seconds"],
        )

    def step512(self) -> None:
        """Ours and PyTorch's step, 512 images."""
        self.pair("step512")

    def graph64(self) -> None:
        """PyTorch's step of 64 images, replayed as one CUDA graph."""
        peer = self.torch["graph64"] = self.step_peer("torch_step.py", "torch graph 64", 64, "--serve", "--graph")
        peer.ready(self.left())
        self.measure("graph64", [peer])

    def autoattack(self) -> None:
        """AutoAttack by its parts, and what 10,000 images would take."""
        peer = self.prepare("autoattack")
        everybody = robust = 0.0
        for part, share in REMAINING.items():
            answer = peer.ask(self.left(), part=part)
            self.report.add(f"autoattack {part}", **answer)
            everybody += 10_000 * answer["seconds_per_image"]
            robust += 10_000 * answer["seconds_per_image"] * share
        self.report.add(
            "autoattack standard, 10,000 images", seconds_if_all_stand=everybody, seconds_if_half_stand=robust
        )

    def alone(self, row: str) -> None:
        """A row of ours without a twin."""
        self.measure(row, [self.prepare(row)])

    def pair(self, row: str) -> serving.Peer:
        """A row of ours and of its twin; of ours alone rather than of none."""
        peers, twin = [self.prepare(row)], self.torch[row]
        for later in self.rows[self.rows.index(row) :]:
            if not twin.has_answered() and twin.runs() and later in self.makers and later not in self.ours:
                self.prepare(later)
        try:
            twin.ready(self.left() - (0 if row in self.again else 0.35 * self.budget))
            peers.append(twin)
        except serving.LateError as error:
            self.report.add(f"{row}, {twin.name}", failed=str(error))
            if row not in self.again and twin.runs():
                self.again.add(row)
                self.rows.append(row)
        self.measure(row, peers)
        return peers[0]

    def measure(self, row: str, peers: list[serving.Peer]) -> None:
        """Times peers alternately."""
        for peer in peers:
            self.report.add(f"{row}, {peer.name}, ready", **peer.facts)
            peer.facts["matmul_flops_per_second"] = peer.ask(self.left(), matmul=True)["flops_per_second"]
        result = serving.alternate(peers, self.rounds, self.left())
        step.add_rows(self.report, peers, result)
        if peers[0].name.endswith("64"):
            hours = ITERATIONS * result[peers[0].name]["seconds"]["median"] / 3600
            self.report.add(f"{row}, {peers[0].name}: {ITERATIONS} iterations from the time of one", hours=hours)


ROWS = ("step64", "step512", "wide512", "loops64", "autoattack", "graph64", "penalty64", "graphs64")


def main() -> None:
    """Reads the command line and runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", type=float, default=560, help="seconds, compilation included")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--output", help="a JSON file")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes")
    Bench(parser.parse_args()).run()


if __name__ == "__main__":
    main()
