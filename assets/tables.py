"""The paper's Tables 1-4 from run folders: python evaluate.py --table 1|2|3|4 RUNS...

Means and standard deviations over seeds, the printed value beside ours, gains by NPT paired by
seed with their 95 % interval. The printed values are paper_tables.csv. What was not run says so.
"""
import csv
import io
import json
import math
import os
import statistics
from pathlib import Path

import torch

import evaluate
from assets import files

# -------------------------------------------------------------------- the paper's tables from runs

PRINTED = Path(__file__).with_name("paper_tables.csv")
TASK_OF = {1: "base-to-novel", 2: "cross-dataset", 4: "domain-generalization"}
SHOWN = {1: "harmonic mean of base and novel accuracy", 2: "accuracy of one source's prompts",
         3: "averages of Tables 1, 2 and 4", 4: "accuracy of one source's prompts"}
LEARNERS = {"zeroshot": "zero-shot CLIP", "coop": "CoOp", "cocoop": "CoCoOp", "maple": "MaPLe"}
VARIANTS = {"off": "", "lc": " + L_LC", "mi": " + L_MI", "on": " + NPT"}        # Table 3
# mean nothing to a run without NPT
NPT_ALONE = ("w1", "w2", "reduction", "ew", "eh", "balanced_mi")
TRAINING = ("classes", "shots", "shuffle_classes", "epochs", "batch_size", "lr", "n_ctx",
            "ctx_init", "prompt_depth", "precision", "images", "logit_adjust",
            *NPT_ALONE)
MARKS = {"s": "on a subset of the test images", "p": "private split, not the published one",
         "b": "not the paper's backbone, ViT-B/16", "o": "the source is not ImageNet",
         "m": "averages columns whose runs had different settings",
         "u": "nothing to pair or average: no seed in common, or runs of other settings",
         "a": "the printed average is not that of the printed columns"}
LEGEND = ("Means ± standard deviation over n seeds.\n"
          "Gains by NPT over none, paired by seed, ± half the width of their 95 % interval\n"
          "(Student's t); a single pair has no interval.")
COLUMNS = ("kind", "table", "tau", "row", "column", "mean", "spread", "n", "printed", "difference",
           "marks")
ROUNDED = ("mean", "spread", "printed", "difference")
RESULT = {"dataset": str, "method": str, "npt": bool, "tau": float, "seed": int, "draw_seed": int,
          "backbone": str, "w1": float, "w2": float, "official_split": bool, "zeroshot": dict}
TARGET = {"accuracy": float, "zeroshot": float, "official_split": bool}


def read_json(path):
    """A JSON object. ValueError, one line, for any other file; NaN and Infinity are no JSON."""
    def refuse(word):
        raise ValueError(f"{word} in it")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except FileNotFoundError:
        raise ValueError(f"no {path.name}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} can't be read: {' '.join(str(error).split())}") from error
    return checked(path.name, facts, {})


def checked(name, facts, kinds):
    """The same facts, each of its kind; numbers from 0 to 100 (weights: to any). Or ValueError."""
    if not isinstance(facts, dict):
        raise ValueError(f"{name} holds no JSON object")
    accuracies = [key for key in ("base", "novel", "harmonic_mean", "all")
                  if facts.get(key) is not None]
    for key, kind in (kinds | dict.fromkeys(accuracies, float)).items():
        value = facts.get(key)
        right = type(value) is kind
        if kind is float:
            highest = {"w1": math.inf, "w2": math.inf}.get(key, 100)
            right = type(value) in (int, float) and 0 <= value <= highest
        if not right:
            raise ValueError(f"{name}: {key} is {facts.get(key, 'missing')!r:.40}")
    return facts


def run_folders(folder, seen):
    """Folders of runs at and below one, in order: links are followed, none twice, no .part."""
    real = os.path.realpath(folder)
    if real in seen or folder.name.endswith(".part"):
        return []
    seen.add(real)
    made = any((folder / name).exists() for name in ("result.json", "run.json", "prompts.pt"))
    below = sorted(path for path in folder.glob("*") if path.is_dir())
    return [folder] * made + [run for path in below for run in run_folders(path, seen)]


