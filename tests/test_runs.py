"""Runs that add up: grids, killed runs that go on bit for bit, shared features, processes."""
import multiprocessing
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from small_runs import (
    NAMED,
    call,
    command,
    done,
    files,
    picture,
    read,
    refused,
    told,
    write_classes,
)

import clip_model
import data
import evaluate
import train
from assets import history

WORLD = ["--method", "coop", "--n-ctx", "2", "--tau", "0.05", "--shots", "6", "--batch-size", "4",
         "--epochs", "3", "--test-images", "1", "--data-root", "/nowhere"]  # 3 x 6 steps, a moment
STEPS = 18
SIGNALS = pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no such signals")


def run_files(folder):
    return {name: Path(folder, name).read_bytes() for name in sorted(os.listdir(folder))}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The files of one whole run of WORLD."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    done(*WORLD, "--out", out)
    return run_files(out)


class Killed(BaseException):
    """Stands for a signal that no code can catch."""


def killed_at(step, words, main=train.main):
    """A run that is killed in a step and had kept its state after each before."""
    def add_or_die(log, *terms):
        if log.step + 1 == step:
            raise Killed
        add(log, *terms)
    add = train.Log.add
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(train, "SAVE_SECONDS", -1)
        patch.setattr(train.Log, "add", add_or_die)
        call(main, *words)


# Going on --------------------------------------------------------------------------------------

def forked(job, *words, **more):
    """A child process that does a job."""
    child = multiprocessing.get_context("fork").Process(target=job, args=words, kwargs=more)
    child.start()
    return child


def exit_code(child):
    """Of a child process, when it ends; below 0 it is the signal that killed it."""
    child.join(100)
    if child.is_alive():                                # it hangs
        child.kill()
    return child.exitcode


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def run_that_is_killed(prepare):
    """A run of WORLD in a child process that is killed on the way, as prepare() arranges it."""
    def job():
        prepare()
        call(train.main, *WORLD, "--out", "run")
    assert exit_code(forked(job)) == -signal.SIGKILL


@SIGNALS
@pytest.mark.parametrize("moment, name, number, trains_on", [
    ("before", "run.json", 1, False), ("before", "drawn.csv", 1, False),
    ("after", "state.pt", 1, True), ("before", "state.pt", STEPS, True),
    ("before", "log.csv", 1, True), ("after", "log.csv", 1, True),
    ("before", "prompts.pt", 1, True), ("after", "prompts.pt", 1, False),   # it is trained
    ("before", "result.json", 1, False), ("after", "result.json", 1, False)])
def test_sigkill_in_a_write(at, undisturbed, moment, name, number, trains_on):
    def prepare():
        train.SAVE_SECONDS, replace, left = -1, os.replace, [number]

        def dying(part, path):
            left[0] -= path.name == name
            last = path.name == name and not left[0]
            if last and moment == "before":
                Path(part).write_bytes(b"half of a f")
                kill()
            replace(part, path)
            if last:
                kill()
        os.replace = dying

    run_that_is_killed(prepare)
    if Path("run/result.json").exists():
        assert "run holds a finished run" in done(*WORLD, "--out", "run")
    else:
        assert ("goes on" in done(*WORLD, "--out", "run")) == trains_on
        assert set(os.listdir("run")) == set(undisturbed)
    kept = run_files("run")
    assert {name: kept[name] for name in undisturbed} == undisturbed


@SIGNALS
@pytest.mark.parametrize("step, kept", [(1, []), (9, [4]), (STEPS, [3, 9])])
def test_a_run_killed_in_a_step_does_again_what_was_not_kept(at, undisturbed, step, kept):
    """What is kept is of one step, though terms are read only now and then."""
    def prepare():
        train.Log.seconds = lambda log: 99 * (log.step in kept)
        add = train.Log.add
        train.Log.add = lambda log, *a: kill() if log.step + 1 == step else add(log, *a)

    run_that_is_killed(prepare)
    printed = done(*WORLD, "--out", "run")
    assert ("goes on" in printed) == bool(kept)
    assert not kept or f"goes on   after step {kept[-1]}\n" in printed
    assert run_files("run") == undisturbed


