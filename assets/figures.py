"""The paper's Figures 1, 2, 4, 5 from run folders, or folders of them, and how a run went.

    python assets/figures.py 1 runs/*maple*seed1 --out figure1.png      # Fig. 1: the features
    python assets/figures.py 2 runs --out figure2.pdf       # Fig. 2: both Deltas and accuracy
    python assets/figures.py 4 runs --out figure4.svg       # Fig. 4: gains of NPT
    python assets/figures.py 5 runs --out figure5.png       # Fig. 5: the map of w_1 and w_2
    python assets/figures.py history runs/world-maple* --out history.png    # train.py --history N

PNG, SVG or PDF by the ending. Figure 1 computes the features anew; the others read result.json or
history.csv. Runs are found and checked as for the tables, and what was not run says so. First comes
what is computed, then what is drawn; only drawing needs matplotlib.
"""
import contextlib
import csv
import io
import math
import statistics
import sys
import textwrap
from itertools import cycle, product
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
import evaluate
import prompts
from assets import features, files, tables, world

ENDINGS = (".png", ".svg", ".pdf")
PANELS = ("zero-shot", "balanced", "long-tailed", "long-tailed with NPT")       # of Fig. 1
MOST_CLASSES, MOST_IMAGES = 12, 25                     # drawn in Fig. 1; images of each class
HISTORY = {"delta_lcd": r"$\Delta_{LCD}$", "lc_shared": r"$L_{LC}$: shared",
           "lc_unequal": r"$L_{LC}$: unequal angles", "delta_mid": r"$\Delta_{MID}$",
           "feature_collapse": "feature collapse", "prototype_collapse": "prototype collapse",
           "classifier_collapse": "classifier collapse", "accuracy": "accuracy, %"}
DELTAS = {"delta_lcd": r"$|\Delta_{LCD}|$", "delta_mid": r"$|\Delta_{MID}|$"}
PREFIX = {"base": "", "novel": "novel_"}                # of a part's Deltas in result.json


# Runs -----------------------------------------------------------------------------------------

class Cell(NamedTuple):
    """What runs share that differ in their seeds alone."""
    dataset: str
    method: str
    tau: float
    w1: float
    w2: float


def cell_of(run):
    """w_1 = w_2 = 0 without NPT."""
    tau, method, _ = run["row"]
    return Cell(run["dataset"], method, tau, *(run["setting"].get(w) or 0 for w in ("w1", "w2")))


def read_runs(folders):
    """The usable runs in the folders. ValueError where there is none, or of several backbones."""
    runs, skipped = tables.read_runs(folders, "base-to-novel")
    if not runs:
        raise ValueError(f"no run to draw: {skipped[0]}; expected folders that train.py made")
    for line in skipped:
        print(f"skipped   {line}")
    tables.one_kind(runs, "backbone")
    return runs


def measured(run):
    """A run's {"harmonic_mean", part: {"accuracy", "delta_lcd", "delta_mid"}}, None for none."""
    result = tables.read_json(run["folder"] / "result.json")
    return {"harmonic_mean": result.get("harmonic_mean")} | of_parts(result)


def of_parts(result):
    """{part: {"accuracy", "delta_lcd", "delta_mid"}} of a result, or of its zero-shot half."""
    return {part: {"accuracy": number(result.get(part))}
            | {delta: number(result.get(prefix + delta)) for delta in DELTAS}
            for part, prefix in PREFIX.items()}


def number(value):
    return value if type(value) in (int, float) else None


def cells(runs, key):
    """{key(run): cell}; its "values" are {(seed, draw seed): what measured() says}.

    ValueError where runs of one cell differ in more than their seeds.
    """
    found = {}
    for run in runs:
        _, _, images = run["numbers"][run["dataset"]]
        tables.put(found, key(run), run, measured(run), run["setting"] | images)
    return found


def remarks(cells):
    """What the tables mark, in words: subsets of test images, private splits, the backbone."""
    return in_words(tables.join_marks(cells, ""))


def in_words(marks):
    return [f"Runs: {'; '.join(tables.MARKS[mark] for mark in marks)}."] if marks else []


# What Fig. 1 shows ----------------------------------------------------------------------------