def read_numbers(folder, result, task):
    """{column: (tuned %, zero-shot %, what is known of the images)}, the source first."""
    zeroshot = checked("result.json: zeroshot", result["zeroshot"], {})
    images = {"test_images": result.get("test_images"), "official_split": result["official_split"]}
    own = "harmonic_mean" if task == "base-to-novel" else "all"
    columns = {result["dataset"]: (result.get(own), zeroshot.get(own), images)}
    path = folder / "evaluation" / f"{task}.json"
    if task == "base-to-novel":
        return columns
    if not path.exists():                                   # a run for another table
        return {}
    found = checked(path.name, read_json(path), {"results": dict})
    for target, numbers in found["results"].items():
        checked(f"{path.name}: {target}", numbers, TARGET)
        images = {"test_images": found.get("test_images"),
                  "official_split": numbers["official_split"]}
        pair = numbers["accuracy"], numbers["zeroshot"]
        columns.setdefault(Path(target).name, (*pair, images))
    return columns


def read_run(folder, task):
    """What a run says of a task. ValueError, one line, where its files are missing or damaged."""
    result = read_json(folder / "result.json")
    if isinstance(result, dict) and result.get("tau", 1) is None:
        raise ValueError("its folder's own counts were kept, and tables have a tau: give it --tau")
    result = checked("result.json", result, RESULT)
    facts = result
    if (folder / "run.json").exists():                      # it holds every option
        facts = read_json(folder / "run.json") | result
    variant = ("off", "lc", "mi", "on")[(result["w1"] > 0) + 2 * (result["w2"] > 0)]
    unused = NPT_ALONE if variant == "off" else ()
    marks = "b" * (result["backbone"] != "ViT-B/16")
    marks += "o" * (task != "base-to-novel" and result["dataset"] != "imagenet")
    return {"folder": folder, "row": (float(result["tau"]), result["method"], variant),
            "seed": (result["seed"], result["draw_seed"]), "marks": marks,
            "dataset": result["dataset"], "backbone": result["backbone"],
            "setting": {name: facts.get(name) for name in TRAINING if name not in unused},
            "numbers": read_numbers(folder, result, task)}


def read_runs(folders, task):
    """-> the usable runs of a task, and a line for each folder that is skipped."""
    runs, skipped, seen = [], [], set()
    for top in map(Path, folders):
        known = os.path.realpath(top) in seen
        found = run_folders(top, seen)
        if not found and not known:
            skipped.append(f"{top}: no result.json in it")
        for folder in found:
            try:
                runs.append(read_run(folder, task))
            except ValueError as error:
                skipped.append(f"{folder}: {error}")
    return [run for run in runs if run["numbers"]], skipped


def differing(one, other):
    """Names of the settings in which two differ, with both values."""
    return ", ".join(f"{name} ({one.get(name)} and {other.get(name)})" for name in one | other
                     if one.get(name) != other.get(name))


def put(row, column, run, value, setting):
    """Add a run's number to its cell. ValueError where the cell's runs were made otherwise."""
    new = {"values": {}, "setting": setting, "run": run, "marks": run["marks"]}
    new["marks"] += "s" * (setting["test_images"] is not None)
    new["marks"] += "p" * (not setting["official_split"])
    cell = row.setdefault(column, new)
    twin = [key for key in cell["values"] if key[0] == run["seed"][0]]
    other = differing(cell["setting"], setting)
    if twin and (twin[0], cell["values"][twin[0]]) != (run["seed"], value):
        other = other or f"the draw or the numbers of seed {twin[0][0]}"
    if other:
        raise ValueError(f"{cell['run']['folder']} and {run['folder']} would stand in one cell, "
                         f"{column}, and differ in {other}: give RUNS of one setting only")
    cell["values"][run["seed"]] = value


def collect(runs):
    """Runs -> {(tau, method, variant): {column: cell}}; zero-shot CLIP's row has the tau None.

    A cell is {"values": {(seed, draw seed): %}, "setting", "marks"}.
    """
    rows = {}
    for run in sorted(runs, key=lambda run: run["row"][1] != "zeroshot"):
        for column, (tuned, plain, images) in run["numbers"].items():
            zeroshot, seed = rows.setdefault((None, "zeroshot", "off"), {}), (run["seed"][0], None)
            if plain is not None and seed not in zeroshot.get(column, {"values": ()})["values"]:
                put(zeroshot, column, run | {"seed": seed}, plain, images)      # any run has it
            if tuned is not None and run["row"][1] != "zeroshot":
                row = rows.setdefault(run["row"], {})
                put(row, column, run, tuned, run["setting"] | images)
    return rows


