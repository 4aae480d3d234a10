"""train.py as its user meets it: the little world, EuroSAT's layout, a folder, and refusals."""
import json
import math
import random
import re
import zlib
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace

import pytest
import small_runs
import textbook
import torch
import torchvision
from conftest import fill_learned
from small_runs import (
    NAMED,
    command,
    done,
    eurosat,
    files,
    picture,
    read,
    refused,
    result,
    write_classes,
)

import clip_model
import data
import evaluate
import losses
import prompts
import train
from assets import world

# The first table and one run of it -------------------------------------------------------------

ONE = ["--npt", "--tau", "0.01"]


def test_the_bare_command_is_the_first_table(monkeypatch, capsys):
    """Its line is said and can be typed; a flag of one's own leaves the run that it is made of."""
    plans = []
    monkeypatch.setattr(train, "run_grid", lambda plan, root: plans.append((plan, root)))
    assert train.main([]) == train.main(train.BARE.split()) == 0
    assert capsys.readouterr().out == f"python train.py {train.BARE}\n"
    (plan, root), typed = plans
    assert len(plan) == 12 and (plan, root) == typed and root == Path("runs")
    assert {(run.npt, run.tau, run.seed) for run in plan} == {
        (npt, tau, seed) for npt in (False, True) for tau in (1, .01) for seed in (1, 2, 3)}
    (alone,), (third,) = train.parse(["--seed", "1"]), train.parse(["--seed", "3"])
    assert vars(alone) | {"quiet": True} == vars(plan[0])
    changed = {name for name, value in vars(third).items() if value != vars(alone)[name]}
    assert changed == {"seed", "draw_seed", "name"}


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """One run of it, in a process of its own -> the run's folder and what was printed."""
    folder = tmp_path_factory.mktemp("bare")
    process = small_runs.started(ONE, folder)
    printed, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    assert [p.name for p in folder.iterdir()] == ["runs"]
    run = folder / "runs/world-maple-npt-tau0.01-seed1"
    assert {p.name for p in run.parent.iterdir()} == {run.name, "features"}
    return run, printed


def test_a_run_leaves_its_files_and_prints_a_table(bare):
    run, printed = bare
    assert sorted(files(run)) == ["drawn.csv", "log.csv", "prompts.pt", "result.json", "run.json"]
    saved = torch.load(run / "prompts.pt", weights_only=True)           # no pickle, and little
    assert {12, 24}.isdisjoint(size for t in saved["learned"].values() for size in t.shape)
    assert len(saved["settings"]["trained_classes"]) == 12
    assert (run / "prompts.pt").stat().st_size < 400_000
    found, settings = result(run), json.loads((run / "run.json").read_text())
    expected = {"dataset": "world", "method": "maple", "npt": True, "tau": .01, "seed": 1,
                "draw_seed": 1, "w1": .3, "w2": .8, "epochs": 10, "batch_size": 4, "lr": .0009}
    assert {key: found[key] for key in expected} == expected
    expected |= {"n_ctx": 2, "ctx_init": "a photo of a", "backbone": "tiny", "classes": "base",
                 "prompt_depth": 3}                     # of nine layers, three exist
    assert {key: settings[key] for key in expected} == expected
    assert settings["versions"]["torch"] == torch.__version__ and len(settings["prompts"]) == 12
    assert "RandomResizedCrop" in settings["train_transform"]
    assert "CenterCrop" in settings["test_transform"]
    base, novel = found["base"], found["novel"]
    assert found["harmonic_mean"] == pytest.approx(2 / (1 / base + 1 / novel), abs=1e-4)
    head, *lines = printed.strip().split("\n")[-4:-1]
    assert head.split() == ["base", "novel", "harmonic_mean", "Delta_LCD", "Delta_MID"]
    for line, label, numbers in zip(lines, ("zero-shot", "maple + NPT"),
                                    (found["zeroshot"], found), strict=True):
        # above chance, below perfect
        assert 100 / 12 < numbers["base"] < 100 and 100 / 12 < numbers["novel"] < 100
        assert 0 < numbers["delta_lcd"] < 1 + 1 / 11 and -2 < numbers["delta_mid"] < 0
        assert line.startswith(label)
        assert line.split()[-5:] == [f"{numbers[k]:.{n}f}" for k, n in (
            ("base", 2), ("novel", 2), ("harmonic_mean", 2), ("delta_lcd", 4), ("delta_mid", 4))]
    assert f"[u_1] [u_2] of a {world.draw('world')[0][0]}." in printed
    assert "objective L_CLIP + 0.3 L_LC + 0.8 L_MI (mean)" in printed
    assert "near chance" not in printed


