"""Datasets: the 15 of the paper as rows of one table, the embedded world, and a folder of one's own.

    python data.py                                      # the names, and how each is obtained
    python data.py eurosat --data-root data             # what a run would see; opens no picture
    python data.py path/to/my/folder --shots 8 --json

The way of every dataset: a row of ROWS says where it lies and what differs; a reader lists pictures with their class;
`divide` makes train, val and test of what is not divided yet; the few-shot draw picks from the training list. Where
CoOp's split file is present it replaces the second and third step.

    K    classes, labels 0..K-1               base   the first ceil(K/2) labels, Sec. 5: trained on
    n_k  training images of class k           novel  the rest: tested on with unseen class names
    tau  min n_k / max n_k, Sec. 5            item   (picture name relative to the picture folder, label)

The split files, class names, folder layout and few-shot draws are those of CoOp, which CoCoOp and MaPLe share.
"""
import argparse
import contextlib
import difflib
import hashlib
import json
import os
import random
import re
import sys
import tempfile
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import torch
import torchvision
from PIL import Image, ImageOps
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from assets import world

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass
class Dataset:
    name: str
    classnames: list                # in label order, as in the split file: "_" becomes a space in the prompt
    template: str                   # of zero-shot CLIP
    train: list                     # items
    val: list                       # may be empty; ImageNet's is its test list, as in CoOp
    test: list
    split: str                      # in words, for every result
    official_split: bool            # True where results are comparable with the papers'
    pictures: Path | dict           # the folder that names start from, or the pictures themselves
    class_ids: list | None = None   # WordNet ids for the ImageNet family
    base_novel: bool = True         # whether base and novel classes are told apart without being asked for
    exif: bool = False              # From CoOp: EXIF orientation is ignored; a folder of one's own honours it
    crop_scale: tuple = (0.08, 1.0)     # random crop in training; the small pictures of the world bear less
    notes: list = field(default_factory=list)       # what a user should know before trusting a result

    @property
    def test_only(self):
        """ImageNet's variants: From CoOp, their training list is their test list, and nothing may be trained on it."""
        return self.train == self.test

    def path(self, name):
        """Where a picture lies. No name leads out of the folder; a symbolic link inside it is its owner's choice, and
        CoOp's instructions for ImageNet make one."""
        if escapes(name):
            raise ValueError(f"{self.name}: picture {name!r} must be a relative path inside {self.pictures}")
        return self.pictures / name

    def open(self, name):
        """The picture in RGB, whatever it was: From CoOp, converted at load, before any resizing, alpha dropped."""
        if isinstance(self.pictures, dict):
            return self.pictures[name].convert("RGB")
        return open_picture(self.path(name), self.exif)


def open_picture(path, exif):
    """A picture file in RGB; exif: turned as its orientation tag says. ValueError for a file that is no picture."""
    try:
        with Image.open(path) as image:
            if exif:
                image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):              # 16 bits: PIL would clip at 255 and give a white picture
                image = image.point(lambda value: value * (1 / 257)).convert("L")
            if image.mode == "P" and "transparency" in image.info:
                image = image.convert("RGBA")           # same colours as the direct way, which warns
            return image.convert("RGB")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: picture not found") from None
    except Exception as problem:                        # PIL's formats raise many kinds, struct.error among them
        raise ValueError(f"{path}: not a readable picture ({problem})") from None


# Readers: what lies on disk, each class by its id (a folder name, a line of a list) -----------------------------------
# A reader returns (ids in label order, parts); parts holds lists of (picture name, id) under "all" or "trainval"
# where `divide` has work to do, else under train, val and test.

def escapes(path):
    """True for a path that is not plainly inside its folder: empty, absolute, with a drive, a backslash or '..'."""
    pure = PurePosixPath(path)
    return not path or pure.is_absolute() or ".." in pure.parts or bool(re.search(r"\\|\0|^[A-Za-z]:", path))


def read_lines(path):
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected a text file in UTF-8") from None


def class_folders(folder, prefix="", skip=(), notes=None):
    """A sub-folder for each class -> {folder name: sorted picture names}, in sorted order of the folders.

    From CoOp, but sorted: its listings come in directory order, so its draws differ between machines.
    """
    classes, stray = {}, []
    one_spelling = lambda name: unicodedata.normalize("NFC", name)      # accents are stored in two ways, by system
    for entry in sorted(os.scandir(folder), key=lambda entry: one_spelling(entry.name)):
        if entry.name.startswith(".") or entry.name in skip:
            continue
        if not entry.is_dir():
            stray.append(entry.name)
            continue
        files = sorted(name for name in os.listdir(entry.path) if not name.startswith("."))
        names = [f"{prefix}{entry.name}/{name}" for name in files if name.lower().endswith(ENDINGS)]
        stray += [f"{entry.name}/{name}" for name in files if not name.lower().endswith(ENDINGS)]
        if not names:
            raise ValueError(f"{entry.path}: class folder without a picture ({' '.join(ENDINGS)}); fill or remove it")
        classes.setdefault(one_spelling(entry.name), []).extend(names)
    if not classes:
        raise ValueError(f"{folder}: expected one sub-folder for each class, found {len(stray)} loose files; "
                         "move the pictures into class folders (for ImageNet's val/: val/<wnid>/)")
    if stray and notes is not None:
        notes.append(f"{len(stray)} files that are no pictures ignored in {folder}, first {stray[0]}")
    return classes


