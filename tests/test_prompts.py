"""The learners' fast forms against tests/textbook.py, and what else prompts.py promises."""
import re
import threading

import pytest
import textbook
import torch
import torch.nn.functional as F
from conftest import fill_learned, hash_state

import clip_model
import losses
import prompts

RAGGED = ["Forest", "Highway or Road", "golden_retriever", "supercalifragilisticexpialidocious",
          "golden eagle", "Forest"]
SETTINGS = {                                                # one row a form of learner
    "coop": {"method": "coop", "n_ctx": 5},
    "coop from words": {"method": "coop", "ctx_init": "a photo of a"},
    "coop class-specific": {"method": "coop", "n_ctx": 3, "class_specific": True},
    "cocoop": {"method": "cocoop", "n_ctx": 4, "ctx_init": "a photo of a"},
    "cocoop one token": {"method": "cocoop", "n_ctx": 1},
    "maple": {"method": "maple", "n_ctx": 2, "ctx_init": "a photo of a", "prompt_depth": 3},
    "maple input only": {"method": "maple", "n_ctx": 3, "ctx_init": "a photo of a",
                         "prompt_depth": 1},
    "maple six tokens": {"method": "maple", "n_ctx": 6, "prompt_depth": 2},
}
PLACED = {place: {"method": "coop", "n_ctx": 3, "class_place": place}
          for place in ("middle", "front")}


def learner_of(clip, setting, classnames=RAGGED):
    options = {name: value for name, value in setting.items() if name != "method"}
    learner = prompts.build(setting["method"], clip, classnames, **options)
    fill_learned(learner)
    return learner


def gradients(learner, logits, z, g):
    """Gradients of a loss that every output enters."""
    learned = prompts.trainable(learner)
    y = torch.arange(len(logits)) % logits.shape[1]
    fixed = torch.linspace(-1, 1, g.numel()).reshape(g.shape).cos()
    loss = F.cross_entropy(logits, y) + (g * fixed).sum() + z.sum() / 10
    grads = torch.autograd.grad(loss, list(learned.values()))
    return dict(zip(learned, grads, strict=True))


