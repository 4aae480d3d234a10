"""Weights as they lie about: addresses on the loopback, hub caches, formats, hostile files."""
import hashlib
import http.server
import io
import json
import math
import multiprocessing
import threading
import time
import zipfile
from unittest import mock

import pytest
import torch
from conftest import hash_state, openai_archive

import clip_model

OPENAI, TIMM, THEIRS = (bytes(range(256)) * n for n in (2000, 3000, 1000))      # 512,000 bytes, ...
SHA256 = [hashlib.sha256(content).hexdigest() for content in (OPENAI, TIMM, THEIRS)]
REPOSITORY, NAME = "vit_base_patch16_clip_224.openai", "ViT-B/16"
ROW = (SHA256[0], "ViT-B-16.pt", SHA256[1], REPOSITORY, "977e", SHA256[2], "base-patch16")
FIRST, SECOND, THIRD, LAST = PATHS = (
    f"/clip/models/{SHA256[0]}/ViT-B-16.pt", "/hub/jinaai/clip-models/resolve/main/ViT-B-16.pt",
    "/models/torch/ViT-B-16.pt", f"/hub/timm/{REPOSITORY}/resolve/977e/open_clip_model.safetensors")


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `files` {path: content}; `mode` is what goes wrong, `seen` each address and Range."""

    def do_GET(self):
        content, wanted = Handler.files.get(self.path), self.headers.get("Range")
        Handler.seen.append((PATHS.index(self.path), wanted))
        start = int(wanted[len("bytes="):-1]) if wanted and Handler.mode != "no ranges" else 0
        if content is None or start >= len(content):
            return self.send_error(404 if content is None else 416)
        self.send_response(206 if start else 200)
        first = 0 if Handler.mode == "other range" else start
        if start:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        Handler.go.wait(20 if Handler.mode == "slow" else 0)
        self.wfile.write(content[start:70_000 if Handler.mode in ("breaks", "stalls") else None])
        Handler.go.wait(20 if Handler.mode == "stalls" else 0)

    def log_message(self, *_):
        pass


@pytest.fixture
def web(tmp_path, monkeypatch):
    """A server in place of all addresses, an empty cache, and a table with its files' sums."""
    Handler.files, Handler.mode, Handler.seen, Handler.go = {}, "", [], threading.Event()
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, args=(.01,), daemon=True).start()
    base = f"http://127.0.0.1:{httpd.server_port}"
    for variable, value in (("no_proxy", "127.0.0.1"), ("NO_PROXY", "127.0.0.1"),
                            ("HF_HUB_CACHE", ""), ("XDG_CACHE_HOME", ""), ("HF_HUB_OFFLINE", ""),
                            ("HF_HOME", str(tmp_path / "none")), ("HF_ENDPOINT", f"{base}/hub/")):
        monkeypatch.setenv(variable, value)
    monkeypatch.setitem(clip_model.MODELS, NAME, ROW)
    monkeypatch.setattr(clip_model, "CACHE", tmp_path / "of" / "clip")         # made if missing
    monkeypatch.setattr(clip_model, "ADDRESSES", [
        address if address.startswith("{hub}") else f"{base}/{address.split('/', 3)[3]}"
        for address in clip_model.ADDRESSES])
    clip_model.say.cache_clear()
    yield Handler
    Handler.go.set()
    httpd.shutdown()
    httpd.server_close()


def cached():
    """What is in the cache, without the locks, which some versions of filelock leave behind."""
    return {path.name: path.read_bytes() for path in clip_model.CACHE.iterdir()
            if path.suffix != ".lock"}


def refused(*words, error=FileNotFoundError, job=clip_model.find, given=NAME):
    """It fails in one line that has these words -> the line."""
    with pytest.raises(error) as raised:
        job(given)
    line = str(raised.value)
    assert "\n" not in line and [word for word in words if word not in line] == [], line
    return line


