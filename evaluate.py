"""Evaluate a finished run; it never trains. Also what train.py measures before and after training.

    python evaluate.py RUN                  # a run's folder: base and novel classes, CSV files
    python evaluate.py RUN --task cross-dataset --targets world_shapes world_colours    # Table 2
    python evaluate.py RUN --task domain-generalization --targets world_sketch          # Table 4
    python evaluate.py RUN --image photo.jpg folder     # the top classes of photos
    python evaluate.py RUN --report report.html         # all of a run on one page
    python evaluate.py RUN --texts texts.npz            # the learned class texts, for use elsewhere
    python evaluate.py RUN --features features.npz      # image and text features, for numpy

Accuracy is top-1 over all test images, in per cent, base images against base classes and novel
against novel, as the originals have it; Table 1 has the harmonic mean of both. Beside it stand
Definitions 2 and 3, L_LC's two parts and the three collapses of Sec. 3.2.
"""
import json
import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)        # Ctrl-C until files.exit_code takes it over

import numpy  # torchvision depends on it
import torch

import clip_model
import data
import losses
import prompts
from assets import checkpoints, features, files, measures, photos, report, saved

TASKS = {                       # --task: the paper's targets where --targets names none
    "base-to-novel": [],
    "cross-dataset": [name for name in data.ALL if name != "imagenet"],
    "domain-generalization": ["imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"],
}
ALONE = {                       # what can't stand beside these options
    "table": ("image", "features", "task", "classes", "data_root", "report", "texts"),
    "image": ("features", "task", "classes", "data_root", "report", "texts"),
    "features": ("task", "targets", "out", "report", "texts"),
    "texts": ("task", "targets", "classes", "data_root", "out", "report"),
    "report": ("task", "targets"),
}
OF_TEXTS = ("delta_lcd", "lcd_rms", "lc_shared", "lc_unequal")      # measured on texts alone


# What is measured ------------------------------------------------------------------------------

def test_features(learner, dataset, labels, frozen, show=None):
    """z (N, d), y (N,) of the test images of some classes.

    This decides that image features are shared: in a frozen image tower they are the same for all
    learners, and zero-shot CLIP's serve CoOp and CoCoOp.
    """
    if learner.frozen_images:
        return frozen.of(learner, labels, show)
    batches = data.batches(dataset, data.select(dataset.test, labels),
                           learner.clip.visual.resolution, learner.clip.logit_scale.device)
    return features.image_features(learner, batches, show)


def score(learner, dataset, labels, frozen, show=None):
    """A learner on the test images of some classes -> what measure() returns.

    labels  the classes, as labels of the dataset; they become the learner's
    frozen  features.FrozenFeatures of the dataset
    """
    if not data.select(dataset.test, labels):
        raise ValueError(f"{dataset.name}: none of the classes to evaluate has a test picture")
    learner.set_classes([dataset.classnames[k] for k in labels])
    return measure(learner, *test_features(learner, dataset, labels, frozen, show))


