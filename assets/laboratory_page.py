"""What laboratory.csv holds and what it says: rows, intervals, claims, the tables of laboratory.md.

A difference is paired by seed. Its interval has two parts: the spread of the paired differences
over seeds (draw, ranks of the classes, start, batches), and the noise of the test images, 50 a
class, which all seeds share. The prose of laboratory.md is written by hand; this module writes what
stands between its markers, and tests/test_laboratory.py recomputes every figure in the prose.
"""
import csv
import math
import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy

import clip_model
import data
import evaluate
import train
from assets import geometry, real_features, report, world

CSV = Path(__file__).with_name("laboratory.csv")
PILOT = range(101, 121)             # seeds of the pilot and of the choice of a rate, no grid's

# Rows of laboratory.csv --------------------------------------------------------------------------

SETTINGS = ("method", "npt", "w1", "w2", "balanced_mi", "logit_adjust", "tau", "images", "epochs",
            "lr", "classes", "seed")                        # what names a run
H = "harmonic_mean"
ACCURACIES = ("base", "novel", H)
RECALLS = ("many", "medium", "few")
LABEL_SPACES = ("world_shapes", "world_colours", "world_patterns")
STYLES = ("world_sketch", "world_noise", "world_blur", "world_rotated")
TARGETS = (*LABEL_SPACES, *STYLES)
WEIGHTS = [f"{word}_{group}_{when}" for group in ("many", "few") for when in ("first", "last")
           for word in ("cohesion", "repulsion")]           # of Remark 2, over n_k
MEASURES = (*ACCURACIES, "delta_lcd", "lc_unequal", "delta_mid", "novel_delta_lcd",
            "novel_delta_mid", *RECALLS, "cos_all", "cos_few", *WEIGHTS, "all", *TARGETS)
BITS = ("right", "novel_right")                             # a bit for each test image, in hex
COLUMNS = ("world", *SETTINGS, *MEASURES, *BITS)

# A cell is a run without its seed: what differs from CELL. Budgets: the paper's 5 epochs, as many
# steps as they are on balanced classes (240 of 4 images), and twice that.
CELL = {"method": "maple", "npt": False, "balanced_mi": False, "logit_adjust": False, "tau": 0.01,
        "images": None, "epochs": 5, "lr": 0.0035, "classes": "base"}
ZERO = {"method": "zeroshot", "tau": 1.0, "epochs": 0, "lr": 0.0}
NPT = {"npt": True}
TAUS = (1.0, 0.05, 0.01)
BALANCED = {"tau": 1.0}
EVEN = {"tau": 1.0, "images": 45}                           # as many images as at tau = 0.01
LONG, LONG_005 = {"tau": 0.01, "epochs": 22}, {"tau": 0.05, "epochs": 16}
EVEN_LONG = {**EVEN, "epochs": 22}
TWICE = {"epochs": 44}
OWN = train.TINY["maple"]                   # what criteria.txt took for the tiny CLIP, later
OWN_EPOCHS = OWN["epochs"] // CELL["epochs"]            # as many times the epochs of any cell
COCOOP = {"method": "cocoop"}
ADJUSTED = {**LONG, "logit_adjust": True}
NPT_LONG = {**LONG, **NPT}
SUM_LC, SUM_MI = {**NPT_LONG, "w1": 39.6}, {**NPT_LONG, "w2": 36.0}     # printed sums, as means
SUMS = {**SUM_LC, **SUM_MI}
EPOCHS_TRIED = (5, 10, 2)           # in this order
RATES_TRIED = (0.0002, 0.0004, 0.0009, 0.0018, 0.0035, 0.007)    # factors of two


def at_own(cell):
    """A cell at the tiny CLIP's own setting: its rate, and budgets that grow alike."""
    if cell == ZERO:
        return ZERO
    return {**cell, "epochs": OWN_EPOCHS * (CELL | cell)["epochs"], "lr": OWN["lr"]}


