"""Starts a run from the weights of another: `init_from` of the configuration."""

import jax

from robust_gan import checkpoint
from robust_gan.checkpoint import DataInfo, Record
from robust_gan.config import Config
from robust_gan.errors import UserError
from robust_gan.game import TrainState
from robust_gan.storage import leaves


def load(config: Config, info: DataInfo, state: TrainState) -> tuple[TrainState, str]:
    """Returns a state at step 0 with the weights and BatchNorm statistics of `config.init_from`, and what was loaded.

    Where that run averages its weights, they are the averaged ones. Optimizer states and keys are those of `state`; so
    are arrays of the classifier whose last dimension is the number of classes, where it differs.

    Args:
        config: The run.
        info: Its data.
        state: Its state at step 0.

    Raises:
        UserError: The checkpoint is missing or damaged, or its networks are of another architecture.
    """
    record = checkpoint.read_record(*checkpoint.parse_location(config.init_from))
    players = _players(config, record)
    saved = checkpoint.get_variables(record)
    loaded = {player: saved[player] for player in players}
    if state.average is not None:
        loaded["average"] = loaded["classifier"]
    new, ours = leaves.named(loaded), leaves.named(state)
    anew = []
    for name, leaf in ours.items():
        player, _, kind = name.partition("/")
        if player not in loaded or not kind.startswith(("params/", "batch_stats/")):
            continue
        if name not in new or new[name].shape != leaf.shape:
            if name not in new or not _is_head(new[name].shape, leaf.shape, record.data.num_classes, info.num_classes):
                there = f"has {list(new[name].shape)}" if name in new else "is not there"
                raise UserError(
                    f"init_from {config.init_from} is of another architecture: {name} {there}, and is of shape "
                    f"{list(leaf.shape)} here: give a checkpoint of the same networks"
                )
            anew.append(name)
    if extra := sorted(new.keys() - ours.keys()):
        raise UserError(
            f"init_from {config.init_from} is of another architecture: there is no array {extra[0]} here: give a "
            "checkpoint of the same networks"
        )
    filled = [leaf if name in anew else new.get(name, leaf) for name, leaf in ours.items()]
    said = f"starts from step {record.step} of {config.init_from}: " + " and ".join(players.values())
    if anew:
        heads = ", ".join(name for name in anew if name.startswith("classifier/"))
        said += f"; {heads} start anew, for {info.num_classes} classes instead of {record.data.num_classes}"
    return jax.tree.unflatten(jax.tree.structure(state), filled), said


def _players(config: Config, record: Record) -> dict[str, str]:
    """Returns the players that are loaded, with their names in a sentence."""
    source, here, there = config.init_from, config.classifier.network, record.config.classifier.network
    if here != there:
        raise UserError(
            f"init_from {source} is of another architecture: its classifier is {there!r}, and {here!r} here: set "
            "classifier.network, or give another checkpoint"
        )
    if config.adversary.name != "generator" or config.init_players == "classifier":
        return {"classifier": "the classifier"}
    if not checkpoint.has_generator(record):
        return {"classifier": "the classifier (its run has no generator)"}
    ours, theirs = config.adversary.generator, record.config.adversary.generator
    for field in ("network", "inputs", "latent_size"):
        if getattr(ours, field) != getattr(theirs, field):
            raise UserError(
                f"init_from {source} has another generator: adversary.generator.{field} is {getattr(theirs, field)!r} "
                f"there, and {getattr(ours, field)!r} here: set init_players to 'classifier', or {field} as there"
            )
    return {"classifier": "the classifier", "adversary": "the generator"}


def _is_head(there: tuple[int, ...], here: tuple[int, ...], classes_there: int, classes_here: int) -> bool:
    return (*there[:-1], here[-1]) == here and (there[-1], here[-1]) == (classes_there, classes_here)
