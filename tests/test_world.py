"""The little world, the tiny CLIP's training and the laboratory (assets/)."""
import json
import math
from pathlib import Path

import numpy
import pytest
import torch
import torch.nn.functional as F
from conftest import hash_state
from small_runs import call, done, files, read, refused

import clip_model
import data
import losses
import prompts
import train
from assets import free_features, laboratory, train_tiny_clip, weight_files, world
from assets import laboratory_page as page

ASSETS = Path(world.__file__).parent


# ---------------------------------------------------------------------------------------- the world

def test_unseen_pairs_are_never_drawn_for_pretraining():
    specs = world.random_specs(5000, torch.Generator().manual_seed(0))
    drawn = {(s, c) for s, c in specs[:, :2].tolist()}
    assert not drawn & world.UNSEEN
    assert len(drawn) == 80 - len(world.UNSEEN) == 60                   # and all others are


def test_novel_classes_are_unseen_pairs_and_base_classes_are_not():
    names, splits, pictures = world.draw("world")

    def pair(name):
        colour, shape = name.split()
        return world.SHAPES.index(shape), list(world.COLOURS).index(colour)

    base, novel = data.halves(len(names))
    assert len(names) == len(set(names)) == 24
    assert all(pair(names[k]) not in world.UNSEEN for k in base)
    assert all(pair(names[k]) in world.UNSEEN for k in novel)
    assert [len(splits[p]) for p in ("train", "val", "test")] == [24 * 32, 0, 24 * 50]
    assert len(pictures) == 24 * 82
    for name, label in sum(splits.values(), []):
        assert name.split("/")[1] == names[label]


@pytest.mark.parametrize("name", world.DATASETS)
def test_every_dataset_loads_by_name(name):
    dataset = data.load(name)
    K = len(dataset.classnames)
    assert K >= 8 and {label for _, label in dataset.test} == set(range(K))
    assert dataset.open(dataset.test[0][0]).size == (32, 32)


def test_pictures_come_from_seeds():
    first = world.draw("world")[2]
    world.draw.cache_clear()
    second = world.draw("world")[2]
    assert all(first[n].tobytes() == second[n].tobytes() for n in list(first)[:50])
    other = world.draw("world_blur")
    # the same classes, but not the same pictures
    assert other[1]["test"] == world.draw("world")[1]["test"]
    assert len({p.tobytes() for d in ("world_sketch", "world_blur", "world_rotated") for p in
                list(world.draw(d)[2].values())[:5]}) == 15


