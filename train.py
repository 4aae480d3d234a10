"""Tune prompts on a frozen CLIP with the objective of NPT, Eq. (7): L = L_CLIP + w_1 L_LC + w_2 L_MI.

    python train.py                                                     # MaPLe + NPT, tau = 0.01, the embedded world
    python train.py --method maple --npt --tau 0.01 --dataset eurosat   # the same job on the real thing
    python train.py --method cocoop --tau 0.05 --dataset path/to/folder # a folder of one's own

Trains on the base classes (Sec. 5.1), evaluates zero-shot CLIP and the tuned prompts on base and on novel classes, and
leaves a folder: prompts.pt (the learned tensors), log.csv (every step), drawn.csv (the training images), run.json (all
settings), result.json.
"""
import argparse
import csv
import json
import math
import os
import platform
import shutil
import sys
import time
from pathlib import Path

import torch
import torchvision
from tqdm import tqdm

import clip_model
import data
import evaluate
import losses
import prompts

# Sec. 5 gives 5 epochs, batch 4 and lr 0.0035 "for all models", that is CoCoOp and MaPLe; it does not use CoOp, which
# keeps its own. From CoOp, CoCoOp, MaPLe: tokens, their initial words and the prompt depth.
DEFAULTS = {
    "zeroshot": dict(n_ctx=None, ctx_init=None, prompt_depth=None, epochs=0, batch_size=4, lr=0.0),
    "coop": dict(n_ctx=16, ctx_init=None, prompt_depth=None, epochs=50, batch_size=32, lr=0.002),
    "cocoop": dict(n_ctx=4, ctx_init="a photo of a", prompt_depth=None, epochs=5, batch_size=4, lr=0.0035),
    "maple": dict(n_ctx=2, ctx_init="a photo of a", prompt_depth=9, epochs=5, batch_size=4, lr=0.0035),
}
# From MaPLe: its setting where ImageNet's 1,000 classes are the source of the cross-dataset task
TRANSFER = {"maple": dict(prompt_depth=3, epochs=2, lr=0.0026), "cocoop": dict(epochs=2, lr=0.0026)}
WARM_UP_LR = 1e-5                       # From CoOp: the first epoch is constant


