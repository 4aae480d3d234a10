"""Tune prompts on a frozen CLIP with NPT's objective, Eq. (7): L = L_CLIP + w_1 L_LC + w_2 L_MI.

    python train.py                                   # MaPLe + NPT, tau = 0.01, the embedded world
    python train.py --method maple --npt --tau 0.01 --dataset eurosat       # on the real thing
    python train.py --method cocoop --tau 0.05 --dataset path/to/folder     # a folder of one's own
    python train.py --method cocoop maple --npt off on --tau 1 0.01 --seed 1 2      # 16 runs

Trains on the base classes (Sec. 5.1), evaluates zero-shot CLIP and the tuned prompts on base and on
novel classes, and leaves a folder: prompts.pt (the learned tensors), log.csv (every step),
drawn.csv (the training images), run.json (all settings), result.json, written last. The same
command goes on where it was killed; a grid skips what is finished.

A run on a CPU comes out the same to the bit, whatever the number of workers, on one machine and
with one number of threads. On a GPU the sums of some backward passes come in any order.

From top to bottom: run (the whole job), train (Eq. (7) and SGD), what is kept of a run, the
settings, the command line. assets/messages.py has what is said, assets/runs.py the log, run folders
and grids.
"""
import argparse
import itertools
import math
import signal
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)        # Ctrl-C until files.exit_code takes it over

import torch

import clip_model
import data
import evaluate
import losses
import prompts
from assets import features, files, messages, photos, runs, saved, weight_files

BARE = "--method maple --npt --tau 0.01 --dataset world"        # what `python train.py` stands for
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
WARM_UP_LR = 1e-5                       # From CoOp: the first epoch is constant
AXES = ("method", "npt", "tau", "dataset", "seed", "w1", "w2", "lr")    # may have several values


def run(args):
    """The whole job, or what a killed one left to do -> the contents of result.json."""
    started = time.time()
    dataset = data.load(args.dataset, args.data_root, classnames=args.classnames_file,
                        seed=args.draw_seed)
    data.cut_tests(dataset, args.test_images, args.draw_seed)
    settle(args, dataset)
    trained, items, n = training_set(dataset, args)                             # Sec. 5
    parts = tested_classes(dataset, args)
    names = [dataset.classnames[k] for k in trained]
    settings = describe(args, names, n)
    if runs.finished(args, dataset, settings):
        return runs.read_json(args.out / "result.json")
    data.check_pictures(dataset, items)
    data.check_pictures(dataset, dataset.test, decode=dataset.own)

    device = files.pick_device(args.device)
    clip = clip_model.load(args.backbone, device, getattr(torch, args.precision))
    torch.manual_seed(args.seed)
    learner = prompts.build(args.method, clip, names, **learner_settings(args))
    settings |= {"prompt_depth": getattr(learner, "prompt_depth", None),
                 "weights_sha256": clip_model.fingerprint(args.backbone)}
    messages.announce(learner, dataset, settings)
    photos.inspect(dataset, items, clip)

    with runs.claim(args, dataset, settings) as folder:
        runs.write_json(folder / "run.json", {**settings, **runs.circumstances(learner, dataset)})
        photos.keep_split(folder, dataset)
        # Zero-shot CLIP first: it shows at once whether pictures, names and labels fit together
        plain = prompts.build("zeroshot", clip, names, ctx_init=dataset.template)
        frozen = features.FrozenFeatures(dataset, folder.parent / "features")
        zeroshot = score_parts(plain, dataset, parts, frozen, args.quiet)
        for part, labels in parts.items():
            messages.warn_near_chance(dataset, labels, part, zeroshot[part]["accuracy"])
        last = learn(learner, dataset, items, args, folder, settings)
        tuned = score_parts(learner, dataset, parts, frozen, args.quiet)
        messages.warn_collapsed(last, len(names), tuned)
        result = runs.result_of(settings, dataset, prompts.trainable(learner), tuned, zeroshot)
        runs.write_json(folder / "result.json", result)
    messages.report(result, settings["label"])
    print(f"{time.time() - started:.0f} s; saved in {folder}")
    return result


def learn(learner, dataset, items, args, folder, settings):
    """Train, or read what a killed run had kept -> L_CLIP over the last epoch, nan if read."""
    last = math.nan
    if not (folder / "prompts.pt").is_file():
        last = train(learner, dataset, items, args, folder)
        save_prompts(folder, learner, settings)
    prompts.load_trainable(learner, saved.read_prompts(folder)[1])
    return last


def score_parts(learner, dataset, parts, frozen, quiet):
    """{part: what evaluate.measure says of the learner on its classes}."""
    show = None if quiet else "testing"
    return {part: evaluate.score(learner, dataset, labels, frozen, show)[0]
            for part, labels in parts.items()}


