"""Find, list, download and upload against a stand-in Hub, which also misbehaves."""

import logging
import socket
import time

import pytest
from stand_in_hub import git_hash, headers

from solar_plugins.errors import HubError
from solar_plugins.sharing import hub_session as hub_module
from solar_plugins.sharing.hub import describe, download, list_files, upload

pytestmark = pytest.mark.slow

FILES = {"README.md": "# a card\n", "recipe.yml": "base_model: org/base\n", "deep/er/notes.txt": "text\n"}
TOKEN = "hf_stand_in"


@pytest.fixture(autouse=True)
def _used(hub, monkeypatch, tmp_path):
    hub.use(monkeypatch, tmp_path / "home")
    monkeypatch.setattr(hub_module, "WAITS", (0.0,))


def refusal(function, *arguments, **options):
    """The message of the HubError, which never has the token, a traceback or a second line."""
    with pytest.raises(HubError) as caught:
        function(*arguments, **options)
    text = str(caught.value)
    assert TOKEN not in text
    assert "\n" not in text
    return text


@pytest.fixture
def bundle(tmp_path):
    folder = tmp_path / "bundle"
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


# ---- what works


def test_lists_and_downloads_what_a_repository_has(hub):
    repo = hub.repo("org/model", FILES | {"model.safetensors": b"\0" * 100})
    listing = list_files("org/model")
    assert listing.remote.commit == repo.refs["main"]
    assert {file.path: file.num_bytes for file in listing.files} == {
        ".gitattributes": 25,
        **{path: len(text) for path, text in FILES.items()},
        "model.safetensors": 100,
    }
    found = download(listing, [*FILES, "model.safetensors"], 1000)
    assert {path: found[path].read_text() for path in FILES} == FILES
    assert found["model.safetensors"].read_bytes() == b"\0" * 100


def test_pages_of_a_listing_are_followed(hub):
    hub.page_size = 7
    hub.repo("org/model", {f"file{i}": "x" for i in range(40)})
    assert len(list_files("org/model").files) == 41


def test_a_branch_a_tag_and_a_commit_are_revisions(hub):
    repo = hub.repo("org/model", {"a": "1"})
    first = repo.refs["main"]
    repo.tags["v1"] = first
    repo.commit({"a": "2"})
    repo.commit({"a": "3"}, branch="side")
    for revision, text in (("v1", "1"), (first, "1"), (None, "2"), ("main", "2"), ("side", "3")):
        listing = list_files("org/model", revision)
        assert download(listing, ["a"], 10)["a"].read_text() == text


def test_a_dataset_is_described(hub):
    repo = hub.repo("org/data", {"README.md": "---\nlicense: mit\n---\n"}, kind="dataset")
    found = describe("org/data", kind="dataset")
    assert (found.commit, found.card["license"]) == (repo.refs["main"], "mit")
    assert "cannot look it up" in refusal(describe, "org/data")


@pytest.mark.parametrize("private", [True, False])
def test_an_upload_is_one_commit_in_a_new_repository(hub, bundle, private):
    done = upload("tester/recipe", bundle, FILES, "share a recipe", private=private)
    repo = hub.repos["model", "tester/recipe"]
    assert [commit.title for commit in repo.commits.values()] == ["initial commit", "share a recipe"]
    assert {path: text.decode() for path, text in repo.head.files.items() if path in FILES} == FILES
    assert (done.private, repo.private) == (private, private)
    assert done.commit == repo.refs["main"]
    assert done.url == f"{hub.url}/tester/recipe"


def test_the_same_upload_again_commits_nothing(hub, bundle):
    first = upload("tester/recipe", bundle, FILES, "share")
    second = upload("tester/recipe", bundle, FILES, "share")
    assert second.commit == first.commit
    assert len(hub.repos["model", "tester/recipe"].commits) == 2


def test_an_upload_can_delete_files_and_keeps_the_rest(hub, bundle):
    repo = hub.repo("tester/recipe", {"old.yml": "x", "model.safetensors": b"weights"})
    upload("tester/recipe", bundle, ["recipe.yml"], "share", private=True, delete=["old.yml"])
    assert repo.head.files.keys() == {".gitattributes", "model.safetensors", "recipe.yml"}
    assert not repo.private  # An existing repository stays what it is.


def test_large_files_go_where_the_hub_asks(hub, tmp_path):
    (tmp_path / "x.lfs").write_bytes(b"binary")
    upload("tester/recipe", tmp_path, ["x.lfs"], "share")
    assert hub.repos["model", "tester/recipe"].head.files["x.lfs"] == b"binary"
    assert hub.asked("PUT", "/lfs-store/") == 1


# ---- the cache, and no network


