"""Figures: what they show against arithmetic by hand, and that it can be read as it is drawn."""
import json
import math
import shutil
import sys
from itertools import combinations
from pathlib import Path

import pytest
import torch
from small_runs import call, done, files, refused, write_classes
from test_tables import WEIGHTS

import evaluate
from assets import figures

CLASSES = {"red_cat": 24, "blue dog": 12, "white_mouse": 12, "green cow": 12, "owl": 12}
ZEROSHOT = {"base": 40.0, "novel": 50.0, "harmonic_mean": 44.44, "delta_lcd": 0.7,
            "delta_mid": -0.7, "novel_delta_lcd": 0.8, "novel_delta_mid": -0.75}
COLUMNS = "epoch,step," + ",".join(figures.HISTORY)


def run(folder, method="maple", variant="off", tau=0.01, seed=1, dataset="dtd", base=60.0,
        novel=70.0, lcd=0.5, mid=-0.5, **facts):
    """A run folder with these numbers, as train.py leaves it."""
    w1, w2 = WEIGHTS[variant]
    result = {"dataset": dataset, "method": method, "npt": variant != "off", "tau": tau,
              "seed": seed, "draw_seed": seed, "backbone": "ViT-B/16", "w1": w1, "w2": w2,
              "official_split": True, "base": base, "novel": novel,
              "harmonic_mean": 2 * base * novel / (base + novel), "delta_lcd": lcd,
              "delta_mid": mid, "novel_delta_lcd": lcd + 1, "novel_delta_mid": mid - 1,
              "zeroshot": ZEROSHOT} | facts
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def read(*folders):
    return figures.read_runs(folders)


def picture(*argv):
    """The figure of a command, and of each of its axes the title."""
    pytest.importorskip("matplotlib")
    with figures.style():
        args = figures.parse([str(word) for word in (*argv, "--out", "f.png")])
        figure = figures.FIGURES[args.figure](args)
        readable(figure)
    return figure, [ax.get_title() for ax in figure.axes]


def readable(figure):
    """All words are at least 8 points high, inside the page, and none lies on another's."""
    figure.draw_without_rendering()
    page = figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    texts = [figure._suptitle, *(text for legend in figure.legends for text in legend.texts)]
    for ax in figure.axes:
        texts += [ax.title, ax.xaxis.label, ax.yaxis.label, *ax.texts]
        for axis in (ax.xaxis, ax.yaxis):
            low, high = axis.get_view_interval()
            texts += [tick.label1 for tick in axis.get_major_ticks()
                      if low <= tick.get_loc() <= high]
    boxes = {text: text.get_window_extent() for text in texts
             if text and text.get_visible() and text.get_text().strip()}
    assert all(text.get_fontsize() >= 8 for text in boxes)
    for text, box in boxes.items():
        assert page.x0 - 1 <= box.x0 and box.x1 <= page.x1 + 1, text.get_text()
        assert page.y0 - 1 <= box.y0 and box.y1 <= page.y1 + 1, text.get_text()
    for (one, a), (other, b) in combinations(boxes.items(), 2):
        apart = a.x1 <= b.x0 or b.x1 <= a.x0 or a.y1 <= b.y0 or b.y1 <= a.y0
        assert apart, (one.get_text(), other.get_text())


# ------------------------------------------------------------------------------- what they show

def test_the_plane_is_that_of_the_two_longest_directions():
    texts = torch.tensor([[3.0, 0, 0, 0], [3, 0, 0, 0], [0, 0, 0, 1]])          # mean square 18/3
    images = torch.tensor([[0, -2.0, 1, 0]]).repeat(50, 1)                      # mean square 5
    plane, shares = figures.projection(texts, images)
    first, second = [1, 0, 0, 0], [0, -2 / 5 ** 0.5, 1 / 5 ** 0.5, 0]           # images positive
    assert torch.allclose(plane[:, 0].abs(), torch.tensor(first).double(), atol=1e-6)
    assert torch.allclose(plane[:, 1], torch.tensor(second).double(), atol=1e-6)
    assert shares == pytest.approx([18 / 19, 1.0])


def test_the_plane_is_not_centred():
    """All features share a direction: centring would lose it, and with it Delta_LCD."""
    z = torch.tensor([[5.0, 1, 0], [5, -1, 0], [5, 0, 1], [5, 0, -1]])
    plane, shares = figures.projection(z, z)
    assert torch.allclose(plane[:, 0], torch.tensor([1.0, 0, 0]).double(), atol=1e-6)
    assert shares[0] == pytest.approx((100 + 2) / 104)


