"""``flowopt``: the application, and the one place where errors become exit codes."""

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import flowopt
from flowopt.cli.adapt import adapt
from flowopt.cli.bench import bench
from flowopt.cli.explain import explain
from flowopt.cli.failure import EXIT_INTERRUPTED, EXIT_IO, described, exit_code_of
from flowopt.cli.inspect import inspect
from flowopt.cli.optimize import optimize
from flowopt.cli.passes import passes
from flowopt.cli.sampler import sampler
from flowopt.cli.verify import verify
from flowopt.formats.printable import printable_lines

# Rich would triple the time of --help; the commands load it when they have something to show.
app = typer.Typer(
    name="flowopt",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (optimize, sampler, adapt, explain, verify, bench, inspect, passes):
    app.command()(command)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    """Rewrite trained PyTorch models the way a compiler rewrites programs, and prove every rewrite that is kept."""
    if version:
        print(f"flowopt {flowopt.__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code. Errors go to stderr, in one screen.

    Args:
        arguments: without the program's name; those of the process by default.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = typer.main.get_command(app)
    try:
        # Not command.main(): it would turn interrupts, closed pipes and an EOFError of a model into codes of its own.
        with command.make_context("flowopt", given) as context:
            command.invoke(context)
        sys.stdout.flush()
        return 0
    except typer.Exit as end:
        return end.exit_code
    except KeyboardInterrupt:
        print(f"flowopt: interrupted (exit {EXIT_INTERRUPTED})", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader, such as head, has seen enough. Nothing may be flushed into the pipe when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_IO
    except (Exception, SystemExit) as error:  # noqa: BLE001  # the top; and a model's code may call sys.exit(0)
        # "--debug" is looked for here, because an error of the parser comes before any option has a value.
        if "--debug" in given:
            import traceback

            print(printable_lines(traceback.format_exc()), end="", file=sys.stderr)
        print(described(error, given), file=sys.stderr)
        return exit_code_of(error)


if __name__ == "__main__":
    sys.exit(main())
