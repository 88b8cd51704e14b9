"""What went wrong, as a command says it: few lines on standard error, and the exit status 2."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

MOST = 1000  # characters of a message

_UsageError: Any = typer.BadParameter.__base__  # click's, or that of typer's own copy of click


class ClearGroup(TyperGroup):
    """The commands, of which none floods the screen with what it was given, or ends in a traceback for want of letters.

    Output that the terminal's encoding has no letters for is written as ``\\u...``.
    """

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the command line."""
        open_closed_streams()
        for name in ("COLUMNS", "LINES", "TERMINAL_WIDTH"):
            if not _is_size(os.environ.get(name, "80")):
                del os.environ[name]
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        return super().main(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        """Run one command."""
        try:
            return super().invoke(ctx)
        except _UsageError as error:
            error.message = shortened(error.message)
            raise
        except BrokenPipeError:
            raise  # whoever reads has read enough, which typer knows
        except OSError as error:
            refuse(ctx.info_name, error)


@contextmanager
def clear(command: str) -> Iterator[None]:
    """What went wrong within as a line; and of what was stopped, with exit status 130, that it can go on."""
    try:
        yield
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        typer.echo("\nstopped; what is finished is kept: run the same command again to go on", err=True)
        raise typer.Exit(130) from None
    except (ValueError, OSError, ImportError) as error:
        refuse(command, error)


def refuse(command: str, why: object) -> NoReturn:
    """End the command, saying why."""
    say(f"{command}: {why}")
    raise typer.Exit(2)


def say(text: str) -> None:
    """Write to standard error what may hold anything that was given."""
    typer.echo(shortened(text), err=True)


def open_closed_streams() -> None:
    """Let what is written to a standard stream that was closed go nowhere.

    Otherwise the next file that is opened would get its number, a ledger for one, and what is written to it.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115  # until the end


def _is_size(text: str) -> bool:
    """Whether it is a terminal's: at another one rich would write letter below letter, or fill lines for hours."""
    return text.isdecimal() and len(text) <= 4 and 20 <= int(text) <= 1000


def shortened(text: str) -> str:
    """Text without its middle, where it is long, and with what a terminal would act upon as an escape."""
    shown = text if len(text) <= MOST else f"{text[: MOST // 2]} ... {text[-MOST // 2 :]}"
    return "".join(
        letter if letter.isprintable() or letter == "\n" else letter.encode("unicode_escape").decode()
        for letter in shown
    )