def panel_of(run, tail):
    """Which panel a run belongs in, None for no one; tail: the long-tailed panels' tau."""
    tau, method, variant = run["row"]
    if method == "zeroshot" or variant in ("lc", "mi"):
        return None
    if tau == tail:
        return {"off": "long-tailed", "on": "long-tailed with NPT"}[variant]
    return "balanced" if (tau, variant) == (1, "off") else None


def choose(runs):
    """{panel: run or None} of one dataset and learner, of one seed where that fills the panels.

    The dataset, learner and seed that fill most panels are taken, the first ones where several do.
    Zero-shot CLIP's panel takes any run: its features depend on the dataset and CLIP alone.
    """
    tail = min((run["row"][0] for run in runs if run["row"][0] < 1), default=None)
    sets = {}
    for run in runs:
        group = sets.setdefault((run["dataset"], run["row"][1], run["seed"]), {})
        group.setdefault(panel_of(run, tail), run)
    best = max(sets, key=lambda key: len(sets[key].keys() - {None}))        # the first of several
    chosen = dict(sets[best])
    for key, group in sets.items():                     # panels that only another seed has
        if key[:2] == best[:2]:
            chosen = group | chosen
    any_run = next(iter(chosen.values()))
    return {"zero-shot": any_run} | {panel: chosen.get(panel) for panel in PANELS[1:]}


def projection(texts, images):
    """The plane in which Fig. 1 is drawn, (d, 2): the first two right singular vectors of all.

    texts   (K, d) and images (N, d): features of all panels together
    Neither is centred: centring removes what Delta_LCD and Delta_MID measure. A modality counts as
    much as the other, however many images there are. -> the plane, and the shares of the squared
    length of texts and of images that lie in it. Signs are such that images are mostly positive.
    """
    both = torch.cat([texts / len(texts) ** 0.5, images / len(images) ** 0.5])
    plane = torch.linalg.svd(both.double(), full_matrices=False).Vh[:2].T
    plane = plane * torch.where((images.double() @ plane).sum(dim=0) < 0, -1.0, 1.0)
    shares = [((x.double() @ plane).square().sum() / x.double().square().sum()).item()
              for x in (texts, images)]
    return plane, shares


def gather(panel, run, which, data_root):
    """The features of one panel, {"z": (N, d), "y", "g": (K, d), "names", "part", "title"}."""
    learner, settings = evaluate.load_run(run["folder"])
    dataset = evaluate.load_dataset(run["folder"], settings, data_root)
    parts = evaluate.tested_classes(dataset, settings, which, run["folder"])
    part, labels = list(parts.items())[-1]                      # novel where there is such a one
    name, n = run["folder"].name, settings["class_counts"]
    facts = f"τ = {settings['tau']:g}, $n_k$ from {max(n)} to {min(n)}"
    if panel == "zero-shot":
        learner = prompts.build("zeroshot", learner.clip, dataset.classnames,
                                ctx_init=dataset.template)
        name, facts = "zero-shot CLIP", "nothing trained"
    frozen = features.FrozenFeatures(dataset, run["folder"].parent / "features")
    z, y, g = evaluate.image_and_text_features(learner, dataset, labels, frozen, panel)
    numbers, _ = evaluate.measure(learner, z, y)
    deltas = (f"$\\Delta_{{LCD}}$ = {numbers['delta_lcd']:.3f}, "
              f"$\\Delta_{{MID}}$ = {numbers['delta_mid']:.3f}")
    return {"z": z.float().cpu(), "y": y.cpu(), "g": g.float().cpu(), "names": learner.classnames,
            "part": part, "dataset": dataset.name, "averaged": learner.per_image,
            "title": "\n".join([textwrap.fill(name, 34), facts, deltas])}


def drawn(panel):
    """The same panel with at most MOST_CLASSES classes, and MOST_IMAGES images of each."""
    rows = [i for k in range(MOST_CLASSES) for i in (panel["y"] == k).nonzero()[:MOST_IMAGES, 0]]
    rows = torch.tensor(rows)
    return panel | {"z": panel["z"][rows], "y": panel["y"][rows], "g": panel["g"][:MOST_CLASSES]}


# What Figs. 2, 4, 5 and the history show ------------------------------------------------------

def points(cells, part, delta):
    """{cell: [(|Delta|, accuracy)]}, a pair for each run that has both."""
    found = {}
    for cell, content in cells.items():
        measures = [values[part] for values in content["values"].values()]
        found[cell] = [(abs(m[delta]), m["accuracy"]) for m in measures
                       if None not in (m[delta], m["accuracy"])]
    return {cell: pairs for cell, pairs in found.items() if pairs}


