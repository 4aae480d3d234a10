"""The paper's questions asked in the little world: its runs, their numbers, the page's tables.

    python assets/laboratory.py             # everything; runs that are finished are not run again
    python assets/laboratory.py --quick     # the main cells with few seeds, printed: for a class
    python assets/laboratory.py --page      # no run: laboratory.md's tables from laboratory.csv
    python assets/laboratory.py --criteria  # the checks of the tiny CLIP, and the pilot; no NPT

GRIDS is what is run; laboratory.csv keeps the numbers, a row a run. assets/laboratory_page.py has
the rows, the statistics and the tables. figure2.png is `python assets/figures.py 2
runs/laboratory/long-0.01 runs/laboratory/even-long`, figure1.png figures.py 1 of runs of seed 1.

Printed sums are means with other weights: K (K - 1) w_1 for Eq. (5), 132 x 0.3 = 39.6; for Eq. (6)
B w_2 over a batch and N w_2 over the training set, as it is printed, 4 x 0.8 = 3.2, 45 x 0.8 = 36.
"""
import contextlib
import io
import itertools
import json
import multiprocessing
import os
import sys
from pathlib import Path

import numpy  # torchvision depends on it
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))
import clip_model
import data
import evaluate
import losses
import prompts
import train
from assets import export, history, world
from assets import laboratory_page as page

PAGE, CRITERIA = (Path(__file__).with_name(name) for name in ("laboratory.md", "criteria.txt"))
RUNS = Path("runs") / "laboratory"

# The grids ---------------------------------------------------------------------------------------

# seeds of the main cells, as many as the pilot asks for (criteria.txt); of controls; of other
# learners, readings and transfer
MAIN, SEEDS, SOME = (range(1, most + 1) for most in (40, 12, 8))
QUICK_SEEDS = 2


def crossed(cell, **axes):
    """A cell with every combination of the axes' values."""
    return [{**cell, **dict(zip(axes, values, strict=True))}
            for values in itertools.product(*axes.values())]


BOTH = (False, True)            # without NPT and with it
NPT_LONG = {**page.LONG, **page.NPT}
GRIDS = {                       # a folder of runs: cells of laboratory_page.CELL, and their seeds
    "zeroshot": ([page.ZERO], [1]),
    "main": (crossed({}, npt=BOTH, tau=(1.0, 0.01)), MAIN),
    "own": (crossed(page.OWN, npt=BOTH, tau=(1.0, 0.01)), MAIN),
    "long-0.01": (crossed(page.LONG, npt=BOTH), MAIN),
    "even-long": ([page.EVEN_LONG], MAIN),
    "even-long-npt": ([{**page.EVEN_LONG, **page.NPT}], SEEDS),
    "even": (crossed(page.EVEN, npt=BOTH), SEEDS),
    "adjusted": (crossed(page.ADJUSTED, npt=BOTH), SEEDS),
    "balanced-mi": ([{**NPT_LONG, "balanced_mi": True}], SEEDS),
    "0.05": (crossed({"tau": 0.05}, npt=BOTH), SEEDS),
    "long-0.05": (crossed(page.LONG_005, npt=BOTH), SEEDS),
    "readings": (crossed(NPT_LONG, w1=[39.6], w2=page.W2[1:]), SOME),
    "readings-mi": (crossed(NPT_LONG, w1=[0.3], w2=page.W2[2:]), SOME),
    "cocoop": (crossed(page.COCOOP, npt=BOTH, tau=page.TAUS), SOME),
    "twice": (crossed({**page.LONG, **page.TWICE}, npt=BOTH), SOME),
    "even-twice": ([{**page.EVEN, **page.TWICE}], SOME),
    "transfer": (crossed({"classes": "all"}, npt=BOTH), SOME),
}
PILOTS = {                      # no NPT: how far H spreads, alone and between two losses
    "pilot": ([page.LONG], page.PILOT[:8]),
    "pilot-adjusted": ([page.ADJUSTED], page.PILOT[:8]),
    "pilot-twice": ([{**page.LONG, **page.TWICE}], page.PILOT[:8]),
    "pilot-balanced": ([page.BALANCED], page.PILOT[:8]),
    "rates": (crossed(page.BALANCED, epochs=page.EPOCHS_TRIED, lr=page.RATES_TRIED), page.PILOT),
}
# Written down before any of the runs of "rates".
CHOICE = """\
the tiny CLIP's own learning rate, criterion written down before its runs:
MaPLe without NPT, tau = 1, 5 epochs, rates 0.0002 0.0004 0.0009 0.0018 0.0035 0.007, seeds 101 to
120; a rate meets it if neither its mean base accuracy nor its mean novel accuracy is below
zero-shot CLIP's; of those that meet it the one of the highest mean H is taken, for MaPLe and
CoCoOp alike, as Sec. 5 has one for both; only where none meets it 10 epochs are tried, then 2;
where none does, the paper's 0.0035 stays
"""
MET = {True: "met    ", False: "NOT MET"}
WATCHED = ("long-0.01", "adjusted")                         # Remark 2 over training
QUICK = ("zeroshot", "main", "long-0.01", "even-long")


