"""The paper's questions asked in the little world: its runs, their numbers, the page's tables.

    python assets/laboratory.py             # everything; runs that are finished are not run again
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
import data
import evaluate
import losses
import prompts
import train
from assets import geometry, history
from assets import laboratory_page as page

PAGE, CRITERIA = (Path(__file__).with_name(name) for name in ("laboratory.md", "criteria.txt"))
RUNS = Path("runs") / "laboratory"

# The grids ---------------------------------------------------------------------------------------

# seeds of the main cells, as many as the pilot asks for (criteria.txt); of controls; of other
# learners, readings and transfer
MAIN, SEEDS, SOME = (range(1, most + 1) for most in (40, 12, 8))


def crossed(cell, **axes):
    """A cell with every combination of the axes' values."""
    return [{**cell, **dict(zip(axes, values, strict=True))}
            for values in itertools.product(*axes.values())]


BOTH = (False, True)            # without NPT and with it
NPT_LONG = {**page.LONG, **page.NPT}
GRIDS = {                       # a folder of runs: cells of laboratory_page.CELL, and their seeds
    "zeroshot": ([page.ZERO], [1]),
    "main": (crossed({}, npt=BOTH, tau=(1.0, 0.01)), MAIN),
    "long-0.01": (crossed(page.LONG, npt=BOTH), MAIN),
    "even-long": ([page.EVEN_LONG], MAIN),
    "even": ([page.EVEN], SEEDS),
    "adjusted": ([page.ADJUSTED], SEEDS),
    "npt": ([cell | page.NPT for cell in (page.EVEN_LONG, page.EVEN, page.ADJUSTED,
                                          {**page.LONG, "balanced_mi": True})], SEEDS),
    "0.05": (crossed({"tau": 0.05}, npt=BOTH), SEEDS),
    "long-0.05": (crossed(page.LONG_005, npt=BOTH), SEEDS),
    "readings": (crossed(NPT_LONG, w1=[39.6], w2=[0.8, 3.2, 36.0]), SOME),
    "readings-mi": (crossed(NPT_LONG, w1=[0.3], w2=[3.2, 36.0]), SOME),
    "cocoop": (crossed(page.COCOOP, npt=BOTH, tau=page.TAUS), SOME),
    "twice": (crossed({**page.LONG, **page.TWICE}, npt=BOTH), SOME),
    "even-twice": ([{**page.EVEN, **page.TWICE}], SOME),
    "transfer": (crossed({"classes": "all"}, npt=BOTH), SOME),
}
# The same at the tiny CLIP's own setting: what the claims and the advice on rare classes stand on.
AT_OWN = ("main", "long-0.01", "even-long", "even", "adjusted", "0.05", "cocoop", "transfer")
GRIDS |= {f"own-{name}": ([page.at_own(cell) for cell in GRIDS[name][0]], GRIDS[name][1])
          for name in AT_OWN}
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
# Written down before any of the runs of "own-..." but those of "own-main".
AGAIN = """\
the laboratory at that setting, written down before its runs (main's four cells were there before):
hypotheses H1 to H6 and all other claims unchanged; the cells of main, long-0.01, even-long (seeds 1
to 40), even, adjusted, 0.05 (1 to 12), cocoop and transfer (1 to 8) with the rate 0.0009 and twice
their epochs: 480 steps on balanced images, 484 (long-0.01, even-long, adjusted) or 110 on 45, 150
on 62; intervals as before, of six at once for H1 to H6 at this setting too; a claim has moved where
its verdict's word changes
(afterwards: for time, even, adjusted and 0.05 were cut to 8 seeds before they began, and made 12
again, as planned, once the 8 were seen; no verdict's word differs between the two)
"""
MET = {True: "met    ", False: "NOT MET"}
WATCHED = ("long-0.01", "own-long-0.01")                # Remark 2 over training


def planned(names):
    """[(grid, cell, seed)] of some grids."""
    return [(name, cell, seed) for name in names for cells, seeds in [(GRIDS | PILOTS)[name]]
            for cell in cells for seed in seeds]


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
        train.run_alone(args, watch=history.watch if name in WATCHED else None)
        if args.classes == "all":
            evaluate.run(evaluate.parse([str(folder), "--task", "cross-dataset", "--device", "cpu",
                                         "--targets", *page.TARGETS]))


