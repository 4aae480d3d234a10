"""Photos of one's own: a folder as a dataset, what is said of it before training, its kept split.

    python train.py --method maple --npt --dataset path/to/photos
    python evaluate.py RUN --image path/to/new/photos --out predictions.csv

A folder's own counts are kept unless --tau or --shots asks for others. assets/photos.md tells the
whole way.
"""
import functools
import os
from collections import defaultdict
from pathlib import Path

import torch

import clip_model
import data
from assets import datasets, files, measures, splits, weight_files

SPLIT = "split.json"                    # beside a run, in CoOp's form


# A folder as a dataset -------------------------------------------------------------------------

def load_folder(folder, seed, names_file):
    """A folder of one's own: a sub-folder a class, or these under train/, test/ and maybe val/."""
    place, notes = folder.resolve(), []
    if files.NOT_UTF8.search(str(place)):
        raise ValueError(f"the folder name {str(place)!r} is not in UTF-8; rename it")
    ids, found = datasets.read_folders(folder, None, notes)
    parts = divide(data.with_labels(found, ids, folder), seed)
    if "all" in found:
        split = f"made here: 60/40 % of each class's sorted pictures, shuffled with seed {seed}"
    else:
        have = [part + "/" for part in ("train", "val", "test") if (folder / part).is_dir()]
        split = f"the folder's own {' and '.join(have)}"
    classnames = names_from_file(Path(names_file), ids) if names_file else ids
    return data.check(dataset_of(place.name, classnames, parts, split, folder, notes))


def dataset_of(name, classnames, parts, split, folder, notes=()):
    return data.Dataset(name, classnames, "a photo of a {}.", **parts, split=split,
                        official_split=False, pictures=folder, base_novel=False, own=True,
                        notes=list(notes))


def divide(parts, seed):
    """Of each class 60 % to train, the rest to test, at least one picture each.

    CoOp's 20 % for validation (data.divide) would lie idle: nothing is chosen here by validation.
    """
    if "all" not in parts:
        return parts
    divided, rng = {"train": [], "val": [], "test": []}, data.random.Random(seed)
    for positions in data.by_label(data.labels_of(parts["all"])).values():
        items = [parts["all"][position] for position in positions]
        if len(items) < 2:
            raise ValueError(f"{items[0][0]} is the only picture of its class; expected one to "
                             "train, one to test on: add another, or take its folder out")
        rng.shuffle(items)
        n_train = round(0.6 * len(items))               # of 2: 1, of 3: 2, of 4: 2
        divided["train"] += items[:n_train]
        divided["test"] += items[n_train:]
    return divided


def names_from_file(path, ids):
    """Lines `folder<TAB>name`; without any tab, names in sorted order of the folders."""
    lines = files.read_lines(path)
    if not any("\t" in line for line in lines) and len(lines) == len(ids):
        lines = [f"{key}\t{line}" for key, line in zip(ids, lines, strict=True)]
    names = {}
    for line in lines:
        key, _, name = datasets.one_spelling(line).partition("\t")
        names[key.strip()] = name.strip()
    if len(lines) != len(ids) or sorted(names) != sorted(ids):
        odd = sorted(set(names) ^ set(ids))
        hint = f"; does not fit: {odd[0]}" if odd else ""
        raise ValueError(f"{path}: expected a line for each of {len(ids)} class folders, "
                         f"got {len(lines)} lines{hint}")
    return [names[key] for key in ids]


# What is said before training ------------------------------------------------------------------

def inspect(dataset, items, clip):
    """Refuse class names that this CLIP can't read; of one's own photos, say how they are used."""
    check_words(clip, dataset.classnames)
    if dataset.own:
        show_usage(dataset, items)
        warn_duplicates(dataset, items)


def show_usage(dataset, items):
    """One line: how many photos train, test, and stay unused, and why."""
    everything = len(dataset.train) + len(dataset.val) + len(dataset.test)
    unused = everything - len(items) - len(dataset.test)
    print(f"photos    {len(items)} train, {len(dataset.test)} test, {unused} unused"
          + (f" ({why_unused(dataset, items)})" if unused else ""))


def why_unused(dataset, items):
    if not items:
        return "nothing is trained"
    reasons = [f"{len(dataset.train) - len(items)} beyond --tau, --shots or --classes",
               f"{len(dataset.val)} in val/"]
    return ", ".join(reason for reason in reasons if not reason.startswith("0 "))


def warn_duplicates(dataset, items):
    """Name pictures that stand both among the training items and in the test list, to the byte."""
    pairs = duplicates(dataset, items)
    if pairs:
        test, train = pairs[0]
        print(f"warning: {len(pairs)} test photos are training photos too, byte for byte, first "
              f"{test} = {train}: remove one of each, or the accuracy promises too much")
    pairs = twins(dataset, items)
    if pairs:
        print(f"warning: {len(pairs)} training photos stand in two classes, byte for byte, first "
              f"{pairs[0][0]} = {pairs[0][1]}: one of the two classes is wrong")


def duplicates(dataset, items):
    """[(test picture, training picture)] with the same SHA-256, in the order of the test list."""
    def size(name):
        return dataset.path(name).stat().st_size

    of_size = defaultdict(list)                         # only equal sizes need be read
    for name, _ in items:
        of_size[size(name)].append(name)

    @functools.cache
    def checksum(name):
        return weight_files.sha256(dataset.path(name))

    pairs = []
    for name, _ in dataset.test:
        same = (other for other in of_size[size(name)] if checksum(other) == checksum(name))
        pairs += [(name, other) for other in [next(same, None)] if other]
    return pairs


