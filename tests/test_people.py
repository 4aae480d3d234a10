"""Files that people have: what is opened, how folders and names are read, what a CSV holds."""
import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image
from small_runs import done, picture, read, refused, write_classes
from test_data import JPEG, RED, counted, encoded, pictures_in, write

import data
import evaluate
from assets import predict


def refusal(words):
    return pytest.raises(ValueError, match=words) if words else contextlib.nullcontext()


# Pictures -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("ending, kind", [
    ("jfif", "JPEG"), ("jpe", "JPEG"), ("AVIF", "AVIF"), ("jp2", "JPEG2000")])
def test_more_endings_are_pictures(ending, kind, tmp_path):
    files = {f"{c}/{i}.{ending}": encoded(RED, kind) for c in "bc" for i in (1, 2)}
    dataset = data.load(write(tmp_path, files))
    assert len(dataset.train + dataset.test) == 4
    colour = dataset.open(f"b/1.{ending}").getpixel((5, 5))
    assert np.abs(np.subtract(colour, (200, 30, 30))).max() <= 6


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


@pytest.mark.parametrize("loads", ["load('pets')", "load_kept(Path('split.json'), 'pets')"])
def test_an_unguarded_script_under_spawn_ends_in_a_line(loads, at):
    """Its worker runs the script again, up to the first photos that it loads."""
    write_classes(at / "pets", {"cat": 4, "dog": 4})
    data.write("split.json", data.split_text(data.load("pets")))
    Path("script.py").write_text(f"""
import multiprocessing, sys
from pathlib import Path
sys.path.insert(0, {str(Path(data.__file__).parent)!r})
import data
multiprocessing.set_start_method("spawn", force=True)
dataset = data.{loads}
data.run_script(lambda: len(list(data.batches(dataset, dataset.test, 32, "cuda"))))
""")
    ended = subprocess.run([sys.executable, "-W", "ignore", "script.py"], capture_output=True,
                           text=True, timeout=120)
    first, last = ended.stderr.splitlines()
    assert 'its call under `if __name__ == "__main__":`' in first
    assert last.startswith("error: DataLoader worker") and last.endswith("exited unexpectedly")


# Folders ------------------------------------------------------------------------------------------

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


@pytest.mark.parametrize("content, expected", [
    (divided(Train=3, Test=2), [6, 0, 4]), (divided(training=3, testing=2), [6, 0, 4]),
    (divided(TRAIN=3, valid=1, test=2), [6, 2, 4]), (divided(train=3, Validation=2), [6, 0, 4]),
    (divided(train=3, test=2, val=1, valid=1), "or with one twice"),
    (divided(Test=2, valid=1), "without train/"), (divided(valid=2), "without train/"),
    (pictures_in({"bus": 4, "train": 4}), [4, 0, 4]),               # a class may be called train
    (pictures_in({"z/cat": 3, "z/dog": 3}), "one class only, z; expected"),
    (pictures_in({"z/train/cat": 3, "z/test/cat": 3}), "if they lie in that, name it instead"),
    (pictures_in({"train_images": 9}) | {"train.csv": "1,2"}, "a CSV of labels is not read"),
    (pictures_in({"train": 9, "test": 9}) | {"train.csv": "1,2"}, "found 9 loose files")])
def test_splits_by_their_usual_names_and_why_there_is_one_class(content, expected, tmp_path):
    with refusal(expected if isinstance(expected, str) else ""):
        dataset = data.load(write(tmp_path, content))
        assert [len(items) for items in (dataset.train, dataset.val, dataset.test)] == expected


@pytest.mark.parametrize("name, n, said", [
    ("0.jpg", 8, "8 classes have one picture only"), ("x", 11, "class folder without a picture")])
def test_what_is_lacking_is_named_in_one_go(name, n, said, tmp_path):
    write(tmp_path, pictures_in({"a": 9, "b": 9}) | {f"lack{i}/{name}": None for i in range(n)})
    line = refused(tmp_path, main=data.main)
    assert said in line and all(f"lack{i}" in line for i in range(n))


def named(root, folders, lines):
    write(root, pictures_in(dict.fromkeys(folders, 2), "mine/") | {"names.txt": "\n".join(lines)})
    return data.load(root / "mine", classnames=root / "names.txt")


@pytest.mark.parametrize("names, said", [
    (["Cat", "cat", "dog"], "Cat = cat"), (["a", "sea lake", "sea_lake"], "sea lake = sea_lake"),
    (["cat", "cat s", "cats"], None), (["É", "é", "e"], "É = é")])
def test_names_that_clips_tokens_do_not_tell_apart(names, said, tmp_path):
    notes = named(tmp_path, "012", [f"{k}\t{name}" for k, name in enumerate(names)]).notes
    assert [note.rpartition(": ")[2] for note in notes] == ([said] if said else [])


@pytest.mark.parametrize("folders, lines, expected", [
    ("0 1 2", "zero one two", None),                            # of which folder?
    ("0 1 10 2", "10,ten 0,zero 2,two 1,one", ["zero", "one", "ten", "two"]),
    ("0 1 2", '2;"two,_three" 0;zero 1;one', ["zero", "one", "two,_three"]),
    ("a b", "b:bee a:ant", ["ant", "bee"]), ("a b", "a=ant b=bee", None),
    ("a b", "b|bee a|ant", ["ant", "bee"]),
    ("a b", "folder,name a,ant b,bee", None), ("a b", "a|ant cow", None)])
def test_class_names_reach_their_folders_or_are_refused(folders, lines, expected, tmp_path):
    lines = [line.replace("|", " ") for line in lines.split()]
    with refusal(not expected and "expected a line `folder<TAB>name` for each of"):
        assert named(tmp_path, folders.split(), lines).classnames == expected


def test_cells_start_no_formula_and_break_no_row(tmp_path):
    names = {"=1+1": "'=1+1", "=1": "'=1", "+cmd": "'+cmd", "-x": "'-x", "@y": "'@y", "＝1": "'＝1",
             "'=1": "''=1", "a\rb": "a\\rb", "a\nb": "a\\nb", "\x1b[2J": "\\x1b[2J",
             "\udcff": "\\udcff", "a=b": "a=b", "é": "é", "": "", "-0.50": "-0.50", "+3": "+3",
             "-1e-05": "-1e-05", "-inf": "-inf", -2: "-2", -0.5: "-0.5", None: ""}
    data.write_csv(tmp_path / "x.csv", [names, ["last"]])
    text = (tmp_path / "x.csv").read_text(encoding="utf-8")
    assert text.splitlines() == [",".join(names.values()), "last"]


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
