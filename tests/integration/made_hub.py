"""A model hub and a file server of our own on loopback."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMIT = "c" * 40
PIPELINE = {
    "model_index.json": b'{"_class_name": "X"}',
    "unet/config.json": b"{}",
    "unet/model.fp16.safetensors": b"half" * 1000,
    "unet/model.non_ema.fp16.safetensors": b"half" * 1000,
    "unet/model.safetensors": b"full" * 2000,
    "unet/model.bin": b"pickle",
    "safety_checker/model.safetensors": b"full only",
    "single-file.safetensors": b"for other programs",
    "single-file.ckpt": b"pickle",
    "run.py": b"print('never fetched')",
}
NETWORK = {
    "config.json": b"{}",
    "model.safetensors.index.json": b"{}",
    "model-00001-of-00002.safetensors": b"one" * 500,
    "model-00002-of-00002.safetensors": b"two" * 500,
    "model.fp16.safetensors": b"half" * 500,
    "pytorch_model.bin": b"pickle",
    "tf_model.h5": b"other",
    "source.spm": b"words",
    "onnx/model.safetensors": b"other",
}
REPOS = {
    "pipeline": PIPELINE,
    "network": NETWORK,
    "old": {"config.json": b"{}", "pytorch_model.bin": b"pickle", "rust_model.ot": b"other"},
    "unsafe": {"model_index.json": b"{}", "vae/model.bin": b"pickle", "unet/model.safetensors": b"safe"},
    "empty": {"config.json": b"{}"},
    "checkpoint": {"config.json": b"{}", "README.md": b"a card", "checkpoints/own.pth": b"own" * 100},
    "checkpoints": {"one.pth": b"one" * 100, "two.pth": b"two" * 100, "model.safetensors.index.json": b"{}"},
    "sam": {"config.json": b'{"model_type": "sam"}', "model.safetensors": b"theirs", "own.pth": b"own" * 100},
    "hostile": {"model.safetensors": b"safe", "../outside.json": b"{}", "/outside.json": b"{}"},
}


class Server(BaseHTTPRequestHandler):
    """Speaks as much of the hub as fetching needs, and serves one file with ranges."""

    protocol_version = "HTTP/1.1"
    weights: ClassVar[bytes] = b"0123456789" * 1000
    asked: ClassVar[list[str]] = []
    ranges: ClassVar[list[str]] = []
    revisions: ClassVar[list[str]] = []
    damaged: ClassVar[set[str]] = set()
    """Files that arrive in their size with other bytes."""
    cut: ClassVar[list[int]] = []
    """Bytes after which the next answers break off."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass

    def do_HEAD(self) -> None:
        self.answer(head=True)

    def do_GET(self) -> None:
        self.answer(head=False)

    def answer(self, *, head: bool) -> None:
        path = self.path.partition("?")[0]
        if found := re.fullmatch(r"/api/models/shop/(\w+)/(revision|tree)/.*", path):
            files = REPOS.get(found[1])
            if files is None:
                self.refuse()
            elif found[2] == "revision":
                self.revisions.append(path.rpartition("/")[2])
                siblings = [described(name, data) for name, data in files.items()]
                config = json.loads(files.get("config.json", b"{}"))
                body = {"id": f"shop/{found[1]}", "sha": COMMIT, "siblings": siblings, "config": config}
                self.send(json.dumps(body).encode(), head=head)
            else:
                tree = [
                    {"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in files.items()
                ]
                self.send(json.dumps(tree).encode(), head=head)
        elif found := re.fullmatch(rf"/shop/(\w+)/resolve/{COMMIT}/(.*)", path):
            data = REPOS[found[1]][found[2]]
            if not head:
                self.asked.append(found[2])
            self.send(data if found[2] not in self.damaged else b"!" * len(data), head=head, of=data)
        elif path.endswith(".pth"):
            self.send_range(self.weights)
        else:
            self.refuse()

    def refuse(self) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send(self, data: bytes, *, head: bool, of: bytes = b"") -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha256(of or data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if not head:
            self.wfile.write(data)

    def send_range(self, data: bytes) -> None:
        asked = self.headers.get("Range", "")
        self.ranges.append(asked)
        first = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        if first >= len(data):
            self.send_response(416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(data) - first))
        self.end_headers()
        if self.cut:
            self.wfile.write(data[first : first + self.cut.pop()])
            self.close_connection = True
        else:
            self.wfile.write(data[first:])


def described(name: str, data: bytes) -> dict[str, Any]:
    """Return what the hub says of a file: of large ones their SHA-256 too."""
    lfs = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 130}
    return {"rfilename": name, "size": len(data), **({"lfs": lfs} if name.endswith(".safetensors") else {})}


@contextmanager
def serving() -> Iterator[str]:
    """Serve, with nothing noted and nothing broken, and yield the address."""
    for state in (Server.asked, Server.ranges, Server.revisions, Server.damaged, Server.cut):
        state.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        running.daemon_threads = True
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()
