"""Photos of one's own: folders, class names, natural counts, the kept split, twins, odd words."""
import json
import os
import shutil
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from small_runs import call, done, files, read, refused, write_classes
from test_data import counted, pictures_in, write

import clip_model
import data
import evaluate
import train
from assets import report

LONG_TAIL = {"ant": 5, "bee": 40, "cow": 10}            # 60 % train: 3, 24, 6
COOP = ["--method", "coop", "--n-ctx", 2, "--epochs", 1]


@pytest.fixture
def folder(at):
    return write_classes(at / "farm", LONG_TAIL)


# A folder as a dataset ----------------------------------------------------------------------------

ODD = ["big dog", "café", "cafe", "Ärger", "under_score", "7", "ñandú", "日本", "q-w", "a.b", "x'y"]


def test_a_folder_with_odd_names(tmp_path):
    on_disk = {unicodedata.normalize("NFD" if i % 2 else "NFC", name): 5
               for i, name in enumerate(ODD)}
    write(tmp_path / "my pets", pictures_in(on_disk) | {
        "notes.txt": "x", "7/list.csv": "1,2", ".hidden/x.jpg": "no", "a.b/z.HEIC": "x"})
    before = files(tmp_path)
    dataset = data.load(str(tmp_path / "my pets"))
    assert dataset.classnames == sorted(ODD) and dataset.name == "my pets" and dataset.own
    assert not dataset.base_novel and not dataset.official_split and "seed 1" in dataset.split
    assert counted(dataset.train, 11) == [3] * 11 and counted(dataset.test, 11) == [2] * 11
    for picture, label in dataset.train + dataset.test:
        assert unicodedata.normalize("NFC", picture.split("/")[0]) == dataset.classnames[label]
        assert dataset.open(picture).size == (12, 8)
    assert dataset.notes == [
        "3 files that are not read as pictures ignored, first 7/list.csv",
        "1 of these are HEIC: convert to JPEG to use them, first a.b/z.HEIC"]
    assert data.load(tmp_path / "my pets").train == dataset.train
    assert data.load(tmp_path / "my pets", seed=2).train != dataset.train
    assert files(tmp_path) == before                        # nothing of ours in a user's folder


@pytest.mark.parametrize("parts, sizes, note", [
    ({"train": {"a": 2, "b": 3}, "test": {"a": 2, "b": 1}}, [[2, 3], [0, 0], [2, 1]], None),
    ({"train": {"a": 2, "b": 3}, "val": {"a": 1}, "test": {"a": 4, "b": 1}},
     [[2, 3], [1, 0], [4, 1]], None),
    ({"train": {"a": 2, "b": 1}, "val": {"a": 1, "b": 3}}, [[2, 1], [0, 0], [1, 3]],
     "val/ is used for testing"),
    ({"train": {"a": 2, "b": 1}, "test": {"a": 1}}, [[2, 1], [0, 0], [1, 0]],
     "1 of 2 classes have no test picture: b")])
def test_a_folder_that_comes_divided(parts, sizes, note, tmp_path):
    for part, counts in parts.items():
        write(tmp_path, pictures_in(counts, part + "/"))
    dataset = data.load(tmp_path)
    found = dataset.train, dataset.val, dataset.test
    assert [counted(items, len(sizes[0])) for items in found] == sizes
    assert dataset.train[0] == ("train/a/0.jpg", 0)
    assert dataset.notes == [] if note is None else note in dataset.notes[0]


@pytest.mark.parametrize("names, fault", [
    (["a/1.jpg", "a/2.jpg", "empty one/x.txt"], "empty one: class folder without a picture"),
    (["a/1.jpg", "c/1.heic"], "c: class folder without a picture.*convert to JPEG"),
    (["train/a/1.jpg", "test/a/1.jpg", "test/b/0.jpg", "test/c/0.jpg"],
     "test/b/0.jpg of class 'b', 'c', none of the 1 classes of train"),
    (["train/a/1.jpg", "other/1.jpg"], "train/ without test/"),
    (["a/1.jpg", "a/2.jpg", "b/0.jpg"], "1 classes have one picture only, b/0.jpg"),
    (["1.jpg", "2.jpg", "3.jpg"], "expected one sub-folder for each class, found 3 loose files"),
    (["a/1.jpg", "a/2.jpg", "\u200b/1.jpg", "\u200b/2.jpg"], "can't be seen"),
    ([os.fsdecode(b"a\xff/1.jpg")], r"xff|udcff.*not in UTF-8; rename it"),
    ([os.fsdecode(b"a/\xff.jpg")], r"xff|udcff.*not in UTF-8; rename it"),
    ([], "no such folder")])
