import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import pytest

from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling.base_model import find_base
from solar_plugins.upscaling.checkpoint import ensure_checkpoint
from solar_plugins.upscaling.companions import MAX_BYTES, REMADE, Reason, companions_in, judge
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.marker import MARKER
from solar_plugins.upscaling.verify import verify_checkpoint
from solar_plugins.upscaling.weight_files import INDEX

DUS = LayerPlan.from_sources(8, [*range(6), *range(2, 8)])


def put(directory, *names, content="{}"):
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(content)


def upscaled(base, tmp_path, *, code=False):
    return ensure_checkpoint(find_base(str(base), trust_remote_code=code), DUS, tmp_path / "cache")


def files_in(directory):
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


# --- every file that some loader opens ------------------------------------------------------------------------------


def tokenizer_classes():
    import transformers
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    for name in filter(None, TOKENIZER_MAPPING_NAMES.values()):
        getattr(transformers, name)  # loads its module
    found, left = set(), [transformers.PreTrainedTokenizerBase]
    while left:
        left += (subclasses := left.pop().__subclasses__())
        found |= set(subclasses)
    return found


def test_every_vocabulary_file_of_every_tokenizer_is_kept():
    classes = tokenizer_classes()
    assert len(classes) > 80
    names = {name for kind in classes for name in kind.vocab_files_names.values() if name}
    assert {"spiece.model", "vocab.txt", "bpe.codes", "emoji.json", "source.spm", "prophetnet.tokenizer"} <= names
    assert judge(dict.fromkeys(names, 1), code=False).left == {}


def test_every_file_that_transformers_loads_beside_the_weights_is_kept():
    from transformers import tokenization_utils_base, utils
    from transformers.utils import hub

    weights = {"WEIGHTS_NAME", "SAFE_WEIGHTS_NAME", "ADAPTER_CONFIG_NAME", "ADAPTER_WEIGHTS_NAME"}
    weights |= {"ADAPTER_SAFE_WEIGHTS_NAME", "TF_WEIGHTS_NAME", "FLAX_WEIGHTS_NAME", "TF2_WEIGHTS_NAME", "CONFIG_NAME"}
    names = {
        value
        for module in (utils, hub, tokenization_utils_base)
        for key, value in vars(module).items()
        if key.endswith(("_NAME", "_FILE")) and isinstance(value, str) and "." in value and key not in weights
    }
    names = {name for name in names if not name.endswith((".index.json", ".py"))}
    assert {"preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"} <= names
    assert {"generation_config.json", "chat_template.jinja", "chat_template.json", "added_tokens.json"} <= names
    assert judge(dict.fromkeys(names, 1), code=False).left == {}
    assert judge({f"{hub.CHAT_TEMPLATE_DIR}/tool_use.jinja": 1}, code=False).left == {}


def test_side_files_of_quantizers_and_licenses_are_kept_in_any_case():
    names = ["quantize_config.json", "quant_config.json", "hf_quant_config.json", "quant_log.csv"]
    names += ["LICENSE", "LICENSE.txt", "Notice.txt", "USE_POLICY.md", "licence", "tekken.json", "qwen.tiktoken"]
    names += ["1_Pooling/config.json", "modules.json", "speaker_embeddings/a.npy", "figures/curve.png", "notes.txt"]
    assert judge(dict.fromkeys(names, 1), code=False).left == {}


# --- what stays behind ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "names"),
    [
        (Reason.REMADE, "config.json README.md readme.md solar_plan.json"),
        (Reason.HIDDEN, ".gitattributes .git/config .cache/huggingface/download/tokenizer.json.metadata a/.b/c"),
        (Reason.LEFTOVER, "checkpoint-500/tokenizer.json runs/a/b.txt wandb/x/config.yaml global_step9/latest"),
        (Reason.LEFTOVER, "optimizer.json scheduler.pt scaler.pt rng_state_0.pth trainer_state.json training_args.bin"),
        (Reason.LEFTOVER, "events.out.tfevents.1.host.2 debug.log latest zero_to_fp32.py __pycache__/a.cpython.pyc"),
        (Reason.WEIGHTS, "model-00001-of-00002.safetensors model.safetensors.index.json pytorch_model.bin x.pt x.pth"),
        (
            Reason.WEIGHTS,
            "pytorch_model.bin.index.json model.safetensors.index.fp16.json tf_model.h5 flax_model.msgpack",
        ),
        (Reason.WEIGHTS, "consolidated.00.pth consolidated.safetensors params.json original/params.json a.GGUF x.ckpt"),
        (Reason.WEIGHTS, "onnx/config.json x.onnx x.onnx_data adapter_config.json adapter_model.safetensors b/x.bin"),
        (Reason.PICKLE, "vocab.pkl tokenizer.pickle a/b.joblib"),
        (Reason.CODE, "modeling_x.py deep/er.py kernels/fast.so"),
        (Reason.NAME, "a\nb.json a\\b.json C:x " + "x" * 501),
    ],
)
def test_what_stays_behind(reason, names):
    for name in names.split(" "):
        assert judge({name: 1}, code=False).left == {name: reason}, name


