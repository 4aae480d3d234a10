"""Evaluate a finished run; it never trains. Also what train.py measures before and after training.

    python evaluate.py RUN                  # a run's folder: base and novel classes
    python evaluate.py RUN --task cross-dataset --targets world_shapes world_colours    # Table 2
    python evaluate.py RUN --task domain-generalization --targets world_sketch          # Table 4

Accuracy is top-1 over all test images, in per cent, base images against base classes and novel
against novel, as the originals have it; Table 1 has the harmonic mean of both. Beside it stand
Definitions 2 and 3, L_LC's two parts and the three collapses of Sec. 3.2.

    z  (N, d)   image features              right  (N,) bool: is the image recognised?
    g  (K, d)   text features               y      (N,) labels in 0..K-1

From top to bottom: what is measured, how sure that is, image features that runs share, a finished
run read back, Tables 1, 2 and 4 for one run. Photos, reports, exports and tables over runs are
tools of their own in assets/.
"""
import contextlib
import csv
import functools
import hashlib
import json
import math
import signal
import statistics
import sys
from pathlib import Path

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)        # Ctrl-C until run_script takes it over

import filelock  # torch depends on it
import numpy  # torchvision depends on it
import PIL
import torch
import torchvision
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
OF_TEXTS = ("delta_lcd", "lcd_rms", "lc_shared", "lc_unequal")      # measured on texts alone
COLLAPSE = {                    # Definitions 2 and 3, L_LC's two parts, Sec. 3.2; 0 is an ETF
    "delta_lcd": "Delta_LCD", "delta_mid": "Delta_MID", "lc_shared": "L_LC: shared",
    "lc_unequal": "unequal angles", "feature_collapse": "collapse: feature",
    "prototype_collapse": "prototype", "classifier_collapse": "classifier"}
PLACES = ("data_root", "device")        # settings that may differ when a run goes on
Z = 1.959964                    # of the normal distribution, 95 % lie within -Z and Z


# What is measured ------------------------------------------------------------------------------

def score(learner, dataset, labels, frozen, show=None):
    """A learner on the test images of some classes -> what measure() returns.

    labels  the classes, as labels of the dataset; they become the learner's
    frozen  FrozenFeatures of the dataset
    """
    learner.set_classes([dataset.classnames[k] for k in labels])
    return measure(learner, *frozen.of(learner, labels, show))


@torch.no_grad()
def image_features(learner, dataset, items, show=None):
    """z (N, d) and y (N,) of some pictures, on the learner's device; show: the bar's name."""
    device, z, y = learner.clip.logit_scale.device, [], []
    batches = data.batches(dataset, items, learner.clip.visual.resolution, device)
    for images, labels in tqdm(batches, desc=show, leave=False, disable=show is None):
        z.append(learner.image_features(images))
        y.append(labels)
    return torch.cat(z), torch.cat(y)