def test_many_images_do_not_outweigh_the_texts():
    texts = torch.tensor([[1.0, 0, 0], [0, 0.1, 0]])
    images = torch.cat([torch.tensor([[0, 0, 1.0]]).repeat(500, 1),
                        torch.tensor([[0, 0.9, 0]]).repeat(200, 1)])
    plane, _ = figures.projection(texts, images)
    # mean squares by axis: 1/2, 1/200 + 0.81 * 2/7, 5/7
    assert plane[:, 0].abs().argmax() == 2 and plane[:, 1].abs().argmax() == 0


def test_panels_are_of_one_learner_and_seed(tmp_path):
    for method, seeds in (("cocoop", (1,)), ("maple", (2, 3))):
        for seed in seeds:
            run(tmp_path / f"{method}-{seed}-a", method, tau=1.0, seed=seed)
            run(tmp_path / f"{method}-{seed}-b", method, tau=0.05, seed=seed)
            run(tmp_path / f"{method}-{seed}-c", method, tau=0.01, seed=seed)
            run(tmp_path / f"{method}-{seed}-x", method, "lc", seed=seed)
    run(tmp_path / "maple-3-d", "maple", "on", seed=3)
    chosen = {panel: run["folder"].name for panel, run in figures.choose(read(tmp_path)).items()}
    assert chosen.pop("zero-shot").startswith("maple-3")
    assert chosen == {"balanced": "maple-3-a", "long-tailed": "maple-3-c",
                      "long-tailed with NPT": "maple-3-d"}


def test_a_panel_without_a_run_takes_another_seed_or_is_empty(tmp_path):
    one, two = run(tmp_path / "one"), run(tmp_path / "two", tau=1.0, seed=2)
    chosen = figures.choose(read(one, two))
    assert chosen["long-tailed"]["folder"] == one and chosen["balanced"]["folder"] == two
    assert chosen["long-tailed with NPT"] is None and chosen["zero-shot"]
    other = run(tmp_path / "other", "cocoop", tau=1.0)
    assert figures.choose(read(one, other))["balanced"] is None


def test_points_are_of_their_part_and_delta(tmp_path):
    run(tmp_path / "a", lcd=0.5, mid=-0.4, base=60.0, novel=70.0)
    run(tmp_path / "b", lcd=0.6, mid=-0.3, base=62.0, novel=74.0, seed=2)
    run(tmp_path / "c", "coop", delta_lcd=None, novel_delta_lcd=None)
    cells = figures.cells(read(tmp_path), figures.cell_of)
    key = figures.Cell("dtd", "maple", 0.01, 0, 0)
    assert figures.points(cells, "base", "delta_lcd") == {key: [(0.5, 60.0), (0.6, 62.0)]}
    found = figures.points(cells, "novel", "delta_mid")[key]
    assert found == [(pytest.approx(1.4), 70.0), (pytest.approx(1.3), 74.0)]


def test_correlations_within_and_between_cells():
    """Within each cell more is better, from cell to cell worse: Simpson's paradox, by hand."""
    points = {"a": [(1.0, 9.0), (3.0, 11.0)], "b": [(5.0, 6.0), (7.0, 6.0)], "c": [(9.0, 1.0)]}
    left = [(-1, -1), (1, 1), (-1, 0), (1, 0)]          # the cell of one run is not in it
    assert figures.within(points) == left
    assert figures.between(points) == [(2, 10), (6, 6), (9, 1)]
    # r = 2 / sqrt(4 * 2)
    assert figures.correlation(figures.within(points)) == "r = +0.71 (n = 4)"
    # dx = -11/3, 1/3, 10/3; dy = 13/3, 1/3, -14/3: r = -282 / sqrt(222 * 366)
    assert -282 / math.sqrt(222 * 366) == pytest.approx(-0.99, abs=0.005)
    assert figures.correlation(figures.between(points)) == "r = -0.99 (n = 3)"


def test_correlations_that_have_no_value():
    assert figures.correlation([(1, 2), (2, 3)]) == "too few (n = 2)"
    assert figures.correlation([]) == "too few (n = 0)"
    assert figures.correlation([(1, 2), (1, 3), (1, 4)]) == "none, constant (n = 3)"