def setting(value):
    """A value as laboratory.csv has it."""
    return f"{value:g}" if type(value) in (int, float) else str(value)


def key_of(cell, seed):
    """A cell and a seed -> the values of SETTINGS as words. NPT has the paper's weights."""
    asked = CELL | cell
    w1, w2 = (0.3, 0.8) if asked["npt"] else (0.0, 0.0)
    asked = {"w1": w1, "w2": w2, "seed": seed} | asked
    return tuple(setting(asked[name]) for name in SETTINGS)


@lru_cache(maxsize=None)
def fingerprint():
    """The world that a row was measured in: the tiny CLIP's weights and the dataset's pictures, by
    mean and standard deviation, which another processor's rounding does not change."""
    weights = clip_model.file_sha256(clip_model.ASSETS / "tiny_clip.pt")
    pixels = numpy.stack([*map(numpy.asarray, world.draw("world")[2].values())])
    return f"{weights[:7]} {pixels.mean():.2f} {pixels.std():.2f}"


def read_results():
    """What laboratory.csv holds of this world -> {settings: {measure: number, bits: hex}}."""
    if not CSV.exists():
        return {}
    done = {}
    with open(CSV, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{CSV}: expected the columns {', '.join(COLUMNS)[:60]}, ...")
        for row in reader:
            if row["world"] == fingerprint():
                numbers = {name: float(row[name]) for name in MEASURES if row[name]}
                bits = {name: row[name] for name in BITS if row[name]}
                done[tuple(row[name] for name in SETTINGS)] = numbers | bits
    return done


def save_results(done):
    """All of laboratory.csv anew, six digits a number; of the pilot's seeds accuracies alone."""
    rows = [COLUMNS]
    for key, found in done.items():
        if int(key[-1]) in PILOT:
            found = {name: found[name] for name in ACCURACIES}
        numbers = ["" if name not in found else f"{found[name]:.6g}" for name in MEASURES]
        rows.append((fingerprint(), *key, *numbers, *(found.get(name, "") for name in BITS)))
    data.write_csv(CSV, rows)


def groups(tau, seed, K=12):
    """{"many", "medium", "few": the world's base classes}, of the long-tailed set of a seed.

    A balanced run has the groups of the long-tailed one of its seed, tau = 0.01: its twin.
    """
    n = data.class_counts(K, 16, tau if tau < 1 else 0.01, seed)
    return {group: [k for k in range(K) if report.group_of(n[k]) == group] for group in RECALLS}


def unpacked(bits, K):
    """Hexadecimal bits, the test images of K classes of equal size in order -> (K, images a class).

    The world has 50 a class; bits that fill the last byte are cut off.
    """
    flat = numpy.unpackbits(numpy.frombuffer(bytes.fromhex(bits), dtype=numpy.uint8))
    return flat[:len(flat) // (2 * K) * (2 * K)].reshape(K, -1).astype(float)


# Intervals ---------------------------------------------------------------------------------------

class Estimate(NamedTuple):
    """A mean difference or a correlation, its 95 % interval, and the number of seeds."""
    mean: float
    low: float
    high: float
    n: int

    @property
    def half(self):
        return (self.high - self.low) / 2

    @property
    def sign(self):
        """+1 or -1 where the interval leaves out 0, else 0."""
        return int(self.low > 0) - int(self.high < 0)

    def words(self, digits=1):
        """mean ± half, or mean [low, high] where the two sides differ."""
        if math.isclose(self.low + self.high, 2 * self.mean, abs_tol=1e-9):
            return f"{self.mean:+.{digits}f} ± {self.half:.{digits}f}"
        return f"{self.mean:+.{digits}f} [{self.low:+.{digits}f}, {self.high:+.{digits}f}]"

    def quoted(self, digits=1):
        """The same with its seeds: what stands beside another figure names its own."""
        return f"{self.words(digits)} ({self.n})"


def by_students_t(values, noise=0.0, comparisons=1):
    """Mean of one number a seed -> Estimate; noise: a variance of the mean that seeds share."""
    n, mean = len(values), float(numpy.mean(values))
    error = math.sqrt(numpy.var(values, ddof=1) / n + noise)
    half = evaluate.student_t(n - 1, 1 - 0.05 / comparisons) * error
    return Estimate(mean, mean - half, mean + half, n)


class Results:
    """Numbers of all runs by what was asked for; the pilot's seeds are its alone."""

    def __init__(self, done, pilot=False):
        self.cells = {}
        for (*cell, seed), found in done.items():
            if (int(seed) in PILOT) == pilot:
                self.cells.setdefault(tuple(cell), {})[int(seed)] = found | derived(found)

    def runs(self, cell):
        """{seed: numbers} of a cell."""
        return self.cells.get(key_of(cell, 0)[:-1], {})

    def values(self, measure, cell, seeds=None):
        """One number a seed, in the order of the seeds."""
        found = self.runs(cell)
        return [found[s][measure] for s in sorted(found) if seeds is None or s in seeds]

    def mean(self, measure, cell):
        return float(numpy.mean(self.values(measure, cell)))

    def common(self, *cells):
        """Seeds that all of these cells have; zero-shot CLIP has any."""
        return sorted(set.intersection(*(set(self.runs(c)) for c in cells if c != ZERO)))

    def paired(self, measure, *cells, comparisons=1, seeds=None):
        """A cell's numbers minus the next one's, paired by seed -> Estimate; test noise is in it.

        cells        one and another; four are the first difference minus the second, one is itself
        comparisons  the interval is Bonferroni's, 95 % for so many together
        seeds        only these
        """
        signs = (1, -1, -1, 1)[:len(cells)]
        seeds = [s for s in self.common(*cells) if seeds is None or s in seeds]
        difference, shift, noise = numpy.zeros(len(seeds)), 0.0, 0.0
        for sign, cell in zip(signs, cells, strict=True):
            runs = self.runs(cell)
            found = {seed: runs[1 if cell == ZERO else seed] for seed in seeds}
            difference += [sign * numbers[measure] for numbers in found.values()]
            if measure in SHARED:
                shift = shift + sign * numpy.array([shares(numbers, measure, cell, seed)
                                                    for seed, numbers in found.items()])
        if measure in SHARED:                           # had other images of the classes been met
            shift = shift.mean(axis=0)                                      # (classes, images)
            noise = shift.shape[1] * shift.var(axis=1, ddof=1).sum()
        return by_students_t(difference, noise, comparisons)


def derived(found):
    """What follows from a run's numbers.

    lead: novel less base accuracy.  lcd, mid: magnitudes.  cos_gap: few less all
    net_*: cohesion less repulsion.  label_spaces, styles: means over the targets of either kind
    """
    more = {}
    if "novel" in found:
        more["lead"] = found["novel"] - found["base"]
    if "cos_few" in found:
        more["cos_gap"] = found["cos_few"] - found["cos_all"]
    if "delta_lcd" in found:
        more |= {"lcd": abs(found["delta_lcd"]), "mid": abs(found["delta_mid"])}
    if WEIGHTS[0] in found:
        for name in ("many_first", "many_last", "few_first", "few_last"):
            more["net_" + name] = found["cohesion_" + name] - found["repulsion_" + name]
    if TARGETS[0] in found:
        for name, targets in (("label_spaces", LABEL_SPACES), ("styles", STYLES)):
            more[name] = sum(found[target] for target in targets) / len(targets)
    return more


# measured on the same test images by all seeds
SHARED = (*ACCURACIES, "lead", *RECALLS)


def shares(found, measure, cell, seed):
    """What each test image adds to a measure, (2 x 12, 50): base classes, then novel ones.

    H is not linear in the images: its shares are those of its derivative.
    """
    right = numpy.stack([unpacked(found[bits], 12) for bits in BITS])              # (2, 12, 50)
    b, n = found["base"], found["novel"]
    halves = {"base": (1, 0), "novel": (0, 1), "lead": (-1, 1),
              H: (2 * n * n / (b + n) ** 2, 2 * b * b / (b + n) ** 2)}
    weight = numpy.zeros((2, 12, 1))
    if measure in halves:
        weight += numpy.reshape(halves[measure], (2, 1, 1)) / 12
    else:
        inside = groups((CELL | cell)["tau"], seed)[measure]
        weight[0, inside] = 1 / len(inside)
    return (100 * weight * right / right.shape[2]).reshape(24, -1)


# five cells of 240 steps
MATCHED = (BALANCED, {**BALANCED, **NPT}, LONG, {**LONG, **NPT}, EVEN_LONG)


def correlation(found, delta, measure, cells=MATCHED, comparisons=1):
    """r of a magnitude with a measure within cells -> Estimate.

    Within: each cell's mean is taken off first. The interval is a bootstrap's, whole seeds drawn
    again across all cells.
    """
    seeds = found.common(*cells)
    x, y = (numpy.array([found.values(name, cell, seeds) for cell in cells])
            for name in (delta, measure))                               # (cells, seeds)
    drawn = numpy.random.default_rng(0).integers(len(seeds), size=(10_000, 1, len(seeds)))
    again = within(*(numpy.take_along_axis(v[None], drawn, axis=2) for v in (abs(x), y)))
    outside = 0.05 / comparisons / 2
    low, high = numpy.quantile(again, [outside, 1 - outside])
    return Estimate(within(abs(x), y), low, high, len(seeds))


def within(x, y):
    """r over all (..., cells, seeds) once the mean of each cell is taken off."""
    x, y = (v - v.mean(axis=-1, keepdims=True) for v in (x, y))
    xx, yy, xy = ((a * b).sum(axis=(-2, -1)) for a, b in ((x, x), (y, y), (x, y)))
    return xy / numpy.sqrt(xx * yy)


# How many seeds ----------------------------------------------------------------------------------

GOAL = 1.5                                          # points of H that the main cells should show


def pilot(found):
    """How many seeds show a difference of GOAL points of H in four of five cases, without NPT.

    A change of the loss is paired with none, as NPT will be: logit adjustment stands in for it.
    """
    h, adjusted, twice = (numpy.array(found.values(H, cell))
                          for cell in (LONG, ADJUSTED, {**LONG, **TWICE}))
    sd = (adjusted - h).std(ddof=1)
    needed = next(n for n in range(2, 10_000) if power_half(n) * sd <= GOAL)
    return (f"pilot, MaPLe at tau = 0.01, 22 epochs, {len(h)} seeds of its own: H "
            f"{h.mean():.1f} ± {h.std(ddof=1):.1f}\n"
            f"paired with logit adjustment the standard deviation is {sd:.2f}: "
            f"{needed} seeds show {GOAL} points in 80 % of cases\n"
            f"44 epochs instead of 22 change H by {by_students_t(twice - h).words()}\n")


def power_half(n):
    """The difference that n pairs of standard deviation 1 show in 80 % of cases, about."""
    return (evaluate.student_t(n - 1) + evaluate.student_t(n - 1, 0.6)) / math.sqrt(n)


# The paper's claims ------------------------------------------------------------------------------

HYPOTHESES = 6                              # written down before any run with NPT
VERDICTS = {1: "seen", 0: "not seen", -1: "other sign"}


def gain(measure, cell):
    """What NPT changes in a cell, as a row of CLAIMS has it."""
    return measure, {**cell, **NPT}, cell


# (place, claim, the paper's sign, digits, what shows it): a measure and the cells of
# Results.paired, or r, a magnitude and a measure. H1 to H6 are the hypotheses. Without a sign: no
# interval here; the last is what stands in place of estimates and of a verdict.
CLAIMS = [
    ("Table 1", "MaPLe, CoCoOp beat zero-shot CLIP in H, tau = 1", 1, 1,
     [(H, BALANCED, ZERO), (H, {**BALANCED, **COCOOP}, ZERO)]),
    ("Fig. 1a-b", "MaPLe lowers |Delta_LCD|, |Delta_MID|, tau = 1", -1, 3,
     [("lcd", BALANCED, ZERO), ("mid", BALANCED, ZERO)]),
    ("Table 1", "a long tail costs H, equal epochs", -1, 1, [(H, {}, BALANCED)]),
    ("Table 1", "at equal images, 55 (110) steps", -1, 1, [(H, {}, EVEN)]),
    ("Table 1", "H1: at equal images, 242 (484) steps", -1, 1, [(H, LONG, EVEN_LONG)]),
    ("Fig. 1c", "H2: it draws rare classes' texts together", 1, 3, [("cos_few", LONG, EVEN_LONG)]),
    ("Fig. 1c", "by more than all texts", 1, 3, [("cos_gap", LONG, EVEN_LONG)]),
    ("Fig. 2b", "it raises |Delta_LCD|, |Delta_MID|", 1, 3,
     [("lcd", LONG, EVEN_LONG), ("mid", LONG, EVEN_LONG)]),
    ("Fig. 2", "H3: a smaller |Delta_LCD| goes with a higher H", -1, 2, [("r", "delta_lcd", H)]),
    ("Fig. 2", "H4: so does a smaller |Delta_MID|", -1, 2, [("r", "delta_mid", H)]),
    ("Fig. 2", "the same on novel classes, both", -1, 2,
     [("r", "novel_delta_lcd", "novel"), ("r", "novel_delta_mid", "novel")]),
    ("Remark 1", "a smaller |Delta_LCD|: nearer to an ETF", 0, 0, ("no: Why 1", "by algebra")),
    ("Remark 2", "242 (484) steps: rare classes' repulsion outweighs cohesion", -1, 2,
     [("net_few_last", LONG)]),
    ("Fig. 2b", "NPT lowers |Delta_LCD|, |Delta_MID|, 55 (110) steps", -1, 3,
     [gain("lcd", {}), gain("mid", {})]),
    ("Table 1", "H5: it raises MaPLe's H", 1, 1, [gain(H, {})]),
    ("Table 1", "and at tau = 1, 0.05", 1, 1, [gain(H, BALANCED), gain(H, {"tau": 0.05})]),
    ("Table 1", "and CoCoOp's at 1, 0.05, 0.01", 1, 1,
     [gain(H, {**COCOOP, "tau": tau}) for tau in TAUS]),
    ("Sec. 5.1", "H6: by more than at tau = 1", 1, 1,
     [(H, NPT, {}, {**BALANCED, **NPT}, BALANCED)]),
    ("Fig. 4", "it raises novel accuracy, tau = 0.05, 0.01", 1, 1,
     [gain("novel", {"tau": 0.05}), gain("novel", {})]),
    ("Fig. 4", "by more than base accuracy", 1, 1, [gain("lead", {"tau": 0.05}), gain("lead", {})]),
    ("Table 2", "NPT helps on 3 other label spaces", 1, 1,
     [gain("label_spaces", {"classes": "all"})]),
    ("Table 4", "NPT helps in 4 other styles", 1, 1, [gain("styles", {"classes": "all"})]),
    ("Table 3", "each term helps alone; Fig. 5; Table 2, a long tail", 0, 0, ("", "not run")),
]


def shown_by(found, claim, what, at=dict, together=HYPOTHESES):
    """The estimate of one of a claim's figures; a hypothesis has Bonferroni's interval.

    at: a cell -> the cell to look at, such as at_own
    """
    comparisons = together if re.match(r"H\d:", claim) else 1
    if what[0] == "r":
        return correlation(found, *what[1:], [at(cell) for cell in MATCHED], comparisons)
    measure, *cells = what
    return found.paired(measure, *map(at, cells), comparisons=comparisons)


# Tables ------------------------------------------------------------------------------------------

def markdown(head, rows):
    """A table; | in a cell would end it and is written \\|."""
    first, *others = ("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |"
                      for line in (head, *rows))
    return "\n".join([first, "|---" * len(head) + "|", *others])


def spread(values, digits=1):
    """mean ± standard deviation over seeds."""
    return f"{numpy.mean(values):.{digits}f} ± {numpy.std(values, ddof=1):.{digits}f}"


def told(words):
    """Figures or verdicts of a row: one where all are the same."""
    return "; ".join(words if len(set(words)) > 1 else words[:1])


def verdict_of(found, row, at=dict):
    """A row of CLAIMS -> its figures and its verdict, as words."""
    _, claim, sign, digits, shown = row
    estimates = [shown_by(found, claim, what, at) for what in shown]
    figures = "; ".join(estimate.quoted(digits) for estimate in estimates)
    if len({estimate.n for estimate in estimates}) == 1:                # seeds once
        figures = figures.replace(f" ({estimates[0].n});", ";")
    return figures, told([VERDICTS[sign * estimate.sign] for estimate in estimates])


def claims_table(found):
    rows = []
    for row in CLAIMS:
        place, claim, sign, _, shown = row
        own = ("", "")
        if sign:
            shown, own = (verdict_of(found, row, at) for at in (dict, at_own))
            if own[1] != shown[1]:                                      # moved: in bold
                own = (own[0], f"**{own[1]}**")
        rows.append((place, claim, *shown, *own))
    return markdown(("paper", "claim", "frozen (seeds)", "", "own setting (seeds)", ""), rows)


def main_table(found):
    zero = found.runs(ZERO)[1]
    rows = [["zero-shot", "", *(f"{zero[measure]:.1f}" for measure in ACCURACIES), "", ""]]
    for words, at in (("frozen", dict), ("own", at_own)):
        for cell in (at({"tau": tau}) for tau in TAUS):
            rows.append([words, f"{cell['tau']:g}",
                         *(f"{found.mean(measure, cell):.1f}" for measure in ("base", "novel")),
                         *(spread(found.values(H, {**cell, "npt": npt})) for npt in (False, True)),
                         len(found.runs(cell))])
    return markdown(("", "tau", "base", "novel", "H", "with NPT, H", "seeds"), rows)


# A head, with {} for the number of seeds that its rows share; {row: (cell, what is taken off)};
# {column: (measure, digits, what is taken off in place of the row's)}, without digits its seeds
CONTROLS = ("MaPLe", {
    "45 images long-tailed minus 45 even, 55 steps": ({}, EVEN),
    "the same, 242 steps": (LONG, EVEN_LONG),
    "the same, 484 steps": ({**LONG, **TWICE}, {**EVEN, **TWICE}),
    "fewer images: 45 even minus 192 even, 240 steps": (EVEN_LONG, BALANCED),
    "fewer steps: 55 minus 242, 45 even": (EVEN, EVEN_LONG),
}, {"H": (H, 1, None), "recall of few": ("few", 1, None), "seeds": (H, None, None)})
REMEDIES = ("{} seeds", {
    "MaPLe": (LONG, LONG),
    "+ logit adjustment": (ADJUSTED, LONG),
    "+ NPT": (NPT_LONG, LONG),
    "+ NPT, L_MI a mean over classes": ({**NPT_LONG, "balanced_mi": True}, LONG),
    "+ NPT + logit adjustment": ({**ADJUSTED, **NPT}, LONG),
}, {"gain in H": (H, 1, None), "in recall of many": ("many", 1, None), "of few": ("few", 1, None),
    "H minus zero-shot": (H, 1, ZERO)})
READINGS = ("(w_1, w_2) as means, {} seeds", {
    "means (0.3, 0.8)": (NPT_LONG, LONG),
    "Eq. (5) as a sum (39.6, 0.8)": (SUM_LC, LONG),
    "Eq. (6) as a sum (0.3, 36)": (SUM_MI, LONG),
    "both, as printed (39.6, 36)": (SUMS, LONG),
}, {"H": (H, 1, None), "|Delta_LCD|": ("lcd", 3, None), "Var of cosines": ("lc_unequal", 3, None),
    "|Delta_MID|": ("mid", 3, None)})


def differences_table(found, head, rows, columns):
    seeds = found.common(*(cell for cell, _ in rows.values())) if "{}" in head else None
    lines = []
    for words, (cell, plain) in rows.items():
        line = [words]
        for measure, digits, other in columns.values():
            moved = found.paired(measure, cell, other or plain, seeds=seeds)
            shown = moved.words(digits) if digits else moved.n
            line.append("" if cell == (other or plain) else shown)
        lines.append(line)
    return markdown((head.format(len(seeds or ())), *columns), lines)


# Real features, from files of their own ----------------------------------------------------------

@lru_cache
def rows_of(path):
    return data.read_csv(path)


def real_change(model, measure, more, less):
    """The cells (tau, w_1, w_2) of `more` together minus those of `less`, paired by seed."""
    def values(cell):
        key = ("zero-shot" if cell == real_features.ZERO else model, *map(setting, cell))
        return numpy.array([float(row[measure]) for row in rows_of(real_features.CSV)
                            if (row["model"], row["tau"], row["w1"], row["w2"]) == key])

    return by_students_t(sum(map(values, more)) - sum(map(values, less)))


def outcome(estimate, low, high):
    """What became of a prediction that the interval lies between low and high."""
    if low < estimate.low and estimate.high < high:
        return "held"
    return "refuted" if estimate.high <= low or high <= estimate.low else "open"


def predictions_table(found):
    rows = []
    for words, parts in real_features.PREDICTIONS.items():
        changes, outcomes = [], []
        for model, measure, more, less, inside in parts:
            estimate = real_change(model, measure, more, less)
            changes.append(estimate.words({"delta_lcd": 3, "lc_unequal": 4}.get(measure, 1)))
            outcomes.append(outcome(estimate, *inside))
        rows.append((words, "; ".join(changes), told(outcomes)))
    return markdown(("predicted", "outcome", "verdict"), rows)


FIGURES = {"own cosine": "cosine, image and its own text",
           "others": "cosine, image and other texts", "Delta_LCD": "Delta_LCD, Def. 2",
           "Var": "mean L_LC: unequal angles", "L_CLIP": "L_CLIP",
           "0.3 L_LC": "0.3 L_LC, mean over pairs", "0.8 L_MI": "0.8 L_MI, mean over images"}


def geometry_table(found):
    rows = {row["what"]: row for row in rows_of(geometry.CSV)}
    return markdown(("zero-shot", *FIGURES), [
        (name, *(f"{float(rows[what][column]):.3f}" for what in FIGURES.values()))
        for name, column in (("ViT-B/32", "file"), ("little world", "world"))])


TABLES = {"claims": claims_table, "main": main_table, "geometry": geometry_table,
          "predictions": predictions_table,
          "controls": lambda found: differences_table(found, *CONTROLS),
          "remedies": lambda found: differences_table(found, *REMEDIES),
          "readings": lambda found: differences_table(found, *READINGS)}
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_tables(text, found):
    """A page with the table named by each pair of markers between them; the prose stays as it is.

    ValueError where a marker names no table, or a table has no marker.
    """
    names = [match[2] for match in MARKED.finditer(text)]
    if sorted(names) != sorted(TABLES):
        raise ValueError(f"laboratory.md: expected one pair of markers <!-- table: NAME --> ... "
                         f"<!-- end --> for each of {', '.join(TABLES)}, got {', '.join(names)}")
    return MARKED.sub(lambda match: f"{match[1]}\n{TABLES[match[2]](found)}\n\n{match[3]}", text)