def means(pairs):
    return tuple(statistics.fmean(column) for column in zip(*pairs, strict=True))


def within(points):
    """Pairs without their cell's means, all cells together; a cell of one run says nothing."""
    several = [pairs for pairs in points.values() if len(pairs) > 1]
    return [(x - means(pairs)[0], y - means(pairs)[1]) for pairs in several for x, y in pairs]


def between(points):
    """The means of each cell."""
    return [means(pairs) for pairs in points.values()]


def correlation(pairs):
    """Pearson's r in words, with the number of points."""
    if len(pairs) < 3:
        return f"too few (n = {len(pairs)})"
    try:
        r = statistics.correlation(*zip(*pairs, strict=True))
    except statistics.StatisticsError:
        return f"none, constant (n = {len(pairs)})"
    return f"r = {r:+.2f} (n = {len(pairs)})"


def gains(runs):
    """{(method, dataset, tau, part): record} of NPT over none, paired by seed; see tables.record.

    ValueError where runs of one cell differ in more than their seeds.
    """
    found = cells([run for run in runs if run["row"][2] in ("off", "on")],
                  lambda run: (run["row"][1], run["dataset"], run["row"][0], run["row"][2]))
    records = {}
    for (*key, variant), part in product(found, PREFIX):
        pair = [found.get((*key, v)) for v in ("on", "off")]
        if variant == "on" and None not in pair:
            cell = tables.gain(*(of_accuracy(cell, part) for cell in pair))
            records[(*key, part)] = tables.record("gain", "", part, cell, None)
    return records


def of_accuracy(cell, part):
    """The same cell, its values the accuracy on one part alone."""
    values = {seed: numbers[part]["accuracy"] for seed, numbers in cell["values"].items()}
    return cell | {"values": {seed: v for seed, v in values.items() if v is not None}}


def weight_maps(runs):
    """{(method, dataset, tau): {(w_1, w_2): (mean harmonic mean, number of seeds)}}.

    Only where some run has NPT; the run without it stands at (0, 0).
    """
    maps = {}
    for cell, content in cells(runs, cell_of).items():
        values = [v["harmonic_mean"] for v in content["values"].values()]
        values = [v for v in values if v is not None]
        if values and cell.method != "zeroshot":
            at = maps.setdefault((cell.method, cell.dataset, cell.tau), {})
            at[cell.w1, cell.w2] = statistics.fmean(values), len(values)
    return {key: found for key, found in maps.items() if found.keys() != {(0, 0)}}


def read_history(folder):
    """history.csv of a run -> {column: numbers}; nan for what could not be measured."""
    path = folder / "history.csv"
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        columns = {name: [float("nan" if row[name] == "" else row[name]) for row in rows]
                   for name in ("step", *HISTORY)}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not what train.py --history writes ({error})") from None
    if not rows:
        raise ValueError(f"{path}: no line in it")
    return columns


def histories(folders):
    """{name: columns} of all runs; FileNotFoundError where a folder has none with a history."""
    found, seen = {}, set()
    for top in folders:
        runs = tables.run_folders(top, seen)
        lack = [run for run in runs if not (run / "history.csv").is_file()]
        if len(lack) == len(runs):
            raise FileNotFoundError(f"{top}: no history.csv in it: train with train.py --history N")
        for run in lack:
            print(f"skipped   {run}: no history.csv")
        found |= {str(run): read_history(run) for run in runs if run not in lack}
    names = [Path(name).name for name in found]
    short = names if len(set(names)) == len(names) else list(found)
    return dict(zip(short, found.values(), strict=True))


# Drawing --------------------------------------------------------------------------------------

STYLE = {"font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "xtick.labelsize": 8,
         "ytick.labelsize": 8, "legend.fontsize": 8.5, "figure.titlesize": 9, "svg.hashsalt": "npt",
         "hatch.linewidth": 0.6}
# Okabe and Ito's and Tol's colours, which the colour-blind can tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#332288", "#882255",
           "#999933", "#117733", "#44AA99", "#555555")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", "p", ">", "h")
