"""evaluate.py as its user meets it: a folder of one's own, three tasks, stale and damaged runs."""
import functools
import json
import math
import shutil
from pathlib import Path

import pytest
import small_runs
import textbook
import torch
import torch.nn.functional as F
from conftest import fill_learned
from small_runs import command, done, eurosat, files, picture, read, refused, write_classes

import clip_model
import data
import evaluate
import losses
import prompts
import train

# 60 % of each train: 14, 7, 5, 2
CLASSES = {"black_cat": 24, "dog": 12, "empty handed": 8, "ä b": 4}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, archive):
    """A folder with a MaPLe run on all classes of the folder pets/, and one on EuroSAT's base."""
    root = tmp_path_factory.mktemp("own")
    pictures = write_classes(root / "pets", CLASSES)
    eurosat(root / "data", split=True)
    done("--method", "maple", "--npt", "--epochs", 2, "--dataset", pictures, "--backbone", archive,
         "--out", root / "run")
    done("--method", "coop", "--n-ctx", 2, "--epochs", 1, "--shots", 2, "--dataset", "eurosat",
         "--data-root", root / "data", "--out", root / "sat", "--backbone", archive)
    return root


@pytest.fixture
def own(finished, tmp_path, monkeypatch):
    """A working directory with copies of the runs; the pictures stay where they were."""
    for name in ("run", "sat", "features"):
        shutil.copytree(finished / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evaluated(*argv):
    return done(*argv, main=evaluate.main)


def stopped(*argv):
    return refused(*argv, main=evaluate.main)


def results(run, task="base-to-novel"):
    return small_runs.told(Path(run, "evaluation", f"{task}.json"))


def right_of(numbers):
    """result.json's bits -> [1, 0, ...], an image each, filled with 0."""
    return [int(bit) for digits in bytes.fromhex(numbers["right"]) for bit in f"{digits:08b}"]


def slow_predictions(learner, names, pictures, template=None):
    """The most probable class of each picture in the textbook form, one at a time.

    With a template: zero-shot CLIP.
    """
    weights = dict(learner.clip.named_parameters())
    view, predicted = data.transform(learner.clip.visual.resolution, train=False), []
    learner.set_classes(names)
    with torch.no_grad():
        if template:
            tokens = clip_model.tokenize([template.format(n.replace("_", " ")) for n in names])
            words = weights["token_embedding.weight"][tokens]
            g = textbook.G_l(weights, words, tokens.argmax(dim=1))
        for image in pictures:
            image = view(image.convert("RGB"))[None]
            s = textbook.G_v(weights, image) @ g.T if template else textbook.forward(
                learner, image)[0]
            predicted.append(s.argmax().item())
    return predicted


# A run evaluated again -------------------------------------------------------------------------

def test_own_folder_trained_on_all_is_evaluated_on_all(own):
    before = files(own / "run")
    printed = evaluated("run")
    kept, found = small_runs.result("run"), results("run")
    assert found["results"].keys() == {"all"}
    numbers = found["results"]["all"]
    assert found["split"] == "as kept in the run's split.json" and found["official_split"] is False
    assert found["split"] in printed
    after = files(own / "run")
    assert after.keys() - before.keys() == {"evaluation/base-to-novel.json"}
    assert before.items() <= after.items()
    # 24 + 12 + 8 + 4, less 60 % of each; none that was trained on
    test = json.loads(Path("run/split.json").read_text())["test"]
    assert len(test) == 20 == numbers["test_images"]
    assert not {row["picture"] for row in read("run/drawn.csv")} & {name for name, *_ in test}
    assert numbers["accuracy"] == pytest.approx(kept["all"], abs=1e-4)
    assert numbers["zeroshot"] == pytest.approx(kept["zeroshot"]["all"], abs=1e-4)
    assert numbers["mean_recall"] == kept["mean_recall"] == round(numbers["mean_recall"], 6)
    first = files(own / "run" / "evaluation")
    evaluated("run")
    assert files(own / "run" / "evaluation") == first and not list(own.rglob("*.part"))


def toy(names, items):
    pictures = {n: picture(int(n)) for n, _ in items}
    return data.Dataset("toy", list(names), "{}", items, [], items, "", False, pictures)


def test_labels_are_those_of_the_classes_asked_for(small_clip):
    """Classes 3, 1 of four, in this order: prompts, and the test images relabelled."""
    dataset = toy("abcd", [(str(i), i % 4) for i in range(12)])
    learner = prompts.build("zeroshot", small_clip, dataset.classnames, ctx_init="{}")
    found, p, plain = evaluate.evaluate_classes(learner, dataset, [3, 1],
                                                evaluate.FrozenFeatures(dataset))
    assert (found["num_classes"], found["test_images"], p.shape) == (2, 6, (6, 2))
    assert found["gain"] is plain is None                               # nothing was learned
    odd = [i for i in range(12) if i % 2]
    slow = slow_predictions(learner, ["d", "b"], [dataset.pictures[str(i)] for i in odd], "{}")
    assert p.argmax(dim=1).tolist() == slow
    assert found["accuracy"] == pytest.approx(
        100 * sum("db"[k] == "abcd"[i % 4] for k, i in zip(slow, odd, strict=True)) / 6)


def test_a_class_without_test_pictures_counts_in_no_mean(small_clip):
    dataset = toy("ab", [("0", 0), ("1", 0)])
    learner = prompts.build("coop", small_clip, dataset.classnames, n_ctx=1)
    frozen = evaluate.FrozenFeatures(dataset)
    found, _, plain = evaluate.evaluate_classes(learner, dataset, [0, 1], frozen)
    zeroshot = prompts.build("zeroshot", small_clip, dataset.classnames, ctx_init="{}")
    z, y = evaluate.image_features(zeroshot, dataset, dataset.test)
    torch.testing.assert_close(plain, evaluate.measure(zeroshot, z, y)[1])      # its template
    assert found["mean_recall"] == found["accuracy"]
    assert found["zeroshot_mean_recall"] == found["zeroshot"]
    right = torch.tensor([True, False, True])
    assert evaluate.mean_recall(torch.tensor([0, 0, 2]), right, 3) == 75    # of 50, none, 100 %
    with pytest.raises(ValueError, match="toy: none of the classes to evaluate has a test picture"):
        evaluate.evaluate_classes(learner, dataset, [1], frozen)


def test_run_and_pictures_are_found_from_another_working_directory(own, archive, monkeypatch):
    """And the names of its classes, though their file is gone."""
    shutil.copy(archive, "weights.pt")
    Path("names.tsv").write_text("cat\tgrey cat\ndog\ttall dog\n")
    done(*command(own, archive)[:-4], "--dataset", "pets", "--classnames", "names.tsv",
         "--backbone", "weights.pt", "--out", "m")
    Path("names.tsv").unlink()
    (own / "elsewhere").mkdir()
    monkeypatch.chdir(own / "elsewhere")
    evaluated("../m")
    accuracy = small_runs.result("../m")["all"]
    assert results("../m")["results"]["all"]["accuracy"] == pytest.approx(accuracy, abs=1e-4)
    printed = evaluated("../sat").split("\n")
    assert list(Path(".").iterdir()) == []
    # both halves of EuroSAT, and the same numbers as at the end of the training
    found, kept = results("../sat"), small_runs.result("../sat")
    for key in ("base", "novel"):
        numbers = found["results"][key]
        assert numbers["accuracy"] == pytest.approx(kept[key], abs=1e-4)
        assert numbers["zeroshot"] == pytest.approx(kept["zeroshot"][key], abs=1e-4)
        assert numbers["test_images"] == 30
    assert found["results"]["harmonic_mean"] == pytest.approx(kept["harmonic_mean"], abs=1e-4)
    assert found["official_split"] is True
    assert [line.split()[0] for line in printed[2:4]] == ["base", "novel"]
    assert f"harmonic mean {kept['harmonic_mean']:.2f}" in printed


def test_classes_that_were_trained_are_not_called_novel(own, archive):
    assert "none is novel" in stopped("run", "--classes", "novel")
    evaluated("run", "--classes", "base", "--out", "here")      # a smaller label space
    found = json.loads(Path("here/base-to-novel.json").read_text())["results"]
    assert found.keys() == {"base"} and found["base"]["num_classes"] == 2


# Runs gone stale -------------------------------------------------------------------------------

def test_a_dataset_that_moved_or_changed(own, archive):
    done(*command(own, archive, cat=20, dog=20), "--out", "mine")
    pictures, moved = own / "pets", own / "moved"
    printed, before = evaluated("mine"), results("mine")["results"]
    pictures.rename(moved)
    line = stopped("mine")
    assert "pets: no such folder" in line and "if it has moved, add --data-root FOLDER" in line
    (moved / "ape").mkdir()
    for i in range(23):                             # a split made anew would fall elsewhere
        picture(i).save(moved / ("ape" if i < 2 else "cat") / f"new_{i}.png")
    shutil.copy(moved / "ape/new_0.png", moved / "ape/.hidden.png")
    said = evaluated("mine", "--data-root", "moved")
    assert said.startswith("coop on moved") and said.endswith(printed.partition("\n")[2])
    assert "23 photos in moved are not in the run's split.json and are ignored, first ape/" in said
    assert results("mine")["results"] == before
    gone = json.loads(Path("mine/split.json").read_text())["test"][0][0]
    (moved / gone).unlink()
    line = stopped("mine", "--data-root", "moved")
    assert line.endswith(f"moved/{gone}: picture not found; put back what is gone, or train anew "
                         "without it")
    Path("mine/split.json").unlink()                # a run from before splits were kept
    moved.rename(pictures)
    assert "other classes now" in stopped("mine")
    shutil.rmtree(pictures / "ape")
    line = stopped("mine")
    assert "test pictures of" in line and "trained the prompts of mine" in line
    assert "changed since" in line


def test_official_split_that_came_after_the_training(own, archive):
    """Prompts trained on a split made here have seen pictures that CoOp's split tests on."""
    eurosat(own / "data")
    done("--method", "coop", "--n-ctx", 2, "--epochs", 1, "--dataset", "eurosat",
         "--seed", 3, "--out", "mine", "--backbone", archive)
    evaluated("mine")
    for facts in (small_runs.result("mine"), results("mine")):
        assert facts["official_split"] is False and "made here" in facts["split"]
    shutil.rmtree("data/eurosat/2750")
    folder = eurosat(own / "data", split=True)
    assert "trained the prompts of mine" in stopped("mine")
    (folder / "River" / "River_20.jpg").unlink()
    assert "River_20.jpg: picture not found" in stopped("sat", "--data-root", "data")


def test_weights_that_moved(own, archive):
    weights = shutil.copy(archive, own / "mine.pt")
    done(*command(own, archive)[:-1], "mine.pt", "--out", "mine")
    content = clip_model.read_state_dict(weights)
    content["text_projection"][0, 0] += 1
    torch.save(content, weights)                    # other weights of the same name
    line = stopped("mine")
    assert "mine was trained on other weights than" in line and "put those back" in line
    Path(weights).unlink()
    assert "mine.pt" in stopped("mine") and "--backbone FILE" in stopped("mine")
    assert "class mean" in done("mine", "--backbone", archive, main=evaluate.main)
    assert "other weights than" in stopped("mine", "--backbone", "tiny")


def swap(run, **parts):
    torch.save(torch.load(run / "prompts.pt", weights_only=True) | parts, run / "prompts.pt")


def another(run, name, leave=True):
    settings = torch.load(run / "prompts.pt", weights_only=True)["settings"]
    del settings[name]
    swap(run, settings=settings | {name: 7} if leave else settings)


def lead_out(run):
    split = json.loads((run / "split.json").read_text())
    split["test"][0][0] = "../secret.png"
    (run / "split.json").write_text(json.dumps(split))


def forget_sum(run):
    """A result as the first version wrote it."""
    kept = small_runs.result(run)
    del kept["prompts_sha256"]
    (run / "result.json").write_text(json.dumps(kept))


class Trap:
    """A pickle that would write a file when loaded."""
    def __reduce__(self):
        return (open, ("trapped", "w"))


DAMAGED = {
    "no folder": (shutil.rmtree, "no finished run: expected result.json, prompts.pt, run.json"),
    "no prompts": (lambda run: (run / "prompts.pt").unlink(), "expected prompts.pt in it, as"),
    "no settings": (lambda run: (run / "run.json").unlink(), "expected run.json in it, as"),
    **{f"another {name}": (functools.partial(another, name=name), f"its {name} is not that of run")
       for name in ("method", "draw_seed", "data_root")},
    "no label": (lambda run: another(run, "label", leave=False), "a run's learned tensors ('la"),
    "junk": (lambda run: (run / "prompts.pt").write_bytes(b"junk"), "not a run's learned tensors"),
    "a pickle": (lambda run: swap(run, settings=Trap()), "not a run's learned tensors"),
    "others": (lambda run: swap(run, learned={"ctx": torch.zeros(2, 64)}),
               "its tensors are not those that result.json was measured with"),
    "shape": (lambda run: (forget_sum(run), swap(run, learned={"ctx": torch.zeros(2, 8)})),
              "must hold ctx of shape (2, 64), it has one of shape (2, 8)"),
    "nan": (lambda run: swap(run, learned={"ctx": torch.full((2, 64), torch.nan)}), "ctx is not "),
    "integers": (lambda run: swap(run, learned={"ctx": torch.ones(2, 64).int()}), "ctx is "),
    "a split that leads out": (lead_out, "split.json: test[0]"),
    "drawn": (lambda run: (run / "drawn.csv").write_text("a,b,c\n"), "expected a picture and its"),
}


@pytest.mark.parametrize("damage, line", DAMAGED.values(), ids=DAMAGED)
def test_a_run_that_cannot_be_read(own, damage, line):
    damage(own / "run")
    assert line in stopped("run")
    assert not Path("trapped").exists()


@pytest.mark.parametrize("words, line", [
    ("--targets world", "--targets goes with --task"),
    ("--task cross-dataset --classes base", "leave out --classes"),
    ("--task cross-dataset --targets world_blur wrold", "unknown dataset 'wrold'"),
    ("--task cross-dataset --targets no/such", "no/such: no such folder"),
    ("--task domain-generalization --data-root data", "imagenetv2-matched-frequency"),
    ("--image x", "--image"), ("--table 1", "--table"), ("--out file", "file")])
def test_refused_with_one_line(own, words, line, monkeypatch):
    monkeypatch.setattr(evaluate, "evaluate_classes", lambda *a: pytest.fail("evaluated"))
    Path("file").write_text("mine")
    before = files(own)
    assert line in stopped("run", *words.split())
    assert files(own) == before                     # no target was evaluated in vain


def test_evaluation_never_trains(own, monkeypatch):
    monkeypatch.setattr(torch.optim.Optimizer, "__init__",
                        lambda *a, **k: pytest.fail("an optimizer"))
    monkeypatch.setattr(torch.Tensor, "backward", lambda *a, **k: pytest.fail("a backward pass"))
    monkeypatch.setattr(train, "train", lambda *a: pytest.fail("training"))
    before = files(own / "run")
    evaluated("run", "--out", "out")
    assert files(own / "run") == before


# The other tasks -------------------------------------------------------------------------------

def test_transfer_has_zero_shot_clip_with_each_targets_template(own, finished):
    """EuroSAT and a folder as targets of the pets run; each prediction is the textbook form's.

    One class of the folder has more pictures than the other.
    """
    write_classes(own / "other birds", {"hen": 12, "dog": 5})
    printed = evaluated("run", "--task", "cross-dataset", "--targets", "eurosat", "./other birds",
                        "--data-root", finished / "data")
    found, means = results("run", "cross-dataset")["results"], []
    learner, _ = evaluate.load_run("run")
    lines = {line.partition("  ")[0]: line.split() for line in printed.split("\n")}
    for target, template in (("eurosat", "a centered satellite photo of {}."),
                             ("./other birds", "a photo of a {}.")):
        dataset = data.load(target, finished / "data")
        pictures, y = [dataset.open(name) for name, _ in dataset.test], data.labels_of(dataset.test)
        names, row = dataset.classnames, found[target]
        tuned = slow_predictions(learner, names, pictures)
        plain = slow_predictions(learner, names, pictures, template)
        right = [[p == k for p, k in zip(ps, y, strict=True)] for ps in (plain, tuned)]
        assert right_of(row)[:len(y)] == right[1]
        means.append([100 * sum(bits) / len(y) for bits in right])
        assert [row["zeroshot"], row["accuracy"]] == pytest.approx(means[-1])
        assert row["gain"]["points"] == pytest.approx(means[-1][1] - means[-1][0])
        recalls = [[sum(bit for bit, k in zip(bits, y, strict=True) if k == c) / y.count(c)
                    for c in range(len(names))] for bits in right]
        assert [row["zeroshot_mean_recall"], row["mean_recall"]] == pytest.approx(
            [100 * sum(recall) / len(names) for recall in recalls])
        assert lines[target][-4:] == [str(len(names)), str(len(y)),
                                      *(f"{mean:.2f}" for mean in means[-1])]
        assert row["official_split"] == (target == "eurosat")
    assert lines["average"][1:] == [f"{(a + b) / 2:.2f}" for a, b in zip(*means, strict=True)]


def test_targets_of_the_paper():
    assert evaluate.TASKS["cross-dataset"] == [
        "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101",
        "fgvc_aircraft", "sun397", "dtd", "eurosat", "ucf101"]
    assert evaluate.TASKS["domain-generalization"] == [
        "imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"]


# Measures --------------------------------------------------------------------------------------

@pytest.mark.parametrize("method", ["zeroshot", "coop", "cocoop", "maple"])
def test_measures_against_loops(small_clip, method):
    """Images of three batches, the last a small one: averages go over images, not over batches."""
    learner = prompts.build(method, small_clip, ["cat", "dog", "red fox", "owl"], n_ctx=2)
    fill_learned(learner)
    z = F.normalize(torch.randn(7, 64), dim=1)
    y = torch.tensor([0, 1, 2, 3, 0, 0, 2])
    found, probabilities = evaluate.measure(learner, z, y, batch_size=3)
    with torch.no_grad():
        sets = learner.text_features(z).tolist()
    sets = sets if learner.per_image else [sets] * 7
    bits, lcd, rms, mid, shared, unequal = [], 0, 0, 0, 0, 0
    for n in range(7):
        cosines = [dot(z[n].tolist(), g) for g in sets[n]]
        bits.append(cosines.index(max(cosines)) == y[n].item())
        errors = [dot(sets[n][i], sets[n][j]) + 1 / 3
                  for i in range(4) for j in range(4) if i != j]
        lcd += sum(errors) / 12 / 7
        rms += (sum(e * e for e in errors) / 12) ** .5 / 7
        shared += (sum(errors) / 12) ** 2 / 7
        unequal += sum((e - sum(errors) / 12) ** 2 for e in errors) / 12 / 7
        mid += (cosines[y[n]] - 1) / 7
        exact = [math.exp(100 * c - 100 * max(cosines)) for c in cosines]
        assert probabilities[n].tolist() == pytest.approx([e / sum(exact) for e in exact], abs=1e-4)
    mean_g = [[sum(g[k][i] for g in sets) / 7 for i in range(64)] for k in range(4)]
    assert right_of(found) == [*bits, 0] and found.pop("right")
    of_class = [[bit for bit, k in zip(bits, y.tolist(), strict=True) if k == c] for c in range(4)]
    mean_recall = 100 * sum(sum(own) / len(own) for own in of_class) / 4
    expected = {"accuracy": 100 * sum(bits) / 7, "mean_recall": mean_recall,
                "delta_lcd": lcd, "delta_mid": mid, "lcd_rms": rms,
                "lc_shared": shared, "lc_unequal": unequal,
                **losses.collapses(z, torch.tensor(mean_g), y)}         # tests/test_losses.py
    assert found == {name: pytest.approx(value, abs=2e-5) for name, value in expected.items()}


def dot(a, b):
    return sum(p * q for p, q in zip(a, b, strict=True))


@pytest.mark.parametrize("method, times", [
    ("zeroshot", 1), ("coop", 1), ("maple", 1), ("cocoop", 4)])
def test_text_features_are_made_once_for_an_evaluation(small_clip, monkeypatch, method, times):
    """Of 350 images in batches of 100; only CoCoOp's depend on the image."""
    learner = prompts.build(method, small_clip, ["a", "b"])
    made, encode = [], prompts.encode_prompts
    monkeypatch.setattr(prompts, "encode_prompts", lambda *a: made.append(1) or encode(*a))
    evaluate.measure(learner, F.normalize(torch.randn(350, 64), dim=1), torch.arange(350) % 2)
    assert len(made) == times


def test_harmonic_mean_by_hand():
    assert evaluate.harmonic_mean(80.0, 40.0) == pytest.approx(160 / 3)
    assert evaluate.harmonic_mean(50.0, 0.0) == 0 == evaluate.harmonic_mean(0.0, 0.0)
    assert evaluate.harmonic_mean(30.0, 30.0) == 30
