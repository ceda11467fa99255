"""How Orbax is read, and how it is kept from talking: its failures come late, from threads, and in many kinds."""

import contextlib
import gc
import logging
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util

from robust_gan.errors import one_line

_LONGEST = 120
"""Characters of what Orbax says that fit into a sentence."""

LATE = 0.1
"""Seconds after a failure in which other threads still report theirs."""


def alone() -> ocp.options.MultiprocessingOptions:
    """Returns the options by which Orbax waits for no other process: what is replicated, one alone writes or reads."""
    number = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=number, active_processes={number}, barrier_sync_key_prefix=f"process_{number}"
    )


def read_arrays(item: epath.Path, layouts: dict[str, dict[str, Any]]) -> dict[str, np.ndarray]:
    """Reads an item that holds arrays.

    Args:
        item: Its folder.
        layouts: The `shape` and the `dtype` of every array in it, by name.

    Returns:
        The arrays by name. What the bytes are is for the caller to check: Orbax does not.

    Raises:
        ValueError: It cannot be read; one line of what Orbax says.
    """
    target = {name: np.empty(layout["shape"], layout["dtype"]) for name, layout in layouts.items()}
    args = ocp.args.StandardRestore(traverse_util.unflatten_dict(target, sep="/"))
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone())
    restored, failure = None, ""
    with quiet(), late_reports_dropped():
        try:
            with ocp.Checkpointer(handler, multiprocessing_options=alone()) as reader:
                restored = reader.restore(item, args=args)
        except Exception as error:
            failure = one_line(error)[:_LONGEST]
        if failure:
            # The other reads report a little later, and those that nobody waits for when they are collected.
            time.sleep(LATE)
            gc.collect()
    if failure:
        raise ValueError(failure)
    return {name: np.asarray(leaf) for name, leaf in traverse_util.flatten_dict(restored, sep="/").items()}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences Orbax while the context lasts: what failed is in the exception, and a user wants to know no more."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def late_reports_dropped() -> Iterator[None]:
    """Drops what comes too late while the context lasts.

    When one read or write fails, the others report to a loop that is closed by then, from threads of C++.
    """
    before = sys.unraisablehook

    def hook(late: Any) -> None:
        if str(late.exc_value) != "Event loop is closed":
            before(late)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
