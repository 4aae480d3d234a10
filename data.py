"""Datasets: the 15 of the paper as rows of one table, the embedded world, a folder of one's own.

    python data.py                                      # the names, and how each is obtained
    python data.py eurosat --data-root data             # what a run would see, decoding nothing
    python data.py path/to/my/folder --shots 8 --json

A row of assets/datasets.csv says where a dataset lies, which reader lists its pictures with their
class, and what else differs. `divide` makes train, val and test of what comes undivided, and the
few-shot draw picks from the training list. CoOp's split file, where it is, replaces reader and
`divide`. Splits, names, folders and draws are CoOp's, which CoCoOp and MaPLe share.

    K    classes, labels 0..K-1             base   the first ceil(K/2) labels, Sec. 5: trained on
    n_k  training images of class k         novel  the rest: tested on with unseen class names
    tau  min n_k / max n_k, Sec. 5          item   (picture name in the picture folder, label)

From top to bottom: what a run trains on, pictures and batches, files, loading, readers, the paper's
datasets, split files, a folder of one's own, what all scripts share, this one's command line.
"""
import argparse
import contextlib
import csv
import difflib
import functools
import hashlib
import io
import json
import math
import multiprocessing
import os
import random
import re
import secrets
import shutil
import signal
import sys
import tempfile
import unicodedata
import warnings
import zlib
from collections import Counter
from dataclasses import dataclass, field, replace
from multiprocessing.pool import ThreadPool
from pathlib import Path, PurePosixPath

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)        # Ctrl-C until run_script takes it over

import torch
import torchvision
from PIL import Image, ImageOps
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from tqdm import tqdm

import clip_model
from assets import world  # a drawn dataset is data: nothing else of assets/ is imported

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".jpe",
           ".jfif", ".avif", ".jp2")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000")
warnings.simplefilter("ignore", Image.DecompressionBombWarning)     # open_picture counts
HEIC = (".heic", ".heif")               # an iPhone's: PIL reads them with a plug-in only
OF_A_RUN = ("result.json", "run.json", "split.json", "drawn.csv", "log.csv", "history.csv",
            "prompts.pt", "state.pt")           # what train.py leaves in a run's folder
SHARED = 32 << 20                       # bytes of shared memory that a worker may need
OURS = ("runs", "features", "evaluation", "__MACOSX")
PART = re.compile("(train|val|test)(ing|id|idation)?", re.IGNORECASE)
NOT_UTF8 = re.compile("[\ud800-\udfff]")        # how Python shows the bytes of such a file name