def test_signed_distance_of_a_square_by_hand():
    square = [(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]
    p = torch.tensor([[0., 0], [.5, 0], [2, 0], [4, 5], [0, -1]])
    torch.testing.assert_close(world._polygon(p, square), torch.tensor([1., .5, -1, -5, 0]))


def test_shapes_by_points_one_knows():
    centre = torch.zeros(2)
    inside = {shape: bool(world._inside(shape, centre) > 0) for shape in world.SHAPES}
    assert inside == {**dict.fromkeys(world.SHAPES, True), "ring": False, "moon": False}
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


# ------------------------------------------------------------------------------------ the tiny CLIP

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
    for i in range(3):
        row, column = [s[i][j] for j in range(3)], [s[j][i] for j in range(3)]
        for scores, hits in ((row, true[i]), (column, [true[j][i] for j in range(3)])):
            log_sum = math.log(sum(map(math.exp, scores)))
            missed = sum(log_sum - v for v, hit in zip(scores, hits, strict=True) if hit)
            total += missed / sum(hits) / 3 / 2
    with torch.no_grad():
        loss = train_tiny_clip.contrastive_loss(clip, pictures, tokens, specs, mentioned)
    assert loss.item() == pytest.approx(total, abs=2e-3)


@pytest.mark.parametrize("words, reason", [
    ("--steps -1", "--steps must be at least 1"), ("--text-layers 0", "--text-layers"),
    ("--pictures 7", "--pictures must be at least 200"), ("--lr nan", "--lr must be a finite"),
    ("--lr 0", "--lr"), ("--width 100", "multiple of 64"), ("--patch 5", "--patch"),
    ("--seed -3", "--seed"), ("--out model.txt", "ends in .pt"), ("--out gone/m.pt", "gone"),
    ("--out folder.pt", "no plain file"), ("--out taken.pt", "taken.log")])
def test_training_is_refused_before_anything_is_touched(at, words, reason):
    (at / "folder.pt").mkdir()
    (at / "taken.log").mkdir()
    (at / "tiny_clip.log").write_text("the log of before")
    defaults = [] if "--out" in words else ["--out", "tiny_clip.pt"]
    line = refused(*words.split(), *defaults, main=train_tiny_clip.main)
    assert reason in line
    assert files(at).keys() == {"tiny_clip.log"}
    assert (at / "tiny_clip.log").read_text() == "the log of before"


def test_model_and_log_get_their_names_together(at, monkeypatch):
    small = ["--steps", "2", "--pictures", "200", "--batch-size", "8", "--width", "64",
             "--vision-layers", "1", "--text-layers", "1", "--embed-dim", "16", "--out", "tiny.pt"]
    done(*small, main=train_tiny_clip.main)
    assert files(at).keys() == {"tiny.pt", "tiny.log"}
    log = (at / "tiny.log").read_text()
    assert weight_files.sha256(at / "tiny.pt") in log and "step     2" in log
    assert clip_model.load("tiny.pt").text_projection.shape == (64, 16)

    def interrupted(*_):
        raise KeyboardInterrupt

    before = files(at)
    monkeypatch.setattr(train_tiny_clip, "contrastive_loss", interrupted)
    code, _, error = call(train_tiny_clip.main, *small)
    assert code == 130 and len(error.strip().splitlines()) == 1
    assert before.items() <= files(at).items()


def test_the_sheet_of_the_world_goes_to_plain_files_only(at):
    (at / "folder.png").mkdir()
    assert "no plain file" in refused("folder.png", main=world.main)
    assert "ends in .png" in refused("world.txt", main=world.main)
    assert "gone" in refused("gone/world.png", main=world.main)
    assert not files(at)


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
    assert weight_files.sha256(ASSETS / "tiny_clip.pt") in log
    assert sum(p.stat().st_size for p in ASSETS.iterdir() if p.is_file()) < 5e6


def test_tiny_clip_knows_its_world_but_not_perfectly():
    dataset = data.load("world")
    clip = clip_model.load("tiny")
    for labels in data.halves(24):
        learner = prompts.build("zeroshot", clip, [dataset.classnames[k] for k in labels])
        items = data.select(dataset.test, labels)
        pictures = data.Pictures(dataset, items, data.transform(32, train=False))
        with torch.no_grad():
            predicted = learner(torch.stack([x for x, _ in pictures]))[0].argmax(dim=1)
        accuracy = (predicted == torch.tensor([y for _, y in items])).float().mean()
        assert 3 / 12 < accuracy < .9


# ----------------------------------------------------------------------------------- the laboratory

CELLS = [*laboratory.MAPLE, "--shuffle-classes", "--tau", "0.01"]


@pytest.mark.parametrize("words", [
    [*CELLS, "--npt"], [*CELLS], ["--method", "cocoop", "--shuffle-classes", "--tau", "0.05"]])
def test_a_row_of_the_laboratory_comes_out_again(words, at):
    """Training and evaluation of a whole run, against the committed laboratory.csv.

    Another processor takes sums in another order, and a picture may change sides.
    """
    call(train.main, *words, "--seed", "1", "--out", "run")
    key, numbers = laboratory.numbers_of(at / "run")
    saved = laboratory.read_results()[key]
    assert set(numbers) == set(saved)
    for name in laboratory.MEASURES:
        if name in saved:
            accuracy = name in (*laboratory.ACCURACIES, *laboratory.RECALLS)
            assert numbers[name] == pytest.approx(saved[name], abs=3 if accuracy else 0.03), name


def test_every_run_is_planned_once_and_pilots_know_no_npt():
    names = {**laboratory.GRIDS, **laboratory.PILOTS}
    total = sum(len(laboratory.planned([name])) for name in names)
    shared = set(laboratory.planned(["sweep"])) & set(laboratory.planned(["main", "cocoop"]))
    assert len(laboratory.planned(names)) == total - len(shared)
    assert all(key[laboratory.SETTINGS.index("npt")] == "False"
               for key in laboratory.planned(laboratory.PILOTS))
    seeds = {key[-1] for key in laboratory.planned(laboratory.GRIDS)}
    assert not seeds & {key[-1] for key in laboratory.planned(laboratory.PILOTS)}


def test_budgets_are_240_steps():
    counts = {"1": 192, "0.05": 62, "0.01": 45, "45 images": 45}
    for name, epochs in laboratory.STEPS_240.items():
        assert 240 <= counts[name] // 4 * int(epochs) <= 242
    assert sum(data.class_counts(12, 16, 0.05)) == 62 and sum(data.class_counts(12, 16, 0.01)) == 45


def test_groups_are_those_of_the_long_tailed_twin():
    n = data.class_counts(12, 16, 0.01, 7)
    inside = laboratory.groups(1.0, 7)
    assert inside == laboratory.groups(0.01, 7)
    assert [n[k] for k in inside["many"]] in ([16, 10], [10, 16])
    assert all(n[k] <= 2 for k in inside["few"]) and sum(map(len, inside.values())) == 12


def test_bits_and_mean_cosine_by_hand():
    # f0 = 1111 0000, 3c = 0011 1100: two classes of eight images
    assert laboratory.unpacked("f03c", 2).tolist() == [[1, 1, 1, 1, 0, 0, 0, 0],
                                                       [0, 0, 1, 1, 1, 1, 0, 0]]
    g = torch.tensor([[1., 0], [0, 1], [0.6, 0.8]])             # cosines 0, 0.6, 0.8
    assert laboratory.mean_cosine(g) == pytest.approx(1.4 / 3)


def test_best_shared_part_by_search():
    """Delta* of Cauchy-Schwarz's bound sqrt(s) a + sqrt(1 - s) b, against a search over s."""
    z_k = torch.tensor([[3., 1, 0], [3, -1, 1], [2, 0, -1], [4, 0, 0]]) / 5
    z_G = [sum(column) / 4 for column in zip(*z_k.tolist(), strict=True)]
    a = math.sqrt(sum(v * v for v in z_G))
    b = math.sqrt(sum(sum((u - v) ** 2 for u, v in zip(z, z_G, strict=True))
                      for z in z_k.tolist()) / 4)
    s = max((i / 10_000 for i in range(10_001)),
            key=lambda s: math.sqrt(s) * a + math.sqrt(1 - s) * b)
    assert laboratory.best_shared_part(z_k) == pytest.approx(4 / 3 * s, abs=2e-4)


def test_criteria_by_hand():
    found = {"1/lambda": 100.03, "texts": .49, "own": .3, "others": .31, "base": 40, "novel": 76}
    for target in laboratory.TARGETS:
        found |= {target: 31.0, f"chance {target}": 10.0}
    text = laboratory.criteria(found, [9, 11, 13])
    verdicts = [line.split("  ")[0].strip() for line in text.splitlines()[1:]]
    met, not_met = "met", "NOT MET"
    # 1/lambda; texts below 0.5; own; not above others; base; novel above 75; targets; +11
    assert verdicts == [met, not_met, met, not_met, met, not_met, *[met] * 7, met]
    assert "met       11.0 ± 2.0  MaPLe at tau = 1 lifts" in text


def results_of(**cells):
    """Results of hand-made cells, off and on = {seed: (base bits, novel bits)}, 12 x 50 images."""
    done = {}
    for npt, by_seed in cells.items():
        for seed, rows in by_seed.items():
            bits = [numpy.packbits(numpy.array(r, dtype=bool)).tobytes().hex() for r in rows]
            base, novel = (100 * sum(r) / 600 for r in rows)
            weights = (0.3, 0.8) if npt == "on" else (0.0, 0.0)
            cell = {**page.CELL, "npt": npt == "on", "w1": weights[0], "w2": weights[1],
                    "seed": seed}
            key = tuple(laboratory.setting(cell[name]) for name in laboratory.SETTINGS)
            done[key] = {"base": base, "novel": novel, "right": bits[0], "novel_right": bits[1],
                         "harmonic_mean": 2 * base * novel / (base + novel)}
    return page.Results(done)


def test_interval_has_seeds_and_test_noise_by_hand():
    """Two seeds that agree to the image: what is left is the noise of the test images."""
    off, on = [0] * 600, [1] * 25 + [0] * 575                   # half of the first class is gained
    found = results_of(off={1: (off, on), 2: (off, on)}, on={1: (on, on), 2: (on, on)})
    interval = found.paired("base", {"npt": True}, {})
    # 25 of 600 images; shares 100/600 x (25 ones of 50): variance 50 x (1/6)^2 x 0.25 x 50/49
    noise = math.sqrt(50 * (1 / 6) ** 2 * .25 * 50 / 49)
    assert interval.mean == pytest.approx(25 / 6) and interval.n == 2
    assert interval.half == pytest.approx(12.706 * noise, rel=1e-3)     # Student's t, 1 degree
    assert interval.sign == 0 and str(interval) == f"+4.2 ± {12.706 * noise:.1f}"
    # and seeds alone: differences 0 and 100/6 in a class that is wholly gained
    gained = [1] * 50 + [0] * 550
    found = results_of(off={1: (on, on), 2: (off, on)}, on={1: (on, on), 2: (gained, on)})
    interval = found.paired("novel", {"npt": True}, {})
    assert interval.mean == interval.half == 0
    corrected = found.paired("base", {"npt": True}, {}, comparisons=6)
    assert corrected.half / found.paired("base", {"npt": True}, {}).half == pytest.approx(
        76.39 / 12.706, rel=1e-3)                               # t of 1 - 0.05 / 6, 1 degree


def test_harmonic_means_noise_is_its_derivatives():
    """Shares of H: moving one image moves H by what its share says, to first order."""
    rows = [[1] * 300 + [0] * 300, [1] * 400 + [0] * 200]
    found, = results_of(off={1: rows}).runs().values()
    shares = page.shares(found, "harmonic_mean", {}, 1)
    b, n = 50.0, 100 * 400 / 600
    step = 100 / 600
    for part, (base, novel) in enumerate(((b + step, n), (b, n + step))):
        moved = 2 * base * novel / (base + novel) - 2 * b * n / (b + n)
        assert shares[12 * part, 0] == pytest.approx(moved, rel=0.01)
    assert shares[11, 49] == 0 == shares[23, 49]


def test_recall_of_few_has_its_own_images():
    rows = [[1] * 600, [0] * 600]
    found, = results_of(off={1: rows}).runs().values()
    shares = page.shares(found, "few", {}, 1)
    assert shares.sum() == pytest.approx(100)
    assert [k for k in range(24) if shares[k].any()] == laboratory.groups(0.01, 1)["few"]


def test_derived_measures_by_hand():
    found = page.derived({"cos_few": .5, "cos_all": .3, "delta_lcd": .6, "lc_unequal": .64})
    assert found == {"cos_gap": pytest.approx(.2), "root": pytest.approx(1.0),
                     "uneven": pytest.approx(.8 / .45)}


def test_zero_shot_is_paired_with_every_seed():
    rows, more = [[1] * 300 + [0] * 300] * 2, [[1] * 360 + [0] * 240] * 2
    found = results_of(off={1: more, 2: more})
    zero, = results_of(off={1: rows}).runs().values()
    key = tuple(laboratory.setting((page.CELL | {"w1": 0.0, "w2": 0.0} | page.ZERO)[name])
                for name in laboratory.SETTINGS[:-1])
    found.cells[key] = {1: zero}
    interval = found.paired("harmonic_mean", {}, page.ZERO)
    assert interval.mean == pytest.approx(10) and interval.n == 2


def test_within_takes_the_means_of_cells_off():
    x, y = numpy.array([[1., 2, 3], [11, 12, 13]]), numpy.array([[3., 2, 1], [33, 32, 31]])
    assert page.within(x, y) == pytest.approx(-1)


def test_power_is_student_ts():
    # n = 9: t of 97.5 % is 2.306, of 80 % 0.889, over sqrt(9)
    assert page.power_half(9) == pytest.approx((2.306 + 0.889) / 3, abs=1e-3)


def test_verdicts_follow_the_interval():
    assert page.Interval(2.0, 1.0, 8).sign == 1 and page.Interval(-2.0, 1.0, 8).sign == -1
    assert page.Interval(-1.0, 1.5, 8).sign == 0
    assert page.moves(page.Interval(2.0, 1.0, 8)) == "gains 2.0 ± 1.0 points"
    assert page.moves(page.Interval(-2.0, 1.0, 8)) == "loses 2.0 ± 1.0 points"
    assert page.moves(page.Interval(-1.0, 1.5, 8)) == "shows no difference (-1.0 ± 1.5)"
    assert page.Correlation(-.3, -.4, -.1, 8).sign == -1 == -page.Correlation(.3, .1, .4, 8).sign
    assert page.Correlation(-.3, -.4, .1, 8).sign == 0


def test_laboratory_md_is_what_the_script_writes_from_the_csv():
    done = laboratory.read_results()
    assert set(laboratory.planned(laboratory.GRIDS)) <= set(done)
    written = laboratory.PAGE.read_text(encoding="utf-8")
    assert page.page(page.Results(done)) == written


def test_findings_take_their_figures_from_the_numbers():
    """Every H of NPT lowered by 20 points: no finding may keep its gain."""
    done = {key: dict(found) for key, found in laboratory.read_results().items()}
    for key, found in done.items():
        if key[laboratory.SETTINGS.index("npt")] == "True" and "harmonic_mean" in found:
            found["harmonic_mean"] -= 20
    rows = page.hypotheses_table(page.Results(done)).splitlines()
    assert "seen, with the other sign" in next(row for row in rows if "NPT raises" in row)


@pytest.fixture
def own_csv(at, monkeypatch):
    """An empty laboratory in a folder of its own."""
    monkeypatch.setattr(laboratory, "CSV", at / "laboratory.csv")
    monkeypatch.setattr(laboratory, "PAGE", at / "laboratory.md")
    return at


@pytest.mark.parametrize("words, reason", [
    ("--processes 0", "--processes: must be from 1"), ("--page", "lacks"),
    ("--page --quick", "not allowed with")])
def test_the_laboratory_refuses_before_any_work(own_csv, words, reason):
    assert reason in refused(*words.split(), main=laboratory.main)
    assert not files(own_csv)


def test_another_form_of_the_csv_is_refused(own_csv):
    laboratory.CSV.write_text("run,base\n--method maple,70\n")
    assert "expected the columns world, method" in refused("--page", main=laboratory.main)


def test_numbers_of_a_run_are_those_of_its_folder(at):
    """Read off the folder that train.py leaves."""
    call(train.main, "--tau", "0.05", "--seed", "3", "--npt", "--shuffle-classes", "--epochs", "2",
         "--history", "1", "--out", "run")
    result = json.loads((at / "run" / "result.json").read_text())
    key, numbers = laboratory.numbers_of(at / "run")
    assert key == ("maple", "True", "0.3", "0.8", "False", "False", "0.05", "None", "2", "0.0035",
                   "base", "3")
    for name in ("base", "novel", "harmonic_mean", "delta_lcd", "novel_delta_mid", "right"):
        assert numbers[name] == result[name]
    right = laboratory.unpacked(result["right"], 12)
    assert 100 * right.mean() == pytest.approx(result["base"])
    few = [k for k, n in enumerate(result["class_counts"]) if n <= 2]
    assert numbers["few"] == pytest.approx(sum(2 * right[k].sum() for k in few) / len(few))
    rows = read(at / "run" / "history.csv")
    by_hand = [float(rows[-1][f"repulsion_{k}"]) / result["class_counts"][k] for k in few]
    assert numbers["repulsion_few_last"] == pytest.approx(sum(by_hand) / len(by_hand))


# ---------------------------------------------------------------------------------- free features

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
