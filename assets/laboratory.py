"""The paper's questions asked in the little world: grids of train.py, their numbers, the page.

    python assets/laboratory.py             # everything; runs that are finished are not run again
    python assets/laboratory.py --quick     # the main cells with few seeds, printed: for a class
    python assets/laboratory.py --page      # no run: laboratory.md anew from laboratory.csv
    python assets/laboratory.py --criteria  # the checks of the tiny CLIP, and the pilot; no NPT

GRIDS is what is run, each a command of train.py over seeds; laboratory.csv keeps their numbers, a
row a run. assets/laboratory_page.py has the statistics, the hypotheses and the words.

Means and printed sums are one family. With K classes, batches of B and N training images, Eq. (5)'s
sum with w_1 is its mean with K (K - 1) w_1, and Eq. (6)'s sum with w_2 is its mean with B w_2 over
a batch and with N w_2 over the training set, as it is printed. Here 132 x 0.3 = 39.6, 4 x 0.8 = 3.2
and 45 x 0.8 = 36.
"""
import csv
import hashlib
import json
import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import numpy  # torchvision depends on it
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import clip_model
import data
import evaluate
import losses
import prompts
import train
from assets import features, files, measures, weight_files, world

CSV, PAGE, CRITERIA = (Path(__file__).with_name(name) for name in (
    "laboratory.csv", "laboratory.md", "criteria.txt"))
RUNS = Path("runs") / "laboratory"
# seeds of the main cells, as many as the pilot asks for (criteria.txt); of controls; of other
# learners, readings and transfer; of the sweep; of --quick
MAIN, SEEDS, SOME, FEW, QUICK_SEEDS = 40, 12, 8, 2, 2
PILOT = range(101, 109)                                     # seeds that no other grid has
TARGETS = [name for name in world.DATASETS if name != "world"]

# The grids ---------------------------------------------------------------------------------------

MAPLE, BOTH = ["--method", "maple"], ["--method", "cocoop", "maple"]
NPT, LONG_TAILED = ["--npt", "off", "on"], ["--shuffle-classes", "--tau"]
EVENLY = ["--shuffle-classes", "--images", "45"]            # as many images as at tau = 0.01
# Budgets: the paper's 5 epochs, as many steps as they are on balanced classes (240), and twice that
STEPS_240 = {"1": "5", "0.05": "16", "0.01": "22", "45 images": "22"}
TWICE = "44"
W1, W2 = ["0", "0.3", "3.4", "39.6"], ["0", "0.8", "3.2", "36"]     # of the sweep
RATES = ["0.0009", "0.0035", "0.014"]


def long(tau):
    return [*LONG_TAILED, tau, "--epochs", STEPS_240[tau]]


EVEN_LONG = [*EVENLY, "--epochs", STEPS_240["45 images"]]
GRIDS = {                       # a folder of runs: words of train.py, and how many seeds
    "zeroshot": (["--method", "zeroshot"], 1),
    "main": ([*MAPLE, *NPT, *LONG_TAILED, "1", "0.01"], MAIN),
    "long-0.01": ([*MAPLE, *NPT, *long("0.01"), "--history", "1"], MAIN),
    "even-long": ([*MAPLE, *EVEN_LONG], MAIN),
    "even-long-npt": ([*MAPLE, "--npt", *EVEN_LONG], SEEDS),
    "even": ([*MAPLE, *NPT, *EVENLY], SEEDS),
    "adjusted": ([*MAPLE, *NPT, *long("0.01"), "--logit-adjust", "--history", "1"], SEEDS),
    "balanced-mi": ([*MAPLE, "--npt", "--balanced-mi", *long("0.01")], SEEDS),
    "0.05": ([*MAPLE, *NPT, *LONG_TAILED, "0.05"], SEEDS),
    "long-0.05": ([*MAPLE, *NPT, *long("0.05")], SEEDS),
    "readings": ([*MAPLE, "--npt", *long("0.01"), "--w1", "39.6", "--w2", *W2[1:]], SOME),
    "readings-mi": ([*MAPLE, "--npt", *long("0.01"), "--w1", "0.3", "--w2", *W2[2:]], SOME),
    "cocoop": (["--method", "cocoop", *NPT, *LONG_TAILED, "1", "0.05", "0.01"], SOME),
    "twice": ([*MAPLE, *NPT, *LONG_TAILED, "0.01", "--epochs", TWICE], SOME),
    "even-twice": ([*MAPLE, *EVENLY, "--epochs", TWICE], SOME),
    "transfer": ([*MAPLE, *NPT, *LONG_TAILED, "0.01", "--classes", "all"], SOME),
    "sweep": ([*BOTH, "--npt", *LONG_TAILED, "0.01", "--w1", *W1, "--w2", *W2, "--lr", *RATES],
              FEW),
}
PILOTS = {                      # no NPT: how far H spreads, alone and between two losses
    "pilot": ([*MAPLE, *long("0.01")], PILOT),
    "pilot-adjusted": ([*MAPLE, *long("0.01"), "--logit-adjust"], PILOT),
    "pilot-twice": ([*MAPLE, *LONG_TAILED, "0.01", "--epochs", TWICE], PILOT),
    "pilot-balanced": ([*MAPLE, *LONG_TAILED, "1"], PILOT),
}
QUICK = ("zeroshot", "main", "long-0.01", "even-long")


