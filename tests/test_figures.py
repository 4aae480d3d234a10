"""Figures: what they show against arithmetic by hand, and that it can be read as it is drawn."""
import math
import re
import sys
from itertools import combinations, product
from pathlib import Path

import pytest
import test_tables
import torch
from small_runs import call, done, files, refused, told, write_classes

from assets import figures

CLASSES = {"red_cat": 24, "blue dog": 12, "white_mouse": 12, "green cow": 12, "owl": 12}
ZEROSHOT = {"base": 40.0, "novel": 50.0, "harmonic_mean": 44.44, "delta_lcd": 0.7,
            "delta_mid": -0.7, "novel_delta_lcd": 0.8, "novel_delta_mid": -0.75}


def run(folder, base=60.0, novel=70.0, lcd=0.5, mid=-0.5, **facts):
    """A run folder with these numbers, as train.py leaves it."""
    deltas = {"delta_lcd": lcd, "delta_mid": mid, "novel_delta_lcd": lcd + 1,
              "novel_delta_mid": mid - 1}
    return test_tables.run(folder, base=base, novel=novel, zeroshot=ZEROSHOT, harmonic_mean=2 * base
                           * novel / (base + novel), **deltas | facts)


def history(folder, *rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text("{}")
    head = ",".join(["epoch", "step", *figures.HISTORY])
    (folder / "history.csv").write_text("\n".join([head, *rows]))
    return folder


def picture(*argv):
    """The figure of a command, seen to be readable."""
    pytest.importorskip("matplotlib")
    with figures.style():
        args = figures.parse([str(word) for word in (*argv, "--out", "f.png")])
        figure = figures.FIGURES[args.figure](args)
        readable(figure)
    return figure


def readable(figure):
    """All words are at least 8 points high, inside the page, and none lies on another's."""
    figure.draw_without_rendering()
    page = figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    texts = [part._suptitle for part in (figure, *figure.subfigs)]
    texts += [text for legend in figure.legends for text in legend.texts]
    for ax in figure.axes:
        texts += [ax.title, ax.xaxis.label, ax.yaxis.label, *ax.texts]
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            texts += [tick.label1 for tick in axis.get_major_ticks() if ax.axison
                      and low <= tick.get_loc() <= high]
    boxes = {text: text.get_window_extent() for text in texts
             if text and text.get_visible() and text.get_text().strip()}
    assert all(text.get_fontsize() >= 8 for text in boxes)
    for text, box in boxes.items():
        assert page.x0 - 1 <= box.x0 and box.x1 <= page.x1 + 1, text.get_text()
        assert page.y0 - 1 <= box.y0 and box.y1 <= page.y1 + 1, text.get_text()
    for (one, a), (other, b) in combinations(boxes.items(), 2):
        apart = a.x1 <= b.x0 or b.x1 <= a.x0 or a.y1 <= b.y0 or b.y1 <= a.y0
        assert apart, (one.get_text(), other.get_text())


def labels(figure):
    return [text.get_text() for text in figure.legends[0].texts]


# Figure 1 -------------------------------------------------------------------------------------

def panel(g, z, y=()):
    g, z = (torch.tensor(rows, dtype=torch.float64) for rows in (g, z))
    y = torch.tensor(y)
    return figures.Panel(z, y, g, [f"c{k}" for k in range(len(g))], "all", "", 0.0, 0.0)


def test_what_all_share_is_taken_off_each_modality_by_itself():
    less = figures.without_means(panel([[5.0, 1, 0], [5, -1, 0], [5, 0, 3]],
                                       [[0, 7.0, 1], [0, 7, -1]]))
    assert less.g.tolist() == [[0, 1, -1], [0, -1, -1], [0, 0, 2]]
    assert less.z.tolist() == [[0, 0, 1], [0, 0, -1]]


def test_cosines_average_to_the_deltas():
    g = [[1.0, 0], [0.6, 0.8], [0, 1]]
    z = [[0.8, 0.6], [1, 0], [0, 1], [-1, 0]]                   # two images of class 0
    of, nan = panel(g, z, [0, 0, 1, 2]), math.nan
    for found, by_hand in (
            (figures.text_cosines(of), [[nan, 0.6, 0], [0.6, nan, 0.8], [0, 0.8, nan]]),
            (figures.image_cosines(of), [[0.9, 0, -1], [0.6 * 0.9 + 0.8 * 0.3, 0.8, -0.6],
                                         [0.3, 1, 0]])):
        assert found.flatten().tolist() == pytest.approx(sum(by_hand, []), nan_ok=True)


def test_panels_are_of_one_learner_and_seed(tmp_path):
    for method, seeds in (("cocoop", (1,)), ("maple", (2, 3))):
        for seed in seeds:
            for name, tau in (("a", 1.0), ("b", 0.05), ("c", 0.01)):
                run(tmp_path / f"{method}-{seed}-{name}", method=method, tau=tau, seed=seed)
            run(tmp_path / f"{method}-{seed}-x", method=method, variant="lc", seed=seed)
    run(tmp_path / "maple-3-d", variant="on", seed=3)
    chosen = figures.choose(figures.read_runs([tmp_path]))
    assert [run["folder"].name for run in chosen.values()][1:] == ["maple-3-a", "maple-3-c",
                                                                   "maple-3-d"]
    assert chosen["zero-shot"]["folder"].name.startswith("maple-3")
    alone = figures.choose(figures.read_runs([tmp_path / "maple-2-a"])).values()
    assert [run and run["seed"] for run in alone] == [(2, 2), (2, 2), None, None]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, archive):
    """Short runs on a folder of pictures, of which three classes are trained and two novel."""
    root = tmp_path_factory.mktemp("trained")
    pictures = write_classes(root / "pets", CLASSES)
    for name, options in {"balanced": ["--tau", 1], "tail": ["--tau", 0.1],
                          "npt": ["--tau", 0.1, "--npt"]}.items():
        done("--method", "maple", *options, "--classes", "base", "--epochs", 1, "--dataset",
             pictures, "--backbone", archive, "--out", root / "runs" / name)
    return root / "runs"


