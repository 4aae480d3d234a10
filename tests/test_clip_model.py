"""CLIP: sizes from shapes, tensors that are no weights, the tokenizer, the features."""
import math
import re
import warnings

import pytest
import textbook
import torch
import torch.nn.functional as F
from conftest import hash_state

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
    ({"positional_embedding": torch.zeros(76, 64)}, "mismatch for positional_embedding: .*76, 64"),
    ({"token_embedding.weight": torch.zeros(9, 64)}, "mismatch for token_embedding.weight: .*9, 6"),
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


def test_token_rows():
    rows = clip_model.tokenize(["a cat", ""])
    assert rows.shape == (2, 77) and rows.dtype == torch.int64
    assert rows[0].tolist() == [49406, 320, 2368, 49407] + [0] * 73
    assert rows[1].tolist() == [49406, 49407] + [0] * 75
    assert torch.equal(clip_model.tokenize("a cat"), rows[:1])
    assert clip_model.prompt_ids("a cat") == [49406, 320, 2368, 49407]
    assert clip_model.tokenize("cat " * 75)[0, -1] == 49407             # the longest
    refused(ValueError, "78 tokens where CLIP takes 77: shorten 'cat cat", clip_model.tokenize,
            "cat " * 76)
    refused(ValueError, "CLIP takes 77 tokens: shorten 'cat cat", clip_model.tokenize, "cat " * 999)


# The features -------------------------------------------------------------------------------------

def test_what_follows_the_last_end_token_is_not_computed(small_clip):
    """Nor does it matter: test_sizes_come_from_the_shapes has all 77 positions."""
    lengths = []
    hook = small_clip.transformer.register_forward_pre_hook(
        lambda _, arguments: lengths.append(arguments[0].shape[1]))
    small_clip.encode_text(clip_model.tokenize(["a cat", "a photo of a large brown dog.", "x"]))
    hook.remove()
    assert lengths == [10]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, .02)])
def test_attention_by_its_formula(dtype, tolerance, masked):
    """Both ways to compute it, and their gradients, against one query at a time in float64."""
    q, k, v = ((2 * torch.randn(2, 3, 5, 64)).to(dtype).requires_grad_() for _ in range(3))
    weight, seen = torch.randn(2, 3, 5, 64).to(dtype), torch.ones(5, 5).bool()
    if masked:
        seen = torch.tensor([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 0, 0, 1, 0],
                             [1, 1, 0, 0, 1]]).bool()
    mask = q.new_zeros(5, 5).masked_fill(~seen, -math.inf)
    found = clip_model.attend(q, k, v, mask if masked else None)
    (found * weight).sum().backward()
    Q, K, V = (y.detach().double().requires_grad_() for y in (q, k, v))
    rows = []
    for i, row in enumerate(seen):
        e = torch.exp((Q[:, :, i:i + 1] * K[:, :, row]).sum(dim=-1) / 64 ** 0.5)    # (2, 3, seen)
        rows.append((e[..., None] * V[:, :, row]).sum(dim=2) / e.sum(dim=-1, keepdim=True))
    expected = torch.stack(rows, dim=2)
    torch.testing.assert_close(found.double(), expected, atol=2 * tolerance, rtol=tolerance)
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


@pytest.mark.parametrize("asked, device, dtype, times, said", [
    ("auto", "cpu", torch.float32, 9, False), ("auto", "cuda", torch.float16, 9, False),
    ("auto", "mps", torch.float32, 9, False), ("bfloat16", "cuda", torch.bfloat16, 9, False),
    ("bfloat16", "cpu", torch.bfloat16, 5.83, True), ("float16", "cpu", torch.float16, 1.1, False)])
def test_precision_follows_the_device_and_what_is_slow_is_said(
        asked, device, dtype, times, said, monkeypatch, capsys):
    clip_model.say.cache_clear()
    assert 0.2 < clip_model.slowness(torch.float32) < 5
    monkeypatch.setattr(clip_model, "slowness", lambda dtype: times)
    assert clip_model.pick_precision(asked, torch.device(device)) == dtype
    assert ("5.8 times slower than float32" in capsys.readouterr().out) == said
