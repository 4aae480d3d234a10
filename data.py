"""Datasets: the 15 of the paper as rows of one table, the embedded world, a folder of one's own.

    python data.py                                      # the names, and how each is obtained
    python data.py eurosat --data-root data             # what a run would see; opens no picture
    python data.py path/to/my/folder --shots 8 --json

The way of every dataset: a row of ROWS says where it lies and what differs; a reader lists pictures
with their class; `divide` makes train, val and test of what is not divided yet; the few-shot draw
picks from the training list. Where CoOp's split file is present it replaces reader and `divide`.

    K    classes, labels 0..K-1             base   the first ceil(K/2) labels, Sec. 5: trained on
    n_k  training images of class k         novel  the rest: tested on with unseen class names
    tau  min n_k / max n_k, Sec. 5          item   (picture name in the picture folder, label)

The split files, class names, folder layout and few-shot draws are those of CoOp, which CoCoOp and
MaPLe share. To add a dataset in class folders, add a row with `read_folders`.
"""
import difflib
import hashlib
import json
import os
import random
import signal
import sys
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)        # Ctrl-C until exit_code takes it over

import torch
from PIL import Image, ImageOps
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from assets import datasets, files, splits, world
from assets.datasets import ROWS

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass
class Dataset:
    name: str
    classnames: list                # in label order; "_" becomes a space in the prompt
    template: str                   # of zero-shot CLIP
    train: list                     # items
    val: list                       # may be empty; ImageNet's is its test list, as in CoOp
    test: list
    split: str                      # in words, for every result
    official_split: bool            # True where results are comparable with the papers'
    pictures: Path | dict           # the folder that names start from, or the pictures themselves
    class_ids: list | None = None   # WordNet ids for the ImageNet family
    base_novel: bool = True         # whether classes are halved without being asked for
    own: bool = False               # a folder of one's own: its pictures are turned as their EXIF
                                    # says (From CoOp: not), its counts are kept, see settled
    crop_scale: tuple = (0.08, 1.0)                 # random crop in training; the world bears less
    notes: list = field(default_factory=list)       # to be known before trusting a result

    @property
    def embedded(self):
        """True where the pictures are held in memory, as the little world's are."""
        return isinstance(self.pictures, dict)

    @property
    def test_only(self):
        """ImageNet's variants: From CoOp, their training list is their test list: not trained."""
        return self.train == self.test

    def path(self, name):
        """Where a picture lies. No name leads out of the folder; a symbolic link inside it is its
        owner's choice, and CoOp's instructions for ImageNet make one."""
        if files.escapes(name):
            raise ValueError(f"{self.name}: picture {name!r} must be a relative path inside "
                             f"{self.pictures}")
        return self.pictures / name

    def open(self, name):
        """The picture in RGB: From CoOp, converted before any resizing, alpha dropped."""
        if self.embedded:
            return self.pictures[name].convert("RGB")
        return open_picture(self.path(name), self.own)


# Sec. 5's protocol: what a run trains on ----------------------------------------------------------

