"""What people have: pictures, folders, class names, natural counts, the kept split, odd words."""
import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image
from small_runs import call, done, files, picture, read, refused, write_classes
from test_data import JPEG, RED, counted, encoded, pictures_in, write

import clip_model
import data
import evaluate
import train
from assets import predict, report

LONG_TAIL = {"ant": 5, "bee": 40, "cow": 10}            # 60 % train: 3, 24, 6
COOP = ["--method", "coop", "--n-ctx", 2, "--epochs", 1]


@pytest.fixture
def folder(at):
    return write_classes(at / "farm", LONG_TAIL)


def refusal(words):
    return pytest.raises(ValueError, match=words) if words else contextlib.nullcontext()


# Pictures -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("content", [
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n", b"%PDF-1.4\n",
    *(encoded(RED, kind) for kind in ("ICO", "PCX", "TGA"))])
def test_other_formats_run_nothing_under_a_pictures_name(content, tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: called.append(a) or RED.im)
    with pytest.raises(ValueError, match="a.jpg: not a readable picture"):
        data.open_picture(write(tmp_path, {"a.jpg": content}) / "a.jpg", True)
    assert not called


@pytest.mark.skipif(os.name != "posix", reason="it has no pipes and devices among files")
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "empty", "endless"])
def test_what_is_no_plain_file_is_refused_in_a_moment(kind, tmp_path):
    path = tmp_path / "x.jpg"
    make = {"pipe": os.mkfifo, "folder": os.mkdir, "empty": Path.touch,
            "device": lambda path: path.symlink_to("/dev/zero"),
            "endless": lambda path: path.write_bytes(JPEG[:100]) and os.truncate(path, 2 ** 33)}
    make[kind](path)
    signal.alarm(20)                                    # ends the tests where it hangs
    with pytest.raises(ValueError, match="x.jpg: not a readable picture"):
        data.open_picture(path, True)
    signal.alarm(0)


@pytest.mark.filterwarnings("ignore")
def test_what_pil_would_warn_of_is_read_and_bombs_and_strips_are_refused(tmp_path, monkeypatch):
    """PIL warns from MAX_IMAGE_PIXELS on, 89 million, and refuses twice as many."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    for w, h, words in ((100, 100, ""), (120, 120, ""), (200, 100, ""), (2000, 2, ""),
                        (201, 100, "20100 pixels.*at most 20,000 pixels"),
                        (2001, 2, "2001 x 2 pixels: shrink it")):
        Image.new("L", (w, h), 70).save(tmp_path / "a.png")
        for exif in (True, False):
            with refusal(words):
                assert data.open_picture(tmp_path / "a.png", exif).getpixel((0, 0)) == (70,) * 3


@pytest.mark.parametrize("value, kind, ending, words", [
    *((257 * 120, kind, ending, "") for kind, ending in (
        ("u2", "png"), ("u2", "tif"), (">u2", "tif"), ("i4", "tif"), ("u2", "jp2"), ("u2", "ppm"))),
    *((value, kind, "tif", f"a.tif.*grey from.* to {value}.*save it with 8") for value, kind in (
        (1, "f4"), (60_000, "f4"), (4095, "u2"), (70_000, "i4")))])
def test_more_than_8_bits_come_out_right_or_are_refused(value, kind, ending, words, tmp_path):
    array = np.full((8, 12), value, kind)
    array[0, 0] = 0
    Image.fromarray(array).save(tmp_path / f"a.{ending}")
    with refusal(words):
        opened = data.open_picture(tmp_path / f"a.{ending}", True)
        assert opened.getpixel((0, 0)) == (0, 0, 0)
        assert np.abs(np.subtract(opened.getpixel((9, 5)), 120)).max() <= 1


def test_large_jpegs_of_ones_own_are_decoded_at_a_part_of_their_size(tmp_path):
    """And nobody's small ones, to the byte; 2 x 1344 is the first that may be halved."""
    for height in (2687, 2688):
        picture(height, 64).resize((3000, height)).save(tmp_path / f"{height}.jpg", quality=95)
        whole = Image.open(tmp_path / f"{height}.jpg").convert("RGB")
        own = data.open_picture(tmp_path / f"{height}.jpg", True)
        assert data.open_picture(tmp_path / f"{height}.jpg", False).tobytes() == whole.tobytes()
        assert own.tobytes() == whole.tobytes() if height == 2687 else own.size == (1500, 1344)
    seen = [np.asarray(image.resize((224, 224), Image.BICUBIC), int) for image in (whole, own)]
    assert np.abs(seen[0] - seen[1]).mean() < 1


