"""Frames of video files and cameras, through OpenCV."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from cvad_cli.errors import DataError

VIDEO_SUFFIXES: Final = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"})


def read_frames(source: Path | int, *, max_megapixels: float = 100.0) -> Iterator[np.ndarray]:
    """Yield each frame of a video file, or of the camera with that number, as uint8 RGB (h, w, 3).

    A camera is set to buffer at most one frame, so that frames are recent. Raises DataError, naming the file or the
    camera, if it cannot be opened, gives no frame, is too large, or stops giving frames.
    """
    import cv2

    name = f"camera:{source}" if isinstance(source, int) else str(source)
    capture = _opened(source, name)
    count = 0
    try:
        _require_bounded(capture, name, max_megapixels)
        if isinstance(source, int):
            capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        while True:
            given, frame = capture.read()
            if not given:
                break
            count += 1
            yield np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB if frame.ndim == 3 else cv2.COLOR_GRAY2RGB))
    finally:
        capture.release()
    if isinstance(source, int):
        raise DataError(f"{name}: gives no more images after {count}; is it still plugged in?")
    if not count:
        raise DataError(f"{name}: no frame can be decoded; convert it, to H.264 in MP4 for example")


def _opened(source: Path | int, name: str) -> Any:
    import cv2

    if isinstance(source, Path) and not source.is_file():
        raise DataError(f"{name}: no such file; check the path")
    logging = getattr(cv2.utils, "logging", cv2)  # OpenCV 5 moved it there
    before = logging.setLogLevel(0)
    try:
        capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
    finally:
        logging.setLogLevel(before)
    if not capture.isOpened():
        what = (
            "no such camera, or another program has it" if isinstance(source, int) else "is no video that OpenCV reads"
        )
        raise DataError(f"{name}: cannot be opened: {what}")
    return capture


def _require_bounded(capture: Any, name: str, max_megapixels: float) -> None:
    import cv2

    columns, rows = (int(capture.get(side)) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    if columns * rows > max_megapixels * 1e6:
        raise DataError(
            f"{name}: frames of {columns} x {rows} pixels are above the bound of {max_megapixels:g} megapixels; "
            "shrink them or raise data.max_megapixels"
        )
