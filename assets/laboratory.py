"""The paper's question asked in the little world: grids of train.py, and laboratory.md.

    python assets/laboratory.py             # everything; runs that are finished are not run again
    python assets/laboratory.py --page      # no run: laboratory.md anew from laboratory.csv
    python assets/laboratory.py --criteria  # only the checks by which the world was chosen, no NPT

GRIDS is what is run, each a command of train.py over SEEDS; laboratory.csv keeps their numbers.

Mean and sum are one family. With K classes and batches of B, the printed sums of Eqs. (5), (6) with
w_1, w_2 are the means with K (K - 1) w_1 and B w_2: here 132 x 0.3 = 39.6 and 4 x 0.8 = 3.2. The
sweep therefore covers both readings.
"""
import contextlib
import csv
import hashlib
import io
import json
import math
import os
import subprocess
import sys
import tempfile
import textwrap
from functools import lru_cache
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import clip_model
import evaluate
import train
from assets import files, world

CSV, PAGE, CRITERIA = (Path(__file__).with_name(name) for name in (
    "laboratory.csv", "laboratory.md", "criteria.txt"))
SEEDS, TAUS, RATES = range(1, 9), ("1", "0.05", "0.01"), ("0.0009", "0.0035", "0.014")
LEARNERS = {"coop": "CoOp", "cocoop": "CoCoOp", "maple": "MaPLe"}
OTHER_RATES = [RATES[0], RATES[-1]]
RUNS = Path("runs") / "laboratory"
W1, W2 = ("0", "0.3", "1", "3", "10", "39.6"), ("0", "0.8", "3.2")      # of the sweep
PLAIN, MEANS, SUMS = ("0", "0"), ("0.3", "0.8"), ("39.6", "3.2")        # (w_1, w_2)
LC_ALONE, MI_ALONE = ("0.3", "0"), ("0", "0.8")
TARGETS = [name for name in world.DATASETS if name != "world"]
ACCURACIES, DELTAS = ["base", "novel", "harmonic_mean"], ["delta_lcd", "delta_mid", "lcd_rms"]
MEASURES = ACCURACIES + DELTAS
COLUMNS = [*MEASURES, "all", "zeroshot all", *TARGETS, *("zeroshot " + t for t in TARGETS)]
T975 = [math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201,
        2.179, 2.160, 2.145]            # Student's t, 97.5 %, by degrees of freedom


# --------------------------------------------------------------------------------------- the runs

MAPLE = ["--method", "maple"]
GRIDS = {                       # a folder of runs: words of train.py
    "zeroshot": ["--method", "zeroshot"],
    "criteria": [*MAPLE, "--tau", "1", "0.01"],
    "main": ["--method", *LEARNERS, "--npt", "off", "on", "--tau", *TAUS],                # Table 1
    "lc": [*MAPLE, "--npt", "--w1", "0.3", "--w2", "0", "--tau", *TAUS],                  # Table 3
    "mi": [*MAPLE, "--npt", "--w1", "0", "--w2", "0.8", "--tau", *TAUS],
    "sums": [*MAPLE, "--npt", "--w1", SUMS[0], "--w2", SUMS[1], "--tau", "1"],
    "sweep": [*MAPLE, "--npt", "--w1", *W1, "--w2", *W2, "--tau", "0.01"],                # Fig. 5
    "rate": [*MAPLE, "--npt", "off", "on", "--tau", "1", "0.01", "--lr", *OTHER_RATES],
    "rate-sums": [*MAPLE, "--npt", "--w1", SUMS[0], "--w2", SUMS[1], "--tau", "1", "0.01", "--lr",
                  *OTHER_RATES],
    "transfer": [*MAPLE, "--npt", "off", "on", "--tau", "0.01", "--classes", "all"],      # Table 2
}


def command(method, tau, seed, w1="0", w2="0", lr=None, classes=None):
    """What names a run in laboratory.csv: words of train.py that make it."""
    words = ["--method", method, "--tau", tau, "--seed", str(seed)]
    if (w1, w2) != PLAIN:
        words += ["--npt", "--w1", w1, "--w2", w2]
    if lr and lr != "0.0035":                                           # the default
        words += ["--lr", lr]
    if classes:
        words += ["--classes", classes]
    return tuple(words)