@dataclass
class Dataset:
    name: str
    classnames: list                # in label order; "_" becomes a space in the prompt
    template: str                   # of zero-shot CLIP
    train: list                     # items
    val: list                       # may be empty; nothing is chosen by it
    test: list
    split: str                      # in words, for every result
    official_split: bool            # True where results are comparable with the papers'
    pictures: Path | dict           # the folder that names start from, or the pictures themselves
    class_ids: list | None = None   # WordNet ids for the ImageNet family
    base_novel: bool = True         # whether classes are halved without being asked for
    own: bool = False               # a folder of one's own: its pictures are turned as their EXIF
                                    # says (From CoOp: not), its counts are kept, see shots_and_tau
    crop_scale: tuple = (0.08, 1.0)                 # random crop in training; the world bears less
    notes: list = field(default_factory=list)       # to be known before trusting a result

    @property
    def embedded(self):
        """True where the pictures are held in memory, as the little world's are."""
        return isinstance(self.pictures, dict)

    def show_notes(self):
        for note in self.notes:
            print(f"note      {note}")

    @property
    def test_only(self):
        """ImageNet's variants: From CoOp, their training list is their test list: not trained."""
        return self.train == self.test

    def path(self, name):
        """Where a picture lies. No name leads out of the folder; a symbolic link inside it is its
        owner's choice, and CoOp's instructions for ImageNet make one."""
        if escapes(name):
            raise ValueError(f"{self.name}: picture {name!r} must be a relative path inside "
                             f"{self.pictures}")
        return self.pictures / name

    def sha256(self, name):
        """Of a picture's bytes."""
        if self.embedded:
            return hashlib.sha256(self.pictures[name].tobytes()).hexdigest()
        return clip_model.file_sha256(self.path(name))

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
    K = num_classes
    if K < 1 or max_count < 1:
        raise ValueError(f"class_counts: expected at least 1 class and 1 image, got {K} and "
                         f"{max_count}")
    if not 0 < tau <= 1:                                    # also refuses nan
        raise ValueError(f"tau = min n_k / max n_k must be above 0 and at most 1, got {tau}")
    if total is not None and not K <= total <= K * max_count:
        raise ValueError(f"{K} classes of 1 to {max_count} images have {K} to {K * max_count} in "
                         f"all, got {total}")
    if total is None:
        n = [max(1, int(max_count * tau ** (k / max(K - 1, 1)))) for k in range(K)]
    else:
        n = [total // K + (k < total % K) for k in range(K)]
    if shuffle_seed is not None:
        random.Random(shuffle_seed).shuffle(n)
    return n


def shots_and_tau(name, shots, tau):
    """As they are taken where they were not asked for (None): 16 and 1. A folder of one's own
    without either keeps (None, None), which is all its training pictures."""
    if name not in NAMES and (shots, tau) == (None, None):
        return None, None
    return shots or 16, tau or 1.0


def tau_words(tau):
    return f"tau = {tau:g}" if tau else "the folder's own counts"


def asked_counts(dataset, labels, shots, tau, shuffle_seed=None, total=None):
    """n_k that is asked for of each of the labels: class_counts in label order; 0 without a tau.

    A folder of one's own is long-tailed already: there the class with most training pictures is
    the head, and so on down; equal ones stay in label order.
    """
    if tau is None:
        return [0] * len(labels)
    n = class_counts(len(labels), shots, tau, shuffle_seed, total)
    if dataset.own and shuffle_seed is None:
        have = Counter(labels_of(dataset.train))
        by_size = sorted(range(len(labels)), key=lambda k: -have[labels[k]])    # the head first
        count_of = dict(zip(by_size, n, strict=True))
        n = [count_of[k] for k in range(len(labels))]
    return n


def by_label(labels):
    """{label: its positions}, labels in order of first appearance, in which CoOp visits them."""
    groups = {}
    for position, label in enumerate(labels):
        groups.setdefault(label, []).append(position)
    return groups


def labels_of(items):
    return [label for _, label in items]


def few_shot(labels, shots, seed):
    """Positions of `shots` images of each label, no repeats; all of a smaller class.

    From CoOp (Dassl), draw for draw: random.sample sees only sizes and seed.
    """
    if shots < 1:
        raise ValueError(f"shots must be at least 1, got {shots}")
    rng, groups = random.Random(seed), by_label(labels).values()
    drawn = [rng.sample(group, shots) if len(group) >= shots else group for group in groups]
    return [position for group in drawn for position in group]


def select(items, labels):
    """Only the items with these labels, relabelled 0, 1, ... in the order of `labels`."""
    new = {label: k for k, label in enumerate(labels)}
    return [(name, new[label]) for name, label in items if label in new]


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


def with_few_tests(dataset, n, seed):
    """The same with at most n test items a class (None: all), drawn by seed; its split says so."""
    if n is None:
        return dataset
    rng, groups = random.Random(seed), by_label(labels_of(dataset.test)).values()
    kept = sorted(i for group in groups for i in rng.sample(group, min(n, len(group))))
    return replace(dataset, test=[dataset.test[i] for i in kept],
                   split=f"{dataset.split}; a subset, {n} test images a class")


# Pictures and batches -----------------------------------------------------------------------------

def open_picture(path, exif):
    """A picture file in RGB; only FORMATS, which run nothing (PostScript would), whatever its name.

    exif    one's own: turned as its orientation tag says; a JPEG is decoded at 1/2, 1/4 or 1/8 of
            its size where 1344 pixels remain. FileNotFoundError; ValueError for no picture.
    """
    try:
        size = os.path.getsize(path)            # asked for before a pipe or a device is opened
        if not (os.path.isfile(path) and 0 < size <= 2 ** 29):
            raise ValueError(f"{size} bytes; 1 to {2 ** 29} in a plain file are read")
        with Image.open(path, formats=FORMATS) as image:        # refuses 179 million pixels
            w, h = image.size                                   # a strip, resized, fills the memory
            if max(w, h) > 1000 * min(w, h):
                raise ValueError(f"{w} x {h} pixels: shrink it")
            if exif:
                image.draft(None, (4 * 336, 4 * 336))           # the largest CLIP sees 336
                image = ImageOps.exif_transpose(image)
            if image.mode == "F" or image.mode.startswith("I"):
                image = in_8_bits(image)
            if image.mode == "P" and "transparency" in image.info:
                image = image.convert("RGBA")       # same colours as the direct way, which warns
            return image.convert("RGB")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: picture not found") from None
    except Exception as problem:                    # PIL raises many kinds, struct.error among them
        raise ValueError(f"{path}: not a readable picture ({problem}); expected JPEG or PNG (HEIC "
                         "under any name: convert it to JPEG) of at most "
                         f"{2 * Image.MAX_IMAGE_PIXELS:,} pixels") from None


def in_8_bits(image):
    """Grey of 16 bits in 8; PIL would clip it at 255. ValueError where nothing says what is white:
    floats, more than 16 bits, and 12, which read as 16 would come out black."""
    low, high = image.convert("F").getextrema()
    if image.mode == "F" or low < 0 or high >= 2 ** 16 or 0 < high < 2 ** 12:
        raise ValueError(f"grey from {low:g} to {high:g}, not of 16 bits: save it with 8")
    return image.convert("I").point(lambda value: value * (1 / 257)).convert("L")


def check_pictures(dataset, items, decode=True):
    """Stop before training, not in its middle: each picture that can't be read is printed, and one
    ValueError says how many they are.

    decode=False only asks whether the files are there: enough for a published, large test list.
    Otherwise all cores decode them, once for all runs of a process.
    """
    names, gone = {name for name, _ in items}, missing(dataset, items)
    put_back = "put back what is gone" + ", or train anew without it" * dataset.own
    if len(gone) > 5:                               # a folder that is partly there
        raise ValueError(f"{dataset.name}: {len(gone)} of {len(names)} pictures are not in "
                         f"{dataset.pictures}, first {gone[0]}: was it unpacked whole? Else "
                         f"{put_back}")
    faults = [f"{dataset.path(name)}: picture not found" for name in gone]
    print(*(f"warning: {fault}\n" for fault in faults), sep="", end="")
    if decode and not dataset.embedded:
        paths = [dataset.path(name) for name in sorted(names - {*gone})]
        keys = ((path, dataset.own, path.stat().st_size, path.stat().st_mtime_ns) for path in paths)
        with ThreadPool(min(8, cores())) as pool:               # PIL decodes beside Python
            found = pool.imap(lambda key: fault_of(*key), keys)
            faults += filter(None, tqdm(found, "checking pictures", len(paths), False, delay=1))
    if faults:
        advice = [put_back] * bool(gone)
        advice += ["mend or move out all that are named above"] * (len(faults) > len(gone))
        raise ValueError(f"{dataset.name}: {len(faults)} of {len(names)} pictures can't be used, "
                         f"first {faults[0]}; {'; '.join(advice)}")


@functools.cache
def fault_of(path, exif, *state):
    """Why a picture can't be read, printed too, None where it can; decoded once, while its state
    stays the same."""
    try:
        open_picture(path, exif)
    except (ValueError, FileNotFoundError) as problem:
        print(f"warning: {problem}\n", end="")       # in one go: other threads print too
        return str(problem)


def missing(dataset, items):
    """Names of pictures that are not on the disk."""
    names = {} if dataset.embedded else dict.fromkeys(name for name, _ in items)
    return [name for name in names if not dataset.path(name).is_file()]


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
    """Items of a dataset as (tensor (3, H, W), label).

    seed    None for test views, whose index is a place in the list; of random views, whose index is
            (epoch, place in the list)
    """

    def __init__(self, dataset, items, transform, seed=None):
        self.dataset, self.items, self.transform, self.seed = dataset, items, transform, seed

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        if self.seed is None:
            return self.view(index)
        epoch, i = index
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mixed_seed(self.seed, epoch, i))
            return self.view(i)

    def view(self, i):
        name, label = self.items[i]
        return self.transform(self.dataset.open(name)), label


