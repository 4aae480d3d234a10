"""What an evaluation measures beside accuracy: by class and by group, intervals, calibration.

    right  (N,) bool, whether each test image is recognised     n  images of each class, (K,)
    y      (N,) labels in 0..K-1                                all results in per cent

An interval says how far another draw of as many test images would move a number; it knows nothing
of another training seed.
"""
import math

import torch

from assets import files

MANY, FEW = 8, 2    # Open point: many-shot has at least 8 training images, few-shot at most 2
Z = 1.959964        # of the normal distribution, 95 % lie within -Z and Z
BINS = 15           # of equal width, of the calibration error; From Guo et al., ICML 2017


# Intervals -------------------------------------------------------------------------------------

def wilson(right, n):
    """Wilson's 95 % interval of an accuracy of `right` among n images -> (low, high).

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
    return {"points": 100 * (b - c) / n, "low": 100 * (middle - half),
            "high": 100 * (middle + half), "better": b, "worse": c}


GAIN, LOSS = "a gain larger than the test noise", "a loss larger than the test noise"
NOISE = "no larger than the test noise"


def verdict(gain):
    """Whether a gain is larger than the noise of its test images, in words."""
    if gain["low"] > 0:
        return GAIN
    if gain["high"] < 0:
        return LOSS
    return NOISE


# Calibration, groups, confusions ---------------------------------------------------------------

def calibration_error(confidence, right):
    """Expected calibration error: sum over bins of |bin| / N * |accuracy - mean confidence|.

    confidence (N,) in (0, 1], probability of the predicted class; bin m of 15 is ((m-1)/15, m/15].
    nan without images.
    """
    if not len(right):
        return math.nan
    confidence, right = confidence.double(), right.double()
    bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    gaps = torch.bincount(bins, right - confidence, BINS)       # |bin| * (accuracy - confidence)
    return 100 * gaps.abs().sum().item() / len(right)


def finite(probabilities):
    """The same. ValueError where some are not finite: CLIP's numbers left the range of float16."""
    if not probabilities.isfinite().all():
        raise ValueError("the features are not finite: try --precision bfloat16 or float32, or "
                         "other weights")
    return probabilities


def recalls(y, predicted, K):
    """Right predictions of each class in per cent, nan without test images; and these images."""
    n = torch.bincount(y, minlength=K)
    right = torch.bincount(y[y == predicted], minlength=K)
    return 100 * right / n, n


def mean_recall(y, predicted, K):
    """Mean over the classes that have test images of their recall, in per cent."""
    recall, n = recalls(y, predicted, K)
    return recall[n > 0].mean().item()


def group_of(count):
    """Many, medium, few or unseen, by a class's training images; unknown where they are None."""
    if count is None:
        return "unknown"
    if count >= MANY:
        return "many"
    if count > FEW:
        return "medium"
    return "few" if count else "unseen"


def group_recalls(group, y, predicted, was):
    """{group: {"classes", "recall", "zeroshot"}} over the classes with test images, many first.

    group       of each class; was: what zero-shot CLIP predicts
    """
    recall, n = recalls(y, predicted, len(group))
    zeroshot, _ = recalls(y, was, len(group))
    groups = {}
    for name in ("many", "medium", "few", "unseen", "unknown"):
        inside = torch.tensor([g == name and m > 0 for g, m in zip(group, n, strict=True)])
        if inside.any():
            groups[name] = {"classes": int(inside.sum()), "recall": recall[inside].mean().item(),
                            "zeroshot": zeroshot[inside].mean().item()}
    return groups


def confusions(y, predicted, K):
    """Images of each class (row) that were taken for each class (column), (K, K)."""
    return torch.bincount(y * K + predicted, minlength=K * K).view(K, K)


def worst_confusions(pairs, names, most=5):
    """[[class, taken for, images]], the most frequent first, then in label order."""
    wrong = pairs.clone().fill_diagonal_(0)
    worst = sorted(wrong.nonzero().tolist(), key=lambda place: -wrong[tuple(place)])[:most]
    return [[names[k], names[p], int(wrong[k, p])] for k, p in worst]


