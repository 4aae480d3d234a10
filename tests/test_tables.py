"""The paper's tables from run folders against sums by hand; the printed ones against each other."""
import csv
import json
import math
import os
from collections import Counter

import pytest
from small_runs import done, refused

import data
import evaluate
from assets import tables

ELEVEN = data.ALL
FOUR = ["imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"]
WEIGHTS = {"off": (0.0, 0.0), "lc": (0.3, 0.0), "mi": (0.0, 0.8), "on": (0.3, 0.8)}

# Where the paper disagrees with itself: means of columns beside which another average is printed
OTHER_AVERAGES = {(4, 0.05, "cocoop", "off"): 58.325, (4, 0.05, "cocoop", "on"): 59.6525}
TOTALS = {1: 1138975, 2: 627296, 3: 77647, 4: 291597}       # of all cells, in hundredths


def run(folder, dataset="dtd", method="maple", variant="off", tau=0.01, seed=1, value=50.0,
        plain=40.0, targets=None, task="cross-dataset", options=None, **facts):
    """A run folder with these numbers, as train.py and evaluate.py leave it."""
    own = {"base": value, "novel": value, "harmonic_mean": value, "all": value}
    w1, w2 = WEIGHTS[variant]
    files = {"result.json": {
        "dataset": dataset, "method": method, "npt": variant != "off", "tau": tau, "seed": seed,
        "draw_seed": seed, "backbone": "ViT-B/16", "classes": "base", "w1": w1, "w2": w2,
        "official_split": True, **own, "zeroshot": dict.fromkeys(own, plain)} | facts}
    if options is not None:
        files["run.json"] = options
    if targets:
        files[f"evaluation/{task}.json"] = {"results": {
            name: {"accuracy": accuracy, "zeroshot": plain, "official_split": True}
            for name, accuracy in targets.items()}}
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return folder


def cells(number, *folders, tau="0.01"):
    """{(kind, row, column): [mean, spread, n, printed, difference, marks]} of a tau; the notes."""
    rows = [*csv.reader(done(number, *folders, "--format", "csv", main=tables.main).splitlines())]
    assert {len(row) for row in rows} == {len(rows[0])}
    shown = {(kind, row, column): values for kind, _, of, row, column, *values in rows if of == tau}
    return shown, [row[-1] for row in rows if row[0] == "note"]


def test_printed_cells_are_all_there_and_average_their_columns():
    columns = {1: ELEVEN, 2: ELEVEN, 3: list(tables.TASK_OF.values()), 4: ["imagenet", *FOUR]}
    total, printed = Counter(), tables.read_printed()
    assert Counter(key[0] for key in printed) == {1: 13, 2: 8, 3: 4, 4: 8}
    for (number, *key), row in printed.items():
        total[number] += round(100 * math.fsum(row.values()))
        average = row.pop("average", None)
        assert list(row) == columns[number] and key[1] in tables.LEARNERS and key[2] in WEIGHTS
        targets = list(row.values())[number != 1:]          # without the source
        mean = OTHER_AVERAGES.get((number, *key), average)
        if number != 3:
            assert sum(targets) / len(targets) == pytest.approx(mean, abs=0.0101)
    assert total == TOTALS


def test_student_t():
    for df, in_books in ((1, 12.706), (2, 4.303), (9, 2.262), (99, 1.984)):
        assert evaluate.student_t(df) == pytest.approx(in_books, abs=6e-4)
    for inside in (0.5, 0.99):              # of two degrees: P(|T| < t) = t / sqrt(2 + t^2)
        t = evaluate.student_t(2, inside)
        assert t / math.sqrt(2 + t * t) == pytest.approx(inside)


def test_table_1_by_hand(tmp_path):
    for seed, off, on in ((1, 50, 53), (2, 54, 55), (3, 55, 60)):
        for name, plus, more in (("dtd", 0, 0), ("eurosat", 10, 12)):
            run(tmp_path / f"{name}-off{seed}", name, seed=seed, value=off + plus)
            run(tmp_path / f"deep/{name}-on{seed}", name, "maple", "on", seed=seed, value=on + more)
    shown, notes = cells(1, tmp_path, tmp_path / "dtd-off1")                # one is given twice
    by_hand = {
        # 50, 54, 55: mean 53, squares 9 + 1 + 4, sd sqrt(7) = 2.6458; 53, 55, 60: sd sqrt(13)
        ("mean", "MaPLe", "dtd"): ["53.00", "2.65", "3", "47.37", "5.63"],
        ("mean", "MaPLe + NPT", "dtd"): ["56.00", "3.61", "3", "56.98", "-0.98"],
        # 3, 1, 5: mean 3, sd 2, half width 4.3027 * 2 / sqrt(3) = 4.968
        ("gain", "MaPLe + NPT", "dtd"): ["3.00", "4.97", "3", "9.61", ""],
        ("gain", "MaPLe + NPT", "eurosat"): ["5.00", "4.97", "3", "4.51", ""],
        # averages of dtd and eurosat: 55, 59, 60 and printed (47.37 + 53.97) / 2 = 50.67
        ("mean", "MaPLe", "average"): ["58.00", "2.65", "3", "50.67", "7.33"],
        ("mean", "zero-shot CLIP", "dtd"): ["40.00", "0.00", "3", "56.37", "-16.37"]}
    assert {key: shown[key][:5] for key in by_hand} == by_hand
    assert shown["gain", "MaPLe + NPT", "average"][:3] == ["4.00", "4.97", "3"]
    assert {"tau = 0.01: average over dtd, eurosat", "not run: tau = 1"} <= set(notes)


