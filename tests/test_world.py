"""The little world, the tiny CLIP's training and the free features (assets/)."""
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import hash_state
from PIL import Image
from small_runs import call, done, files, refused

import clip_model
import data
import losses
from assets import free_features, train_tiny_clip, world

ASSETS = Path(world.__file__).parent


# The world -------------------------------------------------------------------------------------

def test_unseen_pairs_are_never_drawn_for_pretraining():
    specs = world.random_specs(5000, torch.Generator().manual_seed(0))
    drawn = {(s, c) for s, c in specs[:, :2].tolist()}
    assert not drawn & world.UNSEEN
    assert len(drawn) == 80 - len(world.UNSEEN) == 60                   # and all others are


def test_novel_classes_are_unseen_pairs_and_base_classes_are_not():
    names, splits, pictures = world.draw("world")

    pairs = [(world.SHAPES.index(shape), list(world.COLOURS).index(colour))
             for colour, shape in map(str.split, names)]
    base, novel = data.halves(len(names))
    assert len(names) == len(set(names)) == 24
    assert not {pairs[k] for k in base} & world.UNSEEN and {pairs[k] for k in novel} <= world.UNSEEN
    assert [len(splits[p]) for p in ("train", "val", "test")] == [24 * 32, 0, 24 * 50]
    assert len(pictures) == 24 * 82
    for name, label in sum(splits.values(), []):
        assert name.split("/")[1] == names[label]


@pytest.mark.parametrize("name", world.DATASETS)
def test_every_dataset_loads_by_name(name):
    dataset = data.load(name)
    K = len(dataset.classnames)
    assert K >= 8 and {label for _, label in dataset.test} == set(range(K))
    picture = dataset.open(dataset.test[0][0])
    assert picture.size == (32, 32) and picture.mode == "RGB"
    assert dataset.embedded and data.missing(dataset, dataset.test) == []
    assert dataset.base_novel and not dataset.own and not dataset.test_only
    assert dataset.crop_scale == (0.5, 1.0) and dataset.official_split


def test_pictures_come_from_seeds():
    """The same each time; of datasets of the same classes each has its own."""
    assert world.draw.__wrapped__("world_blur") == world.draw("world_blur")     # not kept, kept
    assert world.draw("world_blur")[1]["test"] == world.draw("world_sketch")[1]["test"]
    each = [list(world.draw(name)[2].values())[:5]
            for name in ("world_sketch", "world_blur", "world_rotated")]
    assert len({picture.tobytes() for picture in sum(each, [])}) == 15


def test_the_sheet_of_the_world_has_every_class_or_says_why_not(at, monkeypatch):
    assert call(world.main, "sheet.png") == (None, "", "")
    with Image.open("sheet.png") as sheet:
        assert sheet.width > 300 and len(sheet.getcolors()) > 200
    monkeypatch.setattr(world, "contact_sheet", lambda: Image.new("RGB", (1, 1)))
    (at / "folder.png").mkdir()
    for out in ("folder.png", "gone/world.png"):
        assert f"{out}: can't be written" in refused(out, main=world.main)


