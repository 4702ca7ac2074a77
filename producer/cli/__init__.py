"""The command line `vitrina`."""

from __future__ import annotations

import os
import signal
import sys
from importlib.metadata import version

import typer
from typer._click.exceptions import ClickException  # typer carries its own click and exports no base class

from producer.cli import control, copy, doctor, export, fix, keeper, models, run, services, status, submit, watch
from shared.errors import UsageError, VitrinaError
from shared.printable import printable

FAILED, WRONG_USAGE, INTERRUPTED = 1, 2, 130
AGAIN = "interrupted; run the same command again: what is finished is skipped"

app = typer.Typer(
    name="vitrina",
    help="Turn raw product photos into a catalogue: cut out, on a clean background, described in English and Russian.",
    epilog="Examples:  vitrina run photos --out catalogue --report report.html   |   vitrina doctor   |   vitrina up",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
run.register(app)
submit.register(app)
watch.register(app)
status.register(app)
control.register(app)
fix.register(app)
copy.register(app)
export.register(app)
keeper.register(app)
services.register(app)
doctor.register(app)
app.add_typer(models.app, name="models")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("vitrina"))
        raise typer.Exit


@app.callback()
def options(
    show_version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    """Turn raw product photos into a catalogue: cut out, on a clean background, described in English and Russian."""
    del show_version  # its callback has ended the program


def main() -> None:
    """Run the command line. Expected failures are one line on stderr: status 2 for wrong usage, 1 for the rest."""
    # A supervisor's SIGTERM cleans up as Ctrl-C does; services that have better to do set their own.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        status = app(standalone_mode=False)
        if status == INTERRUPTED:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt  # noqa: TRY301 - told below, as one that typer did not see
    except KeyboardInterrupt:
        print(f"vitrina: {AGAIN}", file=sys.stderr)  # noqa: T201 - this is the command line
        status = INTERRUPTED
    except typer.Abort:  # a question that was not answered with yes
        status = INTERRUPTED
    except ClickException as error:
        error.show()
        status = error.exit_code
    except UsageError as error:
        print(f"vitrina: {printable(str(error))}", file=sys.stderr)  # noqa: T201 - this is the command line
        status = WRONG_USAGE
    except VitrinaError as error:
        print(f"vitrina: {printable(str(error))}", file=sys.stderr)  # noqa: T201 - this is the command line
        status = FAILED
    except BrokenPipeError:  # the reader of our output has gone; Python must not complain about it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = FAILED
    sys.exit(status if isinstance(status, int) else 0)