def test_gains_are_paired_by_seed(tmp_path):
    for seed, base, gain in ((1, 60.0, 2.0), (2, 80.0, 4.0), (3, 50.0, 0.0)):
        run(tmp_path / f"off{seed}", seed=seed, base=base, novel=base)
        if seed < 3:
            run(tmp_path / f"on{seed}", variant="on", seed=seed, base=base + gain, novel=base - 1)
    run(tmp_path / "ablation", variant="lc")
    run(tmp_path / "alone", dataset="eurosat", variant="on")
    single = figures.gains(read(tmp_path / "off1", tmp_path / "on1"))
    found = figures.gains(read(tmp_path))
    assert found.keys() == {("maple", "dtd", 0.01, "base"), ("maple", "dtd", 0.01, "novel")}
    base, novel = found.values()
    assert (base["mean"], base["n"]) == (3.0, 2) and (novel["mean"], novel["n"]) == (-1.0, 2)
    # standard deviation sqrt(2), n = 2: t sqrt(2) / sqrt(2), t of one degree of freedom 12.706
    assert base["spread"] == pytest.approx(12.706, abs=0.001) and novel["spread"] == 0
    assert all(r["n"] == 1 and r["spread"] is None for r in single.values())


def test_the_map_of_weights(tmp_path):
    run(tmp_path / "a")
    for seed, novel in ((1, 70.0), (2, 30.0)):
        run(tmp_path / f"b{seed}", variant="on", seed=seed, base=30.0, novel=novel)
    run(tmp_path / "c", variant="mi", base=50.0, novel=50.0)
    run(tmp_path / "d", "cocoop")                                   # no NPT at all: no map
    maps = figures.weight_maps(read(tmp_path))
    plain = 2 * 60 * 70 / 130, 1
    assert maps == {("maple", "dtd", 0.01): {
        (0, 0): pytest.approx(plain), (0.3, 0.8): pytest.approx(((42 + 30) / 2, 2)),
        (0, 0.8): pytest.approx((50, 1))}}


def test_runs_of_other_settings_are_not_averaged(tmp_path):
    run(tmp_path / "a", epochs=5)
    run(tmp_path / "b", epochs=9, seed=2)
    with pytest.raises(ValueError, match=r"differ in epochs \(5 and 9\)"):
        figures.cells(read(tmp_path), figures.cell_of)
    run(tmp_path / "c", seed=3, backbone="ViT-B/32")
    with pytest.raises(ValueError, match="of one backbone"):
        read(tmp_path)


def test_a_class_has_its_own_colour_where_its_name_is_one():
    pytest.importorskip("matplotlib")
    red, spare, white, other, grey = figures.class_colours(
        ["red cat", "redwood", "White_mouse", "owl", "grey owl"])
    assert red == figures.world.COLOURS["red"] and white == "#FFFFFF" and grey == "#808080"
    assert (spare, other) == figures.COLOURS[:2]


def history(folder, *rows):
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text("{}")
    (folder / "history.csv").write_text("\n".join([COLUMNS, *rows]) + "\n")
    return folder


def test_history_is_read_or_refused(tmp_path):
    one = history(tmp_path / "one", "0,0,1,2,3,4,5,6,7,8", "1,10,2,3,4,5,nan,,8,9")
    columns = figures.histories([one])["one"]
    assert columns["step"] == [0, 10] and columns["delta_lcd"] == [1, 2]
    assert columns["accuracy"] == [8, 9] and columns["classifier_collapse"] == [7, 8]
    assert math.isnan(columns["feature_collapse"][1]) and math.isnan(
        columns["prototype_collapse"][1])
    with pytest.raises(ValueError, match="no line in it"):
        figures.read_history(history(tmp_path / "two"))
    with pytest.raises(ValueError, match="history.csv: not what train.py --history writes"):
        figures.read_history(history(tmp_path / "two", "0,0,1,x,3,4,5,6,7,8"))
    with pytest.raises(ValueError, match="history.csv: not what train.py --history writes"):
        figures.read_history(history(tmp_path / "two", "0,0,1"))


# -------------------------------------------------------------------------------- how they look

@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """2 learners x NPT off, on x 2 tau x 3 seeds of two datasets; one lacks CoCoOp with NPT."""
    root = tmp_path_factory.mktemp("grid")
    for i, method in enumerate(("cocoop", "maple")):
        for j, tau in enumerate((1.0, 0.01)):
            for v, variant in enumerate(("off", "on")):
                for seed in (1, 2, 3):
                    x = 10 * i - 8 * j + 2 * v + seed * (1 + v)
                    for dataset in ("dtd", "eurosat")[:2 - (variant == "on") * (i == 0)]:
                        run(root / f"{dataset}-{method}-{variant}-{tau}-{seed}", method, variant,
                            tau, seed, dataset, 60.0 + x, 65.0 + x, 0.5 + x / 100, -0.5 - x / 50)
    return root


