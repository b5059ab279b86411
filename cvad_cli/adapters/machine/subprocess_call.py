"""Calls a function in a new process, with fresh memory, thread pools and imports."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Final, TypeVar

from cvad_cli.config.transfer import packed, portable_errors, unpacked
from cvad_cli.errors import ResourceError

Answer = TypeVar("Answer")

OUT_OF_MEMORY_SIGNALS: Final = tuple(
    getattr(signal, name)
    for name in ("SIGKILL", "SIGABRT")
    if hasattr(signal, name)  # Windows has one of them
)
"""Signals that end a process without enough memory: the system kills it, or a C++ library aborts."""


def in_fresh_process(function: Callable[..., Answer], *arguments: Any) -> Answer:
    """Call a module's function in a new Python process and return what it returns, or raise what it raises.

    Function, arguments and answer are pickled between the two processes, arguments without the settings' secrets.
    What the child's libraries print is dropped. Raises ResourceError where the process is killed, as one is that takes
    too much memory; TransferError where something cannot be pickled; RuntimeError where the process ends by itself
    without an answer.
    """
    name = function.__name__
    call = packed([function, *arguments], f"the arguments of {name}")
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    # Not a daemon: those may have no children, and data loaders have.
    child = context.Process(target=_answer, args=(sender, name, call))
    child.start()
    sender.close()
    try:
        is_answer, data = receiver.recv()
    except (EOFError, OSError):  # it ended before it sent, or while it did
        child.join()
        raise _without_answer(name, child.exitcode or 0) from None
    finally:
        receiver.close()
        _end(child)
    (found,) = unpacked(data, f"the answer of {name}")
    if not is_answer:
        raise found
    return found  # type: ignore[no-any-return]


def _without_answer(name: str, status: int) -> Exception:
    if status >= 0:
        return RuntimeError(f"the process for {name} ended with status {status} and no answer")
    message = f"the process for {name} was ended by {_signal_name(-status)} and gave no answer"
    if -status in OUT_OF_MEMORY_SIGNALS:
        message += "; if the machine is out of memory, use a smaller data.image_size or runtime.batch_size"
    return ResourceError(message)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _end(child: Any) -> None:
    """Let the process finish, or terminate it after 5 seconds: on Ctrl-C it may be in a long computation."""
    child.join(timeout=5)
    if child.is_alive():
        child.terminate()
        child.join()
    child.close()


def _answer(sender: Connection, name: str, call: bytes) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")
    try:
        with portable_errors():
            function, *arguments = unpacked(call, f"the arguments of {name}")
            sent = True, packed([function(*arguments)], f"the answer of {name}")
    except Exception as error:  # noqa: BLE001 - it is raised again on the other side
        sent = False, packed([error], f"the error of {name}")
    sender.send(sent)
    sender.close()