def test_the_third_address_is_right_after_a_404_and_a_wrong_file(web, capsys):
    web.files = {SECOND: b"<html>Please sign in</html>", THIRD: OPENAI, LAST: TIMM}
    path = clip_model.find(NAME)
    assert path == clip_model.CACHE / "ViT-B-16.pt" and cached() == {"ViT-B-16.pt": OPENAI}
    line, = capsys.readouterr().out.splitlines()
    assert line.startswith(NAME) and THIRD in line and str(path) in line
    assert clip_model.find(NAME) == clip_model.find(NAME) == path               # it is there now
    assert capsys.readouterr().out == f"{NAME}: {path}\n"                       # said once
    assert web.seen == [(n, "bytes=0-") for n in range(3)]


def test_where_nothing_works_one_line_says_what_was_tried_and_what_to_put_where(web):
    web.files = {SECOND: b"wrong"}
    refused(*PATHS, "ViT-B-16.pt (Not Found)", "ViT-B-16.pt (came with a wrong SHA-256",
            f"put ViT-B-16.pt from one of these into {clip_model.CACHE}",
            "other weights: --backbone FILE")
    assert cached() == {}


def test_nobodys_file_is_overwritten_and_timms_is_the_last(web):
    clip_model.CACHE.mkdir(parents=True)
    (clip_model.CACHE / "ViT-B-16.pt").write_bytes(b"mine")
    refused("the ViT-B-16.pt there has a wrong SHA-256: delete it")
    web.files, web.seen = {FIRST: OPENAI, LAST: TIMM}, []
    path = clip_model.find(NAME)
    assert cached() == {"ViT-B-16.pt": b"mine", path.name: TIMM} and web.seen == [(3, "bytes=0-")]
    assert clip_model.fingerprint(NAME) == clip_model.fingerprint(path) == SHA256[0]


@pytest.mark.parametrize("mode, reason", [("breaks", "70000 of 512000"), ("stalls", "timed out")])
def test_what_a_download_left_goes_on_from_any_address_of_the_file(web, monkeypatch, mode, reason):
    monkeypatch.setattr(clip_model, "TIMEOUT", .5)
    web.files, web.mode = {FIRST: OPENAI}, mode
    refused(reason)
    have = len(cached()["ViT-B-16.pt.part"])
    assert have == 70_000 or mode == "stalls" and 0 < have < 70_000
    for mode in ("no ranges", "other range"):                   # another answer costs nothing
        web.mode = mode
        refused(f"does not go on behind {have} bytes")
    web.files, web.mode, web.seen = {SECOND: OPENAI}, "", []
    clip_model.find(NAME)
    assert web.seen == [(0, f"bytes={have}-"), (1, f"bytes={have}-")]
    assert cached() == {"ViT-B-16.pt": OPENAI}


def test_a_part_that_is_whole_needs_its_name_and_one_of_another_file_is_thrown_away(web):
    web.files = {FIRST: OPENAI}
    clip_model.CACHE.mkdir(parents=True)
    (clip_model.CACHE / "ViT-B-16.pt.part").write_bytes(b"x" + OPENAI[:5000])
    refused("came with a wrong SHA-256")
    assert cached() == {}
    (clip_model.CACHE / "ViT-B-16.pt.part").write_bytes(OPENAI)
    web.seen = []
    clip_model.find(NAME)
    assert cached() == {"ViT-B-16.pt": OPENAI} and web.seen == []


def test_of_two_processes_at_once_one_fetches_and_one_waits(web):
    web.files, web.mode = {SECOND: OPENAI}, "slow"
    with multiprocessing.get_context("fork").Pool(2) as pool:   # they have the table of this one
        both = pool.map_async(clip_model.find, [NAME, NAME], chunksize=1)
        time.sleep(.5)                          # one has asked by now, the other waits for it
        web.go.set()
        assert both.get(20) == [clip_model.CACHE / "ViT-B-16.pt"] * 2
    assert cached() == {"ViT-B-16.pt": OPENAI}
    assert [address for address, _ in web.seen].count(1) == 1


@pytest.mark.parametrize("variable, below", [
    ("HF_HUB_CACHE", ""), ("HF_HOME", "hub"), ("XDG_CACHE_HOME", "huggingface/hub")])
@pytest.mark.parametrize("repository, file, content", [
    (f"timm--{REPOSITORY}", "open_clip_model.safetensors", TIMM),
    ("openai--clip-vit-base-patch16", "pytorch_model.bin", THEIRS),
    ("openai--clip-vit-base-patch16", "model.safetensors", THEIRS)])