def batches(dataset, items, resolution, device, batch_size=100):
    """Batches over the test views of items in order; device: a torch.device or its name.

    ValueError without any item.
    """
    if not items:
        raise ValueError(f"{dataset.name}: none of the classes to evaluate has a test picture")
    view = transform(resolution, train=False)
    plan = [range(len(items))[n:n + batch_size] for n in range(0, len(items), batch_size)]
    return Batches(Pictures(dataset, items, in_bytes(view)), plan, device)


def steps(num_items, batch_size):
    """Steps of an epoch. From CoOp: a small last batch is dropped, unless it is the only one."""
    return max(1, num_items // batch_size)


def training_batches(dataset, items, resolution, device, batch_size, epochs, seed, start=0):
    """Batches of a whole training, from step `start` on.

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
    return Batches(Pictures(dataset, items, in_bytes(view), seed), plan[start:], device)


def mixed_seed(*numbers):
    """One seed of 32 bits, all that torch's generators see, from several numbers."""
    return zlib.crc32(" ".join(map(str, numbers)).encode())


def in_bytes(view):
    """A transform without its last two steps, which Batches takes on the device."""
    return transforms.Compose([*view.transforms[:-2], transforms.PILToTensor()])


class Batches:
    """(images (B, 3, res, res) float32, labels (B,)) on a device, for the lists of indices of a
    plan. Pictures come as bytes, a quarter of the numbers, by as many workers as there are cores;
    by none where decoding costs nothing: of the embedded pictures."""

    def __init__(self, pictures, plan, device):
        self.device, gpu, workers = torch.device(device), torch.device(device).type == "cuda", 0
        if not pictures.dataset.embedded and (gpu or len(pictures) > 100):  # a GPU must not wait
            workers = min(len(plan), cores(), room_for_workers())
        self.loader = torch.utils.data.DataLoader(
            pictures, batch_sampler=plan, num_workers=workers, pin_memory=gpu)

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        normalize = transforms.Normalize(CLIP_MEAN, CLIP_STD)
        for images, labels in self.loader:
            images = images.to(self.device, non_blocking=True).float().div(255)
            yield normalize(images), labels.to(self.device, non_blocking=True)


def cores():
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):            # Linux; a container may be given a few
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def room_for_workers(folder="/dev/shm"):
    """How many workers can hand over their pictures. A Docker container has 64 MB for that, or
    none: there the process decodes them itself."""
    if not sys.platform.startswith("linux"):
        return 16
    free = 0
    if os.path.isdir(folder):
        free = shutil.disk_usage(folder).free
    if free < SHARED:
        print(f"note      {free >> 20} MB of shared memory in {folder}: one process decodes the "
              "pictures; docker run --shm-size=1g gives more")
    return free // SHARED


# Files, for all scripts --------------------------------------------------------------------

def escapes(path):
    """True for a name that is not plainly inside its folder, or not in its one normal spelling:
    empty, absolute, with '..', './', '//', a drive, a backslash, or bytes not in UTF-8."""
    pure = PurePosixPath(path)
    if str(pure) != path or pure.is_absolute() or not pure.parts or ".." in pure.parts:
        return True
    return bool(re.search(r"\\|\0|^[A-Za-z]:", path) or NOT_UTF8.search(path))


def read_lines(path):
    """Its lines, stripped, without the empty ones. ValueError where it is not in UTF-8."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected a text file in UTF-8") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def write(path, content):
    """Write text or bytes to a new file beside, then rename it: it is there whole or not at all.

    ValueError where path is there already and no plain file (a device, a folder); one line of
    OSError where the disk is full or read-only. Nothing half-written stays.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: not a plain file, so it is not replaced; choose another name")
    scratch = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    if isinstance(content, str):
        content = content.encode()
    try:
        with open(scratch, "xb") as file:               # a file that nobody else has, never a link
            file.write(content)
        os.replace(scratch, path)
    except BaseException as problem:
        if not isinstance(problem, FileExistsError):    # else it is somebody else's
            with contextlib.suppress(OSError):
                scratch.unlink()
        if not isinstance(problem, OSError):
            raise
        raise OSError(f"{path}: can't be written ({problem.strerror or problem}); make room or "
                      "choose another place") from None


def write_csv(path, rows):
    """Rows of numbers and `defused` words as a CSV file, through `write`."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(map(defused, row) for row in rows)
    write(path, text.getvalue())


def defused(cell):
    """A CSV's cell in one line, with a ' before what is a formula in a spreadsheet; never the same
    of two pictures. Numbers stay."""
    if cell is None:
        return None
    formula = re.match(r"'*([=@＝＋－＠]|[+-](?!(\d+\.?\d*(e[+-]?\d+)?|inf)$))", str(cell))
    return "'" * bool(formula) + printable(str(cell))


def printable(name):
    """In one line: control characters and bytes that no UTF-8 has become \\n, \\x1b, \\udcff."""
    return re.sub("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", lambda c: ascii(c[0])[1:-1], name)


def read_csv(path):
    """A CSV file's rows as dictionaries."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def check_output(option, path, endings=()):
    """Refuse, before any work, a file that can't be written at `path`, or is one of a run's.
    option: what the line begins with, as "--out"; endings: of the name, () for any."""
    if endings and path.suffix.lower() not in endings:
        raise ValueError(f"{option} {path}: expected a name that ends in {', '.join(endings)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{option} {path}: there is no folder {path.parent}: make it, or "
                                "choose another")
    of_a_run = path.name in OF_A_RUN and (path.parent / "result.json").exists()
    if of_a_run or path.exists() and not path.is_file():
        raise ValueError(f"{option} {path} is no plain file, or what a run left there: choose "
                         "another name")