def test_the_average_is_over_columns_that_all_rows_and_seeds_that_all_columns_have(tmp_path):
    for name, seed, value in (("dtd", 1, 50), ("dtd", 2, 90), ("dtd", 3, 60), ("eurosat", 1, 70),
                              ("eurosat", 3, 80)):
        run(tmp_path / f"{name}{seed}", name, seed=seed, value=value)
    average = cells(1, tmp_path)[0]["mean", "MaPLe", "average"]
    assert average[:3] == ["65.00", "7.07", "2"]            # of 60 and 70, sd sqrt(50)
    run(tmp_path / "on", "dtd", variant="on", value=60, options={"lr": 0.002})
    shown, _ = cells(1, tmp_path)
    assert shown["mean", "MaPLe", "average"][:3] == ["66.67", "20.82", "3"]     # of dtd alone
    assert shown["gain", "MaPLe + NPT", "dtd"][2:] == ["0", "9.61", "", "u"]    # another lr


@pytest.mark.skipif(os.name == "nt", reason="links need a right there")
def test_a_run_is_found_once_also_through_links(tmp_path):
    one, two = run(tmp_path / "a" / "one"), run(tmp_path / "b" / "deep" / "two")
    run(tmp_path / "a" / "three.part")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert tables.run_folders(tmp_path, seen := set()) == [one, two]
    assert tables.run_folders(one, seen) == []


@pytest.mark.parametrize("number, task, targets", [(2, "cross-dataset", ELEVEN[1:]),
                                                   (4, "domain-generalization", FOUR)])
def test_tables_2_and_4_by_hand(number, task, targets, tmp_path):
    for variant, more in (("off", 0), ("on", 2)):
        run(tmp_path / variant, "imagenet", variant=variant, value=70.0, classes="all", task=task,
            targets={name: 50.0 + k + more for k, name in enumerate(targets)})
    run(tmp_path / "other", "dtd")                          # without targets: not of this table
    shown, notes = cells(number, tmp_path)
    row = {key[2]: values[0] for key, values in shown.items() if key[:2] == ("mean", "MaPLe")}
    assert list(row) == ["imagenet", *targets, "average"] and row["imagenet"] == "70.00"
    by_hand = {2: ["54.50", "", "1", "64.38"], 4: ["51.50", "", "1", "59.12"]}[number]
    assert shown["mean", "MaPLe", "average"][:4] == by_hand  # of 50..59, of 50..53
    assert shown["gain", "MaPLe + NPT", "average"][:3] == ["2.00", "", "1"]
    assert shown["mean", "zero-shot CLIP", targets[0]][0] == "40.00"
    assert notes == ["not run: tau = 0.05"]


def test_a_printed_average_that_is_not_of_its_columns_is_marked(tmp_path):
    run(tmp_path / "r", "imagenet", "cocoop", tau=0.05, targets=dict.fromkeys(FOUR, 50.0),
        classes="all", task="domain-generalization")
    shown, notes = cells(4, tmp_path / "r", tau="0.05")
    assert [shown["mean", row, "average"][5] for row in ("CoCoOp", "MaPLe")] == ["a", ""]
    assert any(note.startswith("a: the printed average") for note in notes)


def test_table_3_by_hand(tmp_path):
    for variant, base, cross in (("off", 60, 50), ("lc", 61, 52), ("mi", 63, 53), ("on", 66, 55)):
        for k, name in enumerate(ELEVEN):
            run(tmp_path / variant / name, name, variant=variant, value=base + k)
        run(tmp_path / variant / "source", "imagenet", variant=variant, classes="all", base=None,
            novel=None, harmonic_mean=None, zeroshot={"all": 40.0},
            targets={"dtd": cross, "eurosat": cross + 4})
    run(tmp_path / "cocoop", "dtd", "cocoop", value=1)      # not of this table, as the next
    run(tmp_path / "balanced", "dtd", tau=1.0, value=1)
    shown, notes = cells(3, tmp_path)
    # base-to-novel: base + 0..10, on average base + 5, beside the printed one
    rows = {"MaPLe": ["65.00", "69.38", "-4.38"], "MaPLe + L_LC": ["66.00", "70.02", "-4.02"],
            "MaPLe + L_MI": ["68.00", "70.43", "-2.43"], "MaPLe + NPT": ["71.00", "71.85", "-0.85"]}
    for row, (mean, printed, difference) in rows.items():
        assert shown["mean", row, "base-to-novel"][:5] == [mean, "", "1", printed, difference]
    # two of ten targets: cross + 2 on average; not over the printed columns, so no difference
    assert shown["mean", "MaPLe + NPT", "cross-dataset"][:5] == ["57.00", "", "1", "64.89", ""]
    gains = [shown["gain", row, "cross-dataset"][0] for row in rows if "+" in row]
    assert gains == ["2.00", "3.00", "5.00"]
    assert "cross-dataset: average over dtd, eurosat" in notes