def training_set(dataset, args):
    """Sec. 5: the classes that are trained, as labels of the dataset; their images; n_k of each."""
    base, novel = data.halves(len(dataset.classnames))
    trained = {"base": base, "all": base + novel}[args.classes]
    if args.w1 and len(trained) < 2:
        raise ValueError("--npt needs at least two classes to train on: mu of Eq. (5) has no value "
                         "at K = 1")
    if args.method == "zeroshot":
        return trained, [], [0] * len(trained)
    shuffle_seed = args.draw_seed if args.shuffle_classes else None
    items = data.training_items(dataset, trained, args.shots, args.tau, args.draw_seed,
                                shuffle_seed, args.images)
    labels = torch.tensor([label for _, label in items])
    return trained, items, torch.bincount(labels, minlength=len(trained)).tolist()


def tested_classes(dataset, args):
    """{"base": labels, "novel": labels}, or {"all": labels} where all were trained."""
    base, novel = data.halves(len(dataset.classnames))
    parts = {"base": base, "novel": novel} if args.classes == "base" else {"all": base + novel}
    if args.class_specific:
        parts.pop("novel", None)                        # no context was learned for these
    return {part: labels for part, labels in parts.items() if labels}


# Training --------------------------------------------------------------------------------------

def learning_rate(epoch, epochs, lr):
    """From CoOp: 1e-5 in epoch 0, then lr/2 (1 + cos(pi (e - 1) / E)), e = 1 .. E - 1."""
    if epoch == 0:
        return WARM_UP_LR
    return lr / 2 * (1 + math.cos(math.pi * (epoch - 1) / epochs))


def train(learner, dataset, items, args, folder):
    """SGD on Eq. (7) over the items [(picture, label)]; every step's terms go to folder/log.csv.

    Returns the mean of L_CLIP over the last epoch, nan where nothing is learned. Raises ValueError
    where a term is not finite, with its name and step.

    On a CPU one seed gives the same bytes; another number of threads takes some sums in another
    order. On a GPU the gradient of fused attention is added up in no fixed order, so two runs of
    one seed, or a killed one that went on, agree to rounding and not bit for bit.
    """
    learned = prompts.trainable(learner)
    if not learned:
        return math.nan
    files.write_csv(folder / "drawn.csv", [("picture", "class"), *(
        (name, dataset.classnames[label]) for name, label in items)])
    clip, device = learner.clip, learner.clip.logit_scale.device
    optimizer = torch.optim.SGD(learned.values(), lr=args.lr, momentum=0.9, weight_decay=5e-4)
    rates = [learning_rate(epoch, args.epochs, args.lr) for epoch in range(args.epochs)]
    log = runs.Log(folder, learned, optimizer, args, data.steps(len(items), args.batch_size), rates,
                   watch=lambda: watched(learner, dataset, items))
    batches = data.training_batches(dataset, items, clip.visual.resolution, device,
                                    args.batch_size, args.epochs, args.seed, start=log.step)
    prior, mi_weights = by_class_counts(items, args, device)
    learner.train()
    with log.bar:
        for images, y in batches:
            images, y = images.to(device, non_blocking=True), y.to(device, non_blocking=True)
            optimizer.param_groups[0]["lr"] = rates[log.epoch]
            logits, z, g = learner(images)                                      # Eq. (1)
            loss, terms = losses.npt_loss(
                logits + prior, z, g, y, w1=args.w1, w2=args.w2, E_W=args.ew, E_H=args.eh,
                reduction=args.reduction, mi_weights=mi_weights)                        # Eq. (7)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            log.add(loss, terms)
    log.close()
    learner.eval()
    return log.last_epoch_mean("l_clip")


def by_class_counts(items, args, device):
    """What --logit-adjust adds to the logits, and --balanced-mi's weights; 0 and None without."""
    n = torch.bincount(torch.tensor([label for _, label in items])).to(device)
    prior = losses.log_prior(n) if args.logit_adjust else 0
    return prior, losses.balancing_weights(n) if args.balanced_mi else None


def watched(learner, dataset, items):
    """runs.HISTORY of the training images, uncropped, as they stand now, and Remark 2's weights."""
    clip = learner.clip
    batches = data.batches(dataset, items, clip.visual.resolution, clip.logit_scale.device)
    z, y = features.image_features(learner, batches)
    numbers, p = evaluate.measure(learner, z, y)
    cohesion, repulsion = losses.cohesion_repulsion(p, y.cpu())
    return [*(numbers[name] for name in runs.HISTORY), *cohesion.tolist(), *repulsion.tolist()]


# What is kept of a run -------------------------------------------------------------------------