def halves(num_classes):
    """Base labels, novel labels; an odd one out is base, as in CoCoOp."""
    middle = -(-num_classes // 2)                           # ceil(K / 2)
    return list(range(middle)), list(range(middle, num_classes))


def class_counts(num_classes, max_count=16, tau=1.0, shuffle_seed=None, total=None):
    """n_k = max(1, int(max_count * tau^(k / (K-1)))), k = 0..K-1: 16 7 3 1 1 for K = 5, tau = 0.05.

    Open point: Sec. 5 gives only tau = min n_k / max n_k. Between them we go down geometrically and
    cut fractions off, as the public long-tailed benchmarks do (CIFAR-LT and those after it); to
    round instead would read 16 8 4 2 1. With 16 shots, 0.05 and 0.01 ask for 0.8 and 0.16 images:
    both end at 1, and tau sets how fast. Nor does it say which classes are rare. Here the counts
    fall in label order; shuffle_seed deals them out at random. ValueError for tau outside (0, 1].
    total   not in the paper: so many images dealt evenly, the same number or one less a class
    """
    if num_classes < 1 or max_count < 1:
        raise ValueError("class_counts: expected at least 1 class and 1 image, "
                         f"got {num_classes} and {max_count}")
    if not 0 < tau <= 1:                                    # also refuses nan
        raise ValueError(f"tau = min n_k / max n_k must be above 0 and at most 1, got {tau}")
    last = max(num_classes - 1, 1)
    n = [max(1, int(max_count * tau ** (k / last))) for k in range(num_classes)]
    if total is not None:
        n = even_counts(num_classes, max_count, total)
    if shuffle_seed is not None:
        random.Random(shuffle_seed).shuffle(n)
    return n


def even_counts(num_classes, max_count, total):
    """total images dealt evenly, the first classes get those left over; ValueError if it can't."""
    if not num_classes <= total <= num_classes * max_count:
        raise ValueError(f"--images: {num_classes} classes of 1 to {max_count} images have "
                         f"{num_classes} to {num_classes * max_count}, got {total}")
    each, over = divmod(total, num_classes)
    return [each + (k < over) for k in range(num_classes)]


def settled(name, shots, tau, total=None):
    """(shots, tau) as they are asked for, None where they are not -> as they are taken: 16 and 1.

    For a folder of one's own without either, or a total: (None, None), all its training pictures.
    """
    if name not in NAMES and (shots, tau, total) == (None, None, None):
        return None, None
    return 16 if shots is None else shots, 1.0 if tau is None else tau


def tau_words(tau, sign="tau"):
    return "the folder's own counts" if tau is None else f"{sign} = {tau:g}"


def asked_counts(dataset, labels, shots, tau, shuffle_seed=None, total=None):
    """n_k that is asked for of each of the labels: class_counts in label order; 0 without a tau.

    A folder of one's own is long-tailed already: there the class with most training pictures is
    the head, and so on down; equal ones stay in label order.
    """
    if tau is None:
        return [0] * len(labels)
    n = class_counts(len(labels), shots, tau, shuffle_seed, total)
    if not dataset.own or shuffle_seed is not None:
        return n
    have = Counter(labels_of(dataset.train))
    ranks = sorted(range(len(labels)), key=lambda k: -have[labels[k]])
    return [n[rank] for rank in sorted(range(len(labels)), key=ranks.__getitem__)]


def by_label(labels):
    """{label: its positions}, labels in order of first appearance, in which CoOp visits them."""
    groups = {}
    for position, label in enumerate(labels):
        groups.setdefault(label, []).append(position)
    return groups


def labels_of(items):
    return [label for _, label in items]


def draw(labels, shots, rng):
    """From CoOp (Dassl): `shots` positions of each label, no repeats; all of a smaller class."""
    if shots < 1:
        raise ValueError(f"shots must be at least 1, got {shots}")
    groups = by_label(labels).values()
    drawn = [rng.sample(group, shots) if len(group) >= shots else group for group in groups]
    return [position for group in drawn for position in group]


def few_shot(labels, shots, seed):
    """Positions of the drawn images: exactly CoOp's, as random.sample sees only sizes and seed."""
    return draw(labels, shots, random.Random(seed))


def select(items, labels):
    """Only the items with these labels, relabelled 0, 1, ... in the order of `labels`."""
    new = {label: k for k, label in enumerate(labels)}
    return [(name, new[label]) for name, label in items if label in new]


def cut_tests(dataset, n, seed):
    """Leave at most n test items a class (None: all), drawn by seed; the split says so."""
    if n:
        rng, groups = random.Random(seed), by_label(labels_of(dataset.test))
        kept = {i for group in groups.values() for i in rng.sample(group, min(n, len(group)))}
        dataset.test = [item for i, item in enumerate(dataset.test) if i in kept]
        dataset.split += f"; a subset, {n} test images a class"


def training_items(dataset, labels, shots, tau, seed, shuffle_seed=None, total=None):
    """The images to train on, labels counted within `labels`: a few-shot draw made long-tailed.

    The draw goes over all classes, before any is left out: base shots are then the same for every
    method and task. Class k keeps the first n_k of its drawn images, so a smaller tau keeps a
    subset; one with fewer gives all it has. Without shots and tau (None): all of them.
    """
    if tau is None:
        return select(dataset.train, labels)
    drawn = few_shot(labels_of(dataset.train), shots, seed)
    items = select([dataset.train[position] for position in drawn], labels)
    n = asked_counts(dataset, labels, shots, tau, shuffle_seed, total)
    groups = by_label(labels_of(items))
    return [items[i] for k, group in groups.items() for i in group[:n[k]]]


# Pictures and batches -----------------------------------------------------------------------------

def open_picture(path, exif):
    """A picture file in RGB; exif: turned as its orientation tag says.

    FileNotFoundError where there is none, ValueError for a file that is no picture.
    """
    try:
        with Image.open(path) as image:
            if exif:
                image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):          # 16 bits: PIL would clip at 255, all white
                image = image.point(lambda value: value * (1 / 257)).convert("L")
            if image.mode == "P" and "transparency" in image.info:
                image = image.convert("RGBA")       # same colours as the direct way, which warns
            return image.convert("RGB")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: picture not found") from None
    except Exception as problem:                    # PIL raises many kinds, struct.error among them
        if is_heic(path):
            raise ValueError(f"{path}: a HEIC picture; convert it to JPEG") from None
        raise ValueError(f"{path}: not a readable picture ({problem})") from None