def test_a_subfolder_with_weights_is_not_copied():
    names = ("merged/config.json", "merged/deep/vocab.txt", "merged/model.safetensors", "plain/vocab.txt", "vocab.txt")
    judged = judge(dict.fromkeys(names, 1), code=True)
    assert judged.kept == ("plain/vocab.txt", "vocab.txt")
    assert set(judged.left.values()) == {Reason.WEIGHTS, Reason.BESIDE_WEIGHTS}


def test_modules_of_sentence_transformers_are_part_of_the_model():
    """What lies in `2_Dense` works on what the model gives, however deep that is."""
    names = ["modules.json", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"]
    assert judge(dict.fromkeys(names, 1), code=False).left == {}
    without = judge(dict.fromkeys(names[1:], 1), code=False)
    assert without.kept == ("1_Pooling/config.json",)
    pickled = [*names, "2_Dense/pytorch_model.bin", "3_Dense/config.json", "3_Dense/pytorch_model.bin"]
    judged = judge(dict.fromkeys(pickled, 1), code=False)
    assert set(judged.kept) == {*names, "3_Dense/config.json"}
    assert set(judged.left.values()) == {Reason.MODULE}
    assert Reason.MODULE.may_be_missed
    assert judge(dict.fromkeys(names, MAX_BYTES + 1), code=False).left["2_Dense/model.safetensors"] is Reason.LARGE


def test_code_files_are_recognized_under_any_name():
    names = ("adapter_x.py", "optimizer_x.py", "scheduler.py", "training_args.py")
    assert judge(dict.fromkeys(names, 1), code=True).kept == names
    assert set(judge(dict.fromkeys(names, 1), code=False).left.values()) == {Reason.CODE}


def test_large_files_stay_behind():
    assert judge({"a.json": MAX_BYTES, "b.json": MAX_BYTES + 1, "c.json": None}, code=False).kept == (
        "a.json",
        "c.json",
    )


def test_our_own_marker_is_among_what_is_made_anew():
    assert MARKER in REMADE


def test_code_goes_along_with_the_trust_that_it_needs(base, tmp_path):
    put(base, "tokenization_x.py", "deep/helper.py", "zero_to_fp32.py")
    without = upscaled(base, tmp_path)
    assert not {name for name in files_in(without) if name.endswith(".py")}
    trusted = upscaled(base, tmp_path, code=True)
    assert {name for name in files_in(trusted) if name.endswith(".py")} == {"tokenization_x.py", "deep/helper.py"}
    for directory in (without, trusted):
        verify_checkpoint(directory, str(base))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda path: path.symlink_to("/etc/hostname"), "secret.txt"),
        (lambda path: path.symlink_to("/etc"), "etc"),
        (lambda path: path.symlink_to("nowhere"), "tokenizer.json"),
        (os.mkfifo, "pipe.json"),
    ],
)
@pytest.mark.timeout(30)
def test_links_that_lead_out_and_special_files_stay_behind_and_are_named(base, tmp_path, caplog, make, name):
    make(base / name)
    made = upscaled(base, tmp_path)
    assert not {path for path in files_in(made) if path.startswith(name)}
    (line,) = [record for record in caplog.records if name in record.message]
    assert line.levelname == "WARNING"
    assert "not copied (" in line.message


