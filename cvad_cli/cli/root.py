"""Turns every error into one message on standard error and the exit status of its class."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import traceback
from types import FrameType
from typing import Any, Final

import typer
from typer.core import TyperGroup

from cvad_cli.errors import CvadError

BUG_STATUS: Final = 70
INTERRUPT_STATUS: Final = 130
TERMINATE_STATUS: Final = 143
DEBUG_KEY: Final = "cvad.debug"


def remember_debug(context: typer.Context, wanted: bool) -> bool:
    """Store `--debug` in the context, where `RootGroup` reads it when an error occurs."""
    context.meta[DEBUG_KEY] = wanted or context.meta.get(DEBUG_KEY, False)
    return wanted


class RootGroup(TyperGroup):
    """The root command: turns errors into messages and exit statuses, in a shell and in tests."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Run the command; raise nothing but `typer.Exit`."""
        former = _exit_on_terminate()
        try:
            return super().invoke(ctx)
        except CvadError as error:
            raise _exit_with_status(ctx, f"error: {error}", error.exit_code) from None
        except KeyboardInterrupt:
            raise _exit_with_status(ctx, "interrupted; no file is left half-written", INTERRUPT_STATUS) from None
        except MemoryError:
            message = (
                "error: the machine is out of memory; lower train.max_memory, data.image_size or runtime.batch_size"
            )
            raise _exit_with_status(ctx, message, 7) from None
        except BrokenPipeError:
            # The reader of our output has gone (`cvad ... | head`): this is no error, and nobody reads a message.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise _exit_with_status(
                    ctx, f"bug: {type(error).__name__}: {error}\nRun again with --debug.", BUG_STATUS
                ) from None
            raise _exit_with_status(
                ctx, "error: no space left on the disk of the output; free some space, or set another output folder", 7
            ) from None
        except Exception as error:
            if isinstance(error, (typer.Exit, typer.Abort)) or type(error).__module__.startswith(("click", "typer")):
                raise
            message = (
                f"bug: {type(error).__name__}: {error}\nThis is a fault in cvad. Run again with --debug and report it."
            )
            raise _exit_with_status(ctx, message, BUG_STATUS) from None
        finally:
            if former is not None:
                signal.signal(signal.SIGTERM, former)


def _exit_with_status(ctx: typer.Context, message: str, status: int) -> typer.Exit:
    if ctx.meta.get(DEBUG_KEY, False) and status != INTERRUPT_STATUS:
        traceback.print_exc()
    with contextlib.suppress(OSError):  # standard error may be closed as well
        typer.secho(message, err=True, fg=typer.colors.RED if sys.stderr.isatty() else None)
    return typer.Exit(status)


def _exit_on_terminate() -> Any:
    """Let SIGTERM unwind like Ctrl-C, so that temporary files are removed. Only the main thread may set handlers."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(TERMINATE_STATUS)

    try:
        return signal.signal(signal.SIGTERM, stop)
    except ValueError:
        return None