def items_of(classes):
    return [(name, key) for key, names in classes.items() for name in names]


def read_folders(row, pictures, need, notes):
    """Caltech101, Food101, DTD, EuroSAT: class folders, no division."""
    classes = class_folders(pictures, skip=row.skip, notes=notes)
    return list(classes), {"all": items_of(classes)}


def read_imagenet(row, pictures, need, notes):
    """Class folders under train/ and val/; the published val is the test list."""
    for part in ("train", "val"):
        if not (pictures / part).is_dir():
            raise FileNotFoundError(f"{pictures / part}: folder not found; expected train/<wnid>/ and val/<wnid>/")
    train, val = (class_folders(pictures / part, part + "/", notes=notes) for part in ("train", "val"))
    return list(train), {"train": items_of(train), "val": items_of(val), "test": items_of(val)}


def read_variant(row, pictures, need, notes):
    """Class folders, one list that serves as both train and test; ImageNetV2's folders are label numbers."""
    classes = class_folders(pictures, skip=row.skip, notes=notes)
    ids = sorted(classes, key=int) if all(key.isdecimal() for key in classes) else list(classes)
    return ids, {"train": items_of(classes), "val": [], "test": items_of(classes)}


def read_pets(row, pictures, need, notes):
    """annotations/trainval.txt and test.txt: `Abyssinian_100 1 1 1`, the second column is the label from 1."""
    parts, numbers = {}, {}
    for part in ("trainval", "test"):
        path = need(f"annotations/{part}.txt")
        rows = [line.split() for line in read_lines(path) if not line.startswith("#")]
        for columns in rows:
            if len(columns) < 2 or not columns[1].isdecimal():
                raise ValueError(f"{path}: expected `name label species breed` in each line, got {' '.join(columns)!r}")
            numbers[columns[0].rpartition("_")[0]] = int(columns[1])
        parts[part] = [(columns[0] + ".jpg", columns[0].rpartition("_")[0]) for columns in rows]
    return sorted(numbers, key=numbers.get), parts


def read_sun(row, pictures, need, notes):
    """ClassName.txt and partition 01: `/a/abbey/sun_xxx.jpg`, the class is the folder."""
    parts = {part: [(line.lstrip("/"), line.lstrip("/").rpartition("/")[0]) for line in read_lines(need(name))]
             for part, name in (("trainval", "Training_01.txt"), ("test", "Testing_01.txt"))}
    return [line.lstrip("/") for line in read_lines(need("ClassName.txt"))], parts


def read_ucf(row, pictures, need, notes):
    """classInd.txt (`1 ApplyEyeMakeup`) and split 01 (`ApplyEyeMakeup/v_xxx.avi 1`); one frame of each clip is used."""
    parts = {}
    for part, name in (("trainval", "trainlist01.txt"), ("test", "testlist01.txt")):
        clips = [line.split()[0].partition("/") for line in read_lines(need(f"ucfTrainTestlist/{name}"))]
        parts[part] = [(f"{camel_to_words(action)}/{clip.removesuffix('.avi')}.jpg", action)
                       for action, _, clip in clips]
    return [line.split()[-1] for line in read_lines(need("ucfTrainTestlist/classInd.txt"))], parts


def read_aircraft(row, pictures, need, notes):
    """variants.txt and the official lists: `0034309 707-320`; nothing is left to divide."""
    parts = {}
    for part in ("train", "val", "test"):
        pairs = [line.partition(" ") for line in read_lines(need(f"images_variant_{part}.txt"))]
        parts[part] = [(number + ".jpg", variant) for number, _, variant in pairs]
    return read_lines(need("variants.txt")), parts


# The table: from CoOp, datasets/*.py and DATASETS.md ------------------------------------------------------------------

def camel_to_words(action):
    return "_".join(re.findall("[A-Z][^A-Z]*", action))             # ApplyEyeMakeup -> Apply_Eye_Makeup


def sun_name(place):
    return " ".join(reversed(place.split("/")[1:]))                 # a/apse/indoor -> indoor apse


EUROSAT = {"AnnualCrop": "Annual Crop Land", "Forest": "Forest", "HerbaceousVegetation": "Herbaceous Vegetation Land",
           "Highway": "Highway or Road", "Industrial": "Industrial Buildings", "Pasture": "Pasture Land",
           "PermanentCrop": "Permanent Crop Land", "Residential": "Residential Buildings", "River": "River",
           "SeaLake": "Sea or Lake"}
CALTECH = {"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"}