# All of it for some classes ----------------------------------------------------------------------

def judge(names, trained, y, probabilities, plain=None):
    """What the probabilities (N, K) of Eq. (1) say of the images, as JSON takes it.

    trained  training images of each class
    plain    zero-shot CLIP's probabilities, None where nothing was learned
    """
    confidence, predicted = probabilities.max(dim=1)
    right = predicted == y
    was = predicted if plain is None else plain.argmax(dim=1)
    group = [group_of(count) for count in trained]
    groups = group_recalls(group, y, predicted, was)
    inside = {g: torch.tensor([group[k] == g for k in y.tolist()]) for g in groups}
    before = was == y
    return {
        "num_classes": len(names), "test_images": len(y), "groups": groups,
        "accuracy_interval": wilson(int(right.sum()), len(y)),
        "mean_recall": mean_recall(y, predicted, len(names)),
        "zeroshot": 100 * before.double().mean().item(),
        "zeroshot_mean_recall": mean_recall(y, was, len(names)),
        "gain": None if plain is None else paired_gain(before, right),
        "calibration_error": {"all": calibration_error(confidence, right)} | {
            g: calibration_error(confidence[of], right[of]) for g, of in inside.items()},
        "confusions": worst_confusions(confusions(y, predicted, len(names)), names)}


def write(out, names, trained, items, probabilities, plain=None):
    """per_class.csv, predictions.csv and confusion.csv in the folder `out`; see judge."""
    y = torch.tensor([label for _, label in items])
    confidence, predicted = probabilities.max(dim=1)
    recall, n = recalls(y, predicted, len(names))
    before = recall if plain is None else recalls(y, plain.argmax(dim=1), len(names))[0]
    files.write_csv(out / "per_class.csv", [
        ("class", "training_images", "group", "test_images", "recall", "zeroshot_recall"),
        *((name, count, group_of(count), int(m), f"{r:.2f}", f"{b:.2f}") for name, count, m, r, b in
          zip(names, trained, n, recall, before, strict=True))])
    files.write_csv(out / "predictions.csv", [
        ("picture", "class", "predicted", "probability"),
        *((picture, names[k], names[p], f"{q:.4f}")
          for (picture, k), p, q in zip(items, predicted, confidence, strict=True))])
    rows = confusions(y, predicted, len(names)).tolist()
    files.write_csv(out / "confusion.csv", [
        ("class \\ predicted", *names),
        *((name, *row) for name, row in zip(names, rows, strict=True))])


# What is said of it ------------------------------------------------------------------------------

def row(part, result):
    """A part's line in the table of an evaluation; HEAD is the table's first line."""
    low, high = result["accuracy_interval"]
    return (part, result["num_classes"], result["test_images"], result["zeroshot"],
            result["accuracy"], f"{low:.1f} to {high:.1f}", result["mean_recall"])


HEAD = ("", "classes", "images", "zero-shot", "accuracy", "95 % interval", "class mean")


def show(part, result):
    """Lines on a part: gain, recall and calibration by group, the most confused classes."""
    show_gain(part, result["gain"])
    now, before = result["mean_recall"], result["zeroshot_mean_recall"]
    print(f"{part}: mean recall (zero-shot): all {now:.1f} % ({before:.1f}); by training images "
          + ", ".join(f"{g} {v['recall']:.1f} % ({v['zeroshot']:.1f}; {v['classes']} classes)"
                      for g, v in result["groups"].items()))
    print(f"{part}: expected calibration error ({BINS} bins): " + ", ".join(
        f"{g} {error:.1f} %" for g, error in result["calibration_error"].items()))
    if result["confusions"]:
        print(f"{part}: most confused: " + ", ".join(
            f"{name} taken for {other} ({images})" for name, other, images in result["confusions"]))


def show_gain(part, gain):
    if gain:
        print(f"{part}: {gain['points']:+.2f} points over zero-shot, 95 % interval "
              f"{gain['low']:+.2f} to {gain['high']:+.2f} ({gain['better']} images are right only "
              f"now, {gain['worse']} only before): {verdict(gain)}")
