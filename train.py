"""Tune prompts on a frozen CLIP with NPT's objective, Eq. (7): L = L_CLIP + w_1 L_LC + w_2 L_MI.

    python train.py                                 # a first table, of the embedded world
    python train.py --seed 3                        # one run of it: MaPLe, no NPT, tau = 1, seed 3
    python train.py --method maple --npt --tau 0.01 --dataset eurosat       # on the real thing
    python train.py --method cocoop --tau 0.05 --dataset path/to/folder     # a folder of one's own
    python train.py --method cocoop maple --npt off on --tau 1 0.01 --seed 1 2      # 16 runs

Trains on the base classes (Sec. 5.1), evaluates zero-shot CLIP and the tuned prompts on base and on
novel classes, and leaves a folder: run.json (all settings), drawn.csv (the training images),
log.csv (every step's terms, at the end of training), prompts.pt (the learned tensors), and
result.json, written last. The same command goes on where it was killed, and trains nothing that is
finished.

A run on a CPU comes out the same to the bit, whatever the number of workers and however often it
was killed, on one machine and with one number of threads (in a grid of the embedded world 1). On a
GPU the sums of some backward passes come in any order: there runs of one seed agree to rounding.

From top to bottom: the whole job, Eq. (7) and SGD, what is kept of a step, what a run is, its
folder, grids, what is said, the command line.
"""
import argparse
import contextlib
import functools
import gc
import hashlib
import io
import itertools
import json
import math
import multiprocessing
import os
import platform
import re
import signal
import sys
import time
import warnings
from pathlib import Path

if __name__ in ("__main__", "__mp_main__"):             # a spawned process has the second
    signal.signal(signal.SIGINT, signal.SIG_DFL)        # Ctrl-C until run_script takes it over

import torch
import torchvision
from filelock import FileLock, Timeout  # torch itself depends on it
from tqdm import tqdm

import clip_model
import data
import evaluate
import losses
import prompts

# The first table: what `python train.py` alone stands for, the defaults' run along three axes.
BARE = "--npt off on --tau 1 0.01 --seed 1 2 3"
# Sec. 5 gives 5 epochs, batch 4 and lr 0.0035 "for all models", that is CoCoOp and MaPLe; it does
# not use CoOp, which keeps its own.
OPTIMISER = {
    "zeroshot": {"epochs": 0, "batch_size": 4, "lr": 0.0},
    "coop": {"epochs": 50, "batch_size": 32, "lr": 0.002},
    "cocoop": {"epochs": 5, "batch_size": 4, "lr": 0.0035},
    "maple": {"epochs": 5, "batch_size": 4, "lr": 0.0035},
}
# Paper vs. code: where ImageNet's 1,000 classes are the source of the other tasks, Sec. 5's "all
# models" would mean 5 epochs at 0.0035. This is MaPLe's published setting there.
TRANSFER = {"cocoop": {"epochs": 2, "lr": 0.0026}, "maple": {"epochs": 2, "lr": 0.0026}}
# Sec. 5's were made for a model a hundred times larger; the tiny CLIP's own by a criterion that was
# written down first, assets/criteria.txt.
TINY = {method: {"epochs": 10, "lr": 0.0009} for method in ("cocoop", "maple")}
WARM_UP_LR = 1e-5                       # From CoOp: the first epoch is constant
WEIGHTS = {"w1": 0.3, "w2": 0.8}        # Sec. 5, of L_LC and L_MI; without NPT 0
AXES = ("method", "npt", "tau", "dataset", "seed", *WEIGHTS, "lr")      # may have several values
TERMS = ("loss", "l_clip", "l_lc", "l_mi")
READ_STEPS, SAVE_SECONDS = 20, 10.0     # how often terms are read and the state is kept
MEANS = "H of class means"              # beside H
SPREAD = 0.005                          # half an interval of less shows no spread over seeds
LOCK = ".lock"
MOST_PROCESSES = 4                      # that share a grid of the embedded world's


def run(args, watch=None):
    """The whole job, or what a killed one left to do -> the contents of result.json.

    args    one of what parse() answers; watch: see train
    """
    started = time.time()
    whole, dataset, items, learner, settings = prepare(args)
    with claim(args.out, args.name, settings) as folder:
        write_json(folder / "run.json", vars(settings) | circumstances(learner, dataset))
        if dataset.own:
            data.write(folder / "split.json", data.split_text(whole))
        frozen = evaluate.FrozenFeatures(dataset, folder.parent / "features")
        # Zero-shot CLIP first: it shows at once whether pictures, names and labels fit together
        plain = prompts.build("zeroshot", learner.clip, settings.trained_classes,
                              ctx_init=dataset.template)
        zeroshot = measure_parts(plain, dataset, settings, frozen, args.quiet)
        warn_near_chance(dataset, zeroshot, "zero-shot CLIP")
        if not (folder / "prompts.pt").is_file():               # a killed run may have come so far
            if items:
                train(learner, dataset, items, settings, folder, args.quiet, watch)
            save_prompts(folder, learner, settings)
        # read back: an unbroken run and one that was killed go one way
        prompts.load_trainable(learner, evaluate.read_prompts(folder)[1])
        tuned = measure_parts(learner, dataset, settings, frozen, args.quiet)
        result = result_of(settings, dataset, learner, tuned, zeroshot)
        write_json(folder / "result.json", result)
    if items:
        warn_near_chance(dataset, tuned, "the run")
    report(result, settings.label)
    print(f"{time.time() - started:.0f} s; saved in {folder}")
    return result


def run_alone(args, watch=None):
    """run(args); of a run that is finished already its table again."""
    try:
        run(args, watch)
    except Finished as finished:
        report(read_result(finished.folder / "result.json"), finished.label)
        print(f"nothing is trained: {finished}")