@dataclass(frozen=True)
class Row:
    classes: int                    # K in the papers
    places: tuple                   # (folder, picture folder in it): CoOp's layout first, torchvision's last
    source: str                     # what to get where nothing can fetch it
    reader: object = None           # None: the lists are .mat files, so CoOp's split file is needed
    template: str = "a photo of a {}."
    split: str = ""                 # CoOp's split file, in the folder of `places`
    drive: str = ""                 # its Google Drive id, from CoOp's DATASETS.md
    first: str = ""                 # its first training picture: CoOp also saves private splits under this name
    rename: object = str            # class id -> class name
    skip: tuple = ()                # what lies among the class folders and is none
    fetch: str = ""                 # the torchvision class that downloads it
    wordnet: bool = False           # ImageNet family: classes are WordNet ids
    base_novel: bool = True


ROWS = {
    "imagenet": Row(1000, (("imagenet", "images"), ("imagenet", "")),
                    "ILSVRC2012 train and val from image-net.org (account needed)", read_imagenet, wordnet=True),
    "caltech101": Row(100, (("caltech-101", "101_ObjectCategories"), ("caltech101", "101_ObjectCategories")),
                      "caltech-101.zip from data.caltech.edu/records/mzrjq-6wc02", read_folders,
                      split="split_zhou_Caltech101.json", drive="1hyarUivQE36mY6jSomru6Fjd-JzwcCzN",
                      first="Faces/image_0274.jpg", rename=lambda key: CALTECH.get(key, key),
                      skip=("BACKGROUND_Google", "Faces_easy"), fetch="Caltech101"),
    "oxford_pets": Row(37, (("oxford_pets", "images"), ("oxford-iiit-pet", "images")),
                       "images.tar.gz and annotations.tar.gz from robots.ox.ac.uk/~vgg/data/pets", read_pets,
                       "a photo of a {}, a type of pet.", "split_zhou_OxfordPets.json",
                       "1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs", "Abyssinian_122.jpg", str.lower, fetch="OxfordIIITPet"),
    "stanford_cars": Row(196, (("stanford_cars", ""),),
                         "cars_train/ and cars_test/ (original site gone; mirrors of Stanford Cars exist)",
                         split="split_zhou_StanfordCars.json", drive="1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT",
                         first="cars_train/05266.jpg"),
    "oxford_flowers": Row(102, (("oxford_flowers", "jpg"), ("flowers-102", "jpg")),
                          "102flowers.tgz from robots.ox.ac.uk/~vgg/data/flowers/102", None,
                          "a photo of a {}, a type of flower.", "split_zhou_OxfordFlowers.json",
                          "1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT", "image_00190.jpg", fetch="Flowers102"),
    "food101": Row(101, (("food-101", "images"),), "food-101.tar.gz from data.vision.ee.ethz.ch/cvl",
                   read_folders, "a photo of {}, a type of food.", "split_zhou_Food101.json",
                   "1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl", fetch="Food101"),
    "fgvc_aircraft": Row(100, (("fgvc_aircraft", "images"), ("fgvc-aircraft-2013b/data", "images")),
                         "fgvc-aircraft-2013b.tar.gz (its data/ folder) from robots.ox.ac.uk/~vgg/data/fgvc-aircraft",
                         read_aircraft, "a photo of a {}, a type of aircraft.", fetch="FGVCAircraft"),
    "sun397": Row(397, (("sun397", "SUN397"), ("", "SUN397")),
                  "SUN397.tar.gz and Partitions.zip from vision.princeton.edu/projects/2010/SUN (reported gone)",
                  read_sun, split="split_zhou_SUN397.json", drive="1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq",
                  rename=sun_name, fetch="SUN397"),
    "dtd": Row(47, (("dtd", "images"), ("dtd/dtd", "images")),
               "dtd-r1.0.1.tar.gz from robots.ox.ac.uk/~vgg/data/dtd", read_folders, "{} texture.",
               "split_zhou_DescribableTextures.json", "1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x",
               "banded/banded_0133.jpg", fetch="DTD"),
    "eurosat": Row(10, (("eurosat", "2750"),), "EuroSAT.zip (RGB) from huggingface.co/datasets/torchgeo/eurosat",
                   read_folders, "a centered satellite photo of {}.", "split_zhou_EuroSAT.json",
                   "1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o", "AnnualCrop/AnnualCrop_1381.jpg",
                   lambda key: EUROSAT.get(key, key), fetch="EuroSAT"),
    "ucf101": Row(101, (("ucf101", "UCF-101-midframes"),),
                  "UCF-101-midframes.zip (Google Drive id 10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O)", read_ucf,
                  "a photo of a person doing {}.", "split_zhou_UCF101.json", "1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y",
                  "Apply_Eye_Makeup/v_ApplyEyeMakeup_g12_c03.jpg", camel_to_words),
    "imagenetv2": Row(1000, (("imagenetv2", "imagenetv2-matched-frequency-format-val"),),
                      "imagenetv2-matched-frequency.tar.gz from huggingface.co/datasets/vaishaal/ImageNetV2",
                      read_variant, wordnet=True, base_novel=False),
    "imagenet_sketch": Row(1000, (("imagenet-sketch", "images"), ("imagenet-sketch", "sketch")),
                           "ImageNet-Sketch.zip, see github.com/HaohanWang/ImageNet-Sketch",
                           read_variant, wordnet=True, base_novel=False),
    "imagenet_a": Row(200, (("imagenet-adversarial", "imagenet-a"),),
                      "imagenet-a.tar, see github.com/hendrycks/natural-adv-examples",
                      read_variant, skip=("README.txt",), wordnet=True, base_novel=False),
    "imagenet_r": Row(200, (("imagenet-rendition", "imagenet-r"),),
                      "imagenet-r.tar, see github.com/hendrycks/imagenet-r",
                      read_variant, skip=("README.txt",), wordnet=True, base_novel=False),
}
ALL = list(ROWS)[:11]               # Table 1; the other four are the targets of Table 4
NAMES = [*world.DATASETS, *ROWS]


