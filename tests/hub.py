"""A hub on loopback: the few answers of the Hugging Face hub that devctl and transformers ask for."""

import contextlib
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Repositories by id: a folder of files, or the status that every request for it gets."""

    url: str = ""
    repos: dict[str, Path | tuple[int, str]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)


@contextlib.contextmanager
def serve():
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def answer(self, status, body=b"", *, head=False, **headers):
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if not head:
                self.wfile.write(body)

        def do_HEAD(self):
            self.do_GET(head=True)

        def do_GET(self, head=False):
            path = self.path.partition("?")[0].strip("/")
            hub.requests.append(f"{self.command} {path}")
            hub.tokens.append(self.headers.get("Authorization"))
            parts = path.split("/")
            api = parts[:2] == ["api", "models"]
            if api:
                parts = parts[2:]
            repo = "/".join(parts[:2])
            content = hub.repos.get(repo, (404, "RepoNotFound"))
            if isinstance(content, tuple):
                status, code = content
                self.answer(status, b"{}", head=head, X_Error_Code=code, X_Error_Message=f"{code} at {repo}")
                return
            if api:
                info = {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": p.name} for p in content.iterdir()]}
                self.answer(200, json.dumps(info).encode(), head=head, Content_Type="application/json")
                return
            revision, name = parts[3], "/".join(parts[4:])
            if revision not in ("main", COMMIT):
                self.answer(404, b"", head=head, X_Error_Code="RevisionNotFound")
                return
            file = content / name
            if not file.is_file():
                self.answer(404, b"", head=head, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
                return
            body = file.read_bytes()
            etag = f'"{hashlib.sha256(body).hexdigest()}"'
            status = 200
            if wanted := self.headers.get("Range"):
                hub.ranges.append(wanted)
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                status, body = 206, body[int(first) : int(last) + 1]
            self.answer(status, body, head=head, ETag=etag, X_Repo_Commit=COMMIT)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