def test_an_unguarded_script_under_spawn_ends_in_a_line(at, monkeypatch):
    """Its worker runs the script again, up to the first photos that it loads."""
    write_classes(at / "pets", {"cat": 4, "dog": 4})
    data.write("split.json", data.split_text(data.load("pets")))
    Path("script.py").write_text(f"""
import multiprocessing, sys
sys.path.insert(0, {str(Path(data.__file__).parent)!r})
import data
multiprocessing.set_start_method("spawn", force=True)
dataset = data.load("pets")
data.run_script(lambda: len(list(data.batches(dataset, dataset.test, 32, "cuda"))))
""")
    ended = subprocess.run([sys.executable, "-W", "ignore", "script.py"], capture_output=True,
                           text=True, timeout=120)
    first, last = ended.stderr.splitlines()
    assert 'its call under `if __name__ == "__main__":`' in first
    assert last.startswith("error: DataLoader worker") and last.endswith("exited unexpectedly")
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(SystemExit, match="__main__"):
        data.load_kept(Path("split.json"), "pets")


# Folders ------------------------------------------------------------------------------------------

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
    for name, label in dataset.train + dataset.test:
        assert unicodedata.normalize("NFC", name.split("/")[0]) == dataset.classnames[label]
        assert dataset.open(name).size == (12, 8)
    assert dataset.notes == [
        "3 files that are not read as pictures ignored, first 7/list.csv",
        "1 of these are HEIC: convert to JPEG to use them, first a.b/z.HEIC"]
    assert data.load(tmp_path / "my pets").train == dataset.train
    assert data.load(tmp_path / "my pets", seed=2).train != dataset.train
    assert files(tmp_path) == before                        # nothing of ours in a user's folder


def test_photos_below_class_folders_are_read_and_what_the_program_wrote_is_no_class(tmp_path):
    write(tmp_path, pictures_in({"ant/may": 3, "ant/june/late": 4, "ant": 1, "evaluation": 8}) | {
        "runs/x/run.json": "{}", "runs/x/a.png": None, "runs/b.png": None, "features/f.pt": "x",
        "grid/one/result.json": "{}", "grid/features/f.pt": "x", "mine/run.json": "{}",
        "mine/a.png": None, "ant/r/run.json": "{}", "ant/r/a.png": None, "__MACOSX/b/._1.jpg": "x"})
    dataset = data.load(tmp_path)
    assert dataset.classnames == ["ant", "evaluation"]              # with pictures, and no run
    assert counted(dataset.train + dataset.test, 2) == [8, 8]
    assert dataset.notes == [
        "6 folders of a run's or a zip's own files passed over, first __MACOSX",
        "7 pictures in folders below the classes' count for these, first ant/june/late/0.jpg"]


def divided(**parts):
    return pictures_in({f"{part}/{c}": n for part, n in parts.items() for c in "ab"})