LINES = ("-", "--", ":", "-.")
LEARNER_COLOURS = {"coop": "#E69F00", "cocoop": "#0072B2", "maple": "#000000"}  # light to dark
VARIANT_MARKERS = {"off": "o", "lc": "^", "mi": "v", "on": "s"}
FILLS = ("full", "left", "bottom", "right", "top")      # of tau from high to low; the lowest: none
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "+++")


@contextlib.contextmanager
def style():
    """Fonts of at least 8 points. ValueError where matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        raise ValueError("figures need matplotlib: pip install matplotlib") from None
    with matplotlib.rc_context(STYLE):
        yield


def new_figure(rows, columns, size, **options):
    """-> figure and its axes, rows x columns; size: width, height in inches of one of them."""
    from matplotlib.figure import Figure  # without pyplot, so it needs no display

    figure = Figure((columns * size[0], rows * size[1]), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.08)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def title(figure, lines, width):
    """The words above a figure, wrapped to its width."""
    figure.suptitle("\n".join(textwrap.fill(line, width) for line in lines if line))


def key_line(label, **options):
    """An entry of a legend that stands for many lines or points."""
    from matplotlib.lines import Line2D
    return Line2D([], [], label=label, **{"color": "black", "linestyle": "none"} | options)


def legend(figure, handles, columns):
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)


def class_colours(names):
    """A colour for each class: its own where its first word is one, else one of COLOURS."""
    from matplotlib.colors import CSS4_COLORS
    known, spare = CSS4_COLORS | world.COLOURS, cycle(COLOURS)
    words = [name.lower().replace("_", " ").split(" ")[0] for name in names]
    return [known[word] if word in known else next(spare) for word in words]


def figure_1(args):
    """Text features as arrows, image features as points, in one plane for all panels."""
    chosen = choose(read_runs(args.runs))
    panels = {panel: gather(panel, run, args.classes, args.data_root)
              for panel, run in chosen.items() if run}
    first, shown = panels["zero-shot"], {panel: drawn(p) for panel, p in panels.items()}
    if any(p["names"] != first["names"] for p in panels.values()):
        raise ValueError("the runs of the panels have other classes: give RUNS of one dataset")
    plane, shares = projection(*(torch.cat([p[x] for p in panels.values()]) for x in ("g", "z")))
    most = max(p["title"].count("\n") for p in panels.values())          # long names take two lines
    figure, axes = new_figure(1, len(PANELS), (3.1, 5.3 + 0.16 * most), sharex=True, sharey=True)
    names = [name.replace("_", " ") for name in first["names"][:MOST_CLASSES]]
    colours = class_colours(names)
    for letter, panel, ax in zip("abcd", PANELS, axes[0], strict=True):
        words = panels.get(panel, {"title": "not run\n\n"})["title"]
        ax.set(title=f"({letter}) {panel}\n{words}", xlabel="first direction", aspect="equal")
        ax.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        ax.axvline(0, color="0.8", linewidth=0.8, zorder=0)
        if panel in shown:
            p = shown[panel]
            draw_features(ax, (p["z"].double() @ plane).numpy(), p["y"].numpy(),
                          (p["g"].double() @ plane).numpy(), colours)
    axes[0, 0].set(ylabel="second direction")
    legend(figure, [key_line(name, marker=m, color=c, markeredgecolor="black", markersize=7)
                    for name, m, c in zip(names, MARKERS, colours, strict=False)], 6)
    title(figure, caption_1(panels, shares), 200)
    return figure


def caption_1(panels, shares):
    """What the panels of Fig. 1 have in common, in words."""
    first, lines = panels["zero-shot"], []
    K, averaged = len(first["names"]), any(p["averaged"] for p in panels.values())
    lines.append(f"{first['dataset']}, {first['part']} classes: arrows are text features"
                 + ", averaged over the images" * averaged + ", points are image features of the "
                 "test pictures; neither is centred or rescaled, + is the origin.")
    lines.append("One plane for all panels: the first two right singular vectors of all text and "
                 f"image features, both modalities weighing the same. It shows "
                 f"{100 * shares[0]:.0f} % of the squared length of the texts and "
                 f"{100 * shares[1]:.0f} % of that of the images.")
    if K > MOST_CLASSES:
        lines.append(f"Drawn are the first {MOST_CLASSES} of {K} classes; plane and Deltas are of "
                     "all.")
    if any(p["y"].bincount().max() > MOST_IMAGES for p in panels.values()):
        lines.append(f"Drawn are the first {MOST_IMAGES} images of each class; plane and Deltas "
                     "are of all.")
    return lines


def draw_features(ax, z, y, g, colours):
    """Points z (N, 2) with labels y and arrows g (K, 2), a colour and a marker for each class."""
    from matplotlib import patheffects
    outline = [patheffects.withStroke(linewidth=3, foreground="black")]
    for k, (tip, colour, marker) in enumerate(zip(g, colours, MARKERS, strict=False)):
        ax.scatter(*z[y == k].T, s=14, color=colour, marker=marker, edgecolors="black",
                   linewidths=0.25, alpha=0.6, rasterized=True)
        arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.6, "shrinkA": 0,
                 "shrinkB": 4, "path_effects": outline}
        ax.annotate("", tip, (0, 0), arrowprops=arrow, zorder=3)
        ax.scatter(*tip, s=60, color=colour, marker=marker, edgecolors="black", zorder=4)
    ax.plot(0, 0, "k+", markersize=11, markeredgewidth=1.5, zorder=5)


def fills(taus):
    """{tau: how its markers are filled}: 1, or the highest, is full, the lowest empty."""
    taus = sorted(taus, reverse=True)
    styles = dict(zip(taus, cycle(FILLS), strict=False))
    return styles | ({taus[-1]: "none"} if len(taus) > 1 else {})


def figure_2(args):
    """Both Deltas against accuracy, a point a run, for base and novel classes."""
    runs = [run for run in read_runs(args.runs) if run["row"][1] != "zeroshot"]
    if not runs:
        raise ValueError("Figure 2: expected runs that trained something")
    found, plain = cells(runs, cell_of), zero_shot(runs)
    fill = fills({cell.tau for cell in found})
    figure, axes = new_figure(2, 2, (4.2, 3.1))
    for (part, delta), ax in zip(product(PREFIX, DELTAS), axes.flat, strict=True):
        of = points(found, part, delta)
        draw_runs(ax, of, found, fill)
        for pair in points(plain, part, delta).values():
            ax.plot(*pair[0], marker="*", color="0.6", markeredgecolor="black", markersize=12)
        ax.set(xlabel=DELTAS[delta], ylabel="accuracy, %",
               title=f"{part} classes\nwithin cells {correlation(within(of))}, "
                     f"between {correlation(between(of))}")
    legend(figure, key_2(found, fill), 4)
    title(figure, ["A point is a run, a cell all runs that differ in their seeds alone. "
                   "Correlations within cells: of what is left without the cells' means, pooled; "
                   "between: of these means. Zero-shot CLIP is in neither.",
                   *remarks(found.values())], 110)
    return figure


def zero_shot(runs):
    """{dataset: cell} of zero-shot CLIP as the runs measured it beside themselves."""
    found = {}
    for run in runs:
        result = tables.read_json(run["folder"] / "result.json")
        found.setdefault(run["dataset"], {"values": {None: of_parts(result["zeroshot"])}})
    return found


def draw_runs(ax, points, cells, fill):
    for cell, pairs in points.items():
        variant = cells[cell]["run"]["row"][2]
        ax.plot(*zip(*pairs, strict=True), linestyle="none", marker=VARIANT_MARKERS[variant],
                color=LEARNER_COLOURS.get(cell.method, "#009E73"), fillstyle=fill[cell.tau],
                markersize=6, markeredgewidth=1.2, alpha=0.8, markerfacecoloralt="white")


def key_2(cells, fill):
    """Entries of Fig. 2's legend: only what is in it."""
    methods = {cell.method for cell in cells}
    variants = {cell["run"]["row"][2] for cell in cells.values()}
    words = {"off": "without NPT", "lc": r"$L_{LC}$ alone", "mi": r"$L_{MI}$ alone", "on": "NPT"}
    return [*(key_line(tables.LEARNERS.get(m, m), marker="o", markersize=7,
                       color=LEARNER_COLOURS.get(m, "#009E73")) for m in sorted(methods)),
            *(key_line(words[v], marker=marker, fillstyle="none", markersize=7)
              for v, marker in VARIANT_MARKERS.items() if v in variants),
            *(key_line(f"τ = {tau:g}", marker="o", fillstyle=style, markersize=7,
                       markerfacecoloralt="white") for tau, style in fill.items()),
            key_line("zero-shot CLIP", marker="*", color="0.6", markeredgecolor="black",
                     markersize=11)]


