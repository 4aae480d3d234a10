"""Photos of one's own: natural counts, the kept split, duplicates, words a CLIP never saw."""
import html
import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from small_runs import done, files, picture, read, refused, write_classes

import clip_model
import data
import evaluate
import train
from assets import photos, report

LONG_TAIL = {"ant": 5, "bee": 40, "cow": 10}            # 60 % train: 3, 24, 6
COOP = ["--method", "coop", "--n-ctx", 2, "--epochs", 1]


@pytest.fixture
def folder(at):
    return write_classes(at / "farm", LONG_TAIL)


# Counts ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("shots, tau, counts", [
    (None, None, [3, 24, 6]),                   # natural: nothing is cut, not even at 16
    (8, None, [3, 8, 6]),                       # tau 1, the least of 8 and what there is
    (None, 0.25, [3, 16, 6]),                   # by hand 16 8 4 in the order bee, cow, ant
    (8, 0.25, [2, 8, 4]),                       # 8 4 2
    (8, 0.04, [1, 8, 1]),                       # int(1.6), int(0.32): at least 1
])
def test_the_head_is_the_largest_class_and_counts_are_kept_where_none_are_asked(
        folder, shots, tau, counts):
    dataset = data.load(folder)
    shots, tau = data.settled(str(folder), shots, tau)
    items = data.training_items(dataset, [0, 1, 2], shots, tau, seed=1)
    n = Counter(label for _, label in items)
    assert [n[k] for k in range(3)] == counts
    assert len(set(items)) == len(items) and set(items) <= set(dataset.train)


def test_published_datasets_and_the_world_keep_16_and_1():
    assert data.settled("world", None, None) == data.settled("eurosat", None, None) == (16, 1.0)
    assert data.settled("pets", None, None) == (None, None)
    assert data.settled("pets", None, None, 30) == (16, 1.0)            # --images 30
    plan = train.parse(["--dataset", "world", "pets", "--seed", "1", "2"])
    assert {(run.dataset, run.shots, run.tau) for run in plan} == {
        ("world", 16, 1.0), ("pets", None, None)}


def test_a_run_says_what_trains_tests_and_stays_unused(folder, archive):
    words = [*COOP, "--dataset", folder, "--backbone", archive]
    printed = done(*words)
    assert "photos    33 train, 22 test, 0 unused\n" in printed
    assert "images    33: 3 24 6; min/max = 0.125 where the folder's own counts" in printed
    run = Path("runs/farm-coop-natural-seed1")
    for name in ("run.json", "result.json"):
        settings = json.loads((run / name).read_text())
        assert settings["tau"] is settings["shots"] is None
        assert settings["class_counts"] == [3, 24, 6]
    printed = done(*words, "--tau", 0.25, "--shots", 8, "--out", "cut")
    assert "photos    14 train, 22 test, 19 unused (19 beyond --tau, --shots or --classes)" in (
        printed)
    assert json.loads(Path("cut/result.json").read_text())["tau"] == 0.25
    out = done(folder, main=data.main)
    assert "drawn     33 training images: all there are, seed 1, the folder's own counts" in out


def test_a_folders_own_val_is_unused_and_said(at, archive):
    for part, n in (("train", 4), ("val", 3), ("test", 2)):
        write_classes(at / "split" / part, {"ant": n, "bee": n})
    printed = done(*COOP, "--dataset", "split", "--backbone", archive)
    assert "photos    8 train, 4 test, 6 unused (6 in val/)" in printed


def test_tables_have_no_row_for_natural_counts(folder, archive):
    done(*COOP, "--dataset", folder, "--backbone", archive, "--out", "g/run", "--classes", "base")
    assert "its folder's own counts were kept" in refused("g", "--table", 1, main=evaluate.main)


# The kept split --------------------------------------------------------------------------------

def test_the_kept_split_is_what_was_trained_and_tested(folder, archive):
    done(*COOP, "--dataset", folder, "--backbone", archive, "--out", "run", "--seed", 7)
    kept = json.loads(Path("run/split.json").read_text())
    dataset = data.load(folder, seed=7)
    for part in ("train", "val", "test"):
        assert [(name, label) for name, label, _ in kept[part]] == getattr(dataset, part)
        assert all(sorted(LONG_TAIL)[label] == name for _, label, name in kept[part])
    drawn = {row["picture"] for row in read("run/drawn.csv")}
    assert drawn == {name for name, _, _ in kept["train"]}