def planned(names, most=None):
    """[(grid, cell, seed)] of some grids; `most` seeds of each cell."""
    return [(name, cell, seed) for name in names for cells, seeds in [(GRIDS | PILOTS)[name]]
            for cell in cells for seed in list(seeds)[:most]]


def keys(names):
    """SETTINGS of all runs of some grids, each once."""
    return list(dict.fromkeys(page.key_of(cell, seed) for _, cell, seed in planned(names)))


# Runs --------------------------------------------------------------------------------------------

def folder_of(name, cell, seed):
    return RUNS / name / "-".join([*(f"{key}={page.setting(value)}" for key, value in cell.items()),
                                   f"seed={seed}"])


def start(name, cell, seed, folder):
    """Train and test one run into its folder. The one place that knows how a run is made.

    One thread: another number takes some sums in another order.
    """
    torch.set_num_threads(1)
    args, = train.parse(["--method", cell.get("method", "maple"), "--seed", str(seed),
                         "--device", "cpu", "--out", str(folder)])
    if cell != page.ZERO:
        vars(args).update(page.CELL | cell, shuffle_classes=True)
    args.quiet = True
    with contextlib.redirect_stdout(io.StringIO()):
        train.run(args, watch=history.watch if name in WATCHED else None)


def attempt(run):
    """start, in a process of its own -> what went wrong, None if nothing."""
    folder = folder_of(*run)
    try:
        start(*run, folder)
    except (ValueError, OSError) as error:
        return f"{folder}: {data.one_line(error)}"


def make_runs(runs, processes):
    """Make runs, several at a time -> {settings: numbers} of all; what is finished is skipped."""
    missing = [run for run in runs if not (folder_of(*run) / "result.json").is_file()]
    if missing:
        with multiprocessing.get_context("spawn").Pool(min(processes, len(missing))) as pool:
            said = list(tqdm(pool.imap(attempt, missing), desc="laboratory", unit="run",
                             total=len(missing)))
            pool.close()
            pool.join()
        failed = [words for words in said if words]
        if failed:
            raise ValueError(f"{len(failed)} of {len(said)} runs failed, first {failed[0]}; run it "
                             "again for those alone")
    for name, cell, seed in runs:
        if name == "transfer":
            folder = folder_of(name, cell, seed)
            words = [str(folder), "--task", "cross-dataset", "--targets", *page.TARGETS]
            measured = (folder / "evaluation" / "cross-dataset.json").is_file()
            if not measured and evaluate.main(words):
                raise ValueError(f"{folder} could not be evaluated on the targets")
    return dict(numbers_of(folder_of(*run)) for run in runs)


# A run's numbers ---------------------------------------------------------------------------------

