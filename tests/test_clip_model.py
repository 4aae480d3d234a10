"""CLIP: sizes from shapes, files that are no weights, the tokenizer, the features."""
import gzip
import io
import itertools
import math
import pickle
import re
import warnings
import zipfile

import pytest
import textbook
import torch
import torch.nn.functional as F
from conftest import hash_state, openai_archive

import clip_model


@pytest.fixture(scope="module")
def weights():
    return hash_state(vl=1, tl=1)


@pytest.fixture
def state(weights):
    return dict(weights)


def sparse(state, words=(0, 320, 2368, 49406, 49407)):
    """The state with the token vectors of `words` only, as assets/tiny_clip.pt keeps them."""
    rows = state["token_embedding.weight"][list(words)]
    return {**state, "token_embedding.weight": rows, "token_embedding.words": torch.tensor(words)}


def refused(error, message, job, *arguments):
    """The job is refused with an error of one short line."""
    with pytest.raises(error, match=message) as raised:
        job(*arguments)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500
    return str(raised.value)


# Sizes, and what is a CLIP ------------------------------------------------------------------------

@pytest.mark.parametrize("sizes", [
    {},                                                                 # 2 x 2 patches
    {"res": 42, "patch": 14, "vl": 2, "vw": 192, "tl": 1, "tw": 128, "embed": 96},  # 3 and 2 heads
    {"res": 96, "patch": 4, "vl": 1, "vw": 64, "tl": 2, "embed": 32},    # 24 x 24 patches
    {"res": 32, "patch": 32, "vl": 1, "tl": 1}])                                    # one patch
def test_sizes_come_from_the_shapes(sizes):
    state = hash_state(**sizes)
    clip = clip_model.build(state)
    res = sizes.get("res", 32)
    assert clip.visual.resolution == res and not clip.training
    images, tokens = torch.randn(2, 3, res, res), clip_model.tokenize(["a cat", "x"])
    z, g = F.normalize(clip.encode_image(images)), F.normalize(clip.encode_text(tokens))
    torch.testing.assert_close(z, textbook.G_v(state, images), atol=1e-5, rtol=0)
    embedded = state["token_embedding.weight"][tokens]
    expected = textbook.G_l(state, embedded, tokens.argmax(dim=1))
    torch.testing.assert_close(g, expected, atol=1e-5, rtol=0)


NO_CLIP = "not the state dict of a ViT CLIP"


def test_every_tensor_is_needed(weights):
    without = {name: f"{NO_CLIP}.*{re.escape(name)}" for name in weights}
    without |= {"": "is missing", "visual.transformer.": "'vision_layers': 0",
                "transformer.": "'text_layers': 0"}
    for start, message in without.items():
        rest = {name: t for name, t in weights.items() if not name.startswith(start)}
        refused(ValueError, message, clip_model.build, rest)


@pytest.mark.parametrize("changed, message", [
    ({"extra": torch.zeros(1)}, "Unexpected key.*extra"),
    ({"x" * 100_000: torch.zeros(1)}, "Unexpected key.*xxx[.]{3}$"),        # a long name is cut
    ({"visual.proj": torch.zeros(3, 3)}, "size mismatch for visual.proj"),
    ({"visual.layer1.0.conv1.weight": torch.zeros(1)}, "ResNet CLIP; this companion covers the V"),
    ({"positional_embedding": torch.zeros(76, 64)}, "al_embedding must have 77 rows, got 76"),
    ({"token_embedding.weight": torch.zeros(9, 64)}, "ding.weight must have 49408 rows, got 9"),
    ({"positional_embedding": torch.tensor(1.)}, NO_CLIP),
    ({"visual.positional_embedding": torch.zeros(1, 128)}, "at least 1.*'resolution': 0"),
    ({"visual.positional_embedding": torch.zeros(4, 128)}, "size mismatch for visual.pos"),
    ({"visual.conv1.weight": torch.zeros(96, 3, 16, 16)}, "multiples of 64.*'vision_width': 96"),
    ({"text_projection": torch.zeros(32, 64)}, "multiples of 64.*'text_width': 32"),
    ({"text_projection": torch.zeros(64)}, NO_CLIP),
    ({"token_embedding.words": torch.tensor([49408])}, NO_CLIP)])