def test_a_run_draws_n_k_images_of_the_base_classes(bare):
    rows, names = read(bare[0] / "drawn.csv"), world.draw("world")[0]
    n = [sum(row["class"] == name for row in rows) for name in names]
    # 16 x 0.01^(k/11), at least 1; no novel class
    assert n == [16, 10, 6, 4, 2, 1, 1, 1, 1, 1, 1, 1] + [0] * 12
    assert result(bare[0])["class_counts"] == n[:12]
    assert all(row["picture"].startswith(f"train/{row['class']}/") for row in rows)
    assert ("images    45: 16 10 6 4 2 1 1 1 1 1 1 1; min/max = 0.0625 where tau = 0.01; of 16 "
            "images that would be less than 1\n" in bare[1])


def test_log_has_every_step_with_its_rate_and_eq7(bare):
    rows = [{k: float(v) for k, v in row.items()} for row in read(bare[0] / "log.csv")]
    # 45 images in batches of 4 are 11 steps: the one left over is dropped
    assert [(r["epoch"], r["step"]) for r in rows] == [
        (e, 11 * e + s + 1) for e in range(10) for s in range(11)]
    # 0.00045 (1 + cos) of 0, 18, 36, ... 144 degrees
    by_hand = [1e-5, .0009, .000877975, .000814058, .000714503, .000589058, .00045, .000310942,
               .000185497, .0000859424]
    assert [row["lr"] for row in rows] == pytest.approx(
        [lr for lr in by_hand for _ in range(11)], rel=1e-5)
    for r in rows:
        assert r["loss"] == pytest.approx(r["l_clip"] + .3 * r["l_lc"] + .8 * r["l_mi"], rel=2e-5)
        assert r["l_lc"] > 0 and r["l_mi"] > 0


def test_same_seed_same_bytes(bare):
    """The first run was a process of its own; this one shares a process with other tests."""
    run, again = bare[0], bare[0].with_name("again")
    done(*ONE, "--out", again)
    for name in ("result.json", "log.csv", "drawn.csv"):
        assert (again / name).read_bytes() == (run / name).read_bytes()
    a, b = (torch.load(folder / "prompts.pt", weights_only=True)["learned"]
            for folder in (run, again))
    assert all(torch.equal(a[name], b[name]) for name in a | b)


def test_draw_seed_and_seed_are_told_apart(at, archive):
    """--seed moves draw and batches; --draw-seed fixes the draw alone. All start from two words."""
    words = [*command(at, archive, cat=24, dog=24), "--shots", 4, "--batch-size", 4,
             "--ctx-init", "a photo"]
    for out, *more in (("a",), ("b", "--seed", 2), ("c", "--seed", 2, "--draw-seed", 1),
                       ("d", "--draw-seed", 2)):
        done(*words, "--out", out, *more)
    drawn = {run: Path(run, "drawn.csv").read_text() for run in "abcd"}
    log = {run: Path(run, "log.csv").read_text() for run in "abcd"}
    assert drawn["a"] == drawn["c"] != drawn["b"] == drawn["d"]
    assert len(set(log.values())) == 4


# Training as the originals do it ---------------------------------------------------------------

def toy():
    """A dataset of pictures in memory with 4, 3, 2 training images a class -> dataset, items."""
    items = [(f"{k}/{i}", k) for k, n in enumerate((4, 3, 2)) for i in range(n)]
    pictures = {name: picture(i) for i, (name, _) in enumerate(items)}
    return data.Dataset("toy", ["cat", "dog", "red fox"], "a photo of a {}.", items, [], items, "",
                        False, pictures, crop_scale=(.5, 1)), items


def trained(clip, folder, method="coop", **changes):
    """A short training on toy pictures, some settings changed -> learner, rows of log.csv."""
    dataset, items = toy()
    args, = train.parse(["--npt", "--epochs", "2", "--lr", "0.05", "--batch-size", "4"])
    settings = SimpleNamespace(**vars(args) | {
        "w1": .3, "w2": .8, "class_counts": [4, 3, 2], "trained_classes": dataset.classnames,
        } | changes)
    learner = prompts.build(method, clip, dataset.classnames, n_ctx=2)
    fill_learned(learner)
    train.train(learner, dataset, items, settings, folder)
    rows = [{k: float(v) for k, v in row.items()} for row in read(folder / "log.csv")]
    return learner, rows