def test_marks_and_their_words(tmp_path):
    run(tmp_path / "a", "dtd", test_images=10, backbone="tiny")
    run(tmp_path / "b", "pets", official_split=False, backbone="tiny")
    shown, notes = cells(1, tmp_path)
    marks = [shown["mean", "MaPLe", column][5] for column in ("dtd", "pets", "average")]
    assert marks == ["bs", "bp", "bs"]                      # the average is of dtd alone
    assert [note[:2] for note in notes if note[1] == ":"] == ["s:", "p:", "b:"]


@pytest.mark.parametrize("wrong", [
    "{", "[]", {"harmonic_mean": math.nan}, {"harmonic_mean": 100.5}, {"harmonic_mean": "70"},
    {"base": -1}, {"w1": math.inf}, {"seed": True}, {"tau": None}, {"zeroshot": None},
    {"zeroshot": {"base": 101}}], ids=str)
def test_damaged_runs_are_named_and_not_counted(wrong, tmp_path):
    facts = wrong if isinstance(wrong, dict) else {}
    bad = run(tmp_path / "bad", value=60.0, options={}, **facts)
    if not facts:
        (bad / "result.json").write_text(wrong)
    line = refused(1, tmp_path, main=tables.main)
    assert f"nothing to show: {bad}: " in line and "expected runs trained on base" in line
    assert next(iter(facts), "result.json") in line
    run(tmp_path / "good")
    shown, notes = cells(1, tmp_path, tmp_path / "nowhere")
    assert shown["mean", "MaPLe", "dtd"][:3] == ["50.00", "", "1"]
    assert sum(str(bad) in note for note in notes) == 1
    assert f"{tmp_path / 'nowhere'}: no result.json in it" in notes


def test_a_damaged_evaluation_is_no_run(tmp_path):
    run(tmp_path / "r", "imagenet", targets={"dtd": 101.0})
    assert "cross-dataset.json: dtd" in refused(2, tmp_path, main=tables.main)
    done(1, tmp_path, main=tables.main)                     # it is a run of Table 1 nonetheless


@pytest.mark.parametrize("other, named", [
    ({"options": {"lr": 0.002}}, "lr (0.0035 and 0.002)"), ({"lr": 0.002}, "lr"),
    ({"test_images": 5}, "test_images"), ({"official_split": False}, "official_split"),
    ({"w1": 0.5}, "w1"), ({"options": {"ew": 2.0}}, "ew (1.0 and 2.0)"),
    ({"backbone": "RN50"}, "one backbone"), ({"seed": 1, "draw_seed": 4}, "seed 1"),
    ({"seed": 1, "value": 51.0}, "numbers of seed 1")])
def test_runs_of_several_settings_are_not_averaged(other, named, tmp_path):
    options = {"lr": 0.0035, "shots": 16}
    run(tmp_path / "a", variant="on", options=options)
    other = {"variant": "on", "seed": 2} | other | {"options": options | other.get("options", {})}
    run(tmp_path / "b", **other)
    line = refused(1, tmp_path, main=tables.main)
    assert named in line and "RUNS" in line


def test_older_runs_stand_beside_others(tmp_path):
    run(tmp_path / "old", variant="on", options={"ew": 1.0, "eh": 1.0}, value=50)
    run(tmp_path / "new", variant="on", options={}, seed=2, value=52)
    assert cells(1, tmp_path)[0]["mean", "MaPLe + NPT", "dtd"][0] == "51.00"


def test_what_each_table_needs(tmp_path):
    run(tmp_path / "r")
    assert "with evaluation/cross-dataset.json" in refused(2, tmp_path, main=tables.main)
    assert "MaPLe at tau = 0.01" in refused(3, tmp_path / "nowhere", main=tables.main)
    assert "no folder" in refused(1, tmp_path, "--out", tmp_path / "gone/x", main=tables.main)
    for name in ("imagenet", "world"):
        run(tmp_path / name, name, targets={"dtd": 50.0})
    assert "a table is of one dataset: imagenet in" in refused(2, tmp_path, main=tables.main)


def test_text_and_markdown(tmp_path):
    for seed, value in ((1, 50), (2, 54)):
        run(tmp_path / f"{seed}", seed=seed, value=value)
    text, path = done(1, tmp_path, main=tables.main), tmp_path / "t.md"
    done(1, tmp_path, "--format", "markdown", "--out", path, main=tables.main)
    lines = path.read_text(encoding="utf-8").split("\n")
    row = next(line for line in lines if line.startswith("| MaPLe (n = 2) |")).split(" | ")
    assert row[9] == "52.00 ± 2.83" and row[1] == "not run"        # sd of 50, 54: sqrt(8)
    assert {line.count("|") for line in lines if line.startswith("|")} == {14}
    assert "MaPLe (n = 2)" in text and "52.00 ± 2.83" in text and "not run" in text