def prepare(args):
    """All that a run starts from, refused here where it can't be -> the whole dataset, the same
    with the test images that are used, training items, learner, settings."""
    whole = data.load(args.dataset, args.data_root, seed=args.draw_seed,
                      classnames=args.classnames_file)
    dataset = data.with_few_tests(whole, args.test_images, args.draw_seed)
    backbone = args.backbone or usual_backbone(args.dataset)
    clip, weights_sha256 = read_clip(backbone, args.device, args.precision, args.activation)
    check_words(clip, dataset.classnames)
    settings, items = fill_in(args, dataset, clip, backbone, weights_sha256)            # Sec. 5
    headline(clip, dataset, settings)                           # before any picture is read
    data.check_pictures(dataset, items + dataset.test, decode=False)
    if dataset.own:                                             # published ones do not change
        settings.pictures_sha256 = pictures_sha256(dataset, items + dataset.test)
    if args.out:
        check_free(args.out, settings)
    torch.manual_seed(settings.seed)
    learner = prompts.build(settings.method, clip, settings.trained_classes,
                            **learner_settings(settings))
    announce(learner, dataset, items, settings)
    data.check_pictures(dataset, items + dataset.test * dataset.own)        # the slow part, last
    return whole, dataset, items, learner, settings


@functools.lru_cache(maxsize=1)
def read_clip(backbone, device, precision, activation):
    """The frozen CLIP and the SHA-256 of its weights: read once for all runs of a process."""
    device = clip_model.pick_device(device)
    clip = clip_model.load(backbone, device, clip_model.pick_precision(precision, device),
                           activation or "quick_gelu")
    return clip, clip_model.fingerprint(backbone)


def measure_parts(learner, dataset, settings, frozen, quiet):
    """{"base", "novel" or "all": what evaluate.measure says of the learner there}."""
    parts = evaluate.tested_classes(dataset, vars(settings))
    return {part: evaluate.score(learner, dataset, labels, frozen, None if quiet else "testing")[0]
            for part, labels in parts.items()}


def save_prompts(folder, learner, settings):
    learned = {name: p.detach().cpu() for name, p in prompts.trainable(learner).items()}
    content = clip_model.as_bytes({"learned": learned, "settings": vars(settings)})
    data.write(folder / "prompts.pt", content)


# Eq. (7) and SGD -------------------------------------------------------------------------------

def train(learner, dataset, items, settings, folder, quiet=True, watch=None):
    """SGD on Eq. (7) over the items [(picture, label)]; every step's terms go to folder/log.csv.

    watch   called as watch(learner, dataset, items, step, folder) after each epoch; it leaves the
            learner's classes as they are, since a graph goes on with its own
    Raises ValueError where a term is not finite, with its name and step.
    """
    data.write_csv(folder / "drawn.csv", [("picture", "class"), *(
        (name, settings.trained_classes[label]) for name, label in items)])
    learned, clip = prompts.trainable(learner), learner.clip
    optimizer = torch.optim.SGD(learned.values(), lr=settings.lr, momentum=0.9, weight_decay=5e-4)
    log = Log(folder, settings, data.steps(len(items), settings.batch_size))
    this_run = identity(dataset, items, settings)
    log.rows = resume(folder, learned, optimizer, this_run)         # a killed run's; else none
    batches = data.training_batches(
        dataset, items, clip.visual.resolution, clip.logit_scale.device, settings.batch_size,
        settings.epochs, settings.seed, start=log.step)
    learner.train()
    # on a GPU a graph from here on; its capture, on zeros, leaves no gradient and takes no step
    objective = graphed(Objective(learner, settings), min(settings.batch_size, len(items)))
    for images, y in tqdm(batches, desc="training", unit="step", mininterval=0.5, disable=quiet,
                          initial=log.step, total=log.step + len(batches)):
        optimizer.param_groups[0]["lr"] = log.rate(log.step)
        loss, terms = objective(images, y)                                              # Eq. (7)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        log.add(loss, terms)
        if watch and log.step % log.steps_an_epoch == 0:
            watch(learner, dataset, items, log.step, folder)
        if log.seconds() > SAVE_SECONDS:
            log.save_state(learned, optimizer, this_run)
    if clip.logit_scale.device.type == "cuda":
        del objective
        gc.collect()    # frees the graph; else a loader's worker, forked with it, would try to
    log.write()
    if not all(p.isfinite().all() for p in learned.values()):
        raise ValueError(f"the learned tokens are no longer finite after the last step, {log.step}:"
                         " try a smaller --lr")
    learner.eval()


class Objective(torch.nn.Module):
    """Eq. (7) of a batch: images (B, 3, res, res), y (B,) -> loss and its terms, as npt_loss."""

    def __init__(self, learner, settings):
        super().__init__()
        self.learner, self.settings = learner, settings
        n = torch.tensor(settings.class_counts, device=learner.clip.logit_scale.device)
        self.prior = losses.log_prior(n) if settings.logit_adjust else 0
        self.mi_weights = losses.balancing_weights(n) if settings.balanced_mi else None

    def forward(self, images, y):
        logits, z, g = self.learner(images)                                             # Eq. (1)
        return losses.npt_loss(
            logits + self.prior, z, g, y, w1=self.settings.w1, w2=self.settings.w2,
            reduction=self.settings.reduction, mi_weights=self.mi_weights)              # Eq. (7)


def graphed(objective, batch_size):
    """The objective; on a GPU with its forward and backward as CUDA graphs, for one batch size.

    A step is a thousand kernels, most of them shorter than the time to launch one: a GPU computes
    for 4 ms of a step of 40 and waits for the rest. A graph launches all of them at once; the
    optimizer stays outside. What it answers is overwritten by its next call. Its classes are those
    of the capture. Where none can be made, one line says so.
    """
    device = objective.learner.clip.logit_scale.device
    resolution = objective.learner.clip.visual.resolution
    if device.type != "cuda":
        return objective
    try:
        images = torch.zeros(batch_size, 3, resolution, resolution, device=device)
        y = torch.zeros(batch_size, dtype=torch.int64, device=device)
        torch.cuda.set_device(device)                   # of several GPUs the one that captures
        # capture has a stream of its own, of which the first backward would warn
        warnings.filterwarnings("ignore", "The AccumulateGrad node's stream")
        return torch.cuda.make_graphed_callables(objective, (images, y))
    except RuntimeError as error:                       # out of memory, or an old driver
        print(f"note      steps without a CUDA graph, slower: {data.one_line(error)}")
        return objective


