"""Datasets: each of the 15 in its true layout, split files, draws, the long tail, pictures."""
import hashlib
import io
import json
import os
import shutil
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from small_runs import done, files, refused

import data


def encoded(image, kind, **options):
    """The bytes of a picture file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


RED = Image.new("RGB", (12, 8), (200, 30, 30))
JPEG = encoded(RED, "JPEG")


def write(root, content):
    """{relative path: text, bytes or None for a picture} -> files; answers the folder.

    Behind a picture its name is written, so that no two have the same bytes.
    """
    for name, what in content.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        what = JPEG + os.fsencode(name) if what is None else what
        path.write_bytes(what.encode() if isinstance(what, str) else what)
    return root


def pictures_in(counts, prefix=""):
    """{class folder: n} -> n pictures in each, as `write` takes them."""
    return {f"{prefix}{key}/{i}.jpg": None for key, n in counts.items() for i in range(n)}


def loaded(name, root, content, **options):
    """The dataset of files made here; nothing is fetched."""
    return data.load(name, write(root, content), fetch=False, **options)


def counted(items, K):
    n = Counter(label for _, label in items)
    return [n[k] for k in range(K)]


def numbers(items, k):
    """The numbers that name the pictures of a label."""
    return [int(Path(picture).stem) for picture, label in items if label == k]


# The 15, written by hand from their docs ----------------------------------------------------------

# The picture folder; classes in label order, "on disk=in the prompt" or both alike
LAYOUTS = {
    "imagenet": ("imagenet/images", "n01440764=tench; n01443537=goldfish; n01514668=rooster; "
                 "n03773504=missile; n04008634=missile"),
    "caltech101": ("caltech-101/101_ObjectCategories", "Faces=face; Leopards=leopard; "
                   "Motorbikes=motorbike; accordion; airplanes=airplane; ibis; yin_yang"),
    "oxford_pets": ("oxford_pets/images", "abyssinian; bengal; pug"),
    "stanford_cars": ("stanford_cars", "2000 AM General Hummer SUV; "
                      "2012 Ram C/V Cargo Van Minivan; 2012 FIAT 500 Abarth"),
    "oxford_flowers": ("oxford_flowers/jpg", "pink primrose; wild pansy; blackberry lily"),
    "food101": ("food-101/images", "apple_pie; french_fries; waffles"),
    "fgvc_aircraft": ("fgvc_aircraft/images", "707-320; Cessna 525; F/A-18; Yak-42"),
    "sun397": ("sun397/SUN397", "abbey; indoor apse; yard"),
    "dtd": ("dtd/images", "banded; polka-dotted; zigzagged"),
    "eurosat": ("eurosat/2750", "AnnualCrop=Annual Crop Land; Forest; HerbaceousVegetation="
                "Herbaceous Vegetation Land; Highway=Highway or Road; Industrial=Industrial "
                "Buildings; Pasture=Pasture Land; PermanentCrop=Permanent Crop Land; Residential="
                "Residential Buildings; River; SeaLake=Sea or Lake"),
    "ucf101": ("ucf101/UCF-101-midframes", "Apply_Eye_Makeup; Hammering; Yo_Yo"),
    "imagenetv2": ("imagenetv2/imagenetv2-matched-frequency-format-val",
                   "0=tench; 2=great white shark; 7=rooster; 10=brambling; 100=black swan"),
    "imagenet_sketch": ("imagenet-sketch/images",
                        "n01440764=tench; n01443537=goldfish; n01514668=rooster"),
    "imagenet_a": ("imagenet-adversarial/imagenet-a",
                   "n01498041=stingray; n01531178=goldfinch; n04355933=sunglasses"),
    "imagenet_r": ("imagenet-rendition/imagenet-r",
                   "n01443537=goldfish; n01484850=great white shark; n04367480=mop"),
}
PLACE = {name: place for name, (place, _) in LAYOUTS.items()}
PAIRS = {name: [pair.partition("=") for pair in text.split("; ")]
         for name, (_, text) in LAYOUTS.items()}
CLASSES = {name: {key: words or key for key, _, words in pairs} for name, pairs in PAIRS.items()}
V2_IDS = ["n01440764", "n01484850", "n01514668", "n01530575", "n01860187"]
TEMPLATES = {
    "oxford_pets": "a photo of a {}, a type of pet.", "dtd": "{} texture.",
    "oxford_flowers": "a photo of a {}, a type of flower.",
    "fgvc_aircraft": "a photo of a {}, a type of aircraft.",
    "food101": "a photo of {}, a type of food.", "ucf101": "a photo of a person doing {}.",
    "eurosat": "a centered satellite photo of {}."}
SPLITS = {name: f"{PLACE[name].split('/')[0]}/split_zhou_{word}.json" for name, word in {
    "caltech101": "Caltech101", "oxford_pets": "OxfordPets", "stanford_cars": "StanfordCars",
    "oxford_flowers": "OxfordFlowers", "food101": "Food101", "sun397": "SUN397",
    "dtd": "DescribableTextures", "eurosat": "EuroSAT", "ucf101": "UCF101"}.items()}
NEEDS_SPLIT = ("stanford_cars", "oxford_flowers", "oxford_pets", "sun397", "ucf101")
ELSEWHERE = {                                       # where torchvision puts what CoOp has here
    "caltech101": ("caltech-101", "caltech101"), "oxford_pets": ("oxford_pets", "oxford-iiit-pet"),
    "oxford_flowers": ("oxford_flowers", "flowers-102"), "dtd": ("dtd/images", "dtd/dtd/images"),
    "fgvc_aircraft": ("fgvc_aircraft", "fgvc-aircraft-2013b/data"),
    "sun397": ("sun397/SUN397", "SUN397"), "imagenet": ("imagenet/images/", "imagenet/"),
    "imagenet_sketch": ("sketch/images", "sketch/sketch"),
    "eurosat": ("eurosat/2750", "eurosat/EuroSAT_RGB")}             # as Zenodo unpacks it
PARTS = {                                           # of a class's pictures; else 10 of "all"
    "imagenet": ["train"] * 10 + ["val"] * 3,
    "fgvc_aircraft": ["train"] * 4 + ["val"] * 3 + ["test"] * 6}
DIVIDED = {                                         # into train, val, test; else 50, 20, 30 %
    "imagenet": [10, 0, 3], "fgvc_aircraft": [4, 3, 6],
    **dict.fromkeys(("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"), [10, 0, 10])}
PICTURE = {                                         # its name; n is its class counted from 1
    "fgvc_aircraft": "{n:03}{i:02}.jpg", "imagenet": "{part}/{key}/{i}.JPEG"}
STRAYS = {
    "caltech101": ["BACKGROUND_Google/1.jpg", "Faces_easy/1.jpg"],
    "dtd": ["banded/.directory", ".DS_Store"],
    "imagenet_a": ["README.txt"], "imagenet_r": ["README.txt"]}


def layout(name):
    """A small copy of a dataset -> (all its files, {picture: (part on disk, class on disk)})."""
    owner, place = {}, PLACE[name]
    for n, key in enumerate(CLASSES[name], 1):
        for i, part in enumerate(PARTS.get(name, ["all"] * 10)):
            picture = PICTURE.get(name, "{key}/{i}.jpg").format(n=n, key=key, i=i, part=part)
            owner[picture] = part, key
    found = {f"{place}/{file}": None for file in [*owner, *STRAYS.get(name, [])]}
    if name == "fgvc_aircraft":                             # its lists stand beside the pictures
        found[f"{name}/variants.txt"] = "\n".join(CLASSES[name])
        for part in ("train", "val", "test"):
            found[f"{name}/images_variant_{part}.txt"] = "".join(
                f"{Path(picture).stem} {key}\n" for picture, (its, key) in owner.items()
                if its == part)
    return found, owner


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name not in NEEDS_SPLIT])
def test_each_dataset_in_its_true_layout(name, tmp_path):
    """Without CoOp's split file: names, label order, every picture once in its class, the draw."""
    content, owner = layout(name)
    before = files(write(tmp_path, content))
    dataset, keys, K = data.load(name, tmp_path, fetch=False), [*CLASSES[name]], len(CLASSES[name])
    assert files(tmp_path) == before                        # the user's folder is only read
    assert dataset.classnames == list(CLASSES[name].values())
    assert dataset.template == TEMPLATES.get(name, "a photo of a {}.")
    parts = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    assert [counted(items, K) for items in parts.values()] == [
        [n] * K for n in DIVIDED.get(name, [5, 2, 3])]
    for items in parts.values():
        assert all(owner[picture][1] == keys[label] for picture, label in items)
    where = {part: {owner[picture][0] for picture, _ in items} for part, items in parts.items()}
    if name == "fgvc_aircraft":
        assert where == {part: {part} for part in parts}
    seen = [picture for items in parts.values() for picture, _ in items]
    assert set(seen) == set(owner)                          # every one
    if name in data.ALL:
        assert len(seen) == len(owner)                      # and none twice
    else:
        assert dataset.train == dataset.test and dataset.test_only
    assert dataset.base_novel == (name in data.ALL)
    assert dataset.official_split == (name not in SPLITS)
    drawn = data.training_items(dataset, data.halves(K)[1], 3, 1.0, 1)
    assert counted(drawn, K // 2) == [3] * (K // 2)
    assert {owner[picture][1] for picture, _ in drawn} == set(keys[(K + 1) // 2:])
    assert dataset.open(drawn[0][0]).size == RED.size
    if name.startswith("imagenet"):
        said = ["no test/: val/ is used for testing"] * (name == "imagenet")
        assert dataset.notes[:-1] == said                   # of the README.txt in A and R no word
        assert dataset.class_ids == (V2_IDS if name == "imagenetv2" else keys)
    fewer = any("classes in the papers" in note for note in dataset.notes)
    assert fewer == (name != "eurosat")                     # none lost unsaid


@pytest.mark.parametrize("name", ELSEWHERE)
def test_another_layout_gives_the_same_items(name, tmp_path):
    content = layout(name)[0]
    if name in NEEDS_SPLIT:
        content = split_file(name) | {f"{PLACE[name]}/train_2_0.jpg": None}
    coop, others = ELSEWHERE[name]
    moved = {path.replace(coop, others, 1): what for path, what in content.items()}
    assert moved != content
    one, other = loaded(name, tmp_path / "1", content), loaded(name, tmp_path / "2", moved)
    assert (one.train, one.val, one.test) == (other.train, other.val, other.test)
    assert one.classnames == other.classnames and other.open(other.train[0][0])


# Split files --------------------------------------------------------------------------------------

def split_parts(name="dtd"):
    """Classes not in label order, as Cars and Flowers have them."""
    names = [*CLASSES[name]] if name in NEEDS_SPLIT else ["one", "two", "two_b"]
    return {part: [[f"{part}_{label}_{i}.jpg", label, names[label]]
                   for label in (2, 0, 1) for i in range(n)]
            for part, n in (("train", 20), ("val", 5), ("test", 3))}


def split_file(name="dtd", parts=None):
    return {SPLITS[name]: json.dumps(split_parts(name) if parts is None else parts, indent=4)}


@pytest.mark.parametrize("name", SPLITS)
def test_a_split_file_is_taken_as_it_stands_without_pictures(name, tmp_path):
    entries, dataset = split_parts(name), loaded(name, tmp_path, split_file(name))
    assert dataset.split.startswith("CoOp's split_zhou_")
    first = data.ROWS[name].first                           # where it is known, this is another's
    assert dataset.official_split is (not first) and ("private" in dataset.split) is bool(first)
    for part in ("train", "val", "test"):
        assert getattr(dataset, part) == [(picture, label) for picture, label, _ in entries[part]]
    assert dataset.classnames == [entries["train"][i][2] for i in (20, 40, 0)]      # labels 2, 0, 1
    assert len(data.missing(dataset, dataset.train + dataset.val)) == 75
    # from the last picture folder: the true location, which a misplaced parent would miss
    write(tmp_path / PLACE[name], {"train_2_0.jpg": None})
    assert len(data.missing(dataset, dataset.train)) == 59


@pytest.mark.parametrize("part, i, entry", [
    *(("val", 3, [path, 0, "one"]) for path in (
        "../../etc/passwd", "/etc/passwd", "..\\up.jpg", "C:/up.jpg", "", ".", "\udcff.jpg",
        "./train_0_7.jpg", "a//b.jpg", "a/./b.jpg")),
    ("train", 5, ["train_2_4.jpg", 2, "two_b"]),            # stands in train[4]
    ("test", 0, ["train_0_7.jpg", 0, "one"]),               # stands in train[27]
    *(("train", 2, entry) for entry in (
        ["x.jpg", "2", "two_b"], ["x.jpg", True, "two_b"], [7, 2, "two_b"], ["x.jpg", 2], "x.jpg",
        ["x.jpg", -1, "two_b"])),
    ("test", 8, ["x.jpg", 1, "TWO"])])                      # label 1 was "two"
def test_a_bad_entry_of_a_split_file_is_refused_by_its_place(part, i, entry, tmp_path):
    parts = split_parts()
    parts[part][i:i + 1] = [entry]
    with pytest.raises(ValueError, match=rf"{part}\[{i}\] .*: expected .picture, label,") as no:
        loaded("dtd", tmp_path, split_file("dtd", parts))
    assert "\n" not in str(no.value) and str(entry)[:9] in str(no.value)


PART, LACKS = [["x.jpg", 0, "x"]], "lists train, val and test"
TRAINS = pictures_in({"n01440764": 1, "n01443537": 1}, "imagenet/images/train/")


@pytest.mark.parametrize("name, content, fault", [
    *(("dtd", {SPLITS["dtd"]: text}, "not a JSON file")
      for text in ('{"train": [', "[" * 100_000, b"\xff\xfe\x00")),
    *(("dtd", split_file("dtd", parts), fault) for parts, fault in (
        ([], LACKS), ({"train": PART, "test": PART}, LACKS),
        ({"train": PART, "val": {}, "test": PART}, LACKS),
        ({"train": PART, "val": [], "test": []}, "no test picture"),
        ({"train": [], "val": [], "test": PART}, "1 of 1 classes have no train picture: x"),
        ({"train": [], "val": [], "test": []}, "expected labels from 0"),
        ({"train": PART, "val": [], "test": [["y.jpg", 10 ** 12, "z"]]}, "without a gap"),
        ({"train": [["x.jpg", 0, "\u200b "]], "val": [], "test": []}, "class 0 .* be seen"))),
    ("imagenetv2", {f"{PLACE['imagenetv2']}/1000/1.jpg": None}, "class folder 1000: expected"),
    ("imagenet_a", {f"{PLACE['imagenet_a']}/cat/1.jpg": None}, "class folder cat: expected"),
    ("imagenet", TRAINS | {f"imagenet/images/val/{i}.JPEG": None for i in (1, 2)},
     "val: expected one sub-folder for each class, found 2 loose.*val/<wnid>/"),
    ("imagenet", TRAINS | pictures_in({"n01440764": 1, "n9": 1}, "imagenet/images/val/"), "'n9'"),
    ("imagenet", TRAINS, "train/ without test/ .or val/.")])
def test_lists_and_folders_refused(name, content, fault, tmp_path):
    content = content if name in ("dtd", "imagenet") else layout(name)[0] | content
    with pytest.raises((ValueError, FileNotFoundError), match=fault):
        loaded(name, tmp_path, content)


def test_a_split_made_here_is_coops_rule_over_sorted_names(tmp_path):
    """One running random.Random(1) orders 6 8 9 7 5 3 0 4 1 2, then 4 8 2 6 5 9 0 7 1 3."""
    dataset = loaded("eurosat", tmp_path, layout("eurosat")[0])
    parts = dataset.train, dataset.val, dataset.test
    assert [numbers(part, 0) for part in parts] == [[6, 8, 9, 7, 5], [3, 0], [4, 1, 2]]
    assert [numbers(part, 1) for part in parts] == [[4, 8, 2, 6, 5], [9, 0], [7, 1, 3]]
    assert "seed 1 (not CoOp's)" in dataset.split
    assert loaded("eurosat", tmp_path, {}).test == dataset.test
    assert loaded("eurosat", tmp_path, {}, seed=2).test != dataset.test
    both = loaded("eurosat", tmp_path, split_file("eurosat"))           # CoOp's comes first
    assert both.classnames == ["one", "two", "two_b"]


@pytest.mark.parametrize("n, coops, a_folders", [
    (2, [1, 0, 1], [1, 0, 1]), (3, [2, 0, 1], [2, 0, 1]), (4, [2, 1, 1], [2, 0, 2]),
    (5, [2, 1, 2], [3, 0, 2]), (7, [4, 1, 2], [4, 0, 3]), (20, [10, 4, 6], [12, 0, 8])])
def test_divide_by_hand(n, coops, a_folders):
    """50/20/30 % and 60/40 %; halves round to the even number, one picture at least tests."""
    for shares, sizes in (((0.5, 0.2), coops), ((0.6, 0.0), a_folders)):
        parts = data.divide({"all": [(str(i), 0) for i in range(n)]}, 1, *shares)
        assert [len(parts[part]) for part in ("train", "val", "test")] == sizes
        assert sorted(int(name) for items in parts.values() for name, _ in items) == [*range(n)]


# Fetching and the ImageNet family -----------------------------------------------------------------

@pytest.fixture
def fetches(monkeypatch):
    """fetches(class, content, problem) -> torchvision's class writes that, then maybe breaks."""
    def pretend(name, content, problem=None):
        def fetch(root, download):
            assert download
            print("noise that must not spoil --json")
            write(Path(root), content)
            if problem:
                raise problem
        monkeypatch.setattr(torchvision.datasets, name, fetch)
    return pretend


def test_fetching_ends_in_coops_layout(tmp_path, fetches, monkeypatch, capsys):
    content = {path.replace("fgvc_aircraft", "fgvc-aircraft-2013b/data"): what
               for path, what in layout("fgvc_aircraft")[0].items()}
    fetches("FGVCAircraft", content | {"fgvc-aircraft-2013b/data/archive.tar.gz": "no use now"})
    dataset = data.load("fgvc_aircraft", tmp_path)
    assert dataset.pictures == tmp_path / "fgvc_aircraft" / "images" and len(dataset.test) == 24
    assert capsys.readouterr().out == ""
    assert files(tmp_path).keys() == layout("fgvc_aircraft")[0].keys()
    monkeypatch.delattr(torchvision.datasets, "FGVCAircraft")
    data.load("fgvc_aircraft", tmp_path)                    # there already: nothing is fetched


def test_fetching_the_flowers_needs_the_split_first_and_no_scipy(tmp_path, fetches):
    fetches("Flowers102", {"flowers-102/jpg/train_2_0.jpg": None, "flowers-102/setid.mat": "its"},
            ModuleNotFoundError("No module named 'scipy'"))
    with pytest.raises(FileNotFoundError, match="split_zhou_OxfordFlowers.json not found"):
        data.load("oxford_flowers", tmp_path)
    assert not list(tmp_path.iterdir())
    write(tmp_path, split_file("oxford_flowers") | {"oxford_flowers/setid.mat": "mine"})
    assert data.load("oxford_flowers", tmp_path).open("train_2_0.jpg")
    assert (tmp_path / "oxford_flowers/setid.mat").read_text() == "mine"


def test_half_a_download_leaves_nothing_and_says_what_to_do(tmp_path, fetches):
    fetches("EuroSAT", {"eurosat/2750/Forest/1.jpg": None}, ConnectionResetError("connection lost"))
    steps = "connection lost.*into .*eurosat/2750: EuroSAT_RGB.zip.*split_zhou_EuroSAT"
    with pytest.raises(FileNotFoundError, match=steps) as caught:
        data.load("eurosat", tmp_path / "new/root")
    assert "\n" not in str(caught.value) and not list((tmp_path / "new/root").iterdir())


@pytest.mark.parametrize("name", data.ROWS)
def test_nothing_there_is_one_line_that_says_what_to_get(name, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        loaded(name, tmp_path, {})
    message, wanted = str(caught.value), [str(tmp_path / PLACE[name]), data.ROWS[name].source]
    wanted += [Path(SPLITS[name]).name] if name in SPLITS else []
    assert "\n" not in message and all(word in message for word in wanted)


def test_the_asset_has_the_names_of_clips_authors():
    asset = Path(data.__file__).parent / "assets/imagenet.tsv"
    ids, names = zip(*(line.split("\t") for line in asset.read_text().splitlines()), strict=True)
    assert len(ids) == 1000 and list(ids) == sorted(set(ids))
    known = {0: "tench", 7: "rooster", 100: "black swan", 134: "crane bird", 657: "missile",
             744: "missile", 836: "sunglasses", 837: "sunglasses", 999: "toilet paper"}
    assert {k: names[k] for k in known} == known and len(set(names)) == 998


def test_a_symbolic_link_to_the_pictures_works(tmp_path):
    """CoOp's instructions link ImageNet's train and val into $DATA."""
    (tmp_path / "imagenet/images").mkdir(parents=True)
    for part in ("train", "val"):
        write(tmp_path / "elsewhere", pictures_in({"n01440764": 1}, part + "/"))
        (tmp_path / "imagenet/images" / part).symlink_to(tmp_path / "elsewhere" / part)
    dataset = data.load("imagenet", tmp_path)
    assert dataset.open(dataset.train[0][0]).size == RED.size


# Draws and the long tail --------------------------------------------------------------------------

# The first 12 hex digits of sha256 of the drawn training positions, 16 shots, seeds 1, 2, 3: CoOp's
# published draws. Group sizes are all that the draw sees.
GOLDEN = {
    "food101": ([500] * 101, ["cefcf523a76e", "5b5b486ec8c0", "0f534b408257"]),
    "sun397": ([40] * 397, ["79b0e313e24a", "1c63049ba3d7", "16fc485aeacb"]),
    "dtd": ([60] * 47, ["6aa4d669856a", "68595428c5c9", "1a91bd3b5e6f"]),
    "eurosat": ([1500, 1500, 1500, 1250, 1250, 1000, 1250, 1500, 1250, 1500],
                ["d0eded86733d", "8cdddbc39a1a", "05ff8da9bfd8"])}


def digest(positions):
    return hashlib.sha256(",".join(map(str, positions)).encode()).hexdigest()


@pytest.mark.parametrize("name", GOLDEN)
def test_few_shot_draws_are_coops(name):
    sizes, golden = GOLDEN[name]
    labels = [k for k, n in enumerate(sizes) for _ in range(n)]
    assert [digest(data.few_shot(labels, 16, seed))[:12] for seed in (1, 2, 3)] == golden


def test_a_draw_visits_labels_in_order_of_appearance_and_gives_all_of_a_small_class():
    drawn = data.few_shot([5] * 3 + [0] * 40, 16, 1)
    assert drawn[:3] == [0, 1, 2] and len(drawn) == 19 == len(set(drawn)) and min(drawn[3:]) >= 3
    just_enough = data.few_shot([0] * 16, 16, 1)            # drawn, not taken as it stands
    assert sorted(just_enough) == list(range(16)) != just_enough
    with pytest.raises(ValueError, match="shots"):
        data.few_shot([5], 0, 1)


@pytest.mark.parametrize("asked, n", [
    ((5, 16, 0.05), [16, 7, 3, 1, 1]), ((5, 16, 0.01), [16, 5, 1, 1, 1]), ((3, 16, 1), [16] * 3),
    ((1, 16, 0.01), [16]), ((2, 16, 0.5), [16, 8]), ((3, 16, 0.25), [16, 8, 4]),
    ((4, 1, 0.01), [1] * 4),
    ((3, 10, 0.0729), [10, 2, 1]),                  # 2.7 -> 2: fractions are cut off, not rounded
    ((5, 16, 1, None, 24), [5, 5, 5, 5, 4]),        # a total is dealt evenly
    ((3, 16, 1, None, 3), [1, 1, 1]), ((2, 16, 1, None, 32), [16, 16])])
def test_class_counts_by_hand(asked, n):
    assert data.class_counts(*asked) == n


@pytest.mark.parametrize("bad, fault", [
    *(({"tau": tau}, "tau = min n_k") for tau in (0, -1, 2, float("nan"), float("inf"))),
    ({"max_count": 0}, "at least 1 class and 1 image"), ({"num_classes": 0}, "at least 1 class"),
    *(({"total": n}, "5 classes of 1 to 16 images have 5 to 80") for n in (4, 81))])
def test_class_counts_refuses(bad, fault):
    with pytest.raises(ValueError, match=fault):
        data.class_counts(**{"num_classes": 5, **bad})


def toy(K=6, n=30, order=(3, 0, 5, 1, 4, 2)):
    train = [(f"{k}/{i}", k) for k in order for i in range(n)]
    return data.Dataset("toy", [f"class {k}" for k in range(K)], "{}", train, [], train[:], "none",
                        False, {})


@pytest.mark.parametrize("labels, tau, shuffle_seed, n", [
    # any labels, relabelled from 0 in the order given; a smaller tau keeps a subset
    *((labels, tau, None, n) for tau, n in ((1, [16, 16, 16]), (0.05, [16, 3, 1]))
      for labels in ([4, 2, 0], [1, 3, 5])),
    # 16 * 0.05^(k/5) by hand: 16, 8.7, 4.8, 2.6, 1.4, 0.8, dealt out as random.Random(3) shuffles
    ([0, 1, 2, 3, 4, 5], 0.05, 3, [16, 4, 2, 1, 1, 8])])
def test_training_items_are_the_first_of_the_full_draw(labels, tau, shuffle_seed, n):
    dataset = toy()
    full = [dataset.train[i] for i in data.few_shot([label for _, label in dataset.train], 16, 7)]
    items = data.training_items(dataset, labels, 16, tau, 7, shuffle_seed)
    for k, label in enumerate(labels):
        drawn = [name for name, y in full if y == label]
        assert [name for name, y in items if y == k] == drawn[:n[k]]
    small = data.training_items(toy(n=5), [0, 1, 2], 16, 0.25, 1)
    assert counted(small, 3) == [5, 5, 4]           # of 16, 8 and 4


def test_few_tests_are_drawn_of_each_class_and_said():
    dataset = toy(K=2, n=5, order=(1, 0))
    few = data.with_few_tests(dataset, 3, 1)
    assert counted(few.test, 2) == [3, 3] and few.train == dataset.train
    assert few.test == [item for item in dataset.test if item in few.test]          # in their order
    assert few.split == "none; a subset, 3 test images a class" and dataset.split == "none"
    tests = [data.with_few_tests(dataset, n, seed).test for n, seed in ((3, 1), (3, 2), (9, 1))]
    assert tests[0] == few.test != tests[1] and tests[2] == dataset.test


# Pictures and batches -----------------------------------------------------------------------------

FLAG = RED.copy()
FLAG.paste("white", (6, 0, 12, 8))
RED_TAG = Image.Exif()
RED_TAG[0x0112] = 6                                 # "turn me by 90 degrees"
ZOO = {                                             # name: (picture, colour of its first pixel)
    "red.jpg": (JPEG, (200, 30, 30)),
    "red.PNG": (encoded(RED, "PNG"), (200, 30, 30)),
    "red.webp": (encoded(RED, "WEBP"), (200, 30, 30)),
    "grey.png": (encoded(Image.new("L", (12, 8), 90), "PNG"), (90, 90, 90)),
    "cmyk.jpg": (encoded(Image.new("CMYK", (12, 8), (0, 255, 0, 0)), "JPEG"), (255, 0, 255)),
    "palette.png": (encoded(RED.quantize(4), "PNG"), (200, 30, 30)),
    "glass.png": (encoded(FLAG.quantize(4), "PNG", transparency=bytes([5, 9])), (200, 30, 30)),
    "alpha.png": (encoded(Image.new("RGBA", (12, 8), (10, 20, 30, 0)), "PNG"), (10, 20, 30)),
    "grey_alpha.png": (encoded(Image.new("LA", (12, 8), (70, 0)), "PNG"), (70, 70, 70)),
    "one_bit.png": (encoded(Image.new("1", (12, 8), 1), "PNG"), (255, 255, 255)),
    "moving.gif": (encoded(RED, "GIF", save_all=True, append_images=[Image.new("L", (12, 8))]),
                   (200, 30, 30)),
    "turned.jpg": (encoded(RED, "JPEG", exif=RED_TAG), (200, 30, 30))}
ZOO |= {f"red.{ending}": (encoded(RED, kind), (200, 30, 30)) for ending, kind in (
    ("jfif", "JPEG"), ("jpe", "JPEG"), ("AVIF", "AVIF"), ("jp2", "JPEG2000"))}


@pytest.mark.filterwarnings("error")
def test_every_kind_of_picture_opens_in_rgb(tmp_path):
    content = {f"{c}/{file}": what for file, (what, _) in ZOO.items() for c in "ab"}
    dataset = data.load(write(tmp_path, content))
    assert len(dataset.train + dataset.test) == len(content)            # known by their endings
    for file, (_, colour) in ZOO.items():
        for dataset.own in (False, True):                   # a folder of one's own is turned
            image = dataset.open(f"a/{file}")
            assert image.size == ((8, 12) if dataset.own and file == "turned.jpg" else (12, 8))
            assert image.mode == "RGB", file
            assert np.abs(np.subtract(image.getpixel((0, 0)), colour)).max() <= 6, file


def test_all_unreadable_and_missing_pictures_are_named_in_one_go(tmp_path, monkeypatch, capsys):
    content = pictures_in({"a": 10, "b": 10}) | {
        "a/3.jpg": "not a picture", "a/4.jpg": b"", "b/5.jpg": JPEG[:len(JPEG) // 2],
        **{f"a/{i}.jpg": f"no picture {i}" for i in (5, 6, 7, 8)}}
    dataset = data.load(write(tmp_path, content))
    (tmp_path / "b/6.jpg").unlink()
    items = dataset.train + dataset.test
    with pytest.raises(ValueError, match="8 of 20 pictures can't be used, first .*b/6.jpg: picture "
                       "not found; put back what is gone, or train anew without it; mend or move "
                       "out all that are named above"):
        data.check_pictures(dataset, items)
    lines = sorted(capsys.readouterr().out.splitlines())
    named = [line.partition(": ")[2].removeprefix(f"{tmp_path}/")[:8] for line in lines]
    assert named == [*(f"a/{i}.jpg:" for i in range(3, 9)), "b/5.jpg:", "b/6.jpg:"]
    assert lines[0][:9] == "warning: "
    with pytest.raises(ValueError, match="1 of 20 pictures"):
        data.check_pictures(dataset, items, decode=False)
    fine = [item for item in items if item[0] in ("b/7.jpg", "b/8.jpg")]
    data.check_pictures(dataset, fine)
    opened, real = [], data.open_picture
    monkeypatch.setattr(data, "open_picture",
                        lambda path, exif: opened.append(path) or real(path, exif))
    data.check_pictures(dataset, fine)                      # known to be readable,
    (tmp_path / "b/8.jpg").write_bytes(JPEG + b"changed")
    data.check_pictures(dataset, fine)                      # but a changed one
    assert [path.name for path in opened] == ["8.jpg"]
    with pytest.raises(ValueError, match="a/3.jpg: not a readable picture.*HEIC.*convert it to J"):
        dataset.open("a/3.jpg")
    with pytest.raises(ValueError, match="must be a relative path"):    # what else escapes: above
        dataset.open("a/../../x.jpg")
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(ValueError, match=f"11 of 20 pictures are not in {tmp_path}, first a/"):
        data.check_pictures(dataset, sorted(items), decode=False)


def test_transforms_are_clips():
    mean, std = (torch.tensor(values)[:, None, None] for values in (
        (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)))
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8))
    small = noise.resize((25, 20), Image.Resampling.BICUBIC)            # the shorter edge,
    bicubic = torch.tensor(np.asarray(small.crop((2, 0, 22, 20))) / 255)    # then the centre
    back = data.transform(20, train=False)(noise) * std + mean
    assert torch.allclose(back, bicubic.permute(2, 0, 1).float(), atol=1e-5)
    crop, flip, *_ = data.transform(20, train=True).transforms
    assert crop.scale == (0.08, 1.0) and crop.interpolation.value == "bicubic" and flip.p == 0.5
    assert data.transform(20, train=True, crop_scale=(0.5, 1.0)).transforms[0].scale == (0.5, 1.0)


def in_memory(n):
    """n one-coloured pictures in memory: the i-th is all i, with label i."""
    dataset = toy(n, 1, range(n))
    dataset.pictures = {f"{i}/0": Image.new("RGB", (8, 8), (i, i, i)) for i in range(n)}
    return dataset


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_batches_come_in_order_and_whole(device):
    dataset = in_memory(7)
    loader = data.batches(dataset, dataset.test, 4, device, batch_size=3)
    assert [labels.tolist() for _, labels in loader] == [[0, 1, 2], [3, 4, 5], [6]]
    for images, labels in loader:                           # grey i, by CLIP's mean and std of red
        reds = images[:, 0, 2, 2] * 0.26862954 + 0.48145466
        assert (reds * 255).round().tolist() == labels.tolist() and images.shape[1:] == (3, 4, 4)
    view = data.transform(4, train=False)                   # bytes, then the same numbers
    whole = torch.cat([images for images, _ in loader])
    assert torch.equal(whole, torch.stack([view(dataset.open(name)) for name, _ in dataset.test]))
    assert (loader.loader.num_workers, loader.loader.pin_memory, dataset.embedded) == (
        0, False, True)
    batches = data.batches(dataset, dataset.test * 15, 4, device)
    assert [len(labels) for _, labels in batches] == [100, 5] and len(batches) == 2


def test_a_small_batch_is_trained_on_only_where_it_is_the_only_one():
    """Order and views by seed and epoch: test_train's hand-written loop; going on: test_runs."""
    dataset = in_memory(7)
    for batch_size, sizes in ((3, [3, 3] * 2), (7, [7] * 2), (20, [7] * 2)):
        loader = data.training_batches(dataset, dataset.train, 4, "cpu", batch_size, 2, 5)
        assert [len({*labels.tolist()}) for _, labels in loader] == sizes


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("embedded, n, device, workers", [
    (False, 100, "cpu", 0), (False, 101, "cpu", 3), (False, 3, "cuda:0", 2),    # it must not wait
    (True, 101, "cuda", 0)])
def test_workers_only_where_many_pictures_lie_on_disk(
        embedded, n, device, workers, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "cores", lambda: 3)
    dataset = toy()
    dataset.pictures = {} if embedded else tmp_path
    batches = data.batches(dataset, dataset.train[:n], 4, device, batch_size=2)
    assert batches.loader.num_workers == workers


# Writing ------------------------------------------------------------------------------------------

@pytest.mark.parametrize("problem", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_cannot_be_written_whole_leaves_the_old(problem, tmp_path, monkeypatch):
    def full(path, mode):
        Path(path).write_bytes(b"n")
        raise problem

    path = write(tmp_path, {"x.csv": "old"}) / "x.csv"
    monkeypatch.setattr(data, "open", full, raising=False)
    words = "^[^\n]*x.csv: can't be written .No space left[^\n]*$"
    with pytest.raises(type(problem), match=words if isinstance(problem, OSError) else None):
        data.write(path, "new")
    assert os.listdir(tmp_path) == ["x.csv"] and path.read_text() == "old"


@pytest.mark.skipif(os.name != "posix", reason="it has no /dev/null, and links need rights")
def test_write_replaces_plain_files_and_its_own_scratch_only(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="/dev/null: not a plain file"):
        data.write("/dev/null", "x")
    before = files(write(tmp_path, {"precious": "mine", "x.csv.part": "another's"}))
    link = tmp_path / "x.csv.5eed5eed.part"
    link.symlink_to(tmp_path / "precious")
    data.write(tmp_path / "x.csv", "new")
    monkeypatch.setattr(data.secrets, "token_hex", lambda n: "5eed5eed")    # its name was guessed
    with pytest.raises(OSError, match="x.csv: can't be written"):
        data.write(tmp_path / "x.csv", "newer")
    assert link.is_symlink() and (tmp_path / "x.csv").read_text() == "new"
    assert before.items() <= files(tmp_path).items() and len(os.listdir(tmp_path)) == 4


# The command line ---------------------------------------------------------------------------------

def asked(*words):
    return done(*words, main=data.main)


def test_command_line_json(tmp_path, monkeypatch):
    write(tmp_path, split_file("dtd"))
    words = ["--data-root", tmp_path, "--seed", 2, "--tau", "0.25", "--json"]
    facts = json.loads(asked("dtd", *words))
    assert not (tmp_path / "dtd/images").exists()
    expected = {"num_classes": 3, "classnames": ["one", "two", "two_b"], "num_base": 2, "train": 60,
                "val": 15, "test": 9, "missing": 84, "class_counts": [16, 4],
                "official_split": False}
    assert {key: facts[key] for key in expected} == expected
    positions = data.few_shot([2] * 20 + [0] * 20 + [1] * 20, 16, 2)
    assert facts["draw_sha256"] == digest(positions)
    assert facts["first"] == [f"train_0_{p - 20}.jpg" for p in positions[16:19]]
    monkeypatch.setattr(data, "ALL", ["dtd", "world"])
    assert [facts["name"] for facts in json.loads(asked("all", *words))] == ["dtd", "world"]


def test_command_line_for_reading(tmp_path):
    write(tmp_path, split_file("dtd") | pictures_in(dict.fromkeys("abc", 8), "mine/"))
    lines = [line.split() for line in asked("dtd", "--data-root", tmp_path).splitlines()]
    assert ["missing", "84"] in lines and lines[-3:] == [
        ["0", "16", "20", "3", "one"], ["1", "16", "20", "3", "two"],
        ["2", "novel", "20", "3", "two_b"]]
    assert "novel" not in asked(tmp_path / "mine", "--shots", 2)
    facts = json.loads(asked(tmp_path / "mine", "--shots", 2, "--base-novel", "--json"))
    assert facts["num_base"] == 2 and facts["official_split"] is False
    assert [line.split()[0] for line in asked().splitlines()] == data.NAMES


@pytest.mark.parametrize("words, fault", [
    ("eurosta", "did you mean eurosat"), ("no/such/folder", "no such folder"),
    ("dtd", "split_zhou_Desc"), ("world --tau nan", "--tau: must be from"),
    ("world --tau 0", "--tau: must be"), ("world --shots 0", "--shots: must be"),
    ("eurosat --tau 2", "--tau: must be"),                  # before the missing folder is seen
    ("eurosat --seed -1", "must be from 0"), ("world --seed 4294967296", "to 4294967295,"),
    ("", "expected a word, got an empty one"), ("world --classnames ", "expected a word, got an")])
def test_command_line_errors(words, fault, tmp_path):
    assert fault in refused(*words.split(" "), "--data-root", tmp_path, main=data.main)


# What scripts share -------------------------------------------------------------------------------

def test_workers_share_what_memory_there_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data.shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 30))
    monkeypatch.setattr(sys, "platform", "linux")
    assert data.room_for_workers(tmp_path) == 32 and capsys.readouterr().out == ""
    assert data.room_for_workers(tmp_path / "gone") == 0
    assert "0 MB of shared memory" in capsys.readouterr().out


@pytest.mark.parametrize("error, said", [
    (MemoryError(), "error: not enough memory; try a smaller --batch-size"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "error: not enough memory"),
    (ValueError("wrong"), "error: wrong"),
    (RuntimeError("size mismatch"), None)])                 # a bug: it is seen
def test_a_failure_is_one_line(error, said, capsys):
    def job():
        raise error

    if said is None:
        with pytest.raises(RuntimeError, match="size mismatch"):
            data.run_script(job)
    else:
        assert data.run_script(job) == 2 and capsys.readouterr().err.startswith(said)
