"""What a run leaves and how runs add up: its log, its folder, its result; grids of runs.

A run works in its folder from the start. run.json says what it is, state.pt how far it is, and
result.json is written last, so a folder with it is finished. Of one's own photos, split.json keeps
which train and which test. A killed run goes on from state.pt bit for bit. While a process works in
a folder it holds its lock, which the system frees with the process; so several processes can share
a grid.
"""
import contextlib
import io
import itertools
import json
import math
import os
import platform
import sys
import time
from pathlib import Path

import torch
import torchvision
from filelock import FileLock, Timeout  # torch itself depends on it
from tqdm import tqdm

import data
import evaluate
from assets import files, messages, weight_files

TERMS = ("loss", "l_clip", "l_lc", "l_mi")
HISTORY = ("delta_lcd", "lc_shared", "lc_unequal", "delta_mid", "feature_collapse",
           "prototype_collapse", "classifier_collapse", "accuracy")
LOCK = ".lock"
PLACES = ("data_root", "device")        # may differ when a run goes on
CHANGED = {                             # settings that no option names
    "class_counts": "of other training images: its pictures changed",
    "weights_sha256": "with other weights: the file of its CLIP changed"}
READ_STEPS, SAVE_SECONDS = 20, 10.0     # how often terms are read and the state is kept


# The log, and going on -------------------------------------------------------------------------

