"""The table of the paper's 15 datasets: where each lies, how it is read, how it is obtained.

To add a dataset in class folders, add a row with `read_folders`.
"""
import contextlib
import os
import re
import sys
import tempfile
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import torchvision

from assets.files import NOT_UTF8, read_lines

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
HEIC = (".heic", ".heif")               # an iPhone's: PIL reads them with a plug-in only


# Readers: what lies on disk, each class by its id (a folder name, a line of a list) ---------------
# A reader gets the picture folder, `need` (finds a list by name), the notes, and what to skip. It
# returns (ids in label order, parts); parts holds lists of (picture name, id) under "all" or
# "trainval" where `divide` has work to do, else under train, val and test.

def one_spelling(name):
    return unicodedata.normalize("NFC", name)       # accents are stored in two ways, by system


def class_folders(folder, prefix="", skip=(), notes=None):
    """A sub-folder for each class -> {folder name: sorted picture names}, in order of the folders.

    From CoOp, but sorted: its listings come in directory order, so its draws differ by machine.
    """
    classes, stray = {}, []
    for entry in sorted(os.scandir(folder), key=lambda entry: one_spelling(entry.name)):
        if entry.name.startswith(".") or entry.name in skip:
            continue
        if not entry.is_dir():
            stray.append(entry.name)
            continue
        files = sorted(f"{entry.name}/{name}" for name in os.listdir(entry.path)
                       if not name.startswith("."))
        names = [name for name in files if name.lower().endswith(ENDINGS)]
        stray += [name for name in files if not name.lower().endswith(ENDINGS)]
        odd = next(filter(NOT_UTF8.search, [entry.name, *names]), None)
        if odd:
            raise ValueError(f"{str(folder)!r}: the name {odd!r} is not in UTF-8; rename it")
        if not names:
            raise ValueError(f"{entry.path}: class folder without a picture ({' '.join(ENDINGS)}); "
                             "fill it (HEIC: convert to JPEG) or remove it")
        classes.setdefault(one_spelling(entry.name), []).extend(prefix + name for name in names)
    if not classes:
        raise ValueError(f"{folder}: expected one sub-folder for each class, found {len(stray)} "
                         "loose files; move the pictures into class folders (for ImageNet's val/: "
                         "val/<wnid>/)")
    if stray and notes is not None:
        notes.append(stray_note(folder, stray))
    return classes


def stray_note(folder, stray):
    note = f"{len(stray)} files that are not read as pictures ignored in {folder}, first {stray[0]}"
    heic = [name for name in stray if name.lower().endswith(HEIC)]
    if heic:
        note += f"; {len(heic)} of them HEIC, first {heic[0]}: convert to JPEG to use them"
    return os.fsencode(note).decode(errors="replace")


def items_of(classes):
    return [(name, key) for key, names in classes.items() for name in names]


def read_folders(pictures, need, notes, skip=()):
    """Class folders undivided (Caltech101, Food101, DTD, EuroSAT), or the same under train/ and
    test/ and, if there, val/, which serves for testing where test/ is absent."""
    if not (pictures / "train").is_dir():
        classes = class_folders(pictures, "", skip, notes)
        return list(classes), {"all": items_of(classes)}
    have = [part for part in ("train", "val", "test") if (pictures / part).is_dir()]
    if len(have) < 2:
        raise ValueError(f"{pictures}: train/ without test/ (or val/); expected both, or the class "
                         "folders alone")
    classes = {part: class_folders(pictures / part, part + "/", skip, notes) for part in have}
    parts = {"val": []} | {part: items_of(found) for part, found in classes.items()}
    if "test" not in parts:
        parts["test"], parts["val"] = parts["val"], []
        notes.append("no test/: val/ is used for testing")
    return list(classes["train"]), parts


def read_imagenet(pictures, need, notes, skip=()):
    """Class folders under train/ and val/; the published val is the test list."""
    for part in ("train", "val"):
        if not (pictures / part).is_dir():
            raise FileNotFoundError(f"{pictures / part}: folder not found; expected train/<wnid>/ "
                                    "and val/<wnid>/")
    train, val = (class_folders(pictures / part, part + "/", notes=notes)
                  for part in ("train", "val"))
    return list(train), {"train": items_of(train), "val": items_of(val), "test": items_of(val)}


