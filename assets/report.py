"""What an evaluation says class by class: CSV files, rare classes, calibration, one HTML page.

    python assets/report.py RUN                             # all into the run's evaluation/
    python assets/report.py RUN --out report.html           # the page somewhere else
    python assets/report.py RUN --photos next_year          # on all of a folder, its own classes
    python assets/report.py RUN --target eurosat            # on another dataset

    p  (N, K)  the probabilities of Eq. (1)         y  (N,)  labels in 0..K-1
    part       base, novel or all classes of the run's dataset; a folder of photos; another dataset

evaluation/<part>/ gets per_class.csv, predictions.csv, confusion.csv and review.json. The page is
made to be sent to others: no script, no network, pictures inside, every text escaped (class and
file names are other people's words), nothing of a photo's metadata. From top to bottom: what is
measured, files and printed lines, the page, the command line.
"""
import base64
import functools
import html
import io
import json
import sys
from pathlib import Path

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
import clip_model
import data
import evaluate

MANY, FEW = 8, 2    # Open point: many-shot has at least 8 training images, few-shot at most 2
GROUPS = ("many", "medium", "few", "unseen", "unknown")
BINS = 15           # of equal width, of the calibration error; From Guo et al., ICML 2017
CONFUSED = 5        # pairs of classes that are shown
SMALL = 160         # pixels of the longer side of an embedded picture
PICTURES = 4        # of each confusion
THIN = 10           # test images under which a recall is only a hint
SURE = 95           # per cent of right answers that are asked for where nobody looks
NEVER = 1.01        # a threshold of review that no probability reaches


# What is measured, per cent --------------------------------------------------------------------

def group_of(count):
    """Many, medium, few or unseen, by a class's training images; unknown where they are None."""
    if count is None:
        return "unknown"
    if count >= MANY:
        return "many"
    if count > FEW:
        return "medium"
    return "few" if count else "unseen"


def calibration_error(confidence, right):
    """Expected calibration error: sum over bins of |bin| / N * |accuracy - mean confidence|.

    confidence (N,) in (0, 1], probability of the predicted class; bin m of 15 is ((m-1)/15, m/15].
    """
    confidence, right = confidence.double(), right.double()
    bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    gaps = torch.bincount(bins, right - confidence, BINS)       # |bin| * (accuracy - confidence)
    return 100 * gaps.abs().sum().item() / len(right)


def reviewed(threshold, confidence, right):
    """What a threshold of review does: {"threshold", "accepted", "right", "images", "chosen"}, the
    last for whether it was chosen on these images; None without a threshold.

    confidence (N,), right (N,) bool
    """
    if threshold is None:
        return None
    accepted = confidence >= threshold
    return {"threshold": threshold, "accepted": int(accepted.sum()), "chosen": False,
            "right": int((accepted & right).sum()), "images": len(right)}


def review_below(confidence, right):
    """Where a person should look: the end of a risk-coverage curve.

    Of the images whose predicted class has at least the probability t, the wrong ones are the risk
    and their share of all the coverage. The threshold is the lowest t with SURE per cent right.

    -> what reviewed() says of it, of NEVER where no threshold is high enough
    """
    for t in [*confidence.unique().tolist(), NEVER]:                    # ascending
        found = reviewed(t, confidence, right)
        if 100 * found["right"] >= SURE * found["accepted"]:
            return found | {"chosen": True}


def kept_threshold(run, settings):
    """The threshold that a report left in a run's folder, None without one.

    ValueError where there is something else.
    """
    path = run / "evaluation" / settings["classes"] / "review.json"
    if not path.is_file():
        return None
    try:
        threshold = json.loads(path.read_text(encoding="utf-8"))["threshold"]
        threshold = NEVER if threshold is None else threshold           # so older reports have it
        if not 0 <= threshold <= NEVER:
            raise ValueError("no probability")
        return threshold
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{path}: expected a threshold; make it anew with assets/report.py RUN"
                         ) from None