def test_photos_that_came_after_the_run_are_said_and_change_nothing(folder, archive):
    done(*COOP, "--dataset", folder, "--backbone", archive, "--out", "runs/one")
    assert "not in the run's" not in evaluated("runs/one", "--out", "before")
    for name in ("ant/zz.png", "bee/zz.png", "bee/.hidden.png", "bee/notes.txt"):
        shutil.copy(folder / "ant/ant_1.png", folder / name)
    printed = evaluated("runs/one", "--out", "after")
    assert f"note      2 photos in {folder} are not in the run's split.json" in printed
    assert "first ant/zz.png; train anew to use them" in printed
    assert files(Path("before")) == files(Path("after"))
    assert "runs holds 1 runs: evaluate one of them, such as runs/one" in refused(
        "runs", main=evaluate.main)


# Duplicates, HEIC, words -------------------------------------------------------------------------

def test_duplicates_across_train_and_test_are_named_before_training(folder, archive, monkeypatch):
    dataset = data.load(folder)
    assert photos.duplicates(dataset, dataset.train) == []
    pairs = [(dataset.test[i][0], dataset.train[-1 - i][0]) for i in (0, 3)]
    for test, other in pairs:
        shutil.copy(folder / other, folder / test)
    assert photos.duplicates(dataset, dataset.train) == pairs
    monkeypatch.setattr(train, "train", lambda *a: float("nan"))
    printed = done(*COOP, "--dataset", folder, "--backbone", archive)
    assert f"warning: 2 test photos are training photos too, byte for byte, first {pairs[0][0]} = "\
        f"{pairs[0][1]}: remove one" in printed


def test_pictures_of_equal_size_and_other_bytes_are_no_duplicates(at):
    dataset = data.load(write_classes(at / "farm", {"ant": 4, "bee": 4}, "bmp"))   # all of one size
    assert len({dataset.path(name).stat().st_size for name, _ in dataset.train}) == 1
    assert photos.duplicates(dataset, dataset.train) == []


def test_a_heic_picture_under_another_name(folder, archive):
    (folder / "ant" / "ant_1.png").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    line = refused(*COOP, "--dataset", folder, "--backbone", archive)
    assert "ant_1.png: a HEIC picture; convert it to JPEG" in line


def test_words_that_the_tiny_clip_never_saw_are_named(at):
    write_classes(at / "farm", {"red circle": 4, "axolotl_pond": 4})
    line = refused(*COOP, "--dataset", "farm", "--backbone", "tiny")
    assert "never saw 2 words of the class names, first axolotl, pond" in line
    assert not Path("runs").exists()
    photos.check_words(clip_model.load("tiny"), data.load("world").classnames)


# New photos --------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def trained(tmp_path_factory, archive):
    """A CoOp run on a folder whose class names want to be escaped."""
    root = tmp_path_factory.mktemp("trained")
    folder = write_classes(root / "farm", {"<b>x<>": 12, "\"&'": 6, "cow": 12})
    names = root / "names.tsv"
    names.write_text("<b>x<>\t<b>x</b>\n\"&'\t\"&'\ncow\tcow_boy\n")
    done("--method", "coop", "--n-ctx", 2, "--epochs", 2, "--dataset", folder, "--classnames",
         names, "--backbone", archive, "--out", root / "run")
    return root


def evaluated(*argv):
    return done(*argv, main=evaluate.main)


