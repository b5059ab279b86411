"""How a section of the schema refuses a value."""

from __future__ import annotations


class BadSettingError(ValueError):
    """A value of the right type outside its range. `config.load` turns it into a message with the file's name."""

    def __init__(self, section: type, key: str, expected: str, got: object) -> None:
        super().__init__(f"{key}: expected {expected}, got {got!r}")
        self.section, self.key, self.expected, self.got = section, key, expected, got


def require(settings: object, key: str, allowed: bool, expected: str) -> None:
    """Raise BadSettingError for a setting that is not allowed."""
    if not allowed:
        raise BadSettingError(type(settings), key, expected, getattr(settings, key))