# Loading ------------------------------------------------------------------------------------------

def load(name, data_root="data", *, seed=1, classnames=None, fetch=True):
    """A Dataset by its name in NAMES, or from the path of a folder with a sub-folder a class.

    seed        of a split that has to be made here
    classnames  for a folder: a file with a line `folder<TAB>name` for each class
    fetch       download the pictures where they are absent and torchvision can

    FileNotFoundError says what to get and where to put it, ValueError what is wrong with it.
    """
    name, folder = str(name), Path(name).expanduser()
    refuse_workers()
    if name in NAMES and classnames:
        raise ValueError(f"class names from a file are for a folder of one's own; {name} has its "
                         "own names")
    if name in world.DATASETS:
        names, parts, pictures = world.draw(name)
        return Dataset(name, names, "a photo of a {}.", **parts, official_split=True,
                       split="embedded, the same in every run", pictures=pictures,
                       crop_scale=(0.5, 1.0))
    if name in ROWS:
        return checked(load_row(name, Path(data_root).expanduser(), seed, fetch))
    if folder.is_dir():
        return checked(load_folder(folder, seed, classnames))
    if "/" in name or os.sep in name:
        raise FileNotFoundError(f"{name}: no such folder; expected one with a sub-folder of "
                                "pictures for each class")
    raise ValueError(f"unknown dataset {name!r}{did_you_mean(name, NAMES)}; expected a folder or "
                     f"one of {', '.join(NAMES)}")


def did_you_mean(name, names):
    """A hint at the one of the names that is most like it, "" where none is."""
    close = difflib.get_close_matches(name, names, 1)
    return f"; did you mean {close[0]}?" if close else ""


def refuse_workers():
    """End a loader's process that runs an unguarded script again, before it waits for its parent's
    locks. Where processes are spawned (Windows, macOS), each begins with the script's lines."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        sys.exit("error: put the lines of your script into a function, and its call under `if "
                 "__name__ == \"__main__\":`; the processes that read pictures ran them again")


def checked(dataset):
    """Names can be read, every class can be trained; what can't be tested or told apart is said."""
    names, unseen = dataset.classnames, ("Cc", "Cf", "Zs", "Zl", "Zp")      # control, format, space
    if dataset.own and len(names) == 1:
        raise ValueError(f"{dataset.pictures}: one class only, {names[0]}; expected a folder for "
                         "each: if they lie in that, name it instead; a CSV of labels is not read")
    for label, name in enumerate(names):
        if NOT_UTF8.search(name) or all(unicodedata.category(c) in unseen for c in name):
            raise ValueError(f"{dataset.name}: class {label} is named {name!r}, which is empty or "
                             "can't be seen; give it a name")
    tokens = [tuple(clip_model.prompt_ids(name.replace("_", " "))) for name in names]
    twice = [" = ".join(dict.fromkeys(names[label] for label in labels))
             for labels in by_label(tokens).values() if len(labels) > 1]
    if twice and not dataset.class_ids:             # ImageNet's own list has two such pairs
        dataset.notes.append(f"{len(twice)} class names stand for several classes, which their "
                             f"prompts can't tell apart: {', '.join(twice[:3])}")
    for part in ("train", "test"):
        have = {*labels_of(getattr(dataset, part))}
        lacking = [name for label, name in enumerate(names) if label not in have]
        if lacking:
            dataset.notes.append(f"{len(lacking)} of {len(names)} classes have no {part} picture: "
                                 f"{', '.join(lacking[:3])}")
        if lacking and (part == "train" or not have):
            raise ValueError(f"{dataset.name}: {dataset.notes[-1]}")
    return dataset


def load_row(name, root, seed, fetch):
    """CoOp's split file where it is, else what the row's reader finds, divided where it is not."""
    row, notes, class_ids = ROWS[name], [], None
    folders = [root / folder for folder, _ in row.places]
    split_files = [folder / row.split for folder in (*folders, root) if row.split]
    found = [path for path in split_files if path.is_file()]
    if not found and not row.reader:                # before anything large is fetched in vain
        problem = f"{row.split} not found; no split can be made without it"
        raise FileNotFoundError(how_to_get(row, root, problem))
    if fetch and row.fetch and not picture_folder(row, root).is_dir():
        download(row, root)
    pictures = picture_folder(row, root)
    if found:
        classnames, parts = read_split(found[0])
        split, is_official = f"CoOp's {row.split}", True
        begins = {picture for picture, _ in parts["train"][:1]}
        if row.first and begins != {row.first}:     # CoOp saves private splits under this name too
            split += f" (does not begin with {row.first} as the published file: a private split?)"
            is_official = False
    elif not pictures.is_dir():
        raise FileNotFoundError(how_to_get(row, root, f"{pictures} not found"))
    else:
        ids, parts = READERS[row.reader](pictures, notes, row.skip)
        split, is_official = "the lists and folders as published", "all" not in parts
        if not is_official:
            split = f"made here by CoOp's rule, seed {seed} (not CoOp's)"
        parts = divide(with_labels(parts, ids, pictures), seed)
        classnames = [row.names.get(key, key) for key in ids]
        if name.startswith("imagenet"):
            class_ids, classnames = imagenet_names(ids)
        if row.split:
            notes.append(f"no {row.split} in {folders[0]}: results are not comparable with the "
                         f"papers'; it is at https://drive.google.com/file/d/{row.drive}")
    if len(classnames) != row.classes:
        notes.append(f"{row.classes} classes in the papers, {len(classnames)} here")
    return Dataset(name, classnames, row.template, **parts, split=split, pictures=pictures,
                   official_split=is_official, class_ids=class_ids,
                   base_novel=row.reader != "variant", notes=notes)


