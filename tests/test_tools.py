"""predict.py, export.py and report.py of assets/ as their user meets them; intervals by hand."""
import base64
import io
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy
import pytest
import textbook
import torch
from PIL import Image
from small_runs import done, files, picture, read, refused, told, write_classes

import clip_model
import data
import evaluate
from assets import export, predict, report

COUNTS = {"<b>x<>": 12, "\"&'": 6, "cow": 12, "bee": 3}         # 60 % train: 7, 4, 7, 2
NAMES = ['"&\'', "<b>x</b>", "bee", "cow_boy"]                  # in label order
TRAINED = dict(zip(NAMES, (4, 7, 2, 7), strict=True))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, archive):
    """CoOp, CoCoOp and MaPLe on a folder whose class names want to be escaped."""
    root = tmp_path_factory.mktemp("trained")
    folder = write_classes(root / "farm", COUNTS)
    lines = zip(sorted(COUNTS), NAMES, strict=True)
    (root / "names.tsv").write_text("".join(f"{key}\t{name}\n" for key, name in lines))
    for method in ("coop", "cocoop", "maple"):
        done("--method", method, "--n-ctx", 2, "--epochs", 2, "--dataset", folder, "--classnames",
             root / "names.tsv", "--backbone", archive, "--out", root / method)
    return root


# Measures ----------------------------------------------------------------------------------------

def test_wilsons_interval_by_hand():
    # p = 1/2, Z^2/n = 0.384146: (0.692073 -+ 1.959964 * sqrt(0.025 + 0.0096036)) / 1.384146
    assert evaluate.wilson(5, 10) == pytest.approx((23.659, 76.341), abs=1e-3)
    low, high = 38.4146 / 1.384146, 100 - 38.4146 / 1.384146    # p = 0: (Z^2/n) / (1 + Z^2/n)
    assert evaluate.wilson(0, 10) == pytest.approx((0, low), abs=1e-3)
    assert evaluate.wilson(10, 10) == pytest.approx((high, 100), abs=1e-3)


@pytest.mark.parametrize("both, better, worse, neither, points, low, high, words", [
    # n = 20: 5/22 -+ 1.959964 sqrt((8/22 - (5/22)^2) / 22)
    (8, 6, 1, 5, 25, -0.613, 46.067, "no larger than the test noise"),
    # n = 40: 9/42 -+ 1.959964 sqrt((12/42 - (9/42)^2) / 42)
    (20, 10, 1, 9, 22.5, 6.618, 36.239, "a gain larger than the test noise"),
    # no image changed, n = 8: -+ 1.959964 sqrt(1/10 / 10)
    (4, 0, 0, 4, 0, -19.600, 19.600, "no larger than the test noise"),
    # n = 6: -5/8 -+ 1.959964 sqrt((6/8 - 25/64) / 8) is from -104.04: no loss is so large
    (1, 0, 5, 0, -500 / 6, -100, -20.96, "a loss larger than the test noise")])
def test_paired_gain_by_hand(both, better, worse, neither, points, low, high, words):
    before = torch.tensor([1] * both + [0] * better + [1] * worse + [0] * neither).bool()
    after = torch.tensor([1] * both + [1] * better + [0] * worse + [0] * neither).bool()
    gain = evaluate.paired_gain(before, after)
    assert gain == {"better": better, "worse": worse, "points": pytest.approx(points), "low":
                    pytest.approx(low, abs=2e-3), "high": pytest.approx(high, abs=2e-3)}
    assert evaluate.verdict(gain) == words


def test_expected_calibration_error_by_hand():
    confidence = torch.tensor([0.90, 0.92, 0.50, 0.30])
    right = torch.tensor([True, False, True, False])
    # bins of 1/15: 0.90 and 0.92 share (13/15, 14/15], 1 of 2 right where 0.91 is claimed
    by_hand = 2 / 4 * abs(0.5 - 0.91) + 1 / 4 * 0.5 + 1 / 4 * 0.3
    assert report.calibration_error(confidence, right) == pytest.approx(100 * by_hand, abs=1e-4)
    # a bin's upper end belongs to it: 6/15 is in (5/15, 6/15] with 0.35, not with 0.42
    edge = torch.tensor([6 / 15, 0.35, 0.42], dtype=torch.float64)
    error = report.calibration_error(edge, torch.tensor([True, False, False]))
    assert error == pytest.approx(100 * (abs(1 - 0.4 - 0.35) + 0.42) / 3, abs=1e-4)