def test_offline_with_a_hub_cache(web, at, monkeypatch, variable, below, repository, file, content):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", "")
    monkeypatch.setenv(variable, str(at / "here"))
    refused("HF_HUB_OFFLINE is set", str(at / "here" / below))
    folder = at / "here" / below / f"models--{repository}"
    (folder / "blobs").mkdir(parents=True)
    for revision, written in (("0", b"of another revision"), ("1", content)):
        (folder / "blobs" / revision).write_bytes(written)
        (folder / "snapshots" / revision).mkdir(parents=True)
        (folder / "snapshots" / revision / file).symlink_to(folder / "blobs" / revision)
    path = clip_model.find(NAME)
    assert path == folder / "snapshots" / "1" / file and web.seen == []
    assert clip_model.fingerprint(path) == clip_model.fingerprint(NAME) == SHA256[0]


# Formats ------------------------------------------------------------------------------------------

PAIRS = dict(pair.split() for pair in """\
visual.class_embedding vision_model.embeddings.class_embedding
visual.conv1.weight vision_model.embeddings.patch_embedding.weight
visual.positional_embedding vision_model.embeddings.position_embedding.weight
visual.ln_pre vision_model.pre_layrnorm | visual.ln_post vision_model.post_layernorm
visual.proj visual_projection.weight | text_projection text_projection.weight
token_embedding.weight text_model.embeddings.token_embedding.weight
positional_embedding text_model.embeddings.position_embedding.weight
ln_final text_model.final_layer_norm | logit_scale logit_scale
attn.out_proj self_attn.out_proj | mlp.c_fc mlp.fc1 | mlp.c_proj mlp.fc2
ln_1 layer_norm1 | ln_2 layer_norm2""".replace("\n", "|").split("|"))


def transformers_names(state):
    """OpenAI's names and layout -> those of transformers' CLIPModel."""
    found = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    for name, tensor in state.items():
        tower, block, rest = name.rpartition("transformer.resblocks.")
        layer, _, rest = rest.partition(".") if block else ("", "", name)
        start = f"{'vision' if tower else 'text'}_model.encoder.layers.{layer}." if block else ""
        ours = [pair for pair in PAIRS if rest.startswith(pair)]
        if ours:
            turned = name in ("visual.proj", "text_projection")
            found[start + rest.replace(ours[0], PAIRS[ours[0]])] = tensor.T if turned else tensor
        else:
            for x, part in zip("qkv", tensor.chunk(3), strict=True):
                end = rest.removeprefix("attn.in_proj_")
                found[f"{start}self_attn.{x}_proj.{end}"] = part.clone()
    return found