def test_a_second_download_asks_for_no_content(hub):
    hub.repo("org/model", FILES)
    download(list_files("org/model"), FILES, 1000)
    hub.requests.clear()
    download(list_files("org/model"), FILES, 1000)
    assert not hub.asked("GET", "/resolve/")


def test_a_damaged_cached_file_is_downloaded_again(hub):
    hub.repo("org/model", FILES)
    listing = list_files("org/model")
    path = download(listing, ["README.md"], 1000)["README.md"]
    path.resolve().write_text("# a cord\n")
    assert download(listing, ["README.md"], 1000)["README.md"].read_text() == FILES["README.md"]


def test_offline_the_cache_is_used_and_nothing_is_asked(hub, monkeypatch):
    hub.repo("org/model", FILES)
    download(list_files("org/model"), ["recipe.yml"], 1000)
    hub.requests.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    listing = list_files("org/model")
    assert listing.from_cache
    assert list_files("org/model", listing.remote.commit).files == listing.files
    assert [file.path for file in listing.files] == ["recipe.yml"]
    assert download(listing, ["recipe.yml"], 1000)["recipe.yml"].read_text() == FILES["recipe.yml"]
    assert hub.requests == []


def test_offline_without_a_cached_copy(hub, monkeypatch, bundle):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    text = refusal(list_files, "org/model", "v1")
    assert "org/model@v1" in text
    assert "HF_HUB_OFFLINE" in text
    text = refusal(upload, "tester/recipe", bundle, FILES, "share")
    assert "nothing was uploaded" in text
    assert "HF_HUB_OFFLINE" in text
    assert hub.requests == []


# ---- faults, and their messages


def test_a_repository_that_does_not_exist(hub):
    text = refusal(list_files, "org/modle")
    assert "org/modle" in text
    assert "404" in text
    assert "does not exist, or it is private" in text
    assert "a token was sent" in text
    assert "hf auth login" in text


def test_a_private_repository_needs_a_token(hub, monkeypatch, tmp_path):
    hub.repo("org/secret", FILES, private=True)
    assert list_files("org/secret").files
    hub.use(monkeypatch, tmp_path / "nobody", token=None)
    text = refusal(list_files, "org/secret")
    assert "401" in text
    assert "no token was sent" in text


def test_a_token_that_is_not_valid(hub, monkeypatch, tmp_path):
    hub.repo("org/model", FILES)
    hub.use(monkeypatch, tmp_path / "home", token="hf_old")
    text = refusal(list_files, "org/model")
    assert "401 (Invalid credentials" in text
    assert "hf auth login" in text
    assert "hf_old" not in text


def test_a_gated_repository(hub):
    hub.repo("org/gated", FILES, gated=True)
    text = refusal(list_files, "org/gated")
    assert "403" in text
    assert f"accept its conditions at {hub.url}/org/gated" in text


def test_a_revision_that_does_not_exist(hub):
    hub.repo("org/model", FILES)
    text = refusal(list_files, "org/model", "v9")
    assert "org/model@v9" in text
    assert "branch, tag or commit" in text


def test_a_token_that_may_not_write(hub, bundle):
    text = refusal(upload, "someone/recipe", bundle, FILES, "share")
    assert "someone/recipe" in text
    assert "403" in text
    assert "write access to someone" in text
    assert ("model", "someone/recipe") not in hub.repos


def test_a_name_that_is_none():
    for name in ("a/b/c", "no spaces here", "../../etc", "org/\x1b[31mred", "-org/x"):
        text = refusal(list_files, name)
        assert "expected ORG/NAME" in text
        assert "\x1b" not in text


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_asked_again(hub, caplog, status):
    hub.repo("org/model", FILES)
    hub.misbehave("GET", "/api/models/org/model$|/api/models/org/model[?]", status=status, times=2)
    with caplog.at_level(logging.WARNING, "axolotl.solar_plugins.hub"):
        assert list_files("org/model").files
    assert [f"retry {n} of 3" in record.message for n, record in enumerate(caplog.records, 1)] == [True, True]
    assert str(status) in caplog.records[0].message


@pytest.mark.parametrize("path", ["/api/models/org/model[?]", "/tree/", "/resolve/"])
def test_it_is_asked_four_times_at_most(hub, path):
    hub.repo("org/model", FILES)
    for method in ("GET", "HEAD"):
        hub.misbehave(method, path, status=500, times=1000)
    with pytest.raises(HubError, match=r"500 .*after 4 attempts"):
        download(list_files("org/model"), ["recipe.yml"], 1000)
    assert hub.asked("GET", path) + hub.asked("HEAD", path) == 4