def test_shapes_by_points_one_knows():
    """The signed distance of a square by hand; what lies inside of shapes."""
    square = [(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]
    p = torch.tensor([[0., 0], [.5, 0], [2, 0], [4, 5], [0, -1]])
    torch.testing.assert_close(world._polygon(p, square), torch.tensor([1., .5, -1, -5, 0]))
    hollow = {shape for shape in world.SHAPES if world._inside(shape, torch.zeros(2)) < 0}
    assert hollow == {"ring", "moon"}
    for shape, x, y in (("ring", .72, 0), ("moon", -.7, 0), ("heart", 0, -.8)):
        assert world._inside(shape, torch.tensor([x, y])) > 0
    assert world._inside("heart", torch.tensor([0, .8])) < 0


def test_colour_and_background_stand_where_they_should():
    specs = torch.tensor([[0, 4, 0, 0, 1]])                     # a large plain blue circle on black
    picture = world.draw_pictures(specs, torch.Generator().manual_seed(0))[0]
    inside = picture[:, 12:20, 12:20].mean(dim=(1, 2))
    assert inside[2] > .7 and inside[0] < .35                           # blue
    assert min(picture[:, y, x].mean() for y in (0, 31) for x in (0, 31)) < .2


def test_captions_by_hand():
    spec = [3, 0, 1, 0, 0]
    assert world.caption(spec, [1, 1, 1, 1, 1]) == "small red striped star on black"
    assert world.caption(spec, [1, 0, 0, 0, 0]) == "star"
    assert world.caption(spec, [0, 0, 1, 0, 1]) == "small striped shape"


# The tiny CLIP ---------------------------------------------------------------------------------

def test_contrastive_loss_is_cross_entropy_over_true_captions(monkeypatch):
    clip = clip_model.build(hash_state())
    clip.logit_scale.data.fill_(1.0)
    specs = torch.tensor([[0, 0, 0, 0, 0], [0, 1, 0, 0, 0], [2, 0, 1, 1, 1]])
    mentioned = torch.tensor([[1, 1, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 1, 0, 0]]).bool()
    # caption 0 "red circle" is true of picture 0; 1 "circle" of pictures 0 and 1;
    # 2 "striped shape" of picture 2
    true = [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    pictures = torch.randn(3, 3, 32, 32)
    tokens = clip_model.tokenize(["red circle", "circle", "striped shape"])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        z = F.normalize(clip.encode_image(pictures).float())
        g = F.normalize(clip.encode_text(tokens).float())
    s = [[math.e * float(a @ b) for b in g] for a in z]
    total = 0
    for scores, hits in zip([*s, *zip(*s, strict=True)], [*true, *zip(*true, strict=True)],
                            strict=True):                       # rows, then columns
        log_sum = math.log(sum(map(math.exp, scores)))
        missed = sum(log_sum - v for v, hit in zip(scores, hits, strict=True) if hit)
        total += missed / sum(hits) / 6
    with torch.no_grad():
        loss = train_tiny_clip.contrastive_loss(clip, pictures, tokens, specs, mentioned)
    assert loss.item() == pytest.approx(total, abs=2e-3)


@pytest.mark.parametrize("out, reason", [
    ("model.txt", "ends in .pt"), ("gone/m.pt", "gone"), ("folder.pt", "no plain file"),
    ("taken.pt", "taken.log")])
def test_training_is_refused_before_anything_is_touched(at, out, reason):
    (at / "folder.pt").mkdir()
    (at / "taken.log").mkdir()
    assert reason in refused("--out", out, main=train_tiny_clip.main)
    assert not files(at)


def test_model_and_log_get_their_names_together(at, monkeypatch):
    small = {"steps": 2, "pictures": 200, "batch_size": 8, "width": 64, "vision_layers": 1,
             "text_layers": 1, "embed_dim": 16}
    for name, value in small.items():
        monkeypatch.setattr(train_tiny_clip.SETTINGS, name, value)
    done("--out", "tiny.pt", main=train_tiny_clip.main)
    assert files(at).keys() == {"tiny.pt", "tiny.log"}
    log = (at / "tiny.log").read_text()
    assert clip_model.file_sha256(at / "tiny.pt") in log and "step     2" in log
    assert clip_model.load("tiny.pt").text_projection.shape == (64, 16)

    def interrupted(*_):
        raise KeyboardInterrupt

    before = files(at)
    monkeypatch.setattr(train_tiny_clip, "contrastive_loss", interrupted)
    code, _, error = call(train_tiny_clip.main, "--out", "tiny.pt")
    assert code == 130 and len(error.strip().splitlines()) == 1
    assert before.items() <= files(at).items()


def test_words_are_numbered_and_the_end_token_stays_highest():
    tokens = clip_model.tokenize(["a photo of a small red striped star on black.",
                                  "this is a shape."])
    numbered = train_tiny_clip.number_words(tokens)
    ends = tokens.argmax(dim=1)
    assert numbered.argmax(dim=1).tolist() == ends.tolist()
    for row, new, end in zip(tokens, numbered, ends, strict=True):
        assert train_tiny_clip.WORDS[new[:end + 1]].tolist() == row[:end + 1].tolist()


def test_tiny_clip_is_the_one_of_its_log_and_small():
    log = (ASSETS / "tiny_clip.log").read_text()
    assert clip_model.file_sha256(ASSETS / "tiny_clip.pt") in log
    assert sum(p.stat().st_size for p in ASSETS.iterdir() if p.is_file()) < 5e6


# Free features ---------------------------------------------------------------------------------

def test_free_objective_is_eq7_of_all_images():
    """A class's image vector that counts n_k times, against n_k images written out."""
    generator = torch.Generator().manual_seed(0)
    g, z = torch.nn.functional.normalize(torch.randn(2, 3, 5, generator=generator), dim=-1)
    n = torch.tensor([3., 2, 1])
    y = torch.tensor([0, 0, 0, 1, 1, 2])
    whole, _ = losses.npt_loss(z[y] @ g.T / .1, z[y], g, y)
    assert free_features.objective(g, z, n, .1, .3, .8).item() == pytest.approx(whole.item())


def test_free_l_lc_ends_at_the_etf_and_free_l_mi_at_the_text():
    g, _, _ = free_features.optimise(5, 1.0, 1.0, 5.0, 0.0)
    assert losses.lcd_rms(g).item() < 0.1                       # from 0.75
    g, z, _ = free_features.optimise(5, 1.0, 1.0, 0.0, 20.0)
    assert (g * z).sum(dim=1).min().item() > 0.9                # from about 0
