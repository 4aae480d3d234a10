"""Evaluate a finished run; it never trains. Also the measures that train.py prints before and after (Sec. 5, Defs. 2, 3).

    python evaluate.py runs/world-maple-npt-tau0.01-seed1                       # base and novel classes, CSV files
    python evaluate.py RUN --task cross-dataset --targets world_shapes world_colours        # Table 2
    python evaluate.py RUN --task domain-generalization --targets world_sketch world_noise  # Table 4
    python evaluate.py RUN --image photo.jpg                                    # the top classes of a photo
    python evaluate.py RUN --figure collapse.png                                # Fig. 1 and the cosines, drawn

Accuracy is top-1 over all test images, in per cent, base images against base classes and novel against novel, as the
originals have it. The harmonic mean of both is H = 2 b n / (b + n), Table 1.
"""
import argparse
import csv
import io
import json
import os
import sys
from pathlib import Path

import torch
from tqdm import tqdm

import clip_model
import data
import losses
import prompts

TASKS = {                       # --task: the paper's targets where --targets names none
    "base-to-novel": [],
    "cross-dataset": [name for name in data.ALL if name != "imagenet"],
    "domain-generalization": ["imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"],
}
MANY, FEW = 8, 2                # Open point: many-shot classes have at least 8 training images of 16, few-shot at most 2


# ---------------------------------------------------------------------------------------------------------- the measures

def pictures(dataset, items, clip, batch_size=100):
    """Loader over (images (B, 3, res, res), labels (B,)) in order, test transform."""
    if not items:
        raise ValueError(f"{dataset.name}: none of the classes to evaluate has a test picture")
    view = data.transform(clip.visual.resolution, train=False)
    return loader(data.Pictures(dataset, items, view), clip, batch_size=batch_size)


def loader(images, clip, **options):
    """DataLoader with workers where decoding costs something: not for the small pictures of the embedded world."""
    on_disk, gpu = not isinstance(images.dataset.pictures, dict), clip.logit_scale.device.type == "cuda"
    workers = min(4, os.cpu_count() or 1) if on_disk and (gpu or len(images) > 100) else 0      # a GPU must not wait
    return torch.utils.data.DataLoader(images, num_workers=workers, persistent_workers=workers > 0, pin_memory=gpu, **options)


@torch.no_grad()
def image_features(learner, batches, show=None):
    """z (N, d) and y (N,) of a whole loader, on the learner's device."""
    device = learner.clip.logit_scale.device
    z, y = [], []
    for images, labels in tqdm(batches, desc=show, leave=False, disable=show is None):
        z.append(learner.image_features(images.to(device, non_blocking=True)))
        y.append(labels)
    return torch.cat(z), torch.cat(y).to(device)