def numbers_of(folder):
    """A run's folder -> the values of SETTINGS as words, {measure: number, bits: hex}."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    found = {name: result[name] for name in (*page.MEASURES, *page.BITS)
             if result.get(name) is not None}
    if result["method"] != "zeroshot" and "right" in result and "base" in found:
        found |= of_groups(folder, result)
    targets = folder / "evaluation" / "cross-dataset.json"
    if targets.is_file():
        found["zeroshot all"] = result["zeroshot"]["all"]
        for target, numbers in json.loads(targets.read_text(encoding="utf-8"))["results"].items():
            found |= {target: numbers["accuracy"], "zeroshot " + target: numbers["zeroshot"]}
    return tuple(page.setting(result[name]) for name in page.SETTINGS), found


def of_groups(folder, result):
    """What is said of many-, medium- and few-shot classes, see laboratory_page.groups."""
    K, inside = len(result["class_counts"]), page.groups(result["tau"], result["draw_seed"])
    right = page.unpacked(result["right"], K)                                    # (K, test images)
    found = {group: 100 * right[ks].mean() for group, ks in inside.items()}
    if result["method"] == "maple":
        learner, _ = evaluate.load_run(folder)
        with torch.no_grad():
            g = learner.text_features()
        found |= {"cos_all": mean_cosine(g), "cos_few": mean_cosine(g[inside["few"]])}
    if (folder / "history.csv").is_file():                      # Remark 2's weights over n_k
        rows, n = data.read_csv(folder / "history.csv"), result["class_counts"]
        for name in page.WEIGHTS:
            word, group, when = name.split("_")
            row = rows[0 if when == "first" else -1]
            found[name] = numpy.mean([float(row[f"{word}_{k}"]) / n[k] for k in inside[group]])
    return found


def mean_cosine(g):
    """Avg_{i != j} <g_i, g_j> of unit rows (K, d)."""
    S = (g @ g.T).double()
    return ((S.sum() - S.trace()) / (len(g) * (len(g) - 1))).item()


def collect(names, processes):
    """Results of all runs of some grids, from laboratory.csv where they stand there."""
    done = page.read_results()
    missing = [run for run in planned(names) if page.key_of(*run[1:]) not in done]
    if missing:
        page.save_results(done | make_runs(missing, processes))
    return page.read_results()          # not what was measured: what is shown is what the file says


# The checks of the tiny CLIP ---------------------------------------------------------------------

@torch.no_grad()
def geometry():
    """What zero-shot CLIP has in the world, by name: lambda, cosines, accuracies in per cent."""
    clip = clip_model.load("tiny")
    found = {"1/lambda": 1 / clip.temperature.item()}
    for target in world.DATASETS:
        dataset = data.load(target)
        base, novel = data.halves(len(dataset.classnames))
        parts = {"base": base, "novel": novel} if target == "world" else {target: base + novel}
        frozen = evaluate.FrozenFeatures(dataset)
        for part, labels in parts.items():
            plain = prompts.build("zeroshot", clip, [dataset.classnames[k] for k in labels])
            z, y, g = export.image_and_text_features(plain, dataset, labels, frozen)
            found[part] = 100 * ((z @ g.T).argmax(dim=1) == y).double().mean().item()
            found[f"chance {part}"] = 100 / len(labels)
            if part == "base":
                S, own = z @ g.T, (z * g[y]).sum(dim=1)
                others = (S.sum(dim=1) - own) / (len(g) - 1)
                z_k = torch.stack([z[y == k].mean(dim=0) for k in labels])
                found |= {"texts": mean_cosine(g), "own": own.mean().item(),
                          "others": others.mean().item(), "delta_lcd": losses.delta_lcd(g).item(),
                          "delta_star": best_shared_part(z_k)}
    return found


def gradient_share(learner):
    """How much of L_LC's pull on the learned tensors is about what all texts share, in [0, 1].

    Mean L_LC = Delta_LCD^2 + Var: the length of the first term's gradient over the sum of both.
    """
    learned = list(prompts.trainable(learner).values())
    lengths = []
    for part in losses.lc_parts(learner.text_features()):
        gradients = torch.autograd.grad(part, learned, retain_graph=True, allow_unused=True)
        lengths.append(torch.cat([d.flatten() for d in gradients if d is not None]).norm().item())
    return lengths[0] / sum(lengths)


def best_shared_part(z_k):
    """Delta* = K/(K-1) a^2 / (a^2 + b^2) of prototypes (K, d): what L_MI pulls Delta_LCD towards.

    Texts with ||gbar||^2 = s have a mean own cosine of at most sqrt(s) a + sqrt(1 - s) b, where a
    is the length of the prototypes' mean and b^2 their mean squared distance from it.
    """
    z_G = z_k.mean(dim=0)
    a2, b2 = z_G.square().sum(), (z_k - z_G).square().sum(dim=1).mean()
    return (len(z_k) / (len(z_k) - 1) * a2 / (a2 + b2)).item()


def criteria(found, lift):
    """The checks by which the tiny CLIP is accepted -> text. No run with NPT enters.

    found  what geometry() gives; lift: MaPLe's gain in base accuracy at tau = 1, one a seed
    """
    checks = [("1/lambda = 100", "1/lambda", 1, abs(found["1/lambda"] - 100) < .1),
              ("mean cosine of the base class texts at least 0.5", "texts", 2,
               found["texts"] >= .5),
              ("cosine of an image with its own text 0.2 to 0.4", "own", 2,
               .2 <= found["own"] <= .4),
              ("and above that with other texts", "others", 2, found["own"] > found["others"])]
    checks += [(f"zero-shot between 40 and 75 % on {part} classes", part, 1,
                40 <= found[part] <= 75) for part in ("base", "novel")]
    checks += [(f"zero-shot on {target} above three times chance and below 95 %", target, 1,
                3 * found[f"chance {target}"] < found[target] < 95) for target in page.TARGETS]
    lines = [f"world {page.fingerprint()}, no run with NPT",
             *(f"{MET[met]}  {found[name]:>11.{digits}f}  {what}"
               for what, name, digits, met in checks),
             f"{MET[numpy.mean(lift) >= 10]}  {page.spread(lift):>11}  MaPLe at tau = 1 lifts base "
             f"accuracy by 10 points or more ({len(lift)} seeds)"]
    return "\n".join(lines) + "\n"


# The command line --------------------------------------------------------------------------------

def parse(argv=None):
    p = data.Parser(description=__doc__.splitlines()[0])
    only = p.add_mutually_exclusive_group()
    only.add_argument("--criteria", action="store_true",
                      help="only the checks of the tiny CLIP and the pilot, to criteria.txt")
    only.add_argument("--page", action="store_true",
                      help="make no run, only the tables of laboratory.md from laboratory.csv")
    only.add_argument("--quick", action="store_true",
                      help=f"the main cells with {QUICK_SEEDS} seeds, printed and not kept")
    p.add_argument("--processes", type=data.whole(1), default=os.cpu_count(),
                   help="runs at a time (%(default)s)")
    return p.parse_args(argv)


def run(args):
    if args.criteria:
        text = criteria_text(geometry(), collect(PILOTS, args.processes))
        data.write(CRITERIA, text)
        print(text, end="")
    elif args.quick:
        done = make_runs(planned(QUICK, QUICK_SEEDS), args.processes)
        print(page.quick(page.Results(done)))
    else:
        done = page.read_results() if args.page else collect(GRIDS, args.processes)
        missing = [key for key in keys(GRIDS) if key not in done]
        if missing:
            raise ValueError(f"{page.CSV.name} lacks {len(missing)} runs of this world, first "
                             f"{' '.join(missing[0])}: leave out --page to make them")
        # the tables anew; the prose stays as it is
        data.write(PAGE, page.with_tables(PAGE.read_text(encoding="utf-8"), page.Results(done)))
        print(f"written: {PAGE}")


def criteria_text(found, done):
    """What criteria.txt says, of geometry() and the pilots' runs."""
    lift = [done[key]["base"] - found["base"] for key in keys(["pilot-balanced"])]
    pilots = page.Results(done, pilot=True)
    return criteria(found, lift) + page.pilot(pilots) + CHOICE + choice(found, pilots)


def choice(found, pilots):
    """What CHOICE chose: accuracies of each setting, mean and standard deviation over seeds."""
    lines, taken = [], None
    for epochs in page.EPOCHS_TRIED:
        means = {}
        for rate in page.RATES_TRIED:
            cell = {**page.BALANCED, "epochs": epochs, "lr": rate}
            base, novel, h = (pilots.values(m, cell) for m in page.ACCURACIES)
            if not base:                                            # not asked for
                continue
            met = numpy.mean(base) >= found["base"] and numpy.mean(novel) >= found["novel"]
            if met:
                means[rate] = numpy.mean(h)
            lines.append(f"{MET[met]}  {epochs:>2} epochs, {rate:<6g}  base "
                         f"{page.spread(base)}, novel {page.spread(novel)}, H {page.spread(h)}")
        if means and not taken:
            taken = f"{epochs} epochs, {max(means, key=means.get):g}"
    return "\n".join([*lines, f"taken: {taken or 'none'}"]) + "\n"


def main(argv=None):
    return data.run_script(lambda: run(parse(argv)),
                          f"interrupted; finished runs are in {RUNS}: run it again for the others")


if __name__ == "__main__":
    sys.exit(main())
