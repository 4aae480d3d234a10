"""Intervals, the paired gain, calibration and confusions, each against arithmetic by hand."""
import csv
import math

import pytest
import torch

from assets import measures


def test_wilsons_interval_by_hand():
    # p = 1/2, Z^2/n = 0.384146: (0.692073 -+ 1.959964 * sqrt(0.025 + 0.0096036)) / 1.384146
    assert measures.wilson(5, 10) == pytest.approx((23.659, 76.341), abs=1e-3)
    # p = 0: 0 to (Z^2/n) / (1 + Z^2/n)
    assert measures.wilson(0, 10) == pytest.approx((0, 38.4146 / 1.384146), abs=1e-3)
    assert measures.wilson(10, 10) == pytest.approx((100 - 38.4146 / 1.384146, 100), abs=1e-3)


def cells(both, better, worse, neither):
    """Right before, right after, for images of these four kinds."""
    kinds = [(True, True)] * both + [(False, True)] * better + [(True, False)] * worse
    before, after = zip(*(kinds + [(False, False)] * neither), strict=True)
    return torch.tensor(before), torch.tensor(after)


@pytest.mark.parametrize("counts, points, low, high, words", [
    # n = 20: 5/22 -+ 1.959964 sqrt((8/22 - (5/22)^2) / 22)
    ((8, 6, 1, 5), 25, -0.613, 46.067, "no larger than the test noise"),
    # n = 40: 9/42 -+ 1.959964 sqrt((12/42 - (9/42)^2) / 42)
    ((20, 10, 1, 9), 22.5, 6.618, 36.239, "a gain larger than the test noise"),
    ((20, 1, 10, 9), -22.5, -36.239, -6.618, "a loss larger than the test noise"),
    # no image changed, n = 8: -+ 1.959964 sqrt(1/10 / 10)
    ((4, 0, 0, 4), 0, -19.600, 19.600, "no larger than the test noise")])
def test_paired_gain_by_hand(counts, points, low, high, words):
    gain = measures.paired_gain(*cells(*counts))
    assert (gain["better"], gain["worse"]) == counts[1:3]
    assert [gain[name] for name in ("points", "low", "high")] == pytest.approx(
        [points, low, high], abs=1e-3)
    assert measures.verdict(gain) == words


def test_expected_calibration_error_by_hand():
    confidence = torch.tensor([0.90, 0.92, 0.50, 0.30])
    right = torch.tensor([True, False, True, False])
    # bins of 1/15: 0.90 and 0.92 share (13/15, 14/15], 1 of 2 right where 0.91 is claimed
    by_hand = 2 / 4 * abs(0.5 - 0.91) + 1 / 4 * 0.5 + 1 / 4 * 0.3
    assert measures.calibration_error(confidence, right) == pytest.approx(100 * by_hand, abs=1e-4)
    assert measures.calibration_error(torch.ones(3), torch.ones(3).bool()) == 0
    assert math.isnan(measures.calibration_error(confidence[:0], right[:0]))
    # a bin's upper end belongs to it: 6/15 is in (5/15, 6/15] with 0.35, not with 0.42
    edge = torch.tensor([6 / 15, 0.35, 0.42], dtype=torch.float64)
    answers = torch.tensor([True, False, False])
    by_hand = abs(1 - 0.4 - 0.35) / 3 + 0.42 / 3
    assert measures.calibration_error(edge, answers) == pytest.approx(100 * by_hand, abs=1e-4)


# Six images of three classes; class c has no training image and one test image.
NAMES, TRAINED = ["a", "b", "c"], [9, 2, 0]
ITEMS = [("1", 0), ("2", 0), ("3", 0), ("4", 1), ("5", 1), ("6", 2)]
TUNED = torch.tensor([[.8, .1, .1], [.8, .1, .1], [.2, .7, .1], [.2, .7, .1], [.6, .3, .1],
                      [.6, .3, .1]])
PLAIN = torch.tensor([[.8, .1, .1], [.1, .8, .1], [.2, .7, .1], [.8, .1, .1], [.6, .3, .1],
                      [.1, .1, .8]])


def test_what_is_judged_by_hand():
    y = torch.tensor([label for _, label in ITEMS])
    facts = measures.judge(NAMES, TRAINED, y, TUNED, PLAIN)
    assert (facts["num_classes"], facts["test_images"]) == (3, 6)
    assert facts["mean_recall"] == pytest.approx(100 * (2 / 3 + 1 / 2 + 0) / 3, abs=1e-4)
    assert facts["zeroshot"] == pytest.approx(100 * 2 / 6)          # images 1 and 6
    assert facts["zeroshot_mean_recall"] == pytest.approx(100 * (1 / 3 + 0 + 1) / 3, abs=1e-4)
    assert facts["accuracy_interval"] == measures.wilson(3, 6)      # images 1, 2, 4
    gain = facts["gain"]
    assert (gain["better"], gain["worse"], gain["points"]) == (2, 1, pytest.approx(100 / 6))
    assert facts["confusions"] == [["a", "b", 1], ["b", "a", 1], ["c", "a", 1]]
    # many: two right at 0.8 (gap 0.2 each), one wrong at 0.7
    errors = {"many": (0.2 + 0.2 + 0.7) / 3, "few": (0.3 + 0.6) / 2, "unseen": 0.6,
              "all": (0.4 + abs(1 - 1.4) + 1.2) / 6}                # 0.7s and 0.6s share bins
    assert facts["calibration_error"] == {
        group: pytest.approx(100 * error, abs=1e-4) for group, error in errors.items()}
    assert {group: v["classes"] for group, v in facts["groups"].items()} == {
        "many": 1, "few": 1, "unseen": 1}
    assert facts["groups"]["many"]["recall"] == pytest.approx(200 / 3, abs=1e-4)
    assert facts["groups"]["many"]["zeroshot"] == pytest.approx(100 / 3, abs=1e-4)
    assert [facts["groups"]["unseen"][who] for who in ("recall", "zeroshot")] == [0, 100]
    assert measures.judge(NAMES, TRAINED, y, TUNED)["gain"] is None


def test_files_of_an_evaluation_by_hand(tmp_path, capsys):
    measures.write(tmp_path, NAMES, TRAINED, ITEMS, TUNED, PLAIN)
    with open(tmp_path / "per_class.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[1:] == [["a", "9", "many", "3", "66.67", "33.33"],
                        ["b", "2", "few", "2", "50.00", "0.00"],
                        ["c", "0", "unseen", "1", "0.00", "100.00"]]
    facts = measures.judge(NAMES, TRAINED, torch.tensor([k for _, k in ITEMS]), TUNED, PLAIN)
    measures.show("all", facts)
    printed = capsys.readouterr().out
    assert "all: +16.67 points over zero-shot, 95 % interval " in printed
    assert "(2 images are right only now, 1 only before): no larger than the test noise" in printed
    assert "all: mean recall (zero-shot): all 38.9 % (44.4); by training images many 66.7 % " in (
        printed)
    assert "all: most confused: a taken for b (1), b taken for a (1), c taken for a (1)" in printed


def test_the_most_frequent_confusion_comes_first():
    pairs = torch.tensor([[5, 1, 0], [0, 5, 3], [2, 0, 9]])
    assert measures.worst_confusions(pairs, NAMES, most=2) == [["b", "c", 3], ["c", "a", 2]]
    assert measures.worst_confusions(torch.eye(3).long(), NAMES) == []
