"""train.py as its user meets it: the little world, EuroSAT's layout, a folder, and refusals."""
import json
import math
import random
import re
import subprocess
import sys
import urllib.error
import zlib
from pathlib import Path

import pytest
import textbook
import torch
import torchvision
from conftest import fill_learned
from PIL import Image
from small_runs import done, eurosat, files, picture, read, refused, write_classes

import clip_model
import data
import evaluate
import losses
import prompts
import train
from assets import datasets, weight_files, world

SCRIPT = Path(train.__file__)


# --------------------------------------------------------------------------------- the bare command

BARE_RUN = "runs/world-maple-npt-tau0.01-seed1"


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """`python train.py`, in a process of its own -> its working directory and what it printed."""
    folder = tmp_path_factory.mktemp("bare")
    process = subprocess.run([sys.executable, SCRIPT], cwd=folder, capture_output=True, text=True,
                             timeout=180)
    assert process.returncode == 0, process.stderr
    return folder, process.stdout


def test_bare_command_leaves_a_run_and_prints_the_table(bare):
    folder, printed = bare
    assert [p.name for p in folder.iterdir()] == ["runs"]
    run = folder / BARE_RUN
    assert {p.name for p in run.parent.iterdir()} == {run.name, "features"}
    assert sorted(files(run)) == ["drawn.csv", "log.csv", "prompts.pt", "result.json", "run.json"]
    result = json.loads((run / "result.json").read_text())
    expected = {"dataset": "world", "method": "maple", "npt": True, "tau": .01, "seed": 1}
    assert {key: result[key] for key in expected} == expected
    base, novel = result["base"], result["novel"]
    assert result["harmonic_mean"] == pytest.approx(2 / (1 / base + 1 / novel), abs=1e-4)
    for numbers in (result, result["zeroshot"]):
        # above chance, below perfect
        assert 100 / 12 < numbers["base"] < 100 and 100 / 12 < numbers["novel"] < 100
        assert 0 < numbers["delta_lcd"] < 1 + 1 / 11 and -2 < numbers["delta_mid"] < 0
    # the last lines are the table of both, and its numbers are those of the file
    head, zero, tuned = printed.strip().split("\n")[-4:-1]
    assert head.split() == ["base", "novel", "harmonic_mean", "Delta_LCD", "Delta_MID"]
    for line, label, numbers in ((zero, "zero-shot", result["zeroshot"]),
                                 (tuned, "maple + NPT", result)):
        assert line.startswith(label)
        assert line.split()[-5:] == [f"{numbers[k]:.{n}f}" for k, n in (
            ("base", 2), ("novel", 2), ("harmonic_mean", 2), ("delta_lcd", 4), ("delta_mid", 4))]
    assert f"[u_1] [u_2] of a {world.draw('world')[0][0]}." in printed
    assert "objective L_CLIP + 0.3 L_LC + 0.8 L_MI (mean)" in printed
    assert "near chance" not in printed


def test_bare_command_draws_n_k_images_of_the_base_classes(bare):
    run = bare[0] / BARE_RUN
    rows = read(run / "drawn.csv")
    names = world.draw("world")[0]
    n = [sum(row["class"] == name for row in rows) for name in names]
    # 16 x 0.01^(k/11), at least 1; no novel class
    assert n == [16, 10, 6, 4, 2, 1, 1, 1, 1, 1, 1, 1] + [0] * 12
    assert json.loads((run / "result.json").read_text())["class_counts"] == n[:12]
    assert all(row["picture"].startswith(f"train/{row['class']}/") for row in rows)
    assert "images    45: 16 10 6 4 2 1 1 1 1 1 1 1; min/max = 0.0625 where tau = 0.01" in bare[1]


def test_log_has_every_step_with_its_rate_and_eq7(bare):
    run = bare[0] / BARE_RUN
    rows = [{k: float(v) for k, v in row.items()} for row in read(run / "log.csv")]
    # 45 images in batches of 4 are 11 steps: the one left over is dropped
    steps = [(r["epoch"], r["step"]) for r in rows]
    assert steps == [(e, 11 * e + s + 1) for e in range(5) for s in range(11)]
    # cos of 0, 36, 72, 108 degrees
    by_hand = [1e-5, .0035, .00316578, .00229078, .00120922]
    assert [rows[11 * e]["lr"] for e in range(5)] == pytest.approx(by_hand, rel=1e-5)
    assert len({r["lr"] for r in rows}) == 5
    for r in rows:
        assert r["loss"] == pytest.approx(r["l_clip"] + .3 * r["l_lc"] + .8 * r["l_mi"], rel=2e-5)
        assert r["l_lc"] > 0 and r["l_mi"] > 0


def test_run_json_has_the_arguments_resolved(bare):
    run = bare[0] / BARE_RUN
    facts = json.loads((run / "run.json").read_text())
    expected = {"w1": .3, "w2": .8, "epochs": 5, "batch_size": 4, "lr": .0035, "n_ctx": 2,
                "ctx_init": "a photo of a", "prompt_depth": 3,      # of nine layers, three exist
                "shots": 16, "seed": 1, "draw_seed": 1, "backbone": "tiny", "classes": "base"}
    assert {k: facts[k] for k in expected} == expected
    assert facts["versions"]["torch"] == torch.__version__ and len(facts["prompts"]) == 12
    assert "RandomResizedCrop" in facts["train_transform"]
    assert "CenterCrop" in facts["test_transform"]


