"""Functions of the user's own, given as `package.module:function` in a configuration or a flag."""

import difflib
import importlib
import importlib.util
import inspect
import os
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

from robust_gan.errors import UserError, one_line


def is_function_name(name: str) -> bool:
    """Returns whether a name is meant as `package.module:function`.

    >>> is_function_name("mine:net"), is_function_name("resnet20")
    (True, False)
    """
    return ":" in name


def import_function(name: str, kind: str) -> Callable[..., Any]:
    """Imports a function. Its module is the user's own program, and is run.

    Args:
        name: `package.module:function`. A module of the working directory takes precedence.
        kind: What the function stands for in error messages: "model", "adversary".

    Raises:
        UserError: There is no such module or function, or the module raises.

    >>> import_function("os.path:join", "model")("a", "b")
    'a/b'
    """
    module_name, colon, function_name = name.partition(":")
    article = "an" if kind[0] in "aeiou" else "a"
    if not (module_name and colon and function_name):
        raise UserError(f"{article} {kind} is given as package.module:function, not {name!r}")
    if module_name.endswith(".py"):
        raise UserError(f"{article} {kind} is given as package.module:function, without .py, not {name!r}")
    try:
        module = _import_module(module_name)
    except UserError:
        raise
    except ImportError as error:
        raise UserError(
            f"the module {module_name} of the {kind} cannot be imported: {one_line(error)} (looked for in "
            f"{os.getcwd()} and where Python looks)"
        ) from error
    except (Exception, SystemExit) as error:  # It is the user's own program, and may raise anything.
        raise UserError(f"the module {module_name} of the {kind} fails: {describe(error)}") from error
    try:
        function = getattr(module, function_name)
    except AttributeError as error:
        close = difflib.get_close_matches(function_name, dir(module), 1)
        raise UserError(
            f"the module {module_name} has no function {function_name!r}" + (f"; is it {close[0]}?" if close else "")
        ) from error
    if not callable(function):
        raise UserError(f"{name} is not a function, but of type {type(function).__name__}")
    return function


def call_function(name: str, kind: str, returns: str, arguments: Mapping[str, Any] | None = None) -> Any:
    """Imports a function and calls it with those of the arguments that it takes.

    Args:
        name: `package.module:function`.
        kind: See `import_function`.
        returns: What the function must return, for error messages: "a classifier".
        arguments: The arguments by name; the function may leave out any of them.

    Returns:
        What the function returns.

    Raises:
        UserError: The function cannot be imported, needs other arguments, or raises.

    >>> call_function("os.path:join", "model", "a classifier")
    Traceback (most recent call last):
    robust_gan.errors.UserError: os.path:join cannot be called without arguments (missing a required argument: 'a'): \
give a function that returns a classifier
    """
    function, arguments = import_function(name, kind), arguments or {}
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # Some functions written in C have none.
        taken: dict[str, Any] = {}
    else:
        named = {
            parameter.name
            for parameter in signature.parameters.values()
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        }
        every = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
        taken = {key: value for key, value in arguments.items() if every or key in named}
        try:
            signature.bind(**taken)
        except TypeError as error:
            given = f"with {', '.join(arguments)} alone" if arguments else "without arguments"
            raise UserError(
                f"{name} cannot be called {given} ({error}): give a function that returns {returns}"
            ) from error
    try:
        return function(**taken)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # It is the user's own program, and may raise anything.
        raise UserError(f"{name} fails: {describe(error)}") from error


def describe(error: BaseException) -> str:
    """Returns the type and the first line of an exception.

    >>> describe(KeyError("a"))
    "KeyError: 'a'"
    """
    return f"{type(error).__name__}: {one_line(error)}"


def _import_module(name: str) -> types.ModuleType:
    """Imports a module; one in the working directory takes precedence over another of its name, imported or not."""
    here = os.getcwd()
    sys.path[:] = [here, *(folder for folder in sys.path if folder != here)]
    importlib.invalidate_caches()  # The file may be younger than Python's list of its folder.
    top, _, rest = name.partition(".")
    other = sys.modules.get(top)
    places = [getattr(other, "__file__", None) or "", *getattr(other, "__path__", ())]
    if other is None or any(os.path.realpath(place).startswith(os.path.realpath(here) + os.sep) for place in places):
        return importlib.import_module(name)
    file = os.path.join(here, f"{top}.py")
    if os.path.isfile(file) and not rest:
        spec = importlib.util.spec_from_file_location(f"{top}_of_the_working_directory", file)
        assert spec is not None  # It is a Python file.
        assert spec.loader is not None
        sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    if os.path.isfile(os.path.join(here, top, "__init__.py")):
        raise UserError(f"there is another module {top}, {places[0] or 'of Python itself'}: rename the folder {top}")
    return importlib.import_module(name)
