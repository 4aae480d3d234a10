"""Runs that add up: grids, killed runs that go on bit for bit, shared features, processes."""
import collections
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock
from small_runs import call, done, files, picture, read, refused, write_classes

import assets.files
import clip_model
import data
import evaluate
import train
from assets import features, runs, saved

WORLD = ["--method", "coop", "--n-ctx", "2", "--tau", "0.05", "--batch-size", "4", "--epochs", "3",
         "--test-images", "2", "--data-root", "/nowhere"]       # 45 steps of a moment
SCRIPT = Path(train.__file__)


def run_files(folder):
    return {name: (Path(folder) / name).read_bytes() for name in sorted(os.listdir(folder))}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The files of one whole run of WORLD."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    done(*WORLD, "--out", out)
    return run_files(out)


@pytest.fixture
def quick(at, archive):
    pictures = write_classes(at / "pets", {"cat": 8, "dog": 8, "fox": 8})
    return ["--n-ctx", 2, "--epochs", 1, "--dataset", pictures, "--backbone", archive]


class Killed(BaseException):
    """Stands for a signal that no code can catch."""


# Going on --------------------------------------------------------------------------------------

@pytest.mark.parametrize("step", [1, 17, 40])
def test_a_run_killed_in_a_step_ends_the_same(at, undisturbed, monkeypatch, step, capsys):
    monkeypatch.setattr(runs, "SAVE_SECONDS", 0)
    add = runs.Log.add

    def add_or_die(log, *terms):
        add(log, *terms)
        if log.step == step:
            raise Killed
    monkeypatch.setattr(runs.Log, "add", add_or_die)
    with pytest.raises(Killed):
        train.main([*WORLD, "--out", "run"])
    assert not Path("run/result.json").exists() and Path("run/state.pt").exists()
    monkeypatch.setattr(runs.Log, "add", add)
    assert f"goes on   after step {step}" in done(*WORLD, "--out", "run")
    assert run_files("run") == undisturbed


