"""The paper's Tables 1-4 from run folders, or from folders of them, beside the printed ones.

    python assets/tables.py 1 runs/table1
    python assets/tables.py 3 runs/table3 runs/source3 --format markdown --out table3.md

Means and standard deviations over seeds, gains by NPT paired by seed with their 95 % interval. What
was not run says so, what can't be used is named. A row is (tau, method, variant of NPT); runs that
differ in their seeds alone share a cell; a record is a cell as it is shown.
"""
import csv
import io
import os
import statistics
import sys
from itertools import groupby
from operator import itemgetter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))      # when it runs as a script

import clip_model
import data
import evaluate
import train

PRINTED = Path(__file__).with_name("paper_tables.csv")
TASK_OF = {1: "base-to-novel", 2: "cross-dataset", 4: "domain-generalization"}
SHOWN = {1: "harmonic mean of base and novel accuracy", 2: "accuracy of one source's prompts",
         3: "averages of Tables 1, 2 and 4", 4: "accuracy of one source's prompts"}
EXPECTED = {1: "trained on base classes, without NPT or with both its terms",
            3: "of MaPLe at tau = 0.01"}
LEARNERS = {"zeroshot": "zero-shot CLIP", "coop": "CoOp", "cocoop": "CoCoOp", "maple": "MaPLe"}
VARIANTS = {"off": "", "lc": " + L_LC", "mi": " + L_MI", "on": " + NPT"}        # Table 3
NPT_ALONE = ("w1", "w2", "reduction", "balanced_mi")    # mean nothing to a run without NPT
GONE = ("ew", "eh")                 # options of NPT that older runs have; they are 1 in all others
TRAINING = ("classes", "shots", "shuffle_classes", "epochs", "batch_size", "lr", "n_ctx",
            "ctx_init", "prompt_depth", "class_specific", "activation", "precision", "images",
            "logit_adjust", *NPT_ALONE, *GONE)
MARKS = {"s": "on a subset of the test images", "p": "private split, not the published one",
         "b": "not the paper's backbone, ViT-B/16", "o": "the source is not ImageNet",
         "m": "averages columns whose runs had different settings",
         "u": "nothing to pair or average: no seed in common, or runs of other settings",
         "a": "the printed average is not that of the printed columns"}
LEGEND = ("Means ± standard deviation over n seeds.\n"
          "Gains by NPT over none, paired by seed, ± half the width of their 95 % interval\n"
          "(Student's t); a single pair has no interval.")
ACCURACIES = ("base", "novel", "harmonic_mean", "all")
RESULT = {"dataset": str, "method": str, "npt": bool, "tau": float, "seed": int, "draw_seed": int,
          "backbone": str, "w1": float, "w2": float, "official_split": bool, "zeroshot": dict}
TARGET = {"accuracy": float, "zeroshot": float, "official_split": bool}


def checked(name, facts, kinds):
    """The same facts, each of its kind; numbers from 0 to 100, weights above too. ValueError, one
    line, for any others and for what is no JSON object."""
    if not isinstance(facts, dict):
        raise ValueError(f"{name} holds no JSON object")
    accuracies = {key: float for key in ACCURACIES if facts.get(key) is not None}
    for key, kind in (kinds | accuracies).items():
        value, highest = facts.get(key), sys.float_info.max if key in ("w1", "w2") else 100
        right = type(value) is kind
        if kind is float:
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
    own = "harmonic_mean" if task == "base-to-novel" else "all"
    facts = {name: result.get(name) for name in ("test_images", "official_split")}
    columns = {result["dataset"]: (result.get(own), zeroshot.get(own), facts)}
    path = folder / "evaluation" / f"{task}.json"
    if task == "base-to-novel":
        return columns
    if not path.exists():                                   # a run for another table
        return {}
    found = checked(path.name, train.read_json(path), {"results": dict})
    for target, numbers in found["results"].items():
        checked(f"{path.name}: {target}", numbers, TARGET)
        facts = {"test_images": found.get("test_images")}
        facts["official_split"] = numbers["official_split"]
        columns.setdefault(Path(target).name, (numbers["accuracy"], numbers["zeroshot"], facts))
    return columns