def describe(args, names, n):
    """A run's settings, described once: prompts.pt and run.json hold them, result.json a part."""
    models = [*weight_files.MODELS, "tiny"]
    kept = {name: value for name, value in vars(args).items()
            if name not in ("out", "quiet", "in_grid", "more_name")}
    return {**kept, "backbone": runs.full_path(args.backbone, models),
            "dataset": runs.full_path(args.dataset, data.NAMES),
            "data_root": runs.full_path(args.data_root, ()),
            "classnames_file": runs.full_path(args.classnames_file, ()),
            "label": args.method + " + NPT" * args.npt + " + LA" * args.logit_adjust,
            "trained_classes": names, "class_counts": n}


def save_prompts(folder, learner, settings):
    learned = {name: p.detach().cpu() for name, p in prompts.trainable(learner).items()}
    content = weight_files.saved({"learned": learned, "settings": settings})
    files.write(folder / "prompts.pt", content)


# The settings ----------------------------------------------------------------------------------

def check(args):
    """Refuse what contradicts itself whatever the dataset is, before anything is loaded."""
    if args.npt and args.method == "zeroshot":
        raise ValueError("--npt is a training objective, and --method zeroshot trains nothing; "
                         "choose another method")
    if args.method == "zeroshot" and (args.epochs, args.batch_size, args.lr) != (None, None, None):
        raise ValueError("--epochs, --batch-size and --lr are no settings of zeroshot")
    prompts.resolve(args.method, **learner_settings(args))


def learner_settings(args):
    """What prompts.build takes of the arguments."""
    return {"n_ctx": args.n_ctx, "ctx_init": args.ctx_init, "prompt_depth": args.prompt_depth,
            "class_specific": args.class_specific}


def settle(args, dataset):
    """Fill in the defaults that depend on method and dataset, in place."""
    if dataset.test_only and args.method != "zeroshot":
        raise ValueError(f"{dataset.name} is a test set: train on imagenet, then evaluate.py "
                         f"--task domain-generalization --targets {dataset.name}")
    args.classes = args.classes or ("base" if dataset.base_novel else "all")
    args.backbone = args.backbone or ("tiny" if dataset.embedded else "ViT-B/16")
    optimiser, depth = OPTIMISER[args.method], args.prompt_depth
    if dataset.name == "imagenet" and args.classes == "all":
        optimiser = optimiser | TRANSFER.get(args.method, {})
        depth = depth or (prompts.TRANSFER_DEPTH if args.method == "maple" else None)
    weights = {"w1": 0.3, "w2": 0.8} if args.npt else {"w1": 0.0, "w2": 0.0}        # Sec. 5
    for name, value in {**optimiser, **weights}.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    settings = {**learner_settings(args), "prompt_depth": depth}
    for name, value in prompts.resolve(args.method, **settings).items():
        setattr(args, name, value)
    if args.method == "zeroshot":
        args.ctx_init = dataset.template


# The command line ------------------------------------------------------------------------------

def parser():
    whole, number = files.whole, files.number
    p = files.Parser(description="Tune prompts on a frozen CLIP with Eq. (7).")
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
    add("--ew", type=number(1e-6), default=1.0, help="E_W, squared length of texts (%(default)s)")
    add("--eh", type=number(1e-6), default=1.0, help="E_H, squared length of images (%(default)s)")
    add("--reduction", choices=["mean", "sum"], default="mean",
        help="of Eqs. (5), (6): mean over pairs and images, or the printed sum (%(default)s)")
    add("--balanced-mi", action="store_true",
        help="L_MI as a mean over classes, not over images: then no imbalance enters it")
    add("--logit-adjust", action="store_true",
        help="L_CLIP on logits plus log(n_k / N): Menon et al. (2021), not in the paper")

    add = p.add_argument_group("training set, Sec. 5").add_argument
    add("--dataset", nargs="+", default=["world"],
        help=f"{', '.join(data.NAMES)}, a folder of pictures, or all: the eleven (world)")
    add("--tau", type=number(1e-9, 1), nargs="+", default=[None],
        help="min n_k / max n_k; 1 is balanced, smaller is longer-tailed (1; a folder of one's own "
             "without --shots keeps its own counts)")
    add("--shots", type=whole(1), help="images of the largest class (16; so a folder with --tau)")
    add("--images", type=whole(1), metavar="N",
        help="N in all, dealt evenly to the classes: a balanced control for a smaller --tau")
    add("--classes", choices=["base", "all"], help="train on the base half or on all classes "
                                                   "(base; a folder of one's own: all)")
    add("--shuffle-classes", action="store_true", help="deal the n_k by seed, not in label order")
    add("--classnames", dest="classnames_file", metavar="FILE",
        help="a folder's class names, a line `folder<TAB>name` each (the folders' names)")
    add("--seed", type=files.seed, nargs="+", default=[1], help="of start, batches and crops (1)")
    add("--draw-seed", type=files.seed, help="of the draw and of a split made here (--seed's)")

    add_learner_options(p.add_argument_group("prompts and optimiser").add_argument)
    add_machine_options(p.add_argument_group("machine and files").add_argument)
    return p


