"""assets/checkpoints.py: files as the originals' code writes them, by a small writer of its own."""
import os
import pickle
import shutil
import zipfile
from functools import partial

import numpy
import pytest
import torch
from small_runs import done, refused, told

import clip_model
import data
import evaluate
import prompts
from assets import checkpoints, tables

NAMES = {                       # that the originals look for
    "coop": ["ctx"], "cocoop": ["ctx", "meta_net.linear1.weight", "meta_net.linear2.bias"],
    "maple": ["ctx", "proj.bias", "compound_prompts_text.0", "compound_prompt_projections.0.bias"]}
WORLD = data.load("world").classnames                           # 24, of which 12 are base
WORDS = ("--dataset", "world")


def dassl(path, state, val_result=None):
    """Write what Dassl's save_checkpoint writes: with a scheduler's whole successor in it."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.002)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5.0)
    scheduler = cosine.state_dict() | {"successor": cosine}
    torch.save({"state_dict": state, "epoch": 5, "optimizer": optimizer.state_dict(),
                "scheduler": scheduler, "val_result": val_result}, path)


def buffers(names, behind=""):
    """token_prefix and token_suffix as the originals register them; behind: fixed words."""
    table = clip_model.load("tiny").token_embedding.weight.detach()
    rows = clip_model.tokenize([f"{behind} {name}." for name in names])
    return {"token_prefix": table[rows[:, :1]], "token_suffix": table[rows[:, 1:61]]}


def original_state(run, prefix="", half=False):
    """state_dict of a run's tensors as the originals have it: names prefixed, buffers, CLIP."""
    maple = run.parent.name.startswith("maple")
    state = learned(run) | buffers(WORLD[:12], "of a" if maple else "")
    state = {prefix + name: tensor.half() if half else tensor for name, tensor in state.items()}
    clip = clip_model.load("tiny").state_dict() if maple else {}        # MaPLe's is saved besides
    return state | {f"image_encoder.{name}": tensor for name, tensor in clip.items()}