# Split files ----------------------------------------------------------------------------------------------------------

def read_split(path):
    """A split file in CoOp's form, {"train": [[picture, label, class name], ...], "val": ..., "test": ...}.

    Returns (class names in label order, {"train": items, "val": ..., "test": ...}, other keys, which are ignored).
    Everything wrong with it is refused, with the list and the position of the entry at fault.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as problem:
        raise ValueError(f"{path}: not a JSON file ({problem})") from None
    if not isinstance(content, dict) or not all(isinstance(content.get(p), list) for p in ("train", "val", "test")):
        raise ValueError(f"{path}: expected an object with the lists train, val and test")
    names, seen, parts = {}, {}, {"train": [], "val": [], "test": []}
    for part, items in parts.items():
        for i, entry in enumerate(content[part]):
            here = f"{path.name}: {part}[{i}] {str(entry)[:120]}"
            if not isinstance(entry, list) or [type(value) for value in entry] != [str, int, str]:
                raise ValueError(f"{here}: expected [picture, label, class name] as a string, an integer and a string")
            picture, label, name = entry
            if escapes(picture):
                raise ValueError(f"{here}: the picture must be a relative path with '/' inside the picture folder")
            if picture in seen:
                raise ValueError(f"{here}: the picture stands in {seen[picture]} already")
            if label < 0 or not name.strip():
                raise ValueError(f"{here}: expected a label from 0 and a class name")
            if names.setdefault(label, name) != name:
                raise ValueError(f"{here}: label {label} was {names[label]!r} before; a label has one name")
            seen[picture] = f"{part}[{i}]"
            items.append((picture, label))
    if not parts["train"]:
        raise ValueError(f"{path}: the list train is empty")
    present = {label for _, label in parts["train"]}
    for part, items in parts.items():
        for i, (_, label) in enumerate(items):
            gap = label if label not in present else next((k for k in range(label) if k not in present), None)
            if gap is not None:
                raise ValueError(f"{path.name}: {part}[{i}] {content[part][i]}: no entry of train has label {gap}; "
                                 "labels run from 0 without a gap, each with a training picture")
    return [names[k] for k in sorted(names)], parts, sorted(content.keys() - parts.keys())


def by_label(labels):
    """{label: its positions}, labels in order of first appearance, the order in which CoOp visits them."""
    groups = {}
    for position, label in enumerate(labels):
        groups.setdefault(label, []).append(position)
    return groups


def divide(parts, seed):
    """CoOp's procedure for pictures that come undivided, over the order given; classes in order of first appearance.

    "all": shuffle each class, 50 % train, 20 % val, the rest test. "trainval": shuffle, the first 20 % are val.
    """
    pool = parts.get("all") or parts.get("trainval")
    if not pool:
        return parts
    divided, rng = {"train": [], "val": [], "test": list(parts.get("test", []))}, random.Random(seed)
    for label, positions in by_label([label for _, label in pool]).items():
        items = [pool[position] for position in positions]
        rng.shuffle(items)
        n = len(items)
        n_val = round(0.2 * n)                                          # Python's round: halves go to the even number
        if "trainval" in parts:
            divided["val"] += items[:n_val]
            divided["train"] += items[n_val:]
            continue
        if n < 2:
            raise ValueError(f"{items[0][0]} is the only picture of its class; expected one to train, one to test on")
        n_train = round(0.5 * n)
        n_val = min(n_val, n - n_train - 1)     # Open point: CoOp stops where a class of 3 leaves nothing to test on
        divided["train"] += items[:n_train]
        divided["val"] += items[n_train:n_train + n_val]
        divided["test"] += items[n_train + n_val:]
    return divided


def save_split(path, classnames, parts):
    """In CoOp's form, under our own name, never half a file. On a read-only disk it is just made again next time."""
    content = {part: [[name, label, classnames[label]] for name, label in items] for part, items in parts.items()}
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        scratch.write_text(json.dumps(content, indent=4), encoding="utf-8")
        os.replace(scratch, path)


