"""A hub of models on this machine, which speaks as much of the Hugging Face hub's protocol as a download needs."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serve(models: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Serves folders by model name; gives the address, and the paths that are asked for, as they come."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self) -> None:
            path = urlsplit(self.path).path
            asked.append(path)
            for name, folder in models.items():
                if path.startswith(f"/api/models/{name}/tree/"):
                    self._send(json.dumps([_entry(file) for file in sorted(folder.iterdir())]).encode())
                    return
                if path.startswith(f"/api/models/{name}"):
                    files = [{"rfilename": file.name} for file in folder.iterdir()]
                    self._send(json.dumps({"id": name, "modelId": name, "sha": COMMIT, "siblings": files}).encode())
                    return
                if path.startswith(f"/{name}/resolve/"):
                    self._send((folder / path.rsplit("/", 1)[1]).read_bytes())
                    return
            self._send(b"{}", status=404, error="RepoNotFound")

        def _send(self, body: bytes, *, status: int = 200, error: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            if error:
                self.send_header("X-Error-Code", error)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _entry(file: Path) -> dict[str, object]:
    body = file.read_bytes()
    return {"type": "file", "path": file.name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