def with_labels(parts, ids, where):
    """[(picture, class id)] -> [(picture, label)]; ValueError for an id that `ids` has not."""
    label_of = {key: label for label, key in enumerate(ids)}
    for part, items in parts.items():
        lacking = {key: name for name, key in items[::-1] if key not in label_of}
        if lacking:
            raise ValueError(f"{where}: {part} has {[*lacking.values()][-1]} of class "
                             f"{', '.join(map(repr, sorted(lacking)))}, none of the {len(ids)} "
                             "classes of train")
    return {part: [(name, label_of[key]) for name, key in items] for part, items in parts.items()}


def divide(parts, seed, train=0.5, val=0.2):
    """Train, val and test of "all", pictures that come undivided, class by class as they stand.

    From CoOp: shuffled, 50 % train, 20 % val, the rest test, by Python's round: halves go to the
    even number. At least one picture of each class is kept to test on.
    """
    if "all" not in parts:
        return parts
    rng, divided = random.Random(seed), {"train": [], "val": [], "test": []}
    groups = [[parts["all"][i] for i in positions]
              for positions in by_label(labels_of(parts["all"])).values()]
    alone = [items[0][0] for items in groups if len(items) == 1]
    if alone:
        raise ValueError(f"{len(alone)} classes have one picture only, {', '.join(alone)}; add "
                         "another to each, to train and test on, or take the folders out")
    for items in groups:
        rng.shuffle(items)
        n = len(items)
        n_train = round(train * n)
        n_val = min(round(val * n), n - n_train - 1)    # Open point: CoOp's rule leaves 3 no test
        divided["train"] += items[:n_train]
        divided["val"] += items[n_train:n_train + n_val]
        divided["test"] += items[n_train + n_val:]
    return divided


# Readers: what lies on disk, each class by its id (a folder name, a line of a list) ---------------
# A reader gets the picture folder, the notes, and what to skip. It returns (ids in label order,
# parts); parts holds lists of (picture name, id) under "all" where `divide` has work to do, else
# under train, val and test.

def class_folders(folder, prefix, skip, notes):
    """A sub-folder, and all below, for each class -> {folder name: sorted picture names}, in order.

    From CoOp, but sorted: its listings come in directory order, so its draws differ by machine.
    """
    classes, stray, empty, ours, deep = {}, [], [], [], []
    for entry in sorted(os.scandir(folder), key=lambda entry: one_spelling(entry.name)):
        if entry.name.startswith(".") or entry.name in skip:
            continue
        if not entry.is_dir():
            stray.append(entry.name)
            continue
        files, runs = files_of_class(entry)
        names = [name for name in files if name.lower().endswith(ENDINGS)]
        if (entry.name in OURS) + bool(runs) + (not names) > 1:     # 2 of 3 signs: not a class
            ours.append(entry.name)
            continue
        for odd in filter(NOT_UTF8.search, [entry.name, *names]):
            raise ValueError(f"{str(folder)!r}: the name {odd!r} is not in UTF-8; rename it")
        if not names:
            empty.append(entry.path)
        ours += runs
        stray += [name for name in files if not name.lower().endswith(ENDINGS)]
        deep += [name for name in names if name.count("/") > 1]
        classes.setdefault(one_spelling(entry.name), []).extend(prefix + name for name in names)
    if empty:
        raise ValueError(f"{', '.join(empty)}: class folder without a picture ({' '.join(ENDINGS)})"
                         "; fill it (HEIC: convert to JPEG) or remove it")
    if not classes:
        raise ValueError(f"{folder}: expected one sub-folder for each class, found {len(stray)} "
                         "loose files; make class folders (for ImageNet's val/: val/<wnid>/)")
    heic = [name for name in stray if name.lower().endswith(HEIC)]
    notes += [printable(f"{len(found)} {words}, first {found[0]}") for found, words in (
        (stray, "files that are not read as pictures ignored"),
        (heic, "of these are HEIC: convert to JPEG to use them"),
        (ours, "folders of a run's or a zip's own files passed over"),
        (deep, "pictures in folders below the classes' count for these")) if found]
    return classes


def files_of_class(entry):
    """-> (sorted "class/..." of all files in its folder and below; folders of runs, left out)."""
    files, runs = [], []
    os.scandir(entry.path).close()              # PermissionError, where os.walk would say nothing
    for place, folders, names in os.walk(entry.path):
        below = entry.name + place[len(entry.path):].replace(os.sep, "/")
        if {"run.json", "result.json"} & {*names}:
            runs.append(below)
            names, folders[:] = [], []
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [f"{below}/{name}" for name in names if not name.startswith(".")]
    return sorted(files), runs


def one_spelling(name):
    return unicodedata.normalize("NFC", name)       # accents are stored in two ways, by system


def items_of(classes):
    return [(name, key) for key, names in classes.items() for name in names]


def read_folders(pictures, notes, skip=()):
    """Class folders undivided, or the same under train/ and test/ and, if there, val/ (names of
    PART), which serves for testing where test/ is absent, as in ImageNet."""
    folders = sorted(entry.name for entry in os.scandir(pictures) if entry.is_dir())
    have = {name: PART.fullmatch(name)[1].lower() for name in folders if PART.fullmatch(name)}
    others = [name for name in folders if name not in have and not name.startswith(".")]
    if not have or others and len(have) == 1 and any(           # one class is called train
            file.lower().endswith(ENDINGS) for file in os.listdir(pictures / min(have))):
        classes = class_folders(pictures, "", skip, notes)
        return list(classes), {"all": items_of(classes)}
    if "train" not in have.values() or not 1 < len({*have.values()}) == len(have):
        raise ValueError(f"{pictures}: {'/, '.join(have)}/ without test/ (or val/), without train/ "
                         "or with one twice; expected both, or the class folders alone")
    if others:
        notes.append(f"{', '.join(others)} beside {', '.join(have)} not read")
    parts = {"val": []} | {kind: items_of(class_folders(pictures / name, f"{name}/", skip, notes))
                           for name, kind in have.items()}
    if "test" not in parts:
        parts["test"], parts["val"] = parts["val"], []
        notes.append("no test/: val/ is used for testing")
    return list(dict.fromkeys(key for _, key in parts["train"])), parts