def test_a_run_killed_before_anything_was_kept_begins_again(at, undisturbed, monkeypatch):
    add = runs.Log.add
    monkeypatch.setattr(runs.Log, "add", lambda *a: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        train.main([*WORLD, "--out", "run"])
    monkeypatch.setattr(runs.Log, "add", add)
    assert "goes on" not in done(*WORLD, "--out", "run")
    assert run_files("run") == undisturbed


@pytest.mark.parametrize("name, value, words", [
    ("weights_sha256", "0" * 64, "with other weights: the file of its CLIP changed since"),
    ("class_counts", [1, 2], "of other training images: its pictures changed since"),
    ("w1", 0.5, "with another --w1 (0.5, now 0.0)")])
def test_a_killed_run_of_other_settings_is_not_gone_on_with(at, monkeypatch, name, value, words):
    monkeypatch.setattr(train, "train", lambda *a: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        train.main([*WORLD, "--out", "run"])
    told = json.loads(Path("run/run.json").read_text())
    Path("run/run.json").write_text(json.dumps(told | {name: value}))
    assert f"run holds an unfinished run {words}" in refused(*WORLD, "--out", "run")


def test_a_trained_run_killed_in_its_last_evaluation_is_not_trained_again(at, undisturbed,
                                                                         monkeypatch):
    score = evaluate.score

    def score_or_die(learner, *a):
        if type(learner).__name__ == "CoOp":
            raise Killed
        return score(learner, *a)
    monkeypatch.setattr(evaluate, "score", score_or_die)
    with pytest.raises(Killed):
        train.main([*WORLD, "--out", "run"])
    monkeypatch.setattr(evaluate, "score", score)
    monkeypatch.setattr(train, "train", lambda *a: pytest.fail("trained again"))
    done(*WORLD, "--out", "run")
    assert run_files("run") == undisturbed


CHILD = """
import os, sys
sys.path.insert(0, {root!r})
import data, train
train.runs.SAVE_SECONDS = 0
calls, replace = [0], os.replace
def killed(kind, at):
    if kind == {kind!r}:
        calls[0] += 1
        if calls[0] == {number}:
            if at: open(at, "wb").write(b"half of a f")
            os.kill(os.getpid(), 9)
def dying(a, b):
    killed("before", a)
    replace(a, b)
    killed("after", None)
os.replace = dying
sys.exit(train.main(sys.argv[1:]))
"""


SIGNALS = pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no such signals")


@SIGNALS
@pytest.mark.parametrize("kind, number", [("before", 1), ("before", 2), ("after", 3), ("before", 9),
                                          ("before", 48), ("before", 49), ("after", 49),
                                          ("before", 50), ("after", 50)])
def test_sigkill_in_a_write(at, undisturbed, kind, number):
    """Writes: run.json, drawn.csv, state.pt after each of 45 steps, log.csv, prompts.pt, result."""
    child = CHILD.format(root=str(SCRIPT.parent), kind=kind, number=number)
    words = [sys.executable, "-c", child, *WORLD, "--out", "run"]
    assert subprocess.run(words, capture_output=True, timeout=120).returncode == -signal.SIGKILL
    if Path("run/result.json").exists():
        assert "holds a finished run" in refused(*WORLD, "--out", "run")
    else:
        done(*WORLD, "--out", "run")
        assert set(os.listdir("run")) == set(undisturbed)
    kept = run_files("run")
    assert {name: kept[name] for name in undisturbed} == undisturbed


def test_sigkill_again_and_again(at, undisturbed):
    """At random moments of its life, as `python tests/faults.py kills` does a hundred times."""
    child = CHILD.format(root=str(SCRIPT.parent), kind="never", number=0)
    words, chance = [sys.executable, "-c", child, *WORLD, "--out", "run"], random.Random(0)
    for _ in range(3):
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(2, 5))
        process.kill()
        process.communicate()
    if not Path("run/result.json").exists():
        done(*WORLD, "--out", "run")
    assert run_files("run") == undisturbed


@SIGNALS
def test_ctrl_c_leaves_at_once_with_one_line(at):
    process = subprocess.Popen([sys.executable, SCRIPT, *WORLD, "--epochs", "2000", "--out", "run"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("objective"):
            break
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130 and time.monotonic() - start < 10
    assert err.strip().split("\n")[-1] == "interrupted; the same command goes on where it stopped"
    assert "Traceback" not in err and not Path("run/result.json").exists()


def test_other_arguments_are_named(at, monkeypatch):
    monkeypatch.setattr(train, "train", lambda *a: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        train.main([*WORLD, "--out", "run"])
    before = files(Path("run"))
    line = refused(*WORLD, "--lr", "0.1", "--out", "run")
    assert "holds an unfinished run with another --lr (0.002, now 0.1)" in line
    assert files(Path("run")) == before


def test_a_state_that_is_none_is_refused(at, monkeypatch):
    monkeypatch.setattr(runs, "SAVE_SECONDS", 0)
    add = runs.Log.add
    monkeypatch.setattr(runs.Log, "add", lambda *a: add(*a) or (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        train.main([*WORLD, "--out", "run"])
    Path("run/state.pt").write_bytes(b"nonsense")
    assert "state.pt: not the state of this run" in refused(*WORLD, "--out", "run")


def test_history_is_measured_on_the_training_images_and_goes_on_too(at, monkeypatch):
    words = [*WORLD, "--history", "3", "--out"]                     # 15 steps an epoch
    done(*words, "whole")
    rows = read("whole/history.csv")
    assert [(row["epoch"], row["step"]) for row in rows] == [
        (str((step - 1) // 15), str(step)) for step in range(5, 46, 5)]
    drawn = {row["picture"] for row in read("whole/drawn.csv")}
    learner, _ = evaluate.load_run("whole")
    dataset = data.load("world")
    items = [item for item in dataset.train if item[0] in drawn]
    batches = data.batches(dataset, items, 32, "cpu")
    numbers, _ = evaluate.measure(learner, *features.image_features(learner, batches))
    for name in runs.HISTORY:                                      # the last step's tokens
        assert float(rows[-1][name]) == pytest.approx(numbers[name], rel=1e-4), name
    n = collections.Counter(label for _, label in items)
    for row in rows:
        assert 0 <= float(row["accuracy"]) <= 100
        balance = [float(row[f"cohesion_{k}"]) - float(row[f"repulsion_{k}"]) for k in range(12)]
        assert sum(balance) == pytest.approx(0, abs=1e-3)           # what one gains another loses
        assert max(b - n[k] for k, b in enumerate(balance)) <= 1e-3
    monkeypatch.setattr(runs, "SAVE_SECONDS", 0)
    add = runs.Log.add

    def add_or_die(log, *terms):
        add(log, *terms)
        if log.step == 23:
            raise Killed
    monkeypatch.setattr(runs.Log, "add", add_or_die)
    with pytest.raises(Killed):
        train.main([*words, "killed"])
    monkeypatch.setattr(runs.Log, "add", add)
    done(*words, "killed")
    assert run_files("killed") == run_files("whole")


# One folder, several processes -----------------------------------------------------------------

def test_a_folder_that_another_process_works_in(quick):
    words = ["--method", "coop", *quick]
    Path("run").mkdir()
    with FileLock("run/.lock"):
        assert "run: another process works on this run" in refused(*words, "--out", "run")
    done(*words, "--out", "run")                    # the owner is gone
    Path("runs/pets-coop-natural-seed1").mkdir(parents=True)
    with FileLock("runs/pets-coop-natural-seed1/.lock"):
        done(*words)                                # by default the next number is taken
    assert (Path("runs/pets-coop-natural-seed1-2") / "result.json").is_file()


def test_a_place_that_cant_be_is_refused_and_not_numbered(quick):
    Path("runs").write_text("mine")
    assert "give another --out" in refused("--method", "coop", *quick)
    assert Path("runs").read_text() == "mine"


def test_of_one_run_torchruns_other_ranks_make_none(quick, monkeypatch, at):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    before = files(at)
    done("--method", "coop", *quick)
    assert files(at) == before


def test_each_rank_takes_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for rank, index in ((None, 0), ("0", 0), ("1", 1), ("2", 0)):
        if rank:
            monkeypatch.setenv("LOCAL_RANK", rank)
        assert assets.files.pick_device("auto") == torch.device("cuda", index)


def test_what_is_saved_is_of_one_step(at, undisturbed, monkeypatch):
    """However the clock runs: tokens, momentum and the terms so far belong together."""
    clock = iter(range(10 ** 6))
    monkeypatch.setattr(runs.time, "monotonic", lambda: next(clock) * 4.0)
    save, kept = runs.Log.save, []
    monkeypatch.setattr(runs.Log, "save", lambda log: save(log) or kept.append(
        (len(log.rows), log.step)))
    done(*WORLD, "--out", "run")
    assert kept and all(rows == step for rows, step in kept)


def test_a_run_that_another_process_ends_just_now_keeps_no_lock(at, monkeypatch):
    done(*WORLD, "--out", "run")
    before, seen = run_files("run"), iter(["a part", "all"])
    monkeypatch.setattr(runs, "look", lambda *a: next(seen))
    with pytest.raises(runs.Busy, match="holds a finished run"):
        runs.lock_of(Path("run"), {})
    assert run_files("run") == before and ".lock" not in os.listdir("run")


def test_a_grid_leaves_a_run_to_the_process_that_has_it(quick):
    words = ["--method", "coop", *quick, "--seed", "1", "2", "--out", "g"]
    Path("g/pets-coop-natural-seed1").mkdir(parents=True)
    with FileLock("g/pets-coop-natural-seed1/.lock"):
        assert "1 of 2 runs are finished in g; another process works on 1" in done(*words)
    printed = done(*words)
    assert "2 of 2 runs are finished in g" in printed
    found = [json.loads(path.read_text()) for path in Path("g").glob("*/result.json")]
    columns = ("all", "mean_recall")
    name, seeds, *means = next(line for line in printed.splitlines() if "natural " in line).split()
    assert (name, seeds) == ("pets-coop-natural", "2")
    zeroshot = next(line for line in printed.splitlines() if line.startswith("zero-shot, pets"))
    for mean, plain, column in zip(means, zeroshot.split()[-2:], columns, strict=True):
        by_hand = (found[0][column] + found[1][column]) / 2
        assert float(mean) == pytest.approx(by_hand, abs=.005)
        assert float(plain) == pytest.approx(found[0]["zeroshot"][column], abs=.005)


def tables(folder):
    return done("--table", "1", folder, "--format", "csv", main=evaluate.main)


def test_ranks_share_a_grid(at):
    """As torchrun starts them: a rank is a process that knows its number."""
    words = [*WORLD, "--tau", "1", "0.05", "--seed", "1", "2", "--out"]
    done(*words, "alone")
    ranks = [subprocess.Popen([sys.executable, SCRIPT, *words, "shared"], stderr=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True,
                              env={**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank),
                                   "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}) for rank in (0, 1)]
    assert [rank.wait(timeout=180) for rank in ranks] == [0, 0]
    assert tables("shared") == tables("alone")
    assert sorted(os.listdir("shared")) == sorted(os.listdir("alone"))


# Grids -----------------------------------------------------------------------------------------

def plan(*words):
    return train.parse([str(word) for word in words])


def test_one_value_on_each_axis_is_one_run():
    one, = plan("--method", "maple", "--npt", "--tau", 0.01)
    assert (one.method, one.npt, one.tau, one.in_grid) == ("maple", True, 0.01, False)
    off, = plan("--npt", "off")
    assert off.npt is False


def test_axes_multiply():
    planned = plan("--method", "cocoop", "maple", "--npt", "off", "on", "--tau", 1, 0.01,
                "--dataset", "eurosat", "dtd", "--seed", 1, 2, 3)
    assert len(planned) == 48 and all(run.in_grid for run in planned)
    assert len({runs.default_name(run, run.dataset) for run in planned}) == 48
    assert {run.draw_seed for run in planned} == {1, 2, 3}             # each its seed's
    assert {run.draw_seed for run in plan("--seed", 1, 2, "--draw-seed", 5)} == {5}
    assert [run.dataset for run in plan("--dataset", "all")] == data.ALL


def test_what_does_not_matter_makes_no_second_run():
    """Zero-shot CLIP has no tau, prompts without NPT no weights."""
    planned = plan("--method", "zeroshot", "coop", "--npt", "off", "on", "--tau", 1, 0.05,
                   "--w1", 0.3, 1, "--lr", 0.1)
    kinds = sorted(runs.default_name(run, "w") for run in planned)
    assert kinds == sorted(["w-zeroshot-seed1", "w-coop-tau1-seed1", "w-coop-tau0.05-seed1", *(
        f"w-coop-npt-tau{tau}-seed1-w1{w1}" for tau in ("1", "0.05") for w1 in ("0.3", "1"))])
    with pytest.raises(ValueError, match="add --npt"):
        plan("--npt", "off", "--w1", 1, 2)


def test_a_grid_skips_what_is_finished_and_names_what_fails(quick, monkeypatch):
    words = ["--method", "coop", "maple", *quick, "--seed", "1", "2", "--out", "g"]
    real = train.train

    def failing(learner, dataset, items, args, folder):
        if (args.method, args.seed) == ("coop", 2):
            raise ValueError("l_clip became nan")
        return real(learner, dataset, items, args, folder)
    monkeypatch.setattr(train, "train", failing)
    code, out, err = call(train.main, *words)
    assert code == 1 and "3 of 4 runs are finished in g" in out
    assert "failed: pets-coop-natural-seed2: l_clip became nan" in err and "Traceback" not in err
    before = files(Path("g"))
    trained = []
    monkeypatch.setattr(train, "train", lambda *a: trained.append(a[3].seed) or real(*a))
    assert "4 of 4 runs" in done(*words)
    assert trained == [2]                                           # no finished run twice
    after = files(Path("g"))
    assert all(after[name] == value for name, value in before.items() if "seed2" not in name)
    assert "4 of 4 runs" in done(*words) and files(Path("g")) == after


def test_a_grid_over_datasets_that_are_not_there_does_no_work(at):
    line = refused("--dataset", "world", "eurosta", "--out", "g")
    assert "unknown dataset 'eurosta'" in line and list(at.iterdir()) == []


def test_a_grid_refuses_two_runs_of_one_name(at):
    for place in ("here", "there"):
        write_classes(at / place / "birds", {"hen": 5, "duck": 5})
    line = refused("--dataset", "here/birds", "there/birds", "--out", "g")
    assert "two runs of this grid would be named birds-maple-natural-seed1" in line


def test_a_run_of_a_grid_is_the_run_by_itself(quick):
    done("--method", "coop", *quick, "--seed", "1", "2", "--out", "g")
    done("--method", "coop", *quick, "--seed", "2", "--out", "one")
    assert run_files("g/pets-coop-natural-seed2") == run_files("one")


# Shared features -------------------------------------------------------------------------------

def encoded(monkeypatch):
    """Numbers of images that the image tower sees from now on in evaluation."""
    seen, encode = [], features.image_features
    monkeypatch.setattr(features, "image_features", lambda learner, batches, show=None: seen.append(
        len(batches.dataset)) or encode(learner, batches, show))
    return seen


def test_frozen_features_are_made_once_for_a_grid(quick, monkeypatch):
    seen = encoded(monkeypatch)
    done("--method", "zeroshot", "coop", "cocoop", *quick, "--seed", "1", "--draw-seed", "1",
         "--out", "g")
    assert seen == [9]                                      # 3 classes, 8 pictures: 5 train, 3 test
    done("--method", "maple", *quick, "--out", "g/maple")
    assert seen == [9, 9]                           # MaPLe's own; its zero-shot column is shared
    kept, = Path("g/features").iterdir()
    for damage in (b"", b"nonsense", kept.read_bytes()[:-400]):
        whole = kept.read_bytes()
        kept.write_bytes(damage)
        seen.clear()
        done("--method", "coop", *quick, "--out", f"g/{len(damage)}")
        assert seen == [9] and kept.read_bytes() == whole       # made anew, the same
    saved = torch.load(kept, weights_only=True)
    torch.save(saved | {"z": saved["z"].flip(0)}, kept)         # well-formed, of other pictures
    done("--method", "coop", *quick, "--seed", "1", "--out", "g/flipped")
    assert seen == [9, 9]
    assert run_files("g/flipped")["result.json"] == run_files("g/0")["result.json"]


def test_another_picture_or_weights_have_features_of_their_own(quick, at):
    done("--method", "coop", *quick, "--out", "g/a")
    test = evaluate.load_dataset(Path("g/a"), saved.read_prompts(Path("g/a"))[0], None).test
    picture(77).save(at / "pets" / test[0][0])
    done("--method", "coop", *quick, "--out", "g/b")
    assert len(list(Path("g/features").iterdir())) == 2


def test_embedded_pictures_are_told_apart_by_their_bytes(at, monkeypatch):
    seen = encoded(monkeypatch)
    for seed in (1, 2):
        done(*WORLD, "--seed", seed, "--draw-seed", 1, "--out", f"g/{seed}")
    assert seen == [48]                                     # 24 classes, 2 test pictures each
    dataset, clip = data.load("world"), clip_model.load("tiny")
    frozen = features.FrozenFeatures(dataset)
    before = frozen.fingerprint(clip)
    assert before == features.FrozenFeatures(data.load("world")).fingerprint(clip)
    changed = dataset.pictures[dataset.test[0][0]].copy()
    changed.putpixel((3, 3), tuple(255 - value for value in changed.getpixel((3, 3))))
    dataset.pictures = dataset.pictures | {dataset.test[0][0]: changed}
    assert frozen.fingerprint(clip) != before


# A subset --------------------------------------------------------------------------------------

def test_a_subset_of_the_test_images_is_drawn_by_seed_and_said(at):
    done(*WORLD, "--out", "run")
    result = json.loads(Path("run/result.json").read_text())
    assert result["test_images"] == 2 and "a subset, 2 test images a class" in result["split"]
    done("run", main=evaluate.main)
    rows = read("run/evaluation/base/predictions.csv")
    assert len(rows) == 24
    found = json.loads(Path("run/evaluation/base-to-novel.json").read_text())
    assert found["results"]["base"]["accuracy"] == pytest.approx(result["base"], abs=1e-4)
    assert found["test_images"] == 2
    items = [(f"{k}/{i}", k) for k in range(3) for i in range(5)]

    def cut(n, seed):
        dataset = SimpleNamespace(test=items, split="")
        data.cut_tests(dataset, n, seed)
        return dataset.test

    first = cut(2, 7)
    assert first == cut(2, 7) != cut(2, 8)
    assert [sum(label == k for _, label in first) for k in range(3)] == [2, 2, 2]
    assert cut(9, 7) == cut(None, 7) == items
    assert "subset" in done("--table", "1", "run", main=evaluate.main)


# Randomness ------------------------------------------------------------------------------------

def test_batches_do_not_depend_on_workers_or_on_the_start(at, archive):
    """... nor on what was drawn before: seed, epoch and place decide."""
    folder = write_classes(at / "pets", {"cat": 70, "dog": 70})
    dataset = data.load(folder)
    items = dataset.train
    assert len(items) == 84

    def batches(start=0, workers=0, seed=3):
        torch.rand(1)
        loader = data.training_batches(dataset, items, 32, "cpu", 8, 2, seed, start)
        loader = torch.utils.data.DataLoader(loader.dataset, batch_sampler=loader.batch_sampler,
                                             num_workers=workers)
        return [(x, y.tolist()) for x, y in loader]
    whole = batches()
    assert len(whole) == 20 == 2 * data.steps(84, 8)
    for other, start in ((batches(workers=2), 0), (batches(start=11), 11)):
        for (a, y), (b, v) in zip(whole[start:], other, strict=True):
            assert torch.equal(a, b) and y == v
    assert not torch.equal(whole[0][0], batches(seed=4)[0][0])
    assert whole[0][1] != whole[10][1] or not torch.equal(whole[0][0], whole[10][0])