def test_learned_tensors_only_and_no_pickle(bare):
    run = bare[0] / BARE_RUN
    saved = torch.load(run / "prompts.pt", weights_only=True)
    w, w_v, K = 128, 128, 12
    shapes = {"ctx": (2, w), "proj.weight": (w_v, w), "proj.bias": (w_v,)}
    for j in range(2):
        shapes |= {f"compound_prompts_text.{j}": (2, w),
                   f"compound_prompt_projections.{j}.weight": (w_v, w),
                   f"compound_prompt_projections.{j}.bias": (w_v,)}
    # nothing has K in its shape
    assert {n: tuple(t.shape) for n, t in saved["learned"].items()} == shapes
    assert (saved["settings"]["method"], saved["settings"]["backbone"]) == ("maple", "tiny")
    assert len(saved["settings"]["trained_classes"]) == K
    assert (run / "prompts.pt").stat().st_size < 400_000


def test_same_seed_same_bytes(bare, at):
    """The first run was a process of its own; this one shares a process with other tests."""
    first = bare[0] / BARE_RUN
    done("--method", "maple", "--npt", "--tau", .01, "--out", "again")
    for name in ("result.json", "log.csv", "drawn.csv"):
        assert Path("again", name).read_bytes() == (first / name).read_bytes()

    def tokens(run):
        return torch.load(run / "prompts.pt", weights_only=True)["learned"]

    assert all(torch.equal(t, tokens(first)[n]) for n, t in tokens(Path("again")).items())


def test_draw_seed_and_seed_are_told_apart(at, archive):
    """--seed moves draw and batches; --draw-seed fixes the draw alone."""
    pictures = write_classes(at / "pets", {"cat": 24, "dog": 24})
    for out, *words in (("a",), ("b", "--seed", 2), ("c", "--seed", 2, "--draw-seed", 1),
                        ("d", "--draw-seed", 2)):
        done("--method", "coop", "--n-ctx", 2, "--epochs", 1, "--shots", 4, "--dataset", pictures,
             "--batch-size", 4, "--backbone", archive, "--out", out, *words)
    drawn = {run: Path(run, "drawn.csv").read_text() for run in "abcd"}
    log = {run: Path(run, "log.csv").read_text() for run in "abcd"}
    assert drawn["a"] == drawn["c"] != drawn["b"] == drawn["d"]
    assert len(set(log.values())) == 4


# ------------------------------------------------------------------ training as the originals do it

def toy(n=(4, 3, 2)):
    """A dataset of pictures in memory with n_k training images a class -> dataset, items."""
    items = [(f"{k}/{i}", k) for k, count in enumerate(n) for i in range(count)]
    pictures = {name: picture(i) for i, (name, _) in enumerate(items)}
    names = ["cat", "dog", "red fox"][:len(n)]
    dataset = data.Dataset("toy", names, "a photo of a {}.", items, [], items, "", False, pictures,
                           crop_scale=(.5, 1))
    return dataset, items


def toy_args(**changes):
    """Settings of a short run as the command line makes them, some then changed."""
    args, = train.parse(["--npt", "--epochs", "2", "--lr", "0.05"])
    train.settle(args, data.load("world"))
    for name, value in changes.items():
        assert hasattr(args, name)
        setattr(args, name, value)
    return args


def by_hand(learner, items, pictures, args):
    """Eq. (7) and SGD of the textbook page over the originals' views and batches.

    -> learned tensors, and (loss, L_CLIP, L_LC, L_MI) of each step
    """
    bicubic = torchvision.transforms.InterpolationMode.BICUBIC
    view = torchvision.transforms.Compose([
        torchvision.transforms.RandomResizedCrop(32, scale=(.5, 1), interpolation=bicubic),
        torchvision.transforms.RandomHorizontalFlip(), torchvision.transforms.ToTensor(),
        torchvision.transforms.Normalize((.48145466, .4578275, .40821073),
                                         (.26862954, .26130258, .27577711))])

    def seeded(*numbers):
        torch.manual_seed(zlib.crc32(" ".join(map(str, numbers)).encode()))

    def batches(epoch):
        """Order from seed and epoch, the crop of an image from its place in the list too."""
        seeded(args.seed, epoch)
        order, B = torch.randperm(len(items)).tolist(), args.batch_size
        for start in range(0, len(items) - len(items) % B, B):
            images = []
            for i in order[start:start + B]:
                seeded(args.seed, epoch, i)
                images.append(view(pictures[items[i][0]]))
            yield torch.stack(images), torch.tensor([items[i][1] for i in order[start:start + B]])

    learned, speed, logged = prompts.trainable(learner), {}, []
    lam = 1 / learner.clip.logit_scale.exp()
    for epoch, rate in enumerate((1e-5, args.lr)):          # then the top of the cosine
        for images, y in batches(epoch):
            _, z, g = textbook.forward(learner, images)
            terms = textbook.L(z, g, y, lam, args.w1, args.w2, args.ew, args.eh)
            logged.append([t.item() for t in terms])
            gradients = torch.autograd.grad(terms[0], list(learned.values()))
            textbook.sgd_step(learned, gradients, speed, rate)
    return {name: p.detach().clone() for name, p in learned.items()}, logged


@pytest.mark.parametrize("method, extra", [
    ("coop", {"w2": .5}), ("coop", {"ew": 1.5, "eh": .5}), ("cocoop", {}), ("maple", {})])
def test_training_is_the_hand_written_loop(small_clip, method, extra, tmp_path):
    dataset, items = toy()
    args = toy_args(**extra)

    def fresh():
        learner = prompts.build(method, small_clip, dataset.classnames, n_ctx=2)
        fill_learned(learner)
        torch.manual_seed(3)
        return learner

    expected, terms = by_hand(fresh(), items, dataset.pictures, args)
    learner = fresh()
    start = {name: p.detach().clone() for name, p in prompts.trainable(learner).items()}
    last = train.train(learner, dataset, items, args, tmp_path)
    moved = 0
    for name, p in prompts.trainable(learner).items():
        distance = (expected[name] - start[name]).norm().item()
        assert (p.detach() - expected[name]).norm() <= 2e-3 * distance + 1e-7, name
        moved += distance
    assert moved > .01
    rows = read(tmp_path / "log.csv")
    assert len(rows) == 4                   # nine images: two batches of four in each epoch
    for row, numbers in zip(rows, terms, strict=True):
        found = [float(row[n]) for n in ("loss", "l_clip", "l_lc", "l_mi")]
        assert found == pytest.approx(numbers, rel=1e-3)
    # L_CLIP over the last epoch
    assert last == pytest.approx((terms[2][1] + terms[3][1]) / 2, rel=1e-3)
    assert not learner.training