def parse(argv=None):
    p = argparse.ArgumentParser(description="Tune prompts on a frozen CLIP with Eq. (7).",
                                formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--method", choices=prompts.METHODS, help="prompt learner; without any argument: maple")
    loss = p.add_argument_group("Eq. (7): L = L_CLIP + w1 * L_LC + w2 * L_MI")
    loss.add_argument("--npt", action="store_true", help="add the two terms of NPT; without it w1 = w2 = 0")
    loss.add_argument("--w1", type=float, help="weight of L_LC, Eq. (5), with --npt; paper and default 0.3, 0 is off")
    loss.add_argument("--w2", type=float, help="weight of L_MI, Eq. (6), with --npt; paper and default 0.8, 0 is off")
    loss.add_argument("--ew", type=float, default=1.0, help="E_W, squared length of text features in L_LC and L_MI")
    loss.add_argument("--eh", type=float, default=1.0, help="E_H, squared length of image features in L_MI")
    loss.add_argument("--reduction", choices=["mean", "sum"], default="mean",
                      help="of Eqs. (5), (6): mean over pairs and images, or the printed sum")
    task = p.add_argument_group("training set, Sec. 5")
    task.add_argument("--dataset", default="world", help=f"one of {', '.join(data.NAMES)}, a folder of pictures, "
                                                           "or all: the eleven of Table 1")
    task.add_argument("--tau", type=float, help="min n_k / max n_k; 1 is balanced, smaller is longer-tailed; default 1")
    task.add_argument("--shots", type=int, default=16, help="images of the largest class, max n_k")
    task.add_argument("--classes", choices=["base", "all"],
                      help="train on the base half or on all classes; default base, a folder of one's own: all")
    task.add_argument("--shuffle-classes", action="store_true", help="deal the n_k to classes by seed, not in label order")
    task.add_argument("--classnames", metavar="FILE", help="names for a folder's classes, a line `folder<TAB>name` each")
    task.add_argument("--seed", type=int, default=1, help="of initial prompts, batches and crops")
    task.add_argument("--draw-seed", type=int, help="of the few-shot draw and of a split made here; default: --seed")
    learner = p.add_argument_group("prompts and optimiser (defaults follow the method)")
    learner.add_argument("--n-ctx", type=int, help="b, number of learned tokens")
    learner.add_argument("--ctx-init", help="words they start from; '' starts at random")
    learner.add_argument("--prompt-depth", type=int, help="MaPLe: layers that get tokens of their own")
    learner.add_argument("--epochs", type=int, help="the first is a warm-up at lr 1e-5")
    learner.add_argument("--batch-size", type=int)
    learner.add_argument("--lr", type=float, help="SGD's highest learning rate")
    machine = p.add_argument_group("machine and files")
    machine.add_argument("--backbone", help=f"{', '.join(clip_model.MODELS)}, tiny, or a weights file; default ViT-B/16, "
                                            "for the embedded world tiny")
    machine.add_argument("--out", type=Path, help="run folder; default runs/<dataset>-<method>..., numbered if taken")
    evaluate.add_machine_arguments(machine)
    argv = sys.argv[1:] if argv is None else argv
    args = p.parse_args(argv or ["--method", "maple", "--npt", "--tau", "0.01"])
    args.method, args.tau = args.method or "maple", 1.0 if args.tau is None else args.tau
    for option, seed in (("--seed", args.seed), ("--draw-seed", args.draw_seed)):
        if seed is not None and not 0 <= seed < 2 ** 32:            # torch's generators see the lowest 32 bits only
            raise ValueError(f"{option} must be from 0 to 2^32 - 1, got {seed}")
    return args


def resolve(args, dataset):
    """Fill in the defaults that depend on method and dataset; ValueError for values that make no sense."""
    if not args.npt and (args.w1 is not None or args.w2 is not None):
        raise ValueError("--w1 and --w2 weigh the terms of NPT: add --npt")
    if args.npt and args.method == "zeroshot":
        raise ValueError("--npt is a training objective, and --method zeroshot trains nothing; choose another method")
    args.w1, args.w2 = ((0.3 if args.w1 is None else args.w1, 0.8 if args.w2 is None else args.w2) if args.npt
                        else (0.0, 0.0))
    args.draw_seed = args.seed if args.draw_seed is None else args.draw_seed
    args.classes = args.classes or ("base" if dataset.base_novel else "all")
    defaults = DEFAULTS[args.method]
    if dataset.name == "imagenet" and args.classes == "all":
        defaults = defaults | TRANSFER.get(args.method, {})
    args.ctx_init = prompts.fold_spaces(args.ctx_init)
    if args.method in ("coop", "cocoop"):                           # the one that is given decides about the other
        if args.ctx_init and args.n_ctx is None:
            args.n_ctx = len(args.ctx_init.split(" "))
        elif args.ctx_init is None and args.n_ctx not in (None, defaults["n_ctx"]):
            args.ctx_init = ""
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
        elif args.method == "zeroshot" or name == "prompt_depth" and args.method != "maple":
            raise ValueError(f"--{name.replace('_', '-')} is no setting of {args.method}")
    if args.method == "zeroshot":
        args.ctx_init = dataset.template
    elif args.method != "maple" and args.ctx_init and len(args.ctx_init.split(" ")) != args.n_ctx:
        raise ValueError(f"{args.method} learns one token for each word of --ctx-init {args.ctx_init!r}, which is not "
                         f"--n-ctx {args.n_ctx}; leave one of them out")
    elif args.epochs < 1 or args.batch_size < 1:
        raise ValueError(f"expected --epochs and --batch-size of at least 1, got {args.epochs} and {args.batch_size}")
    for name in ("lr", "w1", "w2", "ew", "eh"):
        value = getattr(args, name)
        if not 0 <= value < math.inf or value == 0 and name in ("ew", "eh"):
            raise ValueError(f"--{name} must be a finite number that is not negative (E_W, E_H: above 0), got {value}")


def learning_rate(epoch, epochs, lr):
    """From CoOp: 1e-5 in epoch 0, then lr/2 (1 + cos(pi (e - 1) / E)), e = 1 .. E - 1."""
    return WARM_UP_LR if epoch == 0 else lr / 2 * (1 + math.cos(math.pi * (epoch - 1) / epochs))


def train(learner, dataset, items, args, log):
    """SGD on Eq. (7) over the items [(picture, label)]; every step's terms go to the open file `log`.

    Returns the mean of L_CLIP over the last epoch. Raises ValueError where a term is not finite, with its name and step.
    """
    clip, device = learner.clip, learner.clip.logit_scale.device
    view = data.transform(clip.visual.resolution, train=True, crop_scale=dataset.crop_scale)
    batches = evaluate.loader(data.Pictures(dataset, items, view), clip, batch_size=args.batch_size, shuffle=True,
                              drop_last=len(items) >= args.batch_size)          # From CoOp: no small last batch
    optimizer = torch.optim.SGD(prompts.trainable(learner).values(), lr=args.lr, momentum=0.9, weight_decay=5e-4)
    writer = csv.writer(log, lineterminator="\n")
    names = ("loss", "l_clip", "l_lc", "l_mi")
    writer.writerow(("epoch", "step", "lr", *names))
    learner.train()
    step = 0
    bar = tqdm(total=args.epochs * len(batches), desc="training", unit="step", mininterval=0.5)
    for epoch in range(args.epochs):
        rate = optimizer.param_groups[0]["lr"] = learning_rate(epoch, args.epochs, args.lr)
        history = []                            # stays on the device: reading a term would make a GPU wait for it
        for images, y in batches:
            images, y = images.to(device, non_blocking=True), y.to(device, non_blocking=True)
            logits, z, g = learner(images)
            loss, terms = losses.npt_loss(logits, z, g, y, w1=args.w1, w2=args.w2, E_W=args.ew, E_H=args.eh,
                                          reduction=args.reduction)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(torch.stack([loss.detach(), *(terms[n] for n in names[1:])]))
            if bar.update():                    # True about twice a second, when the bar is drawn anew
                shown = dict(zip(names, history[-1].tolist()))
                bar.set_postfix({n: f"{v:.3f}" for n, v in shown.items()}, refresh=False)
                if not all(map(math.isfinite, shown.values())):
                    break
        values = torch.stack(history).tolist()
        for row in values:
            step += 1
            writer.writerow((epoch, step, f"{rate:.6g}", *(f"{v:.6g}" for v in row)))
            for name, value in list(zip(names, row))[::-1]:         # the terms first, then their sum
                if not math.isfinite(value):
                    bar.close()
                    raise ValueError(f"{name} became {value} at step {step}, epoch {epoch}: try a smaller --lr, or "
                                     "--precision bfloat16 or float32 in place of float16")
    bar.close()
    if not all(p.isfinite().all() for p in prompts.trainable(learner).values()):
        raise ValueError(f"the learned tokens are no longer finite after the last step, {step}: try a smaller --lr")
    learner.eval()
    return sum(row[1] for row in values) / len(values)


def announce(learner, dataset, names, items, args):
    """Say what is about to happen: prompts, images per class, imbalance, trainable tensors. -> n_k of each class."""
    n = torch.bincount(torch.tensor([label for _, label in items]), minlength=len(names)).tolist()
    objective = "L_CLIP" + (f" + {args.w1:g} L_LC + {args.w2:g} L_MI ({args.reduction})" if args.npt else "")
    print(f"{args.method}{' + NPT' if args.npt else ''} on {dataset.name}: {len(names)} {args.classes} classes, "
          f"CLIP {args.backbone}, {args.precision} on {learner.clip.logit_scale.device.type}, seed {args.seed}")
    print(f"split     {dataset.split}")
    for note in dataset.notes:
        print(f"note      {note}")
    if args.method == "zeroshot":
        print(f"prompts   {learner.show_prompt(names[0])}  (nothing is trained)")
        return [0] * len(names)
    print("prompts   " + "  ".join(learner.show_prompt(name) for name in names[:3]) + ("  ..." if len(names) > 3 else ""))
    print(f"images    {sum(n)}: " + " ".join(map(str, n[:40])) + (" ..." if len(n) > 40 else "")
          + f"; min/max = {min(n) / max(n):.4g} where tau = {args.tau:g}")
    asked = data.class_counts(len(names), args.shots, args.tau, args.draw_seed if args.shuffle_classes else None)
    short = [name for name, have, want in zip(names, n, asked) if have < want]
    if short:
        print(f"warning: {len(short)} classes have fewer images than asked for and give all they have: "
              + ", ".join(short[:5]))
    learned = prompts.trainable(learner)
    print(f"trains    {sum(p.numel() for p in learned.values()):,} numbers in {len(learned)} tensors: "
          + ", ".join(f"{name} {tuple(p.shape)}" for name, p in list(learned.items())[:4])
          + (" ..." if len(learned) > 4 else ""))
    print(f"objective {objective}; {args.epochs} epochs, batch {args.batch_size}, lr {args.lr:g}")
    d, K = learner.clip.text_projection.shape[1], len(names)
    if args.w1 and K > d + 1:
        print(f"note      {K} classes in {d} dimensions: no simplex ETF exists; L_LC cannot fall below "
              f"{losses.lc_floor(K, d, args.ew, args.reduction):.4g}")
    return n


def run_folder(args, dataset):
    """Where the run will stand when it is finished, and its .part folder, where it is until then."""
    part = lambda path: path.with_name(path.name + ".part")
    if args.out:
        if not args.out.name or args.out.is_file() or args.out.is_dir() and any(args.out.iterdir()):
            found = "a finished run" if (args.out / "result.json").exists() else "files"
            raise ValueError(f"--out {args.out} must be a new or empty folder, it holds {found}: choose another")
        shutil.rmtree(part(args.out), ignore_errors=True)           # of an interrupted run
        return args.out, part(args.out)
    name = "-".join([dataset.name, args.method, *(["npt"] if args.npt else []),
                     *([f"tau{args.tau:g}"] if args.method != "zeroshot" else []), f"seed{args.seed}"])
    path, number = Path("runs") / name, 1
    while path.exists() or part(path).exists():                     # the latter may be a run beside this one
        number += 1
        path = Path("runs") / f"{name}-{number}"
    return path, part(path)


def full_path(name, known):
    """So that a run can be evaluated from another working directory."""
    return name if name is None or name in known else str(Path(name).expanduser().resolve())


def run(args):
    """The whole job -> the contents of result.json."""
    started = time.time()
    if args.shots < 1:
        raise ValueError(f"--shots must be at least 1, got {args.shots}")
    data.class_counts(2, args.shots, args.tau)                      # refuses a bad --tau before any loading
    dataset = data.load(args.dataset, args.data_root, classnames=args.classnames,
                        seed=args.seed if args.draw_seed is None else args.draw_seed)
    resolve(args, dataset)
    base, novel = data.halves(len(dataset.classnames))
    trained = base if args.classes == "base" else base + novel
    names = [dataset.classnames[k] for k in trained]
    items = data.training_items(dataset, trained, args.shots, args.tau, args.draw_seed,
                                args.draw_seed if args.shuffle_classes else None)
    if dataset.test_only and args.method != "zeroshot":
        raise ValueError(f"{dataset.name} is a test set: train on imagenet, then evaluate.py --task domain-generalization "
                         f"--targets {dataset.name}")
    if args.w1 and len(trained) < 2:
        raise ValueError("--npt needs at least two classes to train on: mu of Eq. (5) has no value at K = 1")
    out, part_out = run_folder(args, dataset)
    data.check_pictures(dataset, items)
    data.check_pictures(dataset, dataset.test, decode=dataset.exif)

    device = evaluate.pick_device(args.device)
    args.backbone = args.backbone or ("tiny" if isinstance(dataset.pictures, dict) else "ViT-B/16")
    clip = clip_model.load(args.backbone, device, getattr(torch, args.precision))
    if args.method == "maple" and args.prompt_depth == DEFAULTS["maple"]["prompt_depth"]:
        args.prompt_depth = min(args.prompt_depth, prompts.max_depth(clip))         # a small CLIP has fewer layers
    torch.manual_seed(args.seed)
    learner = prompts.build(args.method, clip, names, n_ctx=args.n_ctx, ctx_init=args.ctx_init or None,
                            prompt_depth=args.prompt_depth)
    counts = announce(learner, dataset, names, items, args)

    part_out.mkdir(parents=True)                                    # becomes `out` when all is done
    # Zero-shot CLIP first: it shows at once whether pictures, names and labels fit together
    parts = {"base": base, "novel": novel} if args.classes == "base" else {"all": trained}
    parts = {part: labels for part, labels in parts.items() if labels}
    plain = prompts.build("zeroshot", clip, names, ctx_init=dataset.template)
    features, zeroshot = {}, {}
    for part, labels in parts.items():
        batches = evaluate.pictures(dataset, data.select(dataset.test, labels), clip)
        features[part] = evaluate.image_features(plain, batches, show=f"zero-shot, {part}")
        plain.set_classes([dataset.classnames[k] for k in labels])
        zeroshot[part], _ = evaluate.measure(plain, *features[part])
        accuracy, chance = zeroshot[part]["accuracy"], 100 / len(labels)
        if len(labels) > 1 and accuracy < 1.5 * chance:
            print(f"warning: zero-shot accuracy on {part} classes is {accuracy:.1f} %, near chance ({chance:.1f} %): do the "
                  f"class names say what the pictures show? First prompts: "
                  + " ".join(plain.show_prompt(dataset.classnames[k]) for k in labels[:3]))

    settings = {"method": args.method, "npt": args.npt, "backbone": full_path(args.backbone, [*clip_model.MODELS, "tiny"]),
                "n_ctx": args.n_ctx, "ctx_init": args.ctx_init or None, "prompt_depth": args.prompt_depth,
                "dataset": full_path(args.dataset, data.NAMES), "classnames_file": full_path(args.classnames, []),
                "data_root": full_path(args.data_root, []), "classes": args.classes, "trained_classes": names,
                "class_counts": counts, "seed": args.seed, "draw_seed": args.draw_seed, "tau": args.tau,
                "label": args.method + (" + NPT" if args.npt else "")}
    if args.method != "zeroshot":
        evaluate.write_csv(part_out / "drawn.csv", [("picture", "class"), *((name, names[k]) for name, k in items)])
        with open(part_out / "log.csv", "w", encoding="utf-8") as log:
            last = train(learner, dataset, items, args, log)
        if len(names) > 1 and last > 0.95 * math.log(len(names)):
            print(f"warning: L_CLIP ended at {last:.3f}, near ln K = {math.log(len(names)):.3f}, a guess among {len(names)} "
                  "classes: this run has collapsed; try a smaller --lr or another --seed")
    learned = {name: p.detach().cpu() for name, p in prompts.trainable(learner).items()}
    torch.save({"learned": learned, "settings": settings}, part_out / "prompts.pt")

    tuned = {}
    for part, labels in parts.items():
        learner.set_classes([dataset.classnames[k] for k in labels])
        if not learner.frozen_images:                               # else the image features are zero-shot CLIP's
            batches = evaluate.pictures(dataset, data.select(dataset.test, labels), clip)
            features[part] = evaluate.image_features(learner, batches, show=f"tuned, {part}")
        tuned[part], _ = evaluate.measure(learner, *features[part])

    result = {"dataset": dataset.name, "method": args.method, "npt": args.npt, "tau": args.tau, "seed": args.seed,
              "draw_seed": args.draw_seed, "backbone": str(args.backbone), "classes": args.classes,
              "w1": args.w1, "w2": args.w2, "reduction": args.reduction, "split": dataset.split,
              "official_split": dataset.official_split, "class_counts": counts,
              **summary(tuned), "zeroshot": summary(zeroshot)}
    run_facts = {**vars(args), "settings": settings, "prompts": [learner.show_prompt(name) for name in names],
                 "test_transform": str(data.transform(clip.visual.resolution, train=False)),
                 "train_transform": str(data.transform(clip.visual.resolution, True, dataset.crop_scale)),
                 "versions": {"python": platform.python_version(), "torch": torch.__version__,
                              "torchvision": torchvision.__version__},
                 "seconds": round(time.time() - started, 1)}
    evaluate.write(part_out / "run.json", json.dumps(run_facts, indent=1, default=str))
    evaluate.write(part_out / "result.json", json.dumps(result, indent=1))
    os.replace(part_out, out)
    report(result, "zero-shot", settings["label"])
    print(f"{run_facts['seconds']:.0f} s; saved in {out}")
    return result


def summary(measures):
    """Measures of the parts -> the flat numbers of result.json; the top-level Deltas are those of the trained classes.

    Open point: the paper does not say on which classes it measures; here on test images of the trained classes, and
    of the novel ones beside them.
    """
    first = measures.get("base") or measures["all"]
    novel = measures.get("novel")
    numbers = {"base": measures["base"]["accuracy"] if "base" in measures else None,
               "novel": novel["accuracy"] if novel else None}
    numbers["harmonic_mean"] = (evaluate.harmonic_mean(numbers["base"], numbers["novel"])
                                if None not in numbers.values() else None)
    numbers |= {"all": measures["all"]["accuracy"]} if "all" in measures else {}
    numbers |= {name: first[name] for name in ("delta_lcd", "delta_mid", "lcd_rms")}
    numbers |= {"novel_" + name: novel[name] for name in ("delta_lcd", "delta_mid", "lcd_rms")} if novel else {}
    return {name: round(v, 6) if isinstance(v, float) else v for name, v in numbers.items()}


def accuracies(result):
    """Names of the accuracies that a result holds."""
    return [c for c in ("base", "novel", "harmonic_mean", "all") if result.get(c) is not None]


def report(result, *labels):
    """The table a run ends with."""
    columns = accuracies(result)
    rows = [("", *columns, "Delta_LCD", "Delta_MID")]
    for label, numbers in zip(labels, (result["zeroshot"], result)):
        rows.append((label, *(numbers[c] for c in columns), f"{numbers['delta_lcd']:.4f}", f"{numbers['delta_mid']:.4f}"))
    print()
    print(evaluate.table(rows))


def run_all(args):
    """The same job on the eleven datasets of Table 1, one after the other; what is finished in --out is not run again."""
    for name in data.ALL:                                           # all there, before hours of work
        data.load(name, args.data_root, seed=args.seed if args.draw_seed is None else args.draw_seed)
    folder = args.out or Path("runs") / f"all-{args.method}{'-npt' if args.npt else ''}-tau{args.tau:g}-seed{args.seed}"
    results = []
    for name in data.ALL:
        out = folder / name
        if (out / "result.json").is_file():
            before = json.loads((out / "run.json").read_text(encoding="utf-8"))
            other = [k for k, v in vars(args).items() if v is not None and k not in ("dataset", "out", "device", "data_root")
                     and before.get(k) != v]
            if other:
                raise ValueError(f"{out} was finished with another --{other[0].replace('_', '-')}: choose another --out")
            print(f"{name}: finished before, in {out}")
            results.append(json.loads((out / "result.json").read_text(encoding="utf-8")))
        else:
            results.append(run(argparse.Namespace(**{**vars(args), "dataset": name, "out": out})))
    columns = accuracies(results[0])
    rows = [("", *columns)] + [(r["dataset"], *(r[c] for c in columns)) for r in results]
    rows.append(("average", *(sum(r[c] for r in results) / len(results) for c in columns)))
    print(f"\n{evaluate.table(rows)}\nsaved in {folder}")


def main(argv=None):
    try:
        args = parse(argv)
        (run_all if args.dataset == "all" else run)(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; what the run had written stays in its .part folder", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