def seeds_of(grid, most=None):
    count = (GRIDS | PILOTS)[grid][1]
    seeds = range(1, count + 1) if isinstance(count, int) else count
    return list(seeds)[:most]


def make_runs(names, most=None, processes=2):
    """Run these grids, each shared by several processes; what is finished is skipped."""
    script = str(Path(train.__file__))
    for name in names:
        if name == "zeroshot" and (RUNS / name / "result.json").is_file():
            continue                                    # one run, no grid
        words = [sys.executable, script, *(GRIDS | PILOTS)[name][0], "--device", "cpu", "--out",
                 str(RUNS / name), "--seed", *map(str, seeds_of(name, most))]
        count = 1 if name == "zeroshot" else processes
        workers = [subprocess.Popen(words, env={
            **os.environ, "OMP_NUM_THREADS": "1", "RANK": str(rank), "WORLD_SIZE": str(count)})
            for rank in range(count)]
        codes = [worker.wait() for worker in workers]
        if any(codes):
            raise ValueError(f"the grid {name} has failing runs, named above; run it again")


def make_transfers():
    """The transfer runs on all targets."""
    for folder in sorted((RUNS / "transfer").glob("*/result.json")):
        if not (folder.parent / "evaluation" / "cross-dataset.json").is_file():
            words = [folder.parent, "--task", "cross-dataset", "--targets", *TARGETS]
            if evaluate.main([str(word) for word in words]):
                raise ValueError(f"{folder.parent} could not be evaluated on the targets")


# A run's numbers ---------------------------------------------------------------------------------

# what names a run, as result.json has it
SETTINGS = ("method", "npt", "w1", "w2", "balanced_mi", "logit_adjust", "tau", "images", "epochs",
            "lr", "classes", "seed")
ACCURACIES = ("base", "novel", "harmonic_mean")
RECALLS = ("many", "medium", "few")
WEIGHTS = [f"{word}_{group}_{when}" for group in ("many", "few") for when in ("first", "last")
           for word in ("cohesion", "repulsion")]           # of Remark 2, over n_k
MEASURES = (*ACCURACIES, "delta_lcd", "lc_unequal", "delta_mid", "novel_delta_lcd",
            "novel_delta_mid", *RECALLS, "cos_all", "cos_few", *WEIGHTS, "all", "zeroshot all",
            *TARGETS, *("zeroshot " + target for target in TARGETS))
BITS = ("right", "novel_right")                             # a bit for each test image, in hex