def test_photos_of_a_folder_go_into_a_csv_file(trained, at):
    write_classes(at / "new" / "deep", {"er": 2})
    picture(9).save(at / "new" / "a.png")
    (at / "new" / "b.heic").write_bytes(b"x")
    (at / "new" / "c.jpg").write_bytes(b"broken")
    (at / "new" / "notes.txt").write_text("x")
    printed = evaluated(trained / "run", "--image", "new", "--out", "predictions.csv")
    assert "warning: 1 HEIC files passed over, first new/b.heic: convert to JPEG" in printed
    assert "warning: new/c.jpg: not a readable picture" in printed
    rows = read("predictions.csv")
    assert [row["picture"] for row in rows] == [
        "new/a.png", "new/deep/er/er_1.png", "new/deep/er/er_2.png"]
    for row in rows:
        p = [float(row[f"probability_{k}"]) for k in (1, 2, 3)]
        assert p == sorted(p, reverse=True) and sum(p) == pytest.approx(1, abs=2e-4)
        alone = evaluated(trained / "run", "--image", row["picture"]).split(": ")[1]
        assert alone.startswith(f"{row['class_1'].replace('_', ' ')} {100 * p[0]:.1f} %")
    assert "c.jpg" in refused(trained / "run", "--image", "new/c.jpg", main=evaluate.main)
    Path("empty").mkdir()
    assert "empty: expected pictures in it" in refused(
        trained / "run", "--image", "empty", main=evaluate.main)


# The class texts ---------------------------------------------------------------------------------

def test_texts_classify_in_numpy_as_the_run_does(trained, at, archive):
    assert "3 class texts" in evaluated(trained / "run", "--texts", "texts.npz")
    evaluated(trained / "run", "--out", "found")
    with numpy.load("texts.npz", allow_pickle=False) as texts:
        kept = dict(texts)
    g = kept["g"]
    assert g.dtype == numpy.float32 and g.shape == (3, 64)
    assert (kept["method"], kept["backbone"]) == ("coop", str(archive))
    assert list(kept["prompts"]) == [f"[u_1] [u_2] {n}." for n in ('"&\'', "<b>x</b>", "cow boy")]
    assert numpy.allclose((g ** 2).sum(axis=1), 1, atol=1e-5)
    clip = clip_model.load(archive)
    view = data.transform(clip.visual.resolution, train=False)
    for row in read("found/all/predictions.csv"):
        image = Image.open(trained / "farm" / row["picture"]).convert("RGB")
        with torch.no_grad():
            z = clip.encode_image(view(image)[None])[0].double().numpy()
        logits = g.astype(float) @ (z / (z @ z) ** .5) / float(kept["temperature"])
        p = numpy.exp(logits - logits.max()) / numpy.exp(logits - logits.max()).sum()
        assert kept["classnames"][p.argmax()] == row["predicted"]
        assert p.max() == pytest.approx(float(row["probability"]), abs=2e-4)
    Path("names.txt").write_text("newt\nowl\n")
    evaluated(trained / "run", "--texts", "more.npz", "--classnames", "names.txt")
    assert list(numpy.load("more.npz", allow_pickle=False)["classnames"]) == ["newt", "owl"]


def test_texts_that_alone_do_not_classify(folder, archive):
    for method in ("cocoop", "maple"):
        done("--method", method, "--epochs", 1, "--dataset", folder, "--shots", 2, "--backbone",
             archive, "--out", method)
    line = refused("cocoop", "--texts", "texts.npz", main=evaluate.main)
    assert "CoCoOp makes its class texts anew for each image" in line
    assert not Path("texts.npz").exists()
    assert "image tower is tuned too" in evaluated("maple", "--texts", "texts.npz")


# The report --------------------------------------------------------------------------------------

class Page(HTMLParser):
    """Every tag is closed in order; keeps the text."""
    EMPTY = ("meta", "img")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.said = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open += [] if tag in self.EMPTY else [tag]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.said.append(text)


