"""Stand-ins of the hub: its HTTP interface on the loopback, and a repository in the cache."""

import base64
import hashlib
import json
import os
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "1" * 40


class Hub:
    """Repositories in memory; every commit replaces a branch's files of the same names.

    Attributes:
        repositories: Repository to branch to path to bytes.
        unknown: Requests that it has no answer to.
        tokens: What was sent as authorisation.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.objects: dict[str, bytes] = {}
        self.unknown: list[str] = []
        self.tokens: set[str] = set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def commit(self, repo: str, branch: str) -> str:
        """An id that changes with the branch's files."""
        files = self.repositories[repo][branch]
        text = repr(sorted((name, hashlib.sha1(data).hexdigest()) for name, data in files.items()))
        return hashlib.sha1(f"{repo}{text}".encode()).hexdigest()

    def branch_of(self, repo: str, revision: str) -> str | None:
        """The branch of a name or of a commit."""
        branches = self.repositories.get(repo, {})
        if revision in branches:
            return revision
        return next((b for b in branches if self.commit(repo, b) == revision), None)


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def answer(self, value: Any, status: int = 200, **headers: str) -> None:
            body = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            for name, text in headers.items():
                self.send_header(name.replace("_", "-"), text)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def refuse(self, code: str) -> None:
            self.answer({"error": code}, 404, X_Error_Code=code)

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                found = b""
                while size := int(self.rfile.readline(), 16):
                    found += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return found
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def handle_any(self) -> None:
            path = self.path.partition("?")[0]
            body = self.body()
            if token := self.headers.get("authorization"):
                hub.tokens.add(token)
            for pattern, answer in ROUTES:
                method, _, rest = pattern.partition(" ")
                found = re.fullmatch(rest, path)
                if found and self.command in method.split("|"):
                    answer(self, body, *found.groups())
                    return
            hub.unknown.append(f"{self.command} {self.path}")
            self.refuse("EntryNotFound")

        do_GET = do_HEAD = do_POST = do_PUT = handle_any

        def create(self, body: bytes) -> None:
            values = json.loads(body)
            name = f"{values.get('organization') or 'me'}/{values['name'].rsplit('/', 1)[-1]}"
            hub.repositories.setdefault(name, {"main": {}})
            self.answer({"url": f"{hub.address}/{name}", "name": name, "id": name})

        def valid(self, body: bytes) -> None:
            self.answer({"errors": [], "warnings": []})

        def branch(self, body: bytes, repo: str, name: str) -> None:
            hub.repositories[repo].setdefault(name, {})
            self.answer({})

        def preupload(self, body: bytes, repo: str, revision: str) -> None:
            files = json.loads(body)["files"]
            self.answer({"files": [
                {"path": f["path"], "shouldIgnore": False,
                 "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular"}
                for f in files
            ]})  # fmt: skip

        def batch(self, body: bytes, repo: str) -> None:
            values = json.loads(body)
            self.answer({"transfer": "basic", "objects": [
                {**one, "actions": {"upload": {"href": f"{hub.address}/objects/{one['oid']}"}}}
                for one in values["objects"]
            ]})  # fmt: skip

        def put_object(self, body: bytes, oid: str) -> None:
            assert hashlib.sha256(body).hexdigest() == oid
            hub.objects[oid] = body
            self.answer({})

        def take(self, body: bytes, repo: str, revision: str) -> None:
            files = hub.repositories[repo][revision]
            for line in body.splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    files[value["path"]] = hub.objects[value["oid"]]
            commit = hub.commit(repo, revision)
            url = f"{hub.address}/{repo}/commit/{commit}"
            self.answer({"commitUrl": url, "commitOid": commit, "success": True})

        def info(self, body: bytes, repo: str, revision: str | None) -> None:
            branch = hub.branch_of(repo, revision or "main")
            if repo not in hub.repositories:
                self.refuse("RepoNotFound")
            elif branch is None:
                self.refuse("RevisionNotFound")
            else:
                files = [{"rfilename": name} for name in hub.repositories[repo][branch]]
                sha = hub.commit(repo, branch)
                self.answer({"id": repo, "sha": sha, "siblings": files, "private": False})

        def tree(self, body: bytes, repo: str, revision: str, folder: str | None) -> None:
            files = hub.repositories[repo][hub.branch_of(repo, revision)]
            inside = [n for n in files if folder is None or n.startswith(folder.strip("/") + "/")]
            if folder is not None and not inside:
                self.refuse("EntryNotFound")
                return
            self.answer([
                {"type": "file", "path": name, "size": len(files[name]),
                 "oid": hashlib.sha1(files[name]).hexdigest()}
                for name in inside
            ])  # fmt: skip

        def resolve(self, body: bytes, repo: str, revision: str, name: str) -> None:
            branch = hub.branch_of(repo, revision)
            if branch is None:
                self.refuse("RepoNotFound")
                return
            files = hub.repositories[repo][branch]
            commit = hub.commit(repo, branch)
            if name not in files:
                self.answer({}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
                return
            etag = hashlib.sha1(files[name]).hexdigest()
            self.answer(files[name], X_Repo_Commit=commit, ETag=f'"{etag}"')

    repo = "([^/]+/[^/]+)"
    ROUTES = [
        ("POST /api/repos/create", Handler.create),
        ("POST /api/validate-yaml", Handler.valid),
        # Asked for once, to name the program in the requests.
        ("GET /api/agent-harnesses", Handler.valid),
        (f"POST /api/models/{repo}/branch/([^/]+)", Handler.branch),
        (f"POST /api/models/{repo}/preupload/([^/]+)", Handler.preupload),
        (f"POST /{repo}\\.git/info/lfs/objects/batch", Handler.batch),
        ("PUT /objects/([0-9a-f]+)", Handler.put_object),
        (f"POST /api/models/{repo}/commit/([^/]+)", Handler.take),
        (f"GET /api/models/{repo}/tree/([^/]+)(/.+)?", Handler.tree),
        (f"GET /api/models/{repo}(?:/revision/([^/]+))?", Handler.info),
        (f"GET|HEAD /{repo}/resolve/([^/]+)/(.+)", Handler.resolve),
    ]
    return Handler


def put(cache: Path, repo_id: str, folder: Path, commit: str = COMMIT, branch: str = "main"):
    """A repository as huggingface_hub's cache has it."""
    root = cache / f"models--{repo_id.replace('/', '--')}"
    blobs, snapshot = root / "blobs", root / "snapshots" / commit
    blobs.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
        blob, link = blobs / f"{commit[0]}{number}", snapshot / path.relative_to(folder)
        shutil.copy(path, blob)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / branch).write_text(commit)
