"""A Hugging Face hub on 127.0.0.1: what huggingface_hub's client asks of one, with repositories held in memory.

Weights go by Git LFS, all else within the commit. Answers and error codes are those of huggingface.co.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session, disable_progress_bars

TOKEN = "hf_standInTokenOfOwner"
LARGE = (".safetensors", ".bin", ".msgpack", ".h5", ".onnx", ".model", ".spm")  # kept by LFS


@dataclass
class Repository:
    """branches: name -> commit. commits: id -> path -> content."""

    private: bool = False
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str = "") -> str:
        whole = self.commits.get(self.branches.get(branch, ""), {}) | files
        number = hashlib.sha1(f"{len(self.commits)} {branch}".encode()).hexdigest()
        self.branches[branch], self.commits[number] = number, whole
        self.messages.append(message)
        return number

    def resolved(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)


class StandInHub:
    """repositories: by name. requests: (method, path) of all. faults: (method, part of the path) -> (status, told)."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.faults: dict[tuple[str, str], tuple[int, str]] = {}
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, name: str, files: dict[str, bytes], **options: bool) -> Repository:
        """A repository with one commit."""
        made = self.repositories[name] = Repository(**options)
        made.commit("main", files)
        return made

    def files(self, name: str, branch: str = "main") -> dict[str, bytes]:
        """What a branch holds."""
        repository = self.repositories[name]
        return repository.commits[repository.branches[branch]]

    def asked(self, method: str, part: str) -> list[str]:
        """The paths of the requests so far that contain `part`."""
        return [path for verb, path in self.requests if verb == method and part in path]


class Refused(Exception):
    """status, error code, message."""


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _etag(path: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if path.endswith(LARGE) else _blob(content)


class _Handler(BaseHTTPRequestHandler):
    hub: StandInHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _handle(self):
        quoted = urlsplit(self.path).path
        path = unquote(quoted)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append((self.command, path))
        try:
            for (method, part), (status, told) in self.hub.faults.items():
                if method == self.command and part in path:
                    raise Refused(status, "", told)
            for pattern, answer in ROUTES:
                found = re.fullmatch(pattern, f"{self.command} {quoted}")
                if found:
                    return answer(self, **{name: unquote(value) for name, value in found.groupdict().items()})
            raise Refused(404, "", "no such page")
        except Refused as error:
            status, code, told = error.args
            self._send(json.dumps({"error": told}).encode(), status, {"X-Error-Code": code, "X-Error-Message": told})

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value):
        self._send(json.dumps(value).encode(), headers={"Content-Type": "application/json"})

    def _authorized(self) -> bool:
        given = self.headers.get("Authorization", "")
        if given and given != f"Bearer {TOKEN}":
            raise Refused(401, "", "Invalid credentials in Authorization header")
        return bool(given)

    def _repository(self, name: str, write: bool = False) -> Repository:
        known, found = self._authorized(), self.hub.repositories.get(name)
        if found is None or (found.private and not known):
            raise Refused(404 if known else 401, "RepoNotFound", "Repository not found")
        if write and not (known and name.startswith("lab/")):
            raise Refused(403, "", "You do not have the rights to write here")
        return found

    def _commit(self, found: Repository, revision: str | None) -> str:
        number = found.resolved(revision or "main")
        if number is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return number

    def info(self, name, revision=None):
        found = self._repository(name)
        number = self._commit(found, revision)
        siblings = [{"rfilename": path} for path in found.commits[number]]
        self._json({"id": name, "sha": number, "private": found.private, "gated": found.gated, "siblings": siblings})

    def tree(self, name, revision):
        found = self._repository(name)
        files = found.commits[self._commit(found, revision)]
        entries = [{"type": "file", "path": p, "size": len(c), "oid": _blob(c)} for p, c in files.items()]
        for entry in entries:
            if entry["path"].endswith(LARGE):
                content = files[entry["path"]]
                entry["lfs"] = {"oid": _etag(entry["path"], content), "size": len(content), "pointerSize": 134}
        self._json(entries)

    def folder(self, name, revision, path):
        """No repository here has one."""
        self._commit(self._repository(name), revision)
        raise Refused(404, "EntryNotFound", f"{path} does not exist")

    def file(self, name, revision, path):
        found = self._repository(name)
        if found.gated:
            raise Refused(403, "GatedRepo", "Access to this model is restricted")
        number = self._commit(found, revision)
        if path not in found.commits[number]:
            raise Refused(404, "EntryNotFound", "Entry not found")
        content = found.commits[number][path]
        headers = {"ETag": f'"{_etag(path, content)}"', "X-Repo-Commit": number}
        # A client that was interrupted asks for what is missing, and some versions do not notice that they get all.
        rest = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if rest and 0 < int(rest[1]) < len(content):
            place = f"bytes {rest[1]}-{len(content) - 1}/{len(content)}"
            self._send(content[int(rest[1]) :], 206, headers | {"Content-Range": place})
        else:
            self._send(content, headers=headers)

    def create(self):
        wanted = json.loads(self.body)
        name = f"{wanted['organization']}/{wanted['name']}"
        if not self._authorized():
            raise Refused(401, "", "Invalid username or password.")
        if wanted["organization"] != "lab":
            raise Refused(403, "", "You do not have the rights to create a model there")
        if name in self.hub.repositories:
            raise Refused(409, "", "You already created this model repo")
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.hub.add(name, {".gitattributes": b"*.safetensors filter=lfs\n"}, private=private)
        self._json({"url": f"{self.hub.address}/{name}", "name": name})

    def branch(self, name, branch):
        found = self._repository(name, write=True)
        found.branches.setdefault(branch, found.branches["main"])
        self._json({})

    def validate(self):
        content = json.loads(self.body)["content"]
        if not re.match(r"---\n.*?\n---\n", content, re.DOTALL):
            return self._json({"warnings": [{"message": "empty or missing yaml metadata in repo card"}], "errors": []})
        self._json({"warnings": [], "errors": []})

    def preupload(self, name, revision):
        found = self._repository(name, write=True)
        held = found.commits[self._commit(found, revision)]
        answers = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
                "oid": _etag(file["path"], held[file["path"]]) if file["path"] in held else None,
            }
            for file in json.loads(self.body)["files"]
        ]
        self._json({"files": answers})

    def batch(self, name):
        self._repository(name, write=True)
        objects = [{"oid": o["oid"], "size": o["size"]} for o in json.loads(self.body)["objects"]]
        for item in objects:
            if item["oid"] not in self.hub.large:
                item["actions"] = {"upload": {"href": f"{self.hub.address}/lfs/{item['oid']}"}}
        self._json({"transfer": "basic", "objects": objects})

    def store(self, number):
        if hashlib.sha256(self.body).hexdigest() != number:
            raise Refused(400, "", "the content is not what its digest says")
        self.hub.large[number] = self.body
        self._send(b"")

    def commit(self, name, revision):
        found = self._repository(name, write=True)
        self._commit(found, revision)
        header, *lines = [json.loads(line) for line in self.body.splitlines()]
        files = {}
        for line in lines:
            value = line["value"]
            large = line["key"] == "lfsFile"
            files[value["path"]] = self.hub.large[value["oid"]] if large else base64.b64decode(value["content"])
        number = found.commit(revision, files, header["value"]["summary"])
        self._json({"commitUrl": f"{self.hub.address}/{name}/commit/{number}", "commitOid": number})


