"""The twin of the game's step in PyTorch: checks that it computes the same, and serves its time to `step.py`.

    python benchmarks/torch_step.py --check --batch 4      # same weights in, same losses and gradients out?
    python benchmarks/step.py                              # times both alternately

On a GPU with bfloat16 it runs compiled, channels last, under autocast; `--graph` replays it as one CUDA graph besides.
"""

import argparse
import functools
import os
import time

import numpy as np
import torch

import counting
import measuring
import serving
import step
import torch_game
import torch_networks

FORMS = {"none": 0.0, "finite_difference": 0.01}


def build(given: argparse.Namespace, *, aligned: bool) -> torch_game.Game:
    """Builds the twin of what was given."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    compiled = None
    if device == "cuda" and not given.eager and not FORMS[given.penalty]:
        compiled = functools.partial(torch.compile, dynamic=False)
    return torch_game.Game(
        given.classifier,
        torch_game.Rules(given.generator_steps, penalty=FORMS[given.penalty]),
        device=device,
        aligned=aligned,
        compiled=compiled,
        autocast=given.precision == "bfloat16",
    )


def prepare(given: argparse.Namespace):
    """Runs the step until it is warm; returns the facts and the function that times."""
    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    game = build(given, aligned=False)
    images = torch.rand(given.batch, 3, 32, 32, device=game.device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (given.batch,), device=game.device)

    def wait():
        if game.device == "cuda":
            torch.cuda.synchronize()

    began = time.perf_counter()
    try:
        game.step(images, labels)
    except Exception as error:  # Whatever torch.compile cannot do here, the eager twin can.
        if given.eager or game.device == "cpu":
            raise
        print(f"not compiled: {error}")
        given.eager = True
        return prepare(given)
    wait()
    first = time.perf_counter() - began
    if game.device == "cuda":
        for _ in range(3):
            game.step(images, labels)
    play = captured(game, images, labels) if given.graph else functools.partial(game.step, images, labels)
    facts = {
        "device": torch.cuda.get_device_name() if game.device == "cuda" else "cpu",
        "mode": "graph" * given.graph + (" eager" if given.eager or game.device == "cpu" else " compiled"),
        "first_step_seconds": first,
        "flops": counting.step(
            given.classifier, given.batch, generator_steps=given.generator_steps, penalty=given.penalty
        ),
        "matmul_flops_per_second": measuring.torch_matmul_rate(dtype=given.precision),
    }
    measuring.forget_peak()

    def measure(count: int = 0, matmul: bool = False) -> dict[str, float]:
        """Times `count` steps; 0 for the number that was given; or a matrix product."""
        if matmul:
            return {"flops_per_second": measuring.torch_matmul_rate(dtype=given.precision)}
        number = count or given.steps

        def run():
            for _ in range(number):
                play()
            wait()

        times = measuring.timed(run, number)
        peak = torch.cuda.max_memory_allocated() if game.device == "cuda" else measuring.peak_host_bytes()
        return times | {"peak_bytes": peak}

    return facts, measure


def captured(game: torch_game.Game, images: torch.Tensor, labels: torch.Tensor):
    """Records a whole step as one CUDA graph; returns how it is replayed."""
    for optimizer in (game.generator_optimizer, game.classifier_optimizer):
        for group in optimizer.param_groups:
            group["capturable"] = True
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            game.step(images, labels)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        game.step(images, labels)
    return graph.replay


def check(given: argparse.Namespace) -> float:
    """Compares losses and gradients with ours, in float32 on the processor; returns the largest difference.

    That of a gradient counts beside the largest element of its tensor. With a wide classifier some of its many ReLUs
    lie at their kink to rounding, and a gradient in float32 means less: the twin's own is 8e-2 off that in float64.
    """
    import jax

    import jax_step
    from robust_gan import game, losses
    from robust_gan.game import objective
    from robust_gan.types import Batch

    config = jax_step.read_config(given)
    own_game = game.from_config(config, num_classes=10, channels=3)
    state = jax_step.initial_state(own_game)
    twin = build(given, aligned=True)
    for module, player in ((twin.generator, state.adversary), (twin.classifier, state.classifier)):
        torch_networks.load(module, *jax.device_get((player.params, player.batch_stats)))
    twin.tie()
    rng = np.random.default_rng(0)
    images = rng.random((given.batch, 32, 32, 3), np.float32)
    labels = rng.integers(0, 10, given.batch)
    batch = Batch(images, labels.astype(np.int32))
    theirs_images = torch.from_numpy(images.transpose(0, 3, 1, 2)).contiguous(memory_format=torch.channels_last)
    theirs_labels = torch.from_numpy(labels)

    def loss_fn(phi, images):
        attacked = objective.attacked_classifier(own_game, state.classifier, None)
        player = state.adversary._replace(params=phi)
        adversarial = own_game.adversary.perturb(player, attacked, Batch(images, batch.labels), None)
        return jax.numpy.mean(losses.generator_loss(attacked(adversarial), batch.labels))

    loss, gradient = jax.jit(jax.value_and_grad(loss_fn))(state.adversary.params, batch.images)
    of_classifier, _, measured, _ = jax.jit(
        lambda classifier, adversary: game.classifier_gradient(own_game, classifier, adversary, batch, None)
    )(state.classifier, state.adversary)
    differences = [abs(float(loss) - float(twin.cond_generator(theirs_images, theirs_labels)))]
    differences += torch_networks.differences(twin.generator, gradient)
    clean, adversarial = twin.classifier_gradient(theirs_images, theirs_labels)
    differences.append(abs(float(measured["clean_loss"]) - float(clean)))
    differences.append(abs(float(measured["adversarial_loss"]) - float(adversarial)))
    return max(differences + torch_networks.differences(twin.classifier, of_classifier))


def main() -> None:
    """Checks, or serves."""
    parser = step.arguments(argparse.ArgumentParser(description=__doc__))
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--eager", action="store_true", help="do not compile on a GPU")
    parser.add_argument("--graph", action="store_true", help="replay the step as a CUDA graph")
    given = parser.parse_args()
    given.remat = given.unrolled = False  # Which only ours can be, and `check` asks for.
    serving.check_or_serve(given, check, prepare, "a loss, or of a gradient beside its largest element")


if __name__ == "__main__":
    main()
