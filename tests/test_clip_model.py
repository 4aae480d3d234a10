"""Weights in: sizes from shapes, OpenAI's archive, state dicts. Tokenizer's edges."""
import gzip
import itertools
import math
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


def one_line(error):
    return "\n" not in str(error.value) and len(str(error.value)) < 500


# ------------------------------------------------------------------------- sizes and what is a CLIP

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


def test_every_tensor_is_needed(weights):
    for name in weights:
        message = f"not the state dict of a ViT CLIP.*{re.escape(name)}"
        with pytest.raises(ValueError, match=message) as error:
            clip_model.build({n: t for n, t in weights.items() if n != name})
        assert one_line(error)


def without_layers(tower):
    return lambda s: [s.pop(name) for name in list(s) if name.startswith(tower + "transformer.")]


@pytest.mark.parametrize("damage, message", [
    (lambda s: s.clear(), "is missing"),
    (lambda s: s.update(extra=torch.zeros(1)), "Unexpected key.*extra"),
    (lambda s: s.update({"visual.proj": torch.zeros(3, 3)}), "size mismatch for visual.proj"),
    (lambda s: s.update({"visual.layer1.0.conv1.weight": torch.zeros(1)}),
     "ResNet CLIP; this companion covers the V"),
    (lambda s: s.update(positional_embedding=torch.zeros(76, 64)),
     "positional_embedding must have 77 rows, got 76"),
    (lambda s: s.update({"token_embedding.weight": torch.zeros(9, 64)}),
     "ding.weight must have 49408 rows, got 9"),
    (lambda s: s.update(positional_embedding=torch.tensor(1.)), "not the state dict of a ViT CLIP"),
    (lambda s: s.update({"visual.positional_embedding": torch.zeros(1, 128)}),
     "at least 1.*'resolution': 0"),
    (lambda s: s.update({"visual.positional_embedding": torch.zeros(4, 128)}),
     "size mismatch for visual.pos"),
    (lambda s: s.update({"visual.conv1.weight": torch.zeros(96, 3, 16, 16)}),
     "multiples of 64.*'vision_width': 96"),
    (lambda s: s.update(text_projection=torch.zeros(32, 64)), "multiples of 64.*'text_width': 32"),
    (lambda s: s.update(text_projection=torch.zeros(64)), "not the state dict of a ViT CLIP"),
    (without_layers("visual."), "'vision_layers': 0"),
    (without_layers(""), "'text_layers': 0"),
    (lambda s: s.update({"token_embedding.words": torch.tensor([49408])}),
     "not the state dict of a ViT CLIP"),
])
def test_what_is_no_vit_clip_is_refused(state, damage, message):
    damage(state)
    with pytest.raises(ValueError, match=message) as error:
        clip_model.build(state)
    assert one_line(error)


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
    (PROJ, lambda t: t[:1].clone().expand(len(t), -1), "proj has the shape .128, 64., but fewer"),
])
def test_what_is_no_weight_is_refused_by_name(tmp_path, state, name, damage, message):
    state[name] = damage(state[name])
    with pytest.raises(ValueError, match=message) as error:
        clip_model.build(state)
    assert str(error.value).startswith(name) and one_line(error)
    torch.save(sparse(state), tmp_path / "clip.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")                          # one line, and no warning before it
        with pytest.raises(ValueError, match=message):
            clip_model.load(tmp_path / "clip.pt")


@pytest.mark.parametrize("name, value", [
    (PROJ, 1e4), (PROJ, -1e4), ("logit_scale", 0.), ("logit_scale", math.log(1000) - 1e-6)])
def test_the_ends_of_the_range_are_weights(state, name, value):
    state[name] = first_number(value)(state[name])
    assert clip_model.build(state).state_dict()[name].view(-1)[0] == torch.tensor(value)


def test_tensors_without_numbers_are_built_too(state):
    clip = clip_model.build({name: tensor.to("meta") for name, tensor in state.items()})
    assert all(parameter.is_meta for parameter in clip.parameters())


def test_what_a_file_says_is_clipped(state):
    with pytest.raises(ValueError, match="Unexpected key.*xxx[.]{3}$") as error:
        clip_model.build({**state, "x" * 100_000: torch.zeros(1)})
    assert len(str(error.value)) < 200
    with pytest.raises(ValueError, match="100000 characters where CLIP takes 77 tokens") as error:
        clip_model.prompt_ids("x" * 100_000)
    assert len(str(error.value)) < 200


def sparse(state, words=(0, 320, 2368, 49406, 49407)):
    """The state with the token vectors of `words` only, as assets/tiny_clip.pt keeps them."""
    rows = state["token_embedding.weight"][list(words)]
    return {**state, "token_embedding.weight": rows, "token_embedding.words": torch.tensor(words)}


def test_token_vectors_of_some_words_are_weights_too(state):
    given = sparse(state)
    given["token_embedding.weight"] = given["token_embedding.weight"].to_sparse()
    with pytest.raises(ValueError, match="^token_embedding.weight is a torch.sparse_coo tensor"):
        clip_model.build(given)


def test_token_vectors_of_some_words_only(state):
    given = sparse(state)
    table = clip_model.build(given).token_embedding.weight
    assert table.shape == (49408, 64) and len(given) == len(state) + 1  # which stays as it was
    for i in (0, 320, 2368, 49406, 49407):
        assert torch.equal(table[i], state["token_embedding.weight"][i])
    assert table.count_nonzero(dim=1).count_nonzero() == 5


# -------------------------------------------------------------------------------------------- files

@pytest.mark.parametrize("form", ["archive", "plain", "older format", "wrapped", "module.",
                                  "wrapped module."])