def learning_rate(epoch, epochs, lr):
    """From CoOp: 1e-5 in epoch 0, then lr/2 (1 + cos(pi (e - 1) / E)), e = 1 .. E - 1."""
    if epoch == 0:
        return WARM_UP_LR
    return lr / 2 * (1 + math.cos(math.pi * (epoch - 1) / epochs))


# What is kept of a step ------------------------------------------------------------------------
# A step depends on the learned tensors, the momentum and its number alone (the batches are drawn
# from seed and step), so state.pt holds these and the terms so far: a run goes on bit for bit.

def resume(folder, learned, optimizer, this_run):
    """Take up what a killed run had saved -> the terms of each of its steps, [] for a new run."""
    path = folder / "state.pt"
    if not path.is_file():
        return []
    try:
        state = clip_model.read_tensors(path)
        if state.pop("sha256") != seal(state, this_run):
            raise ValueError("another's")
    except Exception as error:                      # a damaged file raises any of a dozen types
        raise ValueError(f"{path}: damaged, or of other settings or pictures than this run's; "
                         "delete it to train from the start") from error
    with torch.no_grad():
        for name, p in learned.items():
            p.copy_(state[name])
            optimizer.state[p]["momentum_buffer"] = state[f"momentum of {name}"].to(p.device)
    print(f"goes on   after step {len(state['rows'])}")
    return state["rows"].tolist()


def seal(state, this_run):
    """A sum over all of a state: it belongs to one run, and nothing of it can change."""
    return hashlib.sha256((clip_model.tensors_sha256(state) + this_run).encode()).hexdigest()


def identity(dataset, items, settings):
    """SHA-256 over all that decides about a training: its settings and its pictures."""
    told = {name: v for name, v in vars(settings).items() if name not in evaluate.PLACES}
    pictures = told.get("pictures_sha256") or pictures_sha256(dataset, items)
    words = json.dumps(told, sort_keys=True, default=str) + pictures
    return hashlib.sha256(words.encode()).hexdigest()


def pictures_sha256(dataset, items):
    """A sum over pictures: labels, names and bytes."""
    lines = (f"{label} {name} {dataset.sha256(name)}\n" for name, label in items)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