def join_marks(cells, more):
    return "".join(sorted({*more, *(mark for cell in cells for mark in cell["marks"])}))


def average(cells):
    """The cell that averages over columns, seed by seed, of the seeds that all of them have."""
    seeds = set.intersection(*(set(cell["values"]) for cell in cells))
    values = {seed: statistics.fmean(cell["values"][seed] for cell in cells)
              for seed in sorted(seeds, key=str)}
    setting = {name: [cell["setting"].get(name) for cell in cells] for name in cells[0]["setting"]}
    mixed = any(setting[name].count(setting[name][0]) < len(cells)
                for name in TRAINING if name in setting)
    marks = join_marks(cells, "m" * mixed + "u" * (not values))
    return {"values": values, "setting": setting, "marks": marks}


def of_tau(rows, tau, columns, paper):
    """-> rows {(method, variant): {column: cell}} of one tau with their averages; the columns
    averaged, which are those that all rows have, the paper's where there are such."""
    rows = {row[1:]: dict(cells) for row, cells in rows.items() if row[0] in (None, tau) and cells}
    common = [column for column in columns if all(column in row for row in rows.values())]
    common = [column for column in common if column in paper] or common
    for row in rows.values() if common else ():
        row["average"] = average([row[column] for column in common])
    return rows, common


def gain(tuned, plain):
    """The cell of differences with and without NPT, paired by seed; empty where not run alike."""
    alike = not differing(*({name: value for name, value in cell["setting"].items()
                             if name not in NPT_ALONE} for cell in (tuned, plain)))
    values = {seed: value - plain["values"][seed] for seed, value in tuned["values"].items()
              if alike and seed in plain["values"]}
    return {"values": values, "marks": join_marks([tuned, plain], "u" * (not values))}


def student_t(df, inside=0.95):
    """t with P(|T| < t) = inside for df degrees of freedom.

    With T = sqrt(df) tan(a) the density is that of the angle a, cos(a)^(df - 1) up to a factor.
    """
    a = torch.linspace(0, math.pi / 2, 100_001, dtype=torch.float64)
    area = torch.cumulative_trapezoid(a.cos() ** (df - 1), a)       # area[k] reaches to a[k + 1]
    k = torch.searchsorted(area, inside * area[-1]).item()
    part = (inside * area[-1] - area[k - 1]) / (area[k] - area[k - 1])
    return math.sqrt(df) * math.tan(a[k] + part * (a[k + 1] - a[k]))


def read_printed():
    """{(table, tau, method, variant): {column: %}} as the paper prints it."""
    printed = {}
    with open(PRINTED, encoding="utf-8", newline="") as file:
        for cell in csv.DictReader(file):
            row = int(cell["table"]), float(cell["tau"]), cell["method"], cell["npt"]
            printed.setdefault(row, {})[cell["column"]] = float(cell["value"])
    return printed


def record(kind, label, column, cell, printed):
    """One cell, of a row of means or of gains, as it is shown: its numbers or None."""
    values = list((cell or {"values": {}})["values"].values())
    mean, spread, difference = None, None, None
    if values:
        mean = statistics.fmean(values)
    if len(values) > 1:
        spread = statistics.stdev(values)
    if kind == "gain" and spread is not None:               # half the width of the 95 % interval
        spread *= student_t(len(values) - 1) / math.sqrt(len(values))
    if kind == "mean" and None not in (mean, printed) and not cell.get("elsewhere"):
        difference = mean - printed
    return {"kind": kind, "row": label, "column": column, "mean": mean, "spread": spread,
            "n": len(values), "printed": printed, "difference": difference,
            "marks": (cell or {"marks": ""})["marks"]}


def printed_row(printed, columns, common):
    """-> a printed row, its average taken anew where ours is over other columns; its mark."""
    if "average" not in printed:
        return printed, ""
    over = [printed.get(column) for column in common]
    again = None
    if over and None not in over:
        again = statistics.fmean(over)
    if set(common) != set(columns):
        return printed | {"average": again}, ""
    return printed, "a" * (abs(again - printed["average"]) > 0.0101)