def test_groups_by_training_images():
    counts = [16, 8, 7, 3, 2, 1, 0, None]
    assert [report.group_of(count) for count in counts] == [
        "many", "many", "medium", "medium", "few", "few", "unseen", "unknown"]


# Seven images of four classes: c has no training image, d no test image
ITEMS = [("1", 0), ("2", 0), ("3", 0), ("4", 1), ("5", 1), ("6", 2), ("7", 2)]
TUNED = torch.tensor([[.8, .1, .1, 0], [.8, .1, .1, 0], [.2, .7, .1, 0], [.2, .7, .1, 0],
                      [.6, .3, .1, 0], [.6, .3, .1, 0], [.7, .2, .1, 0]])
PLAIN = torch.tensor([[.8, .1, .1, 0], [.1, .8, .1, 0], [.2, .7, .1, 0], [.8, .1, .1, 0],
                      [.6, .3, .1, 0], [.1, .1, .8, 0], [.8, .1, .1, 0]])


def test_what_is_judged_by_hand(tmp_path):
    facts = report.judge(list("abcd"), [9, 2, 0, 8], ITEMS, TUNED, PLAIN)
    assert facts["confusions"] == [("c", "a", 2), ("a", "b", 1), ("b", "a", 1)]
    # two of two at 0.8, one of three at 0.7, none of two at 0.6
    assert facts["calibration_error"] == pytest.approx(100 * (0.4 + 1.1 + 1.2) / 7, abs=1e-4)
    by_hand = {     # classes and images that are tested, recalls, calibration, gain
        "many": (1, 3, 200 / 3, 100 / 3, 110 / 3, 100 / 3), "few": (1, 2, 50, 0, 45, 50),
        "unseen": (1, 2, 0, 50, 65, -50)}
    keys = ("classes", "images", "recall", "zeroshot", "calibration_error")
    assert {group: (*(found[key] for key in keys), found["gain"]["points"])
            for group, found in facts["groups"].items()} == {
        group: pytest.approx(numbers, abs=1e-4) for group, numbers in by_hand.items()}
    rows = dict(report.rows_of(facts | FACTS | {key: facts[key] for key in ("groups", "per_class")}
                               | {"test_images": 7, "mean_recall": 350 / 9}))
    assert rows["mean over classes"] == ("38.9 %: each class counts alike; 3 of the 4 classes have "
                                         "photos here")
    assert "near chance: one answer to all has 33.3 %" in rows["warning"]
    # three images: (1 - 0) / 5 -+ 1.959964 sqrt((2/5 - 1/25) / 5)
    assert "gain +33.3 points (95 % interval -32.6 to +72.6) over their 3 images" in rows["many"]
    report.write_files(tmp_path, list("abcd"), facts)
    assert {file.name: file.read_text().splitlines()[:5] for file in tmp_path.glob("*.csv")} == {
        "per_class.csv": [
            "class,training_images,group,test_images,recall,zeroshot_recall",
            "a,9,many,3,66.67,33.33", "b,2,few,2,50.00,0.00", "c,0,unseen,2,0.00,50.00",
            "d,8,many,0,nan,nan"],
        "predictions.csv": ["picture,class,predicted,probability", "1,a,a,0.8000", "2,a,a,0.8000",
                            "3,a,b,0.7000", "4,b,b,0.7000"],
        "confusion.csv": ["class \\ predicted,a,b,c,d", "a,2,1,0,0", "b,1,1,0,0", "c,2,0,0,0",
                          "d,0,0,0,0"]}
    untrained = report.judge(list("abcd"), [0] * 4, ITEMS, TUNED)["groups"]["unseen"]
    assert untrained["zeroshot"] == untrained["recall"]


# The report --------------------------------------------------------------------------------------

def parsed(path):
    """Its text, and the page as a tree: every tag is closed in order."""
    text = Path(path).read_text(encoding="utf-8")
    return text, ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>"))


