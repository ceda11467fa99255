"""Parses the command line and runs the `main` of a command."""

import functools
import logging as standard_logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from absl import app, flags, logging

from robust_gan.cli import config_flags, distributed, help_screen, memory, xla_flags
from robust_gan.cli.errors import INTERRUPTED, complain, guard
from robust_gan.config import renamed
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
        main: Takes the arguments that are not flags; may raise `UserError`.
        document: The first part of `--help`.
        groups: The flags as `--help` shows them; see `help_screen.page`.
        spread: See `xla_flags.set_flags`.
        pod: Whether the command can be one of several processes, see `distributed`.
        positional: Whether it takes arguments that are not flags.
    """
    memory.use_large_pages()
    _remove_script_folder()
    if pod:
        distributed.define_flags()
        groups = {**(groups or {}), **distributed.GROUP}

    def quiet_main(argv: Sequence[str]) -> int | None:
        # Logs of libraries are for their developers; the exception says what failed.
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


def _remove_script_folder() -> None:
    """Removes the folder of `launch/train.py` from the path: a user's module `train` is another one."""
    script = getattr(sys.modules["__main__"], "__file__", None)
    folder = os.path.dirname(os.path.realpath(script)) if script else None
    if folder is not None and folder != os.path.realpath(os.getcwd()):
        sys.path[:] = [place for place in sys.path if os.path.realpath(place or os.getcwd()) != folder]


def arguments() -> list[str]:
    """Returns the command line with the lines of every `--flagfile=FILE` in its place; exits with 2 where it cannot.

    For `config_flags.DEFINE_config_file(..., sys_argv=arguments())`, which would read the files when it defines its
    flag, before `run`, and raise a traceback.
    """
    try:
        return config_flags.with_default(_with_flag_files(sys.argv))
    except UserError as error:
        sys.exit(complain(str(error)))


def _parse(document: str, groups: Mapping[str, Sequence[str]], argv: Sequence[str]) -> list[str]:
    """Parses the flags, and reports what is wrong with them in one sentence."""
    if help_screen.is_asked_for(argv):
        sys.exit(guard(lambda _: print(help_screen.page(document, groups), flush=True), argv[:1]))
    level = logging.get_absl_logger().level
    try:
        argv = _with_flag_files(argv)
        if config_flags.FLAG in flags.FLAGS:
            argv = config_flags.with_default(argv)
        argv = config_flags.normalize(argv)
        if config_flags.FLAG in flags.FLAGS:
            config_flags.check(argv)
        # ml_collections warns of a config that is None; `read_config` reports it.
        logging.get_absl_logger().setLevel("CRITICAL")
        return flags.FLAGS(argv)
    except SystemExit as end:
        if config_flags.find_line(end):
            sys.exit(complain(config_flags.describe_error(end)))
        sys.exit(0 if end.code == 1 else end.code)  # absl prints the help and leaves with 1.
    except KeyboardInterrupt:
        complain("interrupted")
        sys.exit(INTERRUPTED)
    except UserError as error:
        sys.exit(complain(str(error)))
    except flags.UnrecognizedFlagError as error:
        name = renamed.FLAGS.get(error.flagname, "")
        sys.exit(
            complain(f"--{error.flagname} is now called --{name}" if name in flags.FLAGS else f"{error}: see --help")
        )
    except flags.Error as error:
        in_config = "parsing config file" in str(error)
        sys.exit(complain(config_flags.describe_error(error) if in_config else f"{error}: see --help"))
    except Exception as error:  # A config file is the user's own program, and may raise anything.
        sys.exit(complain(config_flags.describe_error(error)))
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