def images_at_a_time(learner):
    """Scored at once: 100; of CoCoOp, which has K texts for each, such that 2,000 texts are made.

    CUDA makes 16,000, not to wait for the launches of small ones; that gain is not measured.
    """
    if not learner.per_image:
        return 100
    few = max(1, min(100, 2000 // len(learner.classnames)))
    return few * {"cuda": 8}.get(learner.clip.logit_scale.device.type, 1)


def text_measures(g):
    """OF_TEXTS of text features g (K, d) or (B, K, d), (4,); 0 for one class, which has no mu."""
    if g.shape[-2] < 2:
        return g.new_zeros(len(OF_TEXTS))
    return torch.stack([losses.delta_lcd(g), losses.lcd_rms(g), *losses.lc_parts(g)])


@torch.no_grad()
def measure(learner, z, y, batch_size=None):
    """The learner on image features z (N, d) with labels y (N,) among its classes.

    -> {"accuracy" and "mean_recall" (over classes) in per cent, OF_TEXTS, "delta_mid", the three
    collapses of Sec. 3.2} and the probabilities of Eq. (1), (N, K), on the CPU.

    Text features are computed once for the whole evaluation, after the weights are final; CoCoOp's
    belong to images: measures of texts are then averages over images, collapses use the mean text.
    """
    K, lam = len(learner.classnames), learner.clip.temperature
    batch_size, mean_g = batch_size or images_at_a_time(learner), 0
    if not learner.per_image:
        g = mean_g = learner.text_features()
        of_texts = text_measures(g)
    sums, probabilities = [], []
    for z_b, y_b in zip(z.split(batch_size), y.split(batch_size), strict=True):
        if learner.per_image:
            g = learner.text_features(z_b)
            of_texts = text_measures(g)
            mean_g = mean_g + g.sum(dim=0) / len(z)
        probabilities.append(losses.class_probabilities(z_b, g, lam))               # Eq. (1)
        mid = losses.delta_mid(z_b, g, y_b)
        sums.append(len(z_b) * torch.cat([of_texts, mid[None]]))
    means = (torch.stack(sums).cpu().double().sum(dim=0) / len(z)).tolist()     # mps has no float64
    probabilities, y_cpu = finite(torch.cat(probabilities).cpu()), y.cpu()
    right = probabilities.argmax(dim=1) == y_cpu
    numbers = dict(zip((*OF_TEXTS, "delta_mid"), means, strict=True))
    numbers["accuracy"] = 100 * right.double().mean().item()
    numbers["mean_recall"] = mean_recall(y_cpu, right, K)
    numbers["right"] = numpy.packbits(right).tobytes().hex()        # a bit an image, for pairing
    return numbers | losses.collapses(z, mean_g, y), probabilities                  # Sec. 3.2


def finite(probabilities):
    """The same. ValueError where some are not finite: CLIP's numbers left the range of float16."""
    if not probabilities.isfinite().all():
        raise ValueError("the features are not finite: try --precision bfloat16 or float32, or "
                         "other weights")
    return probabilities


def recalls(y, right, K):
    """Right predictions of each class in per cent, nan without test images; and these images."""
    n = torch.bincount(y, minlength=K)
    return 100 * torch.bincount(y[right], minlength=K) / n, n


def mean_recall(y, right, K):
    """Mean over the classes that have test images of their recall, in per cent."""
    recall, n = recalls(y, right, K)
    return recall[n > 0].mean().item()


def near_chance(mean, K):
    """Words where a mean over K classes, per cent, is near that of one answer to all; else "".

    Open point: near is up to half as much again, and up to 10 points more.
    """
    one = 100 / K
    near = K > 1 and mean <= one + min(one / 2, 10)
    return f"mean over classes {mean:.1f} %, near chance: one answer to all has {one:.1f} %" * near


def harmonic_mean(base, novel):
    """H = 2 b n / (b + n); 0 where both are 0."""
    return 2 * base * novel / (base + novel or 1)


# How sure that is ------------------------------------------------------------------------------
# An interval says how far another draw of as many test images would move a number; it knows nothing
# of another training seed.

def wilson(right, n):
    """Wilson's 95 % interval of an accuracy of `right` among n images -> (low, high), per cent.

    (p + Z^2/2n -+ Z sqrt(p (1-p) / n + Z^2/4n^2)) / (1 + Z^2/n): inside 0..100 also for few images.
    """
    p, square = right / n, Z * Z / n
    half = Z * math.sqrt(p * (1 - p) / n + square / (4 * n))
    low, high = ((p + square / 2 + side * half) / (1 + square) for side in (-1, 1))
    return 100 * max(low, 0.0), 100 * min(high, 1.0)


def paired_gain(before, after):
    """Accuracy after less before, in points, with its 95 % interval over the same images.

    b images are right only after, c only before. As in McNemar's test these alone decide: the gain
    is (b - c) / n. Agresti and Min (2005): with half an image added to each of the four cells,
    m = (b - c) / (n + 2) -+ Z sqrt((b + c + 1) / (n + 2) - m^2) / sqrt(n + 2), which has a width
    also where no image changed.
    """
    n = len(before)
    b, c = int((after & ~before).sum()), int((before & ~after).sum())
    middle = (b - c) / (n + 2)
    half = Z * math.sqrt(((b + c + 1) / (n + 2) - middle * middle) / (n + 2))
    return {"points": 100 * (b - c) / n, "low": 100 * max(middle - half, -1.0),
            "high": 100 * min(middle + half, 1.0), "better": b, "worse": c}


GAIN, LOSS = "a gain larger than the test noise", "a loss larger than the test noise"
NOISE = "no larger than the test noise"


def verdict(gain):
    """Whether a gain is larger than the noise of its test images, in words."""
    if gain["low"] > 0:
        return GAIN
    if gain["high"] < 0:
        return LOSS
    return NOISE


def student_t(df, inside=0.95):
    """t with P(|T| < t) = inside for df degrees of freedom.

    With T = sqrt(df) tan(a) the density is that of the angle a, cos(a)^(df - 1) up to a factor.
    """
    a = torch.linspace(0, math.pi / 2, 100_001, dtype=torch.float64)
    area = torch.cumulative_trapezoid(a.cos() ** (df - 1), a)       # area[k] reaches to a[k + 1]
    k = torch.searchsorted(area, inside * area[-1]).item()
    part = (inside * area[-1] - area[k - 1]) / (area[k] - area[k - 1])
    return math.sqrt(df) * math.tan(a[k] + part * (a[k + 1] - a[k]))


def half_width(values):
    """Half the 95 % interval of the mean of n values, one a seed: t s / sqrt(n), Student's t of
    n - 1 degrees; None for one value. It knows nothing of another draw of the test images."""
    n = len(values)
    if n < 2:
        return None
    return student_t(n - 1) * statistics.stdev(values) / math.sqrt(n)


# Image features of the frozen tower, shared ----------------------------------------------------

class FrozenFeatures:
    """z of a dataset's test images, made once for all that share a frozen image tower: on a CPU
    nearly all of a run's time goes there.

    folder  where they are kept from run to run, under a name of all that they depend on. A file
            that is damaged or of other pictures is made anew.
    """

    def __init__(self, dataset, folder=None):
        self.dataset, self.folder, self.z = dataset, folder, None

    def of(self, learner, labels, show=None):
        """z (N, d) and y (N,) of the test images of some classes.

        This decides that features are shared: in a frozen image tower they are the same for all
        learners, and zero-shot CLIP's serve CoOp and CoCoOp.
        """
        items, wanted = data.select(self.dataset.test, labels), {*labels}
        if not items or not learner.frozen_images:
            return image_features(learner, self.dataset, items, show)
        if self.z is None:
            self.z = self.all(learner, show)
        rows = [i for i, (_, label) in enumerate(self.dataset.test) if label in wanted]
        return self.z[rows], torch.tensor(data.labels_of(items), device=self.z.device)

    def all(self, learner, show):
        """Of all test images, from the folder where they are there."""
        z = None
        if self.folder:
            path = self.folder / f"{self.dataset.name}-{self.fingerprint(learner.clip)}.pt"
            lock = path.with_name(f".{path.name}.lock")
            with contextlib.suppress(OSError):  # on a read-only or full disk: made again next time
                self.folder.mkdir(parents=True, exist_ok=True)
                with filelock.FileLock(lock):   # others wait, then find it there
                    z = kept(path)
                    if z is None:
                        z = image_features(learner, self.dataset, self.dataset.test, show)[0]
                        content = {"z": z.cpu(), "sha256": clip_model.tensors_sha256({"z": z})}
                        data.write(path, clip_model.as_bytes(content))
                    with contextlib.suppress(OSError):          # Windows keeps an open file
                        lock.unlink()
        if z is None:
            z = image_features(learner, self.dataset, self.dataset.test, show)[0]
        return z.to(learner.clip.logit_scale.device)

    def fingerprint(self, clip):
        view = data.transform(clip.visual.resolution, train=False)
        words = [str(view), str(clip.logit_scale.device.type), torch.__version__,
                 torchvision.__version__, PIL.__version__, str(self.dataset.own),
                 tower_sha256(clip.visual),
                 clip.visual.transformer.resblocks[0].activation.__name__,
                 *(f"{name} {self.state(name)}" for name, _ in self.dataset.test)]
        return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]

    def state(self, name):
        """What tells a picture from another of its name: its bytes, or a file's size and time."""
        if self.dataset.embedded or self.dataset.own:
            return self.dataset.sha256(name)
        stat = self.dataset.path(name).stat()
        return f"{stat.st_size} {stat.st_mtime_ns}"


def kept(path):
    """The features in a file; None where it is absent, cut off, or something else altogether."""
    with contextlib.suppress(Exception):
        content = clip_model.read_tensors(path)
        if clip_model.tensors_sha256({"z": content["z"]}) == content["sha256"]:
            return content["z"]
    return None


@functools.lru_cache(maxsize=1)
def tower_sha256(tower):
    """Of a frozen tower's weights, once for all runs of a process."""
    return clip_model.tensors_sha256(tower.state_dict())


# A finished run, read back with distrust -------------------------------------------------------

SETTINGS = {"method", "backbone", "n_ctx", "ctx_init", "prompt_depth", "dataset", "data_root",
            "classes", "trained_classes", "class_counts", "draw_seed", "label", "classnames_file"}
OF_A_LEARNER = {"n_ctx", "ctx_init", "prompt_depth", "class_specific", "class_place"}


def load_run(folder, device="cpu", dtype=torch.float32, classnames=None, backbone=None):
    """-> learner with the run's learned tensors, and the settings that train.py saved beside them.

    classnames  other classes than the run's, or None
    backbone    where its weights lie now, or None: where they lay
    Raises FileNotFoundError where there is no finished run, ValueError for files that are not one.
    """
    folder = Path(folder)
    lacking = [name for name in ("result.json", "prompts.pt", "run.json")
               if not (folder / name).is_file()]
    if lacking:
        runs, beside = (sorted(file.parent.name for file in place.glob("*/result.json"))
                        for place in (folder, folder.parent))
        near = data.did_you_mean(folder.name, [name for name in beside if name != folder.name])
        raise FileNotFoundError(f"{folder} is no finished run{near}: expected {', '.join(lacking)} "
                                "in it, as train.py leaves them; runs in it: "
                                f"{runs[:3] or 'none'}")
    settings, learned = read_prompts(folder)
    backbone = backbone or settings["backbone"]
    try:
        if settings.get("weights_sha256") not in (None, clip_model.fingerprint(backbone)):
            raise ValueError(f"{folder} was trained on other weights than {backbone} holds: put "
                             "those back, or say by --backbone where they are")
        clip = clip_model.load(backbone, device, dtype, settings.get("activation") or "quick_gelu")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; where they moved: --backbone FILE") from None
    learner = prompts.build(settings["method"], clip, classnames or settings["trained_classes"],
                            **{name: settings[name] for name in OF_A_LEARNER & settings.keys()})
    prompts.load_trainable(learner, learned)
    return learner, settings


def read_prompts(folder):
    """A run's prompts.pt -> its settings and {name: learned tensor}.

    Raises ValueError where it is not what train.py writes, where settings are not those of
    run.json, or tensors not those that result.json was measured with.
    """
    path, kept = folder / "prompts.pt", {}
    try:
        run = clip_model.read_tensors(path)
        learned, settings = run["learned"], run["settings"]
        told = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        for name in SETTINGS | settings.keys():
            words = [json.dumps(those[name], default=str) for those in (settings, told)]
            moved = name in PLACES and isinstance(settings[name], str)
            if words[0] != words[1] and not moved:
                raise ValueError(f"its {name[:40]} is not that of run.json")
        for name, tensor in learned.items():
            clip_model.check_dense(name, tensor)
            if tensor.dtype != torch.float32 or not tensor.isfinite().all():
                raise ValueError(f"{name[:40]} is not of finite float32 numbers")
        if (folder / "result.json").is_file():
            kept = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        if kept.get("prompts_sha256") not in (None, clip_model.tensors_sha256(learned)):
            raise ValueError("its tensors are not those that result.json was measured with")
    except Exception as error:                      # a damaged file raises any of a dozen types
        raise ValueError(f"{path}: not a run's learned tensors ({str(error)[:120]}); train again"
                         ) from error
    return settings, learned


def load_dataset(folder, settings, data_root):
    """The dataset of a run; of a folder of one's own as it was split then.

    data_root   where the datasets lie, or that folder; None: where they lay then
    Raises ValueError where its classes changed, or test pictures are ones that the run trained on.
    """
    name, trained = settings["dataset"], settings["trained_classes"]
    if name == "unknown":                           # of a checkpoint from elsewhere
        raise ValueError(f"{folder}'s dataset is not known: name others, by --task cross-dataset "
                         "--targets DATASET, or classify photos by assets/predict.py")
    if (folder / "split.json").is_file():
        dataset = data.load_kept(folder / "split.json", data_root or name)
    else:
        dataset = data.load(name, data_root or settings["data_root"], seed=settings["draw_seed"],
                            classnames=settings["classnames_file"])
    if dataset.classnames[:len(trained)] != trained:
        raise ValueError(f"{name} has other classes now than those that {folder} was trained on")
    if (folder / "drawn.csv").is_file():                            # zero-shot CLIP has none
        tested = {data.defused(picture) for picture, _ in dataset.test}
        seen = read_drawn(folder / "drawn.csv") & tested
        if seen:
            raise ValueError(f"{len(seen)} test pictures of {name} trained the prompts of "
                             f"{folder}, first {min(seen)}: its pictures or its split changed "
                             f"since; now: {dataset.split}")
    data.check_pictures(dataset, dataset.test, decode=False)
    return data.with_few_tests(dataset, settings.get("test_images"), settings["draw_seed"])


def read_drawn(path):
    """Names of the pictures that a run trained on, as data.write_csv writes them."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return {picture for picture, _ in csv.reader(file, strict=True)}
    except (ValueError, csv.Error) as error:        # not UTF-8, not two columns, a very long field
        raise ValueError(f"{path}: expected a picture and its class in each row ({error}); train "
                         "again") from None


def parts_of(dataset):
    """{"base", "novel", "all": labels}."""
    base, novel = data.halves(len(dataset.classnames))
    return {"base": base, "novel": novel, "all": base + novel}


def tested_classes(dataset, settings, which=None):
    """{part: labels} that a run is evaluated on: those asked for, else what it was trained for.

    settings    the run's, as a dictionary
    """
    parts, tested = parts_of(dataset), [settings["classes"]]
    # a context for each class was learned for the trained ones alone
    if settings["classes"] == "base" and parts["novel"] and not settings.get("class_specific"):
        tested.append("novel")
    if which == "novel" and "novel" not in tested:
        raise ValueError(f"this run was trained on all classes of {dataset.name}: none is novel to "
                         "it")
    if which:
        tested = [which]
    return {part: parts[part] for part in tested}


# Tables 1, 2, 4 for one run --------------------------------------------------------------------

def evaluate_classes(learner, dataset, labels, frozen):
    """What a learner and zero-shot CLIP have on the test images of some classes, as JSON takes it,
    and their probabilities (N, K); zero-shot's are None where nothing was learned."""
    result, p = score(learner, dataset, labels, frozen, "test images")
    y = torch.tensor(data.labels_of(data.select(dataset.test, labels)))
    was = right = p.argmax(dim=1) == y
    plain = gain = None
    if prompts.trainable(learner):
        names = [dataset.classnames[k] for k in labels]
        zeroshot = prompts.build("zeroshot", learner.clip, names, ctx_init=dataset.template)
        plain = score(zeroshot, dataset, labels, frozen, "zero-shot")[1]
        was = plain.argmax(dim=1) == y
        gain = paired_gain(was, right)
    return result | {
        "num_classes": len(labels), "test_images": len(y),
        "accuracy_interval": wilson(int(right.sum()), len(y)),
        "zeroshot": 100 * was.double().mean().item(),
        "zeroshot_mean_recall": mean_recall(y, was, len(labels)), "gain": gain}, p, plain


def base_to_novel(learner, dataset, parts, frozen):
    """Table 1 for one run -> {"base": ..., "novel": ..., "harmonic_mean"} or {"all": ...}."""
    results = {part: evaluate_classes(learner, dataset, labels, frozen)[0]
               for part, labels in parts.items()}
    rows = [("", "classes", "images", "zero-shot", "accuracy", "95 % interval", "class mean")]
    for part, r in results.items():
        rows.append((part, r["num_classes"], r["test_images"], r["zeroshot"], r["accuracy"],
                     "{:.1f} to {:.1f}".format(*r["accuracy_interval"]), r["mean_recall"]))
    print(table(rows))
    print(table([("", *COLLAPSE.values()), *(
        (part, *(f"{r[name]:.4f}" for name in COLLAPSE)) for part, r in results.items())]))
    show_gains(results)
    if results.keys() == {"base", "novel"}:
        results["harmonic_mean"] = harmonic_mean(results["base"]["accuracy"],
                                                 results["novel"]["accuracy"])
        print(f"harmonic mean {results['harmonic_mean']:.2f}")
    return results


def show_gains(results):
    for part, gain in ((part, r["gain"]) for part, r in results.items() if r["gain"]):
        print(f"{part}: {gain['points']:+.2f} points over zero-shot, 95 % interval "
              f"{gain['low']:+.2f} to {gain['high']:+.2f} ({gain['better']} images are right only "
              f"now, {gain['worse']} only before): {verdict(gain)}")


def transfer(learner, label, targets, data_root, features):
    """Tables 2 and 4: a run's prompts on other datasets, beside zero-shot CLIP on each.

    features    folder of the frozen tower's
    """
    datasets = {target: data.load(target, data_root) for target in targets}     # before any work
    results, rows = {}, [("target", "classes", "images", "zero-shot", label)]
    for target, dataset in datasets.items():
        print(f"{label} on {dataset.name}, split: {dataset.split}")
        dataset.show_notes()
        if dataset.own:
            print("note      the split's test part alone is tested; assets/report.py RUN --photos "
                  "FOLDER tests all")
        data.check_pictures(dataset, dataset.test, decode=False)
        labels, frozen = list(range(len(dataset.classnames))), FrozenFeatures(dataset, features)
        r, *_ = evaluate_classes(learner, dataset, labels, frozen)
        results[target] = r | {"split": dataset.split, "official_split": dataset.official_split}
        rows.append((target, r["num_classes"], r["test_images"], r["zeroshot"], r["accuracy"]))
    means = [statistics.fmean(r[key] for r in results.values()) for key in ("zeroshot", "accuracy")]
    print(table([*rows, ("average", "", "", *means)]))
    show_gains(results)
    return results


def table(rows):
    """Rows of words and numbers -> lines with aligned columns; numbers with two decimals."""
    rows = [[f"{c:.2f}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [c.rjust(w) for c, w in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join(lines)


# The command line ------------------------------------------------------------------------------

def add_machine_options(add, data_root="data"):
    """Options that all scripts with a CLIP have; add: a parser's or a group's add_argument."""
    add("--data-root", default=data_root, help="folder of the datasets, in CoOp's layout "
                                               f"({data_root or 'the one the run had'})")
    add("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto",
        help="(%(default)s: a GPU where there is one)")
    if data_root is None:
        add("--backbone", metavar="FILE", help="the weights of the run's CLIP, where they moved")
    add("--precision", choices=["auto", "float32", "bfloat16", "float16"], default="auto",
        help="of the frozen CLIP (%(default)s: float16 on a GPU, else float32); prompts, features "
             "and losses are float32 always")


def machine(args):
    """--device and --precision -> torch.device, torch.dtype."""
    device = clip_model.pick_device(args.device)
    return device, clip_model.pick_precision(args.precision, device)


def parse(argv=None):
    p = data.Parser(description="Evaluate a finished run. It never trains.")
    add = p.add_argument
    add("run", type=Path, help="folder that train.py made")
    add("--classes", choices=["base", "novel", "all"],
        help="these only (base and novel, or all where the run was trained on all)")
    add("--task", choices=TASKS, default="base-to-novel", help="Table 1, 2 or 4 (%(default)s)")
    add("--targets", nargs="+", metavar="DATASET", help="for the last two (the paper's)")
    add("--out", type=Path, help="folder of the numbers as JSON (evaluation/ in the run's folder)")
    add_machine_options(add, data_root=None)
    args = p.parse_args(argv)
    transfers = args.task != "base-to-novel"
    if args.targets and not transfers:
        raise ValueError("--targets goes with --task cross-dataset or domain-generalization")
    if transfers and args.classes:
        raise ValueError(f"--task {args.task} takes all classes of each target: leave out "
                         "--classes")
    return args


def run(args):
    learner, settings = load_run(args.run, *machine(args), backbone=args.backbone)
    out, features, facts = args.out or args.run / "evaluation", args.run.parent / "features", {}
    if args.task == "base-to-novel":
        dataset = load_dataset(args.run, settings, args.data_root)
        print(f"{settings['label']} on {dataset.name}, split: {dataset.split}")
        dataset.show_notes()
        parts = tested_classes(dataset, settings, args.classes)
        out.mkdir(parents=True, exist_ok=True)          # before any work is done in vain
        results = base_to_novel(learner, dataset, parts, FrozenFeatures(dataset, features))
        facts = {"split": dataset.split, "official_split": dataset.official_split,
                 "test_images": settings.get("test_images")}
    else:
        asked = args.targets or TASKS[args.task]
        targets = [t for name in asked for t in {"all": data.ALL}.get(name, [name])]
        out.mkdir(parents=True, exist_ok=True)
        results = transfer(learner, settings["label"], targets,
                           args.data_root or settings["data_root"], features)
    found = {"run": str(args.run), "task": args.task, "label": settings["label"], **facts,
             "results": results}
    data.write(out / f"{args.task}.json", json.dumps(rounded(found), indent=1))
    print(f"saved in {out / f'{args.task}.json'}")


def rounded(value):
    """The same with six decimals, None for what could not be measured: JSON has no NaN."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if not isinstance(value, float):
        return value
    return round(value, 6) if math.isfinite(value) else None


def main(argv=None):
    return data.run_script(lambda: run(parse(argv)), "interrupted; run it again for the rest")


if __name__ == "__main__":
    sys.exit(main())
