"""A stand-in for the Hugging Face hub, on loopback, which can be told to fail.

It answers what `huggingface_hub.hf_hub_download` asks, as the hub does: JSON files come
from it, all others, as with git LFS, from a store that it redirects to.
"""

import collections
import dataclasses
import hashlib
import http.server
import sys
import threading
import urllib.parse
from collections.abc import Callable


#: Answers a request, in place of the handler that it is given.
Fault = Callable[["_Handler"], None]


@dataclasses.dataclass
class Repository:
    """Commits, of the files at each, and the names of some of them."""

    commits: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)
    refs: dict[str, str] = dataclasses.field(default_factory=dict)
    token: str | None = None
    gated: bool = False


@dataclasses.dataclass(frozen=True)
class Request:
    """A request that was answered: `revision` is none if it went to the store."""

    method: str
    file: str
    revision: str | None
    token: str | None
    range: str | None


class HubServer(http.server.ThreadingHTTPServer):
    """The hub. `url` is its endpoint, `requests` what it was asked, in order."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = collections.defaultdict(Repository)
        self.store: dict[str, tuple[str, bytes]] = {}
        self.requests: list[Request] = []
        self.faults: dict[tuple[str, str], tuple[Fault, int]] = {}
        self.errors: list[BaseException | None] = []
        self.closing = threading.Event()

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """Clients may hang up; anything else is a mistake here."""
        if not isinstance(error := sys.exception(), ConnectionError):
            self.errors.append(error)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def push(self, name: str, files: dict[str, bytes], revision: str = "main") -> str:
        """Makes a commit of `files`, which `revision` names from now on."""
        repository = self.repositories[name]
        text = repr((name, len(repository.commits), files))
        commit = _sha1(text.encode())
        repository.commits[commit] = files
        repository.refs[revision] = commit
        return commit

    def order(self, method: str, file: str, fault: Fault, times: int = 1_000) -> None:
        """Answers the next requests for a file, from wherever it comes, with a fault."""
        self.faults[method, file] = fault, times

    def asked(self, method: str) -> list[str]:
        """The files that were asked for, in order."""
        return [request.file for request in self.requests if request.method == method]


def status(code: int, error: str | None = None) -> Fault:
    return lambda handler: handler.refuse(code, error)


def half(handler: "_Handler") -> None:
    """Hangs up in the middle."""
    handler.send(handler.content, whole=False)
    handler.close_connection = True


def stall(handler: "_Handler") -> None:
    """Falls silent in the middle."""
    half(handler)
    handler.server.closing.wait(60)


def silence(handler: "_Handler") -> None:
    """Does not answer."""
    handler.server.closing.wait(60)
    handler.close_connection = True


def short(handler: "_Handler") -> None:
    """Sends less, and says so."""
    handler.send(handler.content[:-3])


def stranger(handler: "_Handler") -> None:
    """Answers like a server that is not the hub."""
    handler.commit = None
    handler.send(b"Please log in to this network.")


def after(action: Callable[[], object]) -> Fault:
    """Answers as usual once something has happened."""

    def fault(handler: "_Handler") -> None:
        action()
        handler.answer()

    return fault


class _Handler(http.server.BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        match urllib.parse.urlsplit(self.path).path.strip("/").split("/"):
            case ["store", digest]:
                self.commit = None
                self.file, self.content = self.server.store[digest]
                self.serve(None)
            case [*name, "resolve", revision, file]:
                self.file = file
                self.resolve("/".join(name), urllib.parse.unquote(revision))
            case _:
                self.refuse(404)

    do_HEAD = do_GET  # noqa: N815

    def resolve(self, name: str, revision: str) -> None:
        repository = self.server.repositories.get(name, Repository())
        self.commit = repository.refs.get(revision, revision)
        files = repository.commits.get(self.commit, {})
        self.content = files.get(self.file)
        self.serve(revision, self.error(repository))

    def error(self, repository: Repository) -> Fault | None:
        """What is wrong with the request, if anything is."""
        refused = 401 if self.token is None else 403
        if not repository.commits:
            return status(401 if self.token is None else 404, "RepoNotFound")
        if repository.token not in (None, self.token):
            return status(refused, "GatedRepo" if repository.gated else "RepoNotFound")
        if self.commit not in repository.commits:
            return status(404, "RevisionNotFound")
        return None if self.content is not None else status(404, "EntryNotFound")

    @property
    def token(self) -> str | None:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def serve(self, revision: str | None, error: Fault | None = None) -> None:
        key = self.command, self.file
        self.server.requests.append(
            Request(*key, revision, self.token, self.headers.get("Range"))
        )
        fault, times = self.server.faults.get(key, (None, 0))
        if fault is not None and times > 0:
            self.server.faults[key] = fault, times - 1
            fault(self)
        elif error is not None:
            error(self)
        else:
            self.answer()

    def answer(self) -> None:
        if self.commit is None or self.file.endswith(".json"):
            self.send(self.content)
        else:
            self.redirect()

    def refuse(self, code: int, error: str | None = None) -> None:
        self.send_response(code)
        if error is not None:
            self.send_header("X-Error-Code", error)
        if error == "EntryNotFound":
            self.send_header("X-Repo-Commit", self.commit)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def redirect(self) -> None:
        """To the store, which has another origin: it is not to see tokens."""
        digest = hashlib.sha256(self.content).hexdigest()
        self.server.store[digest] = self.file, self.content
        self.send_response(302)
        port = self.server.server_port
        self.send_header("Location", f"http://localhost:{port}/store/{digest}")
        self.send_header("X-Repo-Commit", self.commit)
        self.send_header("X-Linked-ETag", f'"{digest}"')
        self.send_header("X-Linked-Size", str(len(self.content)))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send(self, content: bytes, *, whole: bool = True) -> None:
        """Announces the part of `content` that is asked for; sends it whole or half."""
        size = len(content)
        start = int(self.headers.get("Range", "bytes=0-")[len("bytes=") : -1])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        if self.commit is not None:
            self.send_header("X-Repo-Commit", self.commit)
        self.send_header("ETag", f'"{_sha1(b"blob %d" % size + bytes(1) + content)}"')
        self.send_header("Content-Length", str(size - start))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[start : size if whole else (start + size) // 2])
            self.wfile.flush()


def _sha1(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()