def test_report_is_one_page_that_needs_nothing(trained, at, archive):
    before = files(trained / "coop")
    printed = done(trained / "coop", "--out", "report.html", main=report.main)
    after = files(trained / "coop")
    assert {name: after[name] for name in before} == before             # nothing was trained
    text, page = parsed("report.html")
    said = " ".join(page.itertext())
    assert not re.search(r"https?:|<script|<link|url\(|@import|<b>x", text)
    assert "<b>x</b>" in said and "cow boy" in said and '"&\'' in said  # as text, not as tags
    assert str(trained) not in text and str(archive) not in text        # no path of the machine
    assert "[u_1] [u_2] <b>x</b>." in said and "7 to 2 a class (the folder's own counts)" in said
    assert 0 < text.count("data:image/jpeg;base64,") == len(list(page.iter("img")))
    result = told(trained / "coop/result.json")
    rows = read(trained / "coop/evaluation/all/predictions.csv")
    right = sum(row["class"] == row["predicted"] for row in rows)
    low, high = evaluate.wilson(right, len(rows))
    words = f"{result['all']:.1f} % (95 % interval {low:.1f} to {high:.1f}, 13 test"
    assert words in said and f"accuracy           {words}" in printed
    assert f"zero-shot CLIP     {result['zeroshot']['all']:.1f} %, mean over classes" in printed
    for row in read(trained / "coop/evaluation/all/per_class.csv"):
        mine = [r["predicted"] == row["class"] for r in rows if r["class"] == row["class"]]
        recall, n = 100 * sum(mine) / len(mine), TRAINED[row["class"]]
        assert list(row.values())[1:5] == [
            str(n), "few" if n == 2 else "medium", str(len(mine)), f"{recall:.2f}"]
        assert f"{n} trained, {len(mine)} tested: {recall:.0f} (zero-shot " in said
        assert f'<meter max="100" value="{recall:.1f}"></meter> tuned' in text
    shown = re.findall(r"(\d+) trained, \d+ tested", said)
    assert shown == sorted(shown, reverse=True) == ["7", "7", "4", "2"]         # frequent first


def test_report_on_another_dataset(trained, at):
    """What trained is told by the class's name; the file is that of evaluate.py's other task."""
    write_classes(at / "barn", {"bee": 5, "owl": 5})
    done(trained / "coop", "--target", "barn", main=report.main)
    rows = read(trained / "coop/evaluation/barn/per_class.csv")
    assert [list(row.values())[:2] for row in rows] == [["bee", "2"], ["owl", "0"]]
    assert "bee" in parsed(trained / "coop/evaluation/report-barn.html")[0]
    done(trained / "coop", "--task", "cross-dataset", "--targets", "barn", main=evaluate.main)
    found = told(trained / "coop/evaluation/cross-dataset.json")["results"]["barn"]
    rows = read(trained / "coop/evaluation/barn/predictions.csv")
    right = sum(row["class"] == row["predicted"] for row in rows)
    assert found["accuracy"] == 100 * right / len(rows) and found["test_images"] == len(rows)


def test_where_a_photo_was_taken_is_not_in_the_page(at):
    exif = Image.Exif()
    exif[0x010E] = "secret"                                             # the image's description
    photo = picture(1).resize((400, 200))
    photo.save("a.jpg", exif=exif, comment=b"secret", xmp=b"secret")
    assert Path("a.jpg").read_bytes().count(b"secret") == 3
    shown = report.figure(data.open_picture("a.jpg", exif=True), "a.jpg, 90 % sure")
    content = base64.b64decode(re.search(r'base64,([^"]+)', shown)[1])
    assert b"secret" not in content and Image.open(io.BytesIO(content)).size == (160, 80)


def test_report_of_what_was_not_trained(trained, at, archive):
    done("--method", "zeroshot", "--dataset", trained / "farm", "--backbone", archive, "--out", "r")
    done("r", main=report.main)
    text, _ = parsed("r/evaluation/report.html")
    assert "gain" not in text


FACTS = {"accuracy": 71.6, "accuracy_interval": (60.4, 80.5), "zeroshot": 62.4,
         "gain": {"low": 1, "high": 2, "points": 1.5, "better": 3, "worse": 2},
         "mean_recall": 61.6, "zeroshot_mean_recall": 75.6, "groups": {}, "test_images": 220,
         "calibration_error": 5, "review": None,
         "per_class": [("name", 1, "few", n, 0.0, 0.0) for n in (0, 1, 9, 10, 200)]}


def test_recalls_of_few_test_images_are_called_hints():
    rows = dict(report.rows_of(FACTS))
    assert rows["hints only"] == "the recalls of 2 classes with fewer than 10 test images"
    assert rows["gain"].endswith("(95 % interval +1.0 to +2.0): a gain larger than the test noise; "
                                 "3 images are right only by the run, 2 only by zero-shot CLIP")
    rows = dict(report.rows_of(FACTS | {"gain": None, "per_class": FACTS["per_class"][3:]}))
    assert not rows.keys() & {"gain", "hints only", "rare classes"}


