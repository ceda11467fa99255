"""A self-contained HTML page of runs and evaluations, without server, network or scripts."""

import datetime
from collections.abc import Sequence

from etils import epath

from robust_gan.errors import UserError
from robust_gan.reporting.page import document, evaluations, reproductions, runs
from robust_gan.reporting.page.finding import Evaluation, Found, Run, find
from robust_gan.reporting.page.parts import Palette
from robust_gan.storage import workdir
from robust_gan.version import __version__

__all__ = ["Evaluation", "Found", "Run", "find", "render", "write"]


def render(found: Found, title: str = "Robustness report") -> str:
    """Returns the page.

    Args:
        found: What to show.
        title: Its title.

    >>> "No run" in render(Found([], [], {}))
    False
    """
    palette = Palette()
    for one in found.evaluations:
        for name in one.report["models"]:
            palette[name]
    sections = []
    if found.evaluations:
        overview = evaluations.summary(found.evaluations) + evaluations.curves(found.evaluations, palette)
        sections.append(("Overview", overview))
    sections += [
        (f"Reproduction {name}", reproductions.section(values)) for name, values in found.reproductions.items()
    ]
    if found.runs:
        sections.append(("Training", runs.section(found.runs, palette)))
    sections += [(f"Evaluation {one.name}", evaluations.section(one, palette)) for one in found.evaluations]
    counts = {"run": len(found.runs), "evaluation": len(found.evaluations), "reproduction": len(found.reproductions)}
    lead = ", ".join(f"{count} {what}{'s' if count > 1 else ''}" for what, count in counts.items() if count)
    made = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    note = "Accuracies are in % of all images. White-box robust accuracy is an upper bound."
    return document.compose(title, lead, sections, f"{note} Made by robust_gan {__version__}, {made}.")


def write(directories: Sequence[epath.PathLike], output: epath.PathLike) -> epath.Path:
    """Writes the page of all runs and evaluations in some folders.

    Args:
        directories: Of runs, evaluations and reproductions, or above them.
        output: The HTML file.

    Returns:
        Its absolute path.

    Raises:
        UserError: See `find`; or the file cannot be written.
    """
    page = render(find(directories))
    path = epath.Path(output).expanduser().resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        workdir.write_text(path, page)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({str(error.strerror).lower()}): give another --output") from error
    return path