@torch.no_grad()
def measure(learner, z, y, batch_size=100):
    """The learner on image features z (N, d) with labels y (N,) among its classes.

    -> {"accuracy" in per cent, "delta_lcd", "delta_mid", "lcd_rms"} and the probabilities of Eq. (1), (N, K), on the CPU.

    Text features are computed once for the whole evaluation, after the weights are final; CoCoOp's belong to images and
    are computed for each batch. Definition 2 is then an average over images, for the others it is one number.
    """
    K = len(learner.classnames)
    spread = lambda g: torch.stack([losses.delta_lcd(g), losses.lcd_rms(g)]) if K > 1 else torch.zeros(2, device=g.device)
    shared = None if learner.per_image else learner.text_features()
    shared_spread = None if learner.per_image else spread(shared)
    batch_size = max(1, min(batch_size, 2000 // K)) if learner.per_image else batch_size        # B x K texts at a time
    sums, probabilities = [], []
    for z_b, y_b in zip(z.split(batch_size), y.split(batch_size)):
        logits, z_b, g = learner.compare(z_b, shared)
        probabilities.append(logits.softmax(dim=-1))
        over_texts = spread(g) if learner.per_image else shared_spread
        sums.append(len(z_b) * torch.cat([over_texts, losses.delta_mid(z_b, g, y_b)[None]]))
    lcd, rms, mid = (torch.stack(sums).double().sum(dim=0) / len(z)).tolist()
    probabilities = torch.cat(probabilities).cpu()
    right = (probabilities.argmax(dim=1) == y.cpu()).double().mean().item()
    return {"accuracy": 100 * right, "delta_lcd": lcd, "delta_mid": mid, "lcd_rms": rms}, probabilities


def harmonic_mean(base, novel):
    """H = 2 b n / (b + n); 0 where both are 0."""
    return 2 * base * novel / (base + novel) if base + novel else 0.0


def recalls(labels, predictions, K):
    """Share of right predictions for each class, in per cent; nan for a class without test images."""
    n = torch.bincount(labels, minlength=K)
    return 100 * torch.bincount(labels[labels == predictions], minlength=K) / n, n


# ------------------------------------------------------------------------------------------------------- a finished run

def load_run(folder, device="cpu", dtype=torch.float32, classnames=None):
    """-> learner with the run's learned tensors, and the run's settings (what train.py saved beside them).

    Raises FileNotFoundError where there is no finished run, ValueError where its files can't be read.
    """
    folder = Path(folder)
    if not (folder / "result.json").is_file() or not (folder / "prompts.pt").is_file():
        raise FileNotFoundError(f"{folder} is no finished run: expected result.json and prompts.pt in it, as train.py "
                                "leaves them")
    try:
        run = torch.load(folder / "prompts.pt", map_location="cpu", weights_only=True)
        settings, learned = run["settings"], run["learned"]
        classnames, backbone = classnames or settings["trained_classes"], settings["backbone"]
    except Exception as error:
        raise ValueError(f"{folder / 'prompts.pt'}: not a run's learned tensors ({type(error).__name__}); train again"
                         ) from error
    clip = clip_model.load(backbone, device, dtype)
    learner = prompts.build(settings["method"], clip, classnames, n_ctx=settings["n_ctx"],
                            ctx_init=settings["ctx_init"], prompt_depth=settings["prompt_depth"])
    prompts.load_trainable(learner, learned)
    return learner, settings


def load_dataset(folder, settings, data_root):
    """The dataset of a run. ValueError where its classes changed or test pictures would be ones the run trained on."""
    dataset = data.load(settings["dataset"], data_root, seed=settings["draw_seed"], classnames=settings["classnames_file"])
    if dataset.classnames[:len(settings["trained_classes"])] != settings["trained_classes"]:
        raise ValueError(f"{settings['dataset']} has other classes now than those that {folder} was trained on")
    if (folder / "drawn.csv").is_file():                            # zero-shot CLIP has none
        with open(folder / "drawn.csv", encoding="utf-8", newline="") as file:
            drawn = {row[0] for row in csv.reader(file)}
        seen = drawn & {name for name, _ in dataset.test}
        if seen:
            raise ValueError(f"{len(seen)} test pictures of {settings['dataset']} trained the prompts of {folder}, first "
                             f"{min(seen)}: its pictures or its split changed since; now: {dataset.split}")
    data.check_pictures(dataset, dataset.test, decode=False)
    return dataset


def write(path, text):
    """Write a file under a temporary name, then rename it: it is there whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def write_csv(path, rows):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write(path, text.getvalue())


def table(rows):
    """Rows of words and numbers -> lines with aligned columns; numbers with two decimals."""
    rows = [[f"{c:.2f}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths)))
                     for row in rows)


# ------------------------------------------------------------------------------------------------------------- the parts

def evaluate_classes(learner, dataset, labels, trained, out, features=None):
    """Accuracy on the test images of some classes, with per-class, per-image and confusion files in the folder `out`.

    labels   the classes, as labels of the dataset
    trained  training images of each of them in the run, for the groups many, medium and few
    features z, y of these test images where the caller holds them
    """
    names = [dataset.classnames[k] for k in labels]
    items = data.select(dataset.test, labels)
    learner.set_classes(names)
    z, y = features or image_features(learner, pictures(dataset, items, learner.clip), show="test images")
    result, probabilities = measure(learner, z, y)
    y, (confidence, predicted) = y.cpu(), probabilities.max(dim=1)
    recall, n = recalls(y, predicted, len(labels))

    group = ["unseen" if c == 0 else "many" if c >= MANY else "few" if c <= FEW else "medium" for c in trained]
    out.mkdir(parents=True, exist_ok=True)
    write_csv(out / "per_class.csv", [("class", "training_images", "group", "test_images", "recall"), *(
        (name, c, g, int(m), f"{r:.2f}") for name, c, g, m, r in zip(names, trained, group, n, recall))])
    write_csv(out / "predictions.csv", [("picture", "class", "predicted", "probability"), *(
        (name, names[k], names[p], f"{q:.4f}") for (name, k), p, q in zip(items, predicted, confidence))])
    confusion = torch.bincount(y * len(names) + predicted, minlength=len(names) ** 2).view(len(names), -1)
    write_csv(out / "confusion.csv", [("class \\ predicted", *names), *(
        (name, *row) for name, row in zip(names, confusion.tolist()))])

    result["groups"] = {}
    for name in dict.fromkeys(group):
        inside = torch.tensor([g == name and m > 0 for g, m in zip(group, n)])
        if inside.any():
            result["groups"][name] = {"classes": int(inside.sum()), "recall": recall[inside].mean().item()}
    return result | {"num_classes": len(names), "test_images": len(items)}


def show_groups(name, result):
    words = [f"{g} {v['recall']:.1f} % ({v['classes']} classes)" for g, v in result["groups"].items()]
    print(f"{name}: mean recall by training images: " + ", ".join(words))


def base_to_novel(learner, settings, dataset, which, out):
    """Table 1 for one run -> {"base": ..., "novel": ..., "harmonic_mean"} or {"all": ...}."""
    K = len(dataset.classnames)
    halves = dict(zip(("base", "novel"), data.halves(K)))
    halves["all"] = halves["base"] + halves["novel"]
    trained = settings["class_counts"] + [0] * (K - len(settings["class_counts"]))
    results = {}
    for name in ("base", "novel") if which is None else (which,):
        labels = halves[name]
        results[name] = evaluate_classes(learner, dataset, labels, [trained[k] for k in labels], out / name)
    rows = [("", "classes", "images", "accuracy", "Delta_LCD", "Delta_MID")]
    rows += [(n, r["num_classes"], r["test_images"], r["accuracy"], f"{r['delta_lcd']:.4f}", f"{r['delta_mid']:.4f}")
             for n, r in results.items()]
    print(table(rows))
    for name, result in results.items():
        show_groups(name, result)
    if which is None:
        results["harmonic_mean"] = harmonic_mean(*(results[n]["accuracy"] for n in ("base", "novel")))
        print(f"harmonic mean {results['harmonic_mean']:.2f}")
    return results


def transfer(learner, settings, targets, data_root, out):
    """Tables 2 and 4: the run's prompts on other datasets, beside zero-shot CLIP with each dataset's template."""
    datasets = {target: data.load(target, data_root) for target in targets}             # all there, before any work
    names = [dataset.name for dataset in datasets.values()]
    if len(set(names)) < len(names):
        raise ValueError(f"two of --targets are named {max(names, key=names.count)}, and each gets a folder of that name: "
                         "evaluate them one at a time, each with an --out of its own")
    counts = dict(zip(settings["trained_classes"], settings["class_counts"]))
    results = {}
    for target, dataset in datasets.items():
        data.check_pictures(dataset, dataset.test, decode=False)
        everything = list(range(len(dataset.classnames)))
        trained = [counts.get(name, 0) for name in dataset.classnames]
        plain = prompts.build("zeroshot", learner.clip, dataset.classnames, ctx_init=dataset.template)
        z, y = image_features(plain, pictures(dataset, dataset.test, learner.clip), show="zero-shot")
        results[target] = evaluate_classes(learner, dataset, everything, trained, out / dataset.name,
                                           (z, y) if learner.frozen_images else None)
        results[target] |= {"zeroshot": measure(plain, z, y)[0]["accuracy"], "split": dataset.split,
                            "official_split": dataset.official_split}
    rows = [("target", "classes", "images", "zero-shot", settings["label"])]
    rows += [(n, r["num_classes"], r["test_images"], r["zeroshot"], r["accuracy"]) for n, r in results.items()]
    mean = lambda key: sum(r[key] for r in results.values()) / len(results)
    rows.append(("average", "", "", mean("zeroshot"), mean("accuracy")))
    print(table(rows))
    return results


@torch.no_grad()
def classify(learner, paths, top=5):
    """Photos -> for each the most probable classes, [(class name, probability)]."""
    view = data.transform(learner.clip.visual.resolution, train=False)
    answers = []
    for path in paths:
        pixels = view(data.open_picture(path, exif=True))
        logits = learner(pixels[None].to(learner.clip.logit_scale.device))[0][0]
        p, k = logits.softmax(dim=-1).topk(min(top, len(logits)))
        answers.append([(learner.classnames[i], q) for i, q in zip(k.tolist(), p.tolist())])
    return answers


def draw_figure(learner, dataset, labels, path):
    """Fig. 1 in the plane of the first two principal directions of the text features, and all cosines <g_i, g_j>."""
    try:
        import matplotlib
    except ImportError:
        raise ValueError("--figure needs matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [dataset.classnames[k] for k in labels]
    if len(names) < 2:
        raise ValueError("--figure shows angles between classes and needs at least two")
    learner.set_classes(names)
    z, y = image_features(learner, pictures(dataset, data.select(dataset.test, labels), learner.clip), show="test images")
    with torch.no_grad():
        g = (learner.text_features(z[:200]).mean(dim=0) if learner.per_image else learner.text_features()).cpu()
    z, y, K = z.cpu(), y.cpu(), len(names)
    plane = torch.linalg.svd(g - g.mean(dim=0)).Vh[:2].T                            # (d, 2)
    text, image = (g - g.mean(dim=0)) @ plane, (z - z.mean(dim=0)) @ plane
    image = image * text.norm(dim=1).max() / image.norm(dim=1).quantile(.95)        # the modalities differ in spread

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5.5))
    colours = plt.get_cmap("hsv")(torch.linspace(0, .92, K).numpy())
    for k in range(K):
        left.scatter(*image[y == k].T, s=6, color=colours[k], alpha=.35)
    for k, name in enumerate(names):
        left.annotate("", text[k].tolist(), (0, 0), arrowprops={"arrowstyle": "->", "color": colours[k], "lw": 2})
        if K <= 30:
            left.text(*(1.08 * text[k]).tolist(), name.replace("_", " "), fontsize=7, ha="center")
    left.set(title="text features (arrows) and image features (points)", xlabel="first principal direction of the texts",
             ylabel="second", aspect="equal")
    S = g @ g.T
    shown = right.imshow(S.numpy(), cmap="coolwarm", vmin=-1, vmax=1)
    right.set(title=f"cosines of the text features (simplex ETF: {-1 / max(K - 1, 1):.3f})")
    if K <= 30:
        right.set_xticks(range(K), [n.replace("_", " ") for n in names], rotation=90, fontsize=7)
        right.set_yticks(range(K), [n.replace("_", " ") for n in names], fontsize=7)
    figure.colorbar(shown, ax=right, fraction=.046)
    figure.tight_layout()
    part = path.with_name(path.name + ".part")
    figure.savefig(part, dpi=110, format=path.suffix.lstrip(".") or "png")
    os.replace(part, path)
    plt.close(figure)


# ------------------------------------------------------------------------------------------------------ the command line

def pick_device(name):
    """--device auto|cpu|cuda|mps -> torch.device."""
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(n for n in ("cuda", "mps", "cpu") if present[n])
    if not present[name]:
        raise ValueError(f"--device {name}: this machine has none; use auto or cpu")
    return torch.device(name)


def add_machine_arguments(p, data_root="data"):
    p.add_argument("--data-root", default=data_root, help="folder that holds the datasets in CoOp's layout"
                                                          + ("" if data_root else "; by default the run's"))
    p.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto")
    p.add_argument("--precision", choices=["float32", "bfloat16", "float16"], default="float32",
                   help="of the frozen CLIP; prompts, features and losses are float32 always")


def parse(argv):
    p = argparse.ArgumentParser(description="Evaluate a finished run. It never trains.",
                                formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("run", help="folder that train.py made")
    p.add_argument("--classes", choices=["base", "novel", "all"],
                   help="evaluate these only; by default base and novel, or all where the run was trained on all")
    p.add_argument("--task", choices=TASKS, default="base-to-novel", help="Table 1, Table 2 or Table 4")
    p.add_argument("--targets", nargs="+", metavar="DATASET", help="datasets for the last two; default: the paper's")
    p.add_argument("--image", nargs="+", metavar="FILE", help="classify these pictures instead")
    p.add_argument("--classnames", metavar="FILE", help="with --image: class names, one a line, also ones never trained")
    p.add_argument("--figure", type=Path, metavar="FILE", help="draw text and image features and their cosines instead")
    p.add_argument("--out", type=Path, help="folder for the CSV files; default: evaluation/ in the run's folder")
    add_machine_arguments(p, data_root=None)
    return p.parse_args(argv)


def run(args):
    if args.classnames and not args.image:
        raise ValueError("--classnames goes with --image; a dataset has its own class names")
    if args.targets and args.task == "base-to-novel":
        raise ValueError("--targets goes with --task cross-dataset or domain-generalization")
    if args.task != "base-to-novel" and (args.classes or args.figure):
        raise ValueError(f"--task {args.task} takes all classes of each target and draws no figure: leave out "
                         "--classes and --figure")
    # a line of the file may also be `folder<TAB>name`, as train.py takes it
    names = [line.split("\t")[-1] for line in data.read_lines(Path(args.classnames))] if args.classnames else None
    if args.classnames and not names:
        raise ValueError(f"{args.classnames}: expected class names, one a line; it is empty")
    folder = Path(args.run)
    learner, settings = load_run(folder, pick_device(args.device), getattr(torch, args.precision), names)
    out, data_root = args.out or folder / "evaluation", args.data_root or settings["data_root"]
    if args.image:
        for path, answer in zip(args.image, classify(learner, args.image)):
            print(f"{path}: " + ", ".join(f"{name.replace('_', ' ')} {100 * p:.1f} %" for name, p in answer))
        return
    if args.task != "base-to-novel":
        targets = [t for name in args.targets or TASKS[args.task] for t in (data.ALL if name == "all" else [name])]
        results, facts = transfer(learner, settings, targets, data_root, out), {}
    else:
        dataset = load_dataset(folder, settings, data_root)
        print(f"{settings['label']} on {dataset.name}, split: {dataset.split}")
        base, novel = data.halves(len(dataset.classnames))
        if args.classes == "novel" and (settings["classes"] == "all" or not novel):
            raise ValueError(f"{folder} was trained on all classes of {dataset.name}: none is novel to it")
        which = args.classes or ("all" if settings["classes"] == "all" else None if novel else "base")
        if args.figure:
            labels = {"base": base, "novel": novel, "all": base + novel}[which or "base"]
            draw_figure(learner, dataset, labels, args.figure)
            print(f"drawn: {args.figure}")
            return
        results = base_to_novel(learner, settings, dataset, which, out)
        facts = {"split": dataset.split, "official_split": dataset.official_split}
    write(out / f"{args.task}.json", json.dumps({"run": str(folder), "task": args.task, "label": settings["label"],
                                                 **facts, "results": results}, indent=1))
    print(f"per-class recall, predictions and confusion: {out}")


def main(argv=None):
    try:
        run(parse(argv))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; run it again for the whole evaluation", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