def finished(name, cell, seed):
    last = "evaluation/cross-dataset.json" if cell.get("classes") == "all" else "result.json"
    return (folder_of(name, cell, seed) / last).is_file()


def attempt(run):
    """start, in a process of its own -> what went wrong, None if nothing."""
    folder = folder_of(*run)
    try:
        start(*run, folder)
    except (ValueError, OSError) as error:
        return f"{folder}: {data.one_line(error)}"


def make_runs(runs, processes):
    """Make runs, several at a time -> {settings: numbers}; what is finished is skipped."""
    missing = [run for run in runs if not finished(*run)]
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
        measured = json.loads(targets.read_text(encoding="utf-8"))["results"]
        found |= {target: numbers["accuracy"] for target, numbers in measured.items()}
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
    """Avg_{i != j} <g_i, g_j> of unit rows (K, d): Definition 2 without mu."""
    return losses.delta_lcd(g).item() - 1 / (len(g) - 1)


def collect(names, processes):
    """Results of all runs of some grids, from laboratory.csv where they stand there."""
    done = page.read_results()
    missing = [run for run in planned(names) if page.key_of(*run[1:]) not in done]
    if missing:
        page.save_results(done | make_runs(missing, processes))
    return page.read_results()          # not what was measured: what is shown is what the file says


# The checks of the tiny CLIP ---------------------------------------------------------------------

def zero_shot_facts():
    """What zero-shot CLIP has in the world, by name: lambda, cosines, accuracies in per cent."""
    features = {part: geometry.little_world("world", part) for part in ("base", "novel")}
    features |= {target: geometry.little_world(target, "all") for target in page.TARGETS}
    found = {part: geometry.geometry(*parts) for part, parts in features.items()}
    z, y, g, lam = features["base"]
    z_k = torch.stack([z[y == k].mean(dim=0) for k in range(len(g))])
    return {"1/lambda": 1 / lam, "texts": mean_cosine(g), "delta_star": best_shared_part(z_k),
            "own": found["base"]["cosine, image and its own text"],
            "others": found["base"]["cosine, image and other texts"],
            **{part: numbers["accuracy, %"] for part, numbers in found.items()},
            **{f"chance {part}": 100 / numbers["classes"] for part, numbers in found.items()}}


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

    found  of zero_shot_facts; lift: MaPLe's gain in base accuracy at tau = 1, one a seed
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
    p.add_argument("--criteria", action="store_true",
                   help="only the checks of the tiny CLIP and the pilot, to criteria.txt")
    p.add_argument("--processes", type=data.whole(1), default=os.cpu_count(),
                   help="runs at a time (%(default)s)")
    return p.parse_args(argv)


def run(args):
    if args.criteria:
        text = criteria_text(zero_shot_facts(), collect(PILOTS, args.processes))
        data.write(CRITERIA, text)
        print(text, end="")
    else:
        found = page.Results(collect(GRIDS, args.processes))
        # the tables anew; the prose stays as it is
        data.write(PAGE, page.with_tables(PAGE.read_text(encoding="utf-8"), found))
        print(f"written: {PAGE}")


def criteria_text(found, done):
    """What criteria.txt says, of zero_shot_facts and the pilots' runs."""
    lift = [done[key]["base"] - found["base"] for key in keys(["pilot-balanced"])]
    pilots = page.Results(done, pilot=True)
    return criteria(found, lift) + page.pilot(pilots) + CHOICE + choice(found, pilots) + AGAIN


def choice(found, pilots):
    """What CHOICE chose: accuracies of each setting, mean and standard deviation over seeds."""
    lines, taken = [], None
    for epochs in page.EPOCHS_TRIED:
        means = {}
        for rate in page.RATES_TRIED:
            cell = {**page.BALANCED, "epochs": epochs, "lr": rate}
            base, novel, h = (pilots.values(m, cell) for m in page.ACCURACIES)
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