def test_what_is_no_vit_clip_is_refused(state, changed, message):
    refused(ValueError, message, clip_model.build, state | changed)


def first_number(value):
    """The tensor with its first number changed."""
    def damage(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[0] = value
        return tensor
    return damage


PROJ = "visual.proj"


@pytest.mark.parametrize("name, damage, message", [
    (PROJ, first_number(torch.nan), "visual.proj holds nan, expected numbers from -10000 to 10000"),
    (PROJ, first_number(-torch.inf), "visual.proj holds -inf, expected"),
    (PROJ, first_number(1e30), "visual.proj holds 1e.30, expected"),
    (PROJ, first_number(-10001.), "visual.proj holds -10001, expected"),
    ("ln_final.bias", first_number(torch.nan), "ln_final.bias holds nan"),
    ("token_embedding.weight", first_number(torch.inf), "token_embedding.weight holds inf"),
    ("logit_scale", first_number(7.), "logit_scale holds 7, expected numbers from 0 to 6.90776"),
    ("logit_scale", first_number(-.1), "logit_scale holds -0.1, expected"),
    (PROJ, torch.Tensor.int, "visual.proj is a torch.strided tensor of torch.int32, expected a de"),
    (PROJ, torch.Tensor.bool, "visual.proj is a torch.strided tensor of torch.bool, expected"),
    (PROJ, lambda t: t.to(torch.complex64), "of torch.complex64, expected a dense one of floating"),
    (PROJ, torch.Tensor.to_sparse, "visual.proj is a torch.sparse_coo tensor of torch.float32"),
    ("token_embedding.weight", torch.Tensor.to_sparse, "is a torch.sparse_coo tensor"),
    (PROJ, lambda t: t[:1].clone().expand(len(t), -1), "proj has the shape .128, 64., but fewer")])
def test_what_is_no_weight_is_refused_by_name(tmp_path, state, name, damage, message):
    for kept in (state, sparse(state)):
        kept[name] = damage(kept[name])
        assert refused(ValueError, message, clip_model.build, kept).startswith(name)
    torch.save(kept, tmp_path / "clip.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")                          # one line, and no warning before it
        refused(ValueError, message, clip_model.load, tmp_path / "clip.pt")


@pytest.mark.parametrize("name, value", [
    (PROJ, 1e4), (PROJ, -1e4), ("logit_scale", 0.), ("logit_scale", math.log(1000) - 1e-6)])
def test_the_ends_of_the_range_are_weights_and_so_is_what_has_no_numbers(state, name, value):
    state[name] = first_number(value)(state[name])
    assert clip_model.build(state).state_dict()[name].view(-1)[0] == torch.tensor(value)
    clip = clip_model.build({name: tensor.to("meta") for name, tensor in state.items()})
    assert all(parameter.is_meta for parameter in clip.parameters())


def test_token_vectors_of_some_words_only(state):
    given = sparse(state)
    table = clip_model.build(given).token_embedding.weight
    assert table.shape == (49408, 64) and len(given) == len(state) + 1  # which stays as it was
    for i in (0, 320, 2368, 49406, 49407):
        assert torch.equal(table[i], state["token_embedding.weight"][i])
    assert table.count_nonzero(dim=1).count_nonzero() == 5


# Files --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("form", ["archive", "plain", "older format", "wrapped", "module.",
                                  "wrapped module."])
def test_every_form_of_file_loads(tmp_path, state, form):
    path = tmp_path / "clip.pt"
    if form == "archive":                                       # OpenAI's archives are float16
        openai_archive(state, path)
        state = {name: tensor.half().float() for name, tensor in state.items()}
    else:
        written = {"module." + n: t for n, t in state.items()} if "module." in form else state
        written = {"state_dict": written, "epoch": 3} if "wrapped" in form else written
        torch.save(written, path, _use_new_zipfile_serialization=form != "older format")
    with warnings.catch_warnings():
        warnings.simplefilter("error")          # that of torch.jit.load is silenced
        clip = clip_model.load(path)
    assert {name for name, _ in clip.named_parameters()} == set(state)
    for name, parameter in clip.named_parameters():
        assert parameter.dtype == torch.float32 and torch.equal(parameter, state[name]), name