class Log:
    """Every step's terms, and with them all that a killed run needs to go on bit for bit.

    A step depends on the learned tensors, the momentum and its number alone (the batches are drawn
    from seed and step), so state.pt holds these and the terms so far. log.csv is written from them.
    Stops where a term is not finite.
    """

    def __init__(self, folder, learned, optimizer, args, steps_an_epoch, rates, watch):
        """rates: the learning rate of each epoch; watch: measures HISTORY, args.history times."""
        self.folder, self.learned, self.optimizer = folder, learned, optimizer
        self.watch, self.watches, self.history = watch, args.history, []
        self.rates = rates
        self.steps_an_epoch, self.rows, self.waiting = steps_an_epoch, [], []
        self.restore()
        self.saved = time.monotonic()
        self.bar = tqdm(total=args.epochs * steps_an_epoch, initial=self.step, desc="training",
                        unit="step", mininterval=0.5, disable=args.quiet)

    @property
    def step(self):
        """Steps taken so far."""
        return len(self.rows) + len(self.waiting)

    @property
    def epoch(self):
        return self.step // self.steps_an_epoch

    def add(self, loss, terms):
        values = torch.stack([loss.detach(), *(terms[name] for name in TERMS[1:])])
        self.waiting.append(values)                     # on the device: reading makes a GPU wait
        self.bar.update()
        if self.watches and self.step % max(1, self.steps_an_epoch // self.watches) == 0:
            self.history.append([self.step, *self.watch()])
        if len(self.waiting) == READ_STEPS or time.monotonic() > self.saved + SAVE_SECONDS:
            self.read()
            if time.monotonic() > self.saved + SAVE_SECONDS:
                self.save()

    def read(self):
        """Fetch what waits on the device, and stop where a term is not finite."""
        waiting, self.waiting = self.waiting, []
        for values in waiting:
            self.rows.append(values.tolist())
            row = dict(zip(TERMS, self.rows[-1], strict=True))
            for name in TERMS[::-1]:                            # the terms first, then their sum
                if not math.isfinite(row[name]):
                    self.write()
                    raise ValueError(f"{name} became {row[name]} at step {self.step}, epoch "
                                     f"{(self.step - 1) // self.steps_an_epoch}: try a smaller "
                                     "--lr, or --precision bfloat16 or float32 in place of float16")

    def save(self):
        self.read()
        content = {"learned": dict(self.learned), "optimizer": self.optimizer.state_dict(),
                   "rows": torch.tensor(self.rows, dtype=torch.float64),
                   "history": torch.tensor(self.history, dtype=torch.float64)}
        files.write(self.folder / "state.pt", weight_files.saved(content))
        self.saved = time.monotonic()

    def restore(self):
        """Take up what a killed run had saved."""
        path = self.folder / "state.pt"
        if not path.is_file():
            return
        try:
            content = weight_files.read(path)
            self.optimizer.load_state_dict(content["optimizer"])
            self.rows, self.history = content["rows"].tolist(), content["history"].tolist()
            with torch.no_grad():
                for name, p in self.learned.items():
                    p.copy_(content["learned"][name])
        except Exception as error:
            raise ValueError(f"{path}: not the state of this run ({type(error).__name__}); delete "
                             "it to train from the start") from error
        print(f"goes on   after step {self.step}")

    def write(self):
        rows = [(i // self.steps_an_epoch, i + 1, self.rates[i // self.steps_an_epoch], *row)
                for i, row in enumerate(self.rows)]
        files.write_csv(self.folder / "log.csv", [("epoch", "step", "lr", *TERMS), *(
            (epoch, step, *(f"{value:.6g}" for value in row)) for epoch, step, *row in rows)])
        if self.history:
            K = (len(self.history[0]) - 1 - len(HISTORY)) // 2
            remark_2 = [f"{word}_{k}" for word in ("cohesion", "repulsion") for k in range(K)]
            files.write_csv(self.folder / "history.csv", [("epoch", "step", *HISTORY, *remark_2), *(
                (int(step - 1) // self.steps_an_epoch, int(step), *(f"{v:.6g}" for v in row))
                for step, *row in self.history)])

    def close(self):
        self.read()
        self.write()
        if not all(p.isfinite().all() for p in self.learned.values()):
            raise ValueError(f"the learned tokens are no longer finite after the last step, "
                             f"{self.step}: try a smaller --lr")

    def last_epoch_mean(self, name):
        last = [row[TERMS.index(name)] for row in self.rows[-self.steps_an_epoch:]]
        return sum(last) / len(last)


# Run folders -----------------------------------------------------------------------------------

def look(folder, settings):
    """What a folder holds of the run with these settings: "nothing", "a part" or "all".

    Raises Taken where it holds something else, and says what.
    """
    if folder.exists() and not folder.is_dir():
        raise Taken(f"{folder} must be a new or empty folder, it is a file: choose another")
    names = os.listdir(folder) if folder.is_dir() else []
    if all(name in (LOCK, *(f"{file}.part" for file in files.OF_A_RUN)) for name in names):
        return "nothing"
    before = read_json(folder / "run.json") if "run.json" in names else None
    if not isinstance(before, dict):
        raise Taken(f"{folder} must be a new or empty folder, it holds files: choose another "
                         "--out")
    now = dict(settings)
    if now["prompt_depth"] is None:                         # not known before CLIP is loaded
        now["prompt_depth"] = before.get("prompt_depth")
    other = [name for name, value in now.items()
             if name not in PLACES and before.get(name) != value]
    kind = "a finished run" if "result.json" in names else "an unfinished run"
    if len(other) == 1 and other[0] in CHANGED:
        raise Taken(f"{folder} holds {kind} {CHANGED[other[0]]} since; choose another --out")
    if other:
        raise Taken(f"{folder} holds {kind} with another --{other[0].replace('_', '-')} "
                         f"({str(before.get(other[0]))[:60]}, now {str(now[other[0]])[:60]}): "
                         "choose another --out")
    return "all" if "result.json" in names else "a part"


def places(args, dataset):
    """The folders that a run may have: --out, or runs/<default name>, -2, -3, ..."""
    if args.out:
        return [args.out]
    name = default_name(args, dataset.name)
    return (Path("runs") / (name + (f"-{i}" if i > 1 else "")) for i in itertools.count(1))


def default_name(args, dataset_name):
    words = [dataset_name, args.method]
    words += ["npt"] * args.npt + ["la"] * args.logit_adjust
    tau = "natural" if args.tau is None else f"tau{args.tau:g}"
    words += [tau] if args.method != "zeroshot" else []
    return "-".join([*words, f"seed{args.seed}", *args.more_name])


def finished(args, dataset, settings):
    """Whether a run of a grid is done; refuses an --out that can't become this run, or is one."""
    if not args.out:
        return False
    if not args.out.name:
        raise ValueError(f"--out {args.out} must name a new or empty folder: choose another")
    held = look(args.out, settings)
    if held == "all" and not args.in_grid:
        raise ValueError(f"--out {args.out} holds a finished run: choose another, or delete it")
    return held == "all"


def lock_of(folder, settings):
    """Make this process the only one that works in a folder -> the lock to release.

    Raises Busy where another process works in it or has finished it, Taken where it holds something
    else, ValueError where it can't be made.
    """
    look(folder, settings)
    lock = FileLock(folder / LOCK, blocking=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise Busy(f"{folder}: another process works on this run") from None
    except OSError as error:
        raise ValueError(f"{folder} can't be made ({error.strerror}): give another --out") from None
    if look(folder, settings) == "all":                 # the other process ended just now
        clean(folder)
        lock.release()
        raise Busy(f"{folder} holds a finished run")
    return lock


@contextlib.contextmanager
def claim(args, dataset, settings):
    """A run's folder, held by this process alone; the system frees it however the process ends."""
    for folder in places(args, dataset):
        try:
            lock = lock_of(folder, settings)
            break
        except Taken as error:
            if args.out:
                raise
            print(f"note      {error}")
    try:
        yield folder
    finally:
        clean(folder)
        lock.release()


def clean(folder):
    """Remove what a finished run no longer needs."""
    if (folder / "result.json").is_file():
        for name in ("state.pt", *(f"{name}.part" for name in files.OF_A_RUN), LOCK):
            with contextlib.suppress(OSError):          # absent; or Windows keeps an open file
                (folder / name).unlink()


class Taken(ValueError):
    """A folder that this run can't have: it holds something else."""


class Busy(Taken):
    """A folder that another process works in, or has just finished."""


def read_json(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected a file of a run ({error})") from None


def write_json(path, content):
    files.write(path, json.dumps(content, indent=1, allow_nan=False, default=str))


# What is kept of a run -------------------------------------------------------------------------

def full_path(name, known):
    """So that a run can be evaluated from another working directory; known: names, not paths."""
    if name is None or name in known:
        return name
    return str(Path(name).expanduser().resolve())


def circumstances(learner, dataset):
    """What else decided about the numbers."""
    resolution = learner.clip.visual.resolution
    return {"prompts": [learner.show_prompt(name) for name in learner.classnames],
            "test_transform": str(data.transform(resolution, train=False)),
            "train_transform": str(data.transform(resolution, True, dataset.crop_scale)),
            "versions": {"python": platform.python_version(), "torch": torch.__version__,
                         "torchvision": torchvision.__version__}}


def result_of(settings, dataset, learned, tuned, zeroshot):
    """The contents of result.json: what was run, and its numbers."""
    told = ("method", "npt", "tau", "seed", "draw_seed", "backbone", "precision", "classes",
            "shots", "images", "epochs", "batch_size", "lr", "w1", "w2", "reduction", "balanced_mi",
            "logit_adjust", "test_images", "class_counts")
    return {"dataset": dataset.name, **{name: settings[name] for name in told},
            "split": dataset.split, "official_split": dataset.official_split,
            **summary(tuned), "zeroshot": summary(zeroshot),
            "prompts_sha256": weight_files.checksum(learned)}


def summary(measures):
    """Measures of the parts -> flat numbers; the Deltas without a prefix: on trained classes.

    Open point: the paper does not say on which classes it measures; here on test images of the
    trained classes, and of the novel ones beside them.
    """
    accuracy = {part: numbers["accuracy"] for part, numbers in measures.items()}
    base, novel = accuracy.get("base"), accuracy.get("novel")
    numbers = {"base": base, "novel": novel, "harmonic_mean": None}
    if base is not None and novel is not None:
        numbers["harmonic_mean"] = evaluate.harmonic_mean(base, novel)
    if "all" in accuracy:
        numbers["all"] = accuracy["all"]
    for part, prefix in (("base", ""), ("all", ""), ("novel", "novel_")):
        numbers |= {prefix + name: value for name, value in measures.get(part, {}).items()
                    if name != "accuracy"}
    return {name: rounded(value) for name, value in numbers.items()}


def rounded(value):
    """Six decimals, words as they are; None for what could not be measured."""
    if isinstance(value, str):
        return value
    if value is None or not math.isfinite(value):
        return None
    return round(value, 6)


# Grids -----------------------------------------------------------------------------------------

def rank():
    """This process's number among torchrun's, 0 where there is one alone."""
    return int(os.environ.get("RANK", 0))


def run_grid(run, runs, root):
    """run(args) for each of the runs, in folders under `root` -> exit code, 1 where one failed.

    Finished runs are skipped, killed ones go on, failing ones are named at the end. Several
    processes may share a grid, torchrun's ranks or two commands: each takes what none works on.
    """
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    for dataset in dict.fromkeys(args.dataset for args in runs):        # all there, before any work
        data.load(dataset, runs[0].data_root, seed=runs[0].draw_seed,
                  classnames=runs[0].classnames_file)
    names = [default_name(args, data.short_name(args.dataset)) for args in runs]
    if len(set(names)) < len(names):
        raise ValueError(f"two runs of this grid would be named {max(names, key=names.count)}: run "
                         "them one by one")
    for args, name in zip(runs, names, strict=True):
        args.out = root / name
    first = rank() * len(runs) // ranks                                   # ranks begin apart
    failed, busy = {}, []
    for args in tqdm(runs[first:] + runs[:first], desc=f"grid {root}", unit="run",
                     disable=rank() > 0):
        try:
            run_quietly(run, args)
        except Busy:
            busy.append(args)
        except (ValueError, OSError, torch.OutOfMemoryError) as error:
            failed[args.out.name] = error
    elsewhere = f"; another process works on {len(busy)}" if busy else ""
    done = [args.out for args in runs if (args.out / "result.json").is_file()]
    print(f"{len(done)} of {len(runs)} runs are finished in {root}{elsewhere}")
    if done and rank() == 0:
        messages.grid({folder.name: read_json(folder / "result.json") for folder in done})
    for name, error in failed.items():
        print(f"failed: {name}: {files.one_line(error)}", file=sys.stderr)
    return int(bool(failed) and ranks == 1)     # torchrun would stop the ranks that still work


def run_quietly(run, args):
    """One run of a grid; of what it says only warnings are shown."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            run(args)
    finally:
        for line in said.getvalue().splitlines():
            if line.startswith("warning"):
                tqdm.write(f"{args.out.name}: {line}")