@pytest.mark.parametrize("images, low, high, adjusted, said", [
    (10, -30, -1, False, (True, True)), (10, -30, -1, True, (True, False)),
    (10, -30, 1, False, (False, False)), (9, -30, -1, False, (False, False))])
def test_rare_classes_lost_where_their_own_images_say_so(images, low, high, adjusted, said):
    rare = {"images": images, "gain": {"low": low, "high": high, "points": -9}, "classes": 1,
            "recall": 0, "zeroshot": 9, "calibration_error": 1}
    rows = dict(report.rows_of(FACTS | {"groups": {"few": rare}, "logit_adjust": adjusted}))
    words = rows.get("rare classes", "")
    assert ("recognised worse than by" in words, "--logit-adjust" in words) == said


# Photos and exports ------------------------------------------------------------------------------

def test_photos_go_into_a_csv_file(trained, at):
    write_classes(at / "new" / "deep", {"er": 2})
    upright = picture(9, 40)
    upright.save("new/a.png")
    exif = Image.Exif()
    exif[0x0112] = 3                                                    # stored upside down
    upright.rotate(180).save("new/b.png", exif=exif)
    Path("new/c.heic").write_bytes(b"x")
    Path("new/d.jpg").write_bytes(b"broken")
    Path("new/notes.txt").write_text("x")
    printed = done(trained / "coop", "new", "--out", "p.csv", main=predict.main)
    assert "warning: 1 HEIC files passed over, first new/c.heic: convert to JPEG" in printed
    assert "warning: new/d.jpg: not a readable picture" in printed
    rows = read("p.csv")
    assert [row.pop("picture") for row in rows] == [
        "new/a.png", "new/b.png", "new/d.jpg", "new/deep/er/er_1.png", "new/deep/er/er_2.png"]
    assert rows[0] == rows[1] != rows[3] and [*rows[2].values()][:8] == ["not read", *[""] * 7]
    learner, _ = evaluate.load_run(trained / "coop")
    view = data.transform(learner.clip.visual.resolution, train=False)
    logits = textbook.forward(learner, view(upright)[None])[0][0]
    p, order = logits.softmax(dim=0).sort(descending=True)
    names = [NAMES[k] for k in order]
    assert [rows[0][f"class_{k}"] for k in (1, 2, 3, 4)] == names
    assert [float(rows[0][f"probability_{k}"]) for k in (1, 2, 3, 4)] == pytest.approx(
        p.tolist(), abs=2e-4)
    assert f"new/a.png: {names[0].replace('_', ' ')} {100 * p[0]:.1f} %, " in printed


def test_photos_with_names_never_trained(trained, at):
    """One name a line, or train.py's `folder<TAB>name`; CoCoOp's texts are each photo's own."""
    picture(3).save("photo.png")
    words = [trained / "cocoop", "photo.png", "--classnames"]
    Path("names.txt").write_bytes("\ufeffgrüner Frosch\n\n n2\tred fox \nsea_lake\n".encode())
    shown = re.findall(r"(\w+ \w+) [\d.]+ %", done(*words, "names.txt", main=predict.main))
    assert sorted(shown) == ["grüner Frosch", "red fox", "sea lake"]
    Path("long.txt").write_text("cat " * 90)
    assert "tokens where CLIP takes 77" in refused(*words, "long.txt", main=predict.main)