def by_hand(learner, w2):
    """Eq. (7) and SGD of the textbook page over the originals' views and batches.

    -> learned tensors, and (loss, L_CLIP, L_LC, L_MI) of each step
    """
    dataset, items = toy()
    bicubic = torchvision.transforms.InterpolationMode.BICUBIC
    view = torchvision.transforms.Compose([
        torchvision.transforms.RandomResizedCrop(32, scale=(.5, 1), interpolation=bicubic),
        torchvision.transforms.RandomHorizontalFlip(), torchvision.transforms.ToTensor(),
        torchvision.transforms.Normalize((.48145466, .4578275, .40821073),
                                         (.26862954, .26130258, .27577711))])

    def seeded(*numbers):
        torch.manual_seed(zlib.crc32(" ".join(map(str, numbers)).encode()))

    def batches(epoch):
        """Order from seed 1 and epoch, the crop of an image from its place in the list too."""
        seeded(1, epoch)
        order = torch.randperm(len(items)).tolist()
        for chosen in (order[:4], order[4:8]):              # the ninth image is left over
            images = []
            for i in chosen:
                seeded(1, epoch, i)
                images.append(view(dataset.pictures[items[i][0]]))
            yield torch.stack(images), torch.tensor([items[i][1] for i in chosen])

    learned, speed, logged = prompts.trainable(learner), {}, []
    lam = 1 / learner.clip.logit_scale.exp()
    for epoch, rate in enumerate((1e-5, .05)):              # then the top of the cosine
        for images, y in batches(epoch):
            _, z, g = textbook.forward(learner, images)
            terms = textbook.L(z, g, y, lam, .3, w2)
            logged.append([t.item() for t in terms])
            gradients = torch.autograd.grad(terms[0], list(learned.values()))
            textbook.sgd_step(learned, gradients, speed, rate)
    return learned, logged


@pytest.mark.parametrize("method, w2", [("coop", .5), ("cocoop", .8), ("maple", .8)])
def test_training_is_the_hand_written_loop(small_clip, method, w2, tmp_path):
    frozen = {name: t.clone() for name, t in small_clip.state_dict().items()}
    slow = prompts.build(method, small_clip, ["cat", "dog", "red fox"], n_ctx=2)
    fill_learned(slow)
    start = {name: p.detach().clone() for name, p in prompts.trainable(slow).items()}
    expected, terms = by_hand(slow, w2)
    learner, rows = trained(small_clip, tmp_path, method, w2=w2)
    moved = 0
    for name, p in prompts.trainable(learner).items():
        distance = (expected[name] - start[name]).norm().item()
        assert (p - expected[name]).norm() <= 2e-3 * distance + 1e-7, name
        moved += distance
    assert moved > .01
    for row, numbers in zip(rows, terms, strict=True):
        found = [row[name] for name in ("loss", "l_clip", "l_lc", "l_mi")]
        assert found == pytest.approx(numbers, rel=1e-3)
    assert not learner.training
    assert all(torch.equal(t, frozen[name]) for name, t in small_clip.state_dict().items())


@pytest.mark.parametrize("epochs, lr, expected", [
    (1, .0035, [1e-5]), (2, .0026, [1e-5, .0026]), (4, 1.0, [1e-5, 1, .8535534, .5]),
    # the last: .001 (1 + cos(172.8 degrees))
    (50, .002, [1e-5, .002, .00199803] + [None] * 46 + [7.885e-6])])
def test_schedule_by_hand(epochs, lr, expected):
    assert len(expected) == epochs
    for e, rate in enumerate(expected):
        if rate is not None:
            assert train.learning_rate(e, epochs, lr) == pytest.approx(rate, rel=1e-4)


@pytest.mark.parametrize("changes, by_hand, weights", [
    ({}, [0, 0, 0], None),
    ({"logit_adjust": True, "balanced_mi": True, "reduction": "sum", "w1": 0.1, "w2": 2},
     [math.log(4 / 9), math.log(3 / 9), math.log(2 / 9)], [9 / 12, 9 / 9, 9 / 6])])