def test_the_frozen_clip_does_not_move(small_clip, tmp_path):
    before = {name: t.clone() for name, t in small_clip.state_dict().items()}
    dataset, items = toy()
    learner = prompts.build("maple", small_clip, dataset.classnames)
    train.train(learner, dataset, items, toy_args(), tmp_path)
    assert all(torch.equal(t, before[name]) for name, t in small_clip.state_dict().items())


def test_optimiser_is_coops(small_clip, monkeypatch, tmp_path):
    made, sgd = [], torch.optim.SGD
    monkeypatch.setattr(torch.optim, "SGD", lambda *a, **k: made.append(sgd(*a, **k)) or made[-1])
    dataset, items = toy()
    learner = prompts.build("cocoop", small_clip, dataset.classnames)
    train.train(learner, dataset, items, toy_args(), tmp_path)
    optimizer, = made
    group, = optimizer.param_groups
    found = (group["momentum"], group["weight_decay"], group["dampening"], group["nesterov"])
    assert found == (.9, 5e-4, 0, False)
    trained = {id(p) for p in learner.parameters() if p.requires_grad}
    assert {id(p) for p in group["params"]} == trained
    assert len(group["params"]) == 5                                    # ctx and two linear layers


@pytest.mark.parametrize("epochs, lr, expected", [
    (1, .0035, [1e-5]), (2, .0026, [1e-5, .0026]), (4, 1.0, [1e-5, 1, .8535534, .5]),
    # the last: .001 (1 + cos(172.8 degrees))
    (50, .002, [1e-5, .002, .00199803] + [None] * 46 + [7.885e-6])])
def test_schedule_by_hand(epochs, lr, expected):
    assert len(expected) == epochs
    for e, rate in enumerate(expected):
        if rate is not None:
            assert train.learning_rate(e, epochs, lr) == pytest.approx(rate, rel=1e-4)


@pytest.mark.parametrize("batch_size, n, steps", [
    (4, (2, 1), 1), (3, (2, 1), 1), (2, (2, 1), 1), (1, (2, 1), 3)])
def test_a_small_last_batch_is_dropped_unless_it_is_the_only_one(
        small_clip, batch_size, n, steps, tmp_path):
    dataset, items = toy(n)
    learner = prompts.build("coop", small_clip, dataset.classnames, n_ctx=1)
    args = toy_args(batch_size=batch_size, epochs=1)
    train.train(learner, dataset, items, args, tmp_path)
    assert len(read(tmp_path / "log.csv")) == steps


def test_terms_that_are_switched_off_are_not_in_the_loss(at, archive):
    pictures = write_classes(at / "pets", {"cat": 10, "dog": 10})
    for out, words, w1, w2 in (("plain", [], 0, 0), ("lc", ["--npt", "--w2", 0], .3, 0),
                               ("mi", ["--npt", "--w1", 0, "--w2", 2], 0, 2)):
        done("--method", "maple", "--epochs", 1, "--dataset", pictures, "--backbone", archive,
             "--out", out, *words)
        for row in read(Path(out, "log.csv")):
            loss, l_clip, l_lc, l_mi = (
                float(row[name]) for name in ("loss", "l_clip", "l_lc", "l_mi"))
            assert loss == pytest.approx(l_clip + w1 * l_lc + w2 * l_mi, rel=2e-5)
            assert (l_lc == 0, l_mi == 0) == (w1 == 0, w2 == 0)


def test_printed_sum_instead_of_the_mean(at, archive):
    """K (K - 1) = 6 pairs, batches of 4: the first step's terms stand in this ratio."""
    pictures = write_classes(at / "pets", {"cat": 10, "dog": 10, "fox": 10})
    first = {}
    for kind in ("mean", "sum"):
        done("--npt", "--epochs", 1, "--dataset", pictures, "--backbone", archive,
             "--out", kind, "--reduction", kind)
        first[kind] = {k: float(v) for k, v in read(Path(kind, "log.csv"))[0].items()}
    assert first["sum"]["l_lc"] == pytest.approx(6 * first["mean"]["l_lc"], rel=1e-4)
    assert first["sum"]["l_mi"] == pytest.approx(4 * first["mean"]["l_mi"], rel=1e-4)
    assert first["sum"]["l_clip"] == pytest.approx(first["mean"]["l_clip"], rel=1e-5)


# -------------------------------------------------------------------------------- settings resolved

def settings(*argv, dataset="eurosat", base_novel=True):
    args, = train.parse([str(word) for word in argv])
    items = [("a.jpg", 0)]
    train.settle(args, data.Dataset(dataset, ["x"] * 10, "{} texture.", items, [], [], "", True,
                                    Path("."), base_novel=base_novel))
    return args