def judge(names, counts, items, p, plain=None, review=review_below):
    """What the probabilities p (N, K) say of the test items (picture, label), class by class.

    counts  training images of each class
    plain   zero-shot CLIP's probabilities, None where nothing was learned
    review  review_below, or reviewed of a threshold that is known
    -> "per_class" and "predictions" (rows), "confusion" (K, K): images of each class (row) that
    were taken for each (column), "confusions": the most frequent ones first, "calibration_error",
    "review": what review says, and "groups" over the classes with test images: mean recalls,
    calibration, paired gain.
    """
    y, K = torch.tensor(data.labels_of(items)), len(names)
    confidence, predicted = p.max(dim=1)
    right = predicted == y
    was = right if plain is None else plain.argmax(dim=1) == y
    (recall, n), (before, _) = evaluate.recalls(y, right, K), evaluate.recalls(y, was, K)
    groups = {}
    for group in GROUPS:
        inside = torch.tensor([group_of(count) == group for count in counts]) & (n > 0)
        images = inside[y]
        if inside.any():
            groups[group] = {
                "classes": int(inside.sum()), "recall": recall[inside].mean().item(),
                "zeroshot": before[inside].mean().item(), "images": int(images.sum()),
                "calibration_error": calibration_error(confidence[images], right[images]),
                "gain": evaluate.paired_gain(was[images], right[images])}
    confusion = torch.bincount(y * K + predicted, minlength=K * K).view(K, K)
    wrong = confusion.clone().fill_diagonal_(0)
    worst = sorted(wrong.nonzero().tolist(), key=lambda pair: -wrong[tuple(pair)])[:CONFUSED]
    per_class = zip(names, counts, map(group_of, counts), n.tolist(), recall.tolist(),
                    before.tolist(), strict=True)
    guesses = zip(items, predicted.tolist(), confidence.tolist(), strict=True)
    return {
        "per_class": list(per_class), "groups": groups,
        "predictions": [(picture, names[k], names[j], q) for (picture, k), j, q in guesses],
        "confusion": confusion.tolist(),
        "confusions": [(names[k], names[j], int(wrong[k, j])) for k, j in worst],
        "calibration_error": calibration_error(confidence, right),
        "review": review(confidence, right)}


# Files and printed lines -----------------------------------------------------------------------

def write_files(folder, names, facts):
    """per_class.csv, predictions.csv, confusion.csv and review.json of what judge() found."""
    folder.mkdir(parents=True, exist_ok=True)
    data.write_csv(folder / "per_class.csv", [
        ("class", "training_images", "group", "test_images", "recall", "zeroshot_recall"),
        *((*row, f"{recall:.2f}", f"{plain:.2f}") for *row, recall, plain in facts["per_class"])])
    data.write_csv(folder / "predictions.csv", [
        ("picture", "class", "predicted", "probability"),
        *((*row, f"{probability:.4f}") for *row, probability in facts["predictions"])])
    data.write_csv(folder / "confusion.csv", [
        ("class \\ predicted", *names),
        *((name, *row) for name, row in zip(names, facts["confusion"], strict=True))])
    data.write(folder / "review.json", json.dumps(facts["review"], indent=1))


def rows_of(facts):
    """(what, words): the lines that are printed and stand on the page.

    A loss of rare classes is only said where the interval over their own images, not too few, lies
    below 0. That --logit-adjust helps them was measured in the laboratory, with intervals.
    """
    low, high = facts["accuracy_interval"]
    tests = [n for _, _, _, n, _, _ in facts["per_class"]]
    here = sum(n > 0 for n in tests)
    some = f"; {here} of the {len(tests)} classes have photos here" * (here < len(tests))
    rows = [("accuracy", f"{facts['accuracy']:.1f} % (95 % interval {low:.1f} to {high:.1f}, "
                         f"{facts['test_images']} test images)"),
            ("mean over classes", f"{facts['mean_recall']:.1f} %: each class counts alike{some}"),
            ("zero-shot CLIP", f"{facts['zeroshot']:.1f} %, mean over classes "
                               f"{facts['zeroshot_mean_recall']:.1f} %, nothing trained")]
    gain = facts["gain"]
    if gain:
        rows.append(("gain", f"{points(gain)}: {evaluate.verdict(gain)}; {gain['better']} images "
                             f"are right only by the run, {gain['worse']} only by zero-shot CLIP"))
    warning = evaluate.near_chance(facts["mean_recall"], here)
    if warning:
        rows.append(("warning", f"{warning}: most classes are not told apart"))
    for name, group in facts["groups"].items():
        moved = f"; gain {points(group['gain'])} over their {group['images']} images" * bool(gain)
        rows.append((name, f"mean over {group['classes']} classes {group['recall']:.1f} % "
                           f"(zero-shot {group['zeroshot']:.1f}){moved}; calibration error "
                           f"{group['calibration_error']:.1f} %"))
    rare = facts["groups"].get("few")
    if rare and rare["images"] >= THIN and evaluate.verdict(rare["gain"]) == evaluate.LOSS:
        advice = "; training with --logit-adjust weighs them more" * (not facts["logit_adjust"])
        rows.append(("rare classes", "recognised worse than by zero-shot CLIP, by more than the "
                                     f"noise of their own test images{advice}"))
    thin = sum(0 < n < THIN for n in tests)
    if thin:
        rows.append(("hints only", f"the recalls of {thin} classes with fewer than {THIN} test "
                                   "images"))
    rows.append(("calibration error", f"{facts['calibration_error']:.1f} % ({BINS} bins)"))
    return [*rows, ("review", review_words(facts["review"]))]