def assert_same(learner, images):
    fast, slow = learner(images), textbook.forward(learner, images)
    torch.testing.assert_close(fast[1], slow[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(fast[2], slow[2], atol=1e-5, rtol=0)
    torch.testing.assert_close(fast[0], slow[0], atol=2e-3, rtol=0)
    expected = gradients(learner, *slow)
    for name, grad in gradients(learner, *fast).items():
        assert (grad - expected[name]).norm() <= 1e-4 * expected[name].norm(), name


@pytest.mark.parametrize("batch, crowded", [(1, False), (3, False), (2, True)])
@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_fast_form_equals_textbook(small_clip, setting, batch, crowded, monkeypatch):
    """Crowded: in several trees, and activations are computed again."""
    if crowded:
        monkeypatch.setitem(prompts.TREE_NODES, "cpu", 20)
        monkeypatch.setattr(prompts, "CROWDED", 0)
    learner = learner_of(small_clip, setting)
    assert (len(learner.trees) > 1) == crowded
    assert_same(learner, torch.randn(batch, 3, 32, 32))


@pytest.mark.parametrize("setting", (SETTINGS | PLACED).values(), ids=SETTINGS | PLACED)
def test_each_prompt_by_itself_equals_the_tree(small_clip, setting):
    learner = learner_of(small_clip, setting)
    z = F.normalize(torch.randn(2, 64), dim=-1)
    g = learner.text_features(z).expand(2, len(RAGGED), -1)
    deep = list(getattr(learner, "compound_prompts_text", ()))
    for n in range(2):
        shift = learner.meta_net(z[n]) if setting["method"] == "cocoop" else 0
        u = (learner.ctx + shift).flatten(0, -2)
        for k, name in enumerate(RAGGED):
            g_k = prompts.encode_prompt(small_clip, learner.token_ids(k, name), u, deep)
            torch.testing.assert_close(F.normalize(g_k, dim=0), g[n, k], atol=1e-5, rtol=0)


@pytest.mark.parametrize("setting, order, shown", [
    (SETTINGS["maple"], [-1, -2, "of", "a", "red", "cat"], "[u_1] [u_2] of a red cat."),
    ({"method": "maple", "n_ctx": 5, "ctx_init": "a photo of a big old"},       # From MaPLe: random
     [-1, -2, -3, -4, -5, "red", "cat"], "[u_1] .. [u_5] red cat."),
    (SETTINGS["cocoop"], [-1, -2, -3, -4, "red", "cat"], "[u_1] [u_2] [u_3] [u_4] red cat."),
    ({"method": "coop", "n_ctx": 2}, [-1, -2, "red", "cat"], "[u_1] [u_2] red cat."),
    (SETTINGS["coop class-specific"], [-4, -5, -6, "red", "cat"], "[u_1] [u_2] [u_3] red cat."),
    # CLASS_TOKEN_POSITION of CoOp; in the middle, half of the vectors come first, rounded down
    (PLACED["middle"], [-1, "red", "cat", -2, -3], "[u_1] red cat [u_2] [u_3]."),
    (PLACED["front"], ["red", "cat", -1, -2, -3], "red cat [u_1] [u_2] [u_3]."),
    ({"method": "zeroshot"}, ["a", "photo", "of", "a", "red", "cat"], "a photo of a red cat."),
    ({"method": "zeroshot", "ctx_init": "of a"}, ["of", "a", "red", "cat"], "of a red cat.")])
def test_prompts_as_text(small_clip, setting, order, shown):
    """And as ids: start, learned vectors, words, "." and end."""
    learner = learner_of(small_clip, setting, ["dog", "red_cat"])
    assert learner.show_prompt("red_cat") == shown
    ids = [clip_model.prompt_ids(word)[1] if isinstance(word, str) else word for word in order]
    start, dot, end = clip_model.prompt_ids(".")
    assert learner.token_ids(1, "red_cat") == [start, *ids, dot, end]


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("method, images, parts", [
    ("maple", 2, [2]), ("maple", 5, [1, 2, 2]),
    ("coop", 2, [2]), ("coop", 3, [1, 2]), ("coop", 9, [1, 1, 1, 2, 2, 2])])
def test_few_images_at_a_time_change_nothing(
        small_clip, method, images, parts, two_threads, monkeypatch):
    monkeypatch.setattr(clip_model, "CACHED", 2 * 5 * 128)      # two images of five tokens
    seen = []
    hook = small_clip.visual.register_forward_pre_hook(
        lambda _, arguments: seen.append(
            (len(arguments[0]), threading.current_thread(), torch.get_num_threads())))
    learner = learner_of(small_clip, SETTINGS[method])
    learner(torch.randn(images, 3, 32, 32))
    hook.remove()
    assert sorted(n for n, *_ in seen) == parts
    each_core = images >= 4 and method == "coop"                # the image tower learns nothing
    assert all((thread is not threading.main_thread()) == each_core for _, thread, _ in seen)
    assert all(threads == (1 if each_core else 2) for *_, threads in seen)
    assert torch.get_num_threads() == 2
    assert_same(learner, torch.randn(images, 3, 32, 32))


@pytest.mark.parametrize("wanted", ["weights", "pixels"])
def test_gradients_arrive_however_many_images(wanted, two_threads, monkeypatch):
    clip = clip_model.build(hash_state()).requires_grad_(wanted == "weights")
    images = torch.randn(9, 3, 32, 32)
    leaf = clip.visual.conv1.weight if wanted == "weights" else images.requires_grad_()
    expected, = torch.autograd.grad(clip.visual(images).square().sum(), leaf)
    monkeypatch.setattr(clip_model, "CACHED", 0)
    found, = torch.autograd.grad(clip.encode_image(images).square().sum(), leaf)
    assert (found - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("method", ["coop", "cocoop", "maple"])
def test_nothing_in_a_step_waits_for_its_numbers(method):
    """Whatever would make a GPU wait, .item() or nonzero(), raises on the meta device.

    Its tensors hold no numbers.
    """
    clip = clip_model.build({name: tensor.to("meta") for name, tensor in hash_state().items()})
    learner = prompts.build(method, clip, RAGGED, n_ctx=2)
    optimizer = torch.optim.SGD(prompts.trainable(learner).values(), lr=0.1, momentum=0.9)
    logits, z, g = learner(torch.empty(4, 3, 32, 32, device="meta"))
    loss, terms = losses.npt_loss(logits, z, g, torch.empty(4, dtype=torch.long, device="meta"))
    loss.backward()
    optimizer.step()
    assert all(t.is_meta for t in (loss, *terms.values(), *prompts.trainable(learner).values()))
    with pytest.raises((RuntimeError, NotImplementedError)):
        loss.item()


@pytest.mark.parametrize("shape", [
    {"vl": 2, "tl": 4, "patch": 8}, {"vl": 4, "tl": 2, "tw": 128, "embed": 32, "offset": 3},
    {"vl": 1, "tl": 1}], ids=["deep text", "deep vision", "one layer"])
@pytest.mark.parametrize("method", ["coop", "cocoop", "maple"])
def test_other_sizes(shape, method):
    clip = clip_model.build(hash_state(**shape))
    learner = learner_of(clip, {"method": method, "n_ctx": 2}, RAGGED[:1])
    assert_same(learner, torch.randn(2, 3, 32, 32))


def test_tree_is_the_one_drawn():
    """The drawing in PromptTree's docstring is the oracle, read as it stands there."""
    drawing = prompts.PromptTree.__doc__
    given = [line.split(", ") for line in re.findall(r"\[(start.*?)\]", drawing)]
    words = ["start", "of", "a", "cat", "sea", "lake", ".", "end"]
    id_of = {word: 100 + i for i, word in enumerate(words)} | {"-1": -1, "-2": -2}
    tree = prompts.PromptTree([[id_of[word] for word in line] for line in given])

    table = re.findall(r"(\d+) {4,}(\S+) {3,}(\d+)(?: +(\d+))?$", drawing, re.M)
    assert [int(node) for node, *_ in table] == list(range(12)) and tree.mask.shape == (12, 12)
    assert tree.positions.tolist() == [int(position) for *_, position, _ in table]
    learned = {i: int(row) for i, (*_, row) in enumerate(table) if row}     # node: row of u
    assert [table[i][1] for i in learned] == ["(u_1)", "(u_2)"]     # their token ids are never read
    assert tree.slots.tolist() == list(learned) and tree.rows.tolist() == list(learned.values())
    assert all(token == id_of[table[i][1]] for i, token in enumerate(tree.tokens.tolist())
               if i not in learned)
    for name in ("slots", "rows", "ends"):
        listed = re.search(rf"{name} +\[(.+?)\]", drawing)[1].split(", ")
        assert getattr(tree, name).tolist() == [int(n) for n in listed]
    node, seen = re.search(r"node (\d+) sees ([\d ]+):", drawing).groups()
    assert tree.mask[int(node)].nonzero()[:, 0].tolist() == [int(n) for n in seen.split()]


def test_zero_shot_is_clip_on_the_template(small_clip):
    images = torch.randn(2, 3, 32, 32)
    learner = prompts.build("zeroshot", small_clip, ["cat", "sea_lake"], ctx_init="{} texture.")
    logits, z, g = learner(images)
    tokens = clip_model.tokenize(["cat texture.", "sea lake texture."])
    text = F.normalize(small_clip.encode_text(tokens), dim=-1)
    torch.testing.assert_close(g, text, atol=1e-5, rtol=0)
    assert prompts.trainable(learner) == {} and not logits.requires_grad


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_only_prompts_train_and_mode_changes_nothing(small_clip, setting):
    learner = learner_of(small_clip, setting)
    images = torch.randn(2, 3, 32, 32)
    assert not any(p.requires_grad for p in learner.clip.parameters())
    assert all(p.dtype == torch.float32 for p in prompts.trainable(learner).values())
    trained = learner.train()(images)
    for a, b in zip(trained, learner.eval()(images), strict=True):
        assert torch.equal(a, b)
    # the image tower of the others keeps no graph
    assert trained[1].requires_grad == (setting["method"] == "maple")


@pytest.mark.parametrize("name", ["coop", "cocoop", "maple"])
def test_nothing_is_kept_over_other_classes_or_other_tokens(small_clip, name):
    images, learner = torch.randn(2, 3, 32, 32), learner_of(small_clip, SETTINGS[name])
    fresh = learner_of(small_clip, SETTINGS[name], ["River", "sea_lake"])
    first = learner(images)[0]
    learner.set_classes(["River", "sea_lake"])
    torch.testing.assert_close(learner(images)[0], fresh(images)[0])
    learner.set_classes(RAGGED)
    assert torch.equal(learner(images)[0], first)
    learned = prompts.trainable(learner)
    saved = {name: p.detach().clone() for name, p in learned.items()}
    for p in learned.values():
        p.data += torch.randn_like(p)
    changed, z, _ = learner(images)
    assert not torch.allclose(first, changed, atol=.01)
    assert torch.equal(learner(images, learner.text_features(z))[0], changed)   # held by the caller
    prompts.load_trainable(learner, saved | {"token_prefix": torch.zeros(1)})   # others are ignored
    assert torch.equal(learner(images)[0], first)


def test_learned_vectors_start_at_the_words_or_at_random(small_clip):
    a, photo = clip_model.prompt_ids("a photo")[1:-1]
    learner = prompts.build("maple", small_clip, ["cat"], n_ctx=2, ctx_init="a photo of a")
    assert torch.equal(learner.ctx, small_clip.token_embedding.weight[[a, photo]])
    learner = prompts.build("coop", small_clip, ["cat"], n_ctx=70)
    assert learner.ctx.std().item() == pytest.approx(0.02, rel=0.1)


def test_maples_depth_is_nine_or_all_layers_where_there_are_fewer(small_clip, monkeypatch):
    assert prompts.DEPTH == 9 and prompts.build("maple", small_clip, ["cat"]).prompt_depth == 3
    first, second = prompts.build("maple", small_clip, ["cat"]).compound_prompt_projections
    assert torch.equal(first.weight, second.weight)             # From MaPLe: they start alike
    monkeypatch.setattr(prompts, "DEPTH", 2)
    learner = prompts.build("maple", small_clip, ["cat"])
    assert learner.prompt_depth == 2 and len(learner.compound_prompts_text) == 1


@pytest.mark.parametrize("arguments, message", [
    ({"method": "magic"}, "unknown method 'magic', expected one of zeroshot, coop, cocoop, maple"),
    ({"method": "maple", "prompt_depth": 4}, "prompt depth must be from 1 to 3.*got 4"),
    ({"method": "maple", "prompt_depth": 0}, "prompt depth must be from 1 to 3"),
    ({"method": "coop", "n_ctx": 0}, "n_ctx must be at least 1"),
    ({"method": "coop", "n_ctx": 77}, "n_ctx must be at least 1 and below 77"),
    ({"method": "maple", "n_ctx": 3, "ctx_init": "photo"}, "fewer: 'photo'"),
    ({"method": "cocoop", "ctx_init": "{} here"}, "words before a class name, without {}"),
    ({"method": "maple", "class_specific": True}, "class_specific is a setting of coop"),
    ({"method": "coop", "classnames": []}, "at least one class name"),
    ({"method": "coop", "classnames": ["dog", "cat " * 61]}, "class 'cat cat .*CLIP takes 77"),
    # 1 + 16 + 58 + "." + 1 = 77 tokens: the last to fit
    ({"method": "coop", "classnames": ["cat " * 59]}, "78 tokens")])
def test_settings_that_do_not_fit(small_clip, arguments, message):
    with pytest.raises(ValueError, match=message):
        prompts.build(clip=small_clip, **{"classnames": ["cat"], **arguments})
    prompts.build("coop", small_clip, ["cat " * 58])


def test_what_was_learned_otherwise_is_refused(small_clip):
    learner = learner_of(small_clip, SETTINGS["maple"])
    for state, found in (({"ctx": torch.zeros(4, 64)}, "one of shape .4, 64"), ({}, "none")):
        with pytest.raises(ValueError, match=f"must hold ctx of shape .2, 64.*it has {found}"):
            prompts.load_trainable(learner, state)
    with pytest.raises(ValueError, match="class-specific contexts belong"):
        learner_of(small_clip, SETTINGS["coop class-specific"]).set_classes(["River"])


@pytest.mark.parametrize("name", ["coop", "cocoop", "maple"])
def test_steps_of_eq7_lower_the_loss_and_bring_images_to_their_texts(small_clip, name):
    learner = learner_of(small_clip, SETTINGS[name], ["Forest", "River", "Highway", "sea_lake"])
    images, y = torch.randn(4, 3, 32, 32), torch.arange(4)
    optimizer = torch.optim.SGD(prompts.trainable(learner).values(), lr=0.002, momentum=0.9)
    seen = []
    for _ in range(26):
        logits, z, g = learner(images)
        loss, terms = losses.npt_loss(logits, z, g, y)
        own = [torch.dot(z[n], g.expand(4, 4, -1)[n, n]).item() for n in range(4)]
        right = (logits.argmax(dim=1) == y).sum().item()
        seen.append((loss.item(), terms["l_mi"].item(), sum(own) / 4, right))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    (loss_0, l_mi_0, own_0, right_0), (loss, l_mi, own, right) = seen[0], seen[-1]
    assert loss < 0.6 * loss_0 and l_mi < l_mi_0 - 0.05
    assert own > own_0 + 0.03 and right > right_0