@pytest.mark.timeout(30)
def test_a_link_out_of_the_folder_in_place_of_a_tokenizer_file_is_rejected(base, tmp_path):
    (base / "deep").mkdir()
    (base / "deep" / "vocab.txt").symlink_to("/etc/hostname")
    with pytest.raises(CheckpointError, match=r"deep/vocab.txt: a link out of the model's directory"):
        upscaled(base, tmp_path)


def test_links_inside_the_folder_are_followed_as_files_and_not_as_folders(base):
    put(base, "a/vocab.txt")
    (base / "link.txt").symlink_to("a/vocab.txt")
    (base / "b").symlink_to("a")
    judged = companions_in(base, code=False)
    assert {"a/vocab.txt", "link.txt"} <= set(judged.kept)
    assert judged.left["b/"] is Reason.LINK


def test_a_folder_that_cannot_be_read_is_named(base, monkeypatch):
    """As `lost+found`; patched, because root may read everything."""
    put(base, "lost+found/a")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("lost+found"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert companions_in(base, code=False).left["lost+found/"] is Reason.SPECIAL


def test_files_left_behind_are_reported_once_with_the_reason(base, tmp_path, caplog):
    caplog.set_level("INFO", "axolotl")
    put(base, "checkpoint-5/model.safetensors", "x.gguf", "tokenization_x.py", *(f"{i}.bin" for i in range(7)))
    upscaled(base, tmp_path)
    said = [(record.levelname, record.message) for record in caplog.records if "not copied" in record.message]
    assert said == [
        ("INFO", "not copied (left over from training): checkpoint-5/"),
        ("INFO", "not copied (weights in another format): 0.bin, 1.bin, 2.bin, 3.bin, 4.bin and 3 more"),
        ("WARNING", f"not copied ({Reason.CODE.text}): tokenization_x.py"),
    ], "and nothing of the model's own weights"


# --- verify, identity and cache follow ------------------------------------------------------------------------------


NESTED = "additional_chat_templates/tool_use.jinja"


def test_files_of_subfolders_are_in_identity_marker_and_comparison(base, tmp_path):
    put(base, "tokenizer.json")
    before = find_base(str(base)).identity
    put(base, NESTED, content="T{{ x }}")
    assert find_base(str(base)).identity != before
    made = upscaled(base, tmp_path)
    assert json.loads((made / MARKER).read_text())["files"][NESTED] == 8
    verify_checkpoint(made, str(base))
    (made / NESTED).write_text("T{{ y }}")
    with pytest.raises(CheckpointError, match=rf"{NESTED}: the file, at byte 4"):
        verify_checkpoint(made, str(base))
    (made / NESTED).unlink()
    with pytest.raises(CheckpointError, match=rf"the file {NESTED} .* expected it to exist"):
        verify_checkpoint(made, str(base))
    upscaled(base, tmp_path)
    assert (made / NESTED).read_text() == "T{{ x }}", "what is incomplete is made again"


def test_a_file_that_nobody_wrote_is_found_in_subfolders_too(base, tmp_path):
    put(base, NESTED)
    made = upscaled(base, tmp_path)
    put(made, "additional_chat_templates/other.jinja")
    with pytest.raises(CheckpointError, match=r"additional_chat_templates/other.jinja .* an unexpected file"):
        verify_checkpoint(made, str(base))


def test_a_checkpoint_of_the_old_file_list_is_written_again(base, tmp_path):
    """What earlier versions wrote: the same name, a complete folder, but a marker without the file."""
    put(base, "spiece.model", content="pieces")
    made = upscaled(base, tmp_path)
    marker = json.loads((made / MARKER).read_text())
    del marker["files"]["spiece.model"]
    (made / MARKER).write_text(json.dumps(marker))
    (made / "spiece.model").unlink()
    assert upscaled(base, tmp_path) == made
    assert (made / "spiece.model").read_text() == "pieces"


# --- the loaded result is the loaded base ---------------------------------------------------------------------------


def fast_with_named_templates(base):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<unk>": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    fast.chat_template = {"default": "D", "tool_use": "T", "rag": "R"}
    fast.save_pretrained(base)


def sentencepiece(base):
    from importlib.resources import files

    from transformers import BertGenerationTokenizer

    shutil.copy(files("mistral_common") / "data" / "tokenizer.model.v1", base / "spiece.model")
    BertGenerationTokenizer.from_pretrained(base).save_pretrained(base)


def tiktoken(base):
    import base64

    tokens = [bytes([i]) for i in range(256)] + [b"ab", b"aba"]
    lines = [f"{base64.b64encode(token).decode()} {i}\n" for i, token in enumerate(tokens)]
    put(base, "tiktoken.model", content="".join(lines))
    put(base, "tokenizer_config.json", content='{"tokenizer_class": "PreTrainedTokenizerFast"}')


def python_alone(base):
    special = {name: i for i, name in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])}
    put(base, "vocab.txt", content="\n".join([*special, "a", "b"]))
    put(base, "word_shape.json", content=json.dumps(special | {"a": 8, "b": 9}))
    put(base, "word_pronunciation.json", content=json.dumps(special | {"a": 9, "b": 8}))
    put(base, "tokenizer_config.json", content='{"tokenizer_class": "RoCBertTokenizer"}')