# Loading --------------------------------------------------------------------------------------------------------------

def load(name, data_root="data", *, seed=1, classnames=None, fetch=True):
    """A Dataset by its name in NAMES, or from the path of a folder with a sub-folder for each class.

    seed        of a split that has to be made here
    classnames  for a folder: a file with a line `folder<TAB>name` for each class, or names in sorted order of folders
    fetch       download the pictures where they are absent and torchvision can
    """
    name = str(name)
    if name in NAMES and classnames:
        raise ValueError(f"class names from a file are for a folder of one's own; {name} has its own names")
    if name in world.DATASETS:
        names, parts, pictures = world.draw(name)
        return Dataset(name, names, "a photo of a {}.", **parts, split="embedded, the same in every run",
                       official_split=True, pictures=pictures, crop_scale=(0.5, 1.0))
    if name in ROWS:
        return load_row(name, Path(data_root).expanduser(), seed, fetch)
    if Path(name).expanduser().is_dir():
        return load_folder(Path(name).expanduser(), seed, classnames)
    if "/" in name or os.sep in name:
        raise FileNotFoundError(f"{name}: no such folder; expected one with a sub-folder of pictures for each class")
    close = difflib.get_close_matches(name, NAMES, 1)
    raise ValueError(f"unknown dataset {name!r}{f'; did you mean {close[0]}?' if close else ''}; "
                     f"expected a folder or one of {', '.join(NAMES)}")


def load_row(name, root, seed, fetch):
    row, notes = ROWS[name], []
    folders = [root / folder for folder, _ in row.places]
    official = first_file(row.split, [*folders, root])
    if row.reader is None and not official:                 # before anything large is fetched in vain
        raise FileNotFoundError(how_to_get(name, root, f"{row.split} not found; no split can be made without it"))
    if fetch and row.fetch and not picture_folder(row, root).is_dir():
        download(name, root)
    pictures = picture_folder(row, root)

    def need(file):
        found = first_file(file, [*folders, pictures])
        if not found:
            raise FileNotFoundError(how_to_get(name, root, f"{file} not found"))
        return found

    own_name = f"split_made_here_{name}_seed{seed}.json"
    made = first_file(own_name, folders) if row.split else None
    split, class_ids = "the lists and folders as published", None
    if row.split:
        split = f"CoOp's {row.split}" if official else f"made here: {own_name} (not CoOp's)"
    if official or made:
        classnames, parts, other = read_split(official or made)
        if other:
            notes.append(f"{(official or made).name}: keys {', '.join(other)} ignored")
        if official and row.first and parts["train"][0][0] != row.first:
            split += f" (begins with {parts['train'][0][0]}, the published file with {row.first}: a private split?)"
    elif not pictures.is_dir():
        raise FileNotFoundError(how_to_get(name, root, f"{pictures} not found"))
    else:
        ids, parts = row.reader(row, pictures, need, notes)
        parts = divide(with_labels(parts, ids, pictures), seed)
        classnames = [row.rename(key) for key in ids]
        if row.wordnet:
            class_ids, classnames = imagenet_names(ids, first_file("classnames.txt", folders), notes)
        if row.split:
            save_split(next(folder for folder in folders if folder.is_dir()) / own_name, classnames, parts)
    if row.split and not official:
        notes.append(f"no {row.split} in {folders[0]}: results are not comparable with the papers'; "
                     f"it is on Google Drive, id {row.drive}")
    if len(classnames) != row.classes:
        notes.append(f"{row.classes} classes in the papers, {len(classnames)} here")
    return check(Dataset(name, classnames, row.template, **parts, split=split, pictures=pictures, class_ids=class_ids,
                         official_split=bool(official or not row.split), base_novel=row.base_novel, notes=notes))


def load_folder(folder, seed, names_file):
    """A folder of one's own: a sub-folder for each class, or these under train/, test/ and, if wanted, val/."""
    notes, name = [], folder.resolve().name
    if (folder / "train").is_dir():
        have = [part for part in ("train", "val", "test") if (folder / part).is_dir()]
        if len(have) < 2:
            raise ValueError(f"{folder}: train/ without test/ (or val/); expected both, or the class folders alone")
        classes = {part: class_folders(folder / part, part + "/", notes=notes) for part in have}
        parts = {"val": [], **{part: items_of(found) for part, found in classes.items()}}
        if "test" not in parts:
            parts["test"], parts["val"] = parts["val"], []
            notes.append("no test/: val/ is used for testing")
        ids, split = sorted(classes["train"]), f"the folder's own {' and '.join(part + '/' for part in have)}"
    else:
        classes = class_folders(folder, notes=notes)
        ids, parts = list(classes), {"all": items_of(classes)}
        split = f"made here: 50/20/30 % of each class's sorted pictures, shuffled with seed {seed}"
    parts = divide(with_labels(parts, ids, folder), seed)
    classnames = names_from_file(Path(names_file), ids) if names_file else ids
    return check(Dataset(name, classnames, "a photo of a {}.", **parts, split=split, official_split=False,
                         pictures=folder, base_novel=False, exif=True, notes=notes))