NAME, REVISION = r"(?P<name>[\w.-]+/[\w.-]+)", r"(?P<revision>[^/]+)"
ROUTES = (
    (r"POST /api/repos/create", _Handler.create),
    (r"POST /api/validate-yaml", _Handler.validate),
    (rf"POST /api/models/{NAME}/preupload/{REVISION}", _Handler.preupload),
    (rf"POST /api/models/{NAME}/commit/{REVISION}", _Handler.commit),
    (rf"POST /api/models/{NAME}/branch/(?P<branch>.+)", _Handler.branch),
    (rf"POST /{NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    (r"PUT /lfs/(?P<number>\w+)", _Handler.store),
    (rf"GET /api/models/{NAME}", _Handler.info),
    (rf"GET /api/models/{NAME}/revision/{REVISION}", _Handler.info),
    (rf"GET /api/models/{NAME}/tree/{REVISION}", _Handler.tree),
    (rf"GET /api/models/{NAME}/tree/{REVISION}/(?P<path>.+)", _Handler.folder),
    (rf"(?:GET|HEAD) /{NAME}/resolve/{REVISION}/(?P<path>.+)", _Handler.file),
)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in that the client in this process asks, with the owner's token and an empty cache."""
    made = StandInHub()
    # What the client has read from HF_ENDPOINT, HF_HUB_CACHE, HF_TOKEN_PATH and HF_HUB_DISABLE_XET as it was imported.
    template = made.address + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {
        "ENDPOINT": made.address,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_CACHE": str(tmp_path / "hub-cache"),
        "HF_TOKEN_PATH": str(tmp_path / "no-token"),
        "HF_HUB_DISABLE_XET": True,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    disable_progress_bars()  # as programs do whose output is no terminal
    yield made
    close_session()
    made.close()