def add_learner_options(add):
    whole, number = files.whole, files.number
    add("--n-ctx", type=whole(1, 76), help="b, learned tokens (CoOp 16, CoCoOp 4, MaPLe 2)")
    add("--ctx-init", help="words they start from; '' starts at random (CoOp: at random; CoCoOp, "
                           "MaPLe: a photo of a)")
    add("--prompt-depth", type=whole(1), help="MaPLe: layers with tokens of their own (9, or all "
                                              "where there are fewer; 3 on all of imagenet)")
    add("--class-specific", action="store_true", help="CoOp: a context for each trained class")
    add("--epochs", type=whole(1), help="the first is a warm-up at lr 1e-5 (5; CoOp 50)")
    add("--batch-size", type=whole(1), help="images in a step (4; CoOp 32)")
    add("--lr", type=number(0, 1e30), nargs="+", default=[None],
        help="SGD's highest learning rate (0.0035; CoOp 0.002)")


def add_machine_options(add):
    whole = files.whole
    add("--backbone", help=f"{', '.join(weight_files.MODELS)}, tiny, or a weights file (ViT-B/16; "
                           "for the embedded world tiny)")
    add("--out", type=Path, help="run folder (runs/<dataset>-<method>..., numbered if taken); "
                                 "of a grid the folder of its runs (runs)")
    add("--history", type=whole(0), default=0, metavar="N",
        help="measure the training images N times an epoch, into history.csv (%(default)s: never)")
    add("--test-images", type=whole(1), metavar="N",
        help="test on N images a class, drawn by seed: every result then says subset (all)")
    evaluate.add_machine_arguments(add)


def parse(argv=None):
    """The command line -> the runs it stands for, each an argparse.Namespace with single values."""
    args = parser().parse_args(argv)
    args.npt = [word == "on" for word in args.npt or ["on"]]
    args.dataset = [d for name in args.dataset for d in (data.ALL if name == "all" else [name])]
    if True not in args.npt and (args.w1, args.w2) != ([None], [None]):
        raise ValueError("--w1 and --w2 weigh the terms of NPT: add --npt")
    if True not in args.npt and (args.ew, args.eh, args.reduction) != (1.0, 1.0, "mean"):
        raise ValueError("--ew, --eh and --reduction belong to the terms of NPT: add --npt")
    if True not in args.npt and args.balanced_mi:
        raise ValueError("--balanced-mi belongs to a term of NPT: add --npt")
    if args.images and args.tau not in ([None], [1.0]):
        raise ValueError("--images makes a balanced set, without --tau: leave one of them out")
    several_values = [axis for axis in AXES if len(getattr(args, axis)) > 1]
    plan = {}
    for values in itertools.product(*(getattr(args, axis) for axis in AXES)):
        one = argparse.Namespace(**{**vars(args), **dict(zip(AXES, values, strict=True))})
        if several_values:
            forget_what_does_not_matter(one, args)
        check(one)
        one.shots, one.tau = data.settled(one.dataset, one.shots, one.tau, one.images)
        one.draw_seed = one.seed if one.draw_seed is None else one.draw_seed
        one.more_name = [f"{axis}{getattr(one, axis):g}" for axis in ("w1", "w2", "lr")
                         if axis in several_values and getattr(one, axis) is not None]
        one.in_grid = one.quiet = bool(several_values)
        plan[tuple(getattr(one, axis) for axis in AXES)] = one
    return list(plan.values())


def forget_what_does_not_matter(one, args):
    """In a grid: w_1, w_2 without NPT, and what zero-shot CLIP has not."""
    if one.method == "zeroshot":
        one.class_specific = one.logit_adjust = False
        one.npt, one.tau, one.lr = False, None, None
        one.epochs = one.batch_size = one.n_ctx = one.ctx_init = one.prompt_depth = None
    if not one.npt:
        one.w1, one.w2, one.balanced_mi = None, None, False


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv

    def job():
        if not argv:
            print(f"python train.py {BARE}")
        plan = parse(argv or BARE.split())
        if plan[0].in_grid:
            return runs.run_grid(run, plan, plan[0].out or Path("runs"))
        if runs.rank() == 0:                            # torchrun's other ranks have none to do
            run(plan[0])
        return 0

    return files.exit_code(job, "interrupted; the same command goes on where it stopped")


if __name__ == "__main__":
    sys.exit(main())