def test_each_setting_of_the_objective_reaches_the_loss(
        small_clip, tmp_path, monkeypatch, changes, by_hand, weights):
    """Logit adjustment and balanced L_MI go by class counts. Eq. (7) itself: test_losses.py."""
    seen, npt_loss, lam = [], losses.npt_loss, small_clip.temperature

    def spy(logits, z, g, y, **words):
        seen.append((logits - z @ g.T / lam, words))
        return npt_loss(logits, z, g, y, **words)
    monkeypatch.setattr(losses, "npt_loss", spy)
    trained(small_clip, tmp_path, epochs=1, **changes)
    prior, words = seen[0]
    assert prior[0].tolist() == prior[3].tolist() == pytest.approx(by_hand, abs=1e-3)
    given = words.pop("mi_weights")
    assert given is weights is None or given.tolist() == pytest.approx(weights)
    assert words == {name: ({"w1": .3, "w2": .8, "reduction": "mean"} | changes)[name]
                     for name in ("w1", "w2", "reduction")}


def test_a_laboratorys_controls_reach_the_run(at, archive):
    """Attributes of what parse() answers, not options: images, shuffle_classes, balanced_mi."""
    words = [*command(at, archive, cat=12, dog=12, fox=12), "--npt", "--shots", 7]
    args, = train.parse([*map(str, words), "--out", "dealt", "--tau", "0.1", "--draw-seed", "2"])
    args.shuffle_classes = args.balanced_mi = True
    train.run(args)
    n = [7, 2, 1]                                                   # 7 x 0.1^(k/2): 7, 2.2, 0.7
    random.Random(2).shuffle(n)
    assert result("dealt")["class_counts"] == n != [7, 2, 1] and result("dealt")["balanced_mi"]
    args, = train.parse([*map(str, words), "--out", "even"])
    args.images = 8
    train.run(args)
    assert result("even")["class_counts"] == [3, 3, 2]
    args.out, args.images = Path("few"), 2
    with pytest.raises(ValueError, match="3 classes of 1 to 7 images have 3 to 21 in all, got 2"):
        train.run(args)


@pytest.mark.parametrize("method, changes, words", [
    ("maple", {"lr": 1e30, "epochs": 3}, "l_(clip|lc|mi) became nan at step 4, epoch 1: try a sm"),
    ("coop", {"lr": 3.4e38, "batch_size": 9}, "no longer finite after the last step, 2")])
def test_training_stops_where_numbers_are_not_finite(small_clip, tmp_path, method, changes, words):
    """Two steps an epoch: the third still sees the warm-up's tokens, the fourth those of lr 1e30.

    After the last step no further loss would show it.
    """
    with pytest.raises(ValueError, match=words):
        trained(small_clip, tmp_path, method, **changes)
    losses_seen = [row["loss"] for row in read(tmp_path / "log.csv")]
    assert (losses_seen[-1] == "nan") == (method == "maple") and "nan" not in losses_seen[:-1]


# Settings --------------------------------------------------------------------------------------

def settings(*argv, base_novel=True):
    """What is filled in for a command, with a CLIP of twelve layers."""
    args, = train.parse(argv)
    tower = SimpleNamespace(resblocks=range(12))
    clip = SimpleNamespace(transformer=tower, visual=SimpleNamespace(transformer=tower),
                           text_projection=torch.zeros(1))
    items = [("a.jpg", k) for k in range(10)]
    filled, _ = train.fill_in(args, data.Dataset(
        args.dataset, ["x"] * 10, "{} texture.", items, [], [], "", True, Path("."),
        base_novel=base_novel), clip, "ViT-B/16", "sum")
    return filled


PHOTO = "a photo of a"


