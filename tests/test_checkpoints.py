"""assets/checkpoints.py: files as the originals' code writes them, by a small writer of its own."""
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy
import pytest
import torch
from small_runs import call, done, picture, read, refused

import clip_model
import evaluate
import prompts
from assets import checkpoints

METHODS = ("coop", "cocoop", "maple")
WORDS = {"coop": [], "cocoop": [], "maple": ["of", "a"]}        # fixed words behind learned tokens


class ConstantWarmup(torch.optim.lr_scheduler.LRScheduler):
    """Keeps the scheduler that follows as an object, as Dassl's does: so it is saved whole."""

    def __init__(self, optimizer, successor):
        self.successor = successor
        super().__init__(optimizer)

    def get_lr(self):
        return self.base_lrs


def dassl(path, state, epoch=5, val_result=None):
    """Write what Dassl's save_checkpoint writes, with an SGD that has taken a step."""
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([p], lr=0.002, momentum=0.9)
    p.sum().backward()
    optimizer.step()
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, float(epoch))
    scheduler = ConstantWarmup(optimizer, cosine)
    torch.save({"state_dict": state, "epoch": epoch, "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(), "val_result": val_result}, path)


def original_state(run, prefix, clip=None, classes=7, half=False):
    """state_dict of a run's tensors as the originals have it: names prefixed, buffers, CLIP."""
    saved = torch.load(run / "prompts.pt", weights_only=True)
    state, method = dict(saved["learned"]), saved["settings"]["method"]
    table = clip_model.load("tiny").token_embedding.weight.detach()
    ids = clip_model.prompt_ids(" ".join(WORDS[method]) or "red star")[1:-1]
    state["token_prefix"] = table[[49406]].expand(classes, 1, -1).clone()
    state["token_suffix"] = torch.cat([table[ids], table[[49407] * 4]]).repeat(classes, 1, 1)
    state = {prefix + name: tensor.half() if half else tensor for name, tensor in state.items()}
    if clip:                                            # MaPLe saves the whole model
        for name, tensor in clip.state_dict().items():
            tower = "image_encoder." + name.removeprefix("visual.")
            state[tower if name.startswith("visual.") else f"text_encoder.{name}"] = tensor
    return state


@pytest.fixture(scope="module", params=METHODS)
def run(request, tmp_path_factory):
    """A short run in the embedded world."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    done("--method", request.param, "--dataset", "world", "--epochs", 2, "--shots", 1,
         "--test-images", 2, "--lr", 0.01, "--out", folder)
    return folder


@pytest.fixture
def maple():
    """The state of a MaPLe on the tiny CLIP, never trained."""
    torch.manual_seed(0)
    learner = prompts.build("maple", clip_model.load("tiny"), ["red star"], n_ctx=2,
                            ctx_init="a photo of a", prompt_depth=2)
    return {"prompt_learner." + name: p.detach() for name, p in prompts.trainable(learner).items()}


def evaluated(*words):
    return done(*words, main=evaluate.main)


def refused_by_evaluate(path, *words):
    return refused("--checkpoint", path, "--dataset", "world", *words, main=evaluate.main)


def numbers(folder):
    """All that an evaluation leaves, less the names of the run and of training counts."""
    found = json.loads((folder / "base-to-novel.json").read_text(encoding="utf-8"))["results"]
    for part in ("base", "novel"):
        del found[part]["groups"]
        found[part]["calibration_error"] = found[part]["calibration_error"]["all"]
    return found, [read(folder / part / name) for part in ("base", "novel")
                   for name in ("predictions.csv", "confusion.csv")]


def whole_test(run, tmp_path):
    """The run on all test images: a copy without the subset that it was tested on."""
    copy = shutil.copytree(run, tmp_path / "copy")
    saved = torch.load(copy / "prompts.pt", weights_only=True)
    saved["settings"]["test_images"] = None
    torch.save(saved, copy / "prompts.pt")
    facts = json.loads((copy / "run.json").read_text(encoding="utf-8"))
    (copy / "run.json").write_text(json.dumps(facts | {"test_images": None}), encoding="utf-8")
    return copy


# ------------------------------------------------------------------------------------ same numbers

def test_the_originals_files_give_the_numbers_of_the_same_tensors(run, tmp_path):
    """All three methods, each as its own trainer registers it, with what Dassl saves besides."""
    copy, method = whole_test(run, tmp_path), run.parent.name[:-1]
    evaluated(copy, "--out", tmp_path / "ours")
    clip = clip_model.load("tiny") if method == "maple" else None
    prefix = "prompt_learner." if method == "maple" else ""
    dassl(tmp_path / "model.pth.tar-5", original_state(run, prefix, clip),
          val_result=numpy.float64(71.5))
    printed = evaluated("--checkpoint", tmp_path / "model.pth.tar-5", "--method", method,
                        "--dataset", "world", "--out", tmp_path / "theirs")
    assert numbers(tmp_path / "theirs") == numbers(tmp_path / "ours")
    settings = torch.load(run / "prompts.pt", weights_only=True)["settings"]
    learner, _ = evaluate.load_run(run)
    assert f"epoch 5: {learner.show_prompt(settings['trained_classes'][0])}" in printed
    per_class = read(tmp_path / "theirs" / "base" / "per_class.csv")
    assert {(row["training_images"], row["group"]) for row in per_class} == {("", "unknown")}


def learned_from(path, clip, method):
    tensors, _ = checkpoints.read(path)
    assert checkpoints.method_of(tensors) == method
    learner = prompts.build(method, clip, ["a"], **checkpoints.settings_of(tensors, method, None))
    checkpoints.fill(learner, tensors, "tiny")
    return {name: p.detach() for name, p in prompts.trainable(learner).items()}


@pytest.mark.parametrize("prefix", ["", "prompt_learner.", "module.prompt_learner."])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_prefixes_half_precision_and_stale_buffers(run, prefix, half, tmp_path):
    method = run.parent.name[:-1]
    dassl(tmp_path / "x", original_state(run, prefix, classes=3, half=half))
    found = learned_from(tmp_path / "x", clip_model.load("tiny"), method)
    own = torch.load(run / "prompts.pt", weights_only=True)["learned"]
    assert found.keys() == own.keys() and all(p.dtype == torch.float32 for p in found.values())
    for name, tensor in own.items():
        assert torch.equal(found[name], tensor.half().float() if half else tensor), name


def test_a_bare_state_dict_and_one_without_buffers(run, tmp_path):
    state = {name: tensor for name, tensor in original_state(run, "").items()
             if not name.startswith("token_")}
    torch.save(state, tmp_path / "x")
    found = learned_from(tmp_path / "x", clip_model.load("tiny"), run.parent.name[:-1])
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_sizes_come_from_the_tensors(maple):
    state = {name.removeprefix("prompt_learner."): tensor for name, tensor in maple.items()}
    settings = checkpoints.settings_of(state, "maple", None)
    assert settings == {"n_ctx": 2, "ctx_init": "a photo of a", "prompt_depth": 2}
    assert checkpoints.settings_of({"ctx": torch.zeros(16, 64)}, "coop", None)["n_ctx"] == 16
    each = checkpoints.settings_of({"ctx": torch.zeros(3, 4, 64)}, "coop", None)
    assert each["class_specific"] and each["n_ctx"] == 4


def test_contexts_of_each_class_belong_to_the_base_classes(tmp_path):
    torch.manual_seed(0)
    state = {"ctx": 0.02 * torch.randn(12, 2, clip_model.load("tiny").text_projection.shape[0])}
    dassl(tmp_path / "x", state)
    out = evaluated("--checkpoint", tmp_path / "x", "--dataset", "world", "--out", tmp_path / "o")
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == ["base", "base-to-novel.json"]
    assert "[u_1] [u_2] " in out


def test_the_evaluation_lies_beside_the_file(maple, at):
    dassl("model.pth.tar-5", maple)
    evaluated("--checkpoint", "model.pth.tar-5", "--dataset", "world", "--classes", "novel")
    assert Path("model.pth.tar-5-world/evaluation/novel/per_class.csv").is_file()
    found = json.loads(Path("model.pth.tar-5-world/evaluation/base-to-novel.json").read_text(
        encoding="utf-8"))
    assert found["run"] == "model.pth.tar-5" and list(found["results"]) == ["novel"]


def test_transfer_and_photos_need_no_dataset_of_training(maple, at):
    dassl("x", maple)
    printed = evaluated("--checkpoint", "x", "--backbone", "tiny", "--task", "cross-dataset",
                        "--targets", "world_shapes")
    assert "world_shapes" in printed and "maple" in printed
    picture(1).save("photo.png")
    Path("names.txt").write_text("red star\nblue ring\n", encoding="utf-8")
    printed = evaluated("--checkpoint", "x", "--backbone", "tiny", "--image", "photo.png",
                        "--classnames", "names.txt")
    assert "red star" in printed and "blue ring" in printed


# ----------------------------------------------------------------------------------------- refused

def test_a_malicious_file_is_refused_and_never_runs(maple, tmp_path):
    class Touch:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sentinel",))

    class Shell:
        def __reduce__(self):
            return (os.system, (f"echo > {tmp_path / 'sentinel'}",))

    for evil in (Touch(), Shell()):
        dassl(tmp_path / "x", maple, val_result=evil)
        line = refused_by_evaluate(tmp_path / "x")
        assert "asks to run" in line and "nothing in it was run" in line
        assert not (tmp_path / "sentinel").exists()
    torch.load(tmp_path / "x", weights_only=False)              # the trap is a real one
    assert (tmp_path / "sentinel").exists()


def test_stand_ins_hold_nothing_and_leave_with_the_reader(maple, tmp_path):
    before = torch.serialization.get_safe_globals()
    dassl(tmp_path / "x", maple, val_result=numpy.float64(1))
    with torch.serialization.safe_globals(checkpoints.IGNORED):
        content = torch.load(tmp_path / "x", weights_only=True)
    assert type(content["val_result"]) is checkpoints.Ignored
    assert type(content["scheduler"]["successor"]) is checkpoints.Ignored
    assert not vars(content["scheduler"]["successor"])
    checkpoints.read(tmp_path / "x")
    assert torch.serialization.get_safe_globals() == before
    with pytest.raises(pickle.UnpicklingError):                 # what plain reading says of it
        torch.load(tmp_path / "x", weights_only=True)


def test_numpys_older_name_of_a_scalar(maple, tmp_path):
    """numpy 1 called it numpy.core.multiarray.scalar: the same file with that name in it."""
    dassl(tmp_path / "new", maple, val_result=numpy.float64(1))
    with zipfile.ZipFile(tmp_path / "new") as new, zipfile.ZipFile(tmp_path / "x", "w") as old:
        for name in new.namelist():
            content = new.read(name)
            assert name != "new/data.pkl" or b"numpy._core.multi" in content
            old.writestr(name, content.replace(b"numpy._core.multi", b"numpy.core.multi"))
    assert checkpoints.read(tmp_path / "x")[1] == 5


@pytest.mark.parametrize("damage, message", [
    (lambda path: path.write_bytes(path.read_bytes()[:3000]), "not a checkpoint, or a damaged one"),
    (lambda path: path.write_bytes(b"junk"), "not a checkpoint, or a damaged one"),
    (lambda path: path.write_bytes(b""), "not a checkpoint, or a damaged one"),
    (lambda path: torch.save([1, 2], path), "not a checkpoint, or a damaged one"),
    (lambda path: torch.save({"state_dict": {3: 4}}, path), "not a checkpoint, or a damaged one"),
    (lambda path: torch.save({"state_dict": {"weight": torch.ones(2)}}, path), "no learned tokens"),
    (lambda path: torch.save({"ctx": torch.ones(3)}, path), "no learned tokens"),
    (lambda path: torch.save({"ctx": "words"}, path), "ctx is no dense tensor of finite numbers"),
    (lambda path: torch.save({"ctx": torch.ones(2, 4).long()}, path), "ctx is no dense tensor"),
    (lambda path: torch.save({"ctx": torch.full((2, 4), torch.nan)}, path), "finite numbers"),
    (lambda path: torch.save({"ctx": torch.ones(2, 4), "image_encoder.VPT": torch.ones(2)}, path),
     "visual prompts that nothing projects"),
    (lambda path: path.unlink(), "no such file"),
])
def test_what_is_no_checkpoint(maple, tmp_path, damage, message):
    dassl(tmp_path / "x", maple)
    damage(tmp_path / "x")
    assert message in refused_by_evaluate(tmp_path / "x")


def test_a_flipped_bit_is_seen(maple, tmp_path):
    dassl(tmp_path / "x", maple)
    content = bytearray((tmp_path / "x").read_bytes())
    content[content.index(maple["prompt_learner.ctx"].numpy().tobytes()) + 3] ^= 64
    (tmp_path / "x").write_bytes(content)
    assert "damaged" in refused_by_evaluate(tmp_path / "x")


def test_another_method_another_clip_other_words(maple, tmp_path):
    path = tmp_path / "x"
    dassl(path, maple)
    line = refused_by_evaluate(path, "--method", "cocoop")
    assert "holds the tensors of maple, not of --method cocoop" in line
    wide = clip_model.load("tiny").text_projection.shape[0] + 64
    torch.save({"ctx": torch.zeros(4, wide)}, path)
    assert f"its tokens are {wide} wide, those of CLIP tiny" in refused_by_evaluate(path)

    table = clip_model.load("tiny").token_embedding.weight.detach()
    torch.save(maple | {"prompt_learner.token_prefix": 2 * table[[49406]][None]}, path)
    assert "its start token is not that of CLIP tiny" in refused_by_evaluate(path)
    other = clip_model.prompt_ids("in a red star")[1:]
    torch.save(maple | {"prompt_learner.token_suffix": table[other][None]}, path)
    assert "not trained with 'of a' behind its learned tokens" in refused_by_evaluate(path)

    deep = dict(maple)
    for j in range(20):
        deep[f"prompt_learner.compound_prompts_text.{j}"] = maple["prompt_learner.ctx"]
    torch.save(deep, path)
    assert "prompt depth must be from 1 to" in refused_by_evaluate(path)
    del maple["prompt_learner.proj.bias"]
    torch.save(maple, path)
    assert "must hold proj.bias" in refused_by_evaluate(path)


@pytest.mark.parametrize("words, message", [
    ([], "expected a run's folder, or --checkpoint FILE"),
    (["run", "--checkpoint", "x"], "expected a run's folder, or --checkpoint FILE"),
    (["run", "--method", "coop"], "--method goes with --checkpoint"),
    (["run", "--ctx-init", ""], "--ctx-init goes with --checkpoint"),
    (["--checkpoint", "x"], "--checkpoint needs --dataset"),
    (["--checkpoint", "x", "--table", 1], "--table is made of runs' folders"),
])
def test_options_that_do_not_go_together(at, words, message):
    assert message in refused(*words, main=evaluate.main)


# --------------------------------------------------------------------------------------- and back

class Linears(torch.nn.Module):
    """A module that holds tensors under given names with dots, as the originals' modules do."""

    def __init__(self, state):
        super().__init__()
        for name, tensor in state.items():
            *parents, leaf = name.split(".")
            module = self
            for part in parents:
                if part not in module._modules:
                    module.add_module(part, torch.nn.Module())
                module = module._modules[part]
            module.register_parameter(leaf, torch.nn.Parameter(torch.zeros_like(tensor)))


def test_ours_is_loaded_by_the_steps_of_the_originals_load_model(run, tmp_path):
    """Theirs, line by line: torch.load, the two keys, drop the buffers, strict=False."""
    path, method = tmp_path / "model.pth.tar-5", run.parent.name[:-1]
    printed = done(run, "--out", path, main=checkpoints.main)
    assert checkpoints.FOLDER[method] in printed
    before = original_state(run, "prompt_learner." if method == "maple" else "", classes=2)
    model = Linears(before)
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)    # today's default
    state, epoch = checkpoint["state_dict"], checkpoint["epoch"]
    assert epoch == 2 and f"{checkpoint['val_result']:.1f}"
    answer = model.load_state_dict(state, strict=False)
    assert not answer.unexpected_keys
    assert {name.split(".")[-1] for name in answer.missing_keys} == {"token_prefix", "token_suffix"}
    own = torch.load(run / "prompts.pt", weights_only=True)["learned"]
    for name, p in model.named_parameters():
        name = name.removeprefix("prompt_learner.")
        assert name.startswith("token_") or torch.equal(p.detach(), own[name])
    found = learned_from(path, clip_model.load("tiny"), method)             # and by ours
    assert all(torch.equal(found[name], tensor) for name, tensor in own.items())


def test_what_cannot_be_written(run, at):
    assert "is no finished run" in refused("gone", "--out", "x", main=checkpoints.main)
    assert "there is no folder gone" in refused(run, "--out", "gone/x", main=checkpoints.main)
    code, _, err = call(checkpoints.main, run)
    assert code == 2 and "--out" in err
