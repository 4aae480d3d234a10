"""The paper's Figures 1, 2, 4, 5 from run folders, or folders of them, and how a run went.

    python assets/figures.py 1 runs/*maple*seed1 --out figure1.png      # Fig. 1: the features
    python assets/figures.py 2 runs --out figure2.pdf       # Fig. 2: both Deltas and accuracy
    python assets/figures.py 4 runs --out figure4.svg       # Fig. 4: gains of NPT
    python assets/figures.py 5 runs --out figure5.png       # Fig. 5: the map of w_1 and w_2
    python assets/figures.py history runs/world-maple* --out history.png    # made by history.py

PNG, SVG or PDF by the ending. Figure 1 computes the features anew; the others read result.json or
history.csv. Runs are found and checked as for the tables, and what was not run says so. First comes
what is computed, then what is drawn; only drawing needs matplotlib.
"""
import contextlib
import csv
import io
import math
import os
import statistics
import sys
import textwrap
from collections import namedtuple
from itertools import cycle, product
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import data
import evaluate
import prompts
from assets import export, tables, world

PANELS = ("zero-shot", "balanced", "long-tailed", "long-tailed + NPT")          # of Fig. 1
MOST_CLASSES, MOST_IMAGES = 12, 25                      # drawn in Fig. 1; images of each class
PREFIX = {"base": "", "novel": "novel_"}                # of a part's Deltas in result.json
HISTORY = {"delta_lcd": r"$\Delta_{LCD}$", "lc_shared": r"$L_{LC}$: shared",
           "lc_unequal": r"$L_{LC}$: unequal angles", "delta_mid": r"$\Delta_{MID}$",
           "feature_collapse": "feature collapse", "prototype_collapse": "prototype collapse",
           "classifier_collapse": "classifier collapse", "accuracy": "training images right, %"}


# Runs -----------------------------------------------------------------------------------------

def read_runs(folders):
    """The usable runs in the folders. ValueError where there is none, or of several backbones."""
    runs, skipped = tables.read_runs(folders, "base-to-novel")
    if not runs:
        raise ValueError(f"no run to draw: {skipped[0]}; expected folders that train.py made")
    for line in skipped:
        print(f"skipped   {line}")
    tables.one_kind(runs, "backbone")
    return runs


def cell_of(run):
    """What runs share that differ in their seeds alone; w_1 = w_2 = 0 without NPT."""
    tau, method, variant = run["row"]
    weights = [run["setting"].get(name) or 0 for name in ("w1", "w2")]
    return run["dataset"], method, tau, variant, *weights


def cells(runs, value, key=cell_of):
    """{key(run): cell of tables.put} of value(run), without the runs for which it is None.

    ValueError where runs of one cell differ in more than their seeds.
    """
    found = {}
    for run in runs:
        _, _, images = run["numbers"][run["dataset"]]
        if value(run) is not None:
            tables.put(found, key(run), run, value(run), run["setting"] | images)
    return found


def remarks(runs):
    """What the tables mark, in words: subsets of test images, private splits, the backbone."""
    each = cells(runs, lambda _: True, lambda run: run["folder"]).values()
    marks = [tables.MARKS[mark] for mark in tables.join_marks(each, "")]
    return f"Runs: {'; '.join(marks)}." if marks else ""


# What Fig. 1 shows ----------------------------------------------------------------------------

# One learner's z (N, d), y (N,) of test images and g (K, d) of texts; part: base, novel or all
Panel = namedtuple("Panel", "z y g names part facts delta_lcd delta_mid")


def choose(runs):
    """{panel: run or None} of the dataset, learner and seed with most panels, the first of several.

    Zero-shot CLIP's panel takes any run: its features depend on the dataset and CLIP alone.
    """
    tail = min((run["row"][0] for run in runs if run["row"][0] < 1), default=None)
    places = {(1, "off"): PANELS[1], (tail, "off"): PANELS[2], (tail, "on"): PANELS[3]}
    sets = {}
    for run in runs:
        tau, method, variant = run["row"]
        chosen = sets.setdefault((run["dataset"], method, run["seed"]), {PANELS[0]: run})
        if method != "zeroshot" and (tau, variant) in places:
            chosen.setdefault(places[tau, variant], run)
    best = max(sets.values(), key=len)
    return {panel: best.get(panel) for panel in PANELS}


