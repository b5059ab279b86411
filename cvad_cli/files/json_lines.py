"""One record as one line of JSON."""

from __future__ import annotations

import json


def json_line(record: object) -> bytes:
    """One line of JSON, UTF-8. A file name that is no UTF-8 is escaped, so that it can be read back.

    Raises ValueError for a number that JSON does not have.
    """
    text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    try:
        return f"{text}\n".encode()
    except UnicodeEncodeError:
        return f"{json.dumps(record, allow_nan=False)}\n".encode("ascii")