def test_a_folder_refused(names, fault, tmp_path):
    try:
        write(tmp_path / "mine", dict.fromkeys(names))
    except OSError:
        pytest.skip("this file system has no such names")
    with pytest.raises((ValueError, FileNotFoundError), match=fault) as caught:
        data.load(tmp_path / "mine")
    assert "\n" not in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize("lines, expected", [
    ("b\tbig cat\né\tan accent\na\tsmall cat\n", ["small cat", "big cat", "an accent"]),
    ("a\t1st\nb\t2nd\né\t1st\n", ["1st", "2nd", "1st"]),
    ("\ufeffa\t1st\r\n\r\nb\t2nd\r\né\t3rd", ["1st", "2nd", "3rd"]),    # as Windows' editor has it
    ("1st\n2nd\n3rd\n", "got 3 lines; does not fit: 1st"),     # of which folder?
    (b"1st\n2nd\ncaf\xe9\n", "expected a text file in UTF-8"),
    ("1st\n2nd\n", "each of 3 class folders, got 2 lines$"),
    ("a\t\u200b\nb\ty\né\tz\n", "class 0 is named .*can't be seen"),
    ("a\t\nb\ty\né\tz\n", "class 0 is named ''"), ("a\tx\nb\ty\nc\tz\n", "does not fit: c"),
    ("a\tx\na\ty\nb\tz\n", "does not fit")])
def test_class_names_from_a_file(lines, expected, tmp_path):
    counts = {"b": 4, "a": 4, unicodedata.normalize("NFD", "é"): 4}
    write(tmp_path, pictures_in(counts, "mine/") | {"names.txt": lines})
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            data.load(tmp_path / "mine", classnames=tmp_path / "names.txt")
        return
    dataset = data.load(tmp_path / "mine", classnames=str(tmp_path / "names.txt"))
    assert dataset.classnames == expected
    twice = any("1 class names stand for several classes" in note for note in dataset.notes)
    assert twice == (len(set(expected)) < 3)


def test_class_names_from_a_file_are_for_folders(folder):
    with pytest.raises(FileNotFoundError):
        data.load(folder, classnames="none.txt")
    with pytest.raises(ValueError, match="eurosat has its own names"):
        data.load("eurosat", folder, classnames="names.txt")


# Counts -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("shots, tau, counts", [
    (None, None, [3, 24, 6]),                   # natural: nothing is cut, not even at 16
    (8, None, [3, 8, 6]),                       # tau 1, the least of 8 and what there is
    (None, 0.25, [3, 16, 6]),                   # by hand 16 8 4 in the order bee, cow, ant
    (8, 0.25, [2, 8, 4]),                       # 8 4 2
    (8, 0.04, [1, 8, 1])])                      # int(1.6), int(0.32): at least 1
def test_the_head_is_the_largest_class_and_counts_are_kept_where_none_are_asked(
        folder, shots, tau, counts):
    dataset = data.load(folder)
    shots, tau = data.shots_and_tau(str(folder), shots, tau)
    items = data.training_items(dataset, [0, 1, 2], shots, tau, seed=1)
    assert counted(items, 3) == counts
    assert len(set(items)) == len(items) and set(items) <= set(dataset.train)


def test_published_datasets_and_the_world_keep_16_and_1():
    assert data.shots_and_tau("world", None, None) == (16, 1.0)
    assert data.shots_and_tau("eurosat", None, None) == (16, 1.0)
    plan = train.parse(["--dataset", "world", "pets", "--seed", "1", "2"])
    assert Counter((run.dataset, run.shots, run.tau) for run in plan) == {
        ("world", 16, 1.0): 2, ("pets", None, None): 2}