@pytest.mark.parametrize("content, train, val, test, note", [
    (pictures_in({"train/a": 2, "train/b": 3, "test/a": 2, "test/b": 1}), [2, 3], [0, 0], [2, 1],
     None),
    (pictures_in({"train/a": 2, "train/b": 3, "val/a": 1, "test/a": 4, "test/b": 1}), [2, 3],
     [1, 0], [4, 1], None),
    (pictures_in({"train/a": 2, "train/b": 1, "val/a": 1, "val/b": 3}), [2, 1], [0, 0], [1, 3],
     "val/ is used for testing"),
    (pictures_in({"train/a": 2, "train/b": 1, "test/a": 1}), [2, 1], [0, 0], [1, 0],
     "1 of 2 classes have no test picture: b"),
    (divided(Train=3, Test=2), [3, 3], [0, 0], [2, 2], None),
    (divided(training=3, testing=2), [3, 3], [0, 0], [2, 2], None),
    (divided(TRAIN=3, valid=1, test=2), [3, 3], [1, 1], [2, 2], None),
    (divided(train=3, Validation=2), [3, 3], [0, 0], [2, 2], "val/ is used for testing"),
    (pictures_in({"bus": 4, "train": 4}), [2, 2], [0, 0], [2, 2], None)])    # a class called train
def test_a_folder_that_comes_divided(content, train, val, test, note, tmp_path):
    dataset = data.load(write(tmp_path, content))
    assert [counted(items, 2) for items in (dataset.train, dataset.val, dataset.test)] == [
        train, val, test]
    assert all(label == (name.split("/")[-2] in ("b", "train")) for name, label in dataset.train)
    assert dataset.notes == [] if note is None else note in dataset.notes[0]


@pytest.mark.parametrize("content, fault", [
    (divided(train=3, test=2, val=1, valid=1), "or with one twice"),
    (divided(Test=2, valid=1), "without train/"), (divided(valid=2), "without train/"),
    (dict.fromkeys(["train/a/1.jpg", "other/1.jpg"]), "train/ without test/"),
    (dict.fromkeys(["train/a/1.jpg", "test/a/1.jpg", "test/b/0.jpg", "test/c/0.jpg"]),
     "test/b/0.jpg of class 'b', 'c', none of the 1 classes of train"),
    (pictures_in({"z/cat": 3, "z/dog": 3}), "one class only, z; expected"),
    (pictures_in({"z/train/cat": 3, "z/test/cat": 3}), "if they lie in that, name it instead"),
    (pictures_in({"train_images": 9}) | {"train.csv": "1,2"}, "a CSV of labels is not read"),
    (pictures_in({"train": 9, "test": 9}) | {"train.csv": "1,2"}, "found 9 loose files"),
    # all that is lacking, in one go
    (pictures_in({"a": 2}) | {f"lack{i}/x": None for i in range(11)},
     "lack0.*lack1.*lack10.*lack2.*lack9: class folder without a picture"),
    (pictures_in({"a": 2} | {f"lack{i}": 1 for i in range(8)}),
     "8 classes have one picture only, lack0.*lack7"),
    (pictures_in({"a": 1}) | {"c/1.heic": None}, "c: class folder without a picture.*convert to"),
    (pictures_in({"a": 2, "\u200b": 2}), "can't be seen"),
    ({os.fsdecode(b"a\xff/1.jpg"): None}, r"xff|udcff.*not in UTF-8; rename it"),
    ({os.fsdecode(b"a/\xff.jpg"): None}, r"xff|udcff.*not in UTF-8; rename it"),
    ({}, "no such folder")])
def test_a_folder_refused(content, fault, tmp_path):
    try:
        write(tmp_path / "mine", content)
    except OSError:
        pytest.skip("this file system has no such names")
    with pytest.raises((ValueError, FileNotFoundError), match=fault) as caught:
        data.load(tmp_path / "mine")
    assert "\n" not in str(caught.value) and str(caught.value).isprintable()


E = unicodedata.normalize("NFD", "é")                   # as a Mac stores it
NO_LINE = "expected a line `folder<TAB>name` for each of "