def row_order(key):
    """Sorts (method, variant) as the paper does: all learners without NPT, then all with it."""
    method, variant = key
    return list(VARIANTS).index(variant), [*LEARNERS, method].index(method), method


def row_label(key):
    method, variant = key
    return LEARNERS.get(method, method) + VARIANTS[variant]


def tabulate(number, tau, rows, columns, paper, common, printed):
    """Records of one tau: a row of means for each learner, then the gains of NPT's variants."""
    keys = {*rows, *(row[2:] for row in printed if row[:2] == (number, tau))}
    beside, records = {}, []
    for key in sorted(keys, key=row_order):
        at = 1.0 if key[0] == "zeroshot" else tau           # it is printed once
        beside[key], mark = printed_row(printed.get((number, at, *key), {}), paper, common)
        for column in columns:
            records.append(record("mean", row_label(key), column, rows.get(key, {}).get(column),
                                  beside[key].get(column)))
        records[-1]["marks"] += mark                        # the average stands last
    for key in beside:
        plain = key[0], "off"
        for column in columns if key[1] != "off" and plain in beside else ():
            cells = [rows.get(k, {}).get(column) for k in (key, plain)]
            values = [beside[k].get(column) for k in (key, plain)]
            records.append(record("gain", row_label(key), column,
                                  gain(*cells) if None not in cells else None,
                                  values[0] - values[1] if None not in values else None))
    return [{"table": number, "tau": tau} | numbers for numbers in records]


def one_kind(runs, name):
    """ValueError where runs that would stand in one table differ in their backbone or source."""
    folders = {run[name]: run["folder"] for run in runs}
    if len(folders) > 1:
        raise ValueError(f"a table is of one {name}: " + ", ".join(
            f"{kind} in {folder}" for kind, folder in folders.items()) + "; give fewer RUNS")


def task_rows(number, folders, printed, keep):
    """Runs of one task -> rows of cells; the source, all other columns, the paper's; notes."""
    runs, notes = read_runs(folders, TASK_OF[number])
    runs = [run for run in runs if keep(run)]
    one_kind(runs, "backbone")
    paper = list(next(row for key, row in printed.items() if key[0] == number))[:-1]
    source = []
    if number != 1:
        one_kind(runs, "dataset")
        source, paper = [run["dataset"] for run in runs][:1], paper[1:]
    rows = collect(runs)
    found = {column for row in rows.values() for column in row} - set(source)
    others = sorted(found - set(paper))
    if others and not found & set(paper):                   # a table of the embedded world alone
        return rows, source, others, paper, [*notes, "not run: " + ", ".join(paper)]
    return rows, source, paper + others, paper, notes


def note_average(name, common, paper):
    """A line where an average is not over the columns that the paper averages."""
    if set(common) == set(paper):
        return []
    return [f"{name}: average over {', '.join(common) or 'nothing, no column is in all rows'}"]


def plain_table(number, folders, printed):
    """Records and notes of Table 1, 2 or 4."""
    rows, source, others, paper, notes = task_rows(number, folders, printed,
                                                   lambda run: run["row"][2] in ("off", "on"))
    if not any(rows.values()):
        wanted = {1: "trained on base classes, without NPT or with both its terms"}.get(
            number, f"with evaluation/{TASK_OF[number]}.json, which evaluate.py RUN --task makes")
        nothing(number, notes, f"expected runs {wanted}")
    records = []
    ran = {tau for tau, _, _ in rows} - {None} or {1.0}
    for tau in sorted(ran | {key[1] for key in printed if key[0] == number}, reverse=True):
        if tau not in ran:
            notes.append(f"not run: tau = {tau:g}")
            continue
        of, common = of_tau(rows, tau, others, paper)
        columns = [*source, *others, "average"]
        records += tabulate(number, tau, of, columns, paper, common, printed)
        notes += note_average(f"tau = {tau:g}", common, paper)
    return records, notes