def test_figure_2(grid):
    figure, titles = picture(2, grid)
    assert titles == [f"{part} classes\nwithin cells r = +1.00 (n = 42), between r = +1.00 (n = 14)"
                      for part in ("base", "base", "novel", "novel")]
    for ax in figure.axes:
        assert sum(len(line.get_xdata()) for line in ax.lines) == 42 + 2        # and zero-shot's
        assert {line.get_marker() for line in ax.lines} == {"o", "s", "*"}
        assert {line.get_fillstyle() for line in ax.lines} >= {"full", "none"}
    legend = [text.get_text() for text in figure.legends[0].texts]
    assert legend == ["CoCoOp", "MaPLe", "without NPT", "NPT", "τ = 1", "τ = 0.01",
                      "zero-shot CLIP"]


def test_figure_4(grid):
    figure, titles = picture(4, grid)
    assert titles == ["CoCoOp, base classes", "CoCoOp, novel classes", "MaPLe, base classes",
                      "MaPLe, novel classes"]
    heights = [[round(bar.get_height(), 6) for bar in ax.patches] for ax in figure.axes]
    assert heights == [[4.0] * 2] * 2 + [[4.0] * 4] * 2     # (2 + seed) on average
    said = [[text.get_text() for text in ax.texts] for ax in figure.axes]
    assert said == [["3", "3", "not run", "not run"]] * 2 + [["3"] * 4] * 2
    hatches = {bar.get_hatch() for bar in figure.axes[2].patches}
    assert len(hatches) == 2                                # taus differ in greyscale


def test_figure_5(grid, tmp_path):
    run(tmp_path / "a", variant="lc", base=50.0, novel=50.0)
    figure, titles = picture(5, grid / "dtd-maple-off-0.01-1", grid / "dtd-maple-on-0.01-1",
                             tmp_path)
    assert titles == ["MaPLe, dtd, τ = 0.01"]
    ax, = figure.axes
    hm = 2 * 63 * 68 / 131, 2 * 66 * 71 / 137                   # x = 3 and 6
    shown = {text.get_position(): text.get_text() for text in ax.texts}
    assert shown == {(0, 0): f"{hm[0]:.2f}\nn = 1", (1, 1): f"{hm[1]:.2f}\nn = 1",
                     (0, 1): "50.00\nn = 1", (1, 0): "not run"}
    assert [patch.get_hatch() for patch in ax.patches].count("////") == 1


def test_figure_history(tmp_path):
    one = history(tmp_path / "one", "0,0,1,2,3,4,5,6,7,8", "1,10,2,3,4,5,nan,7,8,9")
    two = history(tmp_path / "two", "0,0,1,2,3,4,5,6,7,8", "1,10,2,3,4,5,6,7,8,19")
    figure, titles = picture("history", one, two)
    assert titles == list(figures.HISTORY.values())
    accuracy = figure.axes[-1]
    assert [list(line.get_ydata()) for line in accuracy.lines] == [[8, 9], [8, 19]]
    assert len({line.get_linestyle() for line in accuracy.lines}) == 2
    assert [text.get_text() for text in figure.legends[0].texts] == ["one", "two"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, archive):
    """Short runs on a folder of pictures, of which three classes are trained and two novel."""
    root = tmp_path_factory.mktemp("trained")
    pictures = write_classes(root / "pets", CLASSES)
    for name, options in {"balanced": ["--tau", 1], "tail": ["--tau", 0.1],
                          "npt": ["--tau", 0.1, "--npt"],
                          "cocoop": ["--tau", 1, "--method", "cocoop"]}.items():
        done("--method", "maple", *options, "--classes", "base", "--epochs", 1, "--dataset",
             pictures, "--backbone", archive, "--out", root / "runs" / name)
    return root / "runs"