def test_every_form_of_file_loads(tmp_path, state, form):
    path = tmp_path / "clip.pt"
    if form == "archive":
        openai_archive(state, path)
        # OpenAI's archives are float16
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


def test_only_the_deprecation_of_torch_jit_load_is_silenced(tmp_path, state, monkeypatch):
    real_load = torch.jit.load

    def load(*arguments, **options):
        warnings.warn("`torch.jit.load` is deprecated.", DeprecationWarning, stacklevel=1)
        warnings.warn("something else", stacklevel=1)
        return real_load(*arguments, **options)

    openai_archive(sparse(state), tmp_path / "clip.pt")
    monkeypatch.setattr(torch.jit, "load", load)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        clip_model.load(tmp_path / "clip.pt")
        # the filter is gone again
        warnings.warn("`torch.jit.load` is deprecated.", DeprecationWarning, stacklevel=1)
    assert [str(w.message) for w in seen] == ["something else", "`torch.jit.load` is deprecated."]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_precision_of_the_weights_and_of_the_temperature(tmp_path, state, dtype):
    torch.save(sparse(state), tmp_path / "clip.pt")
    clip = clip_model.load(str(tmp_path / "clip.pt"), dtype=dtype)
    assert {p.dtype for name, p in clip.named_parameters() if name != "logit_scale"} == {dtype}
    assert clip.logit_scale.dtype == torch.float32
    assert clip.temperature.item() == pytest.approx(0.01, rel=1e-6)


def test_tiny():
    clip = clip_model.load("tiny")
    tokens = clip_model.tokenize(["a red circle", "a blue square"])
    features = F.normalize(clip.encode_text(tokens), dim=-1)
    assert len(clip.token_embedding.weight) == 49408
    assert features[0] @ features[1] < 0.99  # more: test_world.py


class Explosive:
    def __reduce__(self):
        return pytest.fail, ("code from the file ran",)


NOT_WEIGHTS, NO_STATE = "not a weights file, or a truncated one", "holds no state dict"


@pytest.mark.parametrize("content, message", [
    (b"text", NOT_WEIGHTS), (b"", NOT_WEIGHTS),
    ("cut archive", NOT_WEIGHTS), ("cut dict", NOT_WEIGHTS),
    ("damaged names", NOT_WEIGHTS), ("foreign zip", NOT_WEIGHTS), ("hollow archive", NOT_WEIGHTS),
    (Explosive(), NOT_WEIGHTS), ({"a": Explosive()}, NOT_WEIGHTS),
    (torch.nn.Linear(2, 2), NOT_WEIGHTS), ([1, 2], NO_STATE), (torch.zeros(3), NO_STATE),
    ({"state_dict": None}, NO_STATE), ({"epoch": 3}, NO_STATE),
    ({3: torch.zeros(1)}, NO_STATE), ({"a": torch.zeros(1), "b": "c"}, NO_STATE),
    ({}, "not the state dict of a ViT CLIP"),
    ({"visual.layer1.0.bn1.weight": torch.zeros(1)}, "weights of a ResNet")],
    ids=lambda value: None if isinstance(value, str) else repr(value)[:20])
def test_unreadable_files(tmp_path, state, content, message):
    path = tmp_path / "clip.pt"
    if content == "cut archive":
        openai_archive(sparse(state), path)
        path.write_bytes(path.read_bytes()[:-5000])
    elif content == "cut dict":
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:100000])
    elif content == "damaged names":                      # the zip's directory is no UTF-8 any more
        torch.save({"a": torch.zeros(1)}, path)
        path.write_bytes(path.read_bytes().replace(b"clip/data.pkl", b"clip/d\xff\xfea.pkl"))
    elif content in ("foreign zip", "hollow archive"):
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("clip/constants.pkl" if content == "hollow archive" else "hello.txt", "x")
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message) as error:
        clip_model.load(path)
    assert str(error.value).startswith(f"{path}: ") and one_line(error)


def test_a_file_one_may_not_read_is_not_called_damaged(tmp_path, monkeypatch):
    def denied(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "clip.pt").write_text("x")
    monkeypatch.setattr(torch, "load", denied)                  # no chmod: root may read everything
    with pytest.raises(PermissionError, match="Permission denied: .*clip.pt"):
        clip_model.load(tmp_path / "clip.pt")


@pytest.mark.parametrize("name", ["RN50", "RN101", "RN50x4", "RN50x16", "RN50x64"])
def test_resnets_are_not_covered(name):
    message = f"{name} is a ResNet; this companion covers the ViT models: ViT-B/32, "
    with pytest.raises(ValueError, match=message):
        clip_model.load(name)


@pytest.mark.parametrize("name", ["ViT-B/15", "", "no/such.pt", "."])
def test_names_that_are_no_model(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = f"no CLIP model or file '{name}': give one of ViT-B/32, .*, tiny, or"
    with pytest.raises(FileNotFoundError, match=message):
        clip_model.load(name)


# ------------------------------------------------------------------------------------ the tokenizer

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


# ------------------------------------------------------------------------------------- the features

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


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, .02), (torch.float16, .005)])
def test_low_precision_agrees(tmp_path, dtype, tolerance):
    torch.save(hash_state(), tmp_path / "clip.pt")
    full = clip_model.load(tmp_path / "clip.pt")
    low = clip_model.load(tmp_path / "clip.pt", dtype=dtype)
    images, tokens = torch.randn(4, 3, 32, 32), clip_model.tokenize(["a cat", "a photo of a dog."])
    with torch.no_grad():
        for a, b in ((full.encode_image(images), low.encode_image(images)),
                     (full.encode_text(tokens), low.encode_text(tokens))):
            assert b.dtype == dtype
            found = F.normalize(b.float())
            torch.testing.assert_close(found, F.normalize(a), atol=tolerance, rtol=0)