def twins(dataset, items):
    """[(training picture, another)] with the same SHA-256 in two classes."""
    of_size, pairs = defaultdict(list), []
    for item in items:
        of_size[dataset.path(item[0]).stat().st_size].append(item)
    for group in of_size.values():
        first = {}
        for name, label in group if len(group) > 1 else ():
            other, its = first.setdefault(weight_files.sha256(dataset.path(name)), (name, label))
            pairs += [(other, name)] if its != label else []
    return pairs


def check_words(clip, classnames):
    """ValueError for class names with words that this CLIP has no vectors for, as the tiny one."""
    table, lacking = clip.token_embedding.weight, {}
    for name in classnames:
        for word in name.replace("_", " ").split():
            ids = clip_model.prompt_ids(word)[1:-1]
            if ids and not table[ids].any(dim=1).all():
                lacking[word] = name
    if lacking:
        words = ", ".join(list(lacking)[:5])
        raise ValueError(f"this CLIP never saw {len(lacking)} words of the class names, first "
                         f"{words}: such words are zeros to it, their classes fall together; it "
                         "knows the words of the embedded world only: choose --backbone ViT-B/16")


# The split that stays with a run -----------------------------------------------------------------

def keep_split(folder, dataset):
    """Write a folder's split.json: CoOp's form, paths relative to the folder's root."""
    if not dataset.own:
        return
    parts = {part: getattr(dataset, part) for part in ("train", "val", "test")}
    files.write(folder / SPLIT, splits.text(dataset.classnames, parts))


def load_kept(run, settings, moved=None):
    """The dataset of a run as it was: new photos in its folder, or another seed, change nothing.

    moved   where its folder lies now; None: where it lay
    ValueError for a split that is none, or that leads out of the folder.
    """
    classnames, parts, _ = splits.read(run / SPLIT)
    folder = Path(moved or settings["dataset"]).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder, from where {run} had its photos; if "
                                "it has moved, add --data-root FOLDER")
    note_newcomers(folder, parts)
    name = Path(settings["dataset"]).name
    return dataset_of(name, classnames, parts, f"as kept in the run's {SPLIT}", folder)


def note_newcomers(folder, parts):
    """Say how many pictures of the folder are not in the split: nothing trains or tests on them."""
    kept = {name for items in parts.values() for name, _ in items}
    new = [photo for photo in files_below(folder) if photo.suffix.lower() in datasets.ENDINGS
           and photo.relative_to(folder).as_posix() not in kept]
    if new:
        print(f"note      {len(new)} photos in {folder} are not in the run's {SPLIT} and are "
              f"ignored, first {new[0].relative_to(folder)}; train anew to use them")


# New photos --------------------------------------------------------------------------------------

def predict(learner, paths, out=None):
    """Print the most probable classes of photos and of all photos in folders; out: a CSV file.

    A damaged photo that was named is refused, one that was found in a folder is passed over.
    """
    g = None if learner.per_image else text_features(learner)       # once for all photos
    rows = []
    for path in paths:
        for photo in pictures_in(Path(path)):
            try:
                answer = classify(learner, photo, g)
            except ValueError as problem:
                if not Path(path).is_dir():
                    raise
                print(f"warning: {problem}; passed over")
                continue
            shown = [f"{name.replace('_', ' ')} {100 * p:.1f} %" for name, p in answer]
            print(f"{photo}: {', '.join(shown)}")
            rows.append((photo, *(word for name, p in answer for word in (name, f"{p:.4f}"))))
    if not rows:
        raise ValueError("none of the pictures could be read")
    if out:
        columns = range(1, 1 + max((len(row) - 1) // 2 for row in rows))
        head = ("picture", *(f"{word}_{k}" for k in columns for word in ("class", "probability")))
        files.write_csv(out, [head, *rows])
        print(f"{len(rows)} photos: {out}")


@torch.no_grad()
def text_features(learner):
    return learner.text_features()


@torch.no_grad()
def classify(learner, path, g=None, top=5):
    """A photo -> its most probable classes, [(class name, probability)]; g: the class texts."""
    view = data.transform(learner.clip.visual.resolution, train=False)
    pixels = view(data.open_picture(path, exif=True))
    logits = learner(pixels[None].to(learner.clip.logit_scale.device), g)[0][0]
    p, k = measures.finite(logits.softmax(dim=-1)).topk(min(top, len(logits)))
    return [(learner.classnames[i], q) for i, q in zip(k.tolist(), p.tolist(), strict=True)]


def files_below(path):
    """All files in a folder and the folders below, in order of names, without hidden ones."""
    return sorted(Path(folder) / name for folder, _, names in os.walk(path) for name in names
                  if not name.startswith("."))


def pictures_in(path):
    """The file itself, or all pictures in a folder and the folders below, in order of names."""
    if not path.is_dir():
        return [path]
    found = files_below(path)
    heic = [photo for photo in found if photo.suffix.lower() in datasets.HEIC]
    if heic:
        print(f"warning: {len(heic)} HEIC files passed over, first {heic[0]}: convert to JPEG")
    photos = [photo for photo in found if photo.suffix.lower() in datasets.ENDINGS]
    if not photos:
        raise ValueError(f"{path}: expected pictures in it ({' '.join(datasets.ENDINGS)}), found "
                         "none")
    return photos