def read_variant(pictures, need, notes, skip=()):
    """Class folders, one list as both train and test; ImageNetV2's folders are label numbers."""
    classes = class_folders(pictures, "", skip, notes)
    numbered = all(key.isdecimal() for key in classes)
    ids = sorted(classes, key=int) if numbered else list(classes)
    return ids, {"train": items_of(classes), "val": [], "test": items_of(classes)}


def read_pets(pictures, need, notes, skip=()):
    """annotations/trainval.txt and test.txt: `Abyssinian_100 1 1 1`, name and label from 1."""
    parts, numbers = {}, {}
    for part in ("trainval", "test"):
        path = need(f"annotations/{part}.txt")
        parts[part] = []
        for columns in (line.split() for line in read_lines(path) if not line.startswith("#")):
            if len(columns) < 2 or not columns[1].isdecimal():
                raise ValueError(f"{path}: expected `name label species breed` in each line, "
                                 f"got {' '.join(columns)!r}")
            breed = columns[0].rpartition("_")[0]
            numbers[breed] = int(columns[1])
            parts[part].append((columns[0] + ".jpg", breed))
    return sorted(numbers, key=numbers.get), parts


def read_sun(pictures, need, notes, skip=()):
    """ClassName.txt and partition 01: `/a/abbey/sun_xxx.jpg`, the class is the folder."""
    ids, trainval, test = ([line.lstrip("/") for line in read_lines(need(f"{file}.txt"))]
                           for file in ("ClassName", "Training_01", "Testing_01"))
    return ids, {part: [(line, line.rpartition("/")[0]) for line in lines]
                 for part, lines in (("trainval", trainval), ("test", test))}


def read_ucf(pictures, need, notes, skip=()):
    """classInd.txt (`1 YoYo`) and split 01 (`YoYo/v_xxx.avi 1`); one frame of each clip is used."""
    parts = {}
    for part, name in (("trainval", "trainlist01.txt"), ("test", "testlist01.txt")):
        lines = read_lines(need(f"ucfTrainTestlist/{name}"))
        clips = [line.split()[0].partition("/") for line in lines]
        parts[part] = [(f"{camel_to_words(action)}/{clip.removesuffix('.avi')}.jpg", action)
                       for action, _, clip in clips]
    return [line.split()[-1] for line in read_lines(need("ucfTrainTestlist/classInd.txt"))], parts


def read_aircraft(pictures, need, notes, skip=()):
    """variants.txt and the official lists: `0034309 707-320`; nothing is left to divide."""
    parts = {}
    for part in ("train", "val", "test"):
        pairs = [line.partition(" ") for line in read_lines(need(f"images_variant_{part}.txt"))]
        parts[part] = [(number + ".jpg", variant) for number, _, variant in pairs]
    return read_lines(need("variants.txt")), parts


def unreadable(name):
    """True for a class name with bytes that no UTF-8 has, or with no character that is seen."""
    unseen = ("Cc", "Cf", "Zs", "Zl", "Zp")         # control, format, spaces
    return bool(NOT_UTF8.search(name)) or all(unicodedata.category(c) in unseen for c in name)


# The table: from CoOp, datasets/*.py and DATASETS.md ----------------------------------------------

def camel_to_words(action):
    return "_".join(re.findall("[A-Z][^A-Z]*", action))     # ApplyEyeMakeup -> Apply_Eye_Makeup


def sun_name(place):
    return " ".join(reversed(place.split("/")[1:]))         # a/apse/indoor -> indoor apse


CALTECH = {"airplanes": "airplane", "Faces": "face", "Leopards": "leopard",
           "Motorbikes": "motorbike"}
EUROSAT = {
    "AnnualCrop": "Annual Crop Land", "Forest": "Forest",
    "HerbaceousVegetation": "Herbaceous Vegetation Land", "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings", "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land", "Residential": "Residential Buildings",
    "River": "River", "SeaLake": "Sea or Lake"}


@dataclass(frozen=True)
class Row:
    classes: int                    # K in the papers
    places: tuple                   # (folder, pictures in it): CoOp's first, torchvision's last
    source: str                     # what to get where nothing can fetch it
    reader: object = None           # None: lists are .mat files, CoOp's split file is needed
    template: str = "a photo of a {}."
    split: str = ""                 # CoOp's split file, in the folder of `places`
    drive: str = ""                 # its Google Drive id, from CoOp's DATASETS.md
    first: str = ""                 # its first training picture, to tell it from a private split
    rename: object = str            # class id -> class name
    skip: tuple = ()                # what lies among the class folders and is none
    fetch: str = ""                 # the torchvision class that downloads it
    wordnet: bool = False           # ImageNet family: classes are WordNet ids
    base_novel: bool = True         # False: halved only where that is asked for