@pytest.mark.parametrize("argv, expected", [
    ("--method maple", {"w1": 0, "w2": 0, "npt": False, "classes": "base", "tau": 1.0, "lr": .0035,
                        "n_ctx": 2, "ctx_init": PHOTO, "prompt_depth": 9, "epochs": 5,
                        "batch_size": 4}),
    ("--method cocoop", {"n_ctx": 4, "ctx_init": PHOTO, "prompt_depth": None, "epochs": 5,
                         "batch_size": 4, "lr": .0035}),
    ("--method coop", {"n_ctx": 16, "ctx_init": "", "prompt_depth": None, "epochs": 50,
                       "batch_size": 32, "lr": .002}),
    ("--method zeroshot", {"n_ctx": None, "ctx_init": "{} texture.", "epochs": 0, "lr": 0}),
    ("--method coop --n-ctx 4 --lr 1 --epochs 3", {"n_ctx": 4, "epochs": 3, "lr": 1}),
    ("--dataset imagenet", {"prompt_depth": 9, "epochs": 5, "lr": .0035}),
    # all classes of ImageNet: to be transferred
    ("--dataset imagenet --classes all", {"prompt_depth": 3, "epochs": 2, "lr": .0026}),
    ("--dataset imagenet --classes all --method cocoop", {"epochs": 2, "lr": .0026}),
    ("--npt", {"w1": .3, "w2": .8}), ("--npt --w1 0", {"w1": 0, "w2": .8}),
    ("--npt --w2 .1", {"w1": .3, "w2": .1}), ("--seed 7", {"draw_seed": 7}),
    ("--seed 7 --draw-seed 0", {"draw_seed": 0}),
    # words and tokens go together; no words for eight tokens: at random
    ("--method coop --ctx-init a_photo_of_a", {"n_ctx": 4, "ctx_init": PHOTO}),
    ("--method cocoop --ctx-init photo", {"n_ctx": 1, "ctx_init": "photo"}),
    ("--method cocoop --n-ctx 8", {"n_ctx": 8, "ctx_init": ""}),
    ("--method cocoop --n-ctx 4", {"n_ctx": 4, "ctx_init": PHOTO}),
    ("--method coop --ctx-init _a__photo_", {"n_ctx": 2, "ctx_init": " a  photo "}),
    ("--method cocoop --ctx-init _", {"n_ctx": 4, "ctx_init": " "})])
def test_defaults_follow_method_and_dataset(argv, expected):
    found = settings(*(word.replace("_", " ") for word in argv.split()))
    assert {name: getattr(found, name) for name in expected} == expected
    assert settings(base_novel=False).classes == "all"


# The EuroSAT command ---------------------------------------------------------------------------

EUROSAT = ["--method", "maple", "--npt", "--tau", .01, "--dataset", "eurosat"]


def test_eurosat_command_with_the_official_split(at, archive):
    eurosat(at / "data", split=True)
    before = files(at / "data")
    printed = done(*EUROSAT, "--backbone", archive)
    assert files(at / "data") == before                 # nothing is written beside the pictures
    run = Path("runs/eurosat-maple-npt-tau0.01-seed1-backbonesmall")
    found = result(run)
    assert found["official_split"] and found["split"].startswith("CoOp's split_zhou_EuroSAT.json")
    assert found["backbone"] == str(archive) and found["dataset"] == "eurosat"
    # 16 5 1 1 1 by 16 x 0.01^(k/4): 16, 5.06, 1.6, 0.506, 0.16; but there are only ten to train on
    assert found["class_counts"] == [10, 5, 1, 1, 1]
    saved = torch.load(run / "prompts.pt", weights_only=True)["settings"]
    assert saved["data_root"] == str((at / "data").resolve())       # from wherever it is evaluated
    assert saved["trained_classes"] == [
        "Annual Crop Land", "Forest", "Herbaceous Vegetation Land", "Highway or Road",
        "Industrial Buildings"]
    numbers = {row["picture"].partition("_")[2] for row in read(run / "drawn.csv")}
    assert numbers <= {f"{i}.jpg" for i in (1381, *range(1, 11))}                # not of test
    assert "[u_1] [u_2] of a Annual Crop Land." in printed
    # zero-shot CLIP's own words: the mean cosine of two classes, less -1 / (5 - 1)
    clip, names = clip_model.load(archive), list(data.ROWS["eurosat"].names.values())
    for prefix, half in (("", names[:5]), ("novel_", names[5:])):
        g = torch.stack([clip.encode_text(clip_model.tokenize(
            [f"a centered satellite photo of {name}."]))[0] for name in half]).detach()
        pairs = [torch.cosine_similarity(a, b, dim=0).item() for a, b in permutations(g, 2)]
        assert found["zeroshot"][prefix + "delta_lcd"] == pytest.approx(
            sum(pairs) / len(pairs) + 1 / 4, abs=1e-5)


# What it refuses -------------------------------------------------------------------------------