def gather(panel, run, data_root=None):
    """The Panel of a run, as in the paper of the novel classes where there are such."""
    learner, settings = evaluate.load_run(run["folder"])
    dataset = evaluate.load_dataset(run["folder"], settings, data_root)
    part, labels = list(evaluate.tested_classes(dataset, settings).items())[-1]
    n = settings["class_counts"]
    steps = settings["epochs"] * data.steps(sum(n), settings["batch_size"])
    facts = (f"τ = {settings['tau']:g}, $n_k$ {max(n)} to {min(n)}\n"
             f"{steps} steps, seed {settings['seed']}")
    if panel == PANELS[0]:
        learner = prompts.build("zeroshot", learner.clip, dataset.classnames,
                                ctx_init=dataset.template)
        facts = "nothing trained"
    frozen = evaluate.FrozenFeatures(dataset, run["folder"].parent / "features")
    z, y, g = export.image_and_text_features(learner, dataset, labels, frozen, panel)
    numbers, _ = evaluate.measure(learner, z, y)
    return Panel(z.cpu().double(), y.cpu(), g.cpu().double(), learner.classnames, part, facts,
                 numbers["delta_lcd"], numbers["delta_mid"])


def without_means(panel):
    """Texts without what all texts share, their mean, and images without theirs."""
    return panel._replace(z=panel.z - panel.z.mean(dim=0), g=panel.g - panel.g.mean(dim=0))


def projection(panels):
    """The plane (d, 2) of the two longest directions of all features, texts weighing as much as
    images, and the shares of the squared length of texts and of images that lie in it."""
    g, z = (torch.cat([getattr(panel, name) for panel in panels]) for name in "gz")
    both = torch.cat([g / g.norm(), z / z.norm()])
    plane = torch.linalg.svd(both, full_matrices=False).Vh[:2].T
    plane = plane * torch.where(g[0] @ plane < 0, -1.0, 1.0)    # their signs are arbitrary
    return plane, [((x @ plane).norm() / x.norm()).square().item() for x in (g, z)]


def text_cosines(panel):
    """Cosines of texts i and j (K, K), nan on the diagonal; their mean is Delta_LCD - 1/(K-1)."""
    return (panel.g @ panel.g.T).fill_diagonal_(math.nan)


def image_cosines(panel):
    """Mean cosine of text i and the images of class j (K, K); Delta_MID + 1 is the mean of the
    diagonal, where classes have as many test images."""
    means = [panel.z[panel.y == k].mean(dim=0) for k in range(len(panel.g))]
    return panel.g @ torch.stack(means).T


# What Figs. 2, 4, 5 and the history show ------------------------------------------------------

def pair(result, part, delta):
    """(|Delta|, accuracy) of a part's classes; None where one of them was not measured."""
    x, y = result.get(PREFIX[part] + delta), result.get(part)
    return (abs(x), y) if all(isinstance(value, (int, float)) for value in (x, y)) else None


def points(runs, part, delta):
    """{cell: [pair of each run]}."""
    found = cells(runs, lambda run: pair(run["result"], part, delta))
    return {cell: list(content["values"].values()) for cell, content in found.items()}


def within_and_between(points):
    """{cell: pairs} -> pairs less their cell's means, where it has several; means of all cells."""
    within, between = [], []
    for pairs in points.values():
        x_mean, y_mean = map(statistics.fmean, zip(*pairs, strict=True))
        within += [(x - x_mean, y - y_mean) for x, y in pairs if len(pairs) > 1]
        between.append((x_mean, y_mean))
    return within, between


def correlation(pairs):
    """Pearson's r in words, of three points or more that are not constant, and their number."""
    r = "no r"
    if len(pairs) > 2:
        with contextlib.suppress(statistics.StatisticsError):
            r = f"r = {statistics.correlation(*zip(*pairs, strict=True)):+.2f}"
    return f"{r} (n = {len(pairs)})"


def gains(runs, part):
    """{(dataset, method, tau): record} of NPT over none, paired by seed; see tables.record."""
    found = cells([run for run in runs if run["row"][2] in ("off", "on")],
                  lambda run: run["result"].get(part), lambda run: cell_of(run)[:4])
    records = {}
    for (*key, variant), tuned in found.items():
        plain = found.get((*key, "off"))
        if variant == "on" and plain:
            records[tuple(key)] = tables.record("gain", "", part, tables.gain(tuned, plain), None)
    return records