ROWS = {
    "imagenet": Row(
        1000, (("imagenet", "images"), ("imagenet", "")),
        "ILSVRC2012 train and val from image-net.org (account needed)", read_imagenet,
        wordnet=True),
    "caltech101": Row(
        100, (("caltech-101", "101_ObjectCategories"), ("caltech101", "101_ObjectCategories")),
        "caltech-101.zip from data.caltech.edu/records/mzrjq-6wc02", read_folders,
        split="split_zhou_Caltech101.json", drive="1hyarUivQE36mY6jSomru6Fjd-JzwcCzN",
        first="Faces/image_0274.jpg", rename=lambda key: CALTECH.get(key, key),
        skip=("BACKGROUND_Google", "Faces_easy"), fetch="Caltech101"),
    "oxford_pets": Row(
        37, (("oxford_pets", "images"), ("oxford-iiit-pet", "images")),
        "images.tar.gz and annotations.tar.gz from robots.ox.ac.uk/~vgg/data/pets", read_pets,
        "a photo of a {}, a type of pet.",
        split="split_zhou_OxfordPets.json", drive="1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs",
        first="Abyssinian_122.jpg", rename=str.lower, fetch="OxfordIIITPet"),
    "stanford_cars": Row(
        196, (("stanford_cars", ""),),
        "cars_train/ and cars_test/ (original site gone; mirrors of Stanford Cars exist)",
        split="split_zhou_StanfordCars.json", drive="1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT",
        first="cars_train/05266.jpg"),
    "oxford_flowers": Row(
        102, (("oxford_flowers", "jpg"), ("flowers-102", "jpg")),
        "102flowers.tgz from robots.ox.ac.uk/~vgg/data/flowers/102", None,
        "a photo of a {}, a type of flower.",
        split="split_zhou_OxfordFlowers.json", drive="1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT",
        first="image_00190.jpg", fetch="Flowers102"),
    "food101": Row(
        101, (("food-101", "images"),), "food-101.tar.gz from data.vision.ee.ethz.ch/cvl",
        read_folders, "a photo of {}, a type of food.",
        split="split_zhou_Food101.json", drive="1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl",
        fetch="Food101"),
    "fgvc_aircraft": Row(
        100, (("fgvc_aircraft", "images"), ("fgvc-aircraft-2013b/data", "images")),
        "fgvc-aircraft-2013b.tar.gz (its data/ folder) from "
        "robots.ox.ac.uk/~vgg/data/fgvc-aircraft",
        read_aircraft, "a photo of a {}, a type of aircraft.", fetch="FGVCAircraft"),
    "sun397": Row(
        397, (("sun397", "SUN397"), ("", "SUN397")),
        "SUN397.tar.gz and Partitions.zip from vision.princeton.edu/projects/2010/SUN "
        "(reported gone)", read_sun,
        split="split_zhou_SUN397.json", drive="1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq",
        rename=sun_name, fetch="SUN397"),
    "dtd": Row(
        47, (("dtd", "images"), ("dtd/dtd", "images")),
        "dtd-r1.0.1.tar.gz from robots.ox.ac.uk/~vgg/data/dtd", read_folders, "{} texture.",
        split="split_zhou_DescribableTextures.json", drive="1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x",
        first="banded/banded_0133.jpg", fetch="DTD"),
    "eurosat": Row(
        10, (("eurosat", "2750"),),
        "EuroSAT.zip (RGB) from huggingface.co/datasets/torchgeo/eurosat", read_folders,
        "a centered satellite photo of {}.",
        split="split_zhou_EuroSAT.json", drive="1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o",
        first="AnnualCrop/AnnualCrop_1381.jpg", rename=lambda key: EUROSAT.get(key, key),
        fetch="EuroSAT"),
    "ucf101": Row(
        101, (("ucf101", "UCF-101-midframes"),),
        "UCF-101-midframes.zip (Google Drive id 10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O)", read_ucf,
        "a photo of a person doing {}.",
        split="split_zhou_UCF101.json", drive="1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y",
        first="Apply_Eye_Makeup/v_ApplyEyeMakeup_g12_c03.jpg", rename=camel_to_words),
    "imagenetv2": Row(
        1000, (("imagenetv2", "imagenetv2-matched-frequency-format-val"),),
        "imagenetv2-matched-frequency.tar.gz from huggingface.co/datasets/vaishaal/ImageNetV2",
        read_variant, wordnet=True, base_novel=False),
    "imagenet_sketch": Row(
        1000, (("imagenet-sketch", "images"), ("imagenet-sketch", "sketch")),
        "ImageNet-Sketch.zip, see github.com/HaohanWang/ImageNet-Sketch",
        read_variant, wordnet=True, base_novel=False),
    "imagenet_a": Row(
        200, (("imagenet-adversarial", "imagenet-a"),),
        "imagenet-a.tar, see github.com/hendrycks/natural-adv-examples",
        read_variant, skip=("README.txt",), wordnet=True, base_novel=False),
    "imagenet_r": Row(
        200, (("imagenet-rendition", "imagenet-r"),),
        "imagenet-r.tar, see github.com/hendrycks/imagenet-r",
        read_variant, skip=("README.txt",), wordnet=True, base_novel=False),
}