@pytest.mark.parametrize("folders, text, expected", [
    (["b", "a", E], "b\t2nd\né\t3 rd\na\t1st\n", ["1st", "2nd", "3 rd"]),
    (["b", "a", E], "\ufeffa\t1st\r\n\r\nb\t2nd\r\né\t3rd", ["1st", "2nd", "3rd"]),  # of Windows
    (["b", "a", E], b"1st\n2nd\ncaf\xe9\n", "expected a text file in UTF-8"),
    (["b", "a", E], "1st\n2nd\n", "each of 3 class folders, got 2 lines$"),
    (["b", "a", E], "a\tx\nb\ty\nc\tz\n", "does not fit: c"),
    (["b", "a", E], "a\tx\na\ty\nb\tz\n", "does not fit"),
    ("ab", "a\t\u200b\nb\ty\n", "class 0 is named .*can't be seen"),
    ("ab", "a\t\nb\ty\n", "class 0 is named ''"),
    ("012", "zero\none\ntwo", "got 3 lines; does not fit: "),        # of which folder?
    (["0", "1", "10", "2"], "10,ten\n0,zero\n2,two\n1,one", ["zero", "one", "ten", "two"]),
    ("012", '2;"two,_three"\n0;zero\n1;one', ["zero", "one", "two,_three"]),
    ("ab", "b:bee\na:ant", ["ant", "bee"]), ("ab", "b bee\na ant", ["ant", "bee"]),
    ("ab", "a=ant\nb=bee", NO_LINE), ("ab", "folder,name\na,ant\nb,bee", NO_LINE),
    ("ab", "a ant\ncow", NO_LINE)])
def test_class_names_reach_their_folders_or_are_refused(folders, text, expected, tmp_path):
    write(tmp_path, pictures_in(dict.fromkeys(folders, 2), "mine/") | {"names.txt": text})
    with refusal(expected if isinstance(expected, str) else ""):
        dataset = data.load(tmp_path / "mine", classnames=str(tmp_path / "names.txt"))
        assert dataset.classnames == expected


@pytest.mark.parametrize("names, said", [
    (["Cat", "cat", "dog"], ["Cat = cat"]), (["É", "é", "e"], ["É = é"]),
    (["a", "sea lake", "sea_lake"], ["sea lake = sea_lake"]), (["cat", "cat s", "cats"], []),
    (["1st", "2nd", "1st"], ["1st"])])
def test_names_that_clips_tokens_do_not_tell_apart(names, said, tmp_path):
    lines = "\n".join(f"{k}\t{name}" for k, name in enumerate(names))
    write(tmp_path, pictures_in(dict.fromkeys("012", 2), "mine/") | {"names.txt": lines})
    notes = data.load(tmp_path / "mine", classnames=tmp_path / "names.txt").notes
    assert [note.rpartition(": ")[2] for note in notes] == said


def test_cells_start_no_formula_and_break_no_row(tmp_path):
    names = {"=1+1": "'=1+1", "=1": "'=1", "+cmd": "'+cmd", "-x": "'-x", "@y": "'@y", "＝1": "'＝1",
             "'=1": "''=1", "a\rb": "a\\rb", "a\nb": "a\\nb", "\x1b[2J": "\\x1b[2J",
             "\udcff": "\\udcff", "a=b": "a=b", "é": "é", "": "", "-0.50": "-0.50", "+3": "+3",
             "-1e-05": "-1e-05", "-inf": "-inf", -2: "-2", -0.5: "-0.5", None: ""}
    data.write_csv(tmp_path / "x.csv", [names, ["last"]])
    text = (tmp_path / "x.csv").read_bytes().decode()
    assert text == ",".join(names.values()) + "\nlast\n"


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
    plan = train.parse(["--dataset", "world", "eurosat", "pets", "--seed", "1", "2"])
    assert Counter((run.dataset, run.shots, run.tau) for run in plan) == {
        ("world", 16, 1.0): 2, ("eurosat", 16, 1.0): 2, ("pets", None, None): 2}