def test_the_time_that_the_hub_asks_for_is_waited_and_shown(hub, caplog, monkeypatch):
    slept = []
    monkeypatch.setattr(hub_module.time, "sleep", slept.append)
    hub.repo("org/model", FILES)
    hub.misbehave("GET", "/tree/", status=429, headers={"Retry-After": "7"})
    with caplog.at_level(logging.WARNING, "axolotl.solar_plugins.hub"):
        list_files("org/model")
    assert slept == [7]
    assert "429; waiting 7 s" in caplog.text


@pytest.mark.parametrize("cut", [-1, 3])
def test_a_cut_connection(hub, cut):
    hub.repo("org/model", FILES)
    hub.misbehave("GET", "/tree/", cut=cut)
    assert list_files("org/model").files
    hub.misbehave("GET", "/tree/", cut=cut, times=4)
    assert "the connection was cut" in refusal(list_files, "org/model")


def test_a_download_that_is_cut_resumes(hub):
    hub.repo("org/model", {"big.yml": "x" * 5000})
    hub.misbehave("GET", "/resolve/", cut=2000)
    path = download(list_files("org/model"), ["big.yml"], 10_000)["big.yml"]
    assert path.read_text() == "x" * 5000


def test_nobody_answers(hub, monkeypatch):
    hub.close()
    text = refusal(list_files, "org/model")
    assert "no connection" in text
    assert hub.url in text


