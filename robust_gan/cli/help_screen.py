"""The help of a command: one screen with its flags in groups, in place of absl's alphabetical list."""

import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence

from absl import flags

from robust_gan.cli.config_flags import FLAG

_ASKING = ("-h", "-help", "--help", "-helpshort", "--helpshort")
_CHOICES = re.compile(r"^<[^>]*>: ")
_FIELD = f"Any field of the configuration, such as --{FLAG}.seed=1 or --{FLAG}.threat.epsilon=8/255."


def is_asked_for(argv: Sequence[str]) -> bool:
    """Returns whether a command line requests help; `--helpfull`, with the flags of every library, is absl's.

    >>> is_asked_for(["train.py", "--config=a.py", "--help"]), is_asked_for(["train.py", "--", "--help"])
    (True, False)
    """
    for argument in argv[1:]:
        if argument == "--":
            return False
        if argument in _ASKING:
            return True
    return False


def page(document: str, groups: Mapping[str, Sequence[str]], width: int = 0) -> str:
    """Returns the help of a command.

    Args:
        document: Its description, with examples.
        groups: The flags of each group by its title, with their values: `workdir=DIR`, or `[no]progress`.
        width: Columns; 0 for the width of the terminal, from 80 to 120.

    >>> from absl import flags
    >>> flag = flags.DEFINE_integer("sheets", 3, "How many.")
    >>> print(page("Prints.", {"Paper": ["sheets=N"]}))
    Prints.
    <BLANKLINE>
    Paper
      --sheets=N  How many. [3]
    """
    width = width or max(80, min(shutil.get_terminal_size((100, 24)).columns, 120))
    column = 6 + max((len(form) for forms in groups.values() for form in forms), default=0)
    blocks = [document.strip()]
    for title, forms in groups.items():
        blocks.append("\n".join([title, *(_row(form, column, width) for form in forms)]))
    return "\n\n".join(blocks)


def get_flag(form: str) -> str:
    """Returns the name of a flag of a group.

    >>> get_flag("workdir=DIR"), get_flag("[no]progress")
    ('workdir', 'progress')
    """
    return form.split("=", 1)[0].removeprefix("[no]")


def _row(form: str, column: int, width: int) -> str:
    name = get_flag(form)
    if name == f"{FLAG}.FIELD":
        text = _FIELD
    else:
        flag = flags.FLAGS[name]
        text = _CHOICES.sub("", " ".join((flag.help or "").split()))
        if flag.default not in (None, "", [], False, 0):
            text += f" [{str(flag.default_as_str).strip(chr(39))}]"
    left = f"  --{form}".ljust(column)
    return textwrap.fill(
        text, width, initial_indent=left, subsequent_indent=" " * column, break_on_hyphens=False, break_long_words=False
    )