@pytest.mark.parametrize("names, ran", [(["balanced", "tail", "npt"], [0, 1, 2, 3]),
                                        (["tail"], [0, 2])])
def test_figure_1(trained, names, ran):
    """Deltas as the runs have them; points and arrows against another way to the same plane."""
    folders = [trained / name for name in names]
    figure = picture(1, *folders)
    axes, chosen = figure.axes, figures.choose(figures.read_runs(folders))
    of = {i: (run, figures.gather(panel, run))
          for i, (panel, run) in enumerate(chosen.items()) if run}
    assert [*of] == ran
    for i, (panel, ax) in enumerate(zip(figures.PANELS, axes[:4], strict=True)):
        facts = "not run" if i not in of else f"τ = {of[i][0]['row'][0]:g}, $n_k$ "
        assert ax.get_title().startswith(f"({'abcd'[i]}) {panel}\n" + facts * (i > 0))
        assert axes[4 + i].axison == (i in of)
    for row, delta in ((8, "delta_lcd"), (12, "delta_mid")):
        numbers = {}
        for i, (run, _) in of.items():
            result = told(run["folder"] / "result.json")
            numbers[i] = (result if i else result["zeroshot"])["novel_" + delta]
            said = axes[row + i].get_title().split(" = ")[1].split()
            right = [numbers[i], numbers[i] - numbers.get(i - 1, 0)][:1 + (i - 1 in numbers)]
            assert [float(word.strip("(+)")) for word in said] == pytest.approx(right, abs=6e-4)
    assert labels(figure) == [name.replace("_", " ") for name in sorted(CLASSES)[3:]]
    assert len({handle.get_marker() for handle in figure.legends[0].legend_handles}) == 2
    assert "MaPLe on pets, novel classes" in figure.get_suptitle()
    for row in (0, 4):                                          # one plane, one scale a row
        assert len({(axes[row + i].get_xlim(), axes[row + i].get_ylim()) for i in of}) == 1
        assert len({axes[row + i + 8].images[0].get_clim() for i in of}) == 1
        panels = [figures.without_means(p) if row else p for _, p in of.values()]
        g, z = torch.cat([p.g for p in panels]), torch.cat([p.z for p in panels])
        moments = g.T @ g / g.square().sum() + z.T @ z / z.square().sum()
        vectors = torch.linalg.eigh(moments).eigenvectors[:, [-1, -2]]
        vectors = vectors * (g[0] @ vectors).sign()             # the first text's are positive
        said = re.findall(r"\d+%", figure.subfigs[row // 4].get_suptitle())
        assert said == [f"{((x @ vectors).norm() / x.norm()) ** 2:.0%}" for x in (g, z)]
        for i, p in zip(of, panels, strict=True):
            features = [p.z[p.y == k][:figures.MOST_IMAGES] for k in range(len(p.g))]
            for drawn, right in zip(axes[row + i].collections, [*features, *p.g[:, None]],
                                    strict=True):
                points = torch.tensor(drawn.get_offsets()).double()
                assert torch.allclose(points, right @ vectors, atol=1e-5)


# Figures 2, 4, 5 and the history --------------------------------------------------------------

def test_correlations_within_and_between_cells():
    """Within each cell more is better, from cell to cell worse: Simpson's paradox, by hand."""
    points = {"a": [(1.0, 9.0), (3.0, 11.0)], "b": [(5.0, 6.0), (7.0, 6.0)], "c": [(9.0, 1.0)]}
    within, between = figures.within_and_between(points)
    assert within == [(-1, -1), (1, 1), (-1, 0), (1, 0)]        # the cell of one run is not in it
    assert between == [(2, 10), (6, 6), (9, 1)]
    assert figures.correlation(within) == "r = +0.71 (n = 4)"   # r = 2 / sqrt(4 * 2)
    # dx = -11/3, 1/3, 10/3; dy = 13/3, 1/3, -14/3: r = -282 / sqrt(222 * 366) = -0.989
    assert figures.correlation(between) == "r = -0.99 (n = 3)"
    assert figures.correlation([(1, 2), (2, 3)]) == "no r (n = 2)"
    assert figures.correlation([(1, 2), (1, 3), (1, 4)]) == "no r (n = 3)"


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """2 learners x NPT off, on x 2 tau x 3 seeds of two datasets; one lacks CoCoOp with NPT."""
    root = tmp_path_factory.mktemp("grid")
    for i, j, v, seed in product((0, 1), (0, 1), (0, 1), (1, 2, 3)):
        method, tau, variant = ("cocoop", "maple")[i], (1.0, 0.01)[j], ("off", "on")[v]
        x = 10 * i - 8 * j + 2 * v + seed * (1 + v)
        for dataset in ("dtd", "eurosat")[:2 - v * (i == 0)]:
            run(root / f"{dataset}-{method}-{variant}-{tau}-{seed}", 60.0 + x, 45.0 + 2 * x,
                0.5 + x / 100, -0.5 - x / 50, method=method, variant=variant, tau=tau, seed=seed,
                dataset=dataset)
    run(root / "lacks", method="coop", delta_lcd=None, novel_delta_lcd=None)
    return root


def test_figure_2(grid):
    figure = picture(2, grid)
    for ax, part, delta, zeroshot, slope, n in zip(
            figure.axes, ("base", "base", "novel", "novel"), ("LCD", "MID") * 2,
            ((0.7, 40), (0.7, 40), (0.8, 50), (0.75, 50)), (100, 50, 200, 100), (42, 43) * 2,
            strict=True):
        pairs = [(x, y) for line in ax.lines for x, y in zip(*line.get_data(), strict=True)]
        assert len(pairs) == n + 1 and pairs.count(zeroshot) == 1
        x_0, y_0 = {"base": (0.5, 60), "novel": (1.5, 45)}[part]        # as the grid was made
        assert sum(y == pytest.approx(y_0 + slope * (x - x_0)) for x, y in pairs) >= 42
        assert f"within cells r = +1.00 (n = {n - n % 42})" in ax.get_title()
        assert f"test images\nof {part} classes" in ax.get_ylabel() and delta in ax.get_xlabel()
    assert labels(figure)[:4] == ["CoCoOp, τ = 1", "CoCoOp + NPT, τ = 1", "CoCoOp, τ = 0.01",
                                  "CoCoOp + NPT, τ = 0.01"] and len(labels(figure)) == 10


def test_figure_4(grid, tmp_path):
    figure = picture(4, grid)
    assert [ax.get_title() for ax in figure.axes] == ["CoCoOp"] * 2 + ["MaPLe"] * 2
    heights = [[round(bar.get_height(), 6) for bar in ax.patches] for ax in figure.axes]
    assert heights == [[4.0] * 2, [8.0] * 2, [4.0] * 4, [8.0] * 4]      # (2 + seed) on average
    # gains 3, 4, 5: standard deviation 1, t of 2 degrees of freedom 4.303
    low, high = figure.axes[2].collections[0].get_segments()[0][:, 1]
    assert high - low == pytest.approx(2 * 4.3027 / math.sqrt(3), abs=1e-3)
    said = [[text.get_text() for text in ax.texts] for ax in figure.axes]
    assert said == [["3", "3", "not run", "not run"]] * 2 + [["3"] * 4] * 2
    run(tmp_path / "a", base=60.0)
    run(tmp_path / "b", base=62.5, variant="on")
    run(tmp_path / "c", base=90.0, variant="on", seed=2)
    record, = figures.gains(figures.read_runs([tmp_path]), "base").values()
    assert (record["mean"], record["n"], record["spread"]) == (2.5, 1, None)


def test_figure_5(tmp_path):
    run(tmp_path / "a")
    for seed, novel in ((1, 70.0), (2, 30.0)):
        run(tmp_path / f"b{seed}", variant="on", seed=seed, base=30.0, novel=novel)
    run(tmp_path / "c", variant="mi", base=50.0, novel=50.0)
    run(tmp_path / "d", method="cocoop")                            # no NPT at all: no map
    figure = picture(5, tmp_path)
    ax, = figure.axes
    assert ax.get_title() == "MaPLe, dtd, τ = 0.01"
    shown = {text.get_position(): text.get_text() for text in ax.texts}     # (w_2, w_1)
    assert shown == {(0, 0): f"{2 * 60 * 70 / 130:.2f}\nn = 1", (1, 1): "36.00\nn = 2",
                     (1, 0): "50.00\nn = 1", (0, 1): "not run"}
    drawn = ax.images[0].get_array()                                # masked where not run
    assert all(words == "not run" if drawn.mask[w_1, w_2] else words.startswith(f"{m:.2f}\n")
               for (w_2, w_1), words in shown.items() for m in [drawn[w_1, w_2]])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0", "0.8"]
    assert ax.get_ylim()[0] < ax.get_ylim()[1]                      # w_1 upwards
    run(tmp_path / "e", seed=3, epochs=9)
    with pytest.raises(ValueError, match="differ in epochs"):
        figures.weight_maps(figures.read_runs([tmp_path]))


def test_figure_history(tmp_path):
    one = history(tmp_path / "x" / "one", "0,0,1,2,3,4,5,6,7,8", "1,10,2,3,4,5,6,nan,8,9")
    two = history(tmp_path / "y" / "one", "0,0,1,2,3,4,5,6,7,8", "1,10,2,3,4,5,6,7,8,19")
    figure = picture("history", one, two)
    assert labels(figure) == ["x/one", "y/one"] and "training images" in figure.get_suptitle()
    assert [ax.get_title() for ax in figure.axes] == list(figures.HISTORY.values())
    for k, ax in enumerate(figure.axes):
        assert [line.get_ydata()[0] for line in ax.lines] == [k + 1] * 2
    assert [list(line.get_ydata()) for line in figure.axes[7].lines] == [[8, 9], [8, 19]]
    assert math.isnan(figure.axes[5].lines[0].get_ydata()[1])
    assert len({line.get_linestyle() for line in figure.axes[7].lines}) == 2
    for row in ("0,0,1,x,3,4,5,6,7,8", "0,0,1"):
        with pytest.raises(ValueError, match="history.csv: not what assets/h"):
            figures.histories([history(tmp_path / "bad", row)])


# The command line -----------------------------------------------------------------------------

@pytest.mark.parametrize("name, start, times", [
    ("f.svg", b"<?xml", 2), ("f.pdf", b"%PDF", 2), ("f.PNG", b"\x89PNG", 1)])
def test_files_by_their_ending_without_damaged_runs(at, name, start, times):
    """The same bytes each time; a damaged run is named."""
    pytest.importorskip("matplotlib")
    run(at / "runs/a", 61.0)
    run(at / "runs/b", 62.0, method="cocoop")
    Path("runs/bad").mkdir()
    Path("runs/bad/result.json").write_text("{")
    before, made = files("runs"), []
    for _ in range(times):
        said = done(2, "runs", "--out", name, main=figures.main)
        made.append(Path(name).read_bytes())
    assert "skipped   runs/bad: runs/bad/result.json: expected a file of a run" in said
    assert made[0].startswith(start) and made[0] == made[-1]
    assert files("runs") == before and len(files(at)) == 1 + len(before)


@pytest.mark.parametrize("argv, reason", [
    ("2 {grid} --out f.xyz", "ends in .png, .svg, .pdf"),
    ("2 {grid} absent", "absent: no such folder"),
    ("3 {grid}", "invalid choice"), ("2 .", "no result.json in it"),
    ("4 {plain}", "with and without NPT"), ("5 {plain}", "expected runs with NPT"),
    ("history {plain}", ": no history.csv in it: train with assets/history.py")])
def test_refusals(grid, at, argv, reason):
    pytest.importorskip("matplotlib")
    argv = argv.format(grid=grid, plain=grid / "dtd-maple-off-1.0-1").split()
    assert reason in refused("--out", "f.png", *argv, main=figures.main)
    assert not files(at)


def test_without_matplotlib(grid, at, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(figures.tables, "read_runs", lambda *_: pytest.fail("work was begun"))
    code, _, error = call(figures.main, 2, grid, "--out", "f.png")
    assert (code, error) == (2, "error: figures need matplotlib: pip install matplotlib\n")
    assert not files(at)