@pytest.mark.parametrize("words, line", [       # tests/faults.py has a hundred more
    ("--dataset eurosta", "unknown dataset 'eurosta'; did you mean eurosat?"),
    ("--dataset no/such", "no/such: no such folder"), ("--tau nan", "--tau: .*got nan"),
    ("--npt --w1 inf", "--w1: .*, got inf"),
    ("--tau 0", "--tau: must be from 1e-09 to 1, got 0"), ("--w2 0", "add --npt"),
    ("--prompt-depth 4", "depth must be from 1 to 3.*got 4"),
    ("--method coop --prompt-depth 2", "--prompt-depth is no setting of coop"),
    ("--method zeroshot --npt", "zeroshot trains nothing"),
    ("--method zeroshot --epochs 3", "--epochs, --batch-size and --lr are no settings of zeroshot"),
    ("--draw-seed 4294967296", "--draw-seed: must be from 0 to 4294967295, got 4294967296"),
    ("--method coop --n-ctx 3 --ctx-init x", "one token for each word.*'x'.*--n-ctx 3; leave one"),
    ("--method coop --n-ctx 76", "class '.*tokens where CLIP takes 77"),
    ("--classnames names.txt", "world has its own names"),
    ("--backbone RN50x4", "RN50x4 is a ResNet"), ("--backbone .", "no CLIP model or file '.'"),
    ("--device cuda", "this machine has none")])