def safetensors(state, end=b"", **changes):
    """The bytes of a safetensors file; changes: fields of the first tensor's entry."""
    types = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.int64: "I64"}
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, tensor in state.items():
        numbers = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        header[name] = {"dtype": types[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [len(data), len(data) + len(numbers)]} | changes
        data, changes = data + numbers, {}
    header = json.dumps(header).replace("twice", "a").encode()
    return len(header).to_bytes(8, "little") + header + data + end


def older(state):
    file = io.BytesIO()
    torch.save(state, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


FORMS = {                                       # what is written of a state dict
    "state dict": clip_model.as_bytes,
    "older format": older,
    "wrapped": lambda s: clip_model.as_bytes({"epoch": 3, "model": {"model_state_dict": s}}),
    "prefixes": lambda s: clip_model.as_bytes({"state_dict": {
        "head.weight": torch.ones(2), **{f"module.clip.{n}": t for n, t in s.items()}}}),
    "safetensors": safetensors,
    "transformers": lambda s: clip_model.as_bytes(transformers_names(s)),
    "transformers, safetensors": lambda s: safetensors(transformers_names(s))}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("form", ["archive", *FORMS])
@pytest.mark.filterwarnings("error")            # one would stand before what is said
def test_every_form_gives_the_same_features(tmp_path, monkeypatch, form, dtype):
    state, path = {name: t.to(dtype) for name, t in hash_state(vl=2, tl=2).items()}, tmp_path / "x"
    if form == "archive":
        monkeypatch.setattr(torch.Tensor, "half", lambda tensor: tensor)        # as it is given
        openai_archive(state, path)
        monkeypatch.undo()
    else:
        path.write_bytes(FORMS[form](state))
    clip = clip_model.load(path)
    assert {parameter.dtype for parameter in clip.parameters()} == {torch.float32}
    expected = clip_model.build({name: tensor.float() for name, tensor in state.items()})
    images, tokens = torch.randn(3, 3, 32, 32), clip_model.tokenize(["a cat", "a large dog."])
    with torch.no_grad():
        assert torch.equal(clip.encode_image(images), expected.encode_image(images))
        assert torch.equal(clip.encode_text(tokens), expected.encode_text(tokens))


def small():
    """Weights with the vectors of three words only, as assets/tiny_clip.pt has them."""
    state = {name: tensor.half() for name, tensor in hash_state(vl=1, tl=1).items()}
    state["token_embedding.weight"] = state["token_embedding.weight"][[320, 49406, 49407]]
    return state | {"token_embedding.words": torch.tensor([320, 49406, 49407])}


def torchscript(body, compression=zipfile.ZIP_STORED, numbers=bytes(8), name="x/data.pkl"):
    """A TorchScript archive whose modules are what these opcodes make."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as members:
        members.writestr("x/constants.pkl", b"")
        members.writestr(name, b"\x80\x02" + body + b".")
        members.writestr("x/data/0", numbers)
    return file.getvalue()


def holding(length, storage=b"FloatStorage"):
    """The opcodes of a module with a tensor of so many of the storage's two numbers."""
    return (MODULE + b"}X\1\0\0\0actorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\n"
            + storage + b"\nX\1\0\0\0" b"0X\3\0\0\0cpuK\2tQK\0(K" + bytes([length])
            + b"t(K\1ttRsb")


class Explosive:
    def __reduce__(self):
        return pytest.fail, ("code from the file ran",)


def flipped(content, at):
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1:]


MODULE = b"c__torch__\nA\n)\x81"                # an object of a class that is not known
A, ONE = torch.zeros(2), {"a": torch.zeros(1)}
DAMAGED, NO_CLIP = "not a weights file, or a truncated one", "'visual.conv1.weight' is missing"
NOT_TENSORS, NO_STATE = "not tensors alone: save the state_dict", "holds no state dict"
SAVED = clip_model.as_bytes({"a": torch.zeros(9999)})


@pytest.mark.parametrize("content, words", [
    (torchscript(b"cposix\nsystem\n(X\x05\0\0\0>ran1tR"), NO_CLIP),       # os.system(">ran1")
    (torchscript(MODULE + b"}X\1\0\0\0acposix\nsystem\n(X\x05\0\0\0>ran2tRsb"), NO_CLIP),
    (torchscript(MODULE + b"q\0}X\1\0\0\0ah\0sb"), NO_CLIP),           # a module inside itself
    (torchscript(b"})" + b"q\0h\0\x86" * 60 + b"K\1s"), DAMAGED),         # 2^60 tuples as a key
    (torchscript(b"}r\xff\xff\xff\x7f"), NO_CLIP),                        # a memo of 2^31 places
    (torchscript(b"(Nctorch\nloadStorage\nX\1\0\0\0" b"0NtQ"), DAMAGED),
    (torchscript(b"X\1\0\0\0a"), DAMAGED), (torchscript(b""), DAMAGED),
    (torchscript(holding(2)), "visual.conv1.weight"), (torchscript(holding(3)), DAMAGED),
    (torchscript(holding(1, b"QInt8Storage")), DAMAGED),
    (torchscript(b"}", zipfile.ZIP_DEFLATED, bytes(10 ** 7)), DAMAGED),         # it unfolds
    (torchscript(b"}", name="x/other.pkl"), DAMAGED), (torchscript(b"}")[:-40], DAMAGED),
    (flipped(torchscript(b"}", numbers=bytes(999)), 300), DAMAGED),
    (SAVED[:20_000], DAMAGED), (flipped(SAVED, 20_000), DAMAGED), (b"text", DAMAGED),
    (b"", DAMAGED), (SAVED.replace(b"archive/data.pkl", b"archive/d\xff\xfea.pkl"), DAMAGED),
    (Explosive(), NOT_TENSORS), ({"a": Explosive()}, NOT_TENSORS), (torch.zeros(3), NO_STATE),
    ([1, 2], NO_STATE), ({"state_dict": None}, NO_STATE), ({"epoch": 3}, NO_STATE),
    ({3: A}, NO_STATE), ({"a": A, "b": "c"}, NO_STATE), ({}, NO_CLIP),
    *((safetensors({"a": A, "b": A}, **entry), DAMAGED) for entry in (
        {"end": b"x"}, {"dtype": "F8"}, {"shape": [3]}, {"shape": [1]}, {"shape": [-1, -2]},
        {"shape": [2.0]}, {"shape": "2"}, {"data_offsets": [4, 12]}, {"data_offsets": [0, 16]},
        {"data_offsets": 0})),
    (safetensors({"a": A, "twice": A}), DAMAGED), (safetensors(ONE)[:-1], DAMAGED),
    (b"\xff" * 7 + b"\x7f{", DAMAGED),
    ((10 ** 5).to_bytes(8, "little") + b'{"a":' * 20_000, DAMAGED),
    (b"\x08\x07\x12\x07pytorch", "an ONNX model, not tensors alone: save the state_dict()"),
    (torch.nn.Linear(1, 1), "holds torch.nn.modules.linear.Linear, not tensors alone: save the"),
    ({"a.lora_A.weight": A}, "LoRA's additions: merge"), ({"logit_bias": A}, "of a SigLIP"),
    ({"visual.trunk.blocks.0.attn.qkv.weight": A}, "of an EVA-CLIP"),
    ({"module.visual.layer1.0.conv1.weight": A}, "of a ResNet CLIP"),
    ({"a.visual.class_embedding": A, "b.visual.class_embedding": A}, "several CLIPs, ['a.', 'b.']"),
], ids=lambda value: str(value)[:25])
def test_what_is_no_clip_runs_nothing_and_ends_in_one_line(at, content, words):
    content = content if isinstance(content, bytes) else clip_model.as_bytes(content)
    (at / "x").write_bytes(content)
    refused(words, error=ValueError, job=clip_model.load, given=at / "x")
    assert [path.name for path in at.iterdir()] == ["x"]


@pytest.mark.parametrize("name, by_hand", [
    ("gelu", lambda y: y * (1 + math.erf(y / math.sqrt(2))) / 2),
    ("quick_gelu", lambda y: y / (1 + math.exp(-1.702 * y)))])
def test_the_activation_by_hand_and_a_line_where_it_is_assumed(at, capsys, name, by_hand):
    (at / "x").write_bytes(safetensors(small()))
    for _ in range(2):
        clip = clip_model.load("x", activation=name)
    assert capsys.readouterr().out.count("QuickGELU is assumed") == (name == "quick_gelu")
    for block in (clip.transformer.resblocks[0], clip.visual.transformer.resblocks[0]):
        x = torch.randn(1, 2, len(block.ln_1.weight))
        y = x + block.attn(block.ln_1(x))
        hidden = block.mlp.c_fc(block.ln_2(y))
        numbers = torch.tensor([by_hand(number) for number in hidden.flatten().tolist()])
        torch.testing.assert_close(block(x), y + block.mlp.c_proj(numbers.view_as(hidden)))


def test_a_known_file_by_its_path_is_openais_model(web, at, capsys):
    (at / "x").write_bytes(safetensors(small()))
    clip_model.MODELS[NAME] = (*ROW[:2], clip_model.file_sha256("x"), *ROW[3:])
    assert clip_model.fingerprint("x") == SHA256[0]
    clip_model.load("x")
    assert capsys.readouterr().out == ""                        # nothing has to be assumed
    with pytest.raises(ValueError, match="x with the activation"):
        clip_model.load("x", activation="gelu")


@pytest.mark.parametrize("error, expected", [
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError),
    (MemoryError(), MemoryError), (PermissionError(13, "Permission denied"), PermissionError)])
def test_a_shortage_is_not_called_damage(at, monkeypatch, error, expected):
    (at / "x").write_bytes(clip_model.as_bytes(ONE))
    monkeypatch.setattr(torch, "load", mock.Mock(side_effect=error))
    with pytest.raises(expected):
        clip_model.load("x")