@pytest.mark.parametrize("words, names", [
    ("", "world-maple-tau1-seed1"), ("--dataset a/pets", "pets-maple-natural-seed1"),
    ("--shots 16 --epochs 10 --lr 0.0009 --n-ctx 2 --backbone tiny", "world-maple-tau1-seed1"),
    ("--device cpu --data-root x --out y", "world-maple-tau1-seed1"),       # where a run works
    ("--dataset pets --shots 4", "pets-maple-tau1-seed1-shots4"),
    ("--dataset pets --shots 16", "pets-maple-tau1-seed1"),
    ("--method coop --epochs 5 --batch-size 4", "world-coop-tau1-seed1-epochs5-batch_size4"),
    ("--method cocoop --npt --w2 .5 --lr 1e-3", "world-cocoop-npt-tau1-seed1-w20.5-lr0.001"),
    ("--backbone ViT-B/16 --precision float32 --test-images 3 --classes all --reduction sum --npt",
     "world-maple-npt-tau1-seed1-reductionsum-classesall-backboneViT_B_16-test_images3-"
     "precisionfloat32"),
    ("--method coop --ctx-init ../up/x --backbone /some/where/my-clip.pt --class-specific",
     "world-coop-tau1-seed1-ctx_initx-class_specific-backbonemy_clip"),
    ("--seed 1 2 --draw-seed 1",
     "world-maple-tau1-seed1-draw_seed1 world-maple-tau1-seed2-draw_seed1"),
    ("--lr 0.0035 0.1 --epochs 2",          # of a grid's axis also the usual value, as ever
     "world-maple-tau1-seed1-epochs2-lr0.0035 world-maple-tau1-seed1-epochs2-lr0.1")])
def test_a_runs_name_has_every_setting_that_is_not_the_usual_one(words, names):
    assert [run.name for run in train.parse(words.split())] == names.split()


# A run --------------------------------------------------------------------------------------------

def test_a_run_says_what_trains_tests_and_stays_unused(folder, archive):
    words = [*COOP, "--dataset", folder, "--backbone", archive]
    printed = done(*words, "--seed", 7)
    assert "photos    33 train, 22 test\n" in printed and "byte for byte" not in printed
    assert "images    33: 3 24 6; min/max = 0.125 where the folder's own counts" in printed
    run = Path("runs/farm-coop-natural-seed7-n_ctx2-epochs1-backbonesmall")
    for name in ("run.json", "result.json"):
        settings = json.loads((run / name).read_text())
        assert settings["tau"] is settings["shots"] is None
        assert settings["class_counts"] == [3, 24, 6]
    kept, dataset = json.loads((run / "split.json").read_text()), data.load(folder, seed=7)
    for part in ("train", "val", "test"):                   # the split is kept as it was
        assert [(name, label) for name, label, _ in kept[part]] == getattr(dataset, part)
        assert all(sorted(LONG_TAIL)[label] == name for _, label, name in kept[part])
    drawn = {row["picture"] for row in read(run / "drawn.csv")}
    assert drawn == {name for name, _, _ in kept["train"]}
    printed = done(*words, "--tau", 0.25, "--shots", 8, "--out", "cut")
    assert "photos    14 train, 22 test; 19 unused, beyond --tau, --shots or --classes" in printed
    assert json.loads(Path("cut/result.json").read_text())["tau"] == 0.25
    out = done(folder, main=data.main)
    assert "33 training images: all shots, seed 1, the folder's own counts" in out


def test_a_folders_own_val_is_unused_and_said(at, archive):
    for part, n in (("train", 4), ("val", 3), ("test", 2)):
        write_classes(at / "split" / part, {"ant": n, "bee": n})
    printed = done(*COOP, "--dataset", "split", "--backbone", archive)
    assert "photos    8 train, 4 test; 6 unused in val/" in printed