def figure_4(args):
    """Gains of NPT on base and on novel classes, for each dataset and tau."""
    runs = read_runs(args.runs)
    records = gains(runs)
    if not any(record["n"] for record in records.values()):
        raise ValueError("Figure 4: expected runs with and without NPT of one seed and setting")
    methods, datasets, taus = (list(dict.fromkeys(key[i] for key in records)) for i in range(3))
    taus = sorted(taus, reverse=True)
    bars = len(datasets) * len(taus)
    columns = 2 if bars <= 12 else 1                            # one below the other on a page
    width = max(3.6, 0.8 + 0.3 * bars)
    figure, axes = new_figure(len(methods) * 2 // columns, columns, (width, 2.6), sharey=True,
                              sharex=True)
    for (method, part), ax in zip(product(methods, PREFIX), axes.flat, strict=True):
        for (d, dataset), (t, tau) in product(enumerate(datasets), enumerate(taus)):
            place = d + (t + 0.5) * 0.8 / len(taus) - 0.4       # a dataset is 0.8 wide
            draw_gain(ax, place, 0.7 / len(taus), t, records.get((method, dataset, tau, part)))
        ax.axhline(0, color="black", linewidth=0.8)
        ax.margins(y=0.18)                                      # room for n
        ax.set_xticks(range(len(datasets)), datasets, rotation=30 * (len(datasets) > 3))
        ax.set(title=f"{tables.LEARNERS.get(method, method)}, {part} classes",
               ylabel="gain of NPT, points")
    legend(figure, key_4(taus), len(taus))
    marks = in_words(tables.join_marks(records.values(), ""))
    title(figure, ["Accuracy with NPT less that without, mean of n pairs of one seed (n below each "
                   "bar), with its 95 % interval by Student's t; one pair has no interval.",
                   *marks], int(14 * width * columns))
    return figure