def own_code(base):
    put(base, "tokenizer_config.json", content='{"auto_map": {"AutoTokenizer": ["tokenization_own.Own", null]}}')
    put(base, "pairs.dat", content="b a")
    put(base, "tokenization_own.py", content=OWN_CODE)


OWN_CODE = """
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote
from transformers import PreTrainedTokenizer

class Own(PreTrainedTokenizer):
    vocab_files_names = {"vocab_file": "pairs.dat"}

    def __init__(self, vocab_file, **options):
        self.words = Path(vocab_file).read_text().split()
        super().__init__(**options)

    vocab_size = property(lambda self: len(self.words))
    def get_vocab(self): return {word: i for i, word in enumerate(self.words)}
    def _tokenize(self, text): return text.split()
    def _convert_token_to_id(self, token): return self.words.index(token) if token in self.words else 0
    def _convert_id_to_token(self, index): return self.words[index]
"""


@pytest.mark.parametrize("backend", [fast_with_named_templates, sentencepiece, tiktoken, python_alone, own_code])
def test_the_upscaled_models_tokenizer_is_the_bases(base, tmp_path, monkeypatch, backend):
    from transformers import AutoTokenizer, GenerationConfig

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    backend(base)
    code = backend is own_code
    made = upscaled(base, tmp_path, code=code)
    theirs, ours = (AutoTokenizer.from_pretrained(path, trust_remote_code=code) for path in (base, made))
    assert ours.get_vocab() == theirs.get_vocab()
    assert dict(ours("a b aba")) == dict(theirs("a b aba"))
    assert len(set(theirs("a b")["input_ids"])) > 1, "it knows the words apart"
    assert ours.chat_template == theirs.chat_template
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert GenerationConfig.from_pretrained(made).to_dict() == GenerationConfig.from_pretrained(base).to_dict()


def test_the_upscaled_models_processor_is_the_bases(base, tmp_path):
    from transformers import AutoFeatureExtractor, Wav2Vec2FeatureExtractor

    Wav2Vec2FeatureExtractor(feature_size=3, sampling_rate=12345).save_pretrained(base)
    made = upscaled(base, tmp_path)
    loaded = AutoFeatureExtractor.from_pretrained(made)
    assert loaded.to_dict() == AutoFeatureExtractor.from_pretrained(base).to_dict()
    assert loaded.sampling_rate == 12345