def read_run(folder, task):
    """What a run says of a task. ValueError, one line, where its files are missing or damaged."""
    result = checked("result.json", train.read_json(folder / "result.json"), {})
    if result.get("tau", 1) is None:
        raise ValueError("no tau is known of it, which has its folder's own counts, or comes from "
                         "a checkpoint")
    result = checked("result.json", result, RESULT)
    facts = dict.fromkeys(GONE, 1.0) | result
    if (folder / "run.json").exists():                      # it holds every option
        facts |= checked("run.json", train.read_json(folder / "run.json"), {}) | result
    variant = ("off", "lc", "mi", "on")[(result["w1"] > 0) + 2 * (result["w2"] > 0)]
    unused = (*NPT_ALONE, *GONE) if variant == "off" else ()
    known = {row[0]: name for name, row in clip_model.MODELS.items()}   # wherever its file lies
    backbone = known.get(facts.get("weights_sha256"), result["backbone"])
    marks = "b" * (backbone != "ViT-B/16")
    marks += "o" * (task != "base-to-novel" and result["dataset"] != "imagenet")
    return {"folder": folder, "row": (float(result["tau"]), result["method"], variant),
            "seed": (result["seed"], result["draw_seed"]), "marks": marks,
            "dataset": result["dataset"], "backbone": backbone, "result": result,
            "setting": {name: facts.get(name) for name in TRAINING if name not in unused},
            "numbers": read_numbers(folder, result, task)}


def read_runs(folders, task):
    """-> the usable runs of a task, and a line for each folder that is skipped."""
    runs, skipped, seen = [], [], set()
    for top in map(Path, folders):
        if os.path.realpath(top) in seen:
            continue
        found = run_folders(top, seen)
        skipped += [] if found else [f"{top}: no result.json in it"]
        for folder in found:
            try:
                runs.append(read_run(folder, task))
            except ValueError as error:
                skipped.append(f"{folder}: {error}")
    return [run for run in runs if run["numbers"]], skipped


def one_kind(runs, name):
    """ValueError where runs that would stand in one table differ in their backbone or source."""
    folders = {run[name]: run["folder"] for run in runs}
    if len(folders) > 1:
        raise ValueError(f"a table is of one {name}: " + ", ".join(
            f"{kind} in {folder}" for kind, folder in folders.items()) + "; give fewer RUNS")


def differing(one, other, besides=()):
    """Names of the settings in which two differ, with both values."""
    return ", ".join(f"{name} ({one.get(name)} and {other.get(name)})" for name in one | other
                     if one.get(name) != other.get(name) and name not in besides)


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
    """Runs -> {(tau, method, variant): {column: cell}}; zero-shot CLIP's row has the tau None."""
    rows = {(None, "zeroshot", "off"): {}}
    zeroshot, = rows.values()
    for run in sorted(runs, key=lambda run: run["row"][1] != "zeroshot"):
        for column, (tuned, plain, images) in run["numbers"].items():
            seed = run["seed"][0], None
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
    values = {seed: statistics.fmean(cell["values"][seed] for cell in cells) for seed in seeds}
    setting = {name: [cell["setting"].get(name) for cell in cells] for name in cells[0]["setting"]}
    mixed = any(name in TRAINING and each != each[:1] * len(each) for name, each in setting.items())
    marks = join_marks(cells, "m" * mixed + "u" * (not values))
    return {"values": values, "setting": setting, "marks": marks}


def of_tau(rows, tau, columns, paper):
    """-> {(method, variant): {column: cell}} of one tau, with averages over the columns that all
    rows have, the paper's if any; these columns; a note where the paper has others, or ""."""
    rows = {row[1:]: dict(cells) for row, cells in rows.items() if row[0] in (None, tau) and cells}
    common = [column for column in columns if all(column in row for row in rows.values())]
    common = [column for column in common if column in paper] or common
    for row in rows.values() if common else ():
        row["average"] = average([row[column] for column in common])
    over = ", ".join(common) or "nothing, no column is in all rows"
    return rows, common, "" if set(common) == set(paper) else f": average over {over}"


def gain(tuned, plain):
    """The cell of differences with and without NPT, paired by seed; empty where not run alike."""
    other = differing(tuned["setting"], plain["setting"], besides=(*NPT_ALONE, *GONE))
    values = {seed: value - plain["values"][seed] for seed, value in tuned["values"].items()
              if not other and seed in plain["values"]}
    return {"values": values, "marks": join_marks([tuned, plain], "u" * (not values))}


def read_printed():
    """{(table, tau, method, variant): {column: %}} as the paper prints it."""
    printed = {}
    for cell in data.read_csv(PRINTED):
        row = int(cell["table"]), float(cell["tau"]), cell["method"], cell["npt"]
        printed.setdefault(row, {})[cell["column"]] = float(cell["value"])
    return printed