def draw_gain(ax, place, width, t, record):
    """A bar with its interval, n at the bottom; t: the tau's place among all."""
    below = {"transform": ax.get_xaxis_transform(), "ha": "center", "va": "bottom", "fontsize": 8}
    if record is None or not record["n"]:
        ax.text(place, 0.02, "not run", rotation=90, **below)
        return
    ax.bar(place, record["mean"], width, **bar_style(t))
    if record["spread"] is not None:
        ax.errorbar(place, record["mean"], record["spread"], color="black", capsize=3, linewidth=1)
    ax.text(place, 0.02, f"{record['n']}", **below,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})


def bar_style(t):
    return {"hatch": HATCHES[t % len(HATCHES)], "edgecolor": "black",
            "facecolor": ("0.75", "#56B4E9", "#E69F00", "white")[t % 4]}


def key_4(taus):
    from matplotlib.patches import Patch
    return [Patch(label=f"τ = {tau:g}", **bar_style(t)) for t, tau in enumerate(taus)]


def figure_5(args):
    """The map of w_1 and w_2: mean harmonic mean, a panel for each learner, dataset and tau."""
    runs = read_runs(args.runs)
    maps = weight_maps(runs)
    if not maps:
        raise ValueError("Figure 5: expected runs with NPT and a harmonic mean, of several w_1, "
                         "w_2, as train.py --npt --w1 0.3 1 --w2 0 0.8 makes them")
    columns = min(3, len(maps))
    w1, w2 = (sorted({at[i] for found in maps.values() for at in found}) for i in range(2))
    size = max(3.6, 1.2 + 0.75 * len(w2)), max(2.6, 1.0 + 0.55 * len(w1))
    figure, axes = new_figure(math.ceil(len(maps) / columns), columns, size)
    values = [mean for found in maps.values() for mean, _ in found.values()]
    for ax in axes.flat[len(maps):]:
        ax.set_visible(False)
    for (key, found), ax in zip(maps.items(), axes.flat, strict=False):
        draw_map(ax, found, w1, w2, (min(values) - 1, max(values) + 1))
        method, dataset, tau = key
        ax.set(title=f"{tables.LEARNERS.get(method, method)}, {dataset}, τ = {tau:g}",
               xlabel="$w_2$ (of $L_{MI}$)", ylabel="$w_1$ (of $L_{LC}$)")
    title(figure, ["Harmonic mean of base and novel accuracy, %, mean over n seeds; cells of "
                   "another n average other seeds. (0, 0) is the run without NPT; dark is high.",
                   *remarks(cells(runs, cell_of).values())], int(17 * size[0] * columns))
    return figure