def test_a_server_that_says_nothing(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.repo("org/model", FILES)
    hub.misbehave("GET", "/tree/", silence=0.6, times=4)
    start = time.monotonic()
    assert "no answer in time" in refusal(list_files, "org/model")
    assert time.monotonic() - start < 5


def test_an_address_that_serves_something_else(hub, monkeypatch):
    hub.misbehave("GET", "/api/", status=200, body=b"<html>log in to the network</html>", times=9)
    text = refusal(list_files, "org/model")
    assert "not in the Hub's form" in text
    assert "HF_ENDPOINT" in text


def test_credentials_in_the_address_are_not_shown(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://me:s3cret@127.0.0.1:{port}")
    text = refusal(list_files, "org/model")
    assert "s3cret" not in text
    assert f"http://127.0.0.1:{port}" in text


# ---- uploads that fail


def state(hub):
    """The files of the repository that was shared, without the Hub's own first file; None without a repository."""
    repo = hub.repos.get(("model", "tester/recipe"))
    return repo and repo.head.files.keys() - {".gitattributes"}


@pytest.mark.parametrize(
    "fault",
    [
        ("POST", "/repos/create", {"status": 500, "times": 4}),
        ("POST", "/repos/create", {"status": 403}),
        ("POST", "/preupload/", {"status": 500, "times": 4}),
        ("POST", "/preupload/", {"cut": -1, "times": 40}),
        ("POST", "/commit/", {"status": 401}),
        ("POST", "/commit/", {"status": 409}),
        ("POST", "/commit/", {"status": 412}),
        ("POST", "/commit/", {"status": 413}),
        ("POST", "/commit/", {"status": 429, "headers": {"Retry-After": "999"}}),
        ("POST", "/commit/", {"status": 500, "times": 4}),
        ("POST", "/commit/", {"status": 500, "cut": -1, "times": 4}),
    ],
    ids=str,
)
def test_a_failed_upload_shares_nothing_and_the_same_command_finishes_it(hub, bundle, fault, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    method, path, how = fault
    hub.misbehave(method, path, **how)
    text = refusal(upload, "tester/recipe", bundle, FILES, "share")
    assert "tester/recipe" in text
    assert not state(hub)
    if state(hub) is not None:
        assert "was created and has no file of yours" in text
        assert "run the same command again" in text
    hub.faults.clear()
    upload("tester/recipe", bundle, FILES, "share")
    assert state(hub) == FILES.keys()


def test_a_commit_that_was_made_although_the_answer_was_lost_is_not_made_twice(hub, bundle):
    hub.misbehave("POST", "/commit/", cut=-1, after_work=True)
    done = upload("tester/recipe", bundle, FILES, "share")
    repo = hub.repos["model", "tester/recipe"]
    assert len(repo.commits) == 2
    assert done.commit == repo.refs["main"]


def test_a_commit_that_lost_a_race(hub, bundle):
    repo = hub.repo("tester/recipe", {"other.yml": "1"})
    hub.misbehave("POST", "/commit/", after_work=True, before=lambda: repo.commit({"other.yml": "2"}))
    text = refusal(upload, "tester/recipe", bundle, FILES, "share")
    assert "412" in text
    assert "Nothing was committed" in text
    assert state(hub) == {"other.yml"}
    upload("tester/recipe", bundle, FILES, "share")
    assert state(hub) == {"other.yml", *FILES}
    assert repo.head.files["other.yml"] == b"2"


def test_a_file_outside_the_folder_is_not_uploaded(hub, bundle, tmp_path):
    (tmp_path / "private.txt").write_text("mine")
    (bundle / "link.yml").symlink_to(tmp_path / "private.txt")
    for path in ("../private.txt", "link.yml", str(tmp_path / "private.txt"), "no.yml"):
        text = refusal(upload, "tester/recipe", bundle, [path, "recipe.yml"], "share")
        assert path in text
        assert "Nothing was uploaded" in text
    assert hub.requests == []


# ---- a server that is hostile


def test_paths_that_lead_out_are_not_listed(hub):
    bad = ["../x.yml", "/etc/x.yml", "a/../../x.yml", "C:/x.yml", "a\\x.yml", "x\x1b[31m.yml", "a//x.yml", "x\n.yml"]
    hub.repo("org/model", {"good.yml": "1", **dict.fromkeys(bad, "2")})
    listing = list_files("org/model")
    assert [file.path for file in listing.files] == [".gitattributes", "good.yml"]
    assert len(listing.refused) == len(bad)
    assert all(text.isprintable() for text in listing.refused)


@pytest.mark.parametrize(
    ("method", "path", "how", "says"),
    [
        ("HEAD", "/resolve/", headers(ETag='"../../../../etag"'), "ETag"),
        ("HEAD", "/resolve/", headers(ETag='"/abs/olute"'), "ETag"),
        ("HEAD", "/resolve/", headers(X_Linked_Etag=".."), "ETag"),
        ("HEAD", "/resolve/", headers(X_Repo_Commit="../../commit"), "commit"),
        ("HEAD", "/resolve/", headers(X_Repo_Commit="0" * 40), "is of commit 000"),
        ("HEAD", "/resolve/", headers(Content_Length="3"), "size"),
        ("GET", "/resolve/", headers(Content_Length="9000000000"), "more than the expected 21"),
        ("GET", "/resolve/", lambda s, h, b: (s, h | {"Content-Length": "18"}, b[:18]), "size"),
        ("GET", "/resolve/", lambda s, h, b: (s, h, b[:-1] + b"!"), "not the file that the listing describes"),
        ("GET", "/resolve/", headers(Content_Encoding="gzip"), "compressed"),
        ("GET", "/tree/", lambda s, h, b: (s, h, b.replace(b'"size": 21', b'"size": -1')), "-1"),
        ("GET", "/tree/", lambda s, h, b: (s, h, b.replace(b'"size": 21', b'"size": "x"')), "'x'"),
        ("GET", "/tree/", lambda s, h, b: (s, {}, b"[" * 100_000), "not in the Hub's form"),
        ("GET", "/tree/", lambda s, h, b: (s, {}, b'[{"type": "file"}]'), "not in the Hub's form"),
        ("GET", "/tree/", lambda s, h, b: (s, {}, b" " * 17_000_000), "more than the expected"),
        ("GET", "org/model[?]", lambda s, h, b: (s, {}, b'{"id": "x", "sha": "../../x"}'), "'../../x'"),
        ("GET", "org/model[?]", lambda s, h, b: (s, {}, b'{"id": "x"}'), "None"),
        ("GET", "org/model[?]", lambda s, h, b: (302, {"Location": "/api/models/org/model?x=1"}, b""), "redirect"),
    ],
)
def test_a_hostile_answer_writes_nothing_outside_the_cache(hub, tmp_path, method, path, how, says):
    hub.repo("org/model", FILES)
    assert git_hash(FILES["recipe.yml"].encode())
    hub.misbehave(method, path, change=how, times=1000)

    def fetch():
        return download(list_files("org/model"), ["recipe.yml"], 1000)

    assert says in refusal(fetch)
    cache = tmp_path / "home/hub"
    outside = [p for p in tmp_path.rglob("*") if p.is_file() and not p.is_relative_to(cache)]
    assert outside == []
    assert not [p for p in cache.rglob("recipe.yml") if p.exists()]


def test_a_download_that_is_always_cut_ends(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    hub.repo("org/model", {"big.yml": "x" * 5000})
    hub.misbehave("GET", "/resolve/", cut=1, times=10_000)
    assert "the connection was cut" in refusal(lambda: download(list_files("org/model"), ["big.yml"], 10_000))
    assert hub.asked("GET", "/resolve/") <= 24  # Four attempts, each of which resumes five times.


def test_more_bytes_than_asked_for_are_not_downloaded(hub):
    hub.repo("org/model", {"a.yml": "x" * 600, "b.yml": "y" * 600})
    text = refusal(lambda: download(list_files("org/model"), ["a.yml", "b.yml"], 1000))
    assert "1.2 kB" in text
    assert "1 kB" in text
    assert not hub.asked("GET", "/resolve/")