def test_an_archive_is_read_as_torchscript_reads_it(archive):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                         # torch calls it deprecated
        expected = torch.jit.load(archive).state_dict()
    found = clip_model.read_state_dict(archive)
    assert found.keys() == expected.keys() and "input_resolution" in found
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


class Explosive:
    def __reduce__(self):
        return pytest.fail, ("code from the file ran",)


def zipped(content, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, what in content.items():
            archive.writestr(name, what)
    return file.getvalue()


def again(packed, compression=zipfile.ZIP_STORED, **changed):
    """An archive packed anew, sums and all, with other content where a name ends so."""
    archive = zipfile.ZipFile(io.BytesIO(packed))
    return zipped({name: next((new for end, new in changed.items() if name.endswith("/" + end)),
                              archive.read(name)) for name in archive.namelist()}, compression)


HOLLOW = {"clip/constants.pkl": b"x"}


NOT_TENSORS = "not tensors alone: save the state_dict"
NOT_WEIGHTS, NO_STATE = "not a weights file, or a truncated one", "holds no state dict"


@pytest.mark.parametrize("content, message", [
    *((damaged, NOT_WEIGHTS) for damaged in (                   # what was saved, OpenAI's archive
        lambda saved, archive: saved[:100000], lambda saved, archive: archive[:-5000],
        lambda saved, archive: saved.replace(b"archive/data.pkl", b"archive/d\xff\xfea.pkl"),
        lambda saved, archive: saved[:200000] + bytes([saved[200000] ^ 1]) + saved[200001:],
        lambda saved, archive: again(archive, **{"data/0": b"few"}),            # sums are right
        lambda saved, archive: again(archive, zipfile.ZIP_DEFLATED, **{"data/0": bytes(10 ** 7)}),
        b"text", b"", zipped({"hello.txt": b"x"}), zipped(HOLLOW),
        zipped(HOLLOW | {"clip/data.pkl": pickle.dumps(Explosive())}))),
    (Explosive(), NOT_TENSORS), ({"a": Explosive()}, NOT_TENSORS),
    (torch.nn.Linear(2, 2), NOT_TENSORS), ([1, 2], NO_STATE), (torch.zeros(3), NO_STATE),
    ({"state_dict": None}, NO_STATE), ({"epoch": 3}, NO_STATE),
    ({3: torch.zeros(1)}, NO_STATE), ({"a": torch.zeros(1), "b": "c"}, NO_STATE), ({}, NO_CLIP),
    ({"visual.layer1.0.bn1.weight": torch.zeros(1)}, "weights of a ResNet")],
    ids=lambda value: repr(value)[:20])
def test_unreadable_files(tmp_path, state, archive, content, message):
    path = tmp_path / "clip.pt"
    if callable(content) and not isinstance(content, torch.nn.Module):
        content = content(clip_model.as_bytes(state), archive.read_bytes())
    path.write_bytes(content if isinstance(content, bytes) else clip_model.as_bytes(content))
    assert refused(ValueError, message, clip_model.load, path).startswith(f"{path}: ")


def test_a_file_one_may_not_read_is_not_called_damaged(tmp_path, monkeypatch):
    def denied(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "clip.pt").write_text("x")
    monkeypatch.setattr(torch, "load", denied)                  # no chmod: root may read everything
    refused(PermissionError, "Permission denied: .*clip.pt", clip_model.load, tmp_path / "clip.pt")


@pytest.mark.parametrize("name", ["RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B/15", "",
                                  "no/such.pt", "."])
def test_names_that_are_no_model(name, at):
    error, message = FileNotFoundError, f"no CLIP model or file '{name}': give one of ViT-B/32, .*"
    if name.startswith("RN"):
        error, message = ValueError, f"{name} is a ResNet; this companion covers the ViT models: V"
    refused(error, message, clip_model.load, name)


# The tokenizer ------------------------------------------------------------------------------------

class Same(dict):
    """Every symbol is its own id."""
    def __missing__(self, key):
        return key


@pytest.mark.parametrize("merges, text, by_hand", [
    ("", "abc", "a b c</w>"),
    ("a b", "abc", "ab c</w>"),
    ("a b", "ab", "a b</w>"),       # a last letter is another symbol than the same inside
    ("b c</w>, a b", "abc", "a bc</w>"),          # the more frequent pair first, wherever it stands
    ("a b, b c</w>", "abc", "ab c</w>"),
    ("a a", "aaaaaa", "aa aa a a</w>"),                 # from the left, no letter twice
    ("a b, ab ab", "ababx abab", "abab x</w> ab a b</w>"),
    ("a b, ab c</w>, x abc</w>", "xabc", "xabc</w>"),
    ("a <, 1 2", "A<b 12", "a</w> <</w> b</w> 1</w> 2</w>"),  # letters, signs, digits
    ("' s</w>", "a'sa", "a</w> 's</w> a</w>"),                      # and so is 's
])
def test_pairs_are_joined_by_rank(merges, text, by_hand):
    tokenizer = clip_model.Tokenizer()
    tokenizer.rank = {tuple(pair.split()): i for i, pair in enumerate(merges.split(", "))}
    tokenizer.ids = Same()
    assert tokenizer.encode(text) == by_hand.split()


def test_words_equal_a_slow_reading_of_the_merges():
    """The merges replayed on a string with spaces, ids counted by hand.

    256 bytes come first, then 256 that end a word, then the merges.
    """
    packed = (clip_model.ASSETS / "bpe_merges.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode("utf-8").splitlines()
    rank = {line: i for i, line in enumerate(lines)}
    assert len(rank) == 48894
    joined = {line.replace(" ", ""): 512 + i for line, i in rank.items()}

    def letter(symbol):
        return ord(symbol[0]) - ord("!") + 256 * symbol.endswith("</w>")

    def slow(word):
        text = " ".join(word) + "</w>"
        while True:
            parts = text.split()
            pairs = [f"{a} {b}" for a, b in itertools.pairwise(parts)]
            known = [rank[pair] for pair in pairs if pair in rank]
            if not known:
                return [joined[part] if part in joined else letter(part) for part in parts]
            pair = lines[min(known)]
            text = re.sub(rf"(?<!\S){re.escape(pair)}(?!\S)", pair.replace(" ", ""), text)

    names = (clip_model.ASSETS / "imagenet.tsv").read_text().lower()
    words = sorted({word for word in re.split("[^a-z]+", names) if word})[::3]
    words += ["qzxjvk", "aaaaaaaaa", "bananarama"]
    tokenizer = clip_model.Tokenizer()
    assert len(words) > 300
    for word in words:
        assert tokenizer.encode(word) == slow(word), word


def test_token_rows():
    rows = clip_model.tokenize(["a cat", ""])
    assert rows.shape == (2, 77) and rows.dtype == torch.int64
    assert rows[0].tolist() == [49406, 320, 2368, 49407] + [0] * 73
    assert rows[1].tolist() == [49406, 49407] + [0] * 75
    assert torch.equal(clip_model.tokenize("a cat"), rows[:1])
    assert clip_model.prompt_ids("a cat") == [49406, 320, 2368, 49407]


def test_more_than_77_tokens_are_refused_and_shown():
    assert clip_model.tokenize("cat " * 75)[0, -1] == 49407
    with pytest.raises(ValueError, match="78 tokens where CLIP takes 77: shorten 'cat cat"):
        clip_model.tokenize("cat " * 76)


def test_vocabulary_has_no_gap():
    assert sorted(clip_model.Tokenizer().ids.values()) == list(range(49408))


# The features -------------------------------------------------------------------------------------

def test_what_follows_the_end_token_does_not_matter(small_clip):
    tokens = clip_model.tokenize(["a cat", "a photo of a large brown dog.", "x"])
    littered = tokens.clone()
    for row, end in zip(littered, tokens.argmax(dim=1), strict=True):
        row[end + 1:] = torch.randint(1, 49407, (76 - int(end),))
    assert not torch.equal(littered, tokens)
    lengths = []
    hook = small_clip.transformer.register_forward_pre_hook(
        lambda _, arguments: lengths.append(arguments[0].shape[1]))
    found, expected = small_clip.encode_text(littered), small_clip.encode_text(tokens)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    hook.remove()
    assert lengths == [10, 10]                                      # and is not computed


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, .02)])
def test_attention_by_loops(dtype, tolerance, masked):
    """Both ways to compute it, and their gradients, against sums over single numbers in float64."""
    q, k, v = ((2 * torch.randn(2, 3, 5, 64)).to(dtype).requires_grad_() for _ in range(3))
    weight = torch.randn(2, 3, 5, 64).to(dtype)
    mask = torch.tensor([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 0, 0, 1, 0],
                         [1, 1, 0, 0, 1]]).bool()
    (clip_model.attend(q, k, v, mask if masked else None) * weight).sum().backward()
    found = clip_model.attend(q, k, v, mask if masked else None).detach().double()
    Q, K, V = (y.detach().double().requires_grad_() for y in (q, k, v))
    rows = []
    for b, head, i in itertools.product(range(2), range(3), range(5)):
        seen = [j for j in range(5) if not masked or mask[i, j]]
        score = [(Q[b, head, i] * K[b, head, j]).sum() / 64 ** 0.5 for j in seen]
        total = sum(s.exp() for s in score)
        rows.append(sum(s.exp() / total * V[b, head, j] for s, j in zip(score, seen, strict=True)))
    expected = torch.stack(rows).view(2, 3, 5, 64)
    torch.testing.assert_close(found, expected.detach(), atol=2 * tolerance, rtol=tolerance)
    grads = torch.autograd.grad((expected * weight.double()).sum(), (Q, K, V))
    for y, grad in zip((q, k, v), grads, strict=True):
        assert (y.grad.double() - grad).norm() <= tolerance * grad.norm()