def weight_maps(runs):
    """{(dataset, method, tau): {(w_1, w_2): (mean harmonic mean, number of seeds)}}.

    Only where some run has NPT; the run without it stands at (0, 0).
    """
    maps = {}
    for cell, content in cells(runs, lambda run: run["result"].get("harmonic_mean")).items():
        values = content["values"].values()
        maps.setdefault(cell[:3], {})[cell[4:]] = statistics.fmean(values), len(values)
    return {key: found for key, found in maps.items() if found.keys() != {(0, 0)}}


def histories(folders):
    """{name: {column: numbers}} of the runs that have a history.csv, nan for what could not be
    measured; FileNotFoundError where none has."""
    seen, read = set(), {}
    found = [run for top in folders for run in tables.run_folders(top.resolve(), seen)
             if (run / "history.csv").is_file()]
    if not found:
        raise FileNotFoundError(f"{folders[0]}: no history.csv in it: train with "
                                "assets/history.py")
    top = os.path.commonpath([run.parent for run in found])
    for run in found:
        try:
            rows = data.read_csv(run / "history.csv")
            read[str(run.relative_to(top))] = {name: [float(row[name]) for row in rows]
                                               for name in ("step", *HISTORY)}
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise ValueError(f"{run / 'history.csv'}: not what assets/history.py writes ({error})"
                             ) from None
    return read


# Drawing --------------------------------------------------------------------------------------

STYLE = {"font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "xtick.labelsize": 8,
         "ytick.labelsize": 8, "legend.fontsize": 8.5, "figure.titlesize": 9, "svg.hashsalt": "npt"}
# Okabe and Ito's and Tol's colours, which the colour-blind can tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#332288", "#882255",
           "#999933", "#117733", "#44AA99", "#555555")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", "p", ">", "h")
ZEROSHOT = {"linestyle": "none", "marker": "*", "color": "0.6", "markeredgecolor": "black",
            "markersize": 12}
GREYS = ("0.2", "0.55", "0.8", "white")                 # of tau from high to low