# How a row is found and fetched ------------------------------------------------------------------

def first_file(name, folders):
    return next((folder / name for folder in folders if name and (folder / name).is_file()), None)


def picture_folder(row, root):
    """The first layout that is there; where none is, CoOp's.

    ImageNet's torchvision layout is its parent folder, which must show its train/ to be taken.
    """
    for folder, pictures in row.places:
        place = root / folder / pictures
        if place.is_dir() and (pictures or not row.wordnet or (place / "train").is_dir()):
            return place
    return root.joinpath(*row.places[0])


def how_to_get(name, root, problem):
    row = ROWS[name]
    place, steps = root.joinpath(*row.places[0]), f"get {row.source}"
    if row.fetch and "fetch" not in problem:
        steps += f" (python data.py {name} --fetch downloads it)"
    steps += f", so that {place} holds the pictures"
    if row.split:
        steps += f", and {row.split} (Google Drive id {row.drive}) into {root / row.places[0][0]}"
    return f"{name}: {problem}; {steps}"


def download(name, root):
    """Let torchvision fetch a dataset, then move it to CoOp's layout: nothing unfinished ever
    stands in its place. FileNotFoundError where that fails; no new empty folder is left."""
    row = ROWS[name]
    target, made = root / row.places[0][0], row.places[-1][0]
    new = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".fetching-") as scratch:
            with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(ImportError):
                # Flowers102 wants scipy at the end, for lists that CoOp's split replaces
                getattr(torchvision.datasets, row.fetch)(scratch, download=True)
            target.mkdir(parents=True, exist_ok=True)
            for entry in (Path(scratch) / made).iterdir():
                archive = entry.suffix in (".zip", ".gz", ".tgz")
                if not archive and not (target / entry.name).exists():
                    os.replace(entry, target / entry.name)
    except Exception as problem:                    # URLError, a wrong sum, a full disk, ...
        problem = f"torchvision could not fetch it ({problem})"
        raise FileNotFoundError(how_to_get(name, root, problem)) from None
    finally:
        for folder in new:
            with contextlib.suppress(OSError):      # not empty: it holds the data
                folder.rmdir()


def imagenet_names(ids, path, notes):
    """-> (WordNet ids, names) of folders named by WordNet id or, in ImageNetV2, by line number.

    path is CoOp's classnames.txt, `n01440764 tench`; without it the asset serves, the names that
    CLIP's authors chose.
    """
    asset = Path(__file__).with_name("imagenet.tsv")
    ours, names = dict(line.split(maxsplit=1) for line in read_lines(asset)), {}
    for line in read_lines(path) if path else []:
        wnid, name, *_ = *line.split(maxsplit=1), ""
        if not name or wnid in names:
            raise ValueError(f"{path}: expected a new WordNet id and a name in each line, "
                             f"got {line!r}")
        names[wnid] = name
    other = [wnid for wnid in names if names[wnid] != ours.get(wnid)]
    if other:
        notes.append(f"{path} departs from CLIP's names in {len(other)} lines, first {other[0]} "
                     f"{names[other[0]]!r}")
    names = names or ours
    if all(key.isdecimal() for key in ids):
        if int(ids[-1]) >= len(names):
            raise ValueError(f"class folder {ids[-1]}: there are only {len(names)} class names, "
                             "numbered from 0")
        ids = [list(names)[int(key)] for key in ids]
    unknown = next((wnid for wnid in ids if wnid not in names), None)
    if unknown:
        raise ValueError(f"class folder {unknown}: {path or 'assets/imagenet.tsv'} has no name "
                         "for it")
    return ids, [names[wnid] for wnid in ids]