def review_words(found):
    """The threshold in words, with what it can't know."""
    if found is None:
        return "no threshold is known: report.py RUN finds one on the run's test images"
    threshold, accepted, images = (found[key] for key in ("threshold", "accepted", "images"))
    if threshold == NEVER:
        return (f"look at every picture: above no probability are {SURE} % of the run's test "
                "images right")
    kept = ", the run's threshold" * (not found["chosen"])
    said = (f"look where the probability is below {threshold:.4f}{kept}: at {images - accepted} of "
            f"these {images} images")
    if accepted:
        low, high = evaluate.wilson(found["right"], accepted)
        best = ", somewhat too good: the threshold was chosen on them" * found["chosen"]
        said += (f"; of the {accepted} others {found['right']} are right (95 % interval {low:.0f} "
                 f"to {high:.0f} %{best})")
    return (f"{said}. All of them show one of the classes: a picture of none may look as sure, "
            "which this can't know")


def points(gain):
    return (f"{gain['points']:+.1f} points (95 % interval {gain['low']:+.1f} to "
            f"{gain['high']:+.1f})")


# The page --------------------------------------------------------------------------------------

HIDDEN = ("trained_classes", "class_counts", "data_root", "dataset", "classnames_file", "device",
          "label", "backbone")                  # shown elsewhere, or paths of one's own machine
NOTE = (f"Many: classes with at least {MANY} training images; few: with at most {FEW}. Calibration "
        "error: how far the stated probability lies from the share of right answers, on average "
        f"over {BINS} bins of equal width; 0 is best.")
STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:0 auto;padding:1rem;
overflow-wrap:anywhere}
table{border-collapse:collapse;width:100%;table-layout:fixed}th{width:9.5rem}
td,th{padding:.2rem .6rem .2rem 0;text-align:left;vertical-align:top;border-bottom:1px solid #ddd}
figure{display:inline-block;width:10rem;margin:0 .5rem 0 0;vertical-align:top}img{max-width:100%}"""


def escape(value):
    return html.escape(str(value), quote=True)


def table(rows):
    """Rows of (words, words, pieces of HTML ...) -> a table of two columns, which fits a phone."""
    lines = (f"<tr><th>{escape(name)}</th><td>{escape(value)}{''.join(more)}</td></tr>"
             for name, value, *more in rows)
    return f"<table>{''.join(lines)}</table>"


def page_of(run, settings, dataset, found):
    """The page of a run; found: {part: what was measured}."""
    title = escape(f"{settings['label']} on {dataset.name}")
    body = [f"<h1>{title}</h1>"]
    for part, facts in found.items():
        heading = part if part == dataset.name else f"{part.capitalize()} classes"
        frequent_first = sorted(facts["per_class"], key=lambda row: -(row[1] or 0))
        body += [f"<h2>{escape(heading)}</h2>", table(rows_of(facts)), f"<p>{NOTE}</p>",
                 "<h3>Recognised test images, per cent</h3>",
                 table(one_class(*row) for row in frequent_first)]
        if facts["confusions"]:
            body += ["<h3>Most confused</h3>", table(
                one_confusion(*pair, facts, dataset) for pair in facts["confusions"])]
    if found.keys() == {"base", "novel"}:
        H = evaluate.harmonic_mean(*(facts["accuracy"] for facts in found.values()))
        body.append(f"<h2>Both</h2>{table([('harmonic mean', f'{H:.2f} % of base and novel')])}")
    body.append(details(run, settings, dataset))
    return ('<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
            '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
            f"<title>{title}</title><style>{STYLE}</style></head>\n<body>\n"
            + "\n".join(body) + "\n</body></html>\n")


def one_class(name, count, group, tests, recall, plain):
    """A row of the table of recalls, with two bars."""
    said = f"{recall:.0f} (zero-shot {plain:.0f})" if tests else "no test image"
    bars = (f'<br/><meter max="100" value="{value:.1f}"></meter> {kind}'
            for kind, value in (("tuned", recall), ("zero-shot", plain)) if tests)
    trained = group if count is None else count
    return name.replace("_", " "), f"{trained} trained, {tests} tested: {said}", *bars


def one_confusion(name, other, images, facts, dataset):
    """A row of the most frequent confusions, with some of their pictures."""
    shown = [(picture, p) for picture, *pair, p in facts["predictions"] if pair == [name, other]]
    figures = (figure(dataset.open(picture), f"{picture}, {100 * p:.0f} % sure")
               for picture, p in shown[:PICTURES])
    return f"{name} taken for {other}".replace("_", " "), f"{images} images", "<br/>", *figures


def figure(picture, caption):
    """A small JPEG inside the page: of the pixels alone, for PIL would keep a photo's comment."""
    picture.thumbnail((SMALL, SMALL))
    pixels, content = Image.frombytes("RGB", picture.size, picture.tobytes()), io.BytesIO()
    pixels.save(content, "JPEG", quality=80)
    source = f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
    return (f'<figure><img alt="{escape(caption)}" src="{source}"/>'
            f"<figcaption>{escape(caption)}</figcaption></figure>")


def details(run, settings, dataset):
    """What was trained on what, prompts and settings; paths of the machine are left out."""
    told = json.loads((run / "run.json").read_text(encoding="utf-8"))
    backbone = settings["backbone"]
    if backbone not in clip_model.MODELS:               # a weights file
        backbone = Path(backbone).name
    n = [count for count in settings["class_counts"] if count]
    trained = (f"{sum(n)} images of {len(n)} classes, {max(n)} to {min(n)} a class "
               f"({data.tau_words(settings.get('tau'))})" if n else "nothing that is known of")
    rows = [("CLIP", f"{backbone}, frozen"), ("trained on", trained), ("split", dataset.split),
            ("prompts", " ".join(told.get("prompts", ()))), *settings.items(),
            *told.get("versions", {}).items()]
    kept = [row for row in rows if row[0] not in HIDDEN and row[1] not in (None, "")]
    return f"<h2>How it was made</h2>{table(kept)}"


# The command line ------------------------------------------------------------------------------

def photos(args, settings):
    """A dataset of all pictures in a folder, none of which trained, as classes of the run.

    A class folder has the name that it had in training, or else that of a class.
    ValueError with all others; pictures that did train are warned of.
    """
    names, folder, notes = settings["trained_classes"], args.photos.expanduser(), []
    if not folder.is_dir():
        raise FileNotFoundError(f"--photos {folder}: no such folder; expected one with a "
                                "sub-folder of pictures for each class")
    label_of = {name: k for k, name in enumerate(names)}
    label_of |= {key: k for key, k in trained_folders(args.run).items() if k < len(names)}
    _, found = data.read_folders(folder, notes)
    unknown = sorted({key for items in found.values() for _, key in items} - label_of.keys())
    if unknown:
        raise ValueError(f"--photos {folder}: {len(unknown)} class folders have no name of this "
                         f"run's classes: {', '.join(unknown)}; it knows {', '.join(names)}: "
                         "rename them, or take them out")
    items = [(name, label_of[key]) for part in found.values() for name, key in part]
    dataset = data.own_dataset(f"all-of-{folder.resolve().name}", names,
                               {"train": [], "val": [], "test": items},
                               f"all {len(items)} pictures of the folder", folder, notes)
    data.check_pictures(dataset, items)
    twins = seen_in_training(dataset, args, settings)
    if twins:
        print(f"warning: {len(twins)} of these photos trained the run, byte for byte, first "
              f"{twins[0]}: take them out, what trained is no test")
    return dataset


def trained_folders(run):
    """{class folder: label} of the folder that a run was trained on, none where it was no folder.

    They differ from the classes' names where these came from a file.
    """
    found, split = {}, run / "split.json"
    if not split.is_file():
        return found
    _, parts = data.read_split(split)
    for name, label in parts["train"]:
        top, *below = data.one_spelling(name).split("/")[:-1] or [""]
        if top == "train" and below:
            top = below[0]
        found[top] = label
    return found


def seen_in_training(dataset, args, settings):
    """Pictures with the bytes of one that the run trained on, as far as those are still there."""
    drawn, place = args.run / "drawn.csv", Path(args.data_root or settings["dataset"])
    trained = [place / name for name in (evaluate.read_drawn(drawn) if drawn.is_file() else ())]
    sums = {clip_model.file_sha256(path) for path in trained if path.is_file()}
    return [name for name, _ in dataset.test if sums and dataset.sha256(name) in sums]


def run(args):
    if args.out:
        data.check_output("--out", args.out, [".html"])
    learner, settings = evaluate.load_run(args.run, *evaluate.machine(args),
                                          backbone=args.backbone)
    review, elsewhere = review_below, bool(args.photos or args.target)
    if args.photos:                             # how the run's own threshold does on other photos
        dataset = photos(args, settings)
        review = functools.partial(reviewed, kept_threshold(args.run, settings))
    elif args.target:
        dataset = data.load(args.target, args.data_root or settings["data_root"])
        data.check_pictures(dataset, dataset.test, decode=False)
    else:
        dataset = evaluate.load_dataset(args.run, settings, args.data_root)
    dataset.show_notes()
    K, counts = len(dataset.classnames), settings["class_counts"]
    parts = {dataset.name: list(range(K))}
    if not elsewhere:
        parts = evaluate.tested_classes(dataset, settings)
        counts = counts + [0] * (K - len(counts))                           # of novel classes 0
    if args.target:
        of_name = dict(zip(settings["trained_classes"], counts, strict=True))
        counts = [of_name.get(name, 0) for name in dataset.classnames]
    frozen = evaluate.FrozenFeatures(dataset, args.run.parent / "features")
    folder, found = args.run / "evaluation", {}
    for part, labels in parts.items():
        print(f"\n{settings['label']} on {dataset.name}, {part}, split: {dataset.split}")
        names, items = [dataset.classnames[k] for k in labels], data.select(dataset.test, labels)
        result, p, plain = evaluate.evaluate_classes(learner, dataset, labels, frozen)
        found[part] = result | judge(names, [counts[k] for k in labels], items, p, plain, review)
        found[part]["logit_adjust"] = settings.get("logit_adjust")
        write_files(folder / part, names, found[part])
        confused = ", ".join(f"{name} taken for {other} ({images})"
                             for name, other, images in found[part]["confusions"])
        for name, words in [*rows_of(found[part]), ("most confused", confused)]:
            print(f"{name:18} {words}")
    which = f"-{dataset.name}" * elsewhere                    # beside the run's own page
    page = args.out or folder / f"report{which}.html"
    data.write(page, page_of(args.run, settings, dataset, found))
    print(f"per-class recall, predictions and confusion: {folder}\nreport: {page}")


def main(argv=None):
    p = data.Parser(description="What an evaluation says class by class, as files and as a page.")
    add = p.add_argument
    add("run", type=Path, help="folder that train.py made")
    add("--out", type=Path, metavar="FILE.html", help="the page (evaluation/report.html in the "
                                                      "run's folder; of others report-NAME)")
    other = p.add_mutually_exclusive_group().add_argument
    other("--photos", type=Path, metavar="FOLDER",
          help="all pictures of a folder, with a sub-folder for each class (the run's test images)")
    other("--target", metavar="DATASET", help="another dataset, all its classes")
    evaluate.add_machine_options(add, data_root=None)
    return data.run_script(lambda: run(p.parse_args(argv)),
                           "interrupted; run it again for the rest")


if __name__ == "__main__":
    sys.exit(main())