@contextlib.contextmanager
def style():
    """Fonts of at least 8 points. ValueError where matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        raise ValueError("figures need matplotlib: pip install matplotlib") from None
    with matplotlib.rc_context(STYLE):
        yield


def new_figure(width, height, *lines):
    """A figure of so many inches, words above it."""
    from matplotlib.figure import Figure  # without pyplot, so it needs no display
    figure = Figure((width, height), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.08)
    figure.suptitle("\n".join(textwrap.fill(line, int(13.5 * width)) for line in lines if line))
    return figure


def legend(figure, looks, columns):
    """A legend below the figure of {label: how its lines or points look}."""
    from matplotlib.lines import Line2D
    keys = [Line2D([], [], label=label, **look) for label, look in looks.items()]
    figure.legend(handles=keys, loc="outside lower center", ncols=columns, frameon=False)


def class_looks(names):
    """A marker and a colour for each class: its own where its first word is one, else a spare."""
    from matplotlib.colors import CSS4_COLORS
    known, spare = CSS4_COLORS | world.COLOURS, cycle(COLOURS)
    words = [name.lower().replace("_", " ").split(" ")[0] for name in names]
    return [{"marker": marker, "color": known[word] if word in known else next(spare)}
            for marker, word in zip(MARKERS, words, strict=False)]


def figure_1(args):
    """Two planes with texts as arrows and images as points, and two matrices of their cosines."""
    chosen = choose(read_runs(args.runs))
    panels = [run and gather(panel, run, args.data_root) for panel, run in chosen.items()]
    names, of = panels[0].names, chosen[PANELS[0]]
    learner, dataset = tables.row_label((of["row"][1], "off")), Path(of["dataset"]).name
    if any(panel.names != names for panel in panels if panel):
        raise ValueError("the runs of the panels have other classes: give RUNS of one dataset")
    if len(names) < 2:
        raise ValueError("Figure 1 shows angles between classes, and here is one class only")
    figure = new_figure(
        9, 10.2, f"{learner} on {dataset}, {panels[0].part} classes: arrows are texts, points test "
        f"images; at most {MOST_CLASSES} classes, {MOST_IMAGES} images of each.",
        "In (c) the training set is long-tailed, in (d) NPT is added. In brackets and in grey: the "
        "change from the panel before.")
    rows = [(row, row.subplots(1, len(PANELS)))
            for row in figure.subfigures(4, 1, height_ratios=(1.2, 1, 1, 1))]
    for ax, letter, (word, run), panel in zip(rows[0][1], "abcd", chosen.items(), panels,
                                              strict=True):
        print(f"({letter}) {word}: {run['folder'] if run else 'not run'}")
        ax.set_title(f"({letter}) {word}\n{panel.facts if panel else 'not run'}")
    draw_planes(*rows[0], panels, "As they are; + is 0. The plane of the two longest directions "
                "holds {:.0%} of the texts' squared length, {:.0%} of the images'.")
    draw_planes(*rows[1], [panel and without_means(panel) for panel in panels], "Less the mean "
                "text and the mean image: a plane with {:.0%} and {:.0%} of what is left. Grey: "
                "the arrows of the panel before.")
    draw_cosines(*rows[2], panels, text_cosines, "delta_lcd", "Cosine of two texts. {} is their "
                 "mean + 1/(K - 1): 0 in a simplex ETF."
                 + " CoCoOp's texts: averaged over images." * (learner == "CoCoOp"))
    draw_cosines(*rows[3], panels, image_cosines, "delta_mid", "Cosine of a text (row) and the "
                 "images of a class (column). {} is the mean of the diagonal - 1.")
    legend(figure, {name.replace("_", " "): look | {"linestyle": "none", "markeredgecolor": "black"}
                    for name, look in zip(names, class_looks(names), strict=False)}, 6)
    return figure


def beside(axes, panels):
    """(axes, panel, the one before or None) of each panel that was run; other axes are hidden."""
    for ax, panel, before in zip(axes, panels, [None, *panels], strict=False):
        if panel:
            yield ax, panel, before
        else:
            ax.set_axis_off()


def draw_planes(row, axes, panels, label):
    """Texts as arrows and images as points in one plane, the arrows of the panel before in grey."""
    from matplotlib.patheffects import withStroke
    plane, shares = projection([panel for panel in panels if panel])
    row.suptitle(label.format(*shares), x=0.01, ha="left")
    plane = plane.numpy()
    for ax, panel, before in beside(axes, panels):
        ax.sharex(axes[0])
        ax.sharey(axes[0])
        ax.set_aspect("equal")
        ax.tick_params(labelleft=ax is axes[0])
        ax.locator_params(nbins=3)
        for tip in before.g[:MOST_CLASSES].numpy() @ plane if before else ():
            ax.plot([0, tip[0]], [0, tip[1]], color="0.55", linewidth=1)
        for k, look in enumerate(class_looks(panel.names)):
            images = panel.z[panel.y == k][:MOST_IMAGES].numpy() @ plane
            ax.scatter(*images.T, s=7, linewidths=0, alpha=0.5, rasterized=True, **look)
        for tip, look in zip(panel.g.numpy() @ plane, class_looks(panel.names), strict=False):
            ax.plot([0, tip[0]], [0, tip[1]], color=look["color"], linewidth=1.2,
                    path_effects=[withStroke(linewidth=2.4, foreground="black")])
            ax.scatter(*tip, s=38, edgecolors="black", zorder=4, **look)
        ax.plot(0, 0, "k+", markersize=9, markeredgewidth=1.5, zorder=5)
    ends = [axes[0].get_xlim(), axes[0].get_ylim()]
    half = max(high - low for low, high in ends) / 2
    x, y = ((low + high) / 2 for low, high in ends)
    axes[0].set(xlim=(x - half, x + half), ylim=(y - half, y + half))       # a square


def draw_cosines(row, axes, panels, cosines, delta, label):
    """Matrices on one scale, over each the Delta that averages it, with its change."""
    row.suptitle(label.format(HISTORY[delta]), x=0.01, ha="left")
    values = torch.cat([cosines(panel).flatten() for panel in panels if panel])
    values = values[~values.isnan()]
    for ax, panel, before in beside(axes, panels):
        image = ax.imshow(cosines(panel)[:MOST_CLASSES, :MOST_CLASSES].numpy(), cmap="cividis",
                          vmin=values.min().item(), vmax=values.max().item())
        value = getattr(panel, delta)
        change = f" ({value - getattr(before, delta):+.3f})" if before else ""
        ax.set(title=f"{HISTORY[delta]} = {value:.3f}{change}", xticks=[], yticks=[])
    names = [name.replace("_", " ") for name in panels[0].names[:MOST_CLASSES]]
    axes[0].set_yticks(range(len(names)), names)
    row.colorbar(image, ax=list(axes), fraction=0.03)


def figure_2(args):
    """Both Deltas against accuracy, a point a run, for base and novel classes."""
    runs = [run for run in read_runs(args.runs) if run["row"][1] != "zeroshot"]
    if not runs:
        raise ValueError("Figure 2: expected runs that trained something")
    rows = sorted({run["row"] for run in runs}, key=lambda row: (row[1], -row[0], row[2] == "on"))
    looks = {row: {"linestyle": "none", "color": colour, "marker": marker,
                   "fillstyle": "full" if row[2] == "off" else "none"}
             for row, colour, marker in zip(rows, cycle(COLOURS), cycle(MARKERS), strict=False)}
    figure = new_figure(
        8.4, 7, "A point is a run, a cell all runs that differ in their seeds alone. Correlations "
        "within cells: of what is left without the cells' means, pooled; between: of these means. "
        "Zero-shot CLIP is in neither.", remarks(runs))
    for ax, (part, delta) in zip(figure.subplots(2, 2).flat,
                                 product(PREFIX, ("delta_lcd", "delta_mid")), strict=True):
        found = points(runs, part, delta)
        for (_, method, tau, variant, *_), pairs in found.items():
            ax.plot(*zip(*pairs, strict=True), **looks[tau, method, variant], alpha=0.8)
        plain = dict.fromkeys(pair(run["result"]["zeroshot"], part, delta) for run in runs)
        for point in filter(None, plain):               # in one order: the same bytes each time
            ax.plot(*point, **ZEROSHOT)
        within, between = within_and_between(found)
        ax.set(xlabel=f"|{HISTORY[delta]}| of {part} classes",
               ylabel=f"accuracy on test images\nof {part} classes, %",
               title=f"within cells {correlation(within)},\nbetween {correlation(between)}")
    words = {f"{tables.row_label(row[1:])}, τ = {row[0]:g}": looks[row] for row in rows}
    legend(figure, words | {"zero-shot CLIP": ZEROSHOT}, 3)
    return figure


def figure_4(args):
    """Gains of NPT on base and on novel classes, for each dataset and tau."""
    runs = read_runs(args.runs)
    found = {part: gains(runs, part) for part in PREFIX}
    keys = {key: None for records in found.values() for key, record in records.items()
            if record["n"]}                             # in the order of the runs
    if not keys:
        raise ValueError("Figure 4: expected runs with and without NPT of one seed and setting")
    datasets, methods, taus = (list(dict.fromkeys(column)) for column in zip(*keys, strict=True))
    taus.sort(reverse=True)
    bars, panels = list(product(datasets, taus)), list(product(methods, PREFIX))
    colours = dict(zip(taus, cycle(GREYS), strict=False))
    figure = new_figure(
        max(6, 1 + 0.3 * len(bars)), 1 + 2.2 * len(panels),
        "Accuracy with NPT less that without, mean of n pairs of one seed (n below each bar), with "
        "its 95 % interval by Student's t; one pair has no interval.", remarks(runs))
    axes = figure.subplots(len(panels), sharex=True, sharey=True)
    for ax, (method, part) in zip(axes, panels, strict=True):
        for place, (dataset, tau) in enumerate(bars):
            record = found[part].get((dataset, method, tau), {"n": 0})
            n = record["n"]
            ax.text(place, 0.02, str(n or "not run"), transform=ax.get_xaxis_transform(),
                    ha="center", va="bottom", fontsize=8, rotation=0 if n else 90,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
            if n:
                ax.bar(place, record["mean"], 0.85, yerr=record["spread"], capsize=3,
                       color=colours[tau], edgecolor="black")
        ax.axhline(0, color="black", linewidth=0.8)
        ax.margins(y=0.18)                              # room for n
        middles = [len(taus) * (d + 0.5) - 0.5 for d in range(len(datasets))]
        ax.set_xticks(middles, datasets, rotation=30 * (len(datasets) > 3))
        ax.set(title=tables.row_label((method, "off")),
               ylabel=f"gain on test images\nof {part} classes, points")
    legend(figure, {f"τ = {tau:g}": {"linestyle": "none", "marker": "s", "markersize": 9,
                                     "color": colour, "markeredgecolor": "black"}
                    for tau, colour in colours.items()}, len(taus))
    return figure


def figure_5(args):
    """The map of w_1 and w_2: mean harmonic mean, a panel for each dataset, learner and tau."""
    runs = read_runs(args.runs)
    maps = weight_maps(runs)
    if not maps:
        raise ValueError("Figure 5: expected runs with NPT and a harmonic mean, of several w_1, "
                         "w_2, as train.py --npt --w1 0.3 1 --w2 0 0.8 makes them")
    w1, w2 = (sorted({at[i] for found in maps.values() for at in found}) for i in range(2))
    rows, columns = math.ceil(len(maps) / 3), min(3, len(maps))
    figure = new_figure(
        columns * max(3.8, 1.2 + 0.75 * len(w2)), rows * max(2.6, 1 + 0.55 * len(w1)) + 0.6,
        "Harmonic mean of the accuracies on test images of base and of novel classes, %, mean over "
        "n seeds; cells of another n average other seeds. (0, 0) is the run without NPT; dark is "
        "high.", remarks(runs))
    values = [mean for found in maps.values() for mean, _ in found.values()]
    low, high = min(values) - 1, max(values) + 1
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for ax in axes[len(maps):]:
        ax.set_axis_off()
    for ax, ((dataset, method, tau), found) in zip(axes, maps.items(), strict=False):
        grid = [[found.get((a, b), (math.nan, 0)) for b in w2] for a in w1]
        ax.imshow([[mean for mean, _ in row] for row in grid], cmap="Greys", vmin=low, vmax=high,
                  origin="lower", aspect="auto")                                # w_1 upwards
        for i, j in product(range(len(w1)), range(len(w2))):
            mean, n = grid[i][j]
            ax.text(j, i, f"{mean:.2f}\nn = {n}" if n else "not run", ha="center", va="center",
                    fontsize=8.5, color="white" if 2 * mean > low + high else "black")
        ax.set_xticks(range(len(w2)), [f"{w:g}" for w in w2])
        ax.set_yticks(range(len(w1)), [f"{w:g}" for w in w1])
        ax.set(title=f"{tables.row_label((method, 'off'))}, {dataset}, τ = {tau:g}",
               xlabel="$w_2$ (of $L_{MI}$)", ylabel="$w_1$ (of $L_{LC}$)")
    return figure


def figure_history(args):
    """What assets/history.py measured, over the steps, of one run or several."""
    found = histories(args.runs)
    looks = {name: {"color": COLOURS[i % 7], "linestyle": ("-", "--", ":", "-.")[i % 4]}
             for i, name in enumerate(found)}           # 28 differ, neighbours in both
    figure = new_figure(9, 5, "Measured on the training images and the texts of the trained "
                        "classes, not on test images.")
    axes = figure.subplots(2, 4, sharex=True)
    for ax, (column, label) in zip(axes.flat, HISTORY.items(), strict=True):
        for name, columns in found.items():
            ax.plot(columns["step"], columns[column], **looks[name])
        ax.set_title(label)
    for ax in axes[1]:
        ax.set_xlabel("training step")
    legend(figure, looks, 3)
    return figure


# The command line -----------------------------------------------------------------------------

FIGURES = {"1": figure_1, "2": figure_2, "4": figure_4, "5": figure_5, "history": figure_history}
UNDATED = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}  # the same bytes


def parse(argv=None):
    p = data.Parser(description="The paper's figures from run folders.")
    p.add_argument("figure", choices=FIGURES, help="a figure of the paper, or how runs went")
    p.add_argument("runs", type=Path, nargs="+", help="folders that train.py made, or folders of "
                                                      "them")
    p.add_argument("--out", type=Path, required=True, metavar="FILE",
                   help=f"{', '.join(UNDATED)} by its ending")
    p.add_argument("--data-root", help="of figure 1: where the pictures lie now (where they lay)")
    return p.parse_args(argv)


def run(args):
    """The whole job; what can't become a file and folders that are not there come first."""
    data.check_output("--out", args.out, list(UNDATED))
    for folder in args.runs:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder; expected runs of train.py")
    content, ending = io.BytesIO(), args.out.suffix.lower()
    with style():
        FIGURES[args.figure](args).savefig(content, format=ending[1:], dpi=110, bbox_inches="tight",
                                           metadata=UNDATED[ending])
    data.write(args.out, content.getvalue())
    print(f"saved in {args.out}")


def main(argv=None):
    return data.run_script(lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