def with_labels(parts, ids, where):
    label_of = {key: label for label, key in enumerate(ids)}
    for part, items in parts.items():
        for name, key in items:
            if key not in label_of:
                raise ValueError(f"{where}: {part} has {name} of class {key!r}, none of the {len(ids)} classes of "
                                 f"{'the class list' if 'trainval' in parts else 'train'}")
    return {part: [(name, label_of[key]) for name, key in items] for part, items in parts.items()}


def check(dataset):
    """Every class can be trained; what cannot be tested is said."""
    for part in ("train", "test"):
        lacking = sorted(set(range(len(dataset.classnames))) - {label for _, label in getattr(dataset, part)})
        if lacking:
            some = ", ".join(dataset.classnames[label] for label in lacking[:3])
            message = f"{len(lacking)} of {len(dataset.classnames)} classes have no {part} picture: {some}"
            if part == "train" or not dataset.test:
                raise ValueError(f"{dataset.name}: {message}")
            dataset.notes.append(message)
    return dataset


def imagenet_names(ids, path, notes):
    """-> (WordNet ids, names) of class folders named by WordNet id or, in ImageNetV2, by line number.

    path is CoOp's classnames.txt, `n01440764 tench`; without it the asset serves, the names that CLIP's authors chose.
    """
    ours = dict(line.split(maxsplit=1) for line in read_lines(Path(__file__).parent / "assets" / "imagenet.tsv"))
    names = {}
    for line in read_lines(path) if path else []:
        wnid, name, *_ = *line.split(maxsplit=1), ""
        if not name or wnid in names:
            raise ValueError(f"{path}: expected a new WordNet id and a name in each line, got {line!r}")
        names[wnid] = name
    other = [wnid for wnid in names if names[wnid] != ours.get(wnid)]
    if other:
        notes.append(f"{path} departs from CLIP's names in {len(other)} lines, first {other[0]} {names[other[0]]!r}")
    names = names or ours
    if all(key.isdecimal() for key in ids):
        if int(ids[-1]) >= len(names):
            raise ValueError(f"class folder {ids[-1]}: there are only {len(names)} class names, numbered from 0")
        ids = [list(names)[int(key)] for key in ids]
    unknown = [wnid for wnid in ids if wnid not in names]
    if unknown:
        raise ValueError(f"class folder {unknown[0]}: {path or 'assets/imagenet.tsv'} has no name for it")
    return ids, [names[wnid] for wnid in ids]


def names_from_file(path, ids):
    """One class a line, `folder<TAB>name`; without any tab the lines are names in sorted order of the folders."""
    lines = read_lines(path)
    if not any("\t" in line for line in lines):
        lines = [f"{key}\t{line}" for key, line in zip(ids, lines)] if len(lines) == len(ids) else lines
    names = {}
    for line in lines:
        key, tab, name = (unicodedata.normalize("NFC", word).strip() for word in line.partition("\t"))
        names[key] = name
    if len(lines) != len(ids) or sorted(names) != sorted(ids):
        odd = sorted(set(names) ^ set(ids))
        raise ValueError(f"{path}: expected a line for each of {len(ids)} class folders, got {len(lines)} lines"
                         f"{f'; does not fit: {odd[0]}' if odd else ''}")
    return [names[key] for key in ids]


def first_file(name, folders):
    return next((folder / name for folder in folders if name and (folder / name).is_file()), None)


def picture_folder(row, root):
    """The first layout that is there; where none is, CoOp's.

    ImageNet's torchvision layout is its parent folder, which must show its train/ to be taken for it.
    """
    for folder, pictures in row.places:
        place = root / folder / pictures
        if place.is_dir() and (pictures or not row.wordnet or (place / "train").is_dir()):
            return place
    return root.joinpath(*row.places[0])


def how_to_get(name, root, problem):
    row = ROWS[name]
    folder, pictures = row.places[0]
    split = f", and {row.split} (Google Drive id {row.drive}) into {root / folder}" if row.split else ""
    hint = f" (python data.py {name} --fetch downloads it)" if row.fetch and "fetch" not in problem else ""
    return f"{name}: {problem}; get {row.source}{hint}, so that {root / folder / pictures} holds the pictures{split}"