def test_texts_classify_in_numpy_as_the_run_does(trained, at, archive):
    assert "4 class texts" in done(trained / "coop", "--texts", "texts.npz", main=export.main)
    kept = dict(numpy.load("texts.npz", allow_pickle=False))
    g = kept["g"]
    assert g.dtype == numpy.float32 and g.shape == (4, 64)
    assert (kept["method"], kept["backbone"]) == ("coop", str(archive))
    assert list(kept["prompts"]) == [f"[u_1] [u_2] {n.replace('_', ' ')}." for n in NAMES]
    assert numpy.allclose((g ** 2).sum(axis=1), 1, atol=1e-5)
    clip = clip_model.load(archive)
    view = data.transform(clip.visual.resolution, train=False)
    done(trained / "coop", "--out", "report.html", main=report.main)
    for row in read(trained / "coop/evaluation/all/predictions.csv"):
        image = Image.open(trained / "farm" / row["picture"]).convert("RGB")
        z = clip.encode_image(view(image)[None])[0].detach().double().numpy()
        e = numpy.exp(g.astype(float) @ (z / (z @ z) ** .5) / float(kept["temperature"]))
        p = e / e.sum()
        assert kept["classnames"][p.argmax()] == row["predicted"]
        assert p.max() == pytest.approx(float(row["probability"]), abs=2e-4)
    Path("names.txt").write_text("newt\nowl\n")
    done(trained / "coop", "--texts", "more.npz", "--classnames", "names.txt", main=export.main)
    assert list(numpy.load("more.npz", allow_pickle=False)["classnames"]) == ["newt", "owl"]
    assert "tower is tuned too" in done(trained / "maple", "--texts", "t.npz", main=export.main)


def test_features_give_the_runs_own_numbers(at, archive):
    write_classes(at / "pets", dict.fromkeys("abcd", 6))
    done("--method", "maple", "--epochs", 1, "--classes", "base", "--dataset", "pets", "--backbone",
         archive, "--out", "run")
    result = told("run/result.json")
    done("run", "--features", "f.npz", main=export.main)
    saved = dict(numpy.load("f.npz", allow_pickle=False))
    assert saved["part"].tolist() == ["base"] * 2 + ["novel"] * 2
    assert saved["classnames"].tolist() == list("abcd") and str(saved["method"]) == "maple"
    assert [name[0] for name in saved["pictures"]] == ["abcd"[k] for k in saved["y"]]
    for part, mid, first in (("base", "delta_mid", 0), ("novel", "novel_delta_mid", 2)):
        rows = (saved["y"] // 2 * 2) == first
        y, cosines = saved["y"][rows] - first, saved["z"][rows] @ saved["g"][first:first + 2].T
        assert 100 * (cosines.argmax(axis=1) == y).mean() == pytest.approx(result[part], abs=1e-4)
        assert cosines[range(len(y)), y].mean() - 1 == pytest.approx(result[mid], abs=1e-4)
    done("run", main=report.main)
    both = parsed("run/evaluation/report.html")[0].split("<th>harmonic mean</th><td>")[1]
    base, novel = result["base"], result["novel"]
    assert both.startswith(f"{2 * base * novel / (base + novel or 1):.2f} % of base and novel")


def test_cocoops_texts_are_averaged_over_images(trained):
    """Image by image: each has texts of its own."""
    learner, settings = evaluate.load_run(trained / "cocoop")
    dataset = evaluate.load_dataset(trained / "cocoop", settings, None)
    frozen = evaluate.FrozenFeatures(dataset)
    z, _, g = export.image_and_text_features(learner, dataset, list(range(4)), frozen)
    mean = torch.stack([learner.text_features(z_n[None])[0] for z_n in z]).mean(dim=0)
    assert len(z) == 13
    torch.testing.assert_close(g, mean.detach(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("tool, run, words, line", [
    (predict, "coop", ["none.png"], "none.png: picture not found"),
    (predict, "coop", ["."], "expected pictures in it (.jpg "),
    (predict, "coop", ["empty.txt"], "empty.txt: not a readable picture"),
    (predict, "coop", ["a.png", "--out", "there"], "there: expected a name that ends in .csv"),
    (predict, "coop", ["a.png", "--out", "{run}/log.csv"], "or what a run left there"),
    (predict, "coop", ["a.png", "--classnames", "empty.txt"], "empty.txt: expected class names"),
    (export, "coop", ["--texts", "t.npz", "--features", "f.npz"], "not allowed with argument"),
    (export, "coop", ["--texts", "t.txt"], "t.txt: expected a name that ends in .npz"),
    (export, "coop", ["--features", "f.npz", "--classnames", "n"], "--classnames goes with"),
    (export, "cocoop", ["--texts", "t.npz"], "CoCoOp makes its class texts anew for each image"),
    (report, "coop", ["--out", "page.txt"], "expected a name that ends in .html"),
    (report, "farm", [], "is no finished run")])
def test_refused_with_one_line(trained, at, tool, run, words, line):
    Path("empty.txt").write_text("\n\n")
    before = files(at)
    words = [word.format(run=trained / run) for word in words]
    assert line in refused(trained / run, *words, main=tool.main)
    assert files(at) == before