def test_refused_with_one_line(at, words, line, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert re.search(line, refused(*words.split()))
    assert list(at.iterdir()) == []                                     # nothing is left behind


def test_a_published_datasets_pictures_are_looked_at_before_training(at, archive):
    """Those of the test set only whether they are there; a folder's own: test_photos.py."""
    folder = eurosat(at / "data", split=True)
    words = [*EUROSAT, "--tau", 1, "--shots", 10, "--backbone", archive]
    (folder / "River/River_20.jpg").write_bytes(b"\xff\xd8 broken")
    (folder / "Forest/Forest_3.jpg").write_bytes(b"\xff\xd8 broken")
    assert "Forest_3.jpg: not a readable picture" in refused(*words)
    (folder / "River/River_20.jpg").unlink()
    assert "River_20.jpg: picture not found" in refused(*words)
    assert sorted(p.name for p in at.iterdir()) == ["data"]


# Warnings and odd sets -------------------------------------------------------------------------

@pytest.mark.parametrize("K, mean, near", [     # up to half as much as chance again, or 10 points
    (9, 100 / 9, True), (9, 16.6, True), (9, 16.7, False), (4, 34.9, True), (4, 35.1, False),
    (2, 59.9, True), (2, 60.1, False), (1, 0, False), (100, 1.5, True), (100, 1.6, False)])
def test_what_is_near_chance_by_hand(K, mean, near):
    assert evaluate.near_chance(mean, K) == near * (
        f"mean over classes {mean:.1f} %, near chance: one answer to all has {100 / K:.1f} %")


def test_a_run_warns_of_small_classes_and_of_chance_and_takes_names_from_a_file(at, archive):
    """CLIP's own list of ImageNet names has "missile" twice. 60 % of each class are for training.

    Weights from a hash see nothing in pictures of blocks.
    """
    words = [*command(at, archive, n1=20, n2=8, n3=8), "--classnames", "names.tsv", "--shots", 8]
    assert "names.tsv" in refused(*words)
    Path("names.tsv").write_text("n1\tmissile\nn2\tmissile\nn3\tRennmaus é\n", encoding="utf-8")
    printed = done(*words, "--out", "run")
    assert "[u_1] [u_2] Rennmaus é." in printed
    assert {row["class"] for row in read("run/drawn.csv")} == {"missile", "Rennmaus é"}
    assert result("run")["class_counts"] == [8, 5, 5]
    assert ("warning: 2 classes have fewer images than asked for and give all they have: missile, "
            "Rennmaus é\n" in printed)
    assert "images    18: 8 5 5; min/max = 0.625" in printed
    for who in ("zero-shot CLIP", "the run"):
        assert re.search(rf"warning: {who} on all classes: mean over classes [\d.]+ %, near chance"
                         ": one answer to all has 33.3 %: ", printed)
    assert "fewer" not in done(*words, "--tau", .5, "--out", "other")   # 8 5 4 are asked for


def test_zeroshot_trains_nothing(at, archive, monkeypatch):
    command(at, archive)
    monkeypatch.chdir(at / "pets")                      # the folder's name, given as "."
    printed = done("--method", "zeroshot", "--dataset", ".", "--backbone", archive,
                   "--out", at / "run")
    assert sorted(files(at / "run")) == ["prompts.pt", "result.json", "run.json", "split.json"]
    found = result(at / "run")
    assert found["dataset"] == "pets"
    assert all(found[key] == value for key, value in found["zeroshot"].items())
    assert torch.load(at / "run/prompts.pt", weights_only=True)["learned"] == {}
    assert "nothing is trained" in printed and "the run on" not in printed
    assert "photos    0 train, 6 test\n" in printed         # none is left out by an option
    assert printed.count("zero-shot  ") == 1 and "\nzeroshot  " not in printed


def test_one_class_only(at, archive):
    """No mu at K = 1: Delta_LCD is 0, L_LC is refused."""
    words = [*command(at, archive, cat=8, dog=8), "--classes", "base"]
    done(*words, "--out", "run")
    found = result("run")
    assert (found["base"], found["delta_lcd"]) == (100, 0)
    assert "at least two classes" in refused(*words, "--npt")


def test_own_folder_is_halved_only_where_asked_and_half_precision_stays_outside(at, archive):
    pictures = write_classes(at / "Wörter und Bilder", {"ä b": 8, "c": 8, "d": 8})
    words = ["--method", "maple", "--epochs", 1, "--dataset", pictures, "--backbone", archive]
    done(*words, "--classes", "base", "--precision", "bfloat16")
    run = Path("runs/Wörter und Bilder-maple-natural-seed1-classesbase-epochs1-backbonesmall"
               "-precisionbfloat16")
    found = result(run)
    assert len(found["class_counts"]) == 2 and "all" not in found
    assert None not in (found["base"], found["novel"], found["harmonic_mean"])
    learned = torch.load(run / "prompts.pt", weights_only=True)["learned"]
    assert {t.dtype for t in learned.values()} == {torch.float32}
    done(*words, "--out", "all")
    found = result("all")
    assert len(found["class_counts"]) == 3 and 0 <= found["all"] <= 100
    assert found["base"] is found["novel"] is None


def test_a_test_set_is_not_trained_on(at, archive):
    write_classes(at / "data" / "imagenet-adversarial" / "imagenet-a",
                  {"n01498041": 3, "n01531178": 3}, "jpg")
    line = refused("--method", "maple", "--dataset", "imagenet_a", "--backbone", archive)
    assert "imagenet_a is a test set" in line and "--targets imagenet_a" in line
    done("--method", "zeroshot", "--dataset", "imagenet_a", "--backbone", archive)


# The run folder --------------------------------------------------------------------------------

def test_an_empty_folder_becomes_the_run_and_a_finished_one_is_shown_again(at, archive):
    """Without --out; beside a folder of other content the next is numbered, and found again."""
    words, name = command(at, archive), f"pets-coop-natural-seed1{NAMED}"
    Path("runs", name).mkdir(parents=True)          # may become the run
    pets = files("pets")
    first, before = done(*words), files("runs")
    features, = Path("runs/features").iterdir()                         # kept for the next run
    assert before.keys() == {f"features/{features.name}", *(
        f"{name}/{n}" for n in ("drawn.csv", "log.csv", "prompts.pt", "result.json", "run.json",
                                "split.json"))}
    assert sorted(p.name for p in at.iterdir()) == ["pets", "runs"] and files("pets") == pets
    again = done(*words)
    table = first[first.index("\n  "):first.rindex("\n", 0, -1)]
    assert table in again and "coop " in table and files("runs") == before
    assert again.endswith(f"nothing is trained: runs/{name} holds a finished run: choose another "
                          "--out, or delete it\n")
    assert done(*words, "--out", f"runs/{name}").endswith(again[again.index(table):])
    picture(77).save(at / "pets/cat/cat_1.png")
    assert "another pictures_sha256" in done(*words)
    assert f"runs/{name}-2 holds a finished run" in done(*words)
    assert {p.name for p in Path("runs").iterdir()} == {name, f"{name}-2", "features"}


def test_out_that_cannot_become_a_run_is_refused_before_training(at, archive, monkeypatch):
    monkeypatch.setattr(train, "train", lambda *args: pytest.fail("trained"))
    monkeypatch.setattr(evaluate, "score", lambda *args: pytest.fail("evaluated"))
    words = command(at, archive)
    Path("a file").write_text("mine")
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")
    before = files(at)
    for out in ("a file", "full", ".", "a file/run"):
        refused(*words, "--out", out)
    assert files(at) == before