@SIGNALS
@pytest.mark.parametrize("sent, code", [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interrupted_run_says_so_in_one_line_and_goes_on(at, undisturbed, sent, code):
    def job():
        def add_and_stop(log, *terms):
            add(log, *terms)
            if log.step == 7:
                os.kill(os.getpid(), signal.Signals[sent])
        add, train.Log.add = train.Log.add, add_and_stop
        signal.signal(signal.SIGINT, signal.SIG_DFL)    # as a script has it until run_script
        ended, _, said = call(train.main, *WORLD, "--out", "run")
        Path("said").write_text(said)
        sys.exit(ended)

    assert exit_code(forked(job)) == code
    said = Path("said").read_text().replace("\r", "\n")
    assert said.endswith("\ninterrupted; the same command goes on from its last saved state\n")
    assert "Traceback" not in said
    done(*WORLD, "--out", "run")
    assert run_files("run") == undisturbed


@pytest.fixture(scope="module")
def killed_once(tmp_path_factory):
    out = tmp_path_factory.mktemp("killed") / "run"
    killed_at(8, [*WORLD, "--out", out])
    return out


@pytest.fixture
def killed(killed_once, tmp_path):
    """A run of WORLD killed in its eighth step, its state kept after the seventh."""
    return shutil.copytree(killed_once, tmp_path / "run")


@pytest.mark.parametrize("name, value, words", [
    ("weights_sha256", "0" * 64, "with another weights_sha256"),
    ("class_counts", [1, 2], "with another class_counts ([1, 2], now "),
    ("w1", 0.5, "with another w1 (0.5, now 0.0)"), ("lr", 0.1, "another lr (0.1, now 0.002)"),
    ("seed", 2, "with another seed (2, now 1)")])
def test_a_killed_run_of_other_settings_is_not_gone_on_with(killed, name, value, words):
    train.write_json(killed / "run.json", told(killed / "run.json") | {name: value})
    before = files(killed)
    line = refused(*WORLD, "--out", killed)
    assert "run holds an unfinished run " in line and words in line
    assert files(killed) == before


CTX, MOMENTUM = "ctx", "momentum of ctx"
FOREIGN = {                                     # what a state may be instead of this run's own
    "no state": lambda s: None, "no sum": lambda s: s.pop("sha256") and s,
    "rows cut": lambda s: s | {"rows": s["rows"][:3]}, "zeros": lambda s: s | {CTX: 0 * s[CTX]},
    "half precision": lambda s: s | {CTX: s[CTX].half()},
    "no momentum": lambda s: {name: value for name, value in s.items() if name != MOMENTUM},
    "other momentum": lambda s: s | {MOMENTUM: -s[MOMENTUM]}}


@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN)
def test_a_state_that_is_not_this_runs_is_not_taken_up(killed, change):
    path = killed / "state.pt"
    torch.save(change(torch.load(path, weights_only=True)), path)
    assert "state.pt: damaged, or of other settings" in refused(*WORLD, "--out", killed)
    assert not (killed / "prompts.pt").exists()


def test_the_state_of_another_run_is_not_taken_up(killed, tmp_path):
    killed_at(8, [*WORLD, "--seed", 2, "--draw-seed", 1, "--out", tmp_path / "other"])
    shutil.copy(tmp_path / "other/state.pt", killed)
    assert "of other settings or pictures" in refused(*WORLD, "--out", killed)


def test_photos_that_were_replaced_are_known_by_their_bytes(at, archive):
    words = command(at, archive)
    one = [*words, "--batch-size", 4, "--epochs", 3, "--out", "r"]
    killed_at(4, one)
    grid = [*words, "--seed", 1, 2, "--draw-seed", 1, "--out", "g"]
    assert "2 of 2 runs are finished" in done(*grid)
    picture(77).save(at / "pets" / read("r/drawn.csv")[0]["picture"])
    assert "another pictures_sha256" in refused(*one)
    code, out, err = call(train.main, *grid)
    assert code == 1 and "0 of 2 runs are finished in g" in out and "mean over seeds" not in out
    assert err.count("holds a finished run with another pictures_sha256") == 2


# A watched training ----------------------------------------------------------------------------

def test_history_is_measured_on_the_training_images_and_goes_on_too(at, undisturbed):
    done(*WORLD, "--out", "whole", main=history.main)
    whole = run_files("whole")
    rows = read("whole/history.csv")
    assert [(row["epoch"], row["step"]) for row in rows] == [("0", "6"), ("1", "12"), ("2", "18")]
    drawn = {row["picture"] for row in read("whole/drawn.csv")}
    learner, _ = evaluate.load_run("whole")
    dataset = data.load("world")
    items = [item for item in dataset.train if item[0] in drawn]
    z, y = evaluate.image_features(learner, dataset, items)
    numbers, _ = evaluate.measure(learner, z, y)
    for name in history.HISTORY:                                    # the last step's tokens
        assert float(rows[-1][name]) == pytest.approx(numbers[name], rel=1e-4), name
    for row in rows:                                                # what one gains another loses
        balance = [float(row[f"cohesion_{k}"]) - float(row[f"repulsion_{k}"]) for k in range(12)]
        assert sum(balance) == pytest.approx(0, abs=1e-3) and max(map(abs, balance)) > 0.1
    assert {name: whole[name] for name in undisturbed} == undisturbed
    for step in (8, 15):
        killed_at(step, [*WORLD, "--out", "killed"], history.main)
    assert [row["step"] for row in read("killed/history.csv")] == ["6", "12"]
    with open("killed/history.csv", "a") as file:                   # of steps that are done again
        file.write(f"2,{STEPS}{',0' * (len(rows[0]) - 2)}\n")
    done(*WORLD, "--out", "killed", main=history.main)
    assert run_files("killed") == whole
    assert "makes one run" in refused(*WORLD, "--seed", 1, 2, main=history.main)


# One folder, several processes -----------------------------------------------------------------

def test_a_folder_that_another_process_works_in(at, archive):
    words = command(at, archive)
    Path("run").mkdir()
    with FileLock("run/.lock"):
        assert "run: another process works on this run" in refused(*words, "--out", "run")
    done(*words, "--out", "run")                    # the owner is gone
    Path(f"runs/pets-coop-natural-seed1{NAMED}").mkdir(parents=True)
    with FileLock(f"runs/pets-coop-natural-seed1{NAMED}/.lock"):
        done(*words)                                # by default the next number is taken
    assert Path(f"runs/pets-coop-natural-seed1{NAMED}-2/result.json").is_file()
    shutil.rmtree("runs")
    Path("runs").write_text("mine")                 # a place that can't be is not numbered
    assert "give another --out" in refused(*words)


@pytest.mark.parametrize("rank, ranks, runs", [
    ("0", "2", 1), ("1", "2", 0), ("1", "", 1), ("-1", "2", 1), ("0", "0", 1), ("x", "2", 1),
    ("3", "2", 1)])
def test_of_one_run_torchruns_other_ranks_make_none(monkeypatch, rank, ranks, runs):
    """A rank counts only as one of several: RANK may be left over from something else."""
    made = []
    monkeypatch.setattr(train, "run_alone", made.append)
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", ranks)
    assert train.main(WORLD) == 0 and len(made) == runs


def test_each_rank_takes_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for rank, index in ((None, 0), ("0", 0), ("1", 1), ("2", 0)):
        if rank:
            monkeypatch.setenv("LOCAL_RANK", rank)
        assert clip_model.pick_device("auto") == torch.device("cuda", index)


def test_a_run_that_another_process_ends_just_now_keeps_no_lock(at, undisturbed, monkeypatch):
    """It looks, waits for the lock, and looks again."""
    Path("run").mkdir()
    answers = iter([None, train.Finished(Path("run"), "coop")])

    def look(folder, settings):
        answer = next(answers)
        if answer:
            for name, content in undisturbed.items():
                (folder / name).write_bytes(content)
            raise answer
    monkeypatch.setattr(train, "check_free", look)
    with pytest.raises(train.Finished):
        train.hold(FileLock("run/.lock", blocking=False), Path("run"), None)
    assert run_files("run") == undisturbed


SHARED = [*WORLD, "--epochs", "1", "--tau", "1", "0.05", "--seed", "1", "2", "--out"]


def share(out, threads=1, **ranks):
    """Of a grid, in a process of its own; it notes its number, and what it said.

    The threads are told alone: more than one hang in a process that was forked.
    """
    os.environ |= ranks
    told = [threads]
    torch.get_num_threads, torch.set_num_threads = lambda: told[-1], told.append
    Path("parent").write_text(str(os.getpid()))
    code, _, err = call(train.main, *SHARED, out)
    Path("said").write_text(err)
    assert torch.get_num_threads() == threads
    sys.exit(code)


@pytest.fixture
def helper_waits(at, monkeypatch):
    """A helper's first run waits until the parent has done all the others; `raises` says of which
    of the two processes it fails in."""
    real, raises = train.train, []

    def training(learner, dataset, items, settings, *more):
        helper = Path("parent").read_text() != str(os.getpid())
        Path(f"{'helper' if helper else 'parent'}-{settings.tau}-{settings.seed}").touch()
        if (settings.tau, settings.seed) == (0.05, 1):
            while helper and len(list(Path("helpers").glob("*/result.json"))) < 3:
                time.sleep(0.05)
            if helper in raises:
                raise OSError("no room for it")
        assert torch.get_num_threads() == 1
        return real(learner, dataset, items, settings, *more)
    monkeypatch.setattr(train, "train", training)
    return raises


@SIGNALS
def test_ranks_share_a_grid(at):
    """As torchrun has them: a rank is a process that knows its number."""
    done(*SHARED, "alone")
    children = [forked(share, "ranks", RANK=n, LOCAL_RANK=n, WORLD_SIZE="2") for n in "01"]
    assert [exit_code(child) for child in children] == [0, 0]
    assert files("ranks") == files("alone")
    for content in ("[1]", "{}", "{"):                              # of a grid's run that is there
        next(Path("ranks").glob("*/result.json")).write_text(content)
        assert "result.json: expected a" in refused(*SHARED, "ranks")


@SIGNALS
@pytest.mark.parametrize("fails_in, code", [([], 0), ([True], 0), ([True, False], 1)])
def test_helpers_share_a_grid_of_the_little_world(at, helper_waits, fails_in, code):
    """What a helper worked on or failed at is looked at again: it is done, or fails by name."""
    helper_waits += fails_in
    assert exit_code(forked(share, "helpers", 2)) == code
    assert sorted(p.name for p in at.glob("*-*.*-1")) == sorted(
        ["parent-1.0-1", "helper-0.05-1"] + ["parent-0.05-1"] * bool(fails_in))
    said = Path("said").read_text()
    assert said.count("no room for it") == code
    if code == 0:
        helper_waits.clear()
        done(*SHARED, "alone")
        assert files("helpers") == files("alone")


@SIGNALS
def test_a_helper_ends_with_its_parent(at, helper_waits, monkeypatch):
    """After the run that it works on: the last of the grid is begun by nobody."""
    waiting = train.train

    def training(learner, dataset, items, settings, *more):
        if Path("parent").read_text() == str(os.getpid()):
            while not Path("helper-0.05-1").exists():
                time.sleep(0.05)
            for n in range(3):                                      # what the helper waits for
                write_classes(Path("helpers", str(n)), {})
                Path("helpers", str(n)).mkdir()
                Path("helpers", str(n), "result.json").touch()
            kill()
        return waiting(learner, dataset, items, settings, *more)
    monkeypatch.setattr(train, "train", training)
    assert exit_code(forked(share, "helpers", 2)) == -signal.SIGKILL
    lock = FileLock(next(Path("helpers").glob("*tau0.05-seed1*")) / ".lock")
    with lock.acquire(timeout=60):                                  # its run is at its end
        time.sleep(0.5)
    assert not list(at.glob("helper-*-2"))


# Grids -----------------------------------------------------------------------------------------

def plan(words):
    return train.parse(words.split())


def test_axes_multiply():
    planned = plan("--method cocoop maple --npt off on --tau 1 0.01 --dataset eurosat dtd "
                   "--seed 1 2 3")
    assert len(planned) == 48 == len({run.name for run in planned})
    assert all(run.quiet for run in planned)
    assert {run.draw_seed for run in planned} == {1, 2, 3}             # each its seed's
    assert {run.draw_seed for run in plan("--seed 1 2 --draw-seed 5")} == {5}
    assert [run.dataset for run in plan("--dataset all")] == data.ALL
    one, = plan("--method maple --npt --tau 0.01")
    assert (one.method, one.npt, one.tau, one.quiet) == ("maple", True, 0.01, False)
    off, = plan("--npt off")
    assert off.npt is False


def test_what_does_not_matter_makes_no_second_run():
    """Zero-shot CLIP has no tau, prompts without NPT no weights."""
    planned = plan("--method zeroshot coop --npt off on --tau 1 0.05 --w1 0.3 1 --lr 0.1")
    kinds = sorted(run.name.removeprefix("world-") for run in planned)
    assert kinds == sorted(["zeroshot-seed1", *(f"coop-tau{t}-seed1-lr0.1" for t in (1, .05)), *(
        f"coop-npt-tau{tau}-seed1-w1{w1}-lr0.1" for tau in ("1", "0.05") for w1 in ("0.3", "1"))])
    with pytest.raises(ValueError, match="add --npt"):
        plan("--npt off --w1 1 2")


def test_a_grid_skips_what_is_finished_leaves_what_others_do_and_names_what_fails(
        at, archive, monkeypatch):
    words = command(at, archive)
    grid = [*words, "--seed", 1, 2, 3, "--out", "g"]
    real, trained = train.train, []

    def failing(learner, dataset, items, settings, *more):
        trained.append(settings.seed)
        if settings.seed == 2 and trained.count(2) == 1:
            raise ValueError("l_clip became nan")
        return real(learner, dataset, items, settings, *more)
    monkeypatch.setattr(train, "train", failing)
    Path(f"g/pets-coop-natural-seed3{NAMED}").mkdir(parents=True)
    with FileLock(f"g/pets-coop-natural-seed3{NAMED}/.lock"):
        code, out, err = call(train.main, *grid)
    assert code == 1 and "1 of 3 runs are finished in g; another process works on 1" in out
    assert f"failed: pets-coop-natural-seed2{NAMED}: l_clip became nan" in err
    assert "Traceback" not in err
    before = files("g")
    printed = done(*grid)
    assert "3 of 3 runs are finished in g" in printed
    assert trained == [1, 2, 2, 3]                                  # no finished run twice
    after = files("g")
    assert all(after[name] == value for name, value in before.items() if "seed1" in name)
    found = [told(path) for path in sorted(Path("g").glob("*/result.json"))]
    lines = {line.split("  ")[0]: re.sub("± [0-9.]+", "", line).split()
             for line in printed.splitlines()}
    assert lines[f"pets-coop-natural{NAMED}"][1] == "3"                     # seeds
    means = lines[f"pets-coop-natural{NAMED}"][2:], lines["zero-shot, pets"][-2:]
    for tuned, plain, column in zip(*means, ("all", "mean_recall"), strict=True):
        assert float(tuned) == pytest.approx(sum(one[column] for one in found) / 3, abs=.005)
        mean = sum(one["zeroshot"][column] for one in found) / 3
        assert float(plain) == pytest.approx(mean, abs=.005)
    assert "3 of 3 runs" in done(*grid) and files("g") == after and len(trained) == 4
    done(*words, "--seed", 2, "--out", "one")                       # the run by itself
    assert run_files("one") == run_files(f"g/pets-coop-natural-seed2{NAMED}")


def test_a_grid_that_cannot_be_does_no_work_and_says_once_why(at):
    assert "ViT-Z" in refused("--seed", 1, 2, "--backbone", "ViT-Z")
    assert "unknown dataset 'eurosta'" in refused("--dataset", "world", "eurosta", "--out", "g")
    assert list(at.iterdir()) == []
    for place in ("here", "there"):
        write_classes(at / place / "birds", {"hen": 5, "duck": 5})
    line = refused("--dataset", "here/birds", "there/birds", "--out", "g")
    assert "two runs of this grid would be named birds-maple-natural-seed1" in line


# Shared features -------------------------------------------------------------------------------

def test_frozen_features_are_made_once_for_a_grid(at, archive, monkeypatch):
    encoded, encode = [], evaluate.image_features       # images that the tower sees, call for call

    def spy(learner, dataset, items, show=None):
        encoded.append(len(items))
        return encode(learner, dataset, items, show)
    monkeypatch.setattr(evaluate, "image_features", spy)
    words = command(at, archive, cat=8, dog=8, fox=8)
    done(*words, "--method", "zeroshot", "coop", "cocoop", "--seed", 1, "--out", "g")
    assert encoded == [9]                                   # 3 classes, 8 pictures: 5 train, 3 test
    done(*words, "--method", "maple", "--out", "g/maple")
    assert encoded == [9, 9]                        # MaPLe's own; its zero-shot column is shared
    kept, = Path("g/features").iterdir()
    whole, saved = kept.read_bytes(), torch.load(kept, weights_only=True)
    other = clip_model.as_bytes(saved | {"z": saved["z"].flip(0)})      # well-formed, not its own
    for i, damage in enumerate((b"", b"nonsense", whole[:-400], other)):
        kept.write_bytes(damage)
        encoded.clear()
        done(*words, "--out", f"g/{i}")
        assert encoded == [9] and kept.read_bytes() == whole            # made anew, the same
    picture(77).save(at / "pets" / told("g/0/split.json")["test"][0][0])
    done(*words, "--out", "g/changed")
    assert len(list(Path("g/features").iterdir())) == 2


def test_features_and_states_are_known_by_their_pictures_and_by_the_activation(small_clip):
    """The activation is in no tensor: the same weights with plain GELU give other features."""
    dataset, settings = data.load("world"), train.argparse.Namespace()
    state_of = train.identity(dataset, dataset.test, settings)
    frozen = evaluate.FrozenFeatures(dataset)
    before = frozen.fingerprint(small_clip)
    assert before == evaluate.FrozenFeatures(data.load("world")).fingerprint(small_clip)
    block = small_clip.visual.transformer.resblocks[0]
    for name in ("gelu", "quick_gelu"):
        block.activation = clip_model.ACTIVATIONS[name]
        assert (frozen.fingerprint(small_clip) == before) == (name == "quick_gelu")
    changed = dataset.pictures[dataset.test[0][0]].copy()
    changed.putpixel((3, 3), tuple(255 - value for value in changed.getpixel((3, 3))))
    dataset.pictures = dataset.pictures | {dataset.test[0][0]: changed}
    assert frozen.fingerprint(small_clip) != before
    assert train.identity(dataset, dataset.test, settings) != state_of


# A subset ------------------------------------------------------------------------------------

def test_a_subset_of_the_test_images_is_said_and_evaluated_again(at, undisturbed):
    Path("run").mkdir()
    for name, content in undisturbed.items():
        Path("run", name).write_bytes(content)
    found = told("run/result.json")
    assert found["test_images"] == 1 and "a subset, 1 test images a class" in found["split"]
    done("run", main=evaluate.main)
    again = told("run/evaluation/base-to-novel.json")
    assert again["results"]["base"]["test_images"] == 12 and again["test_images"] == 1
    assert again["results"]["base"]["accuracy"] == pytest.approx(found["base"], abs=1e-4)
