"""A Qdrant server for tests: the REST requests that cvad sends, over a real socket, answered by qdrant-client's local
engine. It can be told to fail: every entry of `faults` spoils one request, in order.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pydantic import TypeAdapter
from qdrant_client import QdrantClient, models


class LoopbackQdrant(ThreadingHTTPServer):
    """`faults` holds: an HTTP status; 'before' or 'after' (the connection breaks before or after the request took
    effect); 'stall' (no answer in time); 'garbage' (an answer that is not JSON); 'echo' (a 400 that repeats the
    request's headers); None (no fault).
    """

    daemon_threads = True

    def __init__(self, api_key: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.api_key = api_key
        self.engine = QdrantClient(":memory:")
        self.faults: deque[int | str | None] = deque()
        self.only = ""
        """Faults wait for requests whose method and path contain this."""
        self.requests: list[str] = []
        self.bodies: list[Any] = []
        self.released = threading.Event()
        self.keeps_metadata = True
        self.retry_after = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, method: str, parts: list[str], body: Any) -> Any:  # noqa: PLR0911 - a table of requests
        name, rest, engine = parts[1], "/".join(parts[2:]), self.engine
        kind = {("PUT", ""): models.CreateCollection, ("PATCH", ""): models.UpdateCollection}.get((method, rest))
        asked = TypeAdapter(kind).validate_python(body) if kind else None
        if (method, rest) == ("GET", "exists"):
            return {"exists": engine.collection_exists(name)}
        if (method, rest) == ("GET", ""):
            return engine.get_collection(name)
        if (method, rest) == ("PUT", ""):
            kept = asked.metadata if self.keeps_metadata else None
            return engine.create_collection(name, vectors_config=asked.vectors, metadata=kept)
        if (method, rest) == ("PATCH", ""):
            return engine.update_collection(name, metadata=asked.metadata)
        if (method, rest) == ("DELETE", ""):
            return engine.delete_collection(name)
        if (method, rest) == ("PUT", "index"):
            return {"operation_id": 0, "status": "completed"}
        return self.answer_points(name, f"{method} {rest}", body)

    def answer_points(self, name: str, request: str, body: Any) -> Any:
        engine = self.engine
        chosen = TypeAdapter(models.Filter | None).validate_python(body.get("filter"))
        if request == "PUT points":
            return engine.upsert(name, TypeAdapter(list[models.PointStruct]).validate_python(body["points"]))
        if request == "POST points/query":
            return engine.query_points(name, body["query"]["nearest"], query_filter=chosen, limit=body["limit"])
        if request == "POST points/scroll":
            page = {"limit": body["limit"], "offset": body.get("offset"), "with_vectors": body["with_vector"]}
            found, offset = engine.scroll(name, scroll_filter=chosen, **page)
            return {"points": found, "next_page_offset": offset}
        if request == "POST points/count":
            return engine.count(name, count_filter=chosen)
        if request == "POST points/delete":
            return engine.delete(name, points_selector=models.FilterSelector(filter=chosen))
        raise LookupError(request)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LoopbackQdrant

    def handle_any(self) -> None:  # noqa: PLR0911 - one way out for each fault
        path = self.path.partition("?")[0]
        self.server.requests.append(f"{self.command} {path}")
        fault = None
        if self.server.faults and self.server.only in self.server.requests[-1]:
            fault = self.server.faults.popleft()
        if fault == "before":
            return self.break_off()
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        self.server.bodies.append(body)
        if fault == "stall":
            self.server.released.wait(10)
            return self.break_off()
        if fault == "garbage":
            return self.send(200, b"<html>a proxy's page</html>")
        if fault == "echo":
            return self.refuse(400, f"bad request with headers {dict(self.headers)}")
        if isinstance(fault, int):
            return self.refuse(fault, "told to fail")
        if self.server.api_key and self.headers.get("api-key") != self.server.api_key:
            return self.refuse(403 if self.headers.get("api-key") else 401, "Invalid API key or JWT")
        try:
            result = self.server.answer(self.command, path.strip("/").split("/"), body)
        except ValueError as error:
            return self.refuse(409 if "exists" in str(error) else 404, str(error))
        if fault == "after":
            return self.break_off()
        plain = TypeAdapter(Any).dump_python(result, mode="json")
        return self.send(200, json.dumps({"result": plain, "status": "ok", "time": 0.0}).encode())

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = handle_any  # noqa: N815

    def refuse(self, status: int, reason: str) -> None:
        self.send(status, json.dumps({"status": {"error": reason}, "time": 0.0}).encode())

    def send(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if self.server.retry_after:
            self.send_header("Retry-After", self.server.retry_after)
        self.end_headers()
        self.wfile.write(content)

    def break_off(self) -> None:
        """Reset the connection, as a server that is killed does."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def finish(self) -> None:
        if self.connection.fileno() >= 0:
            super().finish()

    def log_message(self, *arguments: object) -> None:
        """Tests want silence."""


@contextmanager
def loopback_qdrant(api_key: str | None = None) -> Iterator[LoopbackQdrant]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        server = LoopbackQdrant(api_key)
    # Short polls, since shutdown waits for one.
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        server.engine.close()
        thread.join()
