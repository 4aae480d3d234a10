"""The paper's question asked in the little world: many short runs of train.py, their table in the README.

    python assets/laboratory.py                 # everything; what laboratory.csv holds already is not run again
    python assets/laboratory.py --criteria      # only the three checks by which the world was chosen, without NPT

Experiments, each over SEEDS:
    main      six learners x tau 1, 0.05, 0.01, and zero-shot CLIP: Table 1
    ablation  L_LC alone, L_MI alone: Table 3
    sweep     w_1 and w_2 at tau = 0.01: Fig. 5
    rate      three learning rates for MaPLe without NPT and with it, weights for the mean and for the printed sum
    transfer  MaPLe with and without NPT, trained on all classes, on other label spaces and styles: Tables 2 and 4

Mean and sum are one family. With K classes and batches of B, the printed sums of Eqs. (5), (6) with w_1, w_2 are the
means with K (K - 1) w_1 and B w_2: here 132 x 0.3 = 39.6 and 4 x 0.8 = 3.2. The sweep therefore covers both readings.
"""
import argparse
import contextlib
import csv
import hashlib
import io
import math
import os
import re
import sys
import tempfile
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import torch
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
import clip_model  # noqa: E402
import evaluate  # noqa: E402
import train  # noqa: E402
from assets import world  # noqa: E402

CSV, CRITERIA, README = ROOT / "assets" / "laboratory.csv", ROOT / "assets" / "criteria.txt", ROOT / "README.md"
SEEDS, TAUS, RATES = range(1, 9), ("1", "0.05", "0.01"), ("0.0009", "0.0035", "0.014")
W1, W2 = ("0", "0.3", "1", "3", "10", "39.6"), ("0", "0.8", "3.2")
TARGETS = [name for name in world.DATASETS if name != "world"]
MEASURES = ["base", "novel", "harmonic_mean", "delta_lcd", "delta_mid", "lcd_rms"]
T975 = [math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145]


# -------------------------------------------------------------------------------------------------------------- the runs

def command(method, tau, seed, w1="0", w2="0", lr=None, classes=None):
    """Arguments of train.py for one run; equal settings give equal words, so no run is done twice."""
    words = ["--method", method, "--tau", tau, "--seed", str(seed)]
    words += ["--npt", "--w1", w1, "--w2", w2] if (w1, w2) != ("0", "0") else []
    words += ["--lr", lr] if lr and lr != "0.0035" else []          # 0.0035 is the default
    return tuple(words + (["--classes", classes] if classes else []))


def criteria_runs(seeds):
    return [("--method", "zeroshot")] + [command("maple", tau, s) for tau in ("1", "0.01") for s in seeds]


def all_runs(seeds):
    runs = criteria_runs(seeds)
    for s in seeds:
        runs += [command(m, tau, s, *w) for m in ("coop", "cocoop", "maple") for tau in TAUS
                 for w in (("0", "0"), ("0.3", "0.8"))]                                                 # main
        runs += [command("maple", tau, s, *w) for tau in TAUS for w in (("0.3", "0"), ("0", "0.8"))]    # ablation
        runs += [command("maple", "0.01", s, a, b) for a in W1 for b in W2]                             # sweep
        runs += [command("maple", tau, s, *w, lr) for tau in ("1", "0.01") for lr in RATES
                 for w in (("0", "0"), ("0.3", "0.8"), ("39.6", "3.2"))]                                # rate
        runs += [command("maple", "0.01", s, *w, classes="all") for w in (("0", "0"), ("0.3", "0.8"))]  # transfer
    return list(dict.fromkeys(runs))