def is_heic(path):
    """Whether a file is an iPhone's HEIC, whatever it is called: its first box says so."""
    if not Path(path).is_file():
        return False
    with open(path, "rb") as file:
        head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"mif1", b"msf1")


def transform(resolution, train, crop_scale=(0.08, 1.0)):
    """CLIP's preprocessing; in training CoOp's random crop and flip, bicubic too."""
    bicubic = InterpolationMode.BICUBIC
    if train:
        crop = transforms.RandomResizedCrop(resolution, scale=crop_scale, interpolation=bicubic)
        geometry = [crop, transforms.RandomHorizontalFlip()]
    else:
        resize = transforms.Resize(resolution, interpolation=bicubic)
        geometry = [resize, transforms.CenterCrop(resolution)]
    normalize = transforms.Normalize(CLIP_MEAN, CLIP_STD)
    return transforms.Compose([*geometry, transforms.ToTensor(), normalize])


class Pictures(torch.utils.data.Dataset):
    """Items of a dataset as (tensor (3, H, W), label)."""

    def __init__(self, dataset, items, transform):
        self.dataset, self.items, self.transform = dataset, items, transform

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        name, label = self.items[i]
        return self.transform(self.dataset.open(name)), label


class TrainingPictures(Pictures):
    """The same under random views; an index is (epoch, place in the list)."""

    def __init__(self, dataset, items, transform, seed):
        super().__init__(dataset, items, transform)
        self.seed = seed

    def __getitem__(self, index):
        epoch, i = index
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mixed_seed(self.seed, epoch, i))
            return super().__getitem__(i)


def batches(dataset, items, resolution, device, batch_size=100):
    """DataLoader over (images (B, 3, res, res), labels (B,)) in order, test transform.

    device is where the images will go, a torch.device or its name. ValueError without any item.
    """
    if not items:
        raise ValueError(f"{dataset.name}: none of the classes to evaluate has a test picture")
    view = transform(resolution, train=False)
    return _loader(Pictures(dataset, items, view), device, batch_size=batch_size)