@pytest.mark.parametrize("words, names", [
    ("", "world-maple-tau1-seed1"), ("--dataset a/pets", "pets-maple-natural-seed1"),
    ("--shots 16 --epochs 10 --lr 0.0009 --n-ctx 2 --backbone tiny", "world-maple-tau1-seed1"),
    ("--epochs 5 --lr 0.0035", "world-maple-tau1-seed1-epochs5-lr0.0035"),  # tiny has its own
    ("--backbone ViT-B/32 --epochs 5", "world-maple-tau1-seed1-backboneViT_B_32"),
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

def test_a_run_keeps_its_split_and_the_folders_own_counts(folder, archive):
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
    for part in ("train", "val", "test"):
        assert [(name, label) for name, label, _ in kept[part]] == getattr(dataset, part)
        assert all(sorted(LONG_TAIL)[label] == name for _, label, name in kept[part])
    drawn = {row["picture"] for row in read(run / "drawn.csv")}
    assert drawn == {name for name, _, _ in kept["train"]}
    printed = done(*words, "--tau", 0.25, "--shots", 8, "--test-images", 1, "--out", "cut")
    assert "photos    14 train, 3 test; 19 unused, beyond --tau, --shots or --classes" in printed
    assert "not in the run's" not in done("cut", main=evaluate.main)    # all 22 are in its split


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
    for command, main in (([*words, *grid], train.main), (words, train.main),
                          ([run], evaluate.main), ([run], report.main), ([folder], data.main),
                          ([run, "--task", "cross-dataset", new, folder], evaluate.main)):
        out = done(*command, main=main)
        assert out.count("byte for byte") == 2
        assert (f"1 test photos are training photos too, byte for byte, first {bee} = {ant}: "
                "remove one of each: what trained is no test\n" in out)
        assert f"3 photos stand in two classes, byte for byte, first {ant} = {cow}: one of" in out
    assert "coop on farm, split: made here: 60/40 % of each class's sorted pictures" in out
    assert "test part alone is tested; assets/report.py RUN --photos FOLDER tests all" in out


def test_a_run_says_what_it_is_before_it_reads_photos_and_holds_a_folder(folder, archive):
    (folder / "bee/bee_3.png").write_bytes(b"no picture")
    words = [*COOP, "--dataset", folder, "--backbone", archive]
    for grid, times in (([], 1), (["--seed", 1, 2], 0)):            # it is known already
        code, out, err = call(train.main, *words, *grid)
        assert (code, err.count("1 of 55 pictures can't be used, first")) == (2, 1)
        assert out.count("bee_3.png: not a readable picture") == times
        assert grid or out.startswith("coop on farm: 3 all classes")
    assert not list(Path("runs").glob("*/run.json"))


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


@pytest.mark.skipif(os.name != "posix", reason="it has no such names")
def test_a_run_and_its_predictions_with_names_that_want_to_do_harm(at, archive):
    write_classes(at / "pets", {"=1+1": 5, "a\rb\nc": 5})
    done("--method", "coop", "--n-ctx", 2, "--epochs", 1, "--dataset", "pets", "--out", "run",
         "--backbone", archive)
    assert [row["class"] for row in read("run/drawn.csv")] == ["'=1+1"] * 3 + ["a\\rb\\nc"] * 3
    done("run", main=evaluate.main)
    kept = Path("run/split.json").read_text()
    for trained in (0, 3):                              # a picture that trained tests now
        split = json.loads(kept)
        split["test"].append(split["train"].pop(trained))
        Path("run/split.json").write_text(json.dumps(split))
        assert "1 test pictures of" in refused("run", main=evaluate.main)
    for i, name in enumerate(("=good.png", "good\r\n.png")):
        picture(i).save(f"pets/{name}")
    Path("pets/gone.png").symlink_to("nowhere")
    os.mkfifo("pets/pipe.png")
    Path(os.fsdecode(b"pets/\xff.png")).write_bytes(b"broken")
    printed = done("run", "pets", "--out", "p.csv", main=predict.main)
    assert "15 photos, 3 of them not read: p.csv" in printed
    assert len(printed.splitlines()) == 17              # each photo, no threshold, the file
    rows = {row["picture"]: row["class_1"] for row in read("p.csv")}
    bad = ["pets/gone.png", "pets/pipe.png", "pets/\\udcff.png"]
    assert len(rows) == 15 and [name for name in rows if rows[name] == "not read"] == bad
    assert rows["pets/good\\r\\n.png"] in ("'=1+1", "a\\rb\\nc")