def test_defaults_follow_method_and_dataset():
    def pick(*argv, **options):
        args = settings(*argv, **options)
        return (args.n_ctx, args.ctx_init, args.prompt_depth,
                args.epochs, args.batch_size, args.lr)

    # base classes: the depth None is decided by the CLIP
    assert pick("--method", "maple") == (2, "a photo of a", None, 5, 4, .0035)
    assert pick("--method", "cocoop") == (4, "a photo of a", None, 5, 4, .0035)
    assert pick("--method", "coop") == (16, "", None, 50, 32, .002)
    assert pick("--method", "maple", dataset="imagenet") == (
        2, "a photo of a", None, 5, 4, .0035)
    # all classes of ImageNet: to be transferred
    assert pick("--method", "maple", "--classes", "all", dataset="imagenet") == (
        2, "a photo of a", 3, 2, 4, .0026)
    assert pick("--method", "cocoop", "--classes", "all", dataset="imagenet")[3:] == (2, 4, .0026)
    assert settings("--method", "zeroshot").ctx_init == "{} texture."
    assert settings("--seed", 7).draw_seed == 7
    assert settings("--seed", 7, "--draw-seed", 0).draw_seed == 0
    assert settings("--seed", 1).classes == "base"
    assert settings("--seed", 1, base_novel=False).classes == "all"


def test_weights_of_the_terms():
    def weigh(*argv):
        args = settings(*argv)
        return args.w1, args.w2

    assert weigh("--method", "maple") == (0, 0)
    assert weigh("--method", "maple", "--npt") == (.3, .8)
    assert weigh("--npt", "--w1", 0) == (0, .8) and weigh("--npt", "--w2", .1) == (.3, .1)


def test_bare_is_maple_with_npt_and_one_argument_is_not_bare(monkeypatch):
    said = []
    monkeypatch.setattr(train, "run", said.append)
    assert train.main([]) == 0
    args, = said
    assert (args.method, args.npt, args.tau, args.dataset) == ("maple", True, .01, "world")
    args, = train.parse(["--seed", "2"])
    assert (args.method, args.npt, args.tau) == ("maple", False, 1.0)


def test_words_of_ctx_init_and_n_ctx_go_together():
    def pick(*argv):
        args = settings(*argv)
        return args.n_ctx, args.ctx_init

    assert pick("--method", "coop", "--ctx-init", "a photo of a") == (4, "a photo of a")
    assert pick("--method", "cocoop", "--ctx-init", "an image of the") == (4, "an image of the")
    assert pick("--method", "cocoop", "--ctx-init", "photo") == (1, "photo")
    assert pick("--method", "cocoop", "--n-ctx", 8) == (8, "")      # no words for eight: at random
    assert pick("--method", "cocoop", "--n-ctx", 4) == (4, "a photo of a")
    assert pick("--method", "cocoop", "--ctx-init", "") == (4, "")
    assert pick("--method", "coop", "--n-ctx", 4) == (4, "")
    assert pick("--method", "coop", "--ctx-init", " a  photo ") == (2, " a  photo ")    # two words
    assert pick("--method", "cocoop", "--ctx-init", " ") == (4, " ")                    # none
    with pytest.raises(ValueError, match="one token for each word.*'a photo'.*--n-ctx 3"):
        settings("--method", "coop", "--ctx-init", "a photo", "--n-ctx", 3)


# ------------------------------------------------------------------------------ the EuroSAT command

EUROSAT = ["--method", "maple", "--npt", "--tau", .01, "--dataset", "eurosat"]


def test_eurosat_command_with_the_official_split(at, archive):
    eurosat(at / "data", split=True)
    before = files(at / "data")
    printed = done(*EUROSAT, "--backbone", archive)
    assert files(at / "data") == before                 # nothing is written beside the pictures
    run = Path("runs/eurosat-maple-npt-tau0.01-seed1")
    assert {p.name for p in run.parent.iterdir()} == {run.name, "features"}
    result = json.loads((run / "result.json").read_text())
    assert result["official_split"] is True
    assert result["split"].startswith("CoOp's split_zhou_EuroSAT.json")
    assert result["backbone"] == str(archive) and result["dataset"] == "eurosat"
    # 16 5 1 1 1 by 16 x 0.01^(k/4): 16, 5.06, 1.6, 0.506, 0.16; but there are only ten to train on
    assert result["class_counts"] == [10, 5, 1, 1, 1]
    assert ("warning: 1 classes have fewer images than asked for and give all they have: "
            "Annual Crop Land" in printed)
    saved = torch.load(run / "prompts.pt", weights_only=True)["settings"]
    assert saved["trained_classes"] == [
        "Annual Crop Land", "Forest", "Herbaceous Vegetation Land", "Highway or Road",
        "Industrial Buildings"]
    drawn = read(run / "drawn.csv")
    numbers = {row["picture"].partition("_")[2] for row in drawn}
    assert numbers <= {f"{i}.jpg" for i in (1381, *range(1, 11))}                # not of test
    assert "[u_1] [u_2] of a Annual Crop Land." in printed
    lines = printed.strip().split("\n")
    assert lines[-4].split()[:3] == ["base", "novel", "harmonic_mean"]
    assert lines[-2].startswith("maple + NPT")


def test_eurosat_command_without_it_says_so_in_the_result(at, archive):
    eurosat(at / "data")
    printed = done(*EUROSAT, "--backbone", archive, "--seed", 3)
    result = json.loads(Path("runs/eurosat-maple-npt-tau0.01-seed3/result.json").read_text())
    assert result["official_split"] is False and "made here" in result["split"]
    assert not Path("data/eurosat/split_zhou_EuroSAT.json").exists()
    assert "not comparable" in printed
    before = Path("runs/eurosat-maple-npt-tau0.01-seed3/drawn.csv").read_text()
    # the split is the one made before
    done(*EUROSAT, "--backbone", archive, "--seed", 3)
    assert Path("runs/eurosat-maple-npt-tau0.01-seed3-2/drawn.csv").read_text() == before


def test_one_epoch_is_said_to_be_the_warm_up(at):
    words = ["--method", "coop", "--dataset", "world", "--shots", 1, "--test-images", 1]
    assert "one epoch learns next to nothing" in done(*words, "--epochs", 1)
    assert "one epoch" not in done(*words, "--epochs", 2)


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    def unreachable(*args, **options):
        raise urllib.error.URLError("no route to host")
    monkeypatch.setattr(torchvision.datasets, "EuroSAT", unreachable)
    monkeypatch.setattr(weight_files, "URL", "http://127.0.0.1:9/clip/models")
    monkeypatch.setattr(weight_files, "CACHE", tmp_path / "cache")