def record(kind, label, column, cell, printed):
    """A cell, or None, as shown; spread: of a gain half the width of its 95 % interval."""
    cell, mean, spread, difference = cell or {"values": {}, "marks": ""}, None, None, None
    values = list(cell["values"].values())
    if values:
        mean = statistics.fmean(values)
    if len(values) > 1:
        spread = evaluate.half_width(values) if kind == "gain" else statistics.stdev(values)
    if kind == "mean" and None not in (mean, printed) and not cell.get("elsewhere"):
        difference = mean - printed
    return {"kind": kind, "row": label, "column": column, "mean": mean, "spread": spread,
            "n": len(values), "printed": printed, "difference": difference, "marks": cell["marks"]}


def printed_row(printed, columns, common):
    """-> a printed row, its average taken anew where ours is over other columns; its mark."""
    if "average" not in printed:
        return printed, ""
    over = [printed.get(column) for column in common]
    again = statistics.fmean(over) if over and None not in over else None
    if set(common) != set(columns):
        return printed | {"average": again}, ""
    return printed, "a" * (abs(again - printed["average"]) > 0.0101)


def row_label(key):
    method, variant = key
    return LEARNERS.get(method, method) + VARIANTS[variant]


def tabulate(number, tau, rows, columns, paper, common, printed):
    """Records of one tau, as the paper: learners without NPT, then with it; and then the gains."""
    keys = {*rows, *(row[2:] for row in printed if row[:2] == (number, tau))}
    methods = [*LEARNERS, *sorted({method for method, _ in keys} - LEARNERS.keys())]
    keys = [(method, variant) for variant in VARIANTS for method in methods
            if (method, variant) in keys]
    beside, records = {}, []
    for key in keys:
        at = 1.0 if key[0] == "zeroshot" else tau           # it is printed once
        beside[key], mark = printed_row(printed.get((number, at, *key), {}), paper, common)
        records += [record("mean", row_label(key), column, rows.get(key, {}).get(column),
                           beside[key].get(column)) for column in columns]
        records[-1]["marks"] += mark                        # the average stands last
    for key, plain in ((key, (key[0], "off")) for key in keys):
        for column in columns if key != plain and plain in beside else ():
            cells = [rows.get(k, {}).get(column) for k in (key, plain)]
            values = [beside[k].get(column) for k in (key, plain)]
            records.append(record("gain", row_label(key), column,
                                  gain(*cells) if None not in cells else None,
                                  values[0] - values[1] if None not in values else None))
    return [{"kind": r["kind"], "table": number, "tau": tau} | r for r in records]


def task_rows(number, folders, printed, keep):
    """Runs of one task -> rows of cells; the source, all other columns, the paper's; notes."""
    runs, notes = read_runs(folders, TASK_OF[number])
    runs = [run for run in runs if keep(run["row"])]
    one_kind(runs, "backbone")
    paper, source = list(next(row for key, row in printed.items() if key[0] == number))[:-1], []
    if number != 1:
        one_kind(runs, "dataset")
        source, paper = [run["dataset"] for run in runs[:1]], paper[1:]
    rows = collect(runs)
    found = {column for row in rows.values() for column in row} - set(source)
    others = sorted(found - set(paper))
    if found and not found & set(paper):                    # a table of the embedded world alone
        return rows, source, others, paper, [*notes, "not run: " + ", ".join(paper)]
    return rows, source, paper + others, paper, notes


def plain_table(number, folders, printed):
    """Records and notes of Table 1, 2 or 4."""
    rows, source, others, paper, notes = task_rows(number, folders, printed,
                                                   lambda row: row[2] in ("off", "on"))
    ran, records = {tau for tau, _, _ in rows} - {None} or {1.0}, []
    for tau in sorted(ran | {key[1] for key in printed if key[0] == number}, reverse=True):
        if tau not in ran:
            notes.append(f"not run: tau = {tau:g}")
            continue
        of, common, note = of_tau(rows, tau, others, paper)
        columns = [*source, *others, "average"]
        records += tabulate(number, tau, of, columns, paper, common, printed)
        notes += [f"tau = {tau:g}{note}"] if note else []
    return records, notes


