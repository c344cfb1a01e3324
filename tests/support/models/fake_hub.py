"""A hub of one repository on this machine: what its client asks for a file, and nothing else."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread


@dataclass
class FakeHub:
    """What is served.

    :param revisions: The folder of files of each commit.
    :param names: The commit of each branch and tag.
    :param status: What it answers where nothing is asked for.
    :param asked: The paths of all requests.
    """

    repository: str
    revisions: Mapping[str, Path]
    names: dict[str, str]
    status: int = 200
    asked: list[str] = field(default_factory=list)
    endpoint: str = ""

    def found(self, path: str) -> tuple[str, Path] | None:
        before, _, rest = path.strip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        commit = self.names.get(revision, revision)
        file = self.revisions.get(commit, Path("nowhere")) / name
        return (commit, file) if before == self.repository and name and file.is_file() else None


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    class Handler(BaseHTTPRequestHandler):
        def _head(self) -> bytes:
            hub.asked.append(self.path)
            found = hub.found(self.path)
            content = found[1].read_bytes() if found else b""
            self.send_response(200 if found else hub.status if self.path == "/" else 404)
            if found:
                self.send_header("X-Repo-Commit", found[0])
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            elif self.path != "/":
                self.send_header("X-Error-Code", "EntryNotFound" if hub.repository in self.path else "RepoNotFound")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            return content

        def do_HEAD(self) -> None:
            self._head()

        def do_GET(self) -> None:
            self.wfile.write(self._head())

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