@pytest.mark.parametrize("part", ["novel", "base"])
def test_figure_1(trained, part):
    names = ["balanced", "tail", "npt"]
    figure, titles = picture(1, *(trained / name for name in names), "--classes", part)
    results = [json.loads((trained / name / "result.json").read_text()) for name in names]
    prefix = {"base": "", "novel": "novel_"}[part]
    for title, name, numbers in zip(titles, ["zero-shot CLIP", *names],
                                    [results[0]["zeroshot"], *results], strict=True):
        assert name in title
        assert (f"{numbers[prefix + 'delta_lcd']:.3f}, $\\Delta_{{MID}}$ = "
                f"{numbers[prefix + 'delta_mid']:.3f}") in title
    assert "τ = 0.1, $n_k$ from " in titles[2] and "τ = 1, " in titles[1]
    labels = [text.get_text() for text in figure.legends[0].texts]
    expected = sorted(CLASSES)
    assert labels == [name.replace("_", " ") for name in
                      (expected[:3] if part == "base" else expected[3:])]
    markers = [handle.get_marker() for handle in figure.legends[0].legend_handles]
    assert len(set(markers)) == len(labels)
    assert len({(ax.get_xlim(), ax.get_ylim()) for ax in figure.axes}) == 1
    assert all(ax.get_xlim()[0] < 0 < ax.get_xlim()[1] for ax in figure.axes)
    assert f"{part} classes" in figure.get_suptitle() and "two right singular vectors" in (
        figure.get_suptitle().replace("\n", " "))


def test_figure_1_lies_in_the_plane_as_the_features_do(trained):
    """Arrows against another way to the same plane: the moments of all features."""
    figure, _ = picture(1, trained / "tail", "--classes", "base")
    assert "not run" in figure.axes[1].get_title() and not figure.axes[1].texts
    args = figures.parse(["1", str(trained / "tail"), "--out", "f.png"])
    chosen = figures.choose(read(*args.runs))
    panels = [figures.gather(panel, run, "base", None) for panel, run in chosen.items() if run]
    g, z = (torch.cat([p[x] for p in panels]).double() for x in ("g", "z"))
    vectors = torch.linalg.eigh(g.T @ g / len(g) + z.T @ z / len(z)).eigenvectors[:, [-1, -2]]
    tips = torch.tensor([arrow.xy for ax in (figure.axes[0], figure.axes[2]) for arrow in ax.texts])
    assert torch.allclose(tips.abs(), (g @ vectors).abs(), atol=1e-5)
    drawn = [p["y"].bincount().clamp(max=figures.MOST_IMAGES).sum().item() for p in panels]
    counts = [sum(len(points.get_offsets()) for points in ax.collections) for ax in figure.axes]
    assert counts == [drawn[0] + 3, 0, drawn[1] + 3, 0]


def test_figure_1_of_cocoop_averages_its_texts(trained):
    figure, titles = picture(1, trained / "cocoop")
    result = json.loads((trained / "cocoop" / "result.json").read_text())
    assert f"{result['novel_delta_lcd']:.3f}" in titles[1]
    assert "averaged over the images" in figure.get_suptitle()


def test_no_more_than_twelve_classes_are_drawn():
    panel = {"z": torch.rand(3000, 4), "y": torch.arange(3000) % 15, "g": torch.rand(15, 4),
             "names": [f"c{k}" for k in range(15)], "part": "all", "dataset": "x",
             "averaged": False}
    shown = figures.drawn(panel)
    assert shown["y"].bincount().tolist() == [25] * 12 and len(shown["g"]) == 12
    assert torch.equal(shown["z"][shown["y"] == 5][:2], panel["z"][[5, 20]])
    words = "".join(figures.caption_1({"zero-shot": panel}, (0.5, 0.251)))
    assert "first 12 of 15 classes" in words and "first 25 images" in words
    assert "50 % of the squared length of the texts and 25 %" in words


# ------------------------------------------------------------------------------ the command line

@pytest.mark.parametrize("name, start", [("f.png", b"\x89PNG"), ("f.svg", b"<?xml"),
                                         ("f.pdf", b"%PDF"), ("f.PNG", b"\x89PNG")])
def test_files_by_their_ending(grid, at, name, start):
    pytest.importorskip("matplotlib")
    before = files(grid)
    done(2, grid, "--out", name, main=figures.main)
    content = Path(name).read_bytes()
    assert content.startswith(start) and files(grid) == before and len(files(at)) == 1
    done(2, grid, "--out", name, main=figures.main)
    assert Path(name).read_bytes() == content