def test_photos_that_came_after_the_run_are_said_and_change_nothing(folder, archive):
    """Those that --test-images left out did not come after it."""
    done(*COOP, "--dataset", folder, "--backbone", archive, "--out", "one", "--test-images", 1)
    assert "not in the run's" not in done("one", "--out", "before", main=evaluate.main)
    for name in ("ant/zz.png", "bee/zz.png", "bee/.hidden.png", ".cache/a.png", "bee/notes.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(folder / "ant/ant_1.png", folder / name)
    printed = done("one", "--out", "after", main=evaluate.main)
    assert f"note      2 photos in {folder} are not in the run's split.json" in printed
    assert "first ant/zz.png; train anew to use them" in printed
    assert files(Path("before")) == files(Path("after"))


def test_twins_are_named_before_training_and_in_every_evaluation(folder, archive):
    """The same bytes in train and test, or in two classes wherever; two of one class are none."""
    dataset = data.load(folder)
    assert data.twins(dataset) == ([], []) and not dataset.notes
    (ant, _), (other, _) = dataset.train[:2]
    (cow, _), bee, bee_2 = dataset.train[-1], dataset.test[3][0], dataset.test[4][0]
    cow_2 = dataset.test[-1][0]
    shutil.copy(folder / bee_2, folder / cow_2)             # both of the test part
    for name in (other, cow, bee):
        shutil.copy(folder / ant, folder / name)
    tested, torn = [(bee, ant)], [(ant, cow), (ant, bee), (bee_2, cow_2)]
    assert data.twins(dataset) == (tested, torn)
    run, new = "runs/farm-coop-natural-seed1-n_ctx2-epochs1-backbonesmall", "--targets"
    words = [*COOP, "--dataset", folder, "--backbone", archive]
    grid = ["--seed", 1, 2, "--draw-seed", 1, "--out", "g"]         # once for all its runs
    for command, main in ((words, train.main), ([*words, *grid], train.main),
                          ([run], evaluate.main), ([run], report.main), ([folder], data.main),
                          ([run, "--task", "cross-dataset", new, folder], evaluate.main)):
        out = done(*command, main=main)
        assert out.count("byte for byte") == 2
        assert (f"1 test photos are training photos too, byte for byte, first {bee} = {ant}: "
                "remove one of each: what trained is no test\n" in out)
        assert f"3 photos stand in two classes, byte for byte, first {ant} = {cow}: one of" in out
    assert "coop on farm, split: made here: 60/40 % of each class's sorted pictures" in out
    assert "test part alone is tested; assets/report.py RUN --photos FOLDER tests all" in out


def test_a_run_says_what_it_is_before_it_reads_photos_and_names_all_that_are_bad(folder, archive):
    for i in range(1, 8):
        (folder / f"bee/bee_{i}.png").write_bytes(b"no picture %d" % i)
    words = [*COOP, "--dataset", folder, "--backbone", archive]
    for grid, times in (([], 1), (["--seed", 1, 2], 0)):            # they are known already
        code, out, err = call(train.main, *words, *grid)
        assert (code, err.count("7 of 55 pictures can't be used, first")) == (2, 1)
        lines = [out.count(f"bee_{i}.png: not a readable picture") for i in range(1, 8)]
        assert lines == [times] * 7
        assert grid or out.startswith("coop on farm: 3 all classes")
    assert not list(Path("runs").glob("*/run.json"))                # no folder is held


def test_pictures_of_one_size_are_no_twins_and_read_once_each(tmp_path, monkeypatch):
    folder, read_files = write_classes(tmp_path / "bitmaps", {"ant": 4, "bee": 4}, "bmp"), []
    checksum = clip_model.file_sha256
    monkeypatch.setattr(clip_model, "file_sha256",
                        lambda path: read_files.append(path) or checksum(path))
    dataset = data.load(folder)
    assert len({dataset.path(name).stat().st_size for name, _ in dataset.train}) == 1
    assert dataset.notes == [] and len(read_files) == len(set(read_files)) == 8
    shutil.copy(folder / "ant/ant_1.bmp", folder / "bee/bee_1.bmp")
    assert data.load(folder).notes[-1].startswith("1 photos stand in two classes, byte for byte")


def test_words_that_the_tiny_clip_never_saw_are_named(at):
    write_classes(at / "farm", {"red circle": 4, "axolotl_pond": 4})
    line = refused(*COOP, "--dataset", "farm", "--backbone", "tiny")
    assert "never saw 2 words of the class names, first axolotl, pond" in line
    assert not Path("runs").exists()
    train.check_words(clip_model.load("tiny"), data.load("world").classnames)