@torch.no_grad()
def image_and_text_features(learner, dataset, labels, frozen, show=None):
    """z (N, d), y (N,) of the test images of some classes and g (K, d), with which they are scored.

    CoCoOp's texts belong to images; g is then their mean over these images.
    """
    learner.set_classes([dataset.classnames[k] for k in labels])
    z, y = test_features(learner, dataset, labels, frozen, show)
    if not learner.per_image:
        return z, y, learner.text_features()
    few = max(1, 2000 // len(labels))                                   # B x K texts at a time
    return z, y, sum(learner.text_features(z_b).sum(dim=0) for z_b in z.split(few)) / len(z)


def text_measures(g):
    """OF_TEXTS of text features g (K, d) or (B, K, d), (4,); 0 for one class, which has no mu."""
    if g.shape[-2] < 2:
        return g.new_zeros(len(OF_TEXTS))
    return torch.stack([losses.delta_lcd(g), losses.lcd_rms(g), *losses.lc_parts(g)])


@torch.no_grad()
def measure(learner, z, y, batch_size=100):
    """The learner on image features z (N, d) with labels y (N,) among its classes.

    -> {"accuracy" and "mean_recall" (over classes) in per cent, OF_TEXTS, "delta_mid", the three
    collapses of Sec. 3.2} and the probabilities of Eq. (1), (N, K), on the CPU.

    Text features are computed once for the whole evaluation, after the weights are final; CoCoOp's
    belong to images: measures of texts are then averages over images, collapses use the mean text.
    """
    K, lam = len(learner.classnames), learner.clip.temperature
    g, of_texts = None, None
    if learner.per_image:
        batch_size = max(1, min(batch_size, 2000 // K))             # B x K texts at a time
    else:
        g = learner.text_features()
        of_texts = text_measures(g)
    sums, mean_g, probabilities = [], 0, []
    for z_b, y_b in zip(z.split(batch_size), y.split(batch_size), strict=True):
        if learner.per_image:
            g = learner.text_features(z_b)
            of_texts = text_measures(g)
            mean_g = mean_g + g.sum(dim=0) / len(z)
        probabilities.append(losses.class_probabilities(z_b, g, lam))               # Eq. (1)
        mid = losses.delta_mid(z_b, g, y_b)
        sums.append(len(z_b) * torch.cat([of_texts, mid[None]]))
    means = (torch.stack(sums).cpu().double().sum(dim=0) / len(z)).tolist()     # mps has no float64
    probabilities = measures.finite(torch.cat(probabilities).cpu())
    predicted, y_cpu = probabilities.argmax(dim=1), y.cpu()
    right = predicted == y_cpu
    numbers = dict(zip((*OF_TEXTS, "delta_mid"), means, strict=True))
    numbers["accuracy"] = 100 * right.double().mean().item()
    numbers["mean_recall"] = measures.mean_recall(y_cpu, predicted, K)
    numbers["right"] = numpy.packbits(right).tobytes().hex()        # a bit an image, for pairing
    collapses = losses.collapses(z, mean_g if learner.per_image else g, y)          # Sec. 3.2
    return numbers | collapses, probabilities


def harmonic_mean(base, novel):
    """H = 2 b n / (b + n); 0 where both are 0."""
    return 2 * base * novel / (base + novel) if base + novel else 0.0


# A finished run --------------------------------------------------------------------------------

def load_run(folder, device="cpu", dtype=torch.float32, classnames=None):
    """-> learner with the run's learned tensors, and the settings that train.py saved beside them.

    Raises FileNotFoundError where there is no finished run, ValueError for files that are not one.
    """
    folder = Path(folder)
    runs = sorted(file.parent for file in folder.glob("*/result.json"))
    if runs and not (folder / "result.json").exists():
        raise FileNotFoundError(f"{folder} holds {len(runs)} runs: evaluate one of them, such as "
                                f"{runs[0]}; train.py's command shows their means again")
    if not (folder / "result.json").is_file() or not (folder / "prompts.pt").is_file():
        raise FileNotFoundError(f"{folder} is no finished run: expected result.json and prompts.pt "
                                "in it, as train.py leaves them")
    settings, learned = saved.read_prompts(folder)
    clip = clip_model.load(settings["backbone"], device, dtype)
    if settings.get("weights_sha256") not in (None, clip_model.fingerprint(settings["backbone"])):
        raise ValueError(f"{folder} was trained on other weights than {settings['backbone']} holds "
                         "now: put those back, or train again")
    learner = prompts.build(settings["method"], clip, classnames or settings["trained_classes"],
                            n_ctx=settings["n_ctx"], ctx_init=settings["ctx_init"],
                            prompt_depth=settings["prompt_depth"],
                            class_specific=settings.get("class_specific", False))
    prompts.load_trainable(learner, learned)
    return learner, settings


def load_dataset(folder, settings, data_root):
    """The dataset of a run; of a folder of one's own as it was split then.

    data_root   where the datasets lie, or that folder; None: where they lay then
    Raises ValueError where its classes changed, or test pictures are ones that the run trained on.
    """
    if (folder / photos.SPLIT).is_file():
        dataset = photos.load_kept(folder, settings, data_root)
    else:
        dataset = data.load(settings["dataset"], data_root or settings["data_root"],
                            seed=settings["draw_seed"], classnames=settings["classnames_file"])
    name, trained = settings["dataset"], settings["trained_classes"]
    if dataset.classnames[:len(trained)] != trained:
        raise ValueError(f"{name} has other classes now than those that {folder} was trained on")
    if (folder / "drawn.csv").is_file():                            # zero-shot CLIP has none
        seen = saved.read_drawn(folder / "drawn.csv") & {picture for picture, _ in dataset.test}
        if seen:
            raise ValueError(f"{len(seen)} test pictures of {name} trained the prompts of "
                             f"{folder}, first {min(seen)}: its pictures or its split changed "
                             f"since; now: {dataset.split}")
    data.check_pictures(dataset, dataset.test, decode=False)
    data.cut_tests(dataset, settings.get("test_images"), settings["draw_seed"])
    return dataset


def table(rows):
    """Rows of words and numbers -> lines with aligned columns; numbers with two decimals."""
    rows = [[f"{c:.2f}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [c.rjust(w) for c, w in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join(lines)


# Tables 1, 2, 4 for one run --------------------------------------------------------------------

def evaluate_classes(learner, dataset, labels, trained, out, frozen):
    """Accuracy and measures.judge on the test images of some classes, CSV files in `out`.

    labels   the classes, as labels of the dataset
    trained  training images of each of them in the run, for the groups many, medium and few
    frozen   features.FrozenFeatures of the dataset
    """
    names, items = [dataset.classnames[k] for k in labels], data.select(dataset.test, labels)
    out.mkdir(parents=True, exist_ok=True)              # before any work is done in vain
    result, probabilities = score(learner, dataset, labels, frozen, "test images")
    plain = None
    if prompts.trainable(learner):
        zeroshot = prompts.build("zeroshot", learner.clip, names, ctx_init=dataset.template)
        plain = score(zeroshot, dataset, labels, frozen, "zero-shot")[1]
    measures.write(out, names, trained, items, probabilities, plain)
    y = torch.tensor([label for _, label in items])
    return result | measures.judge(names, trained, y, probabilities, plain)


def show_collapse(results):
    """Definitions 2 and 3, L_LC's two parts and Sec. 3.2's collapses of each part; 0 is an ETF."""
    names = {"delta_lcd": "Delta_LCD", "delta_mid": "Delta_MID", "lc_shared": "L_LC: shared",
             "lc_unequal": "unequal angles", "feature_collapse": "collapse: feature",
             "prototype_collapse": "prototype", "classifier_collapse": "classifier"}
    rows = [("", *names.values())]
    rows += [(part, *(f"{result[name]:.4f}" for name in names)) for part, result in results.items()]
    print(table(rows))


def base_to_novel(learner, settings, dataset, parts, out, frozen):
    """Table 1 for one run -> {"base": ..., "novel": ..., "harmonic_mean"} or {"all": ...}."""
    K, n = len(dataset.classnames), settings["class_counts"]
    trained = n + [0] * (K - len(n))
    results = {part: evaluate_classes(learner, dataset, labels, [trained[k] for k in labels],
                                      out / part, frozen)
               for part, labels in parts.items()}
    print(table([measures.HEAD, *(measures.row(part, r) for part, r in results.items())]))
    show_collapse(results)
    for part, result in results.items():
        measures.show(part, result)
    if results.keys() == {"base", "novel"}:
        both = [results[part]["accuracy"] for part in ("base", "novel")]
        results["harmonic_mean"] = harmonic_mean(*both)
        print(f"harmonic mean {results['harmonic_mean']:.2f}")
    return results


def transfer(learner, settings, targets, data_root, out, kept=None):
    """Tables 2 and 4: a run's prompts on other datasets, beside zero-shot CLIP on each.

    kept    folder of the frozen tower's features
    """
    datasets = {target: data.load(target, data_root) for target in targets}     # before any work
    names = [dataset.name for dataset in datasets.values()]
    if len(set(names)) < len(names):
        raise ValueError(f"two of --targets are named {max(names, key=names.count)}, and each gets "
                         "a folder of that name: evaluate them one at a time, each with an --out "
                         "of its own")
    counts = dict(zip(settings["trained_classes"], settings["class_counts"], strict=True))
    results = {}
    for target, dataset in datasets.items():
        data.check_pictures(dataset, dataset.test, decode=False)
        labels, frozen = list(range(len(dataset.classnames))), features.FrozenFeatures(
            dataset, kept)
        trained = [counts.get(name, 0) for name in dataset.classnames]
        results[target] = evaluate_classes(learner, dataset, labels, trained, out / dataset.name,
                                           frozen)
        results[target] |= {"split": dataset.split, "official_split": dataset.official_split}
    rows = [("target", "classes", "images", "zero-shot", settings["label"])]
    rows += [(target, r["num_classes"], r["test_images"], r["zeroshot"], r["accuracy"])
             for target, r in results.items()]
    columns = zip(*((r["zeroshot"], r["accuracy"]) for r in results.values()), strict=True)
    print(table([*rows, ("average", "", "", *(sum(c) / len(results) for c in columns))]))
    for target, result in results.items():
        measures.show_gain(target, result["gain"])
    return results


# The command line ------------------------------------------------------------------------------

def add_machine_arguments(add, data_root="data"):
    """Options of train.py and evaluate.py; add: a parser's or a group's add_argument."""
    add("--data-root", default=data_root, help="folder of the datasets, in CoOp's layout "
                                               f"({data_root or 'the one the run had'})")
    add("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto",
        help="(%(default)s: a GPU where there is one)")
    add("--precision", choices=["float32", "bfloat16", "float16"], default="float32",
        help="of the frozen CLIP (%(default)s); prompts, features and losses are float32 always")


def parse(argv=None):
    p = files.Parser(description="Evaluate a finished run. It never trains.")
    add = p.add_argument
    add("run", type=Path, nargs="*", help="folder that train.py made; with --table several, or "
                                          "folders of them")
    add("--table", type=int, choices=[1, 2, 3, 4],
        help="the paper's table from these runs, the printed values beside it")
    add("--format", choices=["text", "markdown", "csv"], help="of the table (text)")
    add("--classes", choices=["base", "novel", "all"],
        help="these only (base and novel, or all where the run was trained on all)")
    add("--task", choices=TASKS, help="Table 1, Table 2 or Table 4 (base-to-novel)")
    add("--targets", nargs="+", metavar="DATASET", help="for the last two (the paper's)")
    add("--image", nargs="+", metavar="FILE", help="classify these pictures, and all in folders, "
                                                   "instead")
    add("--classnames", metavar="FILE",
        help="with --image or --texts: class names, one a line, also never trained (the run's)")
    add("--features", type=Path, metavar="FILE.npz",
        help="write image and text features, labels and names to a file for numpy instead")
    add("--texts", type=Path, metavar="FILE.npz",
        help="write the classes' text features, for use with any CLIP of this backbone, instead")
    add("--report", type=Path, metavar="FILE.html", help="also make one page of it, to be sent")
    add("--out", type=Path, help="folder for the CSV files (evaluation/ in the run's folder); with "
                                 "--table or --image a file (printed)")
    add_machine_arguments(add, data_root=None)
    checkpoints.add_options(p.add_argument_group("of CoOp's, CoCoOp's, MaPLe's code").add_argument)
    return p.parse_args(argv)


def check(args):
    """Refuse options that do not go together."""
    checkpoints.check(args)
    if len(args.run) > 1 and not args.table:
        raise ValueError("several runs go with --table; evaluate them one by one otherwise")
    if args.classnames and not (args.image or args.texts):
        raise ValueError("--classnames goes with --image or --texts; a dataset has its own class "
                         "names")
    for name, ending in (("features", ".npz"), ("texts", ".npz"), ("report", ".html")):
        path = getattr(args, name)
        if path:
            files.check_output(f"--{name}", path, [ending])
    if args.out and (args.image or args.table):
        files.check_output("--out", args.out, [".csv"] if args.image else ())
    if args.format and not args.table:
        raise ValueError("--format goes with --table")
    transfers = args.task in TASKS and args.task != "base-to-novel"
    if args.targets and not transfers:
        raise ValueError("--targets goes with --task cross-dataset or domain-generalization")
    if transfers and args.classes:
        raise ValueError(f"--task {args.task} takes all classes of each target: leave out "
                         "--classes")
    for name, others in ALONE.items():
        odd = [other for other in others if getattr(args, name) and getattr(args, other)]
        if odd:
            raise ValueError(f"--{odd[0].replace('_', '-')} is no option of --{name}: leave one "
                             "of them out")


def read_classnames(path):
    """Names, one a line; a line may also be `folder<TAB>name`, as train.py takes it."""
    names = [line.split("\t")[-1] for line in files.read_lines(Path(path))]
    if not names:
        raise ValueError(f"{path}: expected class names, one a line; it is empty")
    return names


def tested_classes(dataset, settings, which, folder):
    """{part: labels} that a run is evaluated on: those asked for, else what it was trained for."""
    base, novel = data.halves(len(dataset.classnames))
    parts = {"base": base, "novel": novel, "all": base + novel}
    has_novel = settings["classes"] != "all" and novel and not settings.get("class_specific")
    if which == "novel" and not has_novel:
        raise ValueError(f"{folder} was trained on all classes of {dataset.name}: none is novel to "
                         "it")
    usual = [settings["classes"], "novel"] if has_novel else [settings["classes"]]
    return {part: parts[part] for part in ([which] if which else usual)}


def run(args):
    check(args)
    if args.table:
        from assets import tables
        return tables.show_table(args.table, args.run, args.format or "text", args.out)
    args.run, = args.run or [checkpoints.place(args)]
    names = read_classnames(args.classnames) if args.classnames else None
    device, dtype = files.pick_device(args.device), getattr(torch, args.precision)
    if args.checkpoint:
        learner, settings = checkpoints.load(args, device, dtype, names)
    else:
        learner, settings = load_run(args.run, device, dtype, names)
    out = args.out or args.run / "evaluation"
    if args.image:
        return photos.predict(learner, args.image, args.out)
    if args.texts:
        return features.export_texts(args.texts, learner, settings)
    kept, facts, args.task = args.run.parent / "features", {}, args.task or "base-to-novel"
    if args.task == "base-to-novel":
        dataset = load_dataset(args.run, settings, args.data_root)
        print(f"{settings['label']} on {dataset.name}, split: {dataset.split}")
        parts = tested_classes(dataset, settings, args.classes, args.run)
        frozen = features.FrozenFeatures(dataset, kept)
        if args.features:
            scored = {part: image_and_text_features(learner, dataset, labels, frozen, part)
                      for part, labels in parts.items()}
            return features.export(args.features, scored, learner, settings, dataset, parts)
        results = base_to_novel(learner, settings, dataset, parts, out, frozen)
        facts = {"split": dataset.split, "official_split": dataset.official_split,
                 "test_images": settings.get("test_images")}
    else:
        asked = args.targets or TASKS[args.task]
        targets = [t for name in asked for t in (data.ALL if name == "all" else [name])]
        data_root = args.data_root or settings["data_root"]
        results = transfer(learner, settings, targets, data_root, out, kept)
    found = {"run": str(args.checkpoint or args.run), "task": args.task,
             "label": settings["label"], **facts, "results": results}
    files.write(out / f"{args.task}.json", json.dumps(measured(found), indent=1))
    print(f"per-class recall, predictions and confusion: {out}")
    if args.report:
        report.write(args.report, args.run, settings, results, out, dataset)
    return None


def measured(value):
    """The same, None for every number that could not be measured: JSON has no NaN."""
    if isinstance(value, dict):
        return {name: measured(part) for name, part in value.items()}
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value


def main(argv=None):
    return files.exit_code(lambda: run(parse(argv)), "interrupted; run it again for the rest")


if __name__ == "__main__":
    sys.exit(main())