def test_refusals(grid, at):
    pytest.importorskip("matplotlib")

    def line(*argv):
        return refused(*argv, main=figures.main)

    assert "ends in .png, .svg, .pdf" in line(2, grid, "--out", "f.xyz")
    assert "there is no folder nowhere" in line(2, grid, "--out", "nowhere/f.png")
    assert "absent: no such folder" in line(2, grid, "absent", "--out", "f.png")
    assert "go with Figure 1" in line(2, grid, "--out", "f.png", "--classes", "base")
    assert "invalid choice" in line(3, grid, "--out", "f.png")
    Path("empty").mkdir()
    assert "no result.json in it" in line(2, "empty", "--out", "f.png")
    Path("g.png").mkdir()
    assert "g.png is no plain file" in line(2, grid, "--out", "g.png")
    plain = grid / "dtd-maple-off-1.0-1"
    assert "with and without NPT" in line(4, plain, "--out", "f.png")
    assert "expected runs with NPT" in line(5, plain, "--out", "f.png")
    assert f"{plain}: no history.csv in it: train with train.py --history" in line(
        "history", plain, "--out", "f.png")
    assert not files(at)


def test_damaged_runs_are_named_and_left_out(grid, at):
    pytest.importorskip("matplotlib")
    shutil.copytree(grid / "dtd-maple-off-1.0-1", "runs/good")
    Path("runs/bad").mkdir()
    Path("runs/bad/result.json").write_text("{")
    assert "skipped   runs/bad: result.json can't be read" in done(
        2, "runs", "--out", "f.png", main=figures.main)


def test_without_matplotlib(grid, at, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    line = refused(2, grid, "--out", "f.png", main=figures.main)
    assert line == "error: figures need matplotlib: pip install matplotlib" and not files(at)
    monkeypatch.setattr(figures.tables, "read_runs", lambda *_: pytest.fail("work was begun"))
    assert call(figures.main, 2, grid, "--out", "f.png")[0] == 2


# -------------------------------------------------------------------- evaluate.py RUN --features

@pytest.mark.parametrize("name", ["tail", "cocoop"])
def test_features_of_a_run(trained, at, name):
    """The exported features give the accuracies that the run itself was measured with."""
    numpy = pytest.importorskip("numpy")
    before = files(trained)
    done(trained / name, "--features", "f.npz", main=evaluate.main)
    assert files(trained).keys() >= before.keys() and not (trained / name / "evaluation").exists()
    saved = numpy.load("f.npz")                                 # nothing in it is pickled
    assert saved["classnames"].tolist() == [n.replace("_", " ") for n in sorted(CLASSES)] or (
        saved["classnames"].tolist() == sorted(CLASSES))
    assert saved["part"].tolist() == ["base"] * 3 + ["novel"] * 2
    assert len(saved["z"]) == len(saved["y"]) == len(saved["pictures"])
    assert str(saved["method"]) == {"tail": "maple", "cocoop": "cocoop"}[name]
    assert float(saved["temperature"]) == pytest.approx(0.01, rel=1e-3)
    for picture_name, k in zip(saved["pictures"], saved["y"], strict=True):
        assert picture_name.startswith(sorted(CLASSES)[k] + "/")
    result = json.loads((trained / name / "result.json").read_text())
    for part, ks in (("base", (0, 1, 2)), ("novel", (3, 4))):
        rows = [i for i, k in enumerate(saved["y"]) if k in ks]
        cosines = saved["z"][rows] @ saved["g"][list(ks)].T
        own = [float(cosines[i, saved["y"][row] - ks[0]]) for i, row in enumerate(rows)]
        mid = sum(own) / len(own) - 1
        delta = {"base": "delta_mid", "novel": "novel_delta_mid"}[part]
        if name == "tail":
            right = (cosines.argmax(axis=1) + ks[0] == saved["y"][rows]).mean()
            assert 100 * right == pytest.approx(result[part], abs=1e-4)
        assert mid == pytest.approx(result[delta], abs=1e-4 if name == "tail" else 0.02)


def test_features_narrowed_and_refused(trained, at):
    numpy = pytest.importorskip("numpy")
    done(trained / "tail", "--features", "f.npz", "--classes", "novel", main=evaluate.main)
    saved = numpy.load("f.npz")
    assert saved["part"].tolist() == ["novel"] * 2 and set(saved["y"].tolist()) == {0, 1}
    run_folder = trained / "tail"
    assert "ends in .npz" in refused(run_folder, "--features", "f.csv", main=evaluate.main)
    assert "no option of --" in refused(run_folder, "--features", "f.npz", "--image", "x.png",
                                  main=evaluate.main)
    assert files(at).keys() == {"f.npz"}