def ablation(number, folders, printed):
    """Records and notes of Table 3: MaPLe at tau = 0.01, each task's average for each variant."""
    rows, notes = {}, []
    for table_of_task, task in TASK_OF.items():
        cells, _, others, paper, skipped = task_rows(table_of_task, folders, printed,
                                                     lambda row: row[:2] == (0.01, "maple"))
        cells.pop((None, "zeroshot", "off"), None)
        of, common, note = of_tau(cells, 0.01, others, paper)
        for key in of if common else ():        # printed over other columns: no difference
            rows.setdefault(key, {})[task] = of[key]["average"] | {"elsewhere": bool(note)}
        notes += skipped + ([task + note] if of and note else [])
    return tabulate(number, 0.01, rows, list(TASK_OF.values()), [], [], printed), notes


def words(record, sign=""):
    """A mean with its spread and marks, in words."""
    if record["n"] == 0:
        return f"- {record['marks']}" if "u" in record["marks"] else "not run"
    spread = f" ± {record['spread']:.2f}" if record["spread"] is not None else ""
    return f"{record['mean']:{sign}.2f}{spread} {record['marks']}".strip()


def layout(records):
    """Records -> rows of words as the paper lays them out, for each tau: its means, its gains."""
    for (tau, kind), part in groupby(records, itemgetter("tau", "kind")):
        rows = {}
        for r in part:
            rows.setdefault(r["row"], []).append(r)
        sign = "+" if kind == "gain" else ""
        lines = [(f"tau = {tau:g}: {kind}", *(r["column"] for r in next(iter(rows.values()))))]
        for label, row in rows.items():
            n = sorted({r["n"] for r in row if r["n"]} or {0})
            n = " to ".join(str(k) for k in dict.fromkeys((n[0], n[-1])))
            lines.append((f"{label} (n = {n})", *(words(r, sign) for r in row)))
            for name, shown in (("printed", f"{sign}.2f"), ("difference", "+.2f")):
                cells = ["" if r[name] is None else f"{r[name]:{shown}}" for r in row]
                lines += [(f"  {name}", *cells)] if any(cells) else []
        yield lines


def markdown(rows):
    """Rows of words -> a Markdown table."""
    lines = ["| " + " | ".join(word.replace("|", "\\|") for word in row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" + "|---:" * (len(rows[0]) - 1) + "|", *lines[1:]])


def make_table(number, folders, form="text"):
    """A table as text, Markdown or CSV; ValueError where no run can be used."""
    records, notes = (ablation if number == 3 else plain_table)(number, folders, read_printed())
    used = "".join(r["marks"] for r in records)
    if "u" not in used and not any(r["n"] for r in records):
        first = next((note for note in notes if not note.startswith("not run")), "no such run")
        raise ValueError(f"table {number}: nothing to show: {first}; expected runs " + EXPECTED.get(
            number, f"with evaluation/{TASK_OF.get(number)}.json, from evaluate.py RUN --task"))
    legend = [f"{mark}: {words}" for mark, words in MARKS.items() if mark in used]
    notes = list(dict.fromkeys(legend + notes))
    if form == "csv":
        rows = [[f"{value:.2f}" if type(value) is float and name != "tau" else value
                 for name, value in r.items()] for r in records]
        rows += [["note", number, *[""] * (len(records[0]) - 3), note] for note in notes]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([[*records[0]], *rows])
        return text.getvalue()
    draw = {"text": evaluate.table, "markdown": markdown}[form]
    title = f"Table {number}: {SHOWN[number]}, %.\n{LEGEND}"
    ending = "\n".join(f"- {note}" for note in notes)
    return "\n\n".join([title, *map(draw, layout(records)), ending]).rstrip() + "\n"


def main(argv=None):
    p = data.Parser(description="One of the paper's tables from runs, beside the printed one.")
    p.add_argument("number", type=int, choices=SHOWN, help="of the table")
    p.add_argument("runs", nargs="+", metavar="RUNS", help="folders of runs, or folders of them")
    p.add_argument("--format", choices=["text", "markdown", "csv"], default="text", help="(text)")
    p.add_argument("--out", type=Path, metavar="FILE", help="where it goes (printed)")

    def job():
        args = p.parse_args(argv)
        if args.out:
            data.check_output("--out", args.out)
        text = make_table(args.number, args.runs, args.format)
        if args.out:
            data.write(args.out, text)
        print(f"saved in {args.out}\n" if args.out else text, end="")

    return data.run_script(job)


if __name__ == "__main__":
    sys.exit(main())