def ablation(number, folders, printed):
    """Records and notes of Table 3: MaPLe at tau = 0.01, each task's average for each variant."""
    rows, notes = {}, []
    for table_of_task, task in TASK_OF.items():
        cells, _, others, paper, skipped = task_rows(
            table_of_task, folders, printed, lambda run: run["row"][:2] == (0.01, "maple"))
        cells.pop((None, "zeroshot", "off"), None)
        of, common = of_tau(cells, 0.01, others, paper)
        for key in of if common else ():        # printed over other columns: no difference
            elsewhere = {"elsewhere": set(common) != set(paper)}
            rows.setdefault(key, {})[task] = of[key]["average"] | elsewhere
        notes += skipped + (note_average(task, common, paper) if of else [])
    if not rows:
        nothing(number, notes, "expected runs of MaPLe at tau = 0.01")
    return tabulate(number, 0.01, rows, list(TASK_OF.values()), [], [], printed), notes


def nothing(number, notes, expected):
    """ValueError where a table would be empty, with the first reason why."""
    first = next((note for note in notes if not note.startswith("not run")), "no such run")
    raise ValueError(f"--table {number}: nothing to show: {first}; {expected}")


def words(number, sign=""):
    """A mean with its spread and marks, in words."""
    if number["n"] == 0:
        return f"- {number['marks']}" if "u" in number["marks"] else "not run"
    spread = f" ± {number['spread']:.2f}" if number["spread"] is not None else ""
    return f"{number['mean']:{sign}.2f}{spread} {number['marks']}".strip()


def layout(records):
    """Records -> rows of words as the paper lays them out, for each tau: its means, its gains."""
    for tau, kind in dict.fromkeys((r["tau"], r["kind"]) for r in records):
        inside = [r for r in records if (r["tau"], r["kind"]) == (tau, kind)]
        sign = {"mean": "", "gain": "+"}[kind]
        rows = [(f"tau = {tau:g}: {kind}", *dict.fromkeys(r["column"] for r in inside))]
        for label in dict.fromkeys(r["row"] for r in inside):
            row = [r for r in inside if r["row"] == label]
            counts = sorted({r["n"] for r in row if r["n"]})
            n = " to ".join(f"{k}" for k in dict.fromkeys(counts[:1] + counts[-1:])) or "0"
            rows.append((f"{label} (n = {n})", *(words(r, sign) for r in row)))
            for name, shown in (("printed", sign), ("difference", "+")):
                if any(r[name] is not None for r in row):
                    rows.append((f"  {name}", *("" if r[name] is None else f"{r[name]:{shown}.2f}"
                                                for r in row)))
        yield rows


def markdown(rows):
    """Rows of words -> a Markdown table."""
    lines = ["| " + " | ".join(word.replace("|", "\\|") for word in row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" + "|---:" * (len(rows[0]) - 1) + "|", *lines[1:]])


def render(number, records, notes, form):
    """Records and notes as text or Markdown in the paper's layout, or as CSV, a row a cell."""
    if form != "csv":
        draw = {"text": evaluate.table, "markdown": markdown}[form]
        tables = [draw(rows) for rows in layout(records)]
        ending = "\n".join(f"- {note}" for note in notes)
        title = f"Table {number}: {SHOWN[number]}, %.\n{LEGEND}"
        return "\n\n".join([title, *tables, ending]).rstrip() + "\n"
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for numbers in records:
        rounded = {name: f"{numbers[name]:.2f}" for name in ROUNDED if numbers[name] is not None}
        writer.writerow(numbers | rounded)
    writer.writerows({"kind": "note", "table": number, "marks": note} for note in notes)
    return text.getvalue()


def show_table(number, folders, form="text", out=None):
    """Table 1, 2, 3 or 4 of the paper from run folders, or folders of them, beside the printed one.

    form  "text", "markdown" or "csv"; to stdout, or to the file `out`

    Raises ValueError where no run can be used, and where runs that share a cell differ in more
    than their seeds.
    """
    make = ablation if number == 3 else plain_table
    records, notes = make(number, folders, read_printed())
    used = "".join(numbers["marks"] for numbers in records)
    legend = [f"{mark}: {words}" for mark, words in MARKS.items() if mark in used]
    text = render(number, records, legend + list(dict.fromkeys(notes)), form)
    if out is None:
        print(text, end="")
    else:
        files.write(out, text)
        print(f"saved in {out}")
