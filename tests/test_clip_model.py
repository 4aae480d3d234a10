"""Weights in: sizes from shapes, OpenAI's archive, plain state dicts, downloads. And the tokenizer's edges."""
import hashlib
import http.server
import threading
import warnings
import zipfile

import pytest
import textbook
import torch
import torch.nn.functional as F
from conftest import hash_state, openai_archive

import clip_model


@pytest.mark.parametrize("sizes", [dict(), dict(res=42, patch=14, vl=2, vw=192, tl=1, tw=128, embed=96)])
def test_sizes_come_from_the_shapes(sizes):
    state = hash_state(**sizes)
    clip = clip_model.build(state)
    images, tokens = torch.randn(2, 3, clip.visual.resolution, clip.visual.resolution), clip_model.tokenize(["a cat", "x"])
    assert clip.visual.resolution == sizes.get("res", 32)
    torch.testing.assert_close(F.normalize(clip.encode_image(images)), textbook.image_tower(state, images), atol=1e-5, rtol=0)
    embedded = state["token_embedding.weight"][tokens]
    torch.testing.assert_close(F.normalize(clip.encode_text(tokens)),
                               textbook.text_tower(state, embedded, tokens.argmax(dim=1)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("damage, message", [
    (lambda s: s.pop("visual.conv1.weight"), "not the state dict of a ViT CLIP"),
    (lambda s: s.pop("ln_final.weight"), "Missing key.*ln_final.weight"),
    (lambda s: s.update(extra=torch.zeros(1)), "Unexpected key.*extra"),
    (lambda s: s.update({"visual.proj": torch.zeros(3, 3)}), "size mismatch for visual.proj"),
    (lambda s: s.update({"visual.layer1.0.conv1.weight": torch.zeros(1)}), "ResNet CLIP; this companion covers the ViT"),
    (lambda s: s.update(positional_embedding=torch.zeros(76, 64)), "text positions must be 77, got 76"),
])
def test_what_is_no_vit_clip_is_refused(damage, message):
    state = hash_state(vl=1, tl=1)
    damage(state)
    with pytest.raises(ValueError, match=message) as error:
        clip_model.build(state)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("form", ["archive", "plain", "wrapped", "module."])
def test_every_form_of_file_loads(tmp_path, form):
    state, path = hash_state(vl=1, tl=1), tmp_path / "clip.pt"
    if form == "archive":
        openai_archive(state, path)
    else:
        torch.save({"plain": state, "wrapped": {"state_dict": state, "epoch": 3},
                    "module.": {"module." + n: t for n, t in state.items()}}[form], path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")                              # the deprecation of torch.jit.load is silenced
        clip = clip_model.load(path)
    tolerance = 1e-3 if form == "archive" else 0                    # OpenAI's archives are float16
    for name, parameter in clip.named_parameters():
        assert parameter.dtype == torch.float32
        torch.testing.assert_close(parameter.detach(), state[name], atol=tolerance, rtol=tolerance)


def test_precision_of_the_weights_and_of_the_temperature(tmp_path):
    torch.save(hash_state(vl=1, tl=1), tmp_path / "clip.pt")
    clip = clip_model.load(tmp_path / "clip.pt", dtype=torch.bfloat16)
    assert clip.dtype == torch.bfloat16 and clip.visual.proj.dtype == torch.bfloat16
    assert clip.logit_scale.dtype == torch.float32 and clip.temperature.item() == pytest.approx(0.01, rel=1e-6)


@pytest.mark.parametrize("content, message", [
    ("text", "not a weights file, or a truncated one"), ("", "not a weights file, or a truncated one"),
    ("truncated archive", "unreadable TorchScript archive|not a weights file"), ("truncated dict", "not a weights file"),
    ("list", "holds no state dict"), ("pickle", "not a weights file"), ("zip", "not a weights file")])
def test_unreadable_files(tmp_path, content, message):
    path = tmp_path / "clip.pt"
    if content == "truncated archive":
        openai_archive(hash_state(vl=1, tl=1), path)
        path.write_bytes(path.read_bytes()[:-5000])
    elif content == "truncated dict":
        torch.save(hash_state(vl=1, tl=1), path)
        path.write_bytes(path.read_bytes()[:100000])
    elif content == "list":
        torch.save([1, 2], path)
    elif content == "pickle":                                       # would run code, were it not for weights_only
        torch.save({"a": Explosive()}, path)
    elif content == "zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("hello.txt", "x")
    else:
        path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        clip_model.load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


class Explosive:
    def __reduce__(self):
        return print, ("code ran",)


def test_names_that_are_no_model(tmp_path):
    with pytest.raises(ValueError, match="RN50x4 is a ResNet; this companion covers the ViT models"):
        clip_model.load("RN50x4")
    for name in ("ViT-B/15", str(tmp_path)):
        with pytest.raises(FileNotFoundError, match="give one of ViT-B/32"):
            clip_model.load(name)


# ------------------------------------------------------------------------------------------------------------- downloads

CONTENT = bytes(range(256)) * 2000


class Server(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT; `mode` is what goes wrong, `seen` the Range headers that came."""
    mode, seen = "", []

    def do_GET(self):
        wanted = self.headers.get("Range")
        Server.seen.append(wanted)
        start = int(wanted.split("=")[1].rstrip("-")) if wanted and Server.mode != "no ranges" else 0
        if Server.mode == "missing" or start > len(CONTENT):
            return self.send_error(404 if Server.mode == "missing" else 416)
        body = CONTENT[start:] if Server.mode != "wrong" else bytes(len(CONTENT) - start)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:1000] if Server.mode == "breaks" else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    Server.mode, Server.seen = "", []
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    monkeypatch.setattr(clip_model, "URL", f"http://127.0.0.1:{httpd.server_port}")
    monkeypatch.setattr(clip_model, "CACHE", tmp_path / "cache")
    yield Server
    httpd.shutdown()
    httpd.server_close()


SUM = hashlib.sha256(CONTENT).hexdigest()


def test_download_is_checked_kept_and_not_repeated(server):
    path = clip_model.download(SUM, "model.pt")
    assert path.read_bytes() == CONTENT and [p.name for p in path.parent.iterdir()] == ["model.pt"]
    assert clip_model.download(SUM, "model.pt") == path and len(server.seen) == 1


@pytest.mark.parametrize("second", ["", "no ranges"])
def test_interrupted_download_goes_on(server, second):
    server.mode = "breaks"
    with pytest.raises(FileNotFoundError, match="the connection ended after 1000 of 512000 bytes"):
        clip_model.download(SUM, "model.pt")
    assert [p.name for p in clip_model.CACHE.iterdir()] == ["model.part"]       # never half a file under the final name
    server.mode = second
    assert clip_model.download(SUM, "model.pt").read_bytes() == CONTENT
    assert server.seen == [None, "bytes=1000-"]


def test_wrong_sums(server):
    server.mode = "wrong"
    with pytest.raises(ValueError, match="wrong SHA-256 and was deleted"):
        clip_model.download(SUM, "model.pt")
    assert not list(clip_model.CACHE.iterdir())
    (clip_model.CACHE / "model.pt").write_bytes(b"mine")
    with pytest.raises(ValueError, match="model.pt has a wrong SHA-256, expected .*delete it"):
        clip_model.download(SUM, "model.pt")
    assert (clip_model.CACHE / "model.pt").read_bytes() == b"mine"              # nobody's file is overwritten


def test_a_part_longer_than_the_file_is_thrown_away(server):
    clip_model.CACHE.mkdir()
    (clip_model.CACHE / "model.part").write_bytes(bytes(len(CONTENT) + 5))
    with pytest.raises(ValueError, match="wrong SHA-256"):
        clip_model.download(SUM, "model.pt")
    assert clip_model.download(SUM, "model.pt").read_bytes() == CONTENT


def test_without_a_network_one_line_says_what_to_put_where(server, monkeypatch):
    server.mode = "missing"
    with pytest.raises(FileNotFoundError, match="could not download model.pt"):
        clip_model.download(SUM, "model.pt")
    monkeypatch.setattr(clip_model, "URL", "http://127.0.0.1:9")                # nobody listens there
    with pytest.raises(FileNotFoundError, match="put the file from http://127.0.0.1:9/.*/ViT-B-16.pt into .*cache") as error:
        clip_model.load("ViT-B/16")
    assert "\n" not in str(error.value)


# --------------------------------------------------------------------------------------------------------- the tokenizer

def test_token_rows():
    rows = clip_model.tokenize(["a cat", ""])
    assert rows.shape == (2, 77) and rows.dtype == torch.int64
    assert rows[0].tolist() == [49406, 320, 2368, 49407] + [0] * 73
    assert rows[1].tolist() == [49406, 49407] + [0] * 75
    assert torch.equal(clip_model.tokenize("a cat"), rows[:1])


def test_more_than_77_tokens_are_refused_and_shown():
    assert clip_model.tokenize("cat " * 75)[0, -1] == 49407
    with pytest.raises(ValueError, match="78 tokens where CLIP takes 77: shorten 'cat cat"):
        clip_model.tokenize("cat " * 76)


def test_vocabulary_has_no_gap():
    assert sorted(clip_model.Tokenizer().ids.values()) == list(range(49408))


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, .02), (torch.float16, .005)])
def test_low_precision_agrees(tmp_path, dtype, tolerance):
    torch.save(hash_state(), tmp_path / "clip.pt")
    full, low = clip_model.load(tmp_path / "clip.pt"), clip_model.load(tmp_path / "clip.pt", dtype=dtype)
    images, tokens = torch.randn(4, 3, 32, 32), clip_model.tokenize(["a cat", "a photo of a dog."])
    with torch.no_grad():
        for a, b in ((full.encode_image(images), low.encode_image(images)),
                     (full.encode_text(tokens), low.encode_text(tokens))):
            assert b.dtype == dtype
            torch.testing.assert_close(F.normalize(b.float()), F.normalize(a), atol=tolerance, rtol=0)
