"""Bounds of logit differences against auto_LiRPA, of the authors of CROWN, on one network and the same images.

auto_LiRPA 0.3 needs an older PyTorch than this package, so each side runs in an environment of its own:

    python tests/reference/lirpa.py ours bounds.npz
    python3.11 -m venv lirpa && lirpa/bin/pip install torch==1.13.1 'numpy<1.25' appdirs pyyaml packaging tqdm
    lirpa/bin/pip install --no-deps auto_LiRPA==0.3
    lirpa/bin/python tests/reference/lirpa.py theirs bounds.npz
"""

import argparse
import time

import numpy as np

METHODS = {"ibp": "IBP", "crown_ibp": "CROWN-IBP", "crown": "CROWN"}
"""Methods of this package, and their names there."""


def ours(path, model, epsilon, count, float64, data_dir):
    """Writes images, weights and bounds of a strided network of the zoo."""
    import jax

    from robust_gan import LinfThreat, certification, data, zoo
    from robust_gan.config import DataConfig

    jax.config.update("jax_enable_x64", float64)
    config = DataConfig(name=model.partition("/")[0], data_dir=data_dir, validation_size=0)
    split = data.load_split(config, "test", count=count)
    images, labels = (
        np.asarray(split.images, np.float64 if float64 else np.float32) / 255,
        np.asarray(split.labels, np.int32),
    )
    logits_fn, arrays = zoo.load(model), {}
    for method in METHODS:
        bounds = jax.jit(lambda x, y, method=method: certification.margin_bounds(
            logits_fn, x, y, LinfThreat(epsilon), method=method))  # fmt: skip
        began = time.process_time()
        arrays[f"bounds/{method}"] = np.asarray(bounds(images, labels))
        print(f"{method}: {time.process_time() - began:.1f} s, compilation included")
    for place, leaf in jax.tree_util.tree_leaves_with_path(logits_fn.args[0]):
        arrays["weights/" + "/".join(key.key for key in place)] = np.asarray(leaf)
    np.savez(path, images=images, labels=labels, epsilon=epsilon, logits=np.asarray(logits_fn(images)), **arrays)


def theirs(path):
    """Computes the same bounds by auto_LiRPA, and prints how they differ."""
    import torch
    from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm

    found = np.load(path)
    weights = {name.removeprefix("weights/"): found[name] for name in found.files if name.startswith("weights/")}
    images, labels = (
        torch.tensor(found["images"].transpose(0, 3, 1, 2).astype(np.float32)),
        torch.tensor(found["labels"]).long(),
    )
    low, high = [np.clip(found["images"] + sign * float(found["epsilon"]), 0, 1) for sign in (-1, 1)]
    low, high = [torch.tensor((2 * side - 1).transpose(0, 3, 1, 2), dtype=torch.float32) for side in (low, high)]
    net, inputs = _network(weights, images.shape[2:]), 2 * images - 1
    with torch.no_grad():
        print(f"largest difference of logits: {np.abs(net(inputs).numpy() - found['logits']).max():.2g}")
    difference = torch.eye(10)[labels][:, None] - torch.eye(10)[None]
    others = labels[:, None].numpy() != np.arange(10)
    module = BoundedModule(net, torch.empty_like(inputs), device="cpu")
    bounded = BoundedTensor(inputs, PerturbationLpNorm(norm=np.inf, x_L=low, x_U=high))
    for method, name in METHODS.items():
        own, began = found[f"bounds/{method}"], time.process_time()
        with torch.no_grad():
            bounds = module.compute_bounds(x=(bounded,), C=difference, method=name, bound_upper=False)[0].numpy()
        gap, seconds = (own - bounds)[others], time.process_time() - began
        certified = [int(np.all((side > 0) | ~others, axis=1).sum()) for side in (own, bounds)]
        print(
            f"{method} less {name}: mean {gap.mean():.2g}, least {gap.min():.2g}, largest {gap.max():.2g}; mean "
            f"bound {own[others].mean():.3f} and {bounds[others].mean():.3f}; certified {certified[0]} and "
            f"{certified[1]} of {len(labels)}; {seconds:.1f} s there",
            flush=True,
        )


def _network(weights, size):
    """Returns the strided network of `networks.StridedCNN` as a module, for pixels in [-1, 1]."""
    from torch import nn, tensor

    layers, count = [], {"Conv": 0, "Dense": 0}
    for name in sorted(name for name in weights if name.endswith("kernel")):
        kernel, bias = weights[name], weights[name.replace("kernel", "bias")]
        if kernel.ndim == 4:
            layer = nn.Conv2d(kernel.shape[2], kernel.shape[3], 4, stride=2, padding=1)
            kernel, size, count["Conv"] = kernel.transpose(3, 2, 0, 1), [side // 2 for side in size], kernel.shape[3]
        else:
            layer = nn.Linear(*kernel.shape)
            if count["Conv"]:  # Height, width and channels have another order there.
                kernel = kernel.reshape(*size, count["Conv"], -1).transpose(2, 0, 1, 3).reshape(len(kernel), -1)
                layers, count["Conv"] = [*layers, nn.Flatten()], 0
            kernel = kernel.T
        layer.weight.data, layer.bias.data = tensor(kernel.copy()), tensor(bias)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=["ours", "theirs"])
    parser.add_argument("path", help="the file between the two")
    parser.add_argument("--model", default="digits/ibp", help="of the zoo, with the network certifiable_cnn_light")
    parser.add_argument("--epsilon", type=float, default=0.15)
    parser.add_argument("--count", type=int, default=100, help="how many test images, the first ones")
    parser.add_argument(
        "--float64", action="store_true", help="compute ours in float64, nearly without rounding errors"
    )
    parser.add_argument("--data_dir", default="", help="folder of the prepared data")
    settings = vars(parser.parse_args())
    if settings.pop("side") == "ours":
        ours(**settings)
    else:
        theirs(settings["path"])
