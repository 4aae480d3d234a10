"""What people ask of their own photos: assets/photos.md's commands run, its answers by hand."""
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_runs import done, read, refused, told, write_classes

import clip_model
import data
import evaluate
import train
from assets import export, predict, probe, report, world

ROOT = Path(train.__file__).parent
PAGE = (ROOT / "assets/photos.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, flags=re.M | re.S)
SCRIPTS = {"data.py": data, "train.py": train, "evaluate.py": evaluate, "assets/report.py": report,
           "assets/predict.py": predict, "assets/export.py": export, "assets/probe.py": probe}
RUN, REVIEW = Path("runs/photos-maple-npt-natural-seed1"), "evaluation/all/review.json"


def save(folder, part, counts):
    """The first pictures of the little world's first classes, in folders named after them."""
    names, parts, pictures = world.draw("world")
    for label, n in enumerate(counts):
        (folder / names[label]).mkdir(parents=True)
        for i, name in enumerate([name for name, k in parts[part] if k == label][:n]):
            pictures[name].save(folder / names[label] / f"{i}.png")


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """photos.md's commands in order, on the embedded world's CLIP -> the folder, what they said."""
    root, said = tmp_path_factory.mktemp("walked"), {}
    save(root / "photos", "train", (10, 6, 5, 4, 3))
    save(root / "next_year", "test", (5, 4, 3, 2, 1))
    shutil.copytree(root / "next_year" / "brown circle", root / "new")
    shutil.copytree(root / "photos", root / "path/to/photos")
    lines = "".join(block for kind, block in BLOCKS if not kind).replace("\\\n", " ").splitlines()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(train, "usual_backbone", lambda name: "tiny")
        for script, *words in (line.split()[1:] for line in lines if line.startswith("python ")):
            said[" ".join([script, *words])] = done(*words, main=SCRIPTS[script].main)
    return root, said


def test_every_command_of_the_page_runs_and_it_stays_one_page(walked):
    root, said = walked
    assert len(PAGE.split()) <= 900 and {command.split()[0] for command in said} == {*SCRIPTS}
    grid, next_year = (next(out for command, out in said.items() if option in command)
                       for option in ("--npt off on", "--photos next_year"))
    assert "NPT minus none, paired by seed" in grid
    assert "natural-draw_seed1: mean over classes  " in grid
    assert "split: all 15 pictures of the folder" in next_year and ", 15 test images)" in next_year
    rows = read(root / RUN / "evaluation/all-of-next_year/predictions.csv")
    threshold = told(root / RUN / REVIEW)["threshold"]              # the run's is checked, not made
    sure = [row for row in rows if float(row["probability"]) >= threshold]
    right = sum(row["class"] == row["predicted"] for row in sure)
    assert (f"below {threshold:.4f}, the run's threshold: at {15 - len(sure)} of these 15 images; "
            f"of the {len(sure)} others {right} are right (95 % interval ") in next_year
    assert "chosen on them" not in next_year and len(rows) == 15 > len(sure) > 0
    assert [p.name for p in (root / RUN).glob("evaluation/*.html")] == [     # no other's page
        "report-all-of-next_year.html"]
    second, = [float(row["seconds"]) for row in read(ROOT / "assets/speed.csv")
               if (row["case"][:21], row["form"], row["dtype"])
               == ("step, maple, 50 class", "fast", "float32")]
    assert f"a step took {second:.1f} s" in PAGE and round(120 / 4 * 5 * second / 60) == 5


def test_the_lines_of_python_classify_as_the_commands_do(walked, monkeypatch, capsys):
    """The lines for OpenAI's package too, on a stand-in for it."""
    monkeypatch.chdir(walked[0])
    own, openai = (block.replace("photo.jpg", "new/0.png") for kind, block in BLOCKS if kind)
    names, row = {}, read("predictions.csv")[0]
    Path("broken.png").write_bytes(b"no picture")
    exec(own.replace("new/0.png", "broken.png"), names)
    assert "not a readable picture" in names["answer"] and "name" not in names
    exec(own, names)
    assert row["picture"] == "new/0.png" and names["name"] == row["class_1"]
    assert f"{names['probability']:.4f}" == row["probability_1"]
    clip = clip_model.load("tiny")
    view = data.transform(clip.visual.resolution, train=False)
    package = SimpleNamespace(load=lambda name, device: (clip, view))
    monkeypatch.setitem(sys.modules, "clip", package)
    exec(openai, {})
    name = capsys.readouterr().out.strip()
    coop = done("runs/photos-coop-npt-natural-seed1", "new/0.png", main=predict.main)
    assert coop.startswith(f"new/0.png: {name} ")


def test_a_colleague_needs_four_files(walked, at):
    """Without the photos: the same rows; and the threshold of review, as it stands or is given."""
    for name in ("prompts.pt", "run.json", "result.json", REVIEW):
        (at / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(walked[0] / RUN / name, at / "run" / name)
        assert f"`{name}`" in PAGE
    shutil.copytree(walked[0] / "new", "new")
    done("run", "new", "--out", "p.csv", main=predict.main)
    assert read("p.csv") == read(walked[0] / "predictions.csv")
    p = sorted(float(row["probability_1"]) for row in read("p.csv"))
    between = (p[1] + p[2]) / 2
    for threshold, option, marked in (("null", (), 4), (between, (), 2), (0, ("--review", 1), 4)):
        Path("run", REVIEW).write_text(f'{{"threshold": {threshold}}}')
        out = done("run", "new", *option, "--out", "p.csv", main=predict.main)
        assert [row["review"] for row in read("p.csv")].count("yes") == marked
        shown = between if marked == 2 else 1
        assert f"review    {marked} of 4 photos: below {shown:.4f}, or not read\n" in out
    Path("run", REVIEW).unlink()
    out = done("run", "new", "--out", "p.csv", main=predict.main)
    assert "no threshold of review is known" in out and "review" not in read("p.csv")[0]
    for damaged in ("[]", '{"threshold": NaN}', '{"threshold": "a"}'):
        Path("run", REVIEW).write_text(damaged)
        assert "review.json: expected a threshold" in refused("run", "new", main=predict.main)


def test_photos_of_next_year_have_folders_that_the_run_knows(walked, at, archive):
    write_classes(at / "next", {"pink square": 1, "foo": 1, "bar": 2})
    line = refused(walked[0] / RUN, "--photos", "next", main=report.main)
    assert "2 class folders have no name of this run's classes: bar, foo; it knows blue" in line
    out = done(walked[0] / RUN, "--photos", walked[0] / "photos", main=report.main)
    assert "17 of these photos trained the run, byte for byte" in out
    assert "take them out, what trained is no test" in out
    write_classes(at / "old" / "codes", {"a": 5, "b": 5})       # a folder is no other's name
    Path("names.txt").write_text("a\tb\nb\tz\n")
    done("--method", "zeroshot", "--dataset", "old/codes", "--classnames", "names.txt",
         "--backbone", archive, "--out", "run")
    write_classes(at / "codes", {"a": 1, "b": 3})
    done("run", "--photos", "codes", main=report.main)
    rows = read("run/evaluation/all-of-codes/per_class.csv")
    assert {row["class"]: row["test_images"] for row in rows} == {"b": "1", "z": "3"}
    assert "trained on 0 pictures; 0 are here" in refused("run", main=probe.main)


def test_review_begins_where_95_of_100_are_right_by_hand():
    confidence = torch.tensor([.9] * 18 + [.8, .8, .7, .6])
    right = torch.tensor([True] * 19 + [False, False, True])
    # from .8 on 19 of 20 are right, which is 95 %; from .7 on 19 of 21, from .6 on 20 of 22
    found = report.review_below(confidence, right)
    assert found == {"threshold": pytest.approx(.8), "accepted": 20, "right": 19, "images": 22,
                     "chosen": True}
    said = report.review_words(found)
    assert "below 0.8000: at 2 of these 22 images; of the 20 others 19 are right" in said
    assert "(95 % interval 76 to 99 %, somewhat too good" in said
    kept = report.reviewed(.65, confidence, right)              # another run's: .9, .8 and .7
    assert kept == {"threshold": .65, "accepted": 21, "right": 19, "images": 22, "chosen": False}
    assert "of the 21 others 19 are right (95 % interval 71 to 97 %). " in report.review_words(kept)
    for threshold, words in ((.95, "at 22 of these 22 images. "), (None, "no threshold is known")):
        assert words in report.review_words(report.reviewed(threshold, confidence, right))
    right[0] = False                                            # 17 of 18, 18 of 20
    assert "look at every" in report.review_words(report.review_below(confidence, right))


def of_a_run(npt, seed, accuracy, mean, lr=1, zero=50, tau=None, **more):
    zeroshot = {"all": zero, "mean_recall": zero, "harmonic_mean": None}
    return {"method": "coop", "npt": npt, "dataset": "pets", "seed": seed, "lr": lr, "tau": tau,
            "all": accuracy, "mean_recall": mean, "harmonic_mean": None,
            "zeroshot": zeroshot} | more


def test_npt_minus_none_is_paired_by_seed_by_hand(capsys):
    off = {f"coop-seed{s}": of_a_run(False, s, 50 + 10 * s, 40) for s in (1, 2, 3)}
    on = {f"coop-npt-seed{s}": of_a_run(True, s, 50 + 11 * s, 41 + 1e-6 * s) for s in (3, 1, 2, 4)}
    train.report_differences(off | on | {"coop-npt-seed1-lr2": of_a_run(True, 1, 0, 0, lr=2)})
    out = " ".join(capsys.readouterr().out.split("NPT minus none, ")[1].split())
    out = out.partition("Student")[0]
    # 1, 2 and 3; seed 4 has none beside it: 2 -+ t s / sqrt(3), t = 4.303 of two degrees, s = 1
    assert "coop-npt: accuracy 3 +2.00 -0.48 to +4.48 undecided" in out and "lr2" not in out
    assert "mean over classes 3 +1.00 none undecided" in out    # all alike: no spread that tells
    of_base_and_novel = {f"{npt}-seed{s}": of_a_run(
        npt, s, None, 40 + s * npt, harmonic_mean=50 - (50 + s) * npt, novel_mean_recall=60,
        zeroshot={"harmonic_mean": 48, "mean_recall": 40, "novel_mean_recall": 60})
        for npt in (0, 1) for s in (1, 2)}
    train.report_differences(of_base_and_novel)
    out = capsys.readouterr().out
    rows = out.split("NPT minus none, ")[1].splitlines()    # 12.706 * 0.7071 / sqrt(2) = 6.35
    assert "1: H" in rows[1] and "-51.50  -57.85 to -45.15      worse" in rows[1]
    # 2 * 41 * 60 / 101 = 48.713 and 2 * 42 * 60 / 102 = 49.412, less 48
    assert "1: H of class means" in rows[2] and "+1.06" in rows[2]
    assert out.splitlines()[-1] == "NPT minus none: worse in each."


def test_training_against_zero_shot_and_a_long_tail_against_balanced_images_by_hand(capsys):
    """Student's t of two degrees is 4.303: 5, 6, 7 have 6 -+ 4.303 / sqrt(3) = 2.48."""
    accuracy = {(1, 1): 55, (1, 2): 56, (1, 3): 57, (.01, 1): 48, (.01, 2): 50, (.01, 3): 52}
    train.report_grid({f"coop-tau{tau}-seed{seed}": of_a_run(False, seed, value, value, tau=tau)
                       for (tau, seed), value in accuracy.items()})
    out = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "zero-shot, pets 3 50.00 50.00" in lines
    assert "coop-tau1 3 56.00 ± 2.48 56.00 ± 2.48" in lines
    assert "coop-tau1: accuracy 3 +6.00 +3.52 to +8.48 better" in lines
    assert "coop-tau0.01: accuracy 3 +0.00 -4.97 to +4.97 undecided" in lines
    assert lines.count("coop-tau0.01: accuracy 3 -6.00 -8.48 to -3.52 worse") == 1
    assert lines[-2] == ("runs minus zero-shot CLIP: better in coop-tau1; undecided in "
                         "coop-tau0.01.")
    assert lines[-1] == "a long tail minus balanced images: worse in each."


def test_one_seed_has_no_interval_and_equal_classes_no_second_h(capsys):
    assert evaluate.half_width([7]) is None
    assert train.judged([3.0]) == ("none", "undecided") == train.judged([2.0, 2.0])
    assert train.mean_and_half([3.0]).split() == ["3.00"] and train.mean_and_half([]) == "-"
    zeroshot = {"harmonic_mean": 48, "mean_recall": 40, "novel_mean_recall": 60}
    train.report_differences({"a": of_a_run(False, 1, None, 40, harmonic_mean=48,
                                            novel_mean_recall=60, zeroshot=zeroshot)})
    out = capsys.readouterr().out
    assert "a: H  " in out and "of class means" not in out