def download(name, root):
    """Let torchvision fetch a dataset, then move it to CoOp's layout: nothing unfinished ever stands in its place."""
    row = ROWS[name]
    target, made = root / row.places[0][0], root / row.places[-1][0]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".fetching-") as scratch:
            with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(ImportError):
                # Flowers102 wants scipy once its pictures are here, for lists that CoOp's split replaces
                getattr(torchvision.datasets, row.fetch)(scratch, download=True)
            target.mkdir(parents=True, exist_ok=True)
            for entry in (Path(scratch) / made.relative_to(root)).iterdir():
                if entry.suffix not in (".zip", ".gz", ".tgz") and not (target / entry.name).exists():
                    os.replace(entry, target / entry.name)
    except Exception as problem:                            # URLError, a wrong sum, a broken archive, a full disk
        raise FileNotFoundError(how_to_get(name, root, f"torchvision could not fetch it ({problem})")) from None


# What a run trains on -------------------------------------------------------------------------------------------------

def draw(labels, shots, rng):
    """From CoOp (Dassl): `shots` positions of each label, labels in order of first appearance, without repeats."""
    if shots < 1:
        raise ValueError(f"shots must be at least 1, got {shots}")
    return [position for group in by_label(labels).values()
            for position in (rng.sample(group, shots) if len(group) >= shots else group)]


def few_shot(labels, shots, seed):
    """Positions of the drawn training images: exactly CoOp's, because random.sample sees only sizes and the seed."""
    return draw(labels, shots, random.Random(seed))


def few_shot_val(train_labels, val_labels, shots, seed):
    """CoOp draws up to 4 validation images a class from the same running state; not used in training here."""
    rng = random.Random(seed)
    draw(train_labels, shots, rng)
    return draw(val_labels, min(shots, 4), rng)


def class_counts(num_classes, max_count=16, tau=1.0, shuffle_seed=None):
    """n_k = max(1, round(max_count * tau^(k / (K-1)))), k = 0..K-1: 16 8 4 2 1 for K = 5 and tau = 0.05.

    Open point: Sec. 5 gives only tau = min n_k / max n_k. Between them we go down geometrically, as long-tailed sets
    are usually made. With 16 shots, 0.05 and 0.01 ask for 0.8 and 0.16 images: both end at 1, and tau sets how fast.
    Nor does it say which classes are rare. Here the counts fall in label order; shuffle_seed deals them out at random.
    """
    if num_classes < 1 or max_count < 1:
        raise ValueError(f"class_counts: expected at least 1 class and 1 image, got {num_classes} and {max_count}")
    if not 0 < tau <= 1:                                    # also refuses nan
        raise ValueError(f"tau = min n_k / max n_k must be above 0 and at most 1, got {tau}")
    last = max(num_classes - 1, 1)
    n = [max(1, round(max_count * tau ** (k / last))) for k in range(num_classes)]
    if shuffle_seed is not None:
        random.Random(shuffle_seed).shuffle(n)
    return n


def halves(num_classes):
    """Base labels, novel labels; an odd one out is base, as in CoCoOp."""
    middle = -(-num_classes // 2)                           # ceil(K / 2)
    return list(range(middle)), list(range(middle, num_classes))


def select(items, labels):
    """Only the items with these labels, relabelled 0, 1, ... in the order of `labels`."""
    new = {label: k for k, label in enumerate(labels)}
    return [(name, new[label]) for name, label in items if label in new]


def training_items(dataset, labels, shots, tau, seed, shuffle_seed=None):
    """The images to train on, labels counted within `labels`: a few-shot draw made long-tailed.

    The draw goes over all classes, before any is left out: base shots are then the same for every method and task.
    Class k keeps the first n_k of its drawn images, so a smaller tau keeps a subset; one with fewer gives all it has.
    """
    drawn = few_shot([label for _, label in dataset.train], shots, seed)
    items = select([dataset.train[position] for position in drawn], labels)
    n = class_counts(len(labels), shots, tau, shuffle_seed)
    return [items[i] for k, group in by_label([label for _, label in items]).items() for i in group[:n[k]]]


def transform(resolution, train, crop_scale=(0.08, 1.0)):
    """CLIP's preprocessing; in training CoOp's random crop and flip, bicubic too."""
    bicubic = InterpolationMode.BICUBIC
    geometry = ([transforms.RandomResizedCrop(resolution, scale=crop_scale, interpolation=bicubic),
                 transforms.RandomHorizontalFlip()] if train else
                [transforms.Resize(resolution, interpolation=bicubic), transforms.CenterCrop(resolution)])
    return transforms.Compose([*geometry, transforms.ToTensor(), transforms.Normalize(CLIP_MEAN, CLIP_STD)])


class Pictures(torch.utils.data.Dataset):
    """Items of a dataset as (tensor (3, H, W), label)."""

    def __init__(self, dataset, items, transform):
        self.dataset, self.items, self.transform = dataset, items, transform

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        name, label = self.items[i]
        return self.transform(self.dataset.open(name)), label


def missing(dataset, items):
    """Names of pictures that are not on the disk."""
    if isinstance(dataset.pictures, dict):
        return []
    return [name for name in dict.fromkeys(name for name, _ in items) if not dataset.path(name).is_file()]


def check_pictures(dataset, items, decode=True):
    """Stop before training, not in its middle: all missing and unreadable pictures of `items` in one error.

    decode=False only asks whether the files are there: enough for the large test list of a published dataset.
    """
    problems = []
    for name in dict.fromkeys(name for name, _ in items) if decode else missing(dataset, items):
        try:
            dataset.open(name)
        except (ValueError, FileNotFoundError) as problem:
            problems.append(str(problem))
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"{dataset.name}: {len(problems)} of {len(items)} pictures can't be used: "
                         f"{'; '.join(problems[:5])}{more}")


