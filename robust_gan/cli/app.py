"""From the command line to the launcher's `main`."""

import functools
import logging as standard_logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from absl import app, flags, logging

from robust_gan.cli import config_flags, distributed, help_screen, memory, xla_flags
from robust_gan.cli.config_file import FLAG, is_from_config, place_in_config
from robust_gan.cli.errors import INTERRUPTED, complain, guard
from robust_gan.errors import UserError


def run(
    main: Callable[[Sequence[str]], int | None],
    *,
    document: str | None = "",
    groups: Mapping[str, Sequence[str]] | None = None,
    spread: bool = False,
    pod: bool = False,
    positional: bool = False,
) -> NoReturn:
    """Parses the flags, runs `main(argv)` and exits: with 0, with 2 after a mistake of the user's, or as main says.

    Args:
        main: Takes what absl leaves of the command line; may raise `UserError`.
        document: What the command does, the first part of `--help`.
        groups: The flags as `--help` shows them, under the docstring of the launcher; see `screen.page`.
        spread: See `compiler.set_flags`.
        pod: Whether the launcher can be one of several processes, see `pods`.
        positional: Whether it takes arguments that are no flags.
    """
    memory.use_large_pages()
    _leave_folder_of_launchers()
    if pod:
        distributed.define_flags()
        groups = {**(groups or {}), **distributed.GROUP}

    def quiet_main(argv: Sequence[str]) -> int | None:
        # What the libraries log at length is for their developers; what failed is in the exception.
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.FATAL)
            standard_logging.getLogger("asyncio").setLevel(standard_logging.CRITICAL)
        xla_flags.set_flags(spread=spread)
        xla_flags.set_cache()
        if pod and distributed.is_distributed():
            return distributed.run(main, argv)
        return guard(main, argv, positional=positional)

    app.run(quiet_main, flags_parser=functools.partial(_parse, document or "", groups or {}))
    raise AssertionError("app.run exits")


def _leave_folder_of_launchers() -> None:
    """Takes the launcher's own folder off the path: the user's `train` or `report` is not the launcher of that name."""
    launcher = getattr(sys.modules["__main__"], "__file__", None)
    folder = os.path.dirname(os.path.realpath(launcher)) if launcher else None
    if folder is not None and folder != os.path.realpath(os.getcwd()):
        sys.path[:] = [place for place in sys.path if os.path.realpath(place or os.getcwd()) != folder]


def arguments() -> list[str]:
    """Returns the command line with the lines of every `--flagfile=FILE` in its place; exits with 2 where it cannot.

    For `config_flags.DEFINE_config_file(..., sys_argv=arguments())`, which would read the files as it defines its flag:
    before `run`, where a mistake is a traceback.
    """
    try:
        return _with_flag_files(sys.argv)
    except UserError as error:
        sys.exit(complain(str(error)))


def _parse(document: str, groups: Mapping[str, Sequence[str]], argv: Sequence[str]) -> list[str]:
    """Parses the flags; what is wrong with a `--config.*` flag is told better here than by absl."""
    if help_screen.is_asked_for(argv):
        print(help_screen.page(document, groups))
        sys.exit(0)
    level = logging.get_absl_logger().level
    try:
        argv = _with_flag_files(argv)
        if FLAG in flags.FLAGS:
            config_flags.check(argv)
        # config_flags warns of a recipe that returns nothing; `read_config` says it.
        logging.get_absl_logger().setLevel("CRITICAL")
        return flags.FLAGS([config_flags.without_fraction(argument) for argument in argv])
    except SystemExit as end:
        if place_in_config(end):
            sys.exit(complain(is_from_config(end)))
        sys.exit(0 if end.code == 1 else end.code)  # absl prints the help and leaves with 1.
    except KeyboardInterrupt:
        complain("interrupted")
        sys.exit(INTERRUPTED)
    except UserError as error:
        sys.exit(complain(str(error)))
    except flags.Error as error:
        recipe = "parsing config file" in str(error)
        sys.exit(complain(is_from_config(error) if recipe else f"{error}: see --help"))
    except Exception as error:  # A recipe is the user's own program, and may raise anything.
        sys.exit(complain(is_from_config(error)))
    finally:
        logging.get_absl_logger().setLevel(level)


def _with_flag_files(argv: Sequence[str]) -> list[str]:
    """Puts the lines of every `--flagfile=FILE` in its place.

    Raises:
        UserError: A file cannot be read.
    """
    try:
        return [*argv[:1], *flags.FLAGS.read_flags_from_files(argv[1:], force_gnu=False)]
    except UnicodeDecodeError as error:
        raise UserError(f"a file of --flagfile is no text ({error}): give one with a flag on each line") from error
    except flags.Error as error:
        cause = error.__context__
        if not isinstance(cause, OSError):
            raise UserError(f"{error}: see --help") from error
        raise UserError(
            f"the file {cause.filename!r} of --flagfile cannot be read ({str(cause.strerror).lower()}): give one "
            "with a flag on each line"
        ) from error