def draw_map(ax, found, w1, w2, limits):
    """Cells {(w_1, w_2): (mean, n)} as squares with their number; what was not run is hatched."""
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle
    scale = Normalize(*limits)
    for (i, a), (j, b) in product(enumerate(w1), enumerate(w2)):
        look = {"facecolor": "white", "hatch": "////", "edgecolor": "0.6"}
        words, ink = "not run", {"color": "black", "bbox": {"facecolor": "white", "pad": 1.5,
                                                            "edgecolor": "none"}}
        if (a, b) in found:
            mean, n = found[a, b]
            grey = 1 - 0.75 * scale(mean)
            look = {"facecolor": str(grey), "edgecolor": "white"}
            words, ink = f"{mean:.2f}\nn = {n}", {"color": "black" if grey > 0.5 else "white"}
        ax.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, **look))
        ax.text(j, i, words, ha="center", va="center", fontsize=8.5, **ink)
    ax.set(xlim=(-0.5, len(w2) - 0.5), ylim=(-0.5, len(w1) - 0.5))
    ax.set_xticks(range(len(w2)), [f"{w:g}" for w in w2])
    ax.set_yticks(range(len(w1)), [f"{w:g}" for w in w1])


def figure_history(args):
    """What train.py --history logged, over the steps, of one run or several."""
    found = histories(args.runs)
    figure, axes = new_figure(2, 4, (3.0, 2.5), sharex=True)
    looks = [{"color": COLOURS[i % 7], "linestyle": LINES[i % 4], "linewidth": 1.4}
             for i in range(7 * 4)]                     # all differ, neighbours in both
    if len(found) > len(looks):
        raise ValueError(f"history: at most {len(looks)} runs can be told apart, got {len(found)}: "
                         "give fewer RUNS")
    for (column, label), ax in zip(HISTORY.items(), axes.flat, strict=True):
        for columns, look in zip(found.values(), looks, strict=False):
            ax.plot(columns["step"], columns[column], **look)
        ax.set(title=label)
    for ax in axes[1]:
        ax.set(xlabel="training step")
    legend(figure, [key_line(name, **look) for name, look in zip(found, looks, strict=False)], 3)
    return figure


# The command line -----------------------------------------------------------------------------

FIGURES = {"1": figure_1, "2": figure_2, "4": figure_4, "5": figure_5, "history": figure_history}


def save(figure, path):
    """PNG, SVG or PDF by the ending, whole or not at all; the same figure gives the same bytes."""
    undated = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    ending, content = path.suffix.lower(), io.BytesIO()
    figure.savefig(content, format=ending[1:], dpi=130, bbox_inches="tight",
                   metadata=undated[ending])
    if ending == ".png":                                # 256 colours: a third of the bytes
        picture, content = Image.open(content).convert("RGB"), io.BytesIO()
        picture.quantize(256).save(content, "PNG", optimize=True)
    files.write(path, content.getvalue())


def parse(argv=None):
    p = files.Parser(description="The paper's figures from run folders.")
    p.add_argument("figure", choices=FIGURES, help="a figure of the paper, or how runs went")
    p.add_argument("runs", type=Path, nargs="+", help="folders that train.py made, or folders of "
                                                      "them")
    p.add_argument("--out", type=Path, required=True, metavar="FILE",
                   help=f"{', '.join(ENDINGS)} by its ending")
    p.add_argument("--classes", choices=["base", "novel", "all"],
                   help="of Figure 1 (novel, as in the paper, where there are such)")
    p.add_argument("--data-root", metavar="FOLDER",
                   help="of Figure 1: folder of the datasets (the one the runs had)")
    return p.parse_args(argv)


def check(args):
    """Refuse what can't become a file, and folders that are not there, before any work."""
    files.check_output("--out", args.out, ENDINGS)
    for folder in args.runs:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder; expected runs of train.py")
    if args.figure != "1" and (args.classes or args.data_root):
        raise ValueError("--classes and --data-root go with Figure 1")


def run(args):
    check(args)
    with style():
        save(FIGURES[args.figure](args), args.out)
    print(f"saved in {args.out}")


def main(argv=None):
    return files.exit_code(lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