def words_of(result):
    """The same from a run's result.json."""
    if result["method"] == "zeroshot":
        return ("--method", "zeroshot")
    # CoOp's own rate is its default
    lr = f"{result['lr']:g}" if result["method"] == "maple" else None
    classes = "all" if result["classes"] == "all" else None
    numbers = (f"{result[name]:g}" for name in ("w1", "w2"))
    return command(result["method"], f"{result['tau']:g}", result["seed"], *numbers, lr, classes)


def criteria_runs(seeds):
    """The runs by which the world was chosen, none with NPT."""
    plain = [command("maple", tau, s) for tau in ("1", "0.01") for s in seeds]
    return [("--method", "zeroshot"), *plain]


def all_runs(seeds):
    """The runs of all grids, each once, as the CSV names them."""
    runs = []
    for name, words in GRIDS.items():
        for run in train.parse([*words, "--seed", *map(str, seeds)]):
            if name == "zeroshot":
                runs.append(("--method", "zeroshot"))
                continue
            w = (run.w1, run.w2) if run.npt else (0, 0)
            if run.npt and w == (None, None):
                w = (0.3, 0.8)
            lr = f"{run.lr:g}" if run.lr else None
            runs.append(command(run.method, f"{run.tau:g}", run.seed, *(f"{x:g}" for x in w), lr,
                                run.classes))
    return list(dict.fromkeys(runs))


def make_runs(names, seeds, processes):
    """Run these grids, each shared by several processes; what is finished is skipped."""
    script = str(Path(train.__file__))
    for name in names:
        if (RUNS / name / "result.json").is_file():
            continue                                    # zero-shot CLIP is one run, no grid
        one = name == "zeroshot"
        words = [sys.executable, script, *GRIDS[name], "--device", "cpu", "--out", str(RUNS / name),
                 "--seed", *map(str, seeds[:1] if one else seeds)]
        count = 1 if one else processes
        workers = [subprocess.Popen(words, env={
            **os.environ, "OMP_NUM_THREADS": "1", "RANK": str(rank), "WORLD_SIZE": str(count)})
            for rank in range(count)]
        codes = [worker.wait() for worker in workers]
        if any(codes):
            raise ValueError(f"the grid {name} has failing runs, named above; run it again")
    for folder in sorted((RUNS / "transfer").glob("*/result.json")):
        out = folder.parent / "evaluation"
        if not (out / "cross-dataset.json").is_file():
            words = [folder.parent, "--task", "cross-dataset", "--targets", *TARGETS]
            if evaluate.main([str(word) for word in words]):
                raise ValueError(f"{folder.parent} could not be evaluated on the targets")