def do_run(words):
    """One run of train.py in a folder that is thrown away -> {measure: number}; nothing is printed."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()), \
            contextlib.redirect_stderr(io.StringIO()):
        out = Path(folder) / "run"
        result = train.run(train.parse([*words, "--device", "cpu", "--out", str(out)]))
        numbers = {name: result[name] for name in MEASURES}
        if result["classes"] == "all":
            learner, settings = evaluate.load_run(out)
            found = evaluate.transfer(learner, settings, TARGETS, folder, out / "evaluation")
            numbers |= {target: found[target]["accuracy"] for target in TARGETS}
            numbers |= {"zeroshot " + target: found[target]["zeroshot"] for target in TARGETS}
            numbers["all"] = result["all"]
            numbers["zeroshot all"] = result["zeroshot"]["all"]
    return words, numbers


@lru_cache(maxsize=None)
def fingerprint():
    """Names the world that a row was measured in: the tiny CLIP's weights and the main dataset's pictures."""
    digest = hashlib.sha256(clip_model.sha256(clip_model.ASSETS / "tiny_clip.pt").encode())
    for picture in world.draw("world")[2].values():
        digest.update(picture.tobytes())
    return digest.hexdigest()[:12]


def read_results():
    """What laboratory.csv holds of this world -> {words: {measure: number}}."""
    if not CSV.exists():
        return {}
    with open(CSV, encoding="utf-8", newline="") as file:
        return {tuple(row["run"].split(" ")): {k: float(v) for k, v in row.items() if v and k not in ("world", "run")}
                for row in csv.DictReader(file) if row["world"] == fingerprint()}


def collect(runs, processes):
    """Results of all runs, from laboratory.csv where they stand there, else run now."""
    this_world, done = fingerprint(), read_results()
    missing = [words for words in runs if words not in done]
    columns = [*MEASURES, "all", "zeroshot all", *TARGETS, *("zeroshot " + t for t in TARGETS)]

    def save():
        evaluate.write_csv(CSV, [("world", "run", *columns), *(
            (this_world, " ".join(words), *(f"{numbers[c]:.6g}" if numbers.get(c) is not None else "" for c in columns))
            for words, numbers in done.items())])

    if missing:
        with get_context("spawn").Pool(processes) as pool:
            for i, (words, numbers) in enumerate(tqdm(pool.imap_unordered(do_run, missing), total=len(missing), unit="run")):
                done[words] = numbers
                if i % 10 == 0:
                    save()
        save()
    return read_results()           # not `done`: what is shown is what the file says, digit for digit


# ----------------------------------------------------------------------------------------------------------- the figures

def mean_sd(values):
    return torch.tensor(values, dtype=torch.float64).mean().item(), torch.tensor(values, dtype=torch.float64).std().item()


def spread(values, digits=1):
    """mean +- standard deviation over seeds."""
    mean, sd = mean_sd(values)
    return f"{mean:.{digits}f} ± {sd:.{digits}f}"


def difference(ours, baseline, digits=1):
    """Paired by seed: mean difference and the half width of its 95 % interval (Student's t)."""
    mean, sd = mean_sd([a - b for a, b in zip(ours, baseline)])
    half = T975[len(ours) - 1] * sd / math.sqrt(len(ours))
    return f"{mean:+.{digits}f} ± {half:.{digits}f}" + (" *" if abs(mean) > half else "")


def markdown(head, rows):
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in [head, ["---"] * len(head), *rows])


def correlation(x, y):
    return torch.corrcoef(torch.tensor([x, y], dtype=torch.float64))[0, 1].item()


def criteria(done, seeds):
    """The checks by which the world was chosen -> text. No run with NPT enters."""
    zero = done[("--method", "zeroshot")]
    base = {tau: [done[command("maple", tau, s)]["base"] for s in seeds] for tau in ("1", "0.01")}
    lift = [b - zero["base"] for b in base["1"]]
    fall = [a - b for a, b in zip(base["1"], base["0.01"])]
    rows = [("zero-shot between 40 and 75 % on base classes", f"{zero['base']:.1f}", 40 <= zero["base"] <= 75),
            ("zero-shot between 40 and 75 % on novel classes", f"{zero['novel']:.1f}", 40 <= zero["novel"] <= 75),
            ("MaPLe at tau = 1 lifts base accuracy by 10 points or more", spread(lift), mean_sd(lift)[0] >= 10),
            ("MaPLe's base accuracy falls from tau = 1 to 0.01 by 5 points or more", spread(fall), mean_sd(fall)[0] >= 5)]
    return f"world {fingerprint()}, {len(seeds)} seeds, no run with NPT\n" + "\n".join(
        f"{'met    ' if ok else 'NOT MET'}  {value:>12}  {what}" for what, value, ok in rows) + "\n"