def steps(num_items, batch_size):
    """Steps of an epoch. From CoOp: a small last batch is dropped, unless it is the only one."""
    return max(1, num_items // batch_size)


def training_batches(dataset, items, resolution, device, batch_size, epochs, seed, start=0):
    """DataLoader over the batches of a whole training, from step `start` on: images, labels.

    The order of an epoch comes from seed and epoch, the crop and flip of an image from seed, epoch
    and its place in the list: nothing depends on the number of workers or on what came before, so
    a killed run goes on as if nothing had happened.
    """
    view = transform(resolution, train=True, crop_scale=dataset.crop_scale)
    plan = []
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(mixed_seed(seed, epoch))
        order = torch.randperm(len(items), generator=generator).tolist()
        for step in range(steps(len(items), batch_size)):
            chosen = order[step * batch_size:(step + 1) * batch_size]
            plan.append([(epoch, i) for i in chosen])
    return _loader(TrainingPictures(dataset, items, view, seed), device, batch_sampler=plan[start:])


def mixed_seed(*numbers):
    """One seed of 32 bits, all that torch's generators see, from several numbers."""
    return zlib.crc32(" ".join(map(str, numbers)).encode())


def _loader(images, device, **options):
    """With workers where decoding costs something: never for the embedded pictures."""
    gpu = torch.device(device).type == "cuda"
    workers = 0
    if not images.dataset.embedded and (gpu or len(images) > 100):      # a GPU must not wait
        workers = min(4, os.cpu_count() or 1)
    return torch.utils.data.DataLoader(images, num_workers=workers, pin_memory=gpu,
                                       persistent_workers=workers > 0, **options)


def missing(dataset, items):
    """Names of pictures that are not on the disk."""
    if dataset.embedded:
        return []
    return [name for name in dict.fromkeys(name for name, _ in items)
            if not dataset.path(name).is_file()]


def check_pictures(dataset, items, decode=True):
    """Stop before training, not in its middle: all that is missing or unreadable in one ValueError.

    decode=False only asks whether the files are there: enough for a published, large test list.
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


# Division -----------------------------------------------------------------------------------------

def divide(parts, seed):
    """CoOp's procedure for pictures that come undivided, over the order given, class by class.

    "all": shuffle each class, 50 % train, 20 % val, the rest test. "trainval": shuffle, the first
    20 % are val. Rounded by Python's round: halves go to the even number.
    """
    undivided = next((part for part in ("all", "trainval") if part in parts), None)
    if undivided is None:
        return parts
    pool, rng = parts[undivided], random.Random(seed)
    divided = {"train": [], "val": [], "test": list(parts.get("test", []))}
    for positions in by_label(labels_of(pool)).values():
        items = [pool[position] for position in positions]
        rng.shuffle(items)
        n, n_val = len(items), round(0.2 * len(items))
        if undivided == "trainval":
            divided["val"] += items[:n_val]
            divided["train"] += items[n_val:]
            continue
        if n < 2:
            raise ValueError(f"{items[0][0]} is the only picture of its class; expected one to "
                             "train, one to test on")
        n_train = round(0.5 * n)
        n_val = min(n_val, n - n_train - 1)     # Open point: CoOp's rule leaves 3 no test picture
        divided["train"] += items[:n_train]
        divided["val"] += items[n_train:n_train + n_val]
        divided["test"] += items[n_train + n_val:]
    return divided


def with_labels(parts, ids, where):
    """[(picture, class id)] -> [(picture, label)]; ValueError for an id that `ids` has not."""
    label_of = {key: label for label, key in enumerate(ids)}
    source = "the class list" if "trainval" in parts else "train"
    for part, items in parts.items():
        for name, key in items:
            if key not in label_of:
                raise ValueError(f"{where}: {part} has {name} of class {key!r}, none of the "
                                 f"{len(ids)} classes of {source}")
    return {part: [(name, label_of[key]) for name, key in items] for part, items in parts.items()}


# Loading ------------------------------------------------------------------------------------------

def short_name(name):
    """The name of a dataset, or of the folder that one is: what run folders are called by."""
    return name if name in NAMES else Path(name).expanduser().resolve().name


def load(name, data_root="data", *, seed=1, classnames=None, fetch=True):
    """A Dataset by its name in NAMES, or from the path of a folder with a sub-folder a class.

    seed        of a split that has to be made here
    classnames  for a folder: a file with a line `folder<TAB>name` for each class, or names in
                sorted order of the folders
    fetch       download the pictures where they are absent and torchvision can

    FileNotFoundError says what to get and where to put it, ValueError what is wrong with it.
    """
    name = str(name)
    if name in NAMES and classnames:
        raise ValueError(f"class names from a file are for a folder of one's own; {name} has its "
                         "own names")
    if name in world.DATASETS:
        names, parts, pictures = world.draw(name)
        return Dataset(name, names, "a photo of a {}.", **parts, official_split=True,
                       split="embedded, the same in every run", pictures=pictures,
                       crop_scale=(0.5, 1.0))
    if name in ROWS:
        return load_row(name, Path(data_root).expanduser(), seed, fetch)
    if Path(name).expanduser().is_dir():
        from assets import photos  # which imports this module
        return photos.load_folder(Path(name).expanduser(), seed, classnames)
    if "/" in name or os.sep in name:
        raise FileNotFoundError(f"{name}: no such folder; expected one with a sub-folder of "
                                "pictures for each class")
    close = difflib.get_close_matches(name, NAMES, 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise ValueError(f"unknown dataset {name!r}{hint}; expected a folder or one of "
                     f"{', '.join(NAMES)}")


def load_row(name, root, seed, fetch):
    """CoOp's split file where it is, else a split made here before, else what the reader finds."""
    row, notes, class_ids = ROWS[name], [], None
    folders = [root / folder for folder, _ in row.places]
    official = datasets.first_file(row.split, [*folders, root])
    if row.reader is None and not official:         # before anything large is fetched in vain
        problem = f"{row.split} not found; no split can be made without it"
        raise FileNotFoundError(datasets.how_to_get(name, root, problem))
    if fetch and row.fetch and not datasets.picture_folder(row, root).is_dir():
        datasets.download(name, root)
    pictures = datasets.picture_folder(row, root)
    own_name = f"split_made_here_{name}_seed{seed}.json"
    made = None if official else datasets.first_file(own_name, folders)
    if official or made:
        classnames, parts, other = splits.read(official or made)
        if other:
            notes.append(f"{(official or made).name}: keys {', '.join(other)} ignored")
    elif not pictures.is_dir():
        raise FileNotFoundError(datasets.how_to_get(name, root, f"{pictures} not found"))
    else:
        ids, found = read_row(name, root, folders, pictures, notes)
        parts = divide(found, seed)
        classnames = [row.rename(key) for key in ids]
        if row.wordnet:
            names_file = datasets.first_file("classnames.txt", folders)
            class_ids, classnames = datasets.imagenet_names(ids, names_file, notes)
        if parts is not found:
            made = next(folder for folder in folders if folder.is_dir()) / own_name
            splits.save(made, classnames, parts)
    if row.split and not official:
        notes.append(f"no {row.split} in {folders[0]}: results are not comparable with the "
                     f"papers'; it is on Google Drive, id {row.drive}")
    if len(classnames) != row.classes:
        notes.append(f"{row.classes} classes in the papers, {len(classnames)} here")
    split, is_official = name_split(row, own_name if made else "", parts["train"])
    return check(Dataset(name, classnames, row.template, **parts, split=split, pictures=pictures,
                         official_split=is_official, class_ids=class_ids,
                         base_novel=row.base_novel, notes=notes))


def read_row(name, root, folders, pictures, notes):
    """-> (ids, parts with labels) by the row's reader, whose lists lie beside the pictures."""
    def need(file):
        found = datasets.first_file(file, [*folders, pictures])
        if not found:
            raise FileNotFoundError(datasets.how_to_get(name, root, f"{file} not found"))
        return found

    ids, parts = ROWS[name].reader(pictures, need, notes, ROWS[name].skip)
    return ids, with_labels(parts, ids, pictures)


def name_split(row, made, train):
    """-> (the split in words, whether it is the one of the papers). CoOp also saves private splits
    under the published name: their beginning tells, where the row knows it."""
    if made:
        return f"made here: {made} (not CoOp's)", False
    if not row.split:
        return "the lists and folders as published", True
    words, first = f"CoOp's {row.split}", train[0][0]
    if row.first and first != row.first:
        return (f"{words} (begins with {first}, the published file with {row.first}: a private "
                "split?)"), False
    return words, True


def check(dataset):
    """Names can be read, every class can be trained; what can't be tested or told apart is said."""
    names = dataset.classnames
    for label, name in enumerate(names):
        if datasets.unreadable(name):
            raise ValueError(f"{dataset.name}: class {label} is named {name!r}, which is empty or "
                             "can't be seen; give it a name")
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice and not dataset.class_ids:             # ImageNet's own list has two such pairs
        dataset.notes.append(f"{len(twice)} class names stand for several classes, which their "
                             f"prompts can't tell apart: {', '.join(twice[:3])}")
    for part in ("train", "test"):
        lacking = sorted(set(range(len(names))) - set(labels_of(getattr(dataset, part))))
        if lacking:
            some = ", ".join(names[label] for label in lacking[:3])
            message = f"{len(lacking)} of {len(names)} classes have no {part} picture: {some}"
            if part == "train" or not dataset.test:
                raise ValueError(f"{dataset.name}: {message}")
            dataset.notes.append(message)
    return dataset


ALL = list(ROWS)[:11]               # Table 1; the other four are the targets of Table 4
NAMES = [*world.DATASETS, *ROWS]


# The command line ---------------------------------------------------------------------------------

def describe(dataset, shots, seed, tau, base_novel):
    """What a run would see, as a dictionary."""
    K = len(dataset.classnames)
    base = halves(K)[0] if base_novel else list(range(K))
    labels = labels_of(dataset.train)
    positions = list(range(len(labels))) if shots is None else few_shot(labels, shots, seed)
    items = training_items(dataset, base, shots, tau, seed)
    drawn = Counter(labels_of(items))
    everything = dataset.train + dataset.val + dataset.test
    return {
        "name": dataset.name, "num_classes": K, "classnames": dataset.classnames,
        "num_base": len(base), "template": dataset.template, "split": dataset.split,
        "official_split": dataset.official_split,
        "pictures": "embedded" if dataset.embedded else str(dataset.pictures),
        "train": len(dataset.train), "val": len(dataset.val), "test": len(dataset.test),
        "missing": len(missing(dataset, everything)), "shots": shots, "seed": seed, "tau": tau,
        "class_counts": [drawn[k] for k in range(len(base))],
        "draw_sha256": hashlib.sha256(",".join(map(str, positions)).encode()).hexdigest(),
        "first": [name for name, _ in items[:3]], "class_ids": dataset.class_ids,
        "notes": dataset.notes}


def report(facts, dataset):
    """The same for reading."""
    K, num_base, counts = facts["num_classes"], facts["num_base"], facts["class_counts"]
    halved = f", {num_base} base and {K - num_base} novel" if num_base < K else ""
    print(f"{facts['name']}: {K} classes{halved}; zero-shot prompt \"{facts['template']}\"")
    for key in ("pictures", "split"):
        print(f"{key:10}{facts[key]}")
    sizes = ", ".join(f"{key} {facts[key]}" for key in ("train", "val", "test", "missing"))
    print(f"images    {sizes}")
    for note in facts["notes"]:
        print(f"note      {note}")
    shots = "all there are" if facts["shots"] is None else f"{facts['shots']} shots"
    print(f"drawn     {sum(counts)} training images: {shots}, seed {facts['seed']}, "
          f"{tau_words(facts['tau'])}, n_k from {max(counts)} to {min(counts)}")
    print(f"          first {', '.join(facts['first'])}")
    print(f"draw      sha256 {facts['draw_sha256']}\n")
    train, test = (Counter(labels_of(items)) for items in (dataset.train, dataset.test))
    print("label  half   drawn  train   test  class")
    for label, name in enumerate(facts["classnames"]):
        half, drawn = ("base", counts[label]) if label < num_base else ("novel", "-")
        half = half if halved else "-"
        print(f"{label:5}  {half:5}  {drawn:>5}  {train[label]:5}  {test[label]:5}  {name}")


def list_datasets():
    """The names, K in the papers, and how each is obtained."""
    for name, (*_, what) in world.DATASETS.items():
        print(f"{name:16} {'':>5}  {what}")
    for name, row in ROWS.items():
        how = f"fetched by torchvision.datasets.{row.fetch}" if row.fetch else row.source
        print(f"{name:16} {row.classes:>5}  {how}")


def parse(argv=None):
    p = files.Parser(description="Say what a run on a dataset would see. No picture is opened.")
    p.add_argument("name", nargs="?", help="a dataset, all (the eleven of Table 1), or a folder of "
                                           "pictures; absent: the list of datasets is printed")
    p.add_argument("--data-root", default="data", metavar="FOLDER",
                   help="holds the datasets in CoOp's layout; absent: %(default)s")
    p.add_argument("--shots", type=int, metavar="N", help="images drawn a class before tau thins "
                   "them out; absent: 16, of a folder without --tau all")
    p.add_argument("--seed", "--draw-seed", type=int, default=1, metavar="N",
                   help="of the few-shot draw and of a split made here; absent: %(default)s")
    p.add_argument("--tau", type=float, help="min n_k / max n_k, Sec. 5; absent: 1, which is "
                   "balanced; a folder without --shots keeps its own counts")
    p.add_argument("--classnames", metavar="FILE", help="class names for a folder, a line "
                   "`folder<TAB>name` each; absent: the names of its sub-folders")
    p.add_argument("--base-novel", action="store_true", help="halve the classes of a folder or an "
                   "ImageNet variant too; absent: those of the other datasets only")
    p.add_argument("--fetch", action="store_true", help="download the pictures where torchvision "
                   "can; absent: say how to get them")
    p.add_argument("--json", action="store_true", help="print one JSON object, for all a list of "
                   "them; absent: print for reading")
    args = p.parse_args(argv)
    if args.shots is not None and args.shots < 1:
        raise ValueError(f"--shots must be at least 1, got {args.shots}")
    if not 0 <= args.seed < 2 ** 32:                # as train.py, whose runs this foretells
        raise ValueError(f"--seed must be from 0 to 2^32 - 1, got {args.seed}")
    class_counts(2, 1, 1.0 if args.tau is None else args.tau)   # refuses a bad --tau before loading
    return args


def run(args):
    if not args.name:
        list_datasets()
        return
    found = []
    for name in ALL if args.name == "all" else [args.name]:
        dataset = load(name, args.data_root, seed=args.seed, classnames=args.classnames,
                       fetch=args.fetch)
        halved = args.base_novel or dataset.base_novel
        shots, tau = settled(name, args.shots, args.tau)
        found.append(describe(dataset, shots, args.seed, tau, halved))
        if not args.json:
            report(found[-1], dataset)
    if args.json:
        print(json.dumps(found if args.name == "all" else found[0], indent=1))


def main(argv=None):
    return files.exit_code(lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