# The command line -----------------------------------------------------------------------------------------------------

def describe(dataset, shots, seed, tau, base_novel):
    """What a run would see, as a dictionary."""
    K = len(dataset.classnames)
    base = halves(K)[0] if base_novel else list(range(K))
    positions = few_shot([label for _, label in dataset.train], shots, seed)
    items = training_items(dataset, base, shots, tau, seed)
    counts = {k: len(group) for k, group in by_label([label for _, label in items]).items()}
    return {"name": dataset.name, "num_classes": K, "classnames": dataset.classnames, "num_base": len(base),
            "template": dataset.template, "split": dataset.split, "official_split": dataset.official_split,
            "pictures": "embedded" if isinstance(dataset.pictures, dict) else str(dataset.pictures),
            "train": len(dataset.train), "val": len(dataset.val), "test": len(dataset.test),
            "missing": len(missing(dataset, dataset.train + dataset.val + dataset.test)),
            "shots": shots, "seed": seed, "tau": tau,
            "class_counts": [counts.get(k, 0) for k in range(len(base))],
            "draw_sha256": hashlib.sha256(",".join(map(str, positions)).encode()).hexdigest(),
            "first": [name for name, _ in items[:3]], "class_ids": dataset.class_ids, "notes": dataset.notes}


def report(facts, dataset):
    """The same for reading."""
    K, num_base, counts = facts["num_classes"], facts["num_base"], facts["class_counts"]
    halved = f", {num_base} base and {K - num_base} novel" if num_base < K else ""
    print(f"{facts['name']}: {K} classes{halved}; zero-shot prompt \"{facts['template']}\"")
    for key in ("pictures", "split"):
        print(f"{key:10}{facts[key]}")
    print("images    " + ", ".join(f"{key} {facts[key]}" for key in ("train", "val", "test", "missing")))
    for note in facts["notes"]:
        print(f"note      {note}")
    print(f"drawn     {sum(counts)} training images: {facts['shots']} shots, seed {facts['seed']}, "
          f"tau {facts['tau']:g}, n_k from {max(counts)} to {min(counts)}\n          first {', '.join(facts['first'])}")
    print(f"draw      sha256 {facts['draw_sha256']}\n")
    groups = [by_label([label for _, label in items]) for items in (dataset.train, dataset.test)]
    print("label  half   drawn  train   test  class")
    for label, name in enumerate(facts["classnames"]):
        half, drawn = ("base", counts[label]) if label < num_base else ("novel", "-")
        train, test = (len(group.get(label, [])) for group in groups)
        print(f"{label:5}  {half if halved else '-':5}  {drawn:>5}  {train:5}  {test:5}  {name}")


def main(argv=None):
    p = argparse.ArgumentParser(description="Say what a run on a dataset would see. No picture is opened.",
                                formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("name", nargs="?",
                   help="a dataset, all (the eleven of Table 1), a folder of pictures, or nothing for the list of datasets")
    p.add_argument("--data-root", default="data", help="folder that holds the datasets in CoOp's layout")
    p.add_argument("--shots", type=int, default=16, help="images drawn for each class before tau thins them out")
    p.add_argument("--seed", type=int, default=1, help="seed of the few-shot draw and of a split made here")
    p.add_argument("--tau", type=float, default=1.0, help="min n_k / max n_k, Sec. 5; 1 is balanced")
    p.add_argument("--classnames", metavar="FILE", help="class names for a folder, a line `folder<TAB>name` each")
    p.add_argument("--base-novel", action="store_true", help="halve the classes of a folder or an ImageNet variant too")
    p.add_argument("--fetch", action="store_true", help="download the pictures where torchvision can")
    p.add_argument("--json", action="store_true", help="print one JSON object, for all a list of them")
    args = p.parse_args(argv)
    try:
        if not args.name:
            for name in NAMES:
                row = ROWS.get(name)
                how = f"fetched by torchvision.datasets.{row.fetch}" if row and row.fetch else row and row.source
                print(f"{name:16} {row.classes if row else '':>5}  {how or world.DATASETS[name][-1]}")
            return 0
        found = []
        for name in ALL if args.name == "all" else [args.name]:
            dataset = load(name, args.data_root, seed=args.seed, classnames=args.classnames, fetch=args.fetch)
            found.append(describe(dataset, args.shots, args.seed, args.tau, args.base_novel or dataset.base_novel))
            if not args.json:
                report(found[-1], dataset)
        if args.json:
            print(json.dumps(found if args.name == "all" else found[0], indent=1))
    except (ValueError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
