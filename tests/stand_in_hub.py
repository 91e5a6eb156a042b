"""A stand-in for the Hub: an HTTP server on loopback that speaks the part of its API that huggingface_hub needs.

Point a process at it with ``HF_ENDPOINT`` (`StandInHub.environment`), or this process (`StandInHub.use`). It keeps
everything in memory. `StandInHub.misbehave` makes it answer with errors, cut connections or send slowly.

The answers have what huggingface_hub 1.33 reads (``hf_api.py``, ``_commit_api.py``, ``lfs.py``, ``file_download.py``).
"""

import base64
import hashlib
import json
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml

FIRST_COMMIT = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
HUB_ERRORS = {
    "RepoNotFound": (404, "Repository not found"),
    "RevisionNotFound": (404, "Invalid rev id"),
    "EntryNotFound": (404, "Entry not found"),
    "GatedRepo": (403, "Access to this model is restricted and you are not in the authorized list."),
}


def git_hash(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def headers(**new):
    """Change the head of an answer."""
    return lambda status, old, body: (status, old | {key.replace("_", "-"): text for key, text in new.items()}, body)


@dataclass
class Commit:
    id: str
    title: str
    date: datetime
    files: dict  # path -> bytes
    lfs: frozenset = frozenset()


@dataclass
class Repo:
    kind: str
    name: str
    private: bool = False
    gated: bool = False
    commits: dict = field(default_factory=dict)
    refs: dict = field(default_factory=dict)  # branch -> commit id
    tags: dict = field(default_factory=dict)

    def commit(self, files, title="commit", branch="main", deleted=(), lfs=()):
        """Add a commit; `files` is path -> str or bytes."""
        parent = self.commits.get(self.refs.get(branch))
        added = {path: text.encode() if isinstance(text, str) else text for path, text in files.items()}
        content = dict(parent.files) if parent else {}
        content = {p: t for p, t in content.items() if p not in deleted and not p.startswith(tuple(deleted) or "\0")}
        content |= added
        date = FIRST_COMMIT + timedelta(days=len(self.commits))
        seed = repr((parent.id if parent else "", title, date, sorted(content.items()))).encode()
        commit_id = hashlib.sha1(seed).hexdigest()
        all_lfs = frozenset((*(parent.lfs if parent else ()), *lfs)) & content.keys()
        self.commits[commit_id] = Commit(commit_id, title, date, content, all_lfs)
        self.refs[branch] = commit_id
        return commit_id

    def find(self, revision):
        commit = self.refs.get(revision) or self.tags.get(revision) or revision
        return self.commits.get(commit)

    @property
    def head(self):
        """The newest commit of the main branch."""
        return self.commits[self.refs["main"]]


@dataclass
class Fault:
    method: str
    path: str  # regular expression
    times: int = 1
    status: int | None = None
    headers: dict = field(default_factory=dict)
    body: bytes = b""
    cut: int | None = None  # close the connection after this many bytes of the body; -1: before the status line
    seconds_per_byte: float = 0.0
    after_work: bool = False  # do what was asked, then fail
    before: object = None  # called first, such as: another commit arrives
    change: object = None  # (status, headers, body) -> the same, changed
    silence: float = 0.0  # seconds before the answer


class StandInHub:
    """The server. Users are token -> name; `anonymous` requests carry no token."""

    def __init__(self):
        self.repos = {}
        self.users = {"hf_stand_in": "tester"}
        self.organizations = ["org"]
        self.read_only = set()  # tokens that may not write
        self.faults = []
        self.requests = []
        self.stored = {}  # LFS: sha256 -> bytes
        self.lfs_names = re.compile(r"\.(safetensors|bin|gguf|lfs)$")
        self.page_size = 1000
        self.lock = threading.RLock()
        hub = self

        class Handler(_Handler):
            standing_in = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def repo(self, name, files=None, *, kind="model", private=False, gated=False, lfs=()):
        """Create a repository, with a first commit of ``files`` (path -> str or bytes)."""
        made = self.repos[kind, name] = Repo(kind, name, private, gated)
        made.commit({".gitattributes": "*.safetensors filter=lfs\n"}, "initial commit")
        if files:
            lfs = lfs or [path for path in files if self.lfs_names.search(path)]
            made.commit(files, "first files", lfs=lfs)
        return made

    def folder(self, name, folder, **options):
        """A repository with the files of a local folder."""
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}
        return self.repo(name, files, **options)

    def misbehave(self, method, path, **how):
        """Make the next ``times`` requests whose method and path (a regular expression) match fail; see `Fault`."""
        self.faults.append(Fault(method, path, **how))

    def asked(self, method, path):
        """How many requests matched."""
        return sum(m == method and bool(re.search(path, p)) for m, p, _ in self.requests)

    def environment(self, home, token="hf_stand_in", **more):
        """The environment of a process that uses this Hub, with a Hub folder of its own."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(Path(home) / "hub"),
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_TOKEN": token or "",
            "NO_PROXY": "127.0.0.1",
        } | more

    def use(self, monkeypatch, home, token="hf_stand_in"):
        """Make this process use this Hub. huggingface_hub reads its environment once, when it is imported."""
        from huggingface_hub import constants
        from huggingface_hub.utils import close_session

        for key, value in self.environment(home, token).items():
            monkeypatch.setenv(key, value)
        for key, value in {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(Path(home) / "hub"),
            "HUGGINGFACE_HUB_CACHE": str(Path(home) / "hub"),
            "HF_TOKEN_PATH": str(Path(home) / "token"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
        }.items():
            monkeypatch.setattr(constants, key, value)
        close_session()
        return self


class _Answered(Exception):
    def __init__(self, status, headers=None, body=b""):
        self.status, self.headers, self.body = status, headers or {}, body


def _hub_error(code):
    status, message = HUB_ERRORS[code]
    return _Answered(status, {"X-Error-Code": code, "X-Error-Message": message}, _json({"error": message}))


def _json(value):
    return json.dumps(value).encode()


def _iso(date):
    return date.strftime("%Y-%m-%dT%H:%M:%S.000Z")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    standing_in = None
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        hub = self.standing_in
        self.hub = hub
        self.close_connection = False
        body_length = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.sent = b"".join(iter(self._chunk, b""))
        else:
            self.sent = self.rfile.read(body_length)
        with hub.lock:
            hub.requests.append((self.command, self.path, dict(self.headers)))
            matching = (f for f in hub.faults if f.method == self.command and re.search(f.path, self.path))
            fault = next((f for f in matching if f.times > 0), None)
            if fault:
                fault.times -= 1
        if fault and fault.before:
            fault.before()
        if fault and fault.silence:
            time.sleep(fault.silence)
        if fault and not fault.after_work and fault.status is not None:
            answer = fault.status, dict(fault.headers), fault.body
        else:
            try:
                with hub.lock:
                    answer = self._answer()
            except _Answered as answered:
                answer = answered.status, answered.headers, answered.body
            if fault and fault.after_work and fault.status is not None:
                answer = fault.status, dict(fault.headers), fault.body
        if fault and fault.change:
            answer = fault.change(*answer)
        self._send(*answer, fault)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _chunk(self):
        size = int(self.rfile.readline().split(b";")[0], 16)
        data = self.rfile.read(size)
        self.rfile.readline()
        return data

    def _send(self, status, headers, body, fault):
        headers.setdefault("Content-Length", str(len(body)))
        if fault and fault.cut == -1:
            self.close_connection = True
            return
        try:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self._send_body(body, fault)
        except OSError:
            self.close_connection = True

    def _send_body(self, body, fault):
        if fault and fault.seconds_per_byte:
            for place in range(len(body)):
                self.wfile.write(body[place : place + 1])
                self.wfile.flush()
                time.sleep(fault.seconds_per_byte)
        elif fault and fault.cut is not None:
            self.wfile.write(body[: fault.cut])
            self.wfile.flush()
            self.close_connection = True
        else:
            self.wfile.write(body)

    # ---- what the Hub does

    @property
    def user(self):
        bearer = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if bearer and bearer not in self.hub.users:
            message = "Invalid credentials in Authorization header"
            raise _Answered(401, {"X-Error-Message": message}, _json({"error": message}))
        return self.hub.users.get(bearer)

    def _answer(self):
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        path = url.path
        for method, pattern, function in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in method.split():
                return function(self, **{key: unquote(value) for key, value in found.groupdict().items() if value})
        return 404, {}, _json({"error": f"the stand-in knows no {self.command} {path}"})

    def _repo(self, kind, name, write=False):
        repo = self.hub.repos.get((kind, name))
        user = self.user
        if repo is None or (repo.private and not user):
            raise _Answered(
                401 if not user else 404,
                {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"},
                _json({"error": "Repository not found"}),
            )
        if write:
            self._may_write(name)
        return repo

    def _may_write(self, name):
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        owner = name.split("/")[0]
        if not self.user:
            message = "Invalid username or password."
            raise _Answered(401, {"X-Error-Message": message}, _json({"error": message}))
        if token in self.hub.read_only or owner not in (self.user, *self.hub.organizations):
            message = f"You don't have the rights to create a model under the namespace {owner!r}"
            raise _Answered(403, {"X-Error-Message": message}, _json({"error": message}))

    def _commit(self, kind, name, revision, reads_files=True):
        repo = self._repo(kind, name)
        if repo.gated and reads_files and self.user not in (repo.gated if isinstance(repo.gated, list) else []):
            raise _hub_error("GatedRepo")
        commit = repo.find(revision)
        if commit is None:
            raise _hub_error("RevisionNotFound")
        return repo, commit

    def validate_yaml(self):
        return 200, {}, _json({"errors": [], "warnings": []})

    def create(self):
        asked = json.loads(self.sent)
        name = f"{asked.get('organization') or self.user}/{asked['name']}"
        kind = asked.get("type") or "model"
        self._may_write(name)
        url = f"{self.hub.url}/{name}"
        if (kind, name) in self.hub.repos:
            message = "You already created this model repo"
            return 409, {"X-Error-Message": message}, _json({"error": message, "url": url})
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.hub.repo(name, kind=kind, private=private)
        return 200, {}, _json({"url": url, "name": name, "id": name})

    def info(self, kind, name, revision="main"):
        repo, commit = self._commit(kind, name, revision, reads_files=False)
        siblings = [{"rfilename": path, "size": len(commit.files[path])} for path in sorted(commit.files)]
        matter = re.match(rb"---\n(.*?)\n---", commit.files.get("README.md", b""), re.DOTALL)
        return (
            200,
            {"X-Repo-Commit": commit.id},
            _json(
                {
                    "id": name,
                    "sha": commit.id,
                    "private": repo.private,
                    "gated": "manual" if repo.gated else False,
                    "lastModified": _iso(commit.date),
                    "cardData": yaml.safe_load(matter[1]) if matter else None,
                    "siblings": siblings,
                    "tags": [],
                }
            ),
        )

    def _entry(self, commit, path):
        content = commit.files[path]
        entry = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
        if path in commit.lfs:
            sha = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": sha, "size": len(content), "pointerSize": 130}
        return entry

    def tree(self, kind, name, revision, path=""):
        _, commit = self._commit(kind, name, revision)
        recursive = self.query.get("recursive") == ["true"]
        entries, seen = [], set()
        for file in sorted(commit.files):
            if path and not file.startswith(path + "/"):
                continue
            rest = file.removeprefix(path + "/") if path else file
            folders = rest.split("/")[:-1]
            for depth in range(1, len(folders) + 1):
                folder = "/".join([*([path] if path else []), *folders[:depth]])
                if folder not in seen and (recursive or depth == 1):
                    seen.add(folder)
                    entries.append({"type": "directory", "path": folder, "size": 0, "oid": "0" * 40})
            if recursive or not folders:
                entries.append(self._entry(commit, file))
        start = int(self.query.get("cursor", ["0"])[0])
        page = entries[start : start + self.hub.page_size]
        headers = {}
        if start + self.hub.page_size < len(entries):
            more = "&".join(f"{key}={values[0]}" for key, values in self.query.items() if key != "cursor")
            address = f"{self.hub.url}{urlsplit(self.path).path}?{more}&cursor={start + self.hub.page_size}"
            headers["Link"] = f'<{address}>; rel="next"'
        return 200, headers, _json(page)

    def refs(self, kind, name):
        repo = self._repo(kind, name)
        branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in repo.refs.items()]
        tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": c} for n, c in repo.tags.items()]
        return 200, {}, _json({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})

    def commits(self, kind, name, revision):
        repo, commit = self._commit(kind, name, revision)
        history = [c for c in repo.commits.values() if c.date <= commit.date]
        return (
            200,
            {},
            _json(
                [
                    {"id": c.id, "title": c.title, "message": "", "date": _iso(c.date), "authors": [{"user": "tester"}]}
                    for c in reversed(history)
                ]
            ),
        )

    def new_branch(self, kind, name, branch):
        repo = self._repo(kind, name, write=True)
        start = json.loads(self.sent or b"{}").get("startingPoint") or "main"
        repo.refs[branch] = repo.find(start).id
        return 200, {}, _json({})

    def new_tag(self, kind, name, revision):
        repo = self._repo(kind, name, write=True)
        repo.tags[json.loads(self.sent)["tag"]] = repo.find(revision).id
        return 200, {}, _json({})

    def preupload(self, kind, name, revision):
        repo = self._repo(kind, name, write=True)
        commit = repo.find(revision)
        if commit is None:
            raise _hub_error("RevisionNotFound")
        files = []
        for file in json.loads(self.sent)["files"]:
            is_lfs = bool(self.hub.lfs_names.search(file["path"]))
            old = commit.files.get(file["path"])
            oid = None if old is None else hashlib.sha256(old).hexdigest() if is_lfs else git_hash(old)
            mode = "lfs" if is_lfs else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return 200, {}, _json({"files": files})

    def new_commit(self, kind, name, revision):
        repo = self._repo(kind, name, write=True)
        commit = repo.find(revision)
        if commit is None:
            raise _hub_error("RevisionNotFound")
        added, deleted, lfs, title = {}, [], [], "commit"
        for line in self.sent.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                title = value["summary"]
                parent = value.get("parentCommit")
                if parent and parent != commit.id:
                    message = "A commit has happened since. Please refresh and try again."
                    return 412, {"X-Error-Message": message}, _json({"error": message})
            elif item["key"] == "file":
                added[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.hub.stored:
                    return 400, {}, _json({"error": f"LFS object {value['oid']} was not uploaded"})
                added[value["path"]] = self.hub.stored[value["oid"]]
                lfs.append(value["path"])
            elif item["key"] == "deletedFile":
                deleted.append(value["path"])
        new = repo.commit(added, title, revision, deleted, lfs)
        address = f"{self.hub.url}/{name}/commit/{new}"
        return 200, {}, _json({"success": True, "commitUrl": address, "commitOid": new, "hookOutput": ""})

    def settings(self, kind, name):
        repo = self._repo(kind, name, write=True)
        asked = json.loads(self.sent)
        repo.private = asked.get("visibility", "private" if asked.get("private") else "public") == "private"
        return 200, {}, _json({"private": repo.private})

    def resolve(self, name, revision, path, kind="model"):
        kind = kind.removesuffix("s/") if kind.endswith("s/") else kind
        _, commit = self._commit(kind, name, revision)
        if path not in commit.files:
            raise _Answered(
                404,
                {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found", "X-Repo-Commit": commit.id},
                b"Entry not found",
            )
        content = commit.files[path]
        headers = {"X-Repo-Commit": commit.id, "Accept-Ranges": "bytes", "Content-Type": "text/plain; charset=utf-8"}
        if path in commit.lfs:
            sha = hashlib.sha256(content).hexdigest()
            self.hub.stored[sha] = content
            headers |= {"X-Linked-Etag": f'"{sha}"', "X-Linked-Size": str(len(content)), "ETag": '"redirect"'}
            # Another host, as the Hub's content network is: the token must not be sent there.
            headers["Location"] = f"{self.hub.url.replace('127.0.0.1', 'localhost')}/lfs-store/{sha}?name={quote(path)}"
            return 302, headers, b"Found"
        return self._ranged(content, headers | {"ETag": f'"{git_hash(content)}"'})

    def _ranged(self, content, headers):
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not asked:
            return 200, headers | {"Content-Length": str(len(content))}, content
        start, end = int(asked[1]), int(asked[2] or len(content) - 1)
        part = content[start : end + 1]
        return 206, headers | {"Content-Range": f"bytes {start}-{start + len(part) - 1}/{len(content)}"}, part

    def store(self, sha):
        if self.command == "PUT":
            if hashlib.sha256(self.sent).hexdigest() != sha:
                return 400, {}, b"wrong content"
            self.hub.stored[sha] = self.sent
            return 200, {"ETag": f'"{sha}"'}, b""
        if sha not in self.hub.stored:
            return 404, {}, b""
        return self._ranged(self.hub.stored[sha], {"ETag": f'"{sha}"'})

    def lfs_batch(self, name, kind="model"):
        self._may_write(name)
        objects = []
        for item in json.loads(self.sent)["objects"]:
            answer = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.stored:
                actions = {
                    "upload": {"href": f"{self.hub.url}/lfs-store/{item['oid']}", "header": {}},
                    "verify": {"href": f"{self.hub.url}/lfs-verify", "header": {}},
                }
                answer["actions"] = actions
            objects.append(answer)
        return 200, {"Content-Type": "application/vnd.git-lfs+json"}, _json({"transfer": "basic", "objects": objects})

    def lfs_verify(self):
        stored = self.hub.stored.get(json.loads(self.sent)["oid"])
        return (200 if stored is not None else 404), {}, b""


_KIND = r"/api/(?P<kind>model|dataset|space)s"
_NAME = r"(?P<name>[^/]+/[^/]+)"
ROUTES = [
    ("POST", "/api/validate-yaml", _Handler.validate_yaml),
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", rf"{_KIND}/{_NAME}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    ("POST", rf"{_KIND}/{_NAME}/commit/(?P<revision>[^/]+)", _Handler.new_commit),
    ("GET", rf"{_KIND}/{_NAME}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", _Handler.tree),
    ("GET", rf"{_KIND}/{_NAME}/refs", _Handler.refs),
    ("GET", rf"{_KIND}/{_NAME}/commits/(?P<revision>[^/]+)", _Handler.commits),
    ("POST", rf"{_KIND}/{_NAME}/branch/(?P<branch>[^/]+)", _Handler.new_branch),
    ("POST", rf"{_KIND}/{_NAME}/tag/(?P<revision>[^/]+)", _Handler.new_tag),
    ("PUT", rf"{_KIND}/{_NAME}/settings", _Handler.settings),
    ("GET", rf"{_KIND}/{_NAME}/revision/(?P<revision>[^/]+)", _Handler.info),
    ("GET", rf"{_KIND}/{_NAME}", _Handler.info),
    ("POST", rf"/(?P<kind>datasets/)?{_NAME}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("POST", "/lfs-verify", _Handler.lfs_verify),
    ("GET HEAD PUT", r"/lfs-store/(?P<sha>[0-9a-f]{64})", _Handler.store),
    ("GET HEAD", rf"/(?P<kind>datasets/)?{_NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
]


@contextmanager
def stand_in_hub():
    """A running `StandInHub`."""
    hub = StandInHub()
    try:
        yield hub
    finally:
        hub.close()
