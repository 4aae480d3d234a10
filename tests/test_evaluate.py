"""evaluate.py: the measures by hand and by loops, the files it writes, the three tasks, photos; it never trains."""
import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import colour_folder, fill_learned
from PIL import Image

import data
import evaluate
import prompts
import train


def rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def run(*argv):
    return evaluate.main([str(a) for a in argv])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of MaPLe in the little world."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert train.main(["--method", "maple", "--npt", "--tau", "0.01", "--epochs", "2", "--out", str(out)]) == 0
    return out


@pytest.fixture
def a_run(finished, at):
    return Path(shutil.copytree(finished, at / "run"))


# ------------------------------------------------------------------------------------------------------------- measures

def test_harmonic_mean_by_hand():
    assert evaluate.harmonic_mean(60.0, 30.0) == pytest.approx(40)      # 2 * 1800 / 90
    assert evaluate.harmonic_mean(0.0, 0.0) == 0


def test_recalls_by_hand():
    recall, n = evaluate.recalls(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1]), 3)
    assert n.tolist() == [3, 1, 0] and recall[:2].tolist() == pytest.approx([200 / 3, 100]) and recall[2].isnan()


@pytest.mark.parametrize("method", ["maple", "coop", "cocoop"])
def test_measures_equal_loops(small_clip, method):
    learner = prompts.build(method, small_clip, ["cat", "dog bed", "owl"], n_ctx=2)
    fill_learned(learner)
    images, y = torch.randn(7, 3, 32, 32), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    with torch.no_grad():
        logits, z, g = learner(images)
    found, probabilities = evaluate.measure(learner, z, y, batch_size=3)
    sets = [g[n] if method == "cocoop" else g for n in range(7)]
    right = sum(int(logits[n].argmax() == y[n]) for n in range(7))
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    lcd = sum(float(s[i] @ s[j]) + 1 / 2 for s in sets for i, j in pairs) / (7 * 6)
    rms = sum((sum((float(s[i] @ s[j]) + 1 / 2) ** 2 for i, j in pairs) / 6) ** .5 for s in sets) / 7
    mid = sum(float(z[n] @ sets[n][y[n]]) - 1 for n in range(7)) / 7
    assert found == {"accuracy": pytest.approx(100 * right / 7), "delta_lcd": pytest.approx(lcd, abs=1e-5),
                     "delta_mid": pytest.approx(mid, abs=1e-5), "lcd_rms": pytest.approx(rms, abs=1e-5)}
    torch.testing.assert_close(probabilities, logits.softmax(dim=1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("method, times", [("maple", 1), ("coop", 1), ("cocoop", 3)])
def test_texts_are_encoded_once_for_an_evaluation(small_clip, method, times, monkeypatch):
    learner = prompts.build(method, small_clip, ["cat", "dog", "owl"])
    calls, real = [], small_clip.encode_prompts
    monkeypatch.setattr(small_clip, "encode_prompts", lambda *a: calls.append(1) or real(*a))
    evaluate.measure(learner, torch.nn.functional.normalize(torch.randn(7, 64)), torch.zeros(7, dtype=torch.long), 3)
    assert len(calls) == times                              # CoCoOp's belong to images: once a batch


# ----------------------------------------------------------------------------------------------------------- whole runs

def test_files_agree_with_each_other_and_with_the_run(a_run, capsys):
    before = (a_run / "prompts.pt").read_bytes()
    assert run(a_run) == 0
    result = json.loads((a_run / "result.json").read_text())
    for half in ("base", "novel"):
        folder = a_run / "evaluation" / half
        head, *predictions = rows(folder / "predictions.csv")
        assert head == ["picture", "class", "predicted", "probability"] and len(predictions) == 12 * 50
        right = sum(k == p for _, k, p, _ in predictions)
        assert 100 * right / 600 == pytest.approx(result[half], abs=1e-4)
        assert all(0 <= float(q) <= 1 and name.split("/")[1] == k for name, k, _, q in predictions)
        head, *per_class = rows(folder / "per_class.csv")
        names, *confusion = rows(folder / "confusion.csv")
        for (name, *line), (same, count, group, n, recall) in zip(confusion, per_class, strict=True):
            hits = sum(k == name == p for _, k, p, _ in predictions)
            assert name == same and n == "50" and float(recall) == pytest.approx(2 * hits, abs=.01)
            assert int(line[names.index(name) - 1]) == hits and sum(map(int, line)) == 50
    groups = [row[2] for row in rows(a_run / "evaluation/base/per_class.csv")[1:]]
    assert groups == ["many"] * 2 + ["medium"] * 3 + ["few"] * 7            # 16 11 7 5 3 2 1 1 1 1 1 1
    assert {row[2] for row in rows(a_run / "evaluation/novel/per_class.csv")[1:]} == {"unseen"}
    text = capsys.readouterr().out
    assert f"harmonic mean {result['harmonic_mean']:.2f}" in text and "many " in text and "few " in text
    first = (a_run / "evaluation/base-to-novel.json").read_bytes()
    assert run(a_run) == 0
    assert (a_run / "evaluation/base-to-novel.json").read_bytes() == first  # twice the same
    assert (a_run / "prompts.pt").read_bytes() == before                    # and it trained nothing


def test_evaluation_builds_no_optimizer(a_run, monkeypatch):
    monkeypatch.setattr(torch.optim.Optimizer, "__init__", lambda *_: pytest.fail("an evaluation must not train"))
    assert run(a_run, "--classes", "all", "--out", "e") == 0
    assert len(rows("e/all/per_class.csv")) == 25


def test_transfer_to_other_label_spaces_and_styles(a_run, capsys):
    assert run(a_run, "--task", "cross-dataset", "--targets", "world_colours", "world_shapes") == 0
    assert run(a_run, "--task", "domain-generalization", "--targets", "world_blur") == 0
    found = json.loads((a_run / "evaluation/cross-dataset.json").read_text())["results"]
    assert list(found) == ["world_colours", "world_shapes"]
    for target, K in (("world_colours", 8), ("world_shapes", 10)):
        predictions = rows(a_run / "evaluation" / target / "predictions.csv")[1:]
        accuracy = 100 * sum(k == p for _, k, p, _ in predictions) / (50 * K)
        assert found[target]["accuracy"] == pytest.approx(accuracy) and found[target]["num_classes"] == K
        assert found[target]["zeroshot"] > 150 / K
    text = capsys.readouterr().out
    mean = sum(r["accuracy"] for r in found.values()) / 2
    assert "zero-shot" in text and f"{mean:.2f}" in text


def test_imagenet_a_is_scored_on_its_own_classes(a_run):
    """Class folders by WordNet id; labels by id, whatever stands at that position among the 1,000."""
    folder = Path("data/imagenet-adversarial/imagenet-a")
    colour_folder(folder, ["n01498041", "n01531178", "n02099601"], 2)
    assert run(a_run, "--task", "domain-generalization", "--targets", "imagenet_a", "--data-root", "data") == 0
    per_class = rows(a_run / "evaluation/imagenet_a/per_class.csv")[1:]
    assert [row[0] for row in per_class] == ["stingray", "goldfinch", "Golden Retriever"]


def test_photos_and_other_class_names(a_run, capsys):
    dataset = data.load("world")
    name, label = dataset.test[0]
    dataset.open(name).save("photo.png")
    Path("names.txt").write_text("red square\ngreen_leaf\n")
    assert run(a_run, "--image", "photo.png", "photo.png") == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 2 and lines[0] == lines[1] and lines[0].startswith("photo.png: ") and lines[0].count("%") == 5
    learner, _ = evaluate.load_run(a_run)
    pixels = data.transform(32, train=False)(Image.open("photo.png").convert("RGB"))
    with torch.no_grad():
        best = learner(pixels[None])[0].softmax(dim=1)[0].max()
    assert f"{100 * best:.1f} %" in lines[0]
    assert run(a_run, "--image", "photo.png", "--classnames", "names.txt") == 0
    line = capsys.readouterr().out
    assert "red square" in line and "green leaf" in line and line.count("%") == 2


def test_figure(a_run, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        assert run(a_run, "--figure", "f.png") == 2
    assert "--figure needs matplotlib: pip install matplotlib" in capsys.readouterr().err
    pytest.importorskip("matplotlib")
    assert run(a_run, "--figure", "f.png") == 0
    assert Image.open("f.png").size[0] > 600


@pytest.mark.parametrize("damage, argv, message", [
    (lambda run: shutil.rmtree(run), [], "is no finished run"),
    (lambda run: (run / "result.json").unlink(), [], "is no finished run"),
    (lambda run: (run / "prompts.pt").write_bytes(b"x"), [], "not a run's learned tensors"),
    (None, ["--image", "none.png"], "none.png: picture not found"), (None, ["--image", "run"], "not a readable picture|Is a dir"),
    (None, ["--task", "cross-dataset", "--targets", "world_shape"], "unknown dataset 'world_shape'; did you mean world_shapes"),
    (None, ["--image", "x.png", "--classnames", "none.txt"], "none.txt"),
])
def test_bad_input_is_one_line_and_code_2(a_run, capsys, damage, argv, message):
    import re
    if damage:
        damage(a_run)
    assert run(a_run, *argv) == 2
    error = capsys.readouterr().err.replace("\r", "\n").strip().splitlines()[-1]
    assert error.startswith("error: ") and re.search(message, error), error


def test_script_without_a_run(at):
    done = subprocess.run([sys.executable, evaluate.__file__, "nowhere"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: nowhere is no finished run") and not done.stdout


def test_low_precision_agrees_on_the_embedded_world(finished):
    """bfloat16: the same predictions on 99 % of the test images, accuracy within 0.5 points."""
    dataset, predicted = data.load("world"), {}
    for dtype in (torch.float32, torch.bfloat16):
        learner, _ = evaluate.load_run(finished, dtype=dtype, classnames=dataset.classnames[:12])
        items = data.select(dataset.test, range(12))
        z, y = evaluate.image_features(learner, evaluate.pictures(dataset, items, learner.clip))
        result, probabilities = evaluate.measure(learner, z, y)
        predicted[dtype] = probabilities.argmax(dim=1), result["accuracy"]
    (a, accuracy_a), (b, accuracy_b) = predicted.values()
    assert (a == b).float().mean() >= .99 and abs(accuracy_a - accuracy_b) <= .5
