"""Photos of one's own: natural counts, the kept split, duplicates, words a CLIP never saw."""
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from small_runs import done, read, refused, write_classes

import clip_model
import data
import evaluate
import train
from assets import photos

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
    assert "drawn     33 training images: no limit of shots, seed 1, the folder's own counts" in out


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
