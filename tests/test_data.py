"""Datasets: each of the 15 in its true layout, split files, draws, the long tail, own folders."""
import hashlib
import io
import json
import os
import unicodedata
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import assets.files
import data
from assets import datasets


def jpeg(size=(9, 7), colour=(200, 30, 30)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "JPEG")
    return buffer.getvalue()


JPEG = jpeg()


def write(root, files):
    """{relative path: text, bytes or None for a picture} -> files."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = JPEG if content is None else content
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


# the 15, written by hand from their docs ----------------------------------------------------------

# For each: the picture folder, and its classes in label order as {on disk: in the prompt}.
LAYOUTS = {
    "imagenet": ("imagenet/images",
                 {"n01440764": "tench", "n01443537": "goldfish", "n01514668": "rooster",
                                     "n03773504": "missile", "n04008634": "missile"}),
    "caltech101": ("caltech-101/101_ObjectCategories", {
        "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike", "accordion": "accordion",
        "airplanes": "airplane", "ibis": "ibis", "yin_yang": "yin_yang"}),
    "oxford_pets": ("oxford_pets/images",
                    {"Abyssinian": "abyssinian", "american_bulldog": "american_bulldog",
                     "Bengal": "bengal", "Egyptian_Mau": "egyptian_mau", "pug": "pug"}),
    "stanford_cars": ("stanford_cars",
                      {"": "2000 AM General Hummer SUV"}),        # split file only, see below
    "oxford_flowers": ("oxford_flowers/jpg",
                       {"": "pink primrose"}),               # split file only, see below
    "food101": ("food-101/images",
                {"apple_pie": "apple_pie", "french_fries": "french_fries", "waffles": "waffles"}),
    "fgvc_aircraft": ("fgvc_aircraft/images", {"707-320": "707-320", "Cessna 525": "Cessna 525",
                                               "F/A-18": "F/A-18", "Yak-42": "Yak-42"}),
    "sun397": ("sun397/SUN397",
               {"a/abbey": "abbey", "a/apartment_building/outdoor": "outdoor apartment_building",
                                 "a/apse/indoor": "indoor apse",
                                 "i/ice_skating_rink/indoor": "indoor ice_skating_rink",
                                 "y/yard": "yard"}),
    "dtd": ("dtd/images",
            {"banded": "banded", "polka-dotted": "polka-dotted", "zigzagged": "zigzagged"}),
    "eurosat": ("eurosat/2750", {
        "AnnualCrop": "Annual Crop Land", "Forest": "Forest",
        "HerbaceousVegetation": "Herbaceous Vegetation Land",
        "Highway": "Highway or Road", "Industrial": "Industrial Buildings",
        "Pasture": "Pasture Land",
        "PermanentCrop": "Permanent Crop Land", "Residential": "Residential Buildings",
        "River": "River",
        "SeaLake": "Sea or Lake"}),
    "ucf101": ("ucf101/UCF-101-midframes",
               {"ApplyEyeMakeup": "Apply_Eye_Makeup", "Hammering": "Hammering",
                                            "HammerThrow": "Hammer_Throw", "YoYo": "Yo_Yo"}),
    "imagenetv2": ("imagenetv2/imagenetv2-matched-frequency-format-val", {
        "0": "tench", "2": "great white shark", "7": "rooster", "10": "brambling",
        "100": "black swan"}),
    "imagenet_sketch": ("imagenet-sketch/images", {"n01440764": "tench", "n01443537": "goldfish",
                                                   "n01514668": "rooster"}),
    "imagenet_a": ("imagenet-adversarial/imagenet-a",
                   {"n01498041": "stingray", "n01531178": "goldfinch",
                                                       "n04355933": "sunglasses"}),
    "imagenet_r": ("imagenet-rendition/imagenet-r",
                   {"n01443537": "goldfish", "n01484850": "great white shark",
                                                     "n04367480": "mop"}),
}
TORCHVISION = {"caltech101": ("caltech-101", "caltech101"),
               "oxford_pets": ("oxford_pets", "oxford-iiit-pet"),
               "oxford_flowers": ("oxford_flowers", "flowers-102"),
               "dtd": ("dtd/images", "dtd/dtd/images"),
               "fgvc_aircraft": ("fgvc_aircraft", "fgvc-aircraft-2013b/data"),
               "sun397": ("sun397/SUN397", "SUN397"),
               "imagenet": ("imagenet/images/", "imagenet/"),
               "imagenet_sketch": ("sketch/images", "sketch/sketch")}
TEMPLATES = {"oxford_pets": "a photo of a {}, a type of pet.",
             "oxford_flowers": "a photo of a {}, a type of flower.",
             "fgvc_aircraft": "a photo of a {}, a type of aircraft.",
             "food101": "a photo of {}, a type of food.",
             "dtd": "{} texture.", "eurosat": "a centered satellite photo of {}.",
             "ucf101": "a photo of a person doing {}."}
SPLIT_FILES = {"caltech101": "caltech-101/split_zhou_Caltech101.json",
               "oxford_pets": "oxford_pets/split_zhou_OxfordPets.json",
               "stanford_cars": "stanford_cars/split_zhou_StanfordCars.json",
               "oxford_flowers": "oxford_flowers/split_zhou_OxfordFlowers.json",
               "food101": "food-101/split_zhou_Food101.json",
               "sun397": "sun397/split_zhou_SUN397.json",
               "dtd": "dtd/split_zhou_DescribableTextures.json",
               "eurosat": "eurosat/split_zhou_EuroSAT.json",
               "ucf101": "ucf101/split_zhou_UCF101.json"}
NEEDS_SPLIT = ("stanford_cars", "oxford_flowers")
BY_LISTS = {"oxford_pets", "sun397", "ucf101"}      # official test list, trainval to be divided


def layout(name):
    """All files of a small copy of a dataset -> (files, {picture: (part on disk, class on disk)}).

    10 pictures a class (or 10 of trainval and 3 of test), as the real thing has them: parts, lists,
    strays.
    """
    place, classes = LAYOUTS[name]
    above = str(Path(place).parent)
    owner, files = {}, {}
    for key in classes:
        for i in range(13 if name in BY_LISTS | {"imagenet", "fgvc_aircraft"} else 10):
            part = "trainval" if i < 10 else "test"
            picture = {"oxford_pets": f"{key}_{i}.jpg",
                       "fgvc_aircraft": f"{list(classes).index(key):03}{i:02}.jpg",
                       "imagenet": f"{'train' if i < 10 else 'val'}/{key}/{i}.JPEG",
                       "ucf101": f"{classes[key]}/v_{key}_g{i:02}_c01.jpg"}
            picture = picture.get(name, f"{key}/{i}.jpg")
            if name == "fgvc_aircraft":
                part = "train" if i < 4 else "val" if i < 7 else "test"
            owner[picture] = part, key
            files[f"{place}/{picture}"] = None
    listed = {part: [(p, key) for p, (where, key) in owner.items() if where == part]
              for part in ("trainval", "train", "val", "test")}
    number = {key: k for k, key in enumerate(classes, 1)}
    if name == "oxford_pets":
        for part in ("trainval", "test"):
            lines = [f"{p[:-4]} {number[key]} 1 1\n" for p, key in listed[part]]
            head = "#name label species breed\n"
            files[f"{above}/annotations/{part}.txt"] = head + "".join(lines)
        files[f"{place}/Abyssinian_100.mat"] = "stray"
    if name == "sun397":
        files[f"{above}/ClassName.txt"] = "".join(f"/{key}\n" for key in classes)
        for part, file in (("trainval", "Training_01.txt"), ("test", "Testing_01.txt")):
            files[f"{above}/{file}"] = "".join(f"/{p}\n" for p, _ in listed[part])
    if name == "ucf101":
        lists = f"{above}/ucfTrainTestlist"
        clips = {part: [f"{key}/{p.split('/')[1][:-4]}.avi" for p, key in listed[part]]
                 for part in listed}
        files[f"{lists}/classInd.txt"] = "".join(f"{number[key]} {key}\n" for key in classes)
        files[f"{lists}/trainlist01.txt"] = "".join(f"{c} {number[c.split('/')[0]]}\r\n"
                                                    for c in clips["trainval"])
        files[f"{lists}/testlist01.txt"] = "".join(f"{c}\r\n" for c in clips["test"])
    if name == "fgvc_aircraft":
        files[f"{above}/variants.txt"] = "".join(f"{key}\n" for key in classes)
        for part in ("train", "val", "test"):
            files[f"{above}/images_variant_{part}.txt"] = "".join(
                f"{p[:-4]} {key}\n" for p, key in listed[part])
    if name == "caltech101":
        files |= {f"{place}/{key}/1.jpg": None for key in ("BACKGROUND_Google", "Faces_easy")}
    if name in ("imagenet_a", "imagenet_r"):
        files[f"{place}/README.txt"] = "read me"
    if name in ("dtd", "eurosat"):
        files |= {f"{place}/{list(classes)[0]}/.directory": "stray", f"{place}/.DS_Store": "stray"}
    return files, owner


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name not in NEEDS_SPLIT])
def test_each_dataset_in_its_true_layout(name, tmp_path):
    """Without CoOp's split file: names, label order, every picture once in its class, the draw."""
    files, owner = layout(name)
    dataset = data.load(name, write(tmp_path, files), fetch=False)
    classes, K = LAYOUTS[name][1], len(LAYOUTS[name][1])
    assert dataset.classnames == list(classes.values())
    assert dataset.template == TEMPLATES.get(name, "a photo of a {}.")
    parts = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    for items in parts.values():
        assert all(owner[picture][1] == list(classes)[label] for picture, label in items)
    counts = {part: set(Counter(label for _, label in items).values())
              for part, items in parts.items()}
    where = {part: {owner[picture][0] for picture, _ in items} for part, items in parts.items()}
    if name in BY_LISTS:                    # 10 of trainval: 2 for val; the test list as it is
        assert counts == {"train": {8}, "val": {2}, "test": {3}} and where["test"] == {"test"}
        assert where["train"] == where["val"] == {"trainval"}
    elif name == "fgvc_aircraft":
        assert counts == {"train": {4}, "val": {3}, "test": {6}}
        assert all(where[part] == {part} for part in parts)
    elif name == "imagenet":
        assert counts == {"train": {10}, "val": {3}, "test": {3}} and dataset.val == dataset.test
    elif name in data.ALL:                                  # pooled: 50, 20, 30 %
        assert counts == {"train": {5}, "val": {2}, "test": {3}}
    else:
        assert dataset.train == dataset.test and dataset.val == [] and dataset.test_only
    expected = owner
    if name not in data.ALL or name == "imagenet":
        expected = [p for p, _ in dataset.train + dataset.test]
    seen = [p for items in parts.values() for p, _ in items]
    assert sorted(set(seen)) == sorted(set(expected))
    assert {label for _, label in dataset.test} == set(range(K))
    if name in data.ALL and name != "imagenet":
        assert len(seen) == len(owner)                      # none twice
    assert dataset.base_novel == (name in data.ALL)
    assert dataset.official_split == (name not in SPLIT_FILES)
    assert data.halves(K) == (list(range((K + 1) // 2)), list(range((K + 1) // 2, K)))
    drawn = data.training_items(dataset, data.halves(K)[1], 3, 1.0, 1)
    assert Counter(label for _, label in drawn) == dict.fromkeys(range(K // 2), 3)
    assert {owner[p][1] for p, _ in drawn} == set(list(classes)[(K + 1) // 2:])
    assert dataset.open(drawn[0][0]).size == (9, 7)
    if name.startswith("imagenet"):
        assert len(dataset.notes) == 1                      # of the README.txt in A and R no word
        ids = [key for key in classes if key.startswith("n")]
        v2 = ["n01440764", "n01484850", "n01514668", "n01530575", "n01860187"]
        assert dataset.class_ids == (ids or v2)
    fewer = any("classes in the papers" in note for note in dataset.notes)
    assert fewer == (name != "eurosat")                     # none lost unsaid


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_layout_gives_the_same_items(name, tmp_path):
    files, _ = layout(name) if name not in NEEDS_SPLIT else (
        {"oxford_flowers/jpg/train_2_0.jpg": None, **split_file(name)}, None)
    coop, torchvisions = TORCHVISION[name]
    moved = {path.replace(coop, torchvisions, 1): content for path, content in files.items()}
    assert moved != files
    one, other = (data.load(name, write(tmp_path / where, content), fetch=False)
                  for where, content in (("coop", files), ("torchvision", moved)))
    assert (one.train, one.val, one.test) == (other.train, other.val, other.test)
    assert one.classnames == other.classnames
    assert one.pictures != other.pictures and other.open(other.train[0][0])


# split files --------------------------------------------------------------------------------------

def split_file(name, parts=None):
    """A split file in CoOp's form, classes not in label order, as Cars and Flowers have them."""
    names = {"stanford_cars": ["2000 AM General Hummer SUV", "2012 Ram C/V Cargo Van Minivan",
                               "2012 FIAT 500 Abarth"],
             "oxford_flowers": ["pink primrose", "wild pansy", "blackberry lily"]}
    names = names.get(name, ["one", "two", "two_b"])
    parts = parts or {part: [[f"{part}_{label}_{i}.jpg", label, names[label]]
                             for label in (2, 0, 1) for i in range(n)]
                      for part, n in (("train", 20), ("val", 5), ("test", 3))}
    return {SPLIT_FILES[name]: json.dumps(parts, indent=4)}


@pytest.mark.parametrize("name", SPLIT_FILES)
def test_a_split_file_is_taken_as_it_stands_without_pictures(name, tmp_path):
    content = split_file(name)
    entries = json.loads(content[SPLIT_FILES[name]])
    dataset = data.load(name, write(tmp_path, content), fetch=False)
    assert dataset.split.startswith("CoOp's split_zhou_")
    first = data.ROWS[name].first                           # where it is known, this is another's
    assert dataset.official_split is (not first) and ("private" in dataset.split) is bool(first)
    for part in ("train", "val", "test"):
        assert getattr(dataset, part) == [(picture, label) for picture, label, _ in entries[part]]
    assert dataset.classnames == [{label: n for _, label, n in entries["train"]}[k]
                                  for k in range(3)]
    assert len(data.missing(dataset, dataset.train + dataset.val)) == 75
    # from the last picture folder: the true location, which a misplaced parent would miss
    write(tmp_path / LAYOUTS[name][0], {"train_2_0.jpg": None})
    assert len(data.missing(dataset, dataset.train)) == 59


def test_a_private_split_under_the_official_name_is_said(tmp_path):
    dataset = data.load("eurosat", write(tmp_path, split_file("eurosat")), fetch=False)
    assert "a private split?" in dataset.split and dataset.official_split is False
    parts = {part: [[f"{part}.jpg", 0, "x"]] for part in ("train", "val", "test")}
    parts["train"][0][0] = "AnnualCrop/AnnualCrop_1381.jpg"
    dataset = data.load("eurosat", write(tmp_path, split_file("eurosat", parts)), fetch=False)
    assert dataset.split == "CoOp's split_zhou_EuroSAT.json" and dataset.official_split is True


def spoil(part, i, entry):
    def change(content):
        content[part][i:i + 1] = [entry]
    return change


@pytest.mark.parametrize("change, fault", [
    (spoil("val", 3, ["../../etc/passwd", 0, "one"]), r"val\[3\].*passwd.*relative path"),
    (spoil("val", 3, ["/etc/passwd", 0, "one"]), r"val\[3\].*relative path"),
    (spoil("test", 1, ["..\\up.jpg", 2, "two_b"]), r"test\[1\].*relative path"),
    (spoil("test", 1, ["C:/up.jpg", 2, "two_b"]), r"test\[1\].*relative path"),
    (spoil("test", 1, ["", 2, "two_b"]), r"test\[1\].*relative path"),
    (spoil("test", 1, ["./train_0_7.jpg", 0, "one"]), r"test\[1\].*without './' or '//'"),
    (spoil("test", 1, ["a//b.jpg", 0, "one"]), r"test\[1\].*without './' or '//'"),
    (spoil("test", 1, ["a/./b.jpg", 0, "one"]), r"test\[1\].*without './' or '//'"),
    (spoil("test", 1, [".", 0, "one"]), r"test\[1\].*relative path"),
    (spoil("test", 1, ["\udcff.jpg", 0, "one"]), r"test\[1\].*relative path"),
    (spoil("train", 2, ["x.jpg", 2, "\u200b\u00a0"]), r"train\[2\].*class name"),
    (spoil("train", 5, ["train_2_4.jpg", 2, "two_b"]), r"train\[5\].*stands in train\[4\]"),
    (spoil("test", 0, ["train_0_7.jpg", 0, "one"]), r"test\[0\].*stands in train\[27\]"),
    (spoil("train", 2, ["x.jpg", "2", "two_b"]), r"train\[2\].*an integer"),
    (spoil("train", 2, ["x.jpg", True, "two_b"]), r"train\[2\].*an integer"),
    (spoil("train", 2, [7, 2, "two_b"]), r"train\[2\].*a string"),
    (spoil("train", 2, ["x.jpg", 2]), r"train\[2\]"),
    (spoil("train", 2, "x.jpg"), r"train\[2\]"),
    (spoil("train", 2, ["x.jpg", -1, "two_b"]), r"train\[2\].*label from 0"),
    (spoil("train", 2, ["x.jpg", 2, " "]), r"train\[2\].*class name"),
    (spoil("test", 8, ["x.jpg", 1, "TWO"]), r"test\[8\].*label 1 was 'two'"),
    (spoil("train", 60, ["x.jpg", 4, "four"]), r"train\[60\].*no entry of train has label 3"),
    (spoil("test", 9, ["x.jpg", 3, "three"]), r"test\[9\].*no entry of train has label 3"),
    (lambda content: content.pop("val"), "lists train, val and test"),
    (lambda content: content.update(val={}), "lists train, val and test"),
    (lambda content: content["test"].clear(), "no test picture"),
    (lambda content: content["train"].clear(), "train is empty"),
])
def test_a_bad_split_file_is_refused_with_the_entry_at_fault(change, fault, tmp_path):
    content = json.loads(split_file("dtd")[SPLIT_FILES["dtd"]])
    change(content)
    write(tmp_path, split_file("dtd", content))
    with pytest.raises(ValueError, match=fault) as caught:
        data.load("dtd", tmp_path, fetch=False)
    assert "\n" not in str(caught.value)


def test_other_bad_files(tmp_path):
    for text in ('{"train": [', "[]", "[" * 100_000, b"\xff\xfe\x00"):
        with pytest.raises(ValueError, match="split_zhou_DescribableTextures.json"):
            data.load("dtd", write(tmp_path, {SPLIT_FILES["dtd"]: text}), fetch=False)
    content = json.loads(split_file("dtd")[SPLIT_FILES["dtd"]]) | {"extra": []}
    dataset = data.load("dtd", write(tmp_path, split_file("dtd", content)), fetch=False)
    assert "keys extra ignored" in dataset.notes[0]
    files, _ = layout("sun397")
    files["sun397/Testing_01.txt"] += "/a/abbey/../../../../secret.jpg\n"
    with pytest.raises(ValueError, match="none of the 5 classes"):
        data.load("sun397", write(tmp_path, files), fetch=False)


def test_a_split_made_here_is_coops_rule_over_sorted_names(tmp_path):
    """One running random.Random(1) orders 6 8 9 7 5 3 0 4 1 2, then 4 8 2 6 5 9 0 7 1 3."""
    root = write(tmp_path, layout("eurosat")[0])
    dataset = data.load("eurosat", root, fetch=False)

    def numbers(items, k):
        return [int(Path(picture).stem) for picture, label in items if label == k]

    parts = dataset.train, dataset.val, dataset.test
    assert [numbers(part, 0) for part in parts] == [[6, 8, 9, 7, 5], [3, 0], [4, 1, 2]]
    assert [numbers(part, 1) for part in parts] == [[4, 8, 2, 6, 5], [9, 0], [7, 1, 3]]
    sun = data.load("sun397", write(tmp_path, layout("sun397")[0]), fetch=False)
    assert numbers(sun.val, 0) == [6, 8] and numbers(sun.train, 0) == [9, 7, 5, 3, 0, 4, 1, 2]

    assert not dataset.official_split and "not CoOp's" in dataset.split
    saved = root / "eurosat" / "split_made_here_eurosat_seed1.json"
    assert [entry.name for entry in (root / "eurosat").iterdir() if entry.is_file()] == [saved.name]
    assert json.loads(saved.read_text())["train"][0] == ["AnnualCrop/6.jpg", 0, "Annual Crop Land"]
    write(root, {"eurosat/2750/Forest/new.jpg": None})      # came later: the test set stays
    again = data.load("eurosat", root, fetch=False)
    assert (again.test, again.split, again.official_split) == (dataset.test, dataset.split, False)
    assert data.load("eurosat", root, seed=2, fetch=False).test != dataset.test
    write(root, split_file("eurosat"))                      # CoOp's comes first
    assert data.load("eurosat", root, fetch=False).classnames == ["one", "two", "two_b"]


def test_a_read_only_folder_gets_no_split_file(tmp_path, monkeypatch):
    def refuse(*args):
        raise PermissionError("read-only")
    monkeypatch.setattr(os, "replace", refuse)
    assert len(data.load("dtd", write(tmp_path, layout("dtd")[0]), fetch=False).train) == 15


# a row of one's own ------------------------------------------------------------------------------

CIFAR = datasets.Row(2, (("cifar10", ""),), "CIFAR-10 as class folders", datasets.read_folders)


def test_a_row_of_class_folders_that_come_divided_is_the_published_one(tmp_path, monkeypatch):
    monkeypatch.setitem(data.ROWS, "cifar10", CIFAR)
    monkeypatch.setattr(data, "NAMES", [*data.NAMES, "cifar10"])
    root = write(tmp_path, {f"cifar10/{part}/{key}/{i}.png": None for key in ("cat", "dog")
                            for part, n in (("train", 3), ("test", 2)) for i in range(n)})
    dataset = data.load("cifar10", root)
    assert dataset.train == [(f"train/{key}/{i}.png", k) for k, key in enumerate(("cat", "dog"))
                             for i in range(3)]
    assert (len(dataset.val), len(dataset.test), dataset.notes) == (0, 4, [])
    assert dataset.official_split is True
    assert dataset.split == "the lists and folders as published"
    assert [entry.name for entry in (root / "cifar10").iterdir() if entry.is_file()] == []


def test_a_row_without_a_split_file_that_is_divided_here_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(data.ROWS, "cifar10", CIFAR)
    monkeypatch.setattr(data, "NAMES", [*data.NAMES, "cifar10"])
    root = write(tmp_path, {f"cifar10/{key}/{i}.png": None for key in ("cat", "dog")
                            for i in range(10)})
    dataset = data.load("cifar10", root)
    saved = root / "cifar10" / "split_made_here_cifar10_seed1.json"
    assert dataset.official_split is False and dataset.split.startswith(f"made here: {saved.name}")
    assert [Path(name).stem for name, _ in dataset.train[:5]] == list("68975")     # as EuroSAT's
    write(root, {"cifar10/cat/new.png": None})              # kept: one more picture moves nothing
    again = data.load("cifar10", root)
    assert (again.train, again.split, again.official_split) == (dataset.train, dataset.split, False)


# fetching -----------------------------------------------------------------------------------------

def test_fetching_ends_in_coops_layout(tmp_path, monkeypatch, capsys):
    def fake(root, download):
        assert download
        print("noise that must not spoil --json")
        write(Path(root), {path.replace("fgvc_aircraft", "fgvc-aircraft-2013b/data"): content
                           for path, content in layout("fgvc_aircraft")[0].items()})
        write(Path(root), {"fgvc-aircraft-2013b/data/archive.tar.gz": "no use any more"})
    monkeypatch.setattr(torchvision.datasets, "FGVCAircraft", fake)
    dataset = data.load("fgvc_aircraft", tmp_path)
    assert dataset.pictures == tmp_path / "fgvc_aircraft" / "images" and len(dataset.test) == 24
    assert capsys.readouterr().out == ""
    assert [entry.name for entry in tmp_path.iterdir()] == ["fgvc_aircraft"]
    assert not list(tmp_path.rglob("*.gz"))
    monkeypatch.delattr(torchvision.datasets, "FGVCAircraft")
    data.load("fgvc_aircraft", tmp_path)                    # there already: nothing is fetched


def test_fetching_the_flowers_needs_the_split_first_and_no_scipy(tmp_path, monkeypatch):
    def fake(root, download):
        write(Path(root),
              {"flowers-102/jpg/train_2_0.jpg": None, "flowers-102/setid.mat": "theirs"})
        raise ModuleNotFoundError("No module named 'scipy'")
    monkeypatch.setattr(torchvision.datasets, "Flowers102", fake)
    with pytest.raises(FileNotFoundError, match="split_zhou_OxfordFlowers.json not found"):
        data.load("oxford_flowers", tmp_path)
    assert not list(tmp_path.iterdir())
    write(tmp_path, split_file("oxford_flowers") | {"oxford_flowers/setid.mat": "mine"})
    dataset = data.load("oxford_flowers", tmp_path)
    assert dataset.open("train_2_0.jpg")
    assert (tmp_path / "oxford_flowers/setid.mat").read_text() == "mine"


def test_half_a_download_leaves_nothing_and_says_what_to_do(tmp_path, monkeypatch):
    def broken(root, download):
        write(Path(root), {"eurosat/2750/Forest/1.jpg": None})
        raise ConnectionResetError("connection lost")
    monkeypatch.setattr(torchvision.datasets, "EuroSAT", broken)
    steps = "connection lost.*EuroSAT.zip.*eurosat/2750 holds.*split_zhou_EuroSAT"
    with pytest.raises(FileNotFoundError, match=steps) as caught:
        data.load("eurosat", tmp_path)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match=steps):
        data.load("eurosat", tmp_path / "new" / "root")     # no new folder either
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", data.ROWS)
def test_nothing_there_is_one_line_that_says_what_to_get(name, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        data.load(name, tmp_path, fetch=False)
    message, place = str(caught.value), tmp_path / LAYOUTS[name][0]
    assert "\n" not in message and str(place) in message and data.ROWS[name].source in message
    assert name not in SPLIT_FILES or Path(SPLIT_FILES[name]).name in message


# the ImageNet family ------------------------------------------------------------------------------

def test_classnames_file_or_asset(tmp_path):
    asset = Path(data.__file__).parent / "assets/imagenet.tsv"
    names = [line.split("\t") for line in asset.read_text().splitlines()]
    assert len(names) == 1000 and [wnid for wnid, _ in names] == sorted({wnid for wnid, _ in names})
    at = {k: names[k][1] for k in (0, 7, 100, 134, 657, 744, 836, 837, 999)}
    assert at == {0: "tench", 7: "rooster", 100: "black swan", 134: "crane bird", 657: "missile",
                  744: "missile", 836: "sunglasses", 837: "sunglasses", 999: "toilet paper"}
    assert len({name for _, name in names}) == 998

    root = write(tmp_path, layout("imagenet_a")[0])
    for separator in (" ", "\t"):                           # CoOp's, and ours
        pairs = [("n01498041", "a ray"), ("n01531178", "gold finch"), ("n04355933", "sunglasses")]
        lines = "".join(separator.join(pair) + "\n" for pair in pairs)
        write(root, {"imagenet-adversarial/classnames.txt": lines})
        dataset = data.load("imagenet_a", root)
        assert dataset.classnames == ["a ray", "gold finch", "sunglasses"]
        assert any("2 lines, first n01498041" in note for note in dataset.notes)
    write(root, {"imagenet-adversarial/classnames.txt": "n01498041 a ray\n"})
    with pytest.raises(ValueError, match="n01531178.*has no name"):
        data.load("imagenet_a", root)
    write(root, {"imagenet-adversarial/classnames.txt": "n01498041 a ray\nn01498041 twice\n"})
    with pytest.raises(ValueError, match="n01498041 twice"):
        data.load("imagenet_a", root)
    write(tmp_path, layout("imagenetv2")[0] | {"imagenetv2/classnames.txt": "n01440764 tench\n"})
    with pytest.raises(ValueError, match="class folder 100"):
        data.load("imagenetv2", tmp_path)


def test_imagenet_with_a_flat_or_foreign_val(tmp_path):
    train = {f"imagenet/images/train/{wnid}/1.JPEG": None for wnid in ("n01440764", "n01443537")}
    flat = train | {f"imagenet/images/val/{i}.JPEG": None for i in (1, 2)}
    fault = "val: expected one sub-folder for each class, found 2 loose.*val/<wnid>/"
    with pytest.raises(ValueError, match=fault):
        data.load("imagenet", write(tmp_path / "flat", flat))
    foreign = train | {f"imagenet/images/val/{wnid}/1.JPEG": None
                       for wnid in ("n01440764", "n01514668")}
    with pytest.raises(ValueError, match="n01514668"):
        data.load("imagenet", write(tmp_path / "foreign", foreign))
    with pytest.raises(FileNotFoundError, match="images/val: folder not found"):
        data.load("imagenet", write(tmp_path / "half", train))


# draws and the long tail --------------------------------------------------------------------------

# The first 12 hex digits of sha256 of the drawn training positions, 16 shots, seeds 1, 2, 3: CoOp's
# published draws. Group sizes are all that the draw sees.
EUROSAT_SIZES = [1500, 1500, 1500, 1250, 1250, 1000, 1250, 1500, 1250, 1500]
GOLDEN = {
    "food101": ([500] * 101, ["cefcf523a76e", "5b5b486ec8c0", "0f534b408257"]),
    "sun397": ([40] * 397, ["79b0e313e24a", "1c63049ba3d7", "16fc485aeacb"]),
    "dtd": ([60] * 47, ["6aa4d669856a", "68595428c5c9", "1a91bd3b5e6f"]),
    "eurosat": (EUROSAT_SIZES, ["d0eded86733d", "8cdddbc39a1a", "05ff8da9bfd8"]),
}


def digest(positions):
    return hashlib.sha256(",".join(map(str, positions)).encode()).hexdigest()


@pytest.mark.parametrize("name", GOLDEN)
def test_few_shot_draws_are_coops(name):
    sizes, golden = GOLDEN[name]
    labels = [k for k, n in enumerate(sizes) for _ in range(n)]
    assert [digest(data.few_shot(labels, 16, seed))[:12] for seed in (1, 2, 3)] == golden


def test_a_draw_visits_labels_in_order_of_appearance_and_gives_all_of_a_small_class():
    labels = [5] * 3 + [0] * 40
    drawn = data.few_shot(labels, 16, 1)
    assert drawn[:3] == [0, 1, 2] and len(drawn) == 19 == len(set(drawn)) and min(drawn[3:]) >= 3
    just_enough = data.few_shot([0] * 16, 16, 1)            # drawn, not taken as it stands
    assert sorted(just_enough) == list(range(16)) != just_enough
    with pytest.raises(ValueError, match="shots"):
        data.few_shot(labels, 0, 1)


@pytest.mark.parametrize("K, shots, tau, n", [
    (5, 16, 0.05, [16, 7, 3, 1, 1]), (5, 16, 0.01, [16, 5, 1, 1, 1]), (3, 16, 1, [16] * 3),
    (1, 16, 0.01, [16]),
    (2, 16, 0.5, [16, 8]), (3, 16, 0.25, [16, 8, 4]), (4, 1, 0.01, [1] * 4),
    (3, 10, 0.0729, [10, 2, 1]),  # 2.7 -> 2: fractions are cut off, not rounded
])
def test_class_counts_by_hand(K, shots, tau, n):
    assert data.class_counts(K, shots, tau) == n


@pytest.mark.parametrize("bad", [{"tau": t} for t in (0, -1, 2, float("nan"), float("inf"))] + [
    {"max_count": 0}, {"num_classes": 0}])
def test_class_counts_refuses(bad):
    with pytest.raises(ValueError):
        data.class_counts(**{"num_classes": 5, **bad})


@pytest.mark.parametrize("K, total, n", [
    (5, 24, [5, 5, 5, 5, 4]), (3, 3, [1, 1, 1]), (2, 32, [16, 16])])
def test_a_balanced_control_deals_images_evenly(K, total, n):
    assert data.class_counts(K, 16, total=total) == n
    assert sorted(data.class_counts(K, 16, shuffle_seed=1, total=total)) == sorted(n)


@pytest.mark.parametrize("total", [4, 81])
def test_a_balanced_control_that_cannot_be_dealt_is_refused(total):
    with pytest.raises(ValueError, match="--images: 5 classes of 1 to 16 images have 5 to 80, got"):
        data.class_counts(5, 16, total=total)


def toy(K=6, n=30, order=(3, 0, 5, 1, 4, 2)):
    train = [(f"{k}/{i}", k) for k in order for i in range(n)]
    return data.Dataset("toy", [f"class {k}" for k in range(K)], "{}", train, [], train[:], "none",
                        False, {})


def test_training_items_are_the_first_of_the_full_draw():
    dataset = toy()
    full = [dataset.train[i] for i in data.few_shot([label for _, label in dataset.train], 16, 7)]
    drawn = {k: [name for name, label in full if label == k] for k in range(6)}
    for tau, n in ((1, [16, 16, 16]), (0.05, [16, 3, 1])):
        for labels in ([4, 2, 0], [1, 3, 5]):       # any, relabelled from 0 in the order given
            items = data.training_items(dataset, labels, 16, tau, 7)
            for k, label in enumerate(labels):
                assert [name for name, y in items if y == k] == drawn[label][:n[k]]
    shuffled = data.training_items(dataset, list(range(6)), 16, 0.05, 7, shuffle_seed=3)
    counts = [Counter(label for _, label in shuffled)[k] for k in range(6)]
    assert sorted(counts) == sorted(data.class_counts(6, 16, 0.05))
    assert counts != data.class_counts(6, 16, 0.05)
    assert shuffled == data.training_items(dataset, list(range(6)), 16, 0.05, 7, shuffle_seed=3)
    for k in range(6):
        assert [name for name, y in shuffled if y == k] == drawn[k][:counts[k]]
    small = toy(n=5)
    items = data.training_items(small, [0, 1, 2], 16, 0.25, 1)
    assert Counter(y for _, y in items) == {0: 5, 1: 5, 2: 4}


@pytest.mark.parametrize("shuffle_seed", [None, 3])
def test_a_smaller_tau_keeps_a_subset(shuffle_seed):
    sets = [set(data.training_items(toy(), [0, 1, 2], 16, tau, 1, shuffle_seed))
            for tau in (1, 0.5, 0.05, 0.01)]
    assert sets[0] > sets[1] > sets[2] >= sets[3]


def test_halves_and_select():
    assert data.halves(5) == ([0, 1, 2], [3, 4]) and data.halves(4) == ([0, 1], [2, 3])
    assert data.halves(1) == ([0], [])
    items = [("a", 0), ("b", 3), ("c", 4), ("d", 3)]
    assert data.select(items, [3, 4]) == [("b", 0), ("c", 1), ("d", 0)]
    assert data.select(items, [4, 0]) == [("a", 1), ("c", 0)]


# pictures -----------------------------------------------------------------------------------------

def picture_bytes(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


RED = Image.new("RGB", (12, 8), (200, 30, 30))
FLAG = RED.copy()
FLAG.paste("white", (6, 0, 12, 8))
ZOO = {                                     # file name: (bytes, the colour of its first pixel)
    "red.jpg": (picture_bytes(RED, "JPEG"), (200, 30, 30)),
    "red.PNG": (picture_bytes(RED, "PNG"), (200, 30, 30)),
    "red.webp": (picture_bytes(RED, "WEBP"), (200, 30, 30)),
    "grey.png": (picture_bytes(Image.new("L", (12, 8), 90), "PNG"), (90, 90, 90)),
    "cmyk.jpg": (picture_bytes(Image.new("CMYK", (12, 8), (0, 255, 0, 0)), "JPEG"), (255, 0, 255)),
    "palette.png": (picture_bytes(RED.quantize(4), "PNG"), (200, 30, 30)),
    "glass.png": (picture_bytes(FLAG.quantize(4), "PNG", transparency=bytes([5, 9])),
                  (200, 30, 30)),
    "alpha.png": (picture_bytes(Image.new("RGBA", (12, 8), (10, 20, 30, 0)), "PNG"), (10, 20, 30)),
    "grey_alpha.png": (picture_bytes(Image.new("LA", (12, 8), (70, 0)), "PNG"), (70, 70, 70)),
    "deep.png": (picture_bytes(Image.fromarray(np.full((8, 12), 257 * 120, np.uint16)), "PNG"),
                 (120, 120, 120)),
    "one_bit.png": (picture_bytes(Image.new("1", (12, 8), 1), "PNG"), (255, 255, 255)),
    "moving.gif": (picture_bytes(RED, "GIF", save_all=True,
                                 append_images=[Image.new("L", (12, 8))]), (200, 30, 30)),
}


def zoo(root):
    """12 classes with odd names, each with all 12 kinds of picture."""
    names = ["big dog", "café", "cafe", "Ärger", "under_score", "7", "ñandú", "日本", "q-w", "a.b",
             "x'y", "zoo"]
    on_disk = [unicodedata.normalize("NFD", name) if i % 2 else name
               for i, name in enumerate(names)]
    write(root,
          {f"{name}/{file}": content for name in on_disk for file, (content, _) in ZOO.items()})
    return names


@pytest.mark.filterwarnings("error")
def test_own_folder_zoo(tmp_path):
    root = tmp_path / "my pets"
    names = zoo(root)
    write(root, {"notes.txt": "not a picture", "zoo/list.csv": "1,2", ".hidden/x.jpg": "no"})
    dataset = data.load(str(root))
    assert dataset.classnames == sorted(names) and dataset.name == "my pets" and dataset.own
    assert not dataset.base_novel and not dataset.official_split and "seed 1" in dataset.split
    sizes = [len(part) for part in (dataset.train, dataset.val, dataset.test)]
    assert sizes == [84, 0, 60]                             # 7 and 5 a class
    assert any("2 files that are not read as pictures" in note and "notes.txt" in note
               for note in dataset.notes)
    for picture, label in dataset.train + dataset.val + dataset.test:
        image = dataset.open(picture)
        assert image.mode == "RGB" and image.size == (12, 8)
        assert np.abs(np.subtract(image.getpixel((0, 0)),
                                  ZOO[Path(picture).name][1])).max() <= 6, picture
        assert unicodedata.normalize("NFC", picture.split("/")[0]) == dataset.classnames[label]
    data.check_pictures(dataset, dataset.train)
    x, y = data.Pictures(dataset, dataset.test, data.transform(16, train=False))[0]
    assert x.shape == (3, 16, 16) and y == dataset.test[0][1]
    assert data.load(str(root)).train == dataset.train
    assert data.load(str(root), seed=2).train != dataset.train
    assert not list(root.glob("*.json"))                    # nothing of ours in a user's folder


def test_heic_files_are_named_with_the_remedy(tmp_path):
    root = write(tmp_path, {f"{key}/{i}.jpg": None for key in "ab" for i in range(4)})
    write(root, {"a/notes.txt": "x", "a/z.HEIC": "x", "b/y.heif": "x"})
    note, = data.load(str(root)).notes
    assert "3 files that are not read as pictures" in note
    assert "2 of them HEIC, first a/z.HEIC: convert to JPEG" in note
    write(root, {"c/1.heic": "x"})
    with pytest.raises(ValueError, match="c: class folder without a picture.*convert to JPEG"):
        data.load(str(root))


def test_exif_turns_own_pictures_only(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6                                        # turn by 90 degrees
    turned = picture_bytes(RED, "JPEG", exif=exif)
    root = write(tmp_path, {f"{key}/{i}.jpg": turned for key in ("a", "b") for i in range(4)})
    own = data.load(str(root))
    assert own.open(own.train[0][0]).size == (8, 12)
    own.own = False                                         # CoOp's datasets
    assert own.open(own.train[0][0]).size == (12, 8)


def test_unreadable_and_missing_pictures_come_in_one_error(tmp_path, monkeypatch):
    files = {f"{key}/{i}.png": None for key in ("a", "b") for i in range(10)}
    files |= {"a/3.png": "not a picture", "a/4.png": b"", "b/5.png": JPEG[:len(JPEG) // 2]}
    dataset = data.load(str(write(tmp_path, files)))
    (tmp_path / "b/6.png").unlink()
    items = dataset.train + dataset.val + dataset.test
    with pytest.raises(ValueError, match="4 of 20 pictures") as caught:
        data.check_pictures(dataset, items)
    assert all(name in str(caught.value)
               for name in ("a/3.png", "a/4.png", "b/5.png", "b/6.png: picture not found"))
    with pytest.raises(ValueError, match="1 of 20 pictures"):
        data.check_pictures(dataset, items, decode=False)
    data.check_pictures(dataset, [item for item in items if item[0] == "b/7.png"])
    with pytest.raises(ValueError, match="a/3.png: not a readable picture"):
        dataset.open("a/3.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match="b/7.png.*pixels"):
        dataset.open("b/7.png")


@pytest.mark.parametrize("name",
                         ["../x.jpg", "a/../../x.jpg", "/etc/passwd", "", "a\\b.jpg", "C:x.jpg"])
def test_no_picture_name_leaves_the_folder(name, tmp_path):
    write(tmp_path, {"x.jpg": None, "in/a/1.jpg": None})
    dataset = toy()
    dataset.pictures = tmp_path / "in"
    with pytest.raises(ValueError, match="relative path"):
        dataset.open(name)


def test_a_symbolic_link_to_the_pictures_works(tmp_path):
    """CoOp's instructions link ImageNet's train and val into $DATA."""
    write(tmp_path / "elsewhere", {f"{part}/n01440764/1.JPEG": None for part in ("train", "val")})
    (tmp_path / "imagenet/images").mkdir(parents=True)
    for part in ("train", "val"):
        (tmp_path / "imagenet/images" / part).symlink_to(tmp_path / "elsewhere" / part)
    dataset = data.load("imagenet", tmp_path)
    assert dataset.open(dataset.train[0][0]).size == (9, 7)


def test_transforms_are_clips(tmp_path):
    white = Image.new("RGB", (50, 40), "white")
    x = data.transform(20, train=False)(white)
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    by_hand = [(1 - m) / s for m, s in zip(mean, std, strict=True)]
    assert x.shape == (3, 20, 20) and torch.allclose(x[:, 5, 5], torch.tensor(by_hand))
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8))
    small = noise.resize((25, 20), Image.Resampling.BICUBIC)            # the shorter edge,
    bicubic = torch.tensor(np.asarray(small.crop((2, 0, 22, 20))) / 255)    # then the centre
    std, mean = (torch.tensor(values)[:, None, None] for values in (data.CLIP_STD, data.CLIP_MEAN))
    back = data.transform(20, train=False)(noise) * std + mean
    assert torch.allclose(back, bicubic.permute(2, 0, 1).float(), atol=1e-5)
    crop, flip, *_ = data.transform(20, train=True).transforms
    assert crop.scale == (0.08, 1.0) and crop.interpolation.value == "bicubic" and flip.p == 0.5
    assert data.transform(20, train=True, crop_scale=(0.5, 1.0)).transforms[0].scale == (0.5, 1.0)


# batches -----------------------------------------------------------------------------------------

def in_memory(n):
    """A dataset of n one-coloured pictures in memory: the i-th is all i, with label i."""
    pictures = {str(i): Image.new("RGB", (8, 8), (i, i, i)) for i in range(n)}
    items = [(str(i), i) for i in range(n)]
    names = [f"class {i}" for i in range(n)]
    return data.Dataset("toy", names, "{}", items, [], items, "", False, pictures)


def greys(images):
    """The colour of each picture of a batch, from CLIP's mean and spread of red."""
    return [round((x * 0.26862954 + 0.48145466) * 255) for x in images[:, 0, 2, 2].tolist()]


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_batches_come_in_order_and_whole(device):
    dataset = in_memory(7)
    loader = data.batches(dataset, dataset.test, 4, device, batch_size=3)
    seen = [(images.shape, greys(images), labels.tolist()) for images, labels in loader]
    assert seen == [((3, 3, 4, 4), [0, 1, 2], [0, 1, 2]), ((3, 3, 4, 4), [3, 4, 5], [3, 4, 5]),
                    ((1, 3, 4, 4), [6], [6])]
    assert (loader.num_workers, loader.pin_memory, dataset.embedded) == (0, False, True)
    assert data.batches(dataset, dataset.test, 4, device).batch_size == 100
    with pytest.raises(ValueError, match="toy: none of the classes to evaluate has a test picture"):
        data.batches(dataset, [], 4, device)


def test_training_batches_are_drawn_from_seed_and_epoch_and_whole():
    dataset = in_memory(7)
    loader = data.training_batches(dataset, dataset.train, 4, "cpu", 3, epochs=2, seed=5)
    batches = [labels.tolist() for _, labels in loader]
    assert [len(batch) for batch in batches] == [3] * 4                     # no small last one
    for epoch in (0, 1):
        generator = torch.Generator().manual_seed(zlib.crc32(f"5 {epoch}".encode()))
        order = torch.randperm(7, generator=generator).tolist()
        assert batches[2 * epoch] + batches[2 * epoch + 1] == order[:6]
    assert batches[:2] != batches[2:]
    small, = data.training_batches(dataset, dataset.train, 4, "cpu", 20, epochs=1, seed=5)
    assert sorted(small[1].tolist()) == list(range(7)) and small[0].shape == (7, 3, 4, 4)
    dataset.crop_scale = (0.5, 1.0)
    loader = data.training_batches(dataset, dataset.train, 4, "cpu", 3, epochs=1, seed=5)
    assert loader.dataset.transform.transforms[0].scale == (0.5, 1.0)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_only_where_many_pictures_lie_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    dataset = toy()
    dataset.pictures = tmp_path                             # a folder: not embedded

    def workers(n, device):
        return data.batches(dataset, dataset.train[:n], 4, device).num_workers

    assert not dataset.embedded
    assert (workers(100, "cpu"), workers(101, "cpu")) == (0, 3)
    assert workers(1, "cuda:0") == 3                        # a GPU must not wait
    dataset.pictures = {}
    assert workers(101, "cuda") == 0


# writing -----------------------------------------------------------------------------------------

def test_write_is_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "x.csv"
    assets.files.write_csv(path, [("a", "b,c"), (1, "é")])
    assert path.read_bytes() == 'a,"b,c"\n1,é\n'.encode()
    assets.files.write(str(path), b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff" and os.listdir(tmp_path) == ["x.csv"]

    def full(self, content):
        self.touch()
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"x.csv: can't be written \(No space left") as caught:
        assets.files.write(path, "new")
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["x.csv"] and path.read_bytes() == b"\x00\xff"


@pytest.mark.skipif(os.name != "posix", reason="it has no /dev/null")
def test_write_replaces_plain_files_only(tmp_path):
    for path in ("/dev/null", tmp_path):
        with pytest.raises(ValueError, match=f"{path}: not a plain file"):
            assets.files.write(path, "x")
    assert Path("/dev/null").is_char_device() and os.listdir(tmp_path) == []
    with pytest.raises(OSError, match="x/y.txt: can't be written"):
        assets.files.write(tmp_path / "x" / "y.txt", "x")


# a folder of one's own ----------------------------------------------------------------------------

def own(root, **parts):
    """own(root, train={"a": 3}) -> pictures in train/a; own(root, a=3) -> in a."""
    for part, classes in parts.items():
        for key, n in (classes if isinstance(classes, dict) else {"": classes}).items():
            (root / part / key).mkdir(parents=True, exist_ok=True)
            write(root / part / key, {f"{i}.jpg": None for i in range(n)})
    return str(root)


def test_own_folder_with_its_own_division(tmp_path):
    dataset = data.load(own(tmp_path / "1", train={"b": 3, "a": 2}, test={"a": 2, "b": 1}))
    assert dataset.train == [("train/a/0.jpg", 0), ("train/a/1.jpg", 0),
                             *((f"train/b/{i}.jpg", 1) for i in range(3))]
    assert [name for name, _ in dataset.test] == ["test/a/0.jpg", "test/a/1.jpg", "test/b/0.jpg"]
    assert dataset.val == []
    dataset = data.load(own(tmp_path / "2", train={"a": 2}, val={"a": 1}, test={"a": 4}))
    assert [len(part) for part in (dataset.train, dataset.val, dataset.test)] == [2, 1, 4]
    dataset = data.load(own(tmp_path / "3", train={"a": 2}, val={"a": 1}))
    assert dataset.test == [("val/a/0.jpg", 0)] and dataset.val == []
    assert "val/ is used for testing" in dataset.notes[0]
    dataset = data.load(own(tmp_path / "4", train={"a": 2, "b": 1}, test={"a": 1}))
    assert "1 of 2 classes have no test picture: b" in dataset.notes[0]


@pytest.mark.parametrize("parts, fault", [
    ({"a": 4, "empty one": 0}, "empty one: class folder without a picture"),
    ({"train": {"a": 2}, "test": {"a": 1, "b": 1}}, "test/b/0.jpg of class 'b'"),
    ({"train": {"a": 2}, "other": 1}, "train/ without test/"),
    ({"a": 4, "b": 1}, "b/0.jpg is the only picture"),
    ({"": 3}, "expected one sub-folder for each class, found 3 loose files"),
    ({}, "no such folder"),
])
def test_own_folder_refused(parts, fault, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=fault):
        data.load(own(tmp_path / "mine", **parts))


def test_own_folder_small_classes_keep_a_test_picture(tmp_path):
    dataset = data.load(own(tmp_path, two=2, three=3, four=4, five=5))
    counts = [[Counter(label for _, label in items)[k] for k in range(4)]   # five four three two
              for items in (dataset.train, dataset.val, dataset.test)]
    assert counts == [[3, 2, 2, 1], [0] * 4, [2, 2, 1, 1]]


def test_own_class_names_from_a_file(tmp_path):
    folder = own(tmp_path / "mine", b=4, a=4, **{unicodedata.normalize("NFD", "é"): 4})
    names = tmp_path / "names.txt"
    names.write_text(f"b\tbig cat\n{'é'}\tan accent\na\tsmall cat\n", encoding="utf-8")
    assert data.load(folder, classnames=names).classnames == ["small cat", "big cat", "an accent"]
    names.write_text("first\nsecond\nthird\n")              # no tab: in sorted order of the folders
    assert data.load(folder, classnames=str(names)).classnames == ["first", "second", "third"]
    names.write_text("first\nsecond\nfirst\n")
    twice = data.load(folder, classnames=names)
    assert twice.classnames == ["first", "second", "first"]
    assert "1 class names stand for several classes" in twice.notes[-1]
    for bad, fault in (("first\nsecond\n", "got 2 lines"),
                       ("a\t\u200b\nb\ty\né\tz\n", "class 0 is named .*can't be seen"),
                       ("a\t\nb\ty\né\tz\n", "class 0 is named ''"),
                       ("a\tx\nb\ty\nc\tz\n", "does not fit: c"),
                       ("a\tx\na\ty\nb\tz\n", "does not fit")):
        names.write_text(bad, encoding="utf-8")
        with pytest.raises(ValueError, match=fault):
            data.load(folder, classnames=names)
    with pytest.raises(FileNotFoundError):
        data.load(folder, classnames=tmp_path / "none.txt")
    with pytest.raises(ValueError, match="eurosat has its own names"):
        data.load("eurosat", tmp_path, classnames=names)


@pytest.mark.parametrize("name", [b"a\xff/1.jpg", b"a/\xff.jpg"])
def test_names_that_are_not_utf8_are_refused_in_one_line(name, tmp_path):
    folder = Path(own(tmp_path / "mine", b=4))
    try:
        write(folder, {os.fsdecode(name): None})
    except OSError:
        pytest.skip("this file system has no such names")
    with pytest.raises(ValueError, match=r"xff|udcff.*not in UTF-8; rename it") as caught:
        data.load(folder)
    assert str(caught.value).isascii() and "\n" not in str(caught.value)


def test_a_class_folder_that_cannot_be_seen_is_refused(tmp_path):
    with pytest.raises(ValueError, match="can't be seen"):
        data.load(own(tmp_path / "mine", **{"a": 4, "\u200b": 4}))


# the command line ---------------------------------------------------------------------------------

def run(capsys, *argv):
    code = data.main([str(word) for word in argv])
    out, err = capsys.readouterr()
    return code, out, err


def test_command_line_json(tmp_path, capsys):
    root = write(tmp_path, split_file("dtd"))
    code, out, _ = run(capsys, "dtd", "--data-root", root, "--seed", 2, "--tau", "0.25", "--json")
    facts = json.loads(out)
    assert code == 0 and not (root / "dtd/images").exists()
    expected = {"num_classes": 3, "classnames": ["one", "two", "two_b"], "num_base": 2, "train": 60,
                "val": 15,
                "test": 9, "missing": 84}
    assert {key: facts[key] for key in expected} == expected
    assert facts["class_counts"] == [16, 4] and facts["official_split"] is False
    positions = data.few_shot([2] * 20 + [0] * 20 + [1] * 20, 16, 2)
    assert facts["draw_sha256"] == digest(positions)
    assert facts["first"] == [f"train_0_{p - 20}.jpg" for p in positions[16:19]]


def test_command_line_json_of_all_is_one_list(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(data, "ALL", ["dtd", "world"])
    code, out, _ = run(capsys, "all", "--data-root", write(tmp_path, split_file("dtd")), "--json")
    assert code == 0 and [facts["name"] for facts in json.loads(out)] == ["dtd", "world"]


def test_command_line_for_reading(tmp_path, capsys):
    code, out, _ = run(capsys, "dtd", "--data-root", write(tmp_path, split_file("dtd")))
    assert code == 0 and "3 classes, 2 base and 1 novel" in out and "missing 84" in out
    assert [line.split() for line in out.splitlines()[-3:]] == [
        ["0", "base", "16", "20", "3", "one"], ["1", "base", "16", "20", "3", "two"],
        ["2", "novel", "-", "20", "3", "two_b"]]
    code, out, _ = run(capsys, own(tmp_path / "mine", a=8, b=8, c=8), "--shots", 2)
    assert code == 0 and "novel" not in out and "not CoOp" not in out
    code, out, _ = run(capsys, tmp_path / "mine", "--shots", 2, "--base-novel", "--json")
    assert json.loads(out)["num_base"] == 2 and json.loads(out)["official_split"] is False
    code, out, _ = run(capsys)
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == data.NAMES
    assert len(data.ALL) == 11 and data.ALL[0] == "imagenet" and data.ALL[-1] == "ucf101"


@pytest.mark.parametrize("argv, fault", [
    (["eurosta"], "did you mean eurosat"), (["no/such/folder"], "no such folder"),
    (["dtd"], "split_zhou_Desc"),
    (["world", "--tau", "nan"], "tau"), (["world", "--tau", "0"], "tau"),
    (["eurosat", "--shots", "0"], "--shots must be at least 1"),
    (["eurosat", "--tau", "2"], "tau ="),                  # before the missing folder is seen
    (["eurosat", "--seed", "-1"], "--seed must be from 0"),
    (["world", "--seed", 2 ** 32], "--seed must be from 0 to 2^32 - 1"),
    (["world", "--shots", "0"], "shots"),
])
def test_command_line_errors_are_one_line_and_code_2(argv, fault, tmp_path, capsys):
    code, out, err = run(capsys, *argv, "--data-root", tmp_path)
    assert code == 2 and out == "" and err.startswith("error: ") and fault in err
    assert err.count("\n") == 1


def test_world_is_a_dataset_like_the_others(monkeypatch):
    picture = Image.new("RGBA", (32, 32))
    items = [("a.png", 0), ("b.png", 1)]
    monkeypatch.setattr(data.world, "draw",
                        lambda name: (["a", "b"], {"train": items, "val": [], "test": items[::-1]},
                                                          {"a.png": picture, "b.png": picture}))
    dataset = data.load("world")
    assert (dataset.train, dataset.test, dataset.classnames) == (items, items[::-1], ["a", "b"])
    assert dataset.open("a.png").mode == "RGB" and dataset.crop_scale == (0.5, 1.0)
    assert data.missing(dataset, items) == []
    assert dataset.base_novel and not dataset.own and not dataset.test_only


def test_help_says_what_is_taken_where_an_option_is_absent(capsys):
    with pytest.raises(SystemExit) as caught:
        data.main(["--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0 and "default: None" not in out
    assert out.count("absent: ") == 9                       # the name and eight options