def read_variant(pictures, notes, skip=()):
    """Class folders, one list as both train and test: ImageNet's variants. ImageNetV2's folders are
    label numbers, so a shorter name comes first."""
    classes = class_folders(pictures, "", skip, notes)
    items = items_of(classes)
    ids = sorted(classes, key=lambda key: (len(key), key))
    return ids, {"train": items, "val": [], "test": items}


def read_aircraft(pictures, notes, skip=()):
    """variants.txt and the official lists, beside the pictures: `0034309 707-320`."""
    parts = {}
    for part in ("train", "val", "test"):
        lines = read_lines(pictures.parent / f"images_variant_{part}.txt")
        pairs = [line.partition(" ") for line in lines]
        parts[part] = [(number + ".jpg", variant) for number, _, variant in pairs]
    return read_lines(pictures.parent / "variants.txt"), parts


READERS = {"folders": read_folders, "variant": read_variant, "aircraft": read_aircraft}


# The paper's datasets: facts from CoOp in assets/datasets.csv, and how they are fetched -----------

@dataclass(frozen=True)
class Row:
    name: str
    classes: int                    # K in the papers
    places: list                    # [folder, pictures in it]: CoOp's first, torchvision's last
    template: str
    split: str                      # CoOp's split file, in the folder of `places`, and its Google
    drive: str                      # Drive id; its first training picture tells it from a private
    first: str                      # split of that name
    skip: list                      # what lies among the class folders and is none
    fetch: str                      # the torchvision class that downloads it
    source: str                     # what to get where nothing can fetch it
    reader: str = ""                # of READERS; "" where nothing but CoOp's split file divides it
    names: dict = field(default_factory=dict)       # {folder: class name}, where they differ


def read_table():
    """{name: Row} in the order of Table 1, then Table 4's targets."""
    rows = {}
    for cells in read_csv(clip_model.ASSETS / "datasets.csv"):
        cells |= {"classes": int(cells["classes"]), "skip": cells["skip"].split("; "),
                  "places": [place.split(":") for place in cells["places"].split("; ")],
                  "names": dict(re.findall("([^=; ]+)=([^;]+)", cells["names"]))}
        rows[cells["name"]] = Row(**cells)
    return rows


ROWS = read_table()
ALL = list(ROWS)[:11]               # Table 1; the other four are the targets of Table 4
NAMES = [*world.DATASETS, *ROWS]
def picture_folder(row, root):
    """The first layout that is there; where none is, CoOp's. A dataset's own folder is taken for
    the pictures' where it shows its train/, as torchvision's ImageNet."""
    there = (root / folder / pictures for folder, pictures in row.places
             if (root / folder / (pictures or "train")).is_dir())
    return next(there, root.joinpath(*row.places[0]))


def how_to_get(row, root, problem):
    """What is missing, and the ways to it: to the pictures, and to CoOp's split file."""
    ways, mirror = row.source, "https://huggingface.co/zhengli97/prompt_learning_dataset"
    if row.fetch and "fetch" not in problem:
        ways = f"python data.py {row.name} --fetch, or {ways}"
    if row.name != "imagenet":
        ways += f", or its zip at {mirror}"
    if row.split:
        ways += (f". {row.split} into {root / row.places[0][0]}: from that zip, or "
                 f"https://drive.google.com/file/d/{row.drive}")
    return f"{row.name}: {problem}. Pictures into {root.joinpath(*row.places[0])}: {ways}"


def download(row, root):
    """Let torchvision fetch a dataset, then move it to CoOp's layout: nothing unfinished ever
    stands in its place. FileNotFoundError where that fails."""
    target = root / row.places[0][0]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".fetching-") as scratch:
            with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(ImportError):
                # Flowers102 wants scipy at the end, for lists that CoOp's split replaces
                getattr(torchvision.datasets, row.fetch)(scratch, download=True)
            target.mkdir(parents=True, exist_ok=True)
            for entry in Path(scratch, row.places[-1][0]).iterdir():
                archive = entry.suffix in (".zip", ".gz", ".tgz")
                if not archive and not (target / entry.name).exists():
                    os.replace(entry, target / entry.name)
    except Exception as problem:                    # URLError, a wrong sum, a full disk, ...
        problem = f"torchvision could not fetch it ({problem})"
        raise FileNotFoundError(how_to_get(row, root, problem)) from None


def imagenet_names(ids):
    """-> (WordNet ids, names) of folders named by WordNet id or, in ImageNetV2, by line number.

    The names are those that CLIP's authors chose, which CoOp's classnames.txt has too.
    """
    lines = read_lines(clip_model.ASSETS / "imagenet.tsv")
    names = dict(line.split("\t") for line in lines)
    wnids = dict(zip(map(str, range(len(names))), names, strict=True))
    ids = [wnids.get(key, key) for key in ids]
    unknown = [key for key in ids if key not in names]
    if unknown:
        raise ValueError(f"class folder {unknown[0]}: expected a WordNet id of ImageNet's classes, "
                         f"or in ImageNetV2 a number below {len(names)}")
    return ids, [names[wnid] for wnid in ids]


# Split files in CoOp's form: lists train, val and test of [picture, label, class name] ------------