@pytest.mark.parametrize("dtype, tolerance", [
    (torch.float32, 1e-6), (torch.bfloat16, .02), (torch.float16, .005)])
def test_precision_of_weights_features_and_temperature(tmp_path, small_clip, dtype, tolerance):
    torch.save(hash_state(), tmp_path / "clip.pt")
    low = clip_model.load(str(tmp_path / "clip.pt"), dtype=dtype)
    assert {p.dtype for name, p in low.named_parameters() if name != "logit_scale"} == {dtype}
    assert low.logit_scale.dtype == torch.float32
    assert low.temperature.item() == pytest.approx(0.01, rel=1e-6)
    images, tokens = torch.randn(4, 3, 32, 32), clip_model.tokenize(["a cat", "a photo of a dog."])
    with torch.no_grad():
        for a, b in ((small_clip.encode_image(images), low.encode_image(images)),
                     (small_clip.encode_text(tokens), low.encode_text(tokens))):
            assert b.dtype == dtype
            found = F.normalize(b.float())
            torch.testing.assert_close(found, F.normalize(a), atol=tolerance, rtol=0)


@pytest.mark.parametrize("asked, device, dtype", [
    ("auto", "cpu", torch.float32), ("auto", "cuda", torch.float16), ("auto", "mps", torch.float32),
    ("bfloat16", "cuda", torch.bfloat16), ("float32", "cuda", torch.float32)])
def test_precision_follows_the_device(asked, device, dtype, capsys):
    assert clip_model.pick_precision(asked, torch.device(device)) == dtype
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("times, said", [(5.8, True), (0.6, False)])    # AVX2; AVX-512 bfloat16
def test_a_type_that_this_cpu_computes_slowly_is_said_and_taken(times, said, monkeypatch, capsys):
    clip_model.say.cache_clear()
    monkeypatch.setattr(clip_model, "slowness", lambda dtype: times)
    assert clip_model.pick_precision("bfloat16", torch.device("cpu")) == torch.bfloat16
    assert ("5.8 times slower than float32" in capsys.readouterr().out) == said


def test_slowness_is_of_one_type_over_the_other():
    assert 0.2 < clip_model.slowness(torch.float32) < 5