def test_eurosat_command_with_neither_weights_nor_data(at, no_network):
    line = refused(*EUROSAT)
    assert "EuroSAT.zip" in line and "data/eurosat/2750" in line and "no route to host" in line
    eurosat(at / "data", split=True)
    line = refused(*EUROSAT)
    assert "ViT-B-16.pt" in line and "cache" in line and "127.0.0.1" in line
    assert not Path("runs").exists() and not list(at.glob("cache/*.pt"))


# ---------------------------------------------------------------------------------- what it refuses

REFUSED = {
    "unknown dataset": (["--dataset", "eurosta"],
                        "unknown dataset 'eurosta'; did you mean eurosat?"),
    "dataset folder absent": (["--dataset", "no/such"], "no/such: no such folder"),
    "tau 0": (["--tau", 0], "--tau: must be from 1e-09 to 1, got 0"),
    "tau -1": (["--tau", -1], "--tau: must be .*got -1"),
    "tau 2": (["--tau", 2], "--tau: must be .*got 2"),
    "tau nan": (["--tau", "nan"], "--tau: must be .*got nan"),
    "shots 0": (["--shots", 0], "--shots: must be from 1 .*got 0"),
    "depth above the layers": (["--method", "maple", "--prompt-depth", 4],
                               "depth must be from 1 to 3.*got 4"),
    "depth 0": (["--method", "maple", "--prompt-depth", 0],
                "--prompt-depth: must be from 1 .*got 0"),
    "depth of coop": (["--method", "coop", "--prompt-depth", 2],
                      "--prompt-depth is no setting of coop"),
    "w1 without npt": (["--w1", .5], "add --npt"),
    "w2 without npt": (["--w2", 0], "add --npt"),
    "npt with zeroshot": (["--method", "zeroshot", "--npt"], "zeroshot trains nothing"),
    "epochs of zeroshot": (["--method", "zeroshot", "--epochs", 3],
                           "--epochs, --batch-size and --lr are no settings of zeroshot"),
    "w1 negative": (["--npt", "--w1", -1], "--w1: must be .*got -1"),
    "w2 nan": (["--npt", "--w2", "nan"], "--w2: must be .*got nan"),
    "E_W 0": (["--npt", "--ew", 0], "--ew: must be .*got 0"),
    "E_H inf": (["--npt", "--eh", "inf"], "--eh: must be .*got inf"),
    "epochs 0": (["--epochs", 0], "--epochs: must be from 1 .*got 0"),
    "batch 0": (["--batch-size", 0], "--batch-size: must be from 1 .*got 0"),
    "lr nan": (["--lr", "nan"], "--lr: must be .*got nan"),
    "lr negative": (["--lr", -.1], "--lr: must be"),
    "seed negative": (["--seed", -1], "--seed: must be from 0 to 4294967295, got -1"),
    "seed too large": (["--draw-seed", 2 ** 32],
                       "--draw-seed: must be from 0 to 4294967295, got 4294967296"),
    "no tokens": (["--method", "coop", "--n-ctx", 0], "--n-ctx: must be from 1 to 76, got 0"),
    "words and tokens": (["--method", "cocoop", "--n-ctx", 2, "--ctx-init", "a photo of a"],
                         "leave one of them out"),
    "too many tokens": (["--method", "coop", "--n-ctx", 90],
                        "--n-ctx: must be from 1 to 76, got 90"),
    "too long a prompt": (["--method", "coop", "--n-ctx", 76],
                          "class '.*tokens where CLIP takes 77"),
    "depth 9 of three layers": (["--prompt-depth", 9], "depth must be from 1 to 3.*got 9"),
    "class-specific maple": (["--class-specific"], "--class-specific is no setting of maple"),
    "names for the world": (["--classnames", "names.txt"], "world has its own names"),
    "unknown backbone": (["--backbone", "ViT-B/17"], "no CLIP model or file 'ViT-B/17'"),
    "ResNet": (["--backbone", "RN50"], "RN50 is a ResNet"),
}


@pytest.mark.parametrize("argv, line", REFUSED.values(), ids=REFUSED)
def test_refused_with_one_line(at, argv, line):
    assert re.search(line, refused(*argv))
    assert list(at.iterdir()) == []                                     # nothing is left behind


@pytest.mark.skipif(torch.cuda.is_available(), reason="only where there is no GPU")
def test_device_that_is_not_there(at):
    assert "--device cuda: this machine has none" in refused("--device", "cuda")


@pytest.mark.parametrize("argv, word", [
    (["--method", "magic"], "magic"), (["--shots", "many"], "many"), (["--no-such"], "no-such")])
def test_words_that_argparse_refuses_are_one_line_too(at, argv, word):
    assert word in refused(*argv)


def test_refused_as_a_process(tmp_path, archive):
    """A truncated archive: one line on stderr, nothing on stdout, no traceback, code 2."""
    (tmp_path / "half.pt").write_bytes(archive.read_bytes()[:10_000])
    process = subprocess.run([sys.executable, SCRIPT, "--backbone", "half.pt"], cwd=tmp_path,
                             capture_output=True, text=True, timeout=120)
    assert (process.returncode, process.stdout, process.stderr.count("\n")) == (2, "", 1)
    assert process.stderr.startswith("error: half.pt: not a weights file, or a truncated one")
    assert [p.name for p in tmp_path.iterdir()] == ["half.pt"]