@pytest.fixture(scope="module", params=NAMES)
def run(request, tmp_path_factory):
    """A short run in the embedded world."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    done("--method", request.param, "--epochs", 2, "--shots", 1, "--lr", 0.01, "--test-images", 2,
         "--out", folder)
    return folder


@pytest.fixture
def maple():
    """The state of a MaPLe on the tiny CLIP, never trained, without buffers."""
    learner = prompts.build("maple", clip_model.load("tiny"), ["red star"], n_ctx=2,
                            ctx_init="a photo of a", prompt_depth=2)
    return {"prompt_learner." + name: p.detach() for name, p in prompts.trainable(learner).items()}


def made(path, *words):
    """Import a file into path-run -> the folder and what was printed."""
    folder = path.with_name(f"{path.name}-run")
    return folder, done(path, "--out", folder, *words, main=checkpoints.main)


def not_made(path, *words):
    line = refused(path, "--out", path.with_name("none"), *words, main=checkpoints.main)
    assert not path.with_name("none").exists()
    return line


def learned(folder):
    return torch.load(folder / "prompts.pt", weights_only=True)["learned"]


assert_equal = partial(torch.testing.assert_close, rtol=0, atol=0)


def test_the_originals_files_give_the_numbers_of_the_same_tensors(run, tmp_path, monkeypatch):
    """All three methods, each as its own trainer registers it, with what Dassl saves besides."""
    few = data.with_few_tests
    monkeypatch.setattr(data, "with_few_tests", lambda dataset, n, seed: few(dataset, 2, 1))
    done(run, "--out", tmp_path / "ours", main=evaluate.main)
    prefix = "prompt_learner." if run.parent.name.startswith("maple") else ""
    dassl(tmp_path / "x", original_state(run, prefix), val_result=numpy.float64(71.5))
    folder, printed = made(tmp_path / "x", *WORDS)
    learner, _ = evaluate.load_run(folder)
    assert f"epoch 5, 12 classes: {learner.show_prompt(WORLD[0])}" in printed
    done(folder, main=evaluate.main)
    ours, theirs = (told(place / "base-to-novel.json")["results"]
                    for place in (tmp_path / "ours", folder / "evaluation"))
    assert theirs == ours and theirs["novel"]["test_images"] > 0


def test_wrapped_and_in_half_precision(run, tmp_path):
    dassl(tmp_path / "x", original_state(run, "module.prompt_learner.", half=True))
    assert_equal(learned(made(tmp_path / "x", *WORDS)[0]),
                 {name: tensor.half().float() for name, tensor in learned(run).items()})


@pytest.mark.parametrize("n, classes", [(24, "all"), (12, "base")])
def test_the_number_of_classes_decides_what_is_base(maple, tmp_path, n, classes):
    dassl(tmp_path / "x", maple | buffers(WORLD[:n], "of a"))
    folder, _ = made(tmp_path / "x", *WORDS)
    settings = evaluate.read_prompts(folder)[0]
    assert (settings["classes"], settings["trained_classes"]) == (classes, WORLD[:n])
    assert (settings["n_ctx"], settings["prompt_depth"]) == (2, 2)
    parts = evaluate.tested_classes(data.load("world"), settings)
    assert list(parts) == {"all": ["all"], "base": ["base", "novel"]}[classes]
    # nothing is measured, and no table takes it for measured
    result = told(folder / "result.json")
    measured = {result[name] for name in ("base", "novel", "harmonic_mean", "npt", "tau", "seed")}
    assert measured == {None} == set(result["zeroshot"].values())
    assert result["class_counts"] == [None] * n                 # not 0: nobody knows
    assert "no tau is known of it" in refused(1, folder, main=tables.main)


def test_other_numbers_of_classes(maple, tmp_path):
    dassl(tmp_path / "x", maple | buffers(WORLD[:2], "of a"))
    folder, printed = made(tmp_path / "x", *WORDS)
    assert "trained on 2 classes, not on all or base of world" in printed
    assert "dataset is not known: name others, by --task" in refused(folder, main=evaluate.main)
    done(folder, "--task", "cross-dataset", "--targets", "world_shapes", main=evaluate.main)


def test_classes_are_read_from_the_file_where_no_dataset_is_named(maple, tmp_path):
    dassl(tmp_path / "x", maple | buffers(["red star", "blue ring", "cyan bolt"], "of a"))
    folder, printed = made(tmp_path / "x", "--backbone", "tiny")
    assert "[u_1] [u_2] of a red star." in printed
    assert evaluate.load_run(folder)[0].classnames == ["red star", "blue ring", "cyan bolt"]
    dassl(tmp_path / "x", maple)
    assert "give the --dataset" in not_made(tmp_path / "x", "--backbone", "tiny")


def test_tokens_become_words_again():
    names = ["forest", "saint bernard dog", "café 747", "bird's nest"]
    rows = [clip_model.prompt_ids(name)[1:-1] for name in names]
    assert checkpoints.texts(rows) == ["forest", "saint bernard dog", "café 7 4 7", "bird 's nest"]


WIDE = {"ctx": torch.ones(4, 768).half(), "token_suffix": torch.ones(2, 72, 768).half()}    # ViT-L


@pytest.mark.parametrize("change, said", [
    (lambda _: WIDE, "its tokens are 768 wide, not 128 as those of CLIP tiny"),
    (lambda good: good | {"token_prefix": 2 * good["token_prefix"]},
     "its start token is not that of CLIP tiny"),
    (lambda good: good | {"token_suffix": 2 * good["token_suffix"]},
     "its class names are not in tokens of CLIP tiny"),
    (lambda good: good | buffers(WORLD[:12], "in a"),
     "not trained with 'of a' behind its learned tokens"),
    (lambda good: good | buffers([*WORLD[:3], "red star", *WORLD[4:12]], "of a"),
     f"other classes than world has: number 4 is 'of a red star .', there {WORLD[3]!r}"),
    (lambda good: good | buffers(WORLD[11::-1], "of a"), "other classes than world has"),
    (lambda good: {name: good[name] for name in good if "proj.bias" not in name},
     "must hold proj.bias"),
    (lambda _: {"state_dict": {3: 4}}, "not a checkpoint, or a damaged one"),
    (lambda _: {"ctx": "words"}, "no learned tokens"),
    (lambda _: {"ctx": torch.ones(2, 4, device="meta")}, "no learned tokens"),
    (lambda _: {"ctx": torch.ones(2, 4).long()}, "expected a dense one"),
    (lambda _: {"ctx": torch.full((2, 4), torch.nan)}, "ctx holds nan"),
    (lambda good: good | {"image_encoder.VPT": torch.ones(2)}, "that nothing projects")])
def test_another_clip_other_words_or_no_checkpoint(maple, tmp_path, change, said):
    torch.save(change(maple | buffers(WORLD[:12], "of a")), tmp_path / "x")
    assert said in not_made(tmp_path / "x", *WORDS)


@pytest.mark.parametrize("shape, parts", [((2, 128), ["base", "novel"]), ((12, 2, 128), ["base"])])
def test_a_file_that_names_no_classes(tmp_path, shape, parts):
    """It is taken for the usual half; a context for each class says nothing of the others."""
    torch.save({"ctx": 0.02 * torch.randn(shape)}, tmp_path / "x")              # a bare state dict
    folder, printed = made(tmp_path / "x", *WORDS)
    assert ("doesn't tell its classes: taken for base" in printed) == (len(shape) == 2)
    assert "taken to stand at the end" in printed
    settings = evaluate.read_prompts(folder)[0]
    assert settings["trained_classes"] == WORLD[:12]
    assert list(evaluate.tested_classes(data.load("world"), settings)) == parts


def test_a_malicious_file_is_refused_and_never_runs(maple, tmp_path):
    class Shell:
        def __reduce__(self):
            return (os.system, (f"echo > {tmp_path / 'sentinel'}",))

    dassl(tmp_path / "x", maple, val_result=Shell())
    line = not_made(tmp_path / "x", *WORDS)
    assert "asks to run" in line and "nothing in it was run" in line
    assert not (tmp_path / "sentinel").exists()
    torch.load(tmp_path / "x", weights_only=False)              # the trap is a real one
    assert (tmp_path / "sentinel").exists()


def test_stand_ins_hold_nothing_and_leave_with_the_reader(maple, tmp_path):
    before = torch.serialization.get_safe_globals()
    dassl(tmp_path / "x", maple, val_result=numpy.float64(1))
    with torch.serialization.safe_globals(checkpoints.IGNORED):
        content = torch.load(tmp_path / "x", weights_only=True)
    for stand_in in (content["val_result"], content["scheduler"]["successor"]):
        assert type(stand_in) is checkpoints.Ignored and not vars(stand_in)
    with zipfile.ZipFile(tmp_path / "x") as new, zipfile.ZipFile(tmp_path / "old", "w") as old:
        for name in new.namelist():                 # numpy 1 called its scalar otherwise
            content = new.read(name)
            assert name != "x/data.pkl" or b"numpy._core.multi" in content
            old.writestr(name, content.replace(b"numpy._core.multi", b"numpy.core.multi"))
    assert checkpoints.read(tmp_path / "x")[1] == checkpoints.read(tmp_path / "old")[1] == 5
    assert set(torch.serialization.get_safe_globals()) == set(before)
    with pytest.raises(pickle.UnpicklingError):                 # what plain reading says of it
        torch.load(tmp_path / "x", weights_only=True)


def test_damaged_and_absent_files(tmp_path):
    path = tmp_path / "x"
    torch.save({"ctx": torch.ones(4, 128)}, path)
    whole = path.read_bytes()
    for damaged in (whole.replace(b"\0\0\x80?", b"\0\0\x80@", 1), whole[:1000]):  # a bit; an end
        path.write_bytes(damaged)
        assert damaged != whole and "not a checkpoint, or a damaged one" in not_made(path, *WORDS)
    path.unlink()
    assert "no such file" in not_made(path, *WORDS)


def test_ours_is_what_the_originals_load_model_reads(run, tmp_path):
    """Theirs: torch.load, state_dict and epoch, the two buffers dropped, strict=False."""
    path, method, own = tmp_path / "model.pth.tar-5", run.parent.name[:-1], learned(run)
    assert checkpoints.FOLDER[method] in done(run, "--out", path, main=checkpoints.main)
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)    # today's default
    accuracy = told(run / "result.json")["base"]
    assert (checkpoint["epoch"], checkpoint["val_result"]) == (2, accuracy) and accuracy > 0
    prefix = "prompt_learner." * (method == "maple")
    assert {prefix + name for name in NAMES[method]} <= checkpoint["state_dict"].keys()
    assert_equal(checkpoint["state_dict"], {prefix + name: own[name] for name in own})
    assert_equal(learned(made(path, *WORDS)[0]), own)


def test_what_cannot_be_written(run, at):
    torch.save({"ctx": torch.zeros(4, 128)}, "x")
    for words, said in (((at, "--out", "y"), "not a run's learned tensors"),
                        ((run, "--out", "gone/x"), "there is no folder gone"),
                        ((run, "--out", "y", *WORDS), "goes with a file"),
                        (("x", "--out", run, *WORDS), "holds a finished run")):
        assert said in refused(*words, main=checkpoints.main)


def test_a_name_that_stands_in_front(tmp_path):
    learner = prompts.build("coop", clip_model.load("tiny"), WORLD[:12], n_ctx=2)
    dassl(tmp_path / "x", {"ctx": learner.ctx.detach()} | buffers(WORLD[:12]))
    assert "taken to stand at the end" in made(tmp_path / "x", *WORDS)[1]
    shutil.rmtree(tmp_path / "x-run")
    folder, printed = made(tmp_path / "x", *WORDS, "--class-place", "front")
    assert f"12 classes: {WORLD[0]} [u_1] [u_2]." in printed
    front = prompts.build("coop", clip_model.load("tiny"), WORLD[:12], n_ctx=2, class_place="front")
    prompts.load_trainable(front, {"ctx": learner.ctx})
    assert torch.equal(evaluate.load_run(folder)[0].text_features(), front.text_features())