# --- the hub --------------------------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef" * 2 + "01234567"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's HTTP interface as `huggingface_hub` asks for: a listing, and files."""

    files: dict[str, bytes]
    asked: list[str]

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/org/tiny/tree/"):
            tree = [{"type": "file", "path": name, "size": len(self.files[name]), "oid": "0"} for name in self.files]
            self.answer(json.dumps([*tree, {"type": "directory", "path": "onnx", "oid": "1"}]).encode())
        elif path.startswith("/api/models/org/tiny"):
            self.answer(json.dumps({"id": "org/tiny", "sha": COMMIT}).encode())
        elif (name := unquote(path.partition(f"/resolve/{COMMIT}/")[2])) in self.files:
            self.asked.append(name)
            self.answer(self.files[name])
        else:
            self.send_error(404)

    def answer(self, content):
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    """A server; set `files`, read `asked`."""
    kind = type("OneHub", (Hub,), {"files": {}, "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        kind.address = f"http://127.0.0.1:{server.server_port}"
        yield kind
        server.shutdown()


@pytest.mark.slow
def test_the_hub_is_asked_for_its_list_of_files(base, tmp_path, hub):
    put(base, "LICENSE.md", NESTED, "odd [1].json", "spiece.model", "README.md", content="x")
    wanted = files_in(base)
    put(base, "pytorch_model.bin", "original/params.json", "original/consolidated.00.pth", "onnx/model.onnx")
    put(base, "consolidated.safetensors", "checkpoint-1/x.txt", ".gitattributes", "tokenization_x.py")
    hub.files = {name: (base / name).read_bytes() for name in files_in(base)}
    env = os.environ | {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
    env |= {"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}

    def upscale(out, *options, **more):
        command = [Path(sys.executable).with_name("solar"), "upscale", "org/tiny", out, "--drop-layers", "2", *options]
        done = subprocess.run(command, env=env | more, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stderr

    said = upscale("out")
    assert set(hub.asked) == wanted
    assert files_in(tmp_path / "out") == wanted | {MARKER, "README.md"}
    for name in ("original/params.json", "pytorch_model.bin"):
        assert name in said
    assert "the hub is offline" not in said

    said = upscale("offline", HF_HUB_OFFLINE="1")
    assert files_in(tmp_path / "offline") == files_in(tmp_path / "out")
    assert "the hub is offline, so of the files of org/tiny other than weights, only those in the hub cache" in said
    said = upscale("dead", HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_ETAG_TIMEOUT="1")
    assert "the hub is offline" in said


def test_offline_the_cache_is_all_there_is_and_that_is_said(base, tmp_path, monkeypatch, caplog):
    import huggingface_hub.constants

    snapshot = tmp_path / "hub" / "models--org--tiny" / "snapshots" / COMMIT
    blobs = snapshot.parents[1] / "blobs"
    put(base, NESTED, "config.json.not", content="x")
    for name in files_in(base):
        blob = blobs / hashlib.sha1(name.encode()).hexdigest()
        blobs.mkdir(parents=True, exist_ok=True)
        shutil.copy(base / name, blob)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(os.path.relpath(blob, (snapshot / name).parent))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    made = ensure_checkpoint(find_base("org/tiny", COMMIT), DUS, tmp_path / "cache")
    assert (made / NESTED).read_text() == "x"
    assert not (made / NESTED).is_symlink()
    (said,) = [record.message for record in caplog.records if "hub is offline" in record.message]
    assert f"{NESTED}, config.json.not, generation_config.json. If you need more" in said


@pytest.fixture
def half_a_cache(base, tmp_path, monkeypatch):
    """The hub's cache with config and weights alone; what the hub answers, None while it cannot be asked."""
    snapshot = tmp_path / "hub" / "models--org--tiny" / "snapshots" / COMMIT
    shutil.copytree(base, snapshot)
    (snapshot / "generation_config.json").unlink()
    answers = SimpleNamespace(listing=None, asked=0)

    def repository_files(name, revision):
        answers.asked += 1
        return answers.listing

    def fetch(name, revision, files):
        for file in files:
            if answers.listing and file in answers.listing and not (snapshot / file).exists():
                (snapshot / file).write_text("{}")
        return snapshot

    monkeypatch.setattr("solar_plugins.upscaling.base_model.repository_files", repository_files)
    monkeypatch.setattr("solar_plugins.upscaling.base_model.fetch", fetch)
    return answers


def test_what_was_made_offline_is_made_again_once_the_hub_has_more(half_a_cache, tmp_path):
    def made():
        return files_in(ensure_checkpoint(find_base("org/tiny", COMMIT), DUS, tmp_path / "cache"))

    assert "spiece.model" not in made()
    before = half_a_cache.asked
    assert "spiece.model" not in made(), "the hub is asked once more, in vain"
    assert half_a_cache.asked == before + 1
    half_a_cache.listing = {"config.json": 9, "model.safetensors": 9, "spiece.model": 9, "x.gguf": 9}
    assert "spiece.model" in made()
    before = half_a_cache.asked
    assert "spiece.model" in made()
    assert half_a_cache.asked == before, "a whole checkpoint asks nobody"


def test_an_index_next_to_the_shards_is_not_reported_as_left_behind(sharded_base, tmp_path, caplog):
    caplog.set_level("INFO", "axolotl")
    made = upscaled(sharded_base, tmp_path)
    assert (made / "config.json").exists()
    assert INDEX not in caplog.text
