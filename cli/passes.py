"""``flowopt passes``: what can be asked for by name. Read from the sources; nothing is imported."""

from typing import Annotated

import typer

from flowopt.cli.options import Debug
from flowopt.pipeline.pass_source import read_pass_options
from flowopt.pipeline.registry import entries, pass_entry


def passes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", show_default=False, help="Show one in full.")] = None,
    debug: Debug = False,
) -> None:
    """List the passes, or document one.

    Other commands take a preset, passes in text form or a file: --passes exact, --passes my.toml.

    \b
    A text: fold-constants:max_growth=4194304,fold-batch-norm
    A file, my.toml:
      preset = "exact"         # or: passes = ["fold-constants", "fold-batch-norm"]
      skip = ["simplify-shapes"]
      [options.fold-constants]
      max_growth = 4194304

    An installed package brings passes of its own by entry points; they are named, listed and verified like flowopt's:

    \b
      [project.entry-points."flowopt.passes"]
      my-pass = "my_package.my_module:MyPass"

    A name that two packages bring is an error where it is asked for.
    """
    from flowopt.cli.render_passes import render_pass, render_passes

    if name is None:
        render_passes(tuple(entries().values()))
        return
    entry = pass_entry(name)
    options = read_pass_options(entry.path, entry.class_name) if entry.path is not None else ()
    render_pass(entry, options)