def test_weights_that_cannot_be_read(at, archive):
    whole = archive.read_bytes()
    Path("half.pt").write_bytes(whole[:len(whole) // 2])
    Path("almost.pt").write_bytes(whole[:-3000])
    Path("junk.pt").write_bytes(b"no weights at all")
    Path("empty.pt").write_bytes(b"")
    torch.save({"model": 1}, "other.pt")
    torch.save({"a": torch.zeros(2)}, "tensors.pt")
    for name in ("half", "almost", "junk", "empty", "other", "tensors"):
        assert f"{name}.pt" in refused("--dataset", "world", "--backbone", f"{name}.pt")
    assert not Path("runs").exists()


def test_pictures_that_cannot_be_read_are_listed_before_training(at, archive):
    pictures = write_classes(at / "pets", {"cat": 6, "dog": 6, "fox": 6})
    broken = [f"{name}/{name}_{i}.png" for name in ("cat", "fox") for i in range(1, 7)]
    for name in broken:
        (pictures / name).write_bytes(b"\x89PNG\r\n\x1a\n broken")
    line = refused("--method", "coop", "--dataset", pictures, "--backbone", archive, "--out", "run")
    assert "8 of 12 pictures can't be used" in line and "cat_" in line and "and 3 more" in line
    assert sorted(p.name for p in at.iterdir()) == ["pets"]


def test_corrupt_image_in_the_drawn_set_of_a_published_dataset(at, archive):
    eurosat(at / "data", split=True)
    Path("data/eurosat/2750/Forest/Forest_3.jpg").write_bytes(b"\xff\xd8 broken")
    line = refused(*EUROSAT, "--tau", 1, "--shots", 10, "--backbone", archive)
    assert "Forest_3.jpg: not a readable picture" in line
    Path("data/eurosat/2750/Forest/Forest_3.jpg").unlink()
    line = refused(*EUROSAT, "--tau", 1, "--shots", 10, "--backbone", archive)
    assert "Forest_3.jpg: picture not found" in line


def test_empty_class_folder(at, archive):
    pictures = write_classes(at / "pets", {"cat": 6, "dog": 6})
    (pictures / "fox").mkdir()
    line = refused("--dataset", pictures, "--backbone", archive)
    assert "fox: class folder without a picture" in line


def test_class_names_file(at, archive):
    pictures = write_classes(at / "pets", {"n1": 8, "n2": 8})
    words = ["--method", "coop", "--n-ctx", 2, "--epochs", 1, "--dataset", pictures,
             "--backbone", archive]
    assert "names.tsv" in refused(*words, "--classnames", "names.tsv")
    Path("names.tsv").write_text("n1\tgrey cat\nn2\tRennmaus é\n", encoding="utf-8")
    printed = done(*words, "--classnames", "names.tsv", "--out", "run")
    assert "[u_1] [u_2] grey cat.  [u_1] [u_2] Rennmaus é." in printed
    assert {row["class"] for row in read(Path("run/drawn.csv"))} == {"grey cat", "Rennmaus é"}


def test_loss_that_is_not_finite_names_term_and_step(at, archive):
    pictures = write_classes(at / "pets", {"cat": 12, "dog": 12})
    words = ["--npt", "--dataset", pictures, "--backbone", archive, "--lr", "1e30"]
    line = refused(*words, "--epochs", 3, "--out", "run")
    # half of 24 images are three steps an epoch: the fourth still sees the warm-up's tokens, the
    # fifth those of lr 1e30
    assert re.search("error: l_(clip|lc|mi) became nan at step 5, epoch 1", line)
    assert not Path("run/result.json").exists()
    rows = read(Path("run/log.csv"))
    assert len(rows) == 5 and rows[-1]["loss"] == "nan" and rows[-2]["loss"] != "nan"


def test_tokens_that_are_not_finite_after_the_last_step(small_clip, tmp_path):
    """No further loss would show it."""
    dataset, items = toy()
    learner = prompts.build("coop", small_clip, dataset.classnames, n_ctx=2)
    args = toy_args(lr=float(torch.finfo(torch.float32).max), batch_size=9)
    with pytest.raises(ValueError, match="no longer finite after the last step, 2"):
        train.train(learner, dataset, items, args, tmp_path)


# ---------------------------------------------------------------------------- warnings and odd sets

def test_near_chance_and_collapse_are_said(at, archive):
    """Weights from a hash see nothing in pictures of blocks."""
    pictures = write_classes(at / "pets", {"cat": 20, "dog": 20, "fox": 20, "hen": 20})
    printed = done("--method", "coop", "--n-ctx", 2, "--epochs", 1, "--dataset", pictures,
                   "--backbone", archive, "--out", "r")
    assert "warning: zero-shot accuracy on all classes is" in printed
    assert "near chance (25.0 %)" in printed
    assert "First prompts: a photo of a cat. a photo of a dog." in printed
    assert "near ln K = 1.386, a guess among 4 classes: this run has collapsed" in printed
    assert Path("r/result.json").exists()                               # a warning, no error


@pytest.mark.parametrize("share, said", [(.94, False), (.96, True)])
def test_collapse_is_a_training_loss_near_ln_k(at, archive, monkeypatch, share, said):
    monkeypatch.setattr(train, "train", lambda *args: share * math.log(4))
    pictures = write_classes(at / "pets", {"cat": 4, "dog": 4, "fox": 4, "hen": 4})
    printed = done("--method", "coop", "--n-ctx", 2, "--dataset", pictures, "--backbone", archive)
    assert ("collapsed" in printed) == said


@pytest.mark.parametrize("accuracy, said", [(37.6, False), (37.4, True)])
def test_near_chance_is_below_one_and_a_half_of_it(at, archive, monkeypatch, accuracy, said):
    measure = evaluate.measure
    monkeypatch.setattr(evaluate, "measure",
                        lambda *args: (measure(*args)[0] | {"accuracy": accuracy}, None))
    pictures = write_classes(at / "pets", {"cat": 4, "dog": 4, "fox": 4, "hen": 4})
    printed = done("--method", "zeroshot", "--dataset", pictures, "--backbone", archive)
    assert ("near chance (25.0 %)" in printed) == said


def test_a_class_with_fewer_images_gives_all_and_the_run_says_so(at, archive):
    # 60 % of each are for training
    pictures = write_classes(at / "pets", {"cat": 12, "dog": 5, "fox": 4})
    words = ["--method", "coop", "--epochs", 1, "--n-ctx", 1, "--dataset", pictures, "--shots", 5,
             "--backbone", archive]
    printed = done(*words, "--out", "run")
    assert ("warning: 2 classes have fewer images than asked for and give all they have: "
            "dog, fox" in printed)
    assert "images    10: 5 3 2; min/max = 0.4" in printed
    assert json.loads(Path("run/result.json").read_text())["class_counts"] == [5, 3, 2]
    assert "fewer" not in done(*words, "--tau", .4, "--out", "other")   # 5 3 2 are asked for
    # the same counts dealt to the classes at random
    printed = done(*words, "--tau", .4, "--out", "dealt", "--shuffle-classes", "--draw-seed", 2)
    asked = [5, 3, 2]
    random.Random(2).shuffle(asked)
    n = [min(a, have) for a, have in zip(asked, (7, 3, 2), strict=True)]
    short = [name for name, a, have in zip(("cat", "dog", "fox"), asked, n, strict=True)
             if have < a]
    assert json.loads(Path("dealt/result.json").read_text())["class_counts"] == n
    assert short and f"give all they have: {', '.join(short)}" in printed


def test_two_classes_of_one_name_keep_their_counts(at, archive):
    """CLIP's own list of ImageNet names has "missile" and "sunglasses" twice."""
    pictures = write_classes(at / "pets", {"n1": 20, "n2": 8, "n3": 8})
    Path("names.tsv").write_text("n1\tmissile\nn2\tmissile\nn3\ttank\n")
    done("--method", "coop", "--n-ctx", 2, "--epochs", 1, "--dataset", pictures,
         "--backbone", archive, "--out", "run", "--classnames", "names.tsv", "--shots", 8)
    assert json.loads(Path("run/result.json").read_text())["class_counts"] == [8, 5, 5]


def test_zeroshot_trains_nothing(at, archive):
    pictures = write_classes(at / "pets", {"cat": 8, "dog": 8})
    printed = done("--method", "zeroshot", "--dataset", pictures, "--backbone", archive,
                   "--out", "run")
    assert sorted(files(Path("run"))) == ["prompts.pt", "result.json", "run.json", "split.json"]
    result = json.loads(Path("run/result.json").read_text())
    assert all(result[key] == value for key, value in result["zeroshot"].items())
    assert torch.load("run/prompts.pt", weights_only=True)["learned"] == {}
    assert "nothing is trained" in printed and "collapsed" not in printed


def test_zero_shot_row_is_clip_with_the_datasets_template(at, archive):
    """Worked out from encode_image and encode_text, picture by picture."""
    folder = eurosat(at / "data", split=True)
    done("--method", "coop", "--n-ctx", 2, "--epochs", 1, "--dataset", "eurosat",
         "--backbone", archive, "--out", "run")
    result = json.loads(Path("run/result.json").read_text())["zeroshot"]
    clip = clip_model.load(archive)
    view = data.transform(32, train=False)
    names = list(datasets.EUROSAT.values())
    for half, labels in (("base", range(5)), ("novel", range(5, 10))):
        right, own = [], []
        with torch.no_grad():
            g = clip.encode_text(clip_model.tokenize(
                [f"a centered satellite photo of {names[k]}." for k in labels]))
            g = g / g.norm(dim=1, keepdim=True)
            for k in labels:
                key = list(datasets.EUROSAT)[k]
                for i in range(15, 21):
                    image = view(Image.open(folder / key / f"{key}_{i}.jpg").convert("RGB"))
                    z = clip.encode_image(image[None])[0]
                    cosines = g @ (z / z.norm())
                    right.append(cosines.argmax().item() == k - labels[0])
                    own.append(cosines[k - labels[0]].item() - 1)
        prefix = "" if half == "base" else "novel_"
        assert result[half] == pytest.approx(100 * sum(right) / len(right), abs=1e-4)
        assert result[prefix + "delta_mid"] == pytest.approx(sum(own) / len(own), abs=1e-5)
        pairs = [(g[i] @ g[j]).item() + 1 / 4 for i in range(5) for j in range(5) if i != j]
        assert result[prefix + "delta_lcd"] == pytest.approx(sum(pairs) / 20, abs=1e-5)
        rms = math.sqrt(sum(p * p for p in pairs) / 20)
        assert result[prefix + "lcd_rms"] == pytest.approx(rms, abs=1e-5)


@pytest.mark.parametrize("words, key", [([], "all"), (["--classes", "base"], "base")])
def test_one_class_only(at, archive, words, key):
    """No mu at K = 1: Delta_LCD is 0, L_LC is refused, there is no novel class."""
    pictures = write_classes(at / "pets", {"cat": 8})
    words = ["--dataset", pictures, "--backbone", archive, "--epochs", 1, *words]
    done(*words, "--out", "run")
    result = json.loads(Path("run/result.json").read_text())
    assert (result[key], result["delta_lcd"]) == (100, 0)
    assert (result["novel"], result["harmonic_mean"]) == (None, None)
    assert "at least two classes" in refused(*words, "--npt")


def test_own_folder_is_halved_only_where_asked(at, archive):
    pictures = write_classes(at / "Wörter und Bilder", {"ä b": 8, "c": 8, "d": 8})
    words = ["--method", "maple", "--epochs", 1, "--dataset", pictures, "--backbone", archive]
    done(*words, "--classes", "base")
    result = json.loads(Path("runs/Wörter und Bilder-maple-natural-seed1/result.json").read_text())
    assert len(result["class_counts"]) == 2
    assert None not in (result["base"], result["novel"], result["harmonic_mean"])
    assert "all" not in result
    done(*words, "--out", "all")
    result = json.loads(Path("all/result.json").read_text())
    assert len(result["class_counts"]) == 3
    assert result["base"] is result["novel"] is None and 0 <= result["all"] <= 100


def test_a_half_without_test_pictures_is_refused(at, archive):
    eurosat(at / "data", split=True)
    path = Path("data/eurosat/split_zhou_EuroSAT.json")
    content = json.loads(path.read_text())
    content["test"] = [entry for entry in content["test"] if entry[1] < 5]
    path.write_text(json.dumps(content))
    assert "test picture" in refused(*EUROSAT, "--backbone", archive)


def test_a_test_set_is_not_trained_on(at, archive):
    write_classes(at / "data" / "imagenet-adversarial" / "imagenet-a",
                  {"n01498041": 3, "n01531178": 3}, "jpg")
    line = refused("--method", "maple", "--dataset", "imagenet_a", "--backbone", archive)
    assert "imagenet_a is a test set" in line and "--targets imagenet_a" in line
    done("--method", "zeroshot", "--dataset", "imagenet_a", "--backbone", archive)


def test_half_precision_keeps_the_learned_tensors_in_float32(at, archive):
    pictures = write_classes(at / "pets", {"cat": 8, "dog": 8})
    words = ["--npt", "--epochs", 1, "--dataset", pictures, "--backbone", archive, "--out", "run"]
    done(*words, "--precision", "bfloat16")
    learned = torch.load("run/prompts.pt", weights_only=True)["learned"]
    assert {t.dtype for t in learned.values()} == {torch.float32}


# ----------------------------------------------------------------------------------- the run folder

@pytest.fixture
def quick(at, archive):
    """A command of a moment, without --out."""
    pictures = write_classes(at / "pets", {"cat": 8, "dog": 8})
    return ["--method", "coop", "--n-ctx", 2, "--epochs", 1, "--dataset", pictures,
            "--backbone", archive]


def test_nothing_is_written_outside_the_run_folder(quick, at):
    before = files(at)
    done(*quick, "--out", "deep/er/run")
    after = files(at)
    features, = Path("deep/er/features").iterdir()                      # kept for the next run
    assert {name for name in after if name not in before} == {str(features), *(
        f"deep/er/run/{n}" for n in ("drawn.csv", "log.csv", "prompts.pt", "result.json",
                                     "run.json", "split.json"))}
    assert all(after[name] == value for name, value in before.items())
    assert sorted(p.name for p in at.iterdir()) == ["deep", "pets"]


def test_a_finished_run_is_not_overwritten(quick):
    done(*quick, "--out", "run")
    before = files(Path("run"))
    assert "holds a finished run" in refused(*quick, "--out", "run")
    assert files(Path("run")) == before
    done(*quick)
    done(*quick)                                    # without --out the next one is numbered
    assert {p.name for p in Path("runs").iterdir()} == {
        "pets-coop-natural-seed1", "pets-coop-natural-seed1-2", "features"}


def test_out_that_cannot_become_a_run_is_refused_before_training(quick, monkeypatch, at):
    monkeypatch.setattr(train, "train", lambda *args: pytest.fail("trained"))
    Path("a file").write_text("mine")
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")
    Path("u.part").mkdir()
    before = files(at)
    for out in ("a file", "full", ".", "a file/run"):
        refused(*quick, "--out", out)
    assert files(at) == before and Path("u.part").is_dir()


def test_an_empty_folder_may_become_the_run(quick):
    Path("empty").mkdir()
    done(*quick, "--out", "empty")
    assert Path("empty/result.json").exists() and not Path("empty/.lock").exists()


def test_a_dataset_given_as_this_folder_has_its_name(quick, at, monkeypatch, archive):
    monkeypatch.chdir(at / "pets")
    done("--method", "zeroshot", "--dataset", ".", "--backbone", archive, "--out", at / "run")
    assert json.loads((at / "run" / "result.json").read_text())["dataset"] == "pets"


def test_logit_adjustment_and_balanced_mi_reach_the_loss(at, monkeypatch):
    """Both by class counts, and neither by default."""
    seen = []
    npt_loss = losses.npt_loss

    def spy(logits, z, g, y, **words):
        seen.append((logits - learner_logits(z, g), words["mi_weights"]))
        return npt_loss(logits, z, g, y, **words)

    def learner_logits(z, g):
        return z @ g.T / clip_model.load("tiny").temperature

    monkeypatch.setattr(losses, "npt_loss", spy)
    words = ["--npt", "--tau", "0.01", "--epochs", "1", "--test-images", "1", "--out"]
    done(*words, "plain")
    assert seen[0][0].abs().max().item() < 1e-3 and seen[0][1] is None
    seen.clear()
    done("--logit-adjust", "--balanced-mi", *words, "both")
    n = [16, 10, 6, 4, 2, 1, 1, 1, 1, 1, 1, 1]
    by_hand = [math.log(count / 45) for count in n]
    assert seen[0][0][0].tolist() == pytest.approx(by_hand, abs=1e-3)
    assert seen[0][1].tolist() == pytest.approx([45 / (12 * count) for count in n])
    result = json.loads(Path("both/result.json").read_text())
    assert result["logit_adjust"] and result["balanced_mi"]


@pytest.mark.parametrize("words, reason", [
    ("--balanced-mi", "--balanced-mi belongs to a term of NPT: add --npt"),
    ("--images 45 --tau 0.01", "--images makes a balanced set, without --tau"),
    ("--images 11", "12 classes of 1 to 16 images have 12 to 192, got 11")])
def test_controls_and_baselines_are_refused_where_they_mean_nothing(at, words, reason):
    assert reason in refused(*words.split())
