"""Calls to a Qdrant server: which failures are temporary, how long to wait, and what to tell the user."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar, final

from cvad_cli.errors import StoreError

FIRST_PAUSE_S: Final = 0.25
LONGEST_PAUSE_S: Final = 10.0
_TRANSIENT_HTTP: Final = {408, 429, 500, 502, 503, 504}
_TRANSIENT_GRPC: Final = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "INTERNAL"}
_REFUSED: Final = {401, 403, "UNAUTHENTICATED", "PERMISSION_DENIED"}
_ABSENT: Final = {404, "NOT_FOUND"}
_LONGEST_REASON: Final = 300

T = TypeVar("T")


class RefusedError(StoreError):
    """The server answered that this cannot be done: `code` is an HTTP status or the name of a gRPC one."""

    def __init__(self, message: str, code: int | str | None) -> None:
        super().__init__(message)
        self.code = code

    @property
    def absent(self) -> bool:
        """True where the server knows no such collection."""
        return self.code in _ABSENT


@final
class RetryingClient:
    """Runs one request, repeats it after temporary failures, and raises other failures as StoreError without secrets.

    Every request of a store can be repeated safely: points are replaced by id, and removed points stay removed.
    """

    def __init__(
        self, location: str, *, retries: int, api_key: str | None = None, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.location = location
        self._retries, self._sleep = retries, sleep
        self._api_key = api_key

    def __call__(self, request: Callable[[], T]) -> T:
        """The result of `request`, from the first attempt that succeeds."""
        for attempt in range(self._retries + 1):
            try:
                return request()
            except Exception as error:  # noqa: PERF203 - a retry is a try in a loop
                if not _comes_from_client(error):
                    raise
                if not _is_transient(error) or attempt == self._retries:
                    failure = self._store_error(error, attempt + 1)
                    # A traceback shows the causes, and a text from the server or a library may contain the key.
                    raise failure from (None if self._api_key else error)
                self._sleep(_pause(error, attempt))
        raise AssertionError("a loop of at least one attempt ends inside")

    def _store_error(self, error: Exception, attempts: int) -> StoreError:
        code = _code(error)
        reason = _reason(error)
        if self._api_key:
            reason = reason.replace(self._api_key, "***")
        reason = reason[:_LONGEST_REASON]
        if code in _REFUSED:
            state = "the API key is refused" if self._api_key else "asks for an API key"
            remedy = "set qdrant.api_key, for example to ${oc.env:QDRANT_API_KEY}"
            return RefusedError(f"{self.location}: {state} ({code}); {remedy}", code)
        if code in _ABSENT:
            return RefusedError(f"{self.location}: there is no such defect index on the server ({reason})", code)
        if code is not None and not _is_transient(error):
            return RefusedError(f"{self.location}: the server refuses: {reason} ({code})", code)
        tries = "1 attempt" if attempts == 1 else f"{attempts} attempts"
        what = f"no usable answer after {tries}: {reason}" + (f" ({code})" if code is not None else "")
        return StoreError(
            f"{self.location}: {what}; check qdrant.url and that the server runs, "
            "or raise qdrant.timeout_s and .retries"
        )


def _comes_from_client(error: Exception) -> bool:
    """False for bugs in cvad, which keep their own traceback."""
    import grpc
    from qdrant_client.common.client_exceptions import QdrantException
    from qdrant_client.http.exceptions import ApiException

    return isinstance(error, (ApiException, QdrantException, grpc.RpcError, json.JSONDecodeError))


def _is_transient(error: Exception) -> bool:
    import httpx
    from qdrant_client.http.exceptions import ResponseHandlingException

    if isinstance(error, ResponseHandlingException):
        passing = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError)
        return isinstance(error.source, passing) and "CERTIFICATE_VERIFY_FAILED" not in str(error.source)
    code = _code(error)
    return code in _TRANSIENT_HTTP or code in _TRANSIENT_GRPC


def _code(error: Any) -> int | str | None:
    """HTTP status, name of the gRPC status, or None where no answer came."""
    import grpc
    from qdrant_client.common.client_exceptions import QdrantException
    from qdrant_client.http.exceptions import UnexpectedResponse

    if isinstance(error, UnexpectedResponse):
        return int(error.status_code) if error.status_code is not None else None
    if isinstance(error, QdrantException):
        return 429  # the client raises this for status 429; the base class where Retry-After holds a date
    if isinstance(error, grpc.RpcError) and isinstance(error, grpc.Call):
        return str(error.code().name)
    return None


def _reason(error: Any) -> str:
    """The reason in one line: the server's message where there is one."""
    import grpc
    import httpx
    from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

    if isinstance(error, UnexpectedResponse):
        text = error.content.decode("utf-8", "replace")
        try:
            text = str(json.loads(text)["status"]["error"])
        except (ValueError, KeyError, TypeError):
            text = text or error.reason_phrase
        return " ".join(text.split())
    if isinstance(error, grpc.RpcError) and isinstance(error, grpc.Call):
        return " ".join(str(error.details()).split())
    source = error.source if isinstance(error, ResponseHandlingException) else error
    if not isinstance(source, httpx.HTTPError):
        # Its message would quote parts of the answer.
        return f"an answer that is not Qdrant's ({type(source).__name__})"
    return f"{type(source).__name__}: {' '.join(str(source).split())}".rstrip(": ")


def _pause(error: Exception, attempt: int) -> float:
    """Seconds before the next attempt: doubled each time, or as long as the server asks for, within bounds."""
    asked = float(getattr(error, "retry_after_s", 0) or 0)
    return float(min(max(FIRST_PAUSE_S * 2**attempt, asked), LONGEST_PAUSE_S))