class Log:
    """Every step's terms, for log.csv and for going on. Stops where one is not finite."""

    def __init__(self, folder, settings, steps_an_epoch):
        self.folder, self.settings, self.steps_an_epoch = folder, settings, steps_an_epoch
        self.rows, self.waiting, self.saved = [], [], time.monotonic()

    @property
    def step(self):
        """Steps taken so far."""
        return len(self.rows) + len(self.waiting)

    def seconds(self):
        """Since the state was saved."""
        return time.monotonic() - self.saved

    def rate(self, step):
        """The learning rate of a step, counted from 0."""
        return learning_rate(step // self.steps_an_epoch, self.settings.epochs, self.settings.lr)

    def add(self, loss, terms):
        values = [loss, *(terms[name] for name in TERMS[1:])]
        # a copy, on the device: a graph's next step overwrites the values themselves
        self.waiting.append(torch.stack(values).detach())
        if len(self.waiting) == READ_STEPS:             # each reading makes a GPU wait
            self.read()

    def read(self):
        """Fetch what waits on the device, and stop where a term is not finite."""
        while self.waiting:
            self.rows.append(self.waiting.pop(0).tolist())
            for name, value in list(zip(TERMS, self.rows[-1], strict=True))[::-1]:  # their sum last
                if not math.isfinite(value):
                    step = len(self.rows)
                    self.waiting = []
                    self.write()
                    raise ValueError(f"{name} became {value} at step {step}, epoch "
                                     f"{(step - 1) // self.steps_an_epoch}: try a smaller --lr, or "
                                     "--precision bfloat16 or float32 in place of float16")

    def save_state(self, learned, optimizer, this_run):
        self.read()
        state = {"rows": torch.tensor(self.rows, dtype=torch.float64)}
        for name, p in learned.items():
            state |= {name: p, f"momentum of {name}": optimizer.state[p]["momentum_buffer"]}
        content = clip_model.as_bytes(state | {"sha256": seal(state, this_run)})
        data.write(self.folder / "state.pt", content)
        self.saved = time.monotonic()

    def write(self):
        self.read()
        data.write_csv(self.folder / "log.csv", [("epoch", "step", "lr", *TERMS), *(
            (i // self.steps_an_epoch, i + 1, *(f"{v:.6g}" for v in (self.rate(i), *terms)))
            for i, terms in enumerate(self.rows))])


# What a run is ---------------------------------------------------------------------------------

NOT_SETTINGS = ("out", "quiet", "name")         # of the arguments; all others say what a run is
UNNAMED = (*NOT_SETTINGS, *evaluate.PLACES, "dataset", "method", "npt", "logit_adjust", "tau",
           "seed")                              # in a run's name: not, or in their own way


def fill_in(args, dataset, clip, backbone, weights_sha256):
    """What was asked for -> settings, all that a run is, and its training items, Sec. 5.

    Every default that depends on method, dataset or CLIP is filled in here, but for the backbone
    itself, the sum over one's own pictures (prepare) and a folder's own counts (parse); nothing
    changes it afterwards. prompts.pt and run.json hold the settings, result.json a part.
    """
    if dataset.test_only and args.method != "zeroshot":
        raise ValueError(f"{dataset.name} is a test set: train on imagenet, then evaluate.py "
                         f"--task domain-generalization --targets {dataset.name}")
    asked = {name: value for name, value in vars(args).items() if name not in NOT_SETTINGS}
    settings = argparse.Namespace(**asked)
    settings.classes = args.classes or ("base" if dataset.base_novel else "all")
    defaults = optimiser(args.method, backbone) | {n: w * args.npt for n, w in WEIGHTS.items()}
    if dataset.name == "imagenet" and settings.classes == "all" and args.method in TRANSFER:
        defaults |= TRANSFER[args.method]
        if args.method == "maple":
            defaults["prompt_depth"] = prompts.TRANSFER_DEPTH
    for name, value in defaults.items():
        if getattr(settings, name) is None:
            setattr(settings, name, value)
    vars(settings).update(prompts.resolve(args.method, **learner_settings(settings)))
    if args.method == "maple":
        settings.prompt_depth = prompts.fit_depth(clip, settings.prompt_depth)
    if args.method == "zeroshot":
        settings.ctx_init = dataset.template
    settings.backbone = full_path(backbone, [*clip_model.MODELS, "tiny"])
    settings.dataset = full_path(args.dataset, data.NAMES)
    settings.data_root = full_path(args.data_root, ())
    settings.classnames_file = full_path(args.classnames_file, ())
    settings.precision = str(clip.text_projection.dtype).removeprefix("torch.")
    settings.label = " + ".join([args.method, *["NPT"] * args.npt, *["LA"] * args.logit_adjust])
    trained, items = training_set(dataset, settings)
    n = torch.bincount(torch.tensor(data.labels_of(items), dtype=int), minlength=len(trained))
    settings.trained_classes = [dataset.classnames[k] for k in trained]
    settings.class_counts = n.tolist()
    settings.weights_sha256 = weights_sha256
    settings.pictures_sha256 = None
    return settings, items


def optimiser(method, backbone):
    """Epochs, batch size and learning rate where none is asked for."""
    own = TINY if backbone == "tiny" else {}
    return OPTIMISER[method] | own.get(method, {})


def usual_backbone(name):
    return "tiny" if name in data.world.DATASETS else "ViT-B/16"


def training_set(dataset, settings):
    """Sec. 5: the classes that are trained, as labels of the dataset, and their images."""
    base, novel = data.halves(len(dataset.classnames))
    trained = {"base": base, "all": base + novel}[settings.classes]
    if settings.w1 and len(trained) < 2:
        raise ValueError("--npt needs at least two classes to train on: mu of Eq. (5) has no value "
                         "at K = 1")
    if settings.method == "zeroshot":
        return trained, []
    return trained, data.training_items(dataset, trained, settings.shots, settings.tau,
                                        settings.draw_seed, shuffle_seed(settings), settings.images)


def shuffle_seed(settings):
    return settings.draw_seed if settings.shuffle_classes else None


def learner_settings(settings):
    """What prompts.build takes of the settings."""
    return {name: getattr(settings, name)
            for name in ("n_ctx", "ctx_init", "prompt_depth", "class_specific")}


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


def result_of(settings, dataset, learner, tuned, zeroshot):
    """The contents of result.json: what was run, and its numbers."""
    told = ("method", "npt", "tau", "seed", "draw_seed", "backbone", "precision", "classes",
            "shots", "images", "epochs", "batch_size", "lr", *WEIGHTS, "reduction", "balanced_mi",
            "logit_adjust", "test_images", "class_counts")
    return {"dataset": dataset.name, **{name: getattr(settings, name) for name in told},
            "split": dataset.split, "official_split": dataset.official_split,
            **summary(tuned), "zeroshot": summary(zeroshot),
            "prompts_sha256": clip_model.tensors_sha256(prompts.trainable(learner))}


def summary(measures):
    """Measures of the parts -> flat numbers; the Deltas without a prefix: on trained classes.

    Open point: the paper does not say on which classes it measures; here on test images of the
    trained classes, and of the novel ones beside them.
    """
    accuracy = {part: numbers["accuracy"] for part, numbers in measures.items()}
    numbers = {"base": None, "novel": None, "harmonic_mean": None, **accuracy}
    if {"base", "novel"} <= accuracy.keys():
        numbers["harmonic_mean"] = evaluate.harmonic_mean(accuracy["base"], accuracy["novel"])
    for part, prefix in (("base", ""), ("all", ""), ("novel", "novel_")):
        numbers |= {prefix + name: value for name, value in measures.get(part, {}).items()
                    if name != "accuracy"}
    return evaluate.rounded(numbers)


# A run's folder --------------------------------------------------------------------------------
# A run works in its folder from the start. run.json says what it is, state.pt how far it is, and
# result.json is written last, so a folder with it is finished. While a process works in a folder it
# holds its lock, which the system frees with the process; so several processes can share a grid.

class Taken(ValueError):
    """A folder that this run can't have: it holds something else."""


class Busy(Taken):
    """A folder that another process works in."""


class Finished(Taken):
    """A folder that holds this very run, finished."""

    def __init__(self, folder, label):
        super().__init__(f"{folder} holds a finished run: choose another --out, or delete it")
        self.folder, self.label = folder, label


def check_free(folder, settings):
    """Taken or Finished where a folder holds anything but a part of the run of these settings."""
    if not folder.name or folder.exists() and not folder.is_dir():
        raise Taken(f"{folder} must be a new or empty folder: choose another --out")
    names = os.listdir(folder) if folder.is_dir() else []
    if all(name == LOCK or name.endswith(".part") for name in names):
        return
    before = read_json(folder / "run.json") if "run.json" in names else None
    if not isinstance(before, dict):
        raise Taken(f"{folder} must be a new or empty folder, it holds files: choose another --out")
    kind = "a finished run" if "result.json" in names else "an unfinished run"
    for name, now in vars(settings).items():
        if name not in evaluate.PLACES and before.get(name, now) != now:  # older runs lack some
            raise Taken(f"{folder} holds {kind} with another {name} ({str(before.get(name))[:60]}, "
                        f"now {str(now)[:60]}): choose another --out")
    if "result.json" in names:
        raise Finished(folder, settings.label)


@contextlib.contextmanager
def claim(out, name, settings):
    """A run's folder, held by this process alone; the system frees it however the process ends.

    out     the folder; None: runs/<name>, or the first of runs/<name>-2, -3, ... that it can have
    Raises Finished where this run is there already.
    """
    numbered = (Path("runs") / (name + (f"-{i}" if i > 1 else "")) for i in itertools.count(1))
    for folder in [out] if out else numbered:
        lock = FileLock(folder / LOCK, blocking=False)
        try:
            hold(lock, folder, settings)
            break
        except Taken as error:
            if out or isinstance(error, Finished):
                raise
            print(f"note      {error}")
    try:
        yield folder
    finally:
        clean(folder)
        lock.release()


def hold(lock, folder, settings):
    """Take a folder's lock. Busy, Taken, Finished where that can't be; ValueError for no folder."""
    check_free(folder, settings)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        check_free(folder, settings)
    except Timeout:
        raise Busy(f"{folder}: another process works on this run") from None
    except OSError as error:
        raise ValueError(f"{folder} can't be made ({error.strerror}): give another --out") from None
    except Taken:                                       # another process ended it just now
        clean(folder)
        lock.release()
        raise


def clean(folder):
    """Remove what a finished run no longer needs."""
    if (folder / "result.json").is_file():
        for path in (folder / "state.pt", *folder.glob("*.part"), folder / LOCK):
            with contextlib.suppress(OSError):          # absent; or Windows keeps an open file
                path.unlink()


def read_json(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected a file of a run ({error})") from None


def read_result(path):
    result = read_json(path)
    if not isinstance(result, dict) or not {"dataset", "seed", "zeroshot"} <= result.keys():
        raise ValueError(f"{path}: expected a run's result; delete its folder and run it again")
    return result


def write_json(path, content):
    data.write(path, json.dumps(content, indent=1, allow_nan=False, default=str))


# Grids -----------------------------------------------------------------------------------------

def run_grid(plan, root):
    """run(args) for all of a plan, in folders under `root` -> exit code, 1 where one failed.

    Finished runs are skipped, killed ones go on, failing ones are named at the end. Several
    processes may share a grid, torchrun's ranks or two commands: each takes what none works on.
    """
    rank, ranks = place_among_ranks()
    for name in dict.fromkeys(args.dataset for args in plan):           # all there, before any work
        data.load(name, plan[0].data_root, seed=plan[0].draw_seed,
                  classnames=plan[0].classnames_file).show_notes()
    names = [args.name for args in plan]
    if len(set(names)) < len(names):
        raise ValueError(f"two runs of this grid would be named {max(names, key=names.count)}: run "
                         "them one by one")
    for args in plan:
        args.out = root / args.name
    with helped(plan) as helpers:
        failed, busy = run_all(rotated(plan, rank, ranks), f"grid {root}", quiet=rank > 0)
        for helper in helpers:
            helper.join()
        if helpers:                     # by now they may have done what was busy or failed here
            failed, busy = run_all([args for args in plan if args in busy or args.name in failed])
    reasons = {data.one_line(error) for error in failed.values()}
    if len(failed) == len(plan) and len(reasons) == 1:                  # one that is of them all
        raise ValueError(reasons.pop())
    elsewhere = f"; another process works on {len(busy)}" if busy else ""
    done = [args.out for args in plan
            if args.name not in failed and (args.out / "result.json").is_file()]
    print(f"{len(done)} of {len(plan)} runs are finished in {root}{elsewhere}")
    if done and rank == 0:
        report_grid({folder.name: read_result(folder / "result.json") for folder in done})
    for name, error in failed.items():
        print(f"failed: {name}: {data.one_line(error)}", file=sys.stderr)
    return int(bool(failed) and ranks == 1)     # torchrun would stop the ranks that still work


def run_all(plan, title=None, quiet=True):
    """-> {name of a run: why it failed}, and the runs that another process works on.

    Any other error is a bug and ends the grid.
    """
    failed, busy = {}, []
    for args in tqdm(plan, desc=title, unit="run", disable=quiet):
        try:
            run_quietly(args)
        except Finished:
            continue
        except Busy:
            busy.append(args)
        except (ValueError, OSError, torch.OutOfMemoryError) as error:
            failed[args.name] = error
    return failed, busy


def place_among_ranks():
    """(this process's number, how many there are) among torchrun's; (0, 1) where it is alone."""
    rank, ranks = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    if rank.isdecimal() and ranks.isdecimal() and int(rank) < int(ranks):
        return int(rank), int(ranks)
    return 0, 1


def rotated(plan, i, n):
    """A plan for the i-th of n processes that share it: they begin apart."""
    first = i * len(plan) // n
    return plan[first:] + plan[:first]


@contextlib.contextmanager
def helped(plan):
    """With processes that share a grid of the embedded world's on a CPU: as many as torch would
    take threads, each, this one too, with one, as the tiny CLIP's steps are no faster with a
    second. They end when this one does (daemon); if it is killed, after the run they work on."""
    tiny = all(args.dataset in data.world.DATASETS and args.backbone in (None, "tiny")
               for args in plan)
    _, ranks = place_among_ranks()
    if not tiny or ranks > 1 or clip_model.pick_device(plan[0].device).type != "cpu":
        yield []
        return
    left = [args for args in plan if not (args.out / "result.json").is_file()]
    threads = torch.get_num_threads()
    n = min(threads, len(left), MOST_PROCESSES)
    helpers = [multiprocessing.Process(target=help_with, args=(rotated(left, i, n),), daemon=True)
               for i in range(1, n)]
    torch.set_num_threads(1)
    for helper in helpers:
        helper.start()
    try:
        yield helpers
    finally:
        torch.set_num_threads(threads)


def help_with(plan):
    """In a process of its own: the runs that no other works on, until the parent is gone."""
    torch.set_num_threads(1)
    with contextlib.suppress(KeyboardInterrupt):
        for args in plan:
            if multiprocessing.parent_process().is_alive():
                run_all([args])


def run_quietly(args):
    """One run of a grid; of what it says only warnings are shown."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            run(args)
    finally:
        for line in said.getvalue().splitlines():
            if line.startswith("warning"):
                tqdm.write(f"{args.name}: {line}")


# What is said ----------------------------------------------------------------------------------

def headline(clip, dataset, settings):
    """What is run, at once."""
    K, device = len(settings.trained_classes), clip.logit_scale.device.type
    print(f"{settings.label} on {dataset.name}: {K} {settings.classes} classes, CLIP "
          f"{settings.backbone}, {settings.precision} on {device}, seed {settings.seed}\n"
          f"split     {dataset.split}", flush=True)
    dataset.show_notes()


def announce(learner, dataset, items, settings):
    """What is about to happen: prompts, images of each class, imbalance, trainable tensors."""
    names, n, clip = settings.trained_classes, settings.class_counts, learner.clip
    print(f"prompts   {several([learner.show_prompt(name) for name in names], 3, '  ')}")
    if dataset.own:
        announce_photos(dataset, items)
    if settings.method == "zeroshot":
        print("trains    nothing: a prompt is written by hand, nothing is trained")
        return
    asked = data.asked_counts(dataset, range(len(n)), settings.shots, settings.tau,
                              shuffle_seed(settings), settings.images)
    out_of_reach = settings.tau and settings.tau * max(asked) < 1
    print(f"images    {sum(n)}: {several(n, 40, ' ')}; min/max = {min(n) / max(n):.4g} where "
          f"{data.tau_words(settings.tau)}"
          + f"; of {max(asked)} images that would be less than 1" * bool(out_of_reach))
    short = [name for name, have, want in zip(names, n, asked, strict=True) if have < want]
    if short:
        print(f"warning: {len(short)} classes have fewer images than asked for and give all they "
              f"have: {several(short, 5, ', ')}")
    learned = prompts.trainable(learner)
    shapes = [f"{name} {tuple(p.shape)}" for name, p in learned.items()]
    print(f"trains    {sum(p.numel() for p in learned.values()):,} numbers in {len(learned)} "
          f"tensors: {several(shapes, 4, ', ')}")
    if settings.prompt_depth:
        print(f"depth     {settings.prompt_depth} layers have tokens of their own")
    terms = f" + {settings.w1:g} L_LC + {settings.w2:g} L_MI ({settings.reduction})"
    print(f"objective L_CLIP{terms if settings.npt else ''}; {settings.epochs} epochs, batch "
          f"{settings.batch_size}, lr {settings.lr:g}")
    if settings.epochs == 1:
        print("note      the first epoch is CoOp's warm-up, at lr 1e-05: one epoch learns next to "
              "nothing")
    K, d = len(names), clip.text_projection.shape[1]
    if settings.w1 and d + 1 < K:
        print(f"note      {K} classes in {d} dimensions: no simplex ETF exists; L_LC cannot fall "
              f"below {losses.lc_floor(K, d, reduction=settings.reduction):.4g}")


def several(words, most, between):
    """The first of some words, and "..." where there are more."""
    return between.join([*map(str, words[:most]), *["..."] * (len(words) > most)])


def check_words(clip, classnames):
    """ValueError for class names with words that this CLIP has no vectors for, as the tiny one."""
    table = clip.token_embedding.weight
    words = dict.fromkeys(word for name in classnames for word in name.replace("_", " ").split())
    lacking = [word for word in words
               if not table[clip_model.prompt_ids(word)[1:-1]].any(dim=1).all()]
    if lacking:
        raise ValueError(f"this CLIP never saw {len(lacking)} words of the class names, first "
                         f"{', '.join(lacking[:5])}: they are zeros to it, their classes fall "
                         "together; it knows the words of the embedded world only: choose "
                         "--backbone ViT-B/16")


def announce_photos(dataset, items):
    """How many of one's own photos are used."""
    beyond, why = len(dataset.train) - len(items), ""
    if items and beyond:
        why += f"; {beyond} unused, beyond --tau, --shots or --classes"
    if dataset.val:
        why += f"; {len(dataset.val)} unused in val/"
    print(f"photos    {len(items)} train, {len(dataset.test)} test{why}")


def warn_near_chance(dataset, measures, who):
    """A warning where one answer to all would have about the mean over classes of `who`."""
    parts, advice = evaluate.parts_of(dataset), "try a smaller --lr or another --seed"
    for part, numbers in measures.items():
        names = [dataset.classnames[k] for k in parts[part]]
        if who == "zero-shot CLIP":
            shown = (dataset.template.replace("{}", name.replace("_", " ")) for name in names[:3])
            advice = ("do the class names say what the pictures show? First prompts: "
                      + " ".join(shown))
        words = evaluate.near_chance(numbers["mean_recall"], len(names))
        if words:
            print(f"warning: {who} on {part} classes: {words}: {advice}")


def accuracies(result):
    """Names of the accuracies that a result holds; beside one over all classes, their mean."""
    names = ["base", "novel", "harmonic_mean", "all"]
    if result.get("all") is not None:
        names.append("mean_recall")
    return [name for name in names if result.get(name) is not None]


def report(result, label):
    """The table a run ends with."""
    columns = accuracies(result)
    rows = [("", *columns, "Delta_LCD", "Delta_MID")]
    shown = [("zero-shot", result["zeroshot"]), (label, result)]
    for name, numbers in shown[:1 + (result["method"] != "zeroshot")]:
        deltas = (f"{numbers[delta]:.4f}" for delta in ("delta_lcd", "delta_mid"))
        rows.append((name, *(numbers[c] for c in columns), *deltas))
    print(f"\n{evaluate.table(rows)}")


def report_grid(results):
    """What a grid ends with. results: {run's name: result.json}.

    Means over the seeds with 95 % intervals, then differences. Zero-shot CLIP's are over the same
    seeds: a split that is made here differs by seed.
    """
    cells, columns = {}, dict.fromkeys(c for r in results.values() for c in accuracies(r))
    for name, result in results.items():
        for row, numbers in ((f"zero-shot, {result['dataset']}", result["zeroshot"]),
                             (without_seed(name), result)):
            cells.setdefault(row, {})[result["seed"]] = numbers
    rows = [("mean over seeds, ± 95 %", "seeds", *(f"{c}{'':8}" for c in columns))]
    for row, found in cells.items():
        values = [[r[c] for r in found.values() if r.get(c) is not None] for c in columns]
        rows.append((row, len(found), *map(mean_and_half, values)))
    print(evaluate.table(rows))
    report_differences(results)


def without_seed(name):
    """A run's name -> its cell's: runs of a cell differ by their seeds alone."""
    return re.sub(r"-seed\d+", "", name)


def mean_and_half(values):
    """Mean over seeds ± half its 95 % interval, where there is one."""
    if not values:
        return "-"
    half = evaluate.half_width(values) or 0
    words = f" ± {half:.2f}" if half >= SPREAD else ""
    return f"{sum(values) / len(values):.2f}{words:8}"


def report_differences(results):
    """The differences' table, and in a line or two what it says of H or accuracy."""
    rows, seen = [], []
    for title, cells in differences(results).items():
        verdicts = {}
        rows.append((f"{title}, paired by seed", "seeds", "points", "95 % interval", "verdict"))
        for (cell, measure), values in cells.items():
            interval, verdict = judged(values)
            rows.append((f"{cell}: {measure}", len(values), f"{sum(values) / len(values):+.2f}",
                         interval, verdict))
            if measure in ("H", "accuracy"):
                verdicts.setdefault(verdict, []).append(cell)
        seen.append(f"{title}: {in_words(verdicts)}.")
    if rows:
        print(f"\n{evaluate.table(rows)}\nStudent's t over the seeds: it says how other seeds would"
              " come out on these images, not how\nother images would, and of 20 rows without any "
              "difference one is called better or worse by chance.\nUndecided: the interval holds "
              "0, or there is none.\n")
        print(*seen[:1], " ".join(seen[1:]), sep="\n")


def differences(results):
    """{what is compared: {(cell, measure): differences, one a seed}}."""
    found = {}
    for name, result in results.items():
        for title, other in compared(result, results.values()):
            for measure, value in judged_by(result).items():
                values = found.setdefault(title, {}).setdefault((without_seed(name), measure), [])
                values.append(round(value - judged_by(other)[measure], 4))
    for cells in found.values():
        for cell, measure in list(cells):
            if measure == MEANS and cells[cell, measure] == cells[cell, "H"]:
                del cells[cell, measure]        # as many test images in each class
    return found


def in_words(verdicts):
    """{verdict: its cells} -> which are better, worse, undecided."""
    if len(verdicts) == 1:
        return f"{next(iter(verdicts))} in each"
    return "; ".join(f"{word} in {several(cells, 4, ', ')}" for word, cells in verdicts.items())


def compared(result, results):
    """[(what is compared: runs minus zero-shot CLIP, long tails minus balanced images, or NPT minus
    none; the other run)] of a run."""
    found = []
    if result["method"] != "zeroshot":
        found.append(("runs minus zero-shot CLIP", result["zeroshot"]))
    for other in results:
        differ = {axis for axis in AXES if other.get(axis) != result.get(axis)}
        if differ == {"tau"} and other["tau"] == 1:
            found.append(("a long tail minus balanced images", other))
        if result["npt"] and not other["npt"] and differ <= {"npt", *WEIGHTS}:
            found.append(("NPT minus none", other))
    return found


def judged(values):
    """Differences, one a seed -> their 95 % interval in words, and what it says."""
    mean, half = sum(values) / len(values), evaluate.half_width(values) or 0
    if half < SPREAD:                   # one seed, or all moved by the same few test images
        return "none", "undecided"
    verdict = "undecided"
    if abs(mean) > half:
        verdict = "better" if mean > 0 else "worse"
    return f"{mean - half:+.2f} to {mean + half:+.2f}", verdict


def judged_by(result):
    """Accuracy and mean over classes of all that was tested; their H of base and novel classes."""
    if result["harmonic_mean"] is not None:
        means = result["mean_recall"], result["novel_mean_recall"]
        return {"H": result["harmonic_mean"], MEANS: evaluate.harmonic_mean(*means)}
    accuracy = result["base"] if result.get("all") is None else result["all"]
    return {"accuracy": accuracy, "mean over classes": result["mean_recall"]}


# The command line ------------------------------------------------------------------------------

def parser():
    whole, number = data.whole, data.number
    p = data.Parser(
        description="Tune prompts on a frozen CLIP with Eq. (7).",
        epilog="What an option is without being given stands in brackets, and giving one changes "
               "no other: `--seed 3` is one run, MaPLe without NPT at tau = 1 in the embedded "
               f"world. No option at all is the first table, these runs: {BARE}")
    p.add_argument("--method", choices=prompts.METHODS, default=["maple"], nargs="+",
                   help="prompt learner (maple); several values here, in --npt, --tau, --dataset, "
                        "--seed, --w1, --w2 or --lr are a grid of runs")

    add = p.add_argument_group("Eq. (7): L = L_CLIP + w1 * L_LC + w2 * L_MI").add_argument
    add("--npt", nargs="*", choices=["on", "off"], default=["off"],
        help="add the two terms of NPT (off; alone it means on); without them w1 = w2 = 0")
    add("--w1", type=number(0), nargs="+", default=[None],
        help="weight of L_LC, Eq. (5), with --npt (0.3); 0 is off")
    add("--w2", type=number(0), nargs="+", default=[None],
        help="weight of L_MI, Eq. (6), with --npt (0.8); 0 is off")
    add("--reduction", choices=["mean", "sum"], default="mean",
        help="of Eqs. (5), (6): mean over pairs and images, or the printed sum (%(default)s)")
    add("--logit-adjust", action="store_true",
        help="L_CLIP on logits plus log(n_k / N): Menon et al. (2021), not in the paper")

    add = p.add_argument_group("training set, Sec. 5").add_argument
    add("--dataset", nargs="+", default=["world"],
        help=f"{', '.join(data.NAMES)}, a folder of pictures, or all: the eleven (world)")
    add("--tau", type=number(1e-9, 1), nargs="+", default=[None],
        help="min n_k / max n_k; 1 is balanced, smaller is longer-tailed (1; a folder of one's own "
             "without --shots keeps its own counts)")
    add("--shots", type=whole(1), help="images of the largest class (16; so a folder with --tau)")
    add("--classes", choices=["base", "all"], help="train on the base half or on all classes "
                                                   "(base; a folder of one's own: all)")
    add("--shuffle-classes", action="store_true", help="deal the n_k by seed, not in label order")
    add("--classnames", dest="classnames_file", metavar="FILE",
        help="a folder's class names, a line `folder<TAB>name` each (the folders' names)")
    add("--seed", type=data.SEED, nargs="+", default=[1], help="of start, batches and crops (1)")
    add("--draw-seed", type=data.SEED, help="of the draw and of a split made here (--seed's)")

    add_learner_options(p.add_argument_group("prompts and optimiser").add_argument)
    add_machine_options(p.add_argument_group("machine and files").add_argument)
    # a laboratory's controls, not the paper's: so many images dealt evenly, L_MI as a mean over
    # classes; assets/laboratory.py sets them
    p.set_defaults(images=None, balanced_mi=False)
    return p


def add_learner_options(add):
    whole, number = data.whole, data.number
    add("--n-ctx", type=whole(1, 76), help="b, learned tokens (CoOp 16, CoCoOp 4, MaPLe 2)")
    add("--ctx-init", help="words they start from; '' starts at random (CoOp: at random; CoCoOp, "
                           "MaPLe: a photo of a)")
    add("--prompt-depth", type=whole(1), help="MaPLe: layers with tokens of their own (9, or all "
                                              "where there are fewer; 3 on all of imagenet)")
    add("--class-specific", action="store_true", help="CoOp: a context for each trained class")
    add("--epochs", type=whole(1, 100_000),
        help="the first is a warm-up at lr 1e-5 (5; CoOp 50; with the tiny CLIP 10)")
    add("--batch-size", type=whole(1), help="images in a step (4; CoOp 32)")
    add("--lr", type=number(0, 1e30), nargs="+", default=[None],
        help="SGD's highest learning rate (0.0035; CoOp 0.002; with the tiny CLIP 0.0009)")


def add_machine_options(add):
    add("--backbone", help=f"{', '.join(clip_model.MODELS)}, tiny, or a weights file (ViT-B/16; "
                           "for the embedded world tiny)")
    add("--activation", choices=list(clip_model.ACTIVATIONS),
        help="of a weights file that is not OpenAI's: many of OpenCLIP's have gelu (quick_gelu)")
    add("--out", type=Path, help="run folder (runs/<dataset>-<method>..., numbered if taken); "
                                 "of a grid the folder of its runs (runs)")
    add("--test-images", type=data.whole(1), metavar="N",
        help="test on N images a class, drawn by seed: every result then says subset (all)")
    evaluate.add_machine_options(add)


def parse(argv=None):
    """The command line -> the runs it stands for, each an argparse.Namespace with single values."""
    args = parser().parse_args(argv)
    args.npt = [word == "on" for word in args.npt or ["on"]]
    args.dataset = [d for name in args.dataset for d in (data.ALL if name == "all" else [name])]
    weighted = any(getattr(args, name) != [None] for name in WEIGHTS)
    if (weighted or args.reduction != "mean") and True not in args.npt:
        raise ValueError("--w1, --w2 and --reduction belong to the terms of NPT: add --npt")
    several_values = [axis for axis in AXES if len(getattr(args, axis)) > 1]
    plan = {}
    for values in itertools.product(*(getattr(args, axis) for axis in AXES)):
        one = argparse.Namespace(**{**vars(args), **dict(zip(AXES, values, strict=True))})
        if several_values:
            forget_what_does_not_matter(one)
        check(one)
        one.name, one.quiet = run_name(one, several_values), bool(several_values)
        one.shots, one.tau = data.shots_and_tau(one.dataset, one.shots, one.tau)
        one.draw_seed = one.seed if one.draw_seed is None else one.draw_seed
        plan[tuple(getattr(one, axis) for axis in AXES)] = one
    return list(plan.values())


def forget_what_does_not_matter(one):
    """In a grid: w_1, w_2 without NPT, and what zero-shot CLIP has not."""
    if one.method == "zeroshot":
        one.class_specific = one.logit_adjust = False
        one.npt, one.tau, one.lr = False, None, None
        one.epochs = one.batch_size = one.n_ctx = one.ctx_init = one.prompt_depth = None
    if not one.npt:
        vars(one).update(dict.fromkeys(WEIGHTS))


def check(args):
    """Refuse what contradicts itself whatever the dataset is, before anything is loaded."""
    if args.npt and args.method == "zeroshot":
        raise ValueError("--npt is a training objective, and --method zeroshot trains nothing; "
                         "choose another method")
    if args.method == "zeroshot" and (args.epochs, args.batch_size, args.lr) != (None, None, None):
        raise ValueError("--epochs, --batch-size and --lr are no settings of zeroshot")
    prompts.resolve(args.method, **learner_settings(args))


def run_name(args, several_values):
    """The name of a run's folder: what was asked for that differs from what is usual.

    several_values: the axes of the grid that it is of, always named.
    """
    name = args.dataset
    if name not in data.NAMES:
        name = Path(name).expanduser().resolve().name
    words = [name, args.method]
    words += ["npt"] if args.npt else []
    words += ["la"] if args.logit_adjust else []
    _, tau = data.shots_and_tau(args.dataset, args.shots, args.tau)
    if args.method != "zeroshot":
        words.append("natural" if tau is None else f"tau{tau:g}")
    words.append(f"seed{args.seed}")
    backbone = usual_backbone(args.dataset)
    usual = vars(parser().parse_args([])) | optimiser(args.method, args.backbone or backbone)
    usual |= WEIGHTS | prompts.DEFAULTS[args.method] | {"shots": 16, "backbone": backbone}
    for option in [option for option in usual if option not in UNNAMED]:
        value = getattr(args, option)
        if value is not None and (value != usual[option] or option in several_values):
            words.append(option + word_of(value))
    return "-".join(words)


def word_of(value):
    """A setting's value as it stands in a name: a path without its folders, nothing for a flag."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str) and value not in clip_model.MODELS:
        value = Path(value).stem
    return "" if value is True else re.sub(r"[^\w.@]+", "_", str(value))[:40]


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv

    def job():
        if not argv:
            print(f"python train.py {BARE}")
        plan = parse(argv or BARE.split())
        if plan[0].quiet:
            return run_grid(plan, plan[0].out or Path("runs"))
        if place_among_ranks()[0] == 0:                 # torchrun's other ranks have none to do
            run_alone(plan[0])
        return 0

    return data.run_script(job, "interrupted; the same command goes on from its last saved state")


if __name__ == "__main__":
    sys.exit(main())