def test_report_is_one_page_that_needs_nothing(trained, at, archive):
    printed = evaluated(trained / "run", "--out", "found", "--report", "report.html")
    assert "report: report.html" in printed
    text = Path("report.html").read_text(encoding="utf-8")
    page = Page(text)
    said = " ".join(page.said)
    assert "script" not in page.tags and "link" not in page.tags
    assert "<b>x" not in text and "&lt;b&gt;x&lt;/b&gt;" in text
    assert not re.search(r"https?:|<script|url\(|@import", text)
    assert "<b>x</b>" in said and "cow boy" in said and '"&\'' in said     # as text, not as tags
    assert str(trained) not in text and str(archive) not in text        # no path of the machine
    facts = json.loads(Path("found/base-to-novel.json").read_text())["results"]["all"]
    low, high = facts["accuracy_interval"]
    assert f"{facts['accuracy']:.1f} % (95 % interval {low:.1f} to {high:.1f}, 12 test" in said
    before = f"{facts['zeroshot']:.1f} %, mean over classes {facts['zeroshot_mean_recall']:.1f} %"
    assert f"{before}, nothing trained" in said
    assert "[u_1] [u_2] <b>x</b>." in said and "the folder's own counts" in said
    for row in read("found/all/per_class.csv"):
        assert f"{row['training_images']} trained, {row['test_images']} tested" in said
        assert f'<i class="now" style="width:{float(row["recall"]):.1f}%">' in text
    wrong = [row for row in read("found/all/predictions.csv") if row["class"] != row["predicted"]]
    assert wrong and page.tags.count("img") == len(wrong[:99])
    assert text.count("data:image/jpeg;base64,") == len(wrong) and text.count("<polyline") == 2
    assert 'name="viewport" content="width=device-width' in text


def test_report_of_what_was_not_trained_has_no_curve(folder, archive):
    done("--method", "zeroshot", "--dataset", folder, "--backbone", archive, "--out", "run")
    evaluated("run", "--report", "report.html")
    text = Path("report.html").read_text(encoding="utf-8")
    assert "<polyline" not in text and "gain" not in text
    Page(text)


@pytest.mark.parametrize("low, high, words", [
    (1.0, 9.0, "Training raised that, by more"), (-9.0, -1.0, "Training lowered that, by more"),
    (-1.0, 9.0, "Whether training changed that, these test images can't tell")])
def test_the_report_says_in_plain_words_how_far_to_trust_it(low, high, words):
    gain = {"low": low, "high": high}
    facts = {"accuracy": 71.6, "accuracy_interval": (60.4, 80.5), "gain": gain,
             "mean_recall": 61.6, "zeroshot_mean_recall": 75.6}
    per_class = [{"test_images": n} for n in ("0", "1", "9", "10", "200")]
    said = html.unescape(report.in_short(facts, per_class, {}))
    assert "about 72 are named rightly (60 to 80 fit what was seen)" in said and words in said
    assert "counts as much as a common one, went from 76 to 62 %." in said
    assert ("train with --logit-adjust" in said) == (low > 0)      # accuracy up, class mean down
    assert "2 of 5 classes have fewer than 10 test images" in said
    assert "--logit-adjust" not in report.in_short(facts, per_class, {"logit_adjust": True})
    assert "mean over classes" not in report.in_short(facts | {"mean_recall": 71.6}, per_class, {})
    said = report.in_short(facts | {"gain": None}, per_class[3:], {})
    assert "Training" not in said and "hints" not in said


def test_the_training_curve_by_hand(at):
    Path("log.csv").write_text("epoch,step,lr,loss,l_clip\n0,1,1,3,2\n0,2,1,nan,1\n0,3,1,1,1\n")
    drawn = report.curve(Path("log.csv"))
    # from 3 down to 1, left 50 to right 395, top 10 to bottom 135; what is not finite is left out
    assert 'points="50.0,10.0 395.0,135.0"' in drawn
    assert 'points="50.0,72.5 222.5,135.0 395.0,135.0"' in drawn
    assert report.averaged(list(range(400))) == [i + 0.5 for i in range(0, 400, 2)]


def test_one_photo_in_two_classes_is_named_before_training(at, capsys):
    folder = write_classes(at / "pets", {"cat": 6, "dog": 6})
    shutil.copy(folder / "cat" / "cat_1.png", folder / "dog" / "copy.png")
    dataset = data.load(folder, seed=1)
    items = [("cat/cat_1.png", 0), ("cat/cat_2.png", 0), ("dog/copy.png", 1), ("dog/dog_1.png", 1)]
    assert photos.twins(dataset, items) == [("cat/cat_1.png", "dog/copy.png")]
    assert photos.twins(dataset, items[1:]) == []