def numbers_of(folder):
    """A run's folder -> the values of SETTINGS as words, {measure: number, bits: hex}."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    found = {name: result[name] for name in (*MEASURES, *BITS) if result.get(name) is not None}
    if result["method"] != "zeroshot" and "right" in result and "base" in found:
        found |= of_groups(folder, result)
    targets = folder / "evaluation" / "cross-dataset.json"
    if targets.is_file():
        found["zeroshot all"] = result["zeroshot"]["all"]
        for target, numbers in json.loads(targets.read_text(encoding="utf-8"))["results"].items():
            found |= {target: numbers["accuracy"], "zeroshot " + target: numbers["zeroshot"]}
    return tuple(setting(result[name]) for name in SETTINGS), found


def numbers_in(folder):
    """The same of all runs in a folder -> {settings: numbers}."""
    return dict(numbers_of(path.parent) for path in sorted(folder.glob("**/result.json")))


def setting(value):
    """A value as laboratory.csv has it."""
    return f"{value:g}" if type(value) in (int, float) else str(value)


def of_groups(folder, result):
    """What is said of many-, medium- and few-shot classes.

    A balanced run has the groups of the long-tailed one of its seed, tau = 0.01: its twin.
    """
    K, inside = len(result["class_counts"]), groups(result["tau"], result["draw_seed"])
    right = unpacked(result["right"], K)                                    # (K, test images)
    found = {group: 100 * right[ks].mean() for group, ks in inside.items()}
    if result["method"] == "maple":
        learner, _ = evaluate.load_run(folder)
        with torch.no_grad():
            g = learner.text_features()
        found |= {"cos_all": mean_cosine(g), "cos_few": mean_cosine(g[inside["few"]])}
    if (folder / "history.csv").is_file():
        found |= remark_2(folder, result["class_counts"], inside)
    return found


def groups(tau, seed, K=12):
    """{"many", "medium", "few": the world's base classes}, of the long-tailed set of a seed."""
    n = data.class_counts(K, 16, tau if tau < 1 else 0.01, seed)
    return {group: [k for k in range(K) if measures.group_of(n[k]) == group] for group in RECALLS}


def unpacked(bits, K):
    """Hexadecimal bits, the test images of K classes of equal size in order -> (K, images a class).

    The world has 50 a class; bits that fill the last byte are cut off.
    """
    flat = numpy.unpackbits(numpy.frombuffer(bytes.fromhex(bits), dtype=numpy.uint8))
    return flat[:len(flat) // (2 * K) * (2 * K)].reshape(K, -1).astype(float)


def mean_cosine(g):
    """Avg_{i != j} <g_i, g_j> of unit rows (K, d)."""
    S = (g @ g.T).double()
    return ((S.sum() - S.trace()) / (len(g) * (len(g) - 1))).item()


def remark_2(folder, n, inside):
    """WEIGHTS: the two weights over n_k, averaged within groups, after the first and last epoch."""
    with open(folder / "history.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {f"{word}_{group}_{when}": numpy.mean([float(row[f"{word}_{k}"]) / n[k]
                                                  for k in inside[group]])
            for group in ("many", "few") for when, row in (("first", rows[0]), ("last", rows[-1]))
            for word in ("cohesion", "repulsion")}


# laboratory.csv ----------------------------------------------------------------------------------

@lru_cache(maxsize=None)
def fingerprint():
    """The world that a row was measured in: the tiny CLIP's weights and the dataset's pictures."""
    weights = weight_files.sha256(clip_model.ASSETS / "tiny_clip.pt")
    digest = hashlib.sha256(weights.encode())
    for picture in world.draw("world")[2].values():
        digest.update(picture.tobytes())
    return digest.hexdigest()[:12]


def planned(names, most=None):
    """SETTINGS of all runs of some grids, each once."""
    found = {}
    dataset = data.load("world")
    for name in names:
        seeds = seeds_of(name, most)
        for args in train.parse([*(GRIDS | PILOTS)[name][0], "--seed", *map(str, seeds)]):
            train.settle(args, dataset)
            found[tuple(setting(getattr(args, key)) for key in SETTINGS)] = name
    return list(found)


