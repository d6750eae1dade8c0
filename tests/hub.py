"""A hub on loopback: the few answers of the Hugging Face hub that devctl and transformers ask for, and its failures."""

import contextlib
import hashlib
import json
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Fault:
    """What goes wrong with a file, ``times`` over; then it is served as it is.

    Attributes:
        status: answered instead of the file.
        keep: bytes of the body that are sent before the connection ends.
        reset: it ends with a reset, as one does whose peer has crashed; else as one that is closed.
        hold: seconds that nothing is sent for, after ``keep`` bytes.
        heads: HEAD requests meet it too.
    """

    status: int = 0
    keep: int | None = None
    reset: bool = False
    hold: float = 0
    times: int = 10**9
    heads: bool = False
    facts: dict[str, str] = field(default_factory=dict)
    """Headers that are sent in place of the right ones."""
    trickle: float = 0
    """Seconds between two bytes of the body."""


@dataclass
class Hub:
    """Repositories by id: a folder of files, or the status that every request for it gets; faults by file's name."""

    url: str = ""
    repos: dict[str, Path | tuple[int, str]] = field(default_factory=dict)
    faults: dict[str, Fault] = field(default_factory=dict)
    redirected: bool = False
    """Files are answered with a redirect to another address, as the real hub's weights are."""
    requests: list[str] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    holding: threading.Event = field(default_factory=threading.Event)
    """Set once a file is held back."""
    closing: threading.Event = field(default_factory=threading.Event)


def point_at(hub, folder, monkeypatch):
    """Let this process take ``hub`` for the hub, with ``folder`` as its home: what a new one reads from variables."""
    home = {"HF_HUB_CACHE": str(folder / "cache"), "HF_TOKEN_PATH": str(folder / "token")}
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE
    address = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + template[template.index("/{repo_id}") :],
        "HF_HUB_OFFLINE": False,
    }
    for name, value in (home | address).items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", hub.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)


@contextlib.contextmanager
def serve():
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def answer(self, status, body=b"", *, head=False, fault=None, **headers):
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if head:
                return
            if fault is None:
                self.wfile.write(body)
                return
            for byte in body if fault.trickle else b"":
                with contextlib.suppress(OSError):
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                if hub.closing.wait(fault.trickle):
                    return
            self.wfile.write(body[: fault.keep])
            self.wfile.flush()
            if fault.hold:
                hub.holding.set()
                hub.closing.wait(fault.hold)
            self.close_connection = True
            if fault.reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()

        def do_HEAD(self):
            self.do_GET(head=True)

        def do_GET(self, head=False):
            path = self.path.partition("?")[0].strip("/")
            elsewhere = path.startswith("elsewhere/")
            path = path.removeprefix("elsewhere/")
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
            self.answer_file(content, parts[3], "/".join(parts[4:]), head=head, elsewhere=elsewhere)

        def answer_file(self, folder, revision, name, *, head, elsewhere):
            if revision not in ("main", COMMIT):
                self.answer(404, b"", head=head, X_Error_Code="RevisionNotFound")
                return
            file = folder / name
            if not file.is_file():
                self.answer(404, b"", head=head, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
                return
            fault = hub.faults.get(name)
            if fault is not None and (fault.times <= 0 or (head and not fault.heads)):
                fault = None
            if fault is not None:
                fault.times -= 1
                if fault.status:
                    self.answer(fault.status, b"{}", head=head, X_Repo_Commit=COMMIT)
                    return
            body = file.read_bytes()
            etag = f'"{hashlib.sha256(body).hexdigest()}"'
            if hub.redirected and not elsewhere:
                facts = {"X_Linked_Size": str(len(body)), "X_Linked_Etag": etag, "X_Repo_Commit": COMMIT}
                self.answer(302, b"", head=head, Location=f"{hub.url}/elsewhere{self.path}", **facts)
                return
            status, facts = 200, {}
            if wanted := self.headers.get("Range"):
                hub.ranges.append(wanted)
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                end = int(last) + 1 if last else len(body)
                facts["Content_Range"] = f"bytes {first}-{min(end, len(body)) - 1}/{len(body)}"
                status, body = 206, body[int(first) : end]
            facts = {"ETag": etag, "X_Repo_Commit": COMMIT, **facts, **(fault.facts if fault else {})}
            self.answer(status, body, head=head, fault=fault, **facts)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    # shutdown() waits for as long as it polls
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