def read_split(path):
    """A split file -> class names in label order, {"train": items, "val": ..., "test": ...}.

    ValueError for anything wrong, with list and position of what is at fault.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as problem:
        raise ValueError(f"{path}: not a JSON file ({problem})") from None
    names, seen, parts = {}, set(), {"train": [], "val": [], "test": []}
    if not isinstance(content, dict) or not all(isinstance(content.get(p), list) for p in parts):
        raise ValueError(f"{path}: expected an object with the lists train, val and test")
    for part, items in parts.items():
        for i, entry in enumerate(content[part]):
            kinds = isinstance(entry, list) and [type(value) for value in entry]
            if (kinds != [str, int, str] or escapes(entry[0]) or entry[0] in seen or entry[1] < 0
                    or names.get(entry[1], entry[2]) != entry[2]):
                raise ValueError(f"{path.name}: {part}[{i}] {str(entry)[:120]}: expected [picture, "
                                 "label, class name]: a relative path with '/' inside the picture "
                                 "folder that stands nowhere else, a label from 0, its one name")
            picture, label, names[label] = entry
            seen.add(picture)
            items.append((picture, label))
    if not names or max(names) >= len(names):
        raise ValueError(f"{path}: expected labels from 0 without a gap, got {len(names)} "
                         f"up to {max(names, default='none')}")
    return [names[k] for k in sorted(names)], parts


def split_text(dataset):
    """A dataset's division as the content of a split file."""
    return json.dumps({part: [[name, label, dataset.classnames[label]]
                              for name, label in getattr(dataset, part)]
                       for part in ("train", "val", "test")}, indent=4)


# A folder of one's own ----------------------------------------------------------------------------

def load_folder(folder, seed, names_file):
    """A sub-folder a class, or these under train/, test/ and maybe val/.

    60 % of a class train, the rest test: CoOp's 20 % for validation would lie idle, since nothing
    is chosen by validation.
    """
    place, notes = folder.resolve(), []
    if NOT_UTF8.search(str(place)):
        raise ValueError(f"the folder name {str(place)!r} is not in UTF-8; rename it")
    ids, found = read_folders(folder, notes)
    parts = divide(with_labels(found, ids, folder), seed, train=0.6, val=0.0)
    split = f"made here: 60/40 % of each class's sorted pictures, shuffled with seed {seed}"
    if "all" not in found:
        have = sorted({name.split("/")[0] + "/" for items in parts.values() for name, _ in items})
        split = f"the folder's own {' and '.join(have)}"
    classnames = ids
    if names_file:
        classnames = names_from_file(Path(names_file), ids)
    return own_dataset(place.name, classnames, parts, split, folder, notes)


def own_dataset(name, classnames, parts, split, folder, notes):
    """The Dataset of a folder; its notes say which photos are there twice, byte for byte."""
    dataset = Dataset(name, classnames, "a photo of a {}.", **parts, split=split, pictures=folder,
                      official_split=False, base_novel=False, own=True, notes=notes)
    tested, torn = twins(dataset)
    if tested:
        notes.append(f"{len(tested)} test photos are training photos too, byte for byte, first "
                     f"{' = '.join(tested[0])}: remove one of each: what trained is no test")
    if torn:
        notes.append(f"{len(torn)} photos stand in two classes, byte for byte, first "
                     f"{' = '.join(torn[0])}: one of the two classes is wrong")
    return dataset


def names_from_file(path, ids):
    """Lines `folder<TAB>name`, or with a space, colon, semicolon or comma -> names in the order of
    `ids`. Names alone are refused: which folder is the third of 1, 10, 2?"""
    lines = [one_spelling(line) for line in read_lines(path)]
    for mark, around in ((" ", " "), (":", " "), (";", ' "'), (",", ' "'), ("\t", " ")):
        pairs = [line.partition(mark) for line in lines]
        names = {key.strip(around): name.strip(around) for key, _, name in pairs}
        if len(lines) == len(ids) and sorted(names) == sorted(ids):
            return [names[key] for key in ids]
    odd = min({*names} ^ {*ids}, default="a folder twice")
    fault = f"; does not fit: {odd}" * (len(lines) == len(ids))
    raise ValueError(f"{path}: expected a line `folder<TAB>name` for each of {len(ids)} class "
                     f"folders, got {len(lines)} lines{fault}")


def load_kept(split_file, folder):
    """A folder as a run had it: new photos in it, or another seed, change nothing.

    FileNotFoundError where the folder is gone, ValueError for a split that is none or leads out.
    """
    refuse_workers()
    classnames, parts = read_split(split_file)
    folder, notes = Path(folder).expanduser(), []
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder, from where {split_file.parent} had its "
                                "photos; if it has moved, add --data-root FOLDER")
    kept = {name for items in parts.values() for name, _ in items}
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
    new = sorted(name for name in found - kept
                 if name.lower().endswith(ENDINGS) and "/." not in f"/{name}")
    if new:
        notes.append(f"{len(new)} photos in {folder} are not in the run's {split_file.name} and "
                     f"are ignored, first {new[0]}; train anew to use them")
    return checked(own_dataset(folder.name, classnames, parts,
                               f"as kept in the run's {split_file.name}", folder, notes))


def twins(dataset):
    """Pictures with the same bytes: [(test picture, training picture)], and [(picture, another)] of
    two classes."""
    parts = [(part, *item) for part in ("train", "test") for item in getattr(dataset, part)]
    paths = {name: dataset.path(name) for _, name, _ in parts}
    size = {name: path.stat().st_size for name, path in paths.items() if path.is_file()}
    alike, first, tested, torn = Counter(size.values()), {}, [], []
    for part, name, label in parts:
        if alike[size.get(name)] < 2:                   # only equal sizes need be read
            continue
        where, other, its = first.setdefault(dataset.sha256(name), (part, name, label))
        if where != part:
            tested.append((name, other))
        if its != label:
            torn.append((other, name))
    return tested, torn


# Options and failures, for all scripts -----------------------------------------------------

class Parser(argparse.ArgumentParser):
    """argparse that refuses like everything else here: a ValueError of one line."""

    def parse_args(self, argv=None):
        args = super().parse_args(argv)
        for name, value in vars(args).items():
            if value in ("", [""]) and name != "ctx_init":
                self.error(f"{name.replace('_', '-')}: expected a word, got an empty one")
        return args

    def error(self, message):
        raise ValueError(f"{message[:300]}; see --help")


def number(low, high=math.inf, kind=float):
    """For type=: a finite number from low to high."""
    def convert(word):
        value = kind(word)
        if not (low <= value <= high and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"must be from {low:.10g} to {high:.10g}, got "
                                             f"{word[:40]}")
        return value
    convert.__name__ = {int: "whole number", float: "number"}[kind]
    return convert