def read_results():
    """What laboratory.csv holds of this world -> {settings: {measure: number, bits: hex}}."""
    if not CSV.exists():
        return {}
    done, columns = {}, ["world", *SETTINGS, *MEASURES, *BITS]
    with open(CSV, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != columns:
            raise ValueError(f"{CSV}: expected the columns {', '.join(columns)[:60]}, ...")
        for row in reader:
            if row["world"] == fingerprint():
                numbers = {name: float(row[name]) for name in MEASURES if row[name]}
                bits = {name: row[name] for name in BITS if row[name]}
                done[tuple(row[name] for name in SETTINGS)] = numbers | bits
    return done


def save_results(done):
    """All of laboratory.csv anew, six digits a number."""
    rows = [("world", *SETTINGS, *MEASURES, *BITS)]
    for key, found in done.items():
        numbers = ["" if name not in found else f"{found[name]:.6g}" for name in MEASURES]
        rows.append((fingerprint(), *key, *numbers, *(found.get(name, "") for name in BITS)))
    files.write_csv(CSV, rows)


def collect(names, processes):
    """Results of all runs of some grids, from laboratory.csv where they stand there."""
    done, wanted = read_results(), planned(names)
    if not set(wanted) <= set(done):
        make_runs(names, processes=processes)
        if "transfer" in names:
            make_transfers()
        for name in names:
            done |= numbers_in(RUNS / name)
        save_results({key: done[key] for key in planned([*GRIDS, *PILOTS]) if key in done})
    return read_results()           # not `done`: what is shown is what the file says


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
        frozen = features.FrozenFeatures(dataset)
        for part, labels in parts.items():
            plain = prompts.build("zeroshot", clip, [dataset.classnames[k] for k in labels])
            z, y, g = evaluate.image_and_text_features(plain, dataset, labels, frozen)
            found[part] = 100 * ((z @ g.T).argmax(dim=1) == y).double().mean().item()
            found[f"chance {part}"] = 100 / len(labels)
            if part == "base":
                S, own = z @ g.T, (z * g[y]).sum(dim=1)
                others = (S.sum(dim=1) - own) / (len(g) - 1)
                z_k = torch.stack([z[y == k].mean(dim=0) for k in labels])
                found |= {"texts": mean_cosine(g), "own": own.mean().item(),
                          "others": others.mean().item(), "delta_lcd": losses.delta_lcd(g).item(),
                          "delta_star": best_shared_part(z_k),
                          "own_best": z_k.norm(dim=1).mean().item()}
    return found


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
    rows = [("1/lambda = 100", f"{found['1/lambda']:.1f}", abs(found["1/lambda"] - 100) < .1),
            ("mean cosine of the base class texts at least 0.5", f"{found['texts']:.2f}",
             found["texts"] >= .5),
            ("cosine of an image with its own text 0.2 to 0.4", f"{found['own']:.2f}",
             .2 <= found["own"] <= .4),
            ("and above that with other texts", f"{found['others']:.2f}",
             found["own"] > found["others"])]
    rows += [(f"zero-shot between 40 and 75 % on {part} classes", f"{found[part]:.1f}",
              40 <= found[part] <= 75) for part in ("base", "novel")]
    rows += [(f"zero-shot on {target} above three times chance and below 95 %",
              f"{found[target]:.1f}", 3 * found[f"chance {target}"] < found[target] < 95)
             for target in TARGETS]
    mean, sd = numpy.mean(lift), numpy.std(lift, ddof=1)
    rows += [(f"MaPLe at tau = 1 lifts base accuracy by 10 points or more ({len(lift)} seeds)",
              f"{mean:.1f} ± {sd:.1f}", mean >= 10)]
    lines = [f"world {fingerprint()}, no run with NPT"]
    for what, value, met in rows:
        lines.append(f"{'met    ' if met else 'NOT MET'}  {value:>11}  {what}")
    return "\n".join(lines) + "\n"


# The command line --------------------------------------------------------------------------------

def parse(argv=None):
    p = files.Parser(description=__doc__.splitlines()[0])
    only = p.add_mutually_exclusive_group()
    only.add_argument("--criteria", action="store_true",
                      help="only the checks of the tiny CLIP and the pilot, to criteria.txt")
    only.add_argument("--page", action="store_true",
                      help="make no run, only write laboratory.md from laboratory.csv")
    only.add_argument("--quick", action="store_true",
                      help=f"the main cells with {QUICK_SEEDS} seeds, printed and not kept")
    p.add_argument("--processes", type=files.whole(1), default=os.cpu_count(),
                   help="runs at a time (%(default)s)")
    return p.parse_args(argv)


def run(args):
    from assets import laboratory_page as page
    if args.criteria:
        done = collect(PILOTS, args.processes)
        found = geometry()
        lift = [done[key]["base"] - found["base"] for key in planned(["pilot-balanced"])]
        text = criteria(found, lift) + page.pilot(page.Results(done, pilot=True))
        files.write(CRITERIA, text)
        print(text, end="")
        return
    if args.quick:
        make_runs(QUICK, QUICK_SEEDS, args.processes)
        done = {}
        for name in QUICK:
            done |= numbers_in(RUNS / name)
        print(page.quick(page.Results(done)))
        return
    done = read_results() if args.page else collect(list(GRIDS), args.processes)
    missing = [key for key in planned(GRIDS) if key not in done]
    if missing:
        raise ValueError(f"{CSV.name} lacks {len(missing)} runs of this world, first "
                         f"{' '.join(missing[0])}: leave out --page to make them")
    files.write(PAGE, page.page(page.Results(done)))
    print(f"written: {PAGE}")


def main(argv=None):
    return files.exit_code(lambda: run(parse(argv)),
                          f"interrupted; finished runs are in {RUNS}: run it again for the others")


if __name__ == "__main__":
    sys.exit(main())