def numbers_of(folder):
    """A run's folder -> {measure: number}, with those of the targets where it has them."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    numbers = {name: result[name] for name in MEASURES if result[name] is not None}
    targets = folder / "evaluation" / "cross-dataset.json"
    if targets.is_file():
        found = json.loads(targets.read_text(encoding="utf-8"))["results"]
        numbers |= {target: found[target]["accuracy"] for target in TARGETS}
        numbers |= {"zeroshot " + target: found[target]["zeroshot"] for target in TARGETS}
        numbers |= {"all": result["all"], "zeroshot all": result["zeroshot"]["all"]}
    return words_of(result), numbers


def do_run(words):
    """One run of train.py in a folder that is thrown away -> words, {measure: number}; silent."""
    torch.set_num_threads(1)
    silence = io.StringIO()
    with (tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(silence),
          contextlib.redirect_stderr(silence)):
        args, = train.parse([*words, "--device", "cpu", "--out", str(Path(folder) / "run")])
        train.run(args)
        return words, numbers_of(args.out)[1]


@lru_cache(maxsize=None)
def fingerprint():
    """The world that a row was measured in: the tiny CLIP's weights and the dataset's pictures."""
    weights = clip_model.sha256(clip_model.ASSETS / "tiny_clip.pt")
    digest = hashlib.sha256(weights.encode())
    for picture in world.draw("world")[2].values():
        digest.update(picture.tobytes())
    return digest.hexdigest()[:12]


def read_results():
    """What laboratory.csv holds of this world -> {words: {measure: number}}."""
    if not CSV.exists():
        return {}
    done = {}
    with open(CSV, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != ["world", "run", *COLUMNS]:
            raise ValueError(f"{CSV}: expected the columns world, run, {', '.join(COLUMNS)}")
        for row in reader:
            if row.pop("world") == fingerprint():
                words = tuple(row.pop("run").split(" "))
                done[words] = {name: float(value) for name, value in row.items() if value}
    return done


def save_results(done):
    """All of laboratory.csv anew, six digits a number."""
    rows = [("world", "run", *COLUMNS)]
    for words, numbers in done.items():
        cells = ["" if numbers.get(c) is None else f"{numbers[c]:.6g}" for c in COLUMNS]
        rows.append((fingerprint(), " ".join(words), *cells))
    files.write_csv(CSV, rows)


def collect(names, runs, seeds, processes):
    """Results of all runs of some grids, from laboratory.csv where they stand there."""
    done = read_results()
    if set(runs) <= set(done):
        return done
    make_runs(names, seeds, processes)
    for path in sorted(RUNS.glob("**/result.json")):
        words, numbers = numbers_of(path.parent)
        done[words] = done.get(words, {}) | numbers
    save_results({words: done[words] for words in all_runs(seeds) if words in done})
    return read_results()           # not `done`: what is shown is what the file says


# ------------------------------------------------------------------------------------ the figures

def mean_sd(values):
    values = torch.tensor(values, dtype=torch.float64)
    return values.mean().item(), values.std().item()


def spread(values, digits=1):
    """mean +- standard deviation over seeds."""
    mean, sd = mean_sd(values)
    return f"{mean:.{digits}f} ± {sd:.{digits}f}"


def interval(ours, baseline):
    """Paired by seed: mean difference and half the width of its 95 % interval (Student's t)."""
    mean, sd = mean_sd([a - b for a, b in zip(ours, baseline, strict=True)])
    return mean, T975[len(ours) - 1] * sd / math.sqrt(len(ours))


def difference(ours, baseline, digits=1, star=True):
    """The interval in words, with a * where it leaves out 0."""
    mean, half = interval(ours, baseline)
    words = f"{mean:+.{digits}f} ± {half:.{digits}f}"
    return words + " *" if star and abs(mean) > half else words


def correlation(x, y):
    return torch.corrcoef(torch.tensor([x, y], dtype=torch.float64))[0, 1].item()


def markdown(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def criteria(done, seeds):
    """The checks by which the world was chosen -> text. No run with NPT enters."""
    zero = done[("--method", "zeroshot")]
    balanced = [done[command("maple", "1", s)]["base"] for s in seeds]
    tailed = [done[command("maple", "0.01", s)]["base"] for s in seeds]
    lift = [b - zero["base"] for b in balanced]
    fall = [a - b for a, b in zip(balanced, tailed, strict=True)]
    rows = [("zero-shot between 40 and 75 % on base classes", f"{zero['base']:.1f}",
             40 <= zero["base"] <= 75),
            ("zero-shot between 40 and 75 % on novel classes", f"{zero['novel']:.1f}",
             40 <= zero["novel"] <= 75),
            ("MaPLe at tau = 1 lifts base accuracy by 10 points or more", spread(lift),
             mean_sd(lift)[0] >= 10),
            ("MaPLe's base accuracy falls from tau = 1 to 0.01 by 5 points or more", spread(fall),
             mean_sd(fall)[0] >= 5)]
    lines = [f"world {fingerprint()}, {len(seeds)} seeds, no run with NPT"]
    for what, value, met in rows:
        lines.append(f"{'met    ' if met else 'NOT MET'}  {value:>12}  {what}")
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------- the tables

class Results:
    """Numbers of all runs by what was asked for.

    done {words: {measure: number}}, seeds those that count
    """

    def __init__(self, done, seeds):
        self.done, self.seeds = done, seeds
        self.zeroshot = done[("--method", "zeroshot")]

    def values(self, measure, method, tau, weights=PLAIN, **more):
        """One number a seed."""
        return [self.done[command(method, tau, s, *weights, **more)][measure] for s in self.seeds]

    def sizes(self, measure, *which):
        return [abs(v) for v in self.values(measure, *which)]

    def mean(self, *which, **more):
        return mean_sd(self.values(*which, **more))[0]

    def gain(self, measure, method, tau, weights, digits=1, star=True, **more):
        """The difference that the weights make, in words."""
        return difference(self.values(measure, method, tau, weights, **more),
                          self.values(measure, method, tau, **more), digits, star)


def main_table(found):
    zero = found.zeroshot
    rows = [["-", "zero-shot", *(f"{zero[m]:.1f}" for m in ACCURACIES),
             *(f"{abs(zero[m]):.3f}" for m in DELTAS), ""]]
    for tau in TAUS:
        for method, name in LEARNERS.items():
            for label, weights in ((name, PLAIN), (name + "+NPT", MEANS)):
                which = method, tau, weights
                gain = found.gain("harmonic_mean", *which) if weights == MEANS else ""
                rows.append([tau, label, *(spread(found.values(m, *which)) for m in ACCURACIES),
                             *(spread(found.sizes(m, *which), 3) for m in DELTAS), gain])
    return markdown(["tau", "", "base", "novel", "H", "\\|Delta_LCD\\|", "\\|Delta_MID\\|",
                     "LCD rms", "gain in H"], rows)


def ablation_table(found):
    rows = []
    for tau in TAUS:
        for label, weights in (("L_LC alone", LC_ALONE), ("L_MI alone", MI_ALONE),
                               ("both (NPT)", MEANS), ("both, printed sums", SUMS)):
            if weights == SUMS and tau == "0.05":                       # not run
                continue
            which = "maple", tau, weights
            rows.append([tau, label, *(found.gain(m, *which) for m in ACCURACIES),
                         *(found.gain(m, *which, digits=3) for m in DELTAS[:2])])
    return markdown(["tau", "", "base", "novel", "H", "Delta_LCD", "Delta_MID"], rows)


def sweep_table(found):
    def cell(*weights):
        which = "maple", "0.01", weights
        h, lcd = found.mean("harmonic_mean", *which), found.mean("delta_lcd", *which)
        return f"{h:.1f} ({lcd:.2f})"

    rows = [[b, *(cell(a, b) for a in W1)] for b in W2]
    return markdown(["w_2 \\\\ w_1", *W1], rows)


def rate_table(found):
    rows = []
    for tau in ("1", "0.01"):
        for label, weights in (("MaPLe", PLAIN), ("+NPT, means", MEANS),
                               ("+NPT, printed sums", SUMS)):
            cells = [found.values("harmonic_mean", "maple", tau, weights, lr=lr) for lr in RATES]
            rows.append([tau, label, *map(spread, cells)])
    return markdown(["tau", "", *("lr " + lr for lr in RATES)], rows)


def transfer_table(found):
    which = "maple", "0.01"
    rows = []
    for target in ["all", *TARGETS]:
        rows.append([target, f"{found.mean('zeroshot ' + target, *which, classes='all'):.1f}",
                     spread(found.values(target, *which, classes="all")),
                     spread(found.values(target, *which, MEANS, classes="all")),
                     found.gain(target, *which, MEANS, classes="all")])
    rows[0][0] = "world (source)"
    return markdown(["target", "zero-shot", "MaPLe", "MaPLe+NPT", "difference"], rows)


def main_correlation(found, delta, measure):
    """Over all trained runs of the main experiment, in words."""
    x, y = [], []
    for method in LEARNERS:
        for tau in TAUS:
            for weights in (PLAIN, MEANS):
                x += found.sizes(delta, method, tau, weights)
                y += found.values(measure, method, tau, weights)
    return f"{correlation(x, y):+.2f}"


def correlation_table(found):
    rows = [[label, *(main_correlation(found, delta, m) for m in ACCURACIES)] for label, delta in (
        ("\\|Delta_LCD\\|", "delta_lcd"), ("LCD rms", "lcd_rms"), ("\\|Delta_MID\\|", "delta_mid"))]
    return markdown(["", "base", "novel", "H"], rows)


# --------------------------------------------------------------------------------------- the page

OPENING = """\
`world.py` draws coloured, patterned shapes; `train_tiny_clip.py` trained a tiny CLIP on captions of
them (contrastive loss alone, 22 minutes on one CPU core, log in `tiny_clip.log`). A quarter of the
colour-shape pairs never occur there, in picture or caption; the 12 novel classes of the dataset
`world` are such pairs, so they are novel to the tiny CLIP itself. Downstream pictures come in a
poster style that it never saw.

![Every class of the eight embedded datasets](world.png)

The world was chosen by four criteria, written down in `criteria.txt` and frozen in a commit before
any run with NPT was made in it: zero-shot accuracy between 40 and 75 % on base and novel classes, a
clear gain from MaPLe at tau = 1, a clear loss from tau = 1 to 0.01. `python assets/laboratory.py`
makes every run below and writes this page (a quarter of an hour on 2 idle cores; runs that are
finished are skipped; `--page` writes the page and makes no run).
"""
CLOSING = """\
A world of 12 base classes and 1.5 million parameters is no ViT-B/16: these are questions to put to
the real datasets, not answers about them.
"""


def imbalance_hurts(found):
    h = [found.mean("harmonic_mean", "maple", tau) for tau in ("1", "0.01")]
    base = [found.mean("base", "maple", tau) for tau in ("1", "0.01")]
    return f"""**A long-tailed training set costs accuracy**, as in the paper: MaPLe's harmonic
        mean is {h[0]:.1f} at
        tau = 1 and {h[1]:.1f} at 0.01, its base accuracy {base[0]:.1f} and {base[1]:.1f};
        zero-shot CLIP has {found.zeroshot["harmonic_mean"]:.1f}. The long-tailed set is also the
        smaller one and gets fewer steps: these runs do not tell the three apart."""


def not_away_from_the_etf(found):
    balanced, tailed = (mean_sd(found.sizes("delta_lcd", "maple", tau))[0] for tau in ("1", "0.01"))
    with_lcd = main_correlation(found, "delta_lcd", "harmonic_mean")
    with_mid = main_correlation(found, "delta_mid", "harmonic_mean")
    return f"""**It does not do so by moving texts away from the ETF.** \\|Delta_LCD\\| of MaPLe is
        {balanced:.2f} at tau = 1 and {tailed:.2f} at 0.01, and smallest for zero-shot CLIP; over
        all runs more of it goes with *higher* accuracy ({with_lcd} with H). A balanced set also
        means more steps, which raise both, so this is no cause either way; but the paper's Fig. 2
        has the other sign. For \\|Delta_MID\\| its sign holds ({with_mid})."""


def means_change_little(found):
    h, novel = ("harmonic_mean", "maple"), ("novel", "maple")
    gains = {}                                                  # {place: (mean, half interval)}
    for method, name in LEARNERS.items():
        for tau in TAUS:
            values = [found.values("harmonic_mean", method, tau, w) for w in (MEANS, PLAIN)]
            gains[f"{name}, tau = {tau}"] = interval(*values)
    low, high = min(gains, key=gains.get), max(gains, key=gains.get)
    with_zero = sum(abs(mean) <= half for mean, half in gains.values())
    elsewhere = [found.gain(target, "maple", "0.01", MEANS, classes="all")
                 for target in ["all", *TARGETS]]
    starred = [words.rstrip(" *") for words in elsewhere if words.endswith("*")]
    return f"""**NPT as we read it (means) moves H by a point or two.** Over three learners and
        three tau its gain in H lies between {gains[low][0]:+.1f} ({low}) and
        {gains[high][0]:+.1f} ({high}), and
        {with_zero} of {len(gains)} intervals include 0. MaPLe's novel classes gain
        {found.gain(*novel, "1", MEANS, star=False)} at tau = 1 and
        {found.gain(*novel, "0.05", MEANS, star=False)} at 0.05; the paper, too, finds novel classes
        to gain more. At tau = 0.01, where it reports the largest gain, ours is
        {found.gain(*h, "0.01", MEANS, star=False)} in H. On the other styles and label spaces
        {len(starred)} of {len(elsewhere)} intervals leave out 0
        ({", ".join(starred) or "none"})."""


def sums_collapse_texts(found):
    h, fast = ("harmonic_mean", "maple"), {"lr": RATES[-1]}
    lcd = [found.mean("delta_lcd", "maple", "1", weights) for weights in (PLAIN, SUMS)]
    quick = [found.mean(*h, tau, SUMS, **fast) for tau in ("1", "0.01")]
    plain = [found.mean(*h, tau) for tau in ("1", "0.01")]
    return f"""**The printed sums do what L_LC is meant to do.** Their weights take Delta_LCD of
        MaPLe from {lcd[0]:.2f} down by {lcd[0] - lcd[1]:.2f} at tau = 1; H moves by
        {found.gain(*h, "1", SUMS, star=False)} there and
        {found.gain(*h, "0.01", SUMS, star=False)} at 0.01. In the sweep Delta_LCD falls as w_1
        grows, without a sharp edge. At four times the paper's learning rate the sums reach
        {quick[0]:.1f} and {quick[1]:.1f}, MaPLe at the paper's rate {plain[0]:.1f} and
        {plain[1]:.1f}."""


def which_reduction(found):
    return """**Which reduction did the paper use?** In this world no weights in the range of either
        reading make NPT clearly better than MaPLe at tau = 0.01, so accuracy cannot tell them
        apart. Only weights in the sum's range visibly collapse the texts."""


FINDINGS = [imbalance_hurts, not_away_from_the_etf, means_change_little, sums_collapse_texts,
            which_reduction]


def wrapped(text, bullet=""):
    """A paragraph of at most 100 columns, its line breaks laid anew."""
    return textwrap.fill(" ".join(text.split()), 100, initial_indent=bullet,
                         subsequent_indent=" " * len(bullet), break_on_hyphens=False)


def page(done, seeds):
    """All of laboratory.md: words, findings with figures out of the same numbers, tables."""
    found = Results(done, seeds)
    return "\n\n".join([
        "# The laboratory: does NPT help in a little world?", OPENING.strip(),
        wrapped("""What this says, with the figures of the committed run. Intervals are 95 %, not
            corrected for there being many of them: of twenty true zeros about one would still get a
            star."""),
        "\n".join(wrapped(finding(found), "- ") for finding in FINDINGS), CLOSING.strip(),
        "## The main experiment", wrapped(f"""{len(seeds)} seeds, mean ± standard deviation. "gain":
            harmonic mean with NPT minus without, paired by seed, ± half of its 95 % interval; *
            marks an interval that leaves out 0."""), main_table(found),
        "## Ablation", wrapped("""On MaPLe: differences to MaPLe without NPT, ± half of the 95 %
            interval. The printed sums are the means with w_1 = 39.6 and w_2 = 3.2 here."""),
        ablation_table(found),
        "## Sweep of the weights", wrapped("""MaPLe at tau = 0.01: mean H (mean Delta_LCD). 0, 0 is
            MaPLe; 0.3, 0.8 is NPT with means; 39.6, 3.2 is NPT with the printed sums."""),
        sweep_table(found),
        "## Learning rate", "Harmonic mean by learning rate.", rate_table(found),
        "## Transfer", wrapped("""Trained on all 24 classes at tau = 0.01, tested on other label
            spaces and styles (accuracy)."""), transfer_table(found),
        "## Correlation", wrapped(f"""Over the {len(LEARNERS) * len(TAUS) * 2 * len(seeds)} trained
            runs of the main experiment; the paper's claim is a negative sign."""),
        correlation_table(found)]) + "\n"


def parse(argv=None):
    p = files.Parser(description=__doc__.splitlines()[0])
    only = p.add_mutually_exclusive_group()
    only.add_argument("--criteria", action="store_true",
                      help="only the checks of the world, written to criteria.txt")
    only.add_argument("--page", action="store_true",
                      help="make no run, only write laboratory.md from laboratory.csv")
    p.add_argument("--seeds", type=files.whole(2, 15), default=len(SEEDS), help="(%(default)s)")
    p.add_argument("--processes", type=files.whole(1), default=os.cpu_count(),
                   help="runs at a time (%(default)s)")
    return p.parse_args(argv)


def run(args):
    seeds = range(1, args.seeds + 1)
    if args.criteria:
        text = criteria(collect(["zeroshot", "criteria"], criteria_runs(seeds), seeds,
                                args.processes), seeds)
        files.write(CRITERIA, text)
        print(text, end="")
        return
    if args.page:
        done = read_results()
        missing = [words for words in all_runs(seeds) if words not in done]
        if missing:
            raise ValueError(f"{CSV.name} lacks {len(missing)} runs of this world, first "
                             f"{' '.join(missing[0])}: leave out --page to make them")
    else:
        done = collect([name for name in GRIDS if name != "criteria"], all_runs(seeds), seeds,
                       args.processes)
    files.write(PAGE, page(done, seeds))
    print(f"written: {PAGE}")


def main(argv=None):
    return files.exit_code(lambda: run(parse(argv)),
                          f"interrupted; finished runs are in {RUNS}: run it again for the others")


if __name__ == "__main__":
    sys.exit(main())