def whole(low, high=2 ** 31 - 1):
    """For type=: a whole number from low to high."""
    return number(low, high, int)


SEED = whole(0, 2 ** 32 - 1)        # torch's generators see the lowest 32 bits only


def one_line(error):
    """What an exception says, in one line of bearable length."""
    text = re.split(r"\n\w+Error: ", str(error))[-1]     # a loader's worker: its traceback first
    line = " ".join(text.split()) or type(error).__name__
    if len(line) < 1000:
        return line
    return f"{line[:600]} ... {line[-300:]}"


def run_script(job, interrupted="interrupted; nothing unfinished was kept"):
    """Run a script's job; a failure becomes one line.

    -> what the job answers, or 0; 2 where it is refused; 130 for Ctrl-C, 143 for SIGTERM
    """
    code = [130]

    def stop(*_):
        code[0] = 143
        raise KeyboardInterrupt

    if getattr(sys.stdout, "errors", "") == "strict":   # a console that lacks some letters
        sys.stdout.reconfigure(errors="backslashreplace")
    with contextlib.suppress(ValueError):               # only a main thread may set it
        signal.signal(signal.SIGTERM, stop)
        if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return job() or 0
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        short = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "alloc" in str(error)
        if isinstance(error, RuntimeError) and not short and "DataLoader worker" not in str(error):
            raise
        hint = "not enough memory; try a smaller --batch-size or other programs closed: " * short
        print(f"error: {hint}{one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        return code[0]


# The command line ---------------------------------------------------------------------------------

def facts_of(dataset, shots, seed, tau, base_novel):
    """What a run would see, as a dictionary."""
    labels, trained = labels_of(dataset.train), list(range(len(dataset.classnames)))
    if base_novel:
        trained, _ = halves(len(trained))
    positions = range(len(labels))
    if shots:
        positions = few_shot(labels, shots, seed)
    items = training_items(dataset, trained, shots, tau, seed)
    drawn, listed = Counter(labels_of(items)), dataset.train + dataset.val + dataset.test
    return {
        "name": dataset.name, "num_classes": len(dataset.classnames),
        "classnames": dataset.classnames, "num_base": len(trained),
        "template": dataset.template, "split": dataset.split,
        "official_split": dataset.official_split,
        "pictures": "embedded" if dataset.embedded else str(dataset.pictures),
        "train": len(labels), "val": len(dataset.val), "test": len(dataset.test),
        "missing": len(missing(dataset, listed)), "shots": shots, "seed": seed, "tau": tau,
        "class_counts": [drawn[k] for k in range(len(trained))],
        "draw_sha256": hashlib.sha256(",".join(map(str, positions)).encode()).hexdigest(),
        "first": [name for name, _ in items[:3]], "class_ids": dataset.class_ids,
        "notes": dataset.notes}


def show(facts, dataset):
    """The same for reading."""
    n, K = facts["class_counts"], facts["num_classes"]
    print(f"{facts['name']}: {K} classes, the first {len(n)} are trained on; zero-shot prompt "
          f"\"{facts['template']}\"")
    dataset.show_notes()
    for key in ("pictures", "split", "train", "val", "test", "missing", "draw_sha256"):
        print(f"{key:12}{facts[key]}")
    print(f"drawn       {sum(n)} training images: {facts['shots'] or 'all'} shots, seed "
          f"{facts['seed']}, {tau_words(facts['tau'])}, n_k from {max(n)} to {min(n)}\n"
          f"            first {', '.join(facts['first'])}\n\n"
          "label  drawn  train   test  class")
    train, test = (Counter(labels_of(items)) for items in (dataset.train, dataset.test))
    drawn = n + ["novel"] * (K - len(n))
    for label, name in enumerate(facts["classnames"]):
        print(f"{label:5}  {drawn[label]:>5}  {train[label]:5}  {test[label]:5}  {name}")


def parse(argv=None):
    p = Parser(description="Say what a run on a dataset would see. Nothing is decoded.")
    add = p.add_argument
    add("name", nargs="?", help="a dataset, all (the eleven of Table 1), or a folder of pictures "
                                "(none: the datasets are listed)")
    add("--data-root", default="data", help="of the datasets, in CoOp's layout (%(default)s)")
    add("--shots", type=whole(1), help="images drawn a class (16; of a folder without --tau all)")
    add("--seed", "--draw-seed", type=SEED, default=1,
        help="of the few-shot draw and of a split made here (%(default)s)")
    add("--tau", type=number(1e-9, 1),
        help="min n_k / max n_k, Sec. 5 (1; a folder without --shots keeps its own counts)")
    add("--classnames", metavar="FILE",
        help="a folder's class names, a line `folder<TAB>name` each (the folders' names)")
    add("--base-novel", action="store_true",
        help="halve the classes of a folder or an ImageNet variant too")
    add("--fetch", action="store_true", help="download the pictures where torchvision can")
    add("--json", action="store_true", help="print one JSON object, for all a list of them")
    return p.parse_args(argv)


def run(args):
    if not args.name:                           # the names, K in the papers, where to get each
        for name, (*_, what) in world.DATASETS.items():
            print(f"{name:16} {'':>5}  {what}")
        for name, row in ROWS.items():
            print(f"{name:16} {row.classes:>5}  {row.source}{', or --fetch' * bool(row.fetch)}")
        return
    found = []
    for name in {"all": ALL}.get(args.name, [args.name]):
        dataset = load(name, args.data_root, seed=args.seed, classnames=args.classnames,
                       fetch=args.fetch)
        shots, tau = shots_and_tau(name, args.shots, args.tau)
        base_novel = args.base_novel or dataset.base_novel
        found.append(facts_of(dataset, shots, args.seed, tau, base_novel))
        if not args.json:
            show(found[-1], dataset)
    if args.json:
        print(json.dumps(found if args.name == "all" else found[0], indent=1))


def main(argv=None):
    return run_script(lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
