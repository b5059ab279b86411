"""A function in a process of its own: memory, thread pools and imports that nothing before it has touched."""

from __future__ import annotations

import logging
import multiprocessing
import os
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from cvad_cli.config.transfer import packed, unpacked
from cvad_cli.errors import ResourceError

Answer = TypeVar("Answer")


def in_fresh_process(function: Callable[..., Answer], *arguments: Any) -> Answer:
    """Call a module's function in a new Python process and return what it returns, or raise what it raises.

    Function, arguments and answer are pickled between the two processes, arguments without the settings' secrets.
    What the child's libraries print is dropped.
    Raises ResourceError where the process ends without an answer, as one does that the system kills for its memory.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    # Not a daemon: those may have no children, and data loaders have.
    child = context.Process(target=_answer, args=(sender, packed((function, arguments))))
    child.start()
    sender.close()
    try:
        answer, error = receiver.recv()
    except EOFError:
        child.join()
        raise ResourceError(
            f"the process for {function.__name__} ended with status {child.exitcode} and no answer; if the machine is "
            "out of memory, use a smaller data.image_size or runtime.batch_size"
        ) from None
    finally:
        receiver.close()
        _end(child)
    if error is not None:
        raise error
    return answer  # type: ignore[no-any-return]


def _end(child: Any) -> None:
    """Let the process finish, and make it if it will not: on Ctrl-C it may be in the middle of something long."""
    child.join(timeout=5)
    if child.is_alive():
        child.terminate()
        child.join()
    child.close()


def _answer(sender: Connection, call: bytes) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")
    try:
        function, arguments = unpacked(call)
        outcome: tuple[Any, BaseException | None] = (function(*arguments), None)
    except Exception as error:  # noqa: BLE001 - it is raised again on the other side
        outcome = (None, error)
    try:
        sender.send(outcome)
    except (TypeError, AttributeError, ValueError) as error:  # what cannot be pickled
        sender.send((None, RuntimeError(f"{outcome[1] or error!r}")))
    sender.close()
