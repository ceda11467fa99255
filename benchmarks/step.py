"""Times the game's step, alone or alternately with its twin in PyTorch.

    python benchmarks/step.py --batch 64                       # ours and PyTorch's, A B A B
    taskset -c 1 python benchmarks/step.py --by cpu_seconds    # one core, of a machine that does other things too
    python benchmarks/step.py --against unrolled      # ours without a loop around steps
    python benchmarks/step.py --against none --rounds 0 --remat --batch 256    # compiled only: FLOP and memory

The step is that of `configs/cifar10.py`, 5 generator steps and one of the classifier, as
`robust_gan.training.multi_step` plays
it: the data lie on the device, images are fetched and augmented in the step. PyTorch's gets one batch that lies there.
"""

import argparse
import sys
from pathlib import Path

import measuring
import serving

HERE = Path(__file__).parent


def arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds what the step and its twin are given."""
    parser.add_argument("--classifier", default="resnet20", choices=("resnet20", "resnet20_wide", "resnet18"))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--penalty", default="finite_difference", choices=("none", "finite_difference", "exact"))
    parser.add_argument("--generator-steps", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="steps that are timed at a time")
    return parser


def main() -> None:
    """Runs ours and the twin alternately and reports both."""
    parser = arguments(argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", default="torch", choices=("torch", "unrolled", "none"))
    parser.add_argument("--by", default="seconds", choices=("seconds", "cpu_seconds"), help="what the ratio is of")
    parser.add_argument("--remat", action="store_true")
    parser.add_argument("--timeout", type=float, default=1200, help="seconds for one answer of either")
    parser.add_argument("--output", help="a JSON file")
    given = parser.parse_args()
    shared = [
        f"--{name.replace('_', '-')}={getattr(given, name)}"
        for name in ("classifier", "batch", "precision", "penalty", "generator_steps", "steps")
    ]
    ours = [sys.executable, str(HERE / "jax_step.py"), *shared, *(["--remat"] if given.remat else [])]
    commands = {
        "ours": ours,
        "torch": [sys.executable, str(HERE / "torch_step.py"), "--serve", *shared],
        "unrolled": [*ours, "--unrolled"],
    }
    peers = [serving.Peer(name, commands[name]) for name in ("ours", given.against) if name in commands]
    report = measuring.Report(given.output, f"the game's step, {given.classifier}, {given.batch} images")
    try:
        for peer in peers:
            peer.ready(given.timeout)
            report.add(f"{peer.name}, ready", **peer.facts)
        if given.rounds:
            add_rows(report, peers, serving.alternate(peers, given.rounds, given.timeout, given.by))
    finally:
        for peer in peers:
            peer.close()


def add_rows(report: measuring.Report, peers: list[serving.Peer], result: dict) -> None:
    """Reports what `serving.alternate` returned, with the rates that follow from it."""
    for peer in peers:
        times, flops = result[peer.name], peer.facts["flops"]
        rate = flops / times["seconds"]["median"]
        report.add(
            peer.name,
            **times,
            flops=flops,
            tflops_per_second=rate / 1e12,
            share_of_matmul=rate / peer.facts["matmul_flops_per_second"],
        )
    if "ratio" in result:
        report.add(" / ".join(peer.name for peer in peers), ratio=result["ratio"])


if __name__ == "__main__":
    main()