def tables(done, seeds):
    """All tables of the README, as markdown."""
    def values(measure, *settings, **more):
        return [done[command(*settings[:2], s, *settings[2:], **more)][measure] for s in seeds]

    zero, names = done[("--method", "zeroshot")], {"coop": "CoOp", "cocoop": "CoCoOp", "maple": "MaPLe"}
    rows = [["-", "zero-shot", *(f"{zero[m]:.1f}" for m in MEASURES[:3]), *(f"{abs(zero[m]):.3f}" for m in MEASURES[3:]), ""]]
    for tau in TAUS:
        for method, name in names.items():
            for label, w in ((name, ("0", "0")), (name + "+NPT", ("0.3", "0.8"))):
                h = values("harmonic_mean", method, tau, *w)
                gain = difference(h, values("harmonic_mean", method, tau)) if w[0] != "0" else ""
                rows.append([tau, label, *(spread(values(m, method, tau, *w)) for m in MEASURES[:3]),
                             *(spread([abs(v) for v in values(m, method, tau, *w)], 3) for m in MEASURES[3:]), gain])
    out = [f"Main experiment, {len(seeds)} seeds, mean ± standard deviation. \"gain\": harmonic mean with NPT minus without, "
           "paired by seed, ± half of its 95 % interval; * marks an interval that leaves out 0.", "",
           markdown(["tau", "", "base", "novel", "H", "\\|Delta_LCD\\|", "\\|Delta_MID\\|", "LCD rms", "gain in H"], rows), ""]

    rows = []
    for tau in TAUS:
        for label, w in (("L_LC alone", ("0.3", "0")), ("L_MI alone", ("0", "0.8")), ("both (NPT)", ("0.3", "0.8")),
                         ("both, printed sums", ("39.6", "3.2"))):
            if label.endswith("sums") and tau == "0.05":
                continue
            rows.append([tau, label, *(difference(values(m, "maple", tau, *w), values(m, "maple", tau)) for m in MEASURES[:3]),
                         *(difference(values(m, "maple", tau, *w), values(m, "maple", tau), 3) for m in MEASURES[3:5])])
    out += ["Ablation on MaPLe: differences to MaPLe without NPT, ± half of the 95 % interval. The printed sums are the "
            "means with w_1 = 39.6 and w_2 = 3.2 here.", "",
            markdown(["tau", "", "base", "novel", "H", "Delta_LCD", "Delta_MID"], rows), ""]

    cell = lambda a, b: (f"{mean_sd(values('harmonic_mean', 'maple', '0.01', a, b))[0]:.1f} "
                         f"({mean_sd(values('delta_lcd', 'maple', '0.01', a, b))[0]:.2f})")
    out += ["Sweep of the weights, MaPLe at tau = 0.01: mean H (mean Delta_LCD). 0, 0 is MaPLe; 0.3, 0.8 is NPT with means; "
            "39.6, 3.2 is NPT with the printed sums.", "",
            markdown(["w_2 \\\\ w_1", *W1], [[b, *(cell(a, b) for a in W1)] for b in W2]), ""]

    rows = [[tau, label, *(spread(values("harmonic_mean", "maple", tau, *w, lr)) for lr in RATES)]
            for tau in ("1", "0.01") for label, w in (("MaPLe", ("0", "0")), ("+NPT, means", ("0.3", "0.8")),
                                                      ("+NPT, printed sums", ("39.6", "3.2")))]
    out += ["Harmonic mean by learning rate.", "", markdown(["tau", "", *("lr " + lr for lr in RATES)], rows), ""]

    plain = lambda m: values(m, "maple", "0.01", classes="all")
    ours = lambda m: values(m, "maple", "0.01", "0.3", "0.8", classes="all")
    rows = [[target, f"{mean_sd(plain('zeroshot ' + target))[0]:.1f}", spread(plain(target)), spread(ours(target)),
             difference(ours(target), plain(target))] for target in ["all", *TARGETS]]
    rows[0][0] = "world (source)"
    out += ["Transfer: trained on all 24 classes at tau = 0.01, tested on other label spaces and styles (accuracy).", "",
            markdown(["target", "zero-shot", "MaPLe", "MaPLe+NPT", "difference"], rows), ""]

    main = [done[command(m, tau, s, *w)] for m in names for tau in TAUS for s in seeds
            for w in (("0", "0"), ("0.3", "0.8"))]
    rows = [[label, *(f"{correlation([abs(r[d]) for r in main], [r[m] for r in main]):+.2f}" for m in MEASURES[:3])]
            for label, d in (("\\|Delta_LCD\\|", "delta_lcd"), ("LCD rms", "lcd_rms"), ("\\|Delta_MID\\|", "delta_mid"))]
    out += [f"Correlation over the {len(main)} trained runs of the main experiment; the paper's claim is a negative sign.", "",
            markdown(["", "base", "novel", "H"], rows), ""]
    return "\n".join(out)


def put_into_readme(text):
    """Replace what stands between the two laboratory markers of the README."""
    old = README.read_text(encoding="utf-8")
    new, found = re.subn(r"(<!-- laboratory -->\n).*(<!-- /laboratory -->)", lambda m: m[1] + text + m[2], old, flags=re.S)
    if not found:
        raise ValueError(f"{README.name} has no <!-- laboratory --> markers to write between")
    evaluate.write(README, new)


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--criteria", action="store_true", help="only the checks of the world, written to criteria.txt")
    p.add_argument("--seeds", type=int, default=len(SEEDS), help="from 2 to 15")
    p.add_argument("--processes", type=int, default=os.cpu_count())
    args = p.parse_args(argv)
    seeds = range(1, args.seeds + 1)
    try:
        if not 2 <= args.seeds <= 15:
            raise ValueError(f"--seeds must be from 2 to 15, got {args.seeds}")
        done = collect(criteria_runs(seeds) if args.criteria else all_runs(seeds), args.processes)
        text = criteria(done, seeds) if args.criteria else tables(done, seeds)
        if args.criteria:
            evaluate.write(CRITERIA, text)
        else:
            put_into_readme(text)
        print(text)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
