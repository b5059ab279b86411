"""Replaces files and folders in one step, so that none is left half-written, and locks them between processes."""

from cvad_cli.files.atomic import recover, remove_folder, replacing, replacing_folder, require_writable
from cvad_cli.files.durable import sync_file, sync_folder
from cvad_cli.files.json_lines import json_line
from cvad_cli.files.locks import LockedError, ProcessLock, taking_turns
from cvad_cli.files.scratch import scratch_folder

__all__ = [
    "LockedError",
    "ProcessLock",
    "json_line",
    "recover",
    "remove_folder",
    "replacing",
    "replacing_folder",
    "require_writable",
    "scratch_folder",
    "sync_file",
    "sync_folder",
    "taking_turns",
]
