"""evaluate.py as its user meets it: a folder of one's own, three tasks, photos, stale runs."""
import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import textbook
import torch
import torch.nn.functional as F
from conftest import fill_learned
from PIL import Image
from small_runs import call, done, eurosat, files, picture, read, refused, write_classes

import clip_model
import data
import evaluate
import prompts
import train
from assets import datasets, features, weight_files

# 60 % of each train: 14, 7, 5, 2
CLASSES = {"black_cat": 24, "dog": 12, "empty handed": 8, "ä b": 4}
NAMES = list(CLASSES)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, archive):
    """A folder with a MaPLe run on all classes of the folder pets/."""
    root = tmp_path_factory.mktemp("own")
    pictures = write_classes(root / "pets", CLASSES)
    done("--method", "maple", "--npt", "--epochs", 2, "--dataset", pictures, "--backbone", archive,
         "--out", root / "run")
    return root


@pytest.fixture
def own(finished, tmp_path, monkeypatch):
    """A working directory with a copy of the run; the pictures stay where they were."""
    shutil.copytree(finished / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evaluated(*argv):
    return done(*argv, main=evaluate.main)


def results(run, task="base-to-novel"):
    return json.loads(Path(run, "evaluation", f"{task}.json").read_text())


def slow_predictions(learner, folder, names, template=None):
    """{picture: most probable class} in the textbook form, one picture at a time.

    With a template: zero-shot CLIP.
    """
    weights = dict(learner.clip.named_parameters())
    view, predicted = data.transform(learner.clip.visual.resolution, train=False), {}
    learner.set_classes(names)
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".png", ".jpg")):
        image = view(Image.open(path).convert("RGB"))[None]
        with torch.no_grad():
            if template:
                tokens = clip_model.tokenize(
                    [template.format(name.replace("_", " ")) for name in names])
                words = weights["token_embedding.weight"][tokens]
                g = textbook.G_l(weights, words, tokens.argmax(dim=1))
                k = (textbook.G_v(weights, image) @ g.T).argmax().item()
            else:
                k = textbook.forward(learner, image)[0].argmax().item()
        predicted[path.relative_to(folder).as_posix()] = names[k]
    return predicted


# ---------------------------------------------------------------------------- a folder of one's own

def test_own_folder_trained_on_all_is_evaluated_on_all(own, finished):
    before = files(own / "run")
    printed = evaluated("run")
    result = json.loads(Path("run/result.json").read_text())
    found = results("run")
    assert found["results"].keys() == {"all"}
    assert found["results"]["all"]["accuracy"] == pytest.approx(result["all"], abs=1e-4)
    assert found["split"] == "as kept in the run's split.json" and found["official_split"] is False
    assert found["split"] in printed
    after = files(own / "run")
    assert {n: s for n, s in after.items() if not n.startswith("evaluation/")} == before
    assert sorted(p.name for p in Path("run/evaluation").iterdir()) == ["all", "base-to-novel.json"]

    rows = read("run/evaluation/all/predictions.csv")
    drawn = {row["picture"] for row in read("run/drawn.csv")}
    # 24 + 12 + 8 + 4, less 60 % of each
    assert len(rows) == 20 == found["results"]["all"]["test_images"]
    assert not drawn & {row["picture"] for row in rows}
    assert all(row["picture"].startswith(row["class"] + "/") for row in rows)
    right = sum(row["class"] == row["predicted"] for row in rows)
    assert 100 * right / 20 == pytest.approx(result["all"], abs=1e-4)
    learner, _ = evaluate.load_run("run")
    slow = slow_predictions(learner, finished / "pets", NAMES)
    assert all(slow[row["picture"]] == row["predicted"] for row in rows)


def test_per_class_groups_and_confusion_follow_from_the_predictions(own):
    printed = evaluated("run")
    rows = read("run/evaluation/all/predictions.csv")
    recall, plain = {}, {}
    per_class = read("run/evaluation/all/per_class.csv")
    for row, name, n in zip(per_class, NAMES, (14, 7, 5, 2), strict=True):
        mine = [r["predicted"] == name for r in rows if r["class"] == name]
        recall[name] = 100 * sum(mine) / len(mine)
        plain[name] = float(row["zeroshot_recall"])
        group = {14: "many", 7: "medium", 5: "medium", 2: "few"}[n]
        assert list(row.values())[:5] == [name, str(n), group, str(len(mine)),
                                          f"{recall[name]:.2f}"]
    groups = results("run")["results"]["all"]["groups"]
    for group, names in (("many", NAMES[:1]), ("medium", NAMES[1:3]), ("few", NAMES[3:])):
        assert groups[group]["classes"] == len(names)
        for who, recalls in (("recall", recall), ("zeroshot", plain)):
            mean = sum(recalls[name] for name in names) / len(names)
            assert groups[group][who] == pytest.approx(mean, abs=0.01)
    assert f"many {recall[NAMES[0]]:.1f} % ({plain[NAMES[0]]:.1f}; 1 classes)" in printed
    confusion = read("run/evaluation/all/confusion.csv")
    assert [row.pop("class \\ predicted") for row in confusion] == NAMES
    for name, row in zip(NAMES, confusion, strict=True):
        assert row == {p: str(sum(r["class"] == name and r["predicted"] == p for r in rows))
                       for p in NAMES}


def toy(names, items):
    pictures = {n: picture(int(n)) for n, _ in items}
    return data.Dataset("toy", list(names), "{}", items, [], items, "", False, pictures)


def test_limits_of_the_groups(small_clip, tmp_path):
    """Many from 8, few up to 2, unseen at 0 training images."""
    items = [(str(k), k) for k in range(6)]
    dataset = toy("abcdef", items)
    learner = prompts.build("zeroshot", small_clip, dataset.classnames)
    result = evaluate.evaluate_classes(learner, dataset, list(range(6)), [8, 7, 3, 2, 1, 0],
                                       tmp_path, features.FrozenFeatures(dataset))
    groups = [row["group"] for row in read(tmp_path / "per_class.csv")]
    assert groups == ["many", "medium", "medium", "few", "few", "unseen"]
    sizes = {group: value["classes"] for group, value in result["groups"].items()}
    assert sizes == {"many": 1, "medium": 2, "few": 2, "unseen": 1}


def test_a_class_without_test_pictures_is_in_no_group(small_clip, tmp_path):
    dataset = toy("ab", [("0", 0), ("1", 0)])
    learner = prompts.build("zeroshot", small_clip, dataset.classnames)
    result = evaluate.evaluate_classes(learner, dataset, [0, 1], [8, 8], tmp_path,
                                       features.FrozenFeatures(dataset))
    row = read(tmp_path / "per_class.csv")[1]
    assert list(row.values()) == ["b", "8", "many", "0", "nan", "nan"]
    assert result["groups"]["many"] == {"classes": 1, "recall": result["accuracy"],
                                        "zeroshot": result["zeroshot"]}
    with pytest.raises(ValueError, match="toy: none of the classes to evaluate has a test picture"):
        evaluate.evaluate_classes(learner, dataset, [1], [8], tmp_path,
                                  features.FrozenFeatures(dataset))


def test_labels_are_those_of_the_classes_asked_for(small_clip, tmp_path):
    """Classes 3, 1 of four: prompts, relabelled test images and names in this order."""
    dataset = toy("abcd", [(str(i), i % 4) for i in range(12)])
    learner = prompts.build("zeroshot", small_clip, dataset.classnames)
    result = evaluate.evaluate_classes(learner, dataset, [3, 1], [5, 0], tmp_path,
                                       features.FrozenFeatures(dataset))
    assert result["num_classes"] == 2 and result["test_images"] == 6
    rows = read(tmp_path / "per_class.csv")
    assert [(row["class"], row["training_images"]) for row in rows] == [("d", "5"), ("b", "0")]
    assert [(row["picture"], row["class"]) for row in read(tmp_path / "predictions.csv")] == [
        (str(i), "abcd"[i % 4]) for i in range(12) if i % 2]


def test_own_folder_with_names_from_a_file(own, archive):
    """The run keeps them: the file may change or go."""
    write_classes(own / "coded", {"n1": 8, "n2": 8})
    Path("names.tsv").write_text("n1\tgrey cat\nn2\ttall dog\n")
    done("--method", "coop", "--n-ctx", 2, "--epochs", 1, "--dataset", "coded",
         "--classnames", "names.tsv", "--backbone", archive, "--out", "named")
    evaluated("named")
    rows = read("named/evaluation/all/predictions.csv")
    assert {row["class"] for row in rows} == {"grey cat", "tall dog"}
    result = json.loads(Path("named/result.json").read_text())
    assert results("named")["results"]["all"]["accuracy"] == pytest.approx(result["all"], abs=1e-4)
    Path("names.tsv").write_text("n1\tblue cat\nn2\ttall dog\n")
    assert evaluated("named", "--out", "again")
    assert read("again/all/predictions.csv") == rows
    Path("names.tsv").unlink()
    evaluated("named")


def test_run_and_pictures_are_found_from_another_working_directory(own, archive, monkeypatch):
    eurosat(own / "disk", split=True)
    done("--method", "coop", "--n-ctx", 2, "--epochs", 1, "--dataset", "eurosat",
         "--data-root", "disk", "--out", "sat", "--backbone", archive)
    write_classes(own / "pets", {"cat": 8, "dog": 8})
    shutil.copy(archive, "weights.pt")
    done("--method", "coop", "--n-ctx", 2, "--epochs", 1, "--dataset", "pets",
         "--out", "m", "--backbone", "weights.pt")
    (own / "elsewhere").mkdir()
    monkeypatch.chdir(own / "elsewhere")
    evaluated("../m")
    printed = evaluated("../sat").split("\n")
    assert list(Path(".").iterdir()) == []
    # both halves of EuroSAT, and the same numbers as at the end of the training
    found = results("../sat")["results"]
    result = json.loads(Path("../sat/result.json").read_text())
    for key in ("base", "novel"):
        assert found[key]["accuracy"] == pytest.approx(result[key], abs=1e-4)
        assert found[key]["test_images"] == 30
    assert found["harmonic_mean"] == pytest.approx(result["harmonic_mean"], abs=1e-4)
    assert results("../sat")["official_split"] is True
    assert [line.split()[0] for line in printed[2:4]] == ["base", "novel"]
    assert f"harmonic mean {result['harmonic_mean']:.2f}" in printed
    novel = read("../sat/evaluation/novel/per_class.csv")
    assert [row["class"] for row in novel] == list(datasets.EUROSAT.values())[5:]
    assert {row["group"] for row in novel} == {"unseen"}


def test_classes_that_were_trained_are_not_called_novel(own):
    assert "none is novel" in refused("run", "--classes", "novel", main=evaluate.main)
    # a smaller label space may be asked for
    evaluated("run", "--classes", "base", "--out", "here")
    assert [row["class"] for row in read("here/base/per_class.csv")] == NAMES[:2]


def test_one_class_has_no_novel_half(own, archive):
    write_classes(own / "single", {"cat": 8})
    done("--dataset", "single", "--classes", "base", "--epochs", 1, "--backbone", archive,
         "--out", "one")
    evaluated("one")
    assert results("one")["results"].keys() == {"base"}
    assert "none is novel" in refused("one", "--classes", "novel", main=evaluate.main)


# ---------------------------------------------------------------------------------- runs gone stale

def test_a_dataset_that_moved_or_changed(own, archive):
    pictures = write_classes(own / "pets", {"cat": 20, "dog": 20})
    done("--method", "coop", "--n-ctx", 2, "--epochs", 1, "--dataset", "pets",
         "--backbone", archive, "--out", "mine")
    printed = evaluated("mine")
    before = read("mine/evaluation/all/predictions.csv")
    pictures.rename(own / "moved")
    line = refused("mine", main=evaluate.main)
    assert "pets: no such folder" in line and "if it has moved, add --data-root FOLDER" in line
    for i in range(21, 40):                         # a split made anew would fall elsewhere
        picture(i).save(own / "moved" / "cat" / f"cat_{i}.png")
    (own / "moved" / "ape").mkdir()
    for i in range(2):
        picture(i).save(own / "moved" / "ape" / f"{i}.png")
    note, _, others = evaluated("mine", "--data-root", "moved").partition("\n")
    assert note.startswith("note      21 photos in moved are not in the run's split.json")
    assert others == printed
    assert read("mine/evaluation/all/predictions.csv") == before
    (own / "moved" / before[0]["picture"]).unlink()
    line = refused("mine", "--data-root", "moved", main=evaluate.main)
    assert f"moved/{before[0]['picture']}: picture not found" in line
    Path("mine/split.json").unlink()                # a run from before splits were kept
    (own / "moved").rename(pictures)
    assert "other classes now" in refused("mine", main=evaluate.main)
    shutil.rmtree(pictures / "ape")
    line = refused("mine", main=evaluate.main)
    assert "test pictures of" in line and "trained the prompts of mine" in line
    assert "changed since" in line


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "cat\\a.png", "./cat/a.png"])
def test_no_picture_of_a_kept_split_leaves_the_folder(own, name):
    path = Path("run/split.json")
    content = json.loads(path.read_text())
    content["test"][0][0] = name
    path.write_text(json.dumps(content))
    assert "split.json: test[0]" in refused("run", main=evaluate.main)


def test_test_pictures_that_are_gone(own, archive):
    folder = eurosat(own / "data", split=True)
    done("--method", "coop", "--n-ctx", 2, "--epochs", 1, "--dataset", "eurosat",
         "--out", "sat", "--backbone", archive)
    (folder / "River" / "River_20.jpg").unlink()
    assert "River_20.jpg: picture not found" in refused("sat", main=evaluate.main)


def test_official_split_that_came_after_the_training(own, archive):
    """Prompts trained on a split made here have seen pictures that CoOp's split tests on."""
    eurosat(own / "data")
    done("--method", "coop", "--n-ctx", 2, "--epochs", 1, "--dataset", "eurosat",
         "--out", "sat", "--backbone", archive)
    evaluated("sat")
    shutil.rmtree("data/eurosat/2750")
    eurosat(own / "data", split=True)
    assert "trained the prompts of sat" in refused("sat", main=evaluate.main)


def test_weights_that_moved(own, archive):
    weights = shutil.copy(archive, own / "mine.pt")
    write_classes(own / "pets", {"cat": 8, "dog": 8})
    done("--method", "coop", "--n-ctx", 2, "--epochs", 1, "--dataset", "pets",
         "--backbone", "mine.pt", "--out", "mine")
    evaluated("mine")
    content = weight_files.read_state_dict(weights)
    content["text_projection"][0, 0] += 1
    torch.save(content, weights)                    # other weights of the same name
    line = refused("mine", main=evaluate.main)
    assert "mine was trained on other weights than" in line and "put those back" in line
    Path(weights).unlink()
    assert "mine.pt" in refused("mine", main=evaluate.main)


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def forget_checksum(run):
    """A result as the previous version wrote it."""
    result = json.loads((run / "result.json").read_text())
    del result["prompts_sha256"]
    (run / "result.json").write_text(json.dumps(result))


def swap(path, **parts):
    torch.save(torch.load(path, weights_only=True) | parts, path)


@pytest.mark.parametrize("damage, line", [
    (lambda run: shutil.rmtree(run), "run is no finished run: expected result.json and prompts.pt"),
    (lambda run: (run / "prompts.pt").unlink(), "run is no finished run"),
    (lambda run: (run / "result.json").unlink(), "run is no finished run"),
    (lambda run: (run / "prompts.pt").write_bytes(b"junk"), "not a run's learned tensors"),
    (lambda run: cut(run / "prompts.pt", 900), "not a run's learned tensors"),
    (lambda run: torch.save({"learned": {}, "settings": {}}, run / "prompts.pt"),
     "not a run's learned tensors"),
    (lambda run: torch.save({"ctx": torch.zeros(2, 64)}, run / "prompts.pt"),
     "not a run's learned tensors"),
    (lambda run: swap(run / "prompts.pt", learned={"ctx": torch.zeros(2, 8)}),
     "its tensors are not those that result.json was measured with"),
    (lambda run: (forget_checksum(run),
                  swap(run / "prompts.pt", learned={"ctx": torch.zeros(2, 8)})),
     "must hold ctx of shape (2, 64), it has one of shape (2, 8)"),
    (lambda run: swap(run / "prompts.pt", learned={"ctx": torch.full((2, 64), torch.nan)}),
     "ctx is not finite"),
    (lambda run: swap(run / "prompts.pt", learned={"ctx": torch.ones(2, 64).int()}),
     "ctx is no dense float32 tensor"),
    (lambda run: swap(run / "prompts.pt", learned=None), "not a run's learned tensors"),
])
def test_a_run_that_cannot_be_read(own, damage, line):
    damage(own / "run")
    assert line in refused("run", main=evaluate.main)


def test_code_in_a_run_is_not_run(own):
    """A pickle that would write a file when loaded."""
    class Trap:
        def __reduce__(self):
            return (open, ("trapped", "w"))
    torch.save({"learned": {}, "settings": Trap()}, "run/prompts.pt")
    assert "not a run's learned tensors" in refused("run", main=evaluate.main)
    assert not Path("trapped").exists()


def test_a_run_that_is_a_file_and_a_process(own):
    process = subprocess.run([sys.executable, evaluate.__file__, "run/result.json"],
                             capture_output=True, text=True, timeout=120)
    assert (process.returncode, process.stdout, process.stderr.count("\n")) == (2, "", 1)
    assert process.stderr.startswith("error: run/result.json is no finished run")


@pytest.mark.parametrize("argv, line", [
    (["--classnames", "names.txt"], "--classnames goes with --image"),
    (["--targets", "world"], "--targets goes with --task"),
    (["--task", "cross-dataset", "--classes", "base"], "leave out --classes"),
    (["--task", "cross-dataset", "--targets", "world_blur", "wrold"], "unknown dataset 'wrold'"),
    (["--task", "cross-dataset", "--targets", "no/such"], "no/such: no such folder"),
    (["--image", "none.png"], "none.png: picture not found"),
    (["--image", "run"], "run: expected pictures in it (.jpg "),
    (["--image", "a.png", "--out", "there"], "there: expected a name that ends in .csv"),
    (["--image", "a.png", "--out", "run/log.csv"], "run/log.csv is what a run left there"),
    (["--table", "1", "--out", "run/result.json"], "run/result.json is what a run left there"),
    (["--report", "page.txt"], "expected a name that ends in .html"),
    (["--report", "gone/page.html"], "there is no folder gone"),
    (["--report", "page.html", "--texts", "t.npz"], "--report is no option of --texts"),
    (["--image", "run/result.json"], "run/result.json: not a readable picture"),
    (["--out", "a file"], "a file"),
])
def test_refused_with_one_line(own, argv, line):
    Path("a file").write_text("mine")
    before = files(own)
    assert line in refused("run", *argv, main=evaluate.main)
    assert files(own) == before                     # no target was evaluated in vain


# -------------------------------------------------------------------------- evaluation never trains

def test_evaluation_makes_no_optimizer_and_no_gradient(own, monkeypatch):
    monkeypatch.setattr(torch.optim.Optimizer, "__init__",
                        lambda *a, **k: pytest.fail("an optimizer"))
    monkeypatch.setattr(torch.Tensor, "backward", lambda *a, **k: pytest.fail("a backward pass"))
    monkeypatch.setattr(train, "train", lambda *a: pytest.fail("training"))
    before = files(own / "run")
    evaluated("run")
    evaluated("run", "--task", "domain-generalization", "--targets", "world_colours",
              "--out", "out")
    picture(1).save("photo.png")
    evaluated("run", "--image", "photo.png")
    after = files(own / "run")
    assert all(after[name] == value for name, value in before.items())


def test_interrupted_evaluation_says_so(own, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt
    monkeypatch.setattr(evaluate, "measure", interrupted)
    code, _, err = call(evaluate.main, "run")
    assert code == 130 and "interrupted" in err and "Traceback" not in err
    assert not list(own.rglob("*.part"))


def test_evaluating_twice_gives_the_same(own):
    evaluated("run")
    first = files(own / "run" / "evaluation")
    evaluated("run")
    assert files(own / "run" / "evaluation") == first and len(first) == 4
    assert not list(own.rglob("*.part"))


# ---------------------------------------------------------------------------------- the other tasks

def test_transfer_has_zero_shot_clip_with_each_targets_template(own, monkeypatch):
    """EuroSAT and a folder as targets of the pets run; each prediction is the textbook form's."""
    folder = eurosat(own / "data", split=True)
    write_classes(own / "other birds", {"hen": 5, "dog": 5})
    measure, templates = evaluate.measure, []
    monkeypatch.setattr(evaluate, "measure", lambda learner, *a: templates.append(
        isinstance(learner, prompts.ZeroShot) and learner.template) or measure(learner, *a))
    evaluated("run", "--task", "cross-dataset", "--targets", "eurosat", "other birds",
              "--data-root", "data")
    assert [t for t in templates if t] == ["a centered satellite photo of {}.", "a photo of a {}."]
    found = results("run", "cross-dataset")["results"]
    names = list(datasets.EUROSAT.values())
    learner, _ = evaluate.load_run("run")
    tuned = slow_predictions(learner, folder, names)
    plain = slow_predictions(learner, folder, names, "a centered satellite photo of {}.")
    rows = read("run/evaluation/eurosat/predictions.csv")
    assert len(rows) == 60 and all(tuned[row["picture"]] == row["predicted"] for row in rows)
    assert all(row["class"] == datasets.EUROSAT[row["picture"].split("/")[0]] for row in rows)
    right = sum(plain[row["picture"]] == row["class"] for row in rows)
    assert found["eurosat"]["zeroshot"] == pytest.approx(100 * right / 60)
    assert found["eurosat"]["official_split"] is True
    assert found["other birds"]["official_split"] is False
    # a name that both have is a class the run was trained on, with 6 images; the other is new to it
    rows = read("run/evaluation/other birds/per_class.csv")
    assert {row["class"]: row["group"] for row in rows} == {"dog": "medium", "hen": "unseen"}


def test_table_of_a_transfer(own):
    printed = evaluated("run", "--task", "domain-generalization",
                        "--targets", "world_colours", "world_patterns")
    found = results("run", "domain-generalization")["results"]
    lines = {line.split()[0]: line.split() for line in printed.split("\n") if line}
    for target, K in (("world_colours", 8), ("world_patterns", 15)):
        numbers = found[target]
        assert lines[target][1:] == [str(K), str(50 * K), f"{numbers['zeroshot']:.2f}",
                                     f"{numbers['accuracy']:.2f}"]

    def mean(key):
        return (found["world_colours"][key] + found["world_patterns"][key]) / 2

    assert lines["average"][1:] == [f"{mean('zeroshot'):.2f}", f"{mean('accuracy'):.2f}"]


def test_imagenet_variants_by_class_id(own):
    """-A and -R hold other classes of the 1,000, each in wnid order.

    ImageNetV2's folders are label numbers.
    """
    for name, counts in (
            ("imagenet-adversarial/imagenet-a", {"n01531178": 2, "n01498041": 3, "n02123394": 2}),
            ("imagenet-rendition/imagenet-r", {"n02123394": 3, "n01443537": 2}),
            ("imagenetv2/imagenetv2-matched-frequency-format-val", {"0": 1, "1": 1, "10": 1})):
        write_classes(own / "data" / name, counts, "jpg")
    for name in ("imagenet-adversarial/imagenet-a", "imagenet-rendition/imagenet-r"):
        (own / "data" / name / "README.txt").write_text("not a class")
    evaluated("run", "--task", "domain-generalization",
              "--targets", "imagenet_a", "imagenet_r", "imagenetv2", "--data-root", "data")
    names = {"n01498041": "stingray", "n01531178": "goldfinch", "n02123394": "Persian cat",
             "n01443537": "goldfish"}
    for target, wnids in (("imagenet_a", ["n01498041", "n01531178", "n02123394"]),
                          ("imagenet_r", ["n01443537", "n02123394"])):
        rows = read(f"run/evaluation/{target}/predictions.csv")
        assert all(row["class"] == names[row["picture"].split("/")[0]] for row in rows)
        per_class = read(f"run/evaluation/{target}/per_class.csv")
        assert [row["class"] for row in per_class] == [names[w] for w in wnids]
    rows = read("run/evaluation/imagenetv2/per_class.csv")
    assert [row["class"] for row in rows] == ["tench", "goldfish", "brambling"]
    assert results("run", "domain-generalization")["results"]["imagenet_a"]["test_images"] == 7


def test_targets_of_one_name_would_overwrite_each_other(own):
    for place in ("here", "there"):
        write_classes(own / place / "birds", {"hen": 5, "duck": 5})
    before = files(own / "run")
    assert "two of --targets are named birds" in refused(
        "run", "--task", "cross-dataset", "--targets", "here/birds", "there/birds",
        main=evaluate.main)
    assert files(own / "run") == before


def test_targets_that_are_not_there_stop_before_any_is_evaluated(own, monkeypatch):
    monkeypatch.setattr(evaluate, "evaluate_classes", lambda *a: pytest.fail("evaluated"))
    words = ["--task", "domain-generalization", "--data-root", "data"]  # the paper's four
    line = refused("run", *words, main=evaluate.main)
    assert "imagenetv2" in line and "imagenetv2-matched-frequency" in line
    assert evaluate.TASKS["cross-dataset"] == [
        "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101",
        "fgvc_aircraft", "sun397", "dtd", "eurosat", "ucf101"]


# ------------------------------------------------------------------------------------------- photos

def test_photos_show_the_top_classes(own):
    for i in range(3):
        picture(50 + i, size=40).save(f"{i}.png")
    lines = evaluated("run", "--image", "0.png", "1.png", "2.png").strip().split("\n")
    learner, _ = evaluate.load_run("run")
    for i, line in enumerate(lines):
        image = data.transform(32, train=False)(Image.open(f"{i}.png").convert("RGB"))[None]
        with torch.no_grad():
            logits = textbook.forward(learner, image)[0][0]
        softmax = (logits.double() - logits.logsumexp(0)).exp().tolist()
        p = sorted(zip(softmax, NAMES, strict=True), reverse=True)
        name, shown = line.split(": ")
        assert name == f"{i}.png"
        for (probability, classname), words in zip(p, shown.split(", "), strict=True):
            assert words.startswith(classname.replace("_", " ") + " ") and words.endswith(" %")
            assert float(words.split()[-2]) == pytest.approx(100 * probability, abs=.11)
    assert not Path("run/evaluation").exists()


def test_photos_with_names_never_trained(own):
    """One name a line, or train.py's `folder<TAB>name`."""
    picture(3).save("photo.png")
    words = ["run", "--image", "photo.png", "--classnames"]
    Path("names.txt").write_text("\ufeffgrüner Frosch\n\n  red fox \nsea_lake\n", encoding="utf-8")
    line = evaluated(*words, "names.txt")
    assert all(name in line for name in ("grüner Frosch", "red fox", "sea lake"))
    assert line.count("%") == 3
    Path("tabs.tsv").write_text("n1\tgrüner Frosch\nn2\tred fox\nn3\tsea_lake\n", encoding="utf-8")
    assert evaluated(*words, "tabs.tsv") == line
    Path("none.txt").write_text("\n\n")
    assert "none.txt: expected class names" in refused(*words, "none.txt", main=evaluate.main)
    Path("long.txt").write_text("cat " * 90)
    assert "tokens where CLIP takes 77" in refused(*words, "long.txt", main=evaluate.main)
    assert "missing.txt" in refused(*words, "missing.txt", main=evaluate.main)


def test_photo_is_turned_by_exif(own):
    upright = Image.new("RGB", (40, 40), "white")
    upright.paste((200, 0, 0), (0, 0, 40, 20))                          # red above
    upright.save("upright.png")
    exif = Image.Exif()
    exif[0x0112] = 3                                                    # stored upside down
    upright.rotate(180).save("turned.png", exif=exif)
    upright.rotate(180).save("wrong.png")
    printed = evaluated("run", "--image", "upright.png", "turned.png", "wrong.png")
    lines = [line.partition(": ")[2] for line in printed.split("\n")]
    assert lines[0] == lines[1] != lines[2]


# ----------------------------------------------------------------------------------------- measures

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
        exact = [2.718281828459045 ** (100 * c - 100 * max(cosines)) for c in cosines]
        assert probabilities[n].tolist() == pytest.approx([e / sum(exact) for e in exact], abs=1e-4)
    mean_g = [[sum(g[k][i] for g in sets) / 7 for i in range(64)] for k in range(4)]
    eight = "".join(str(int(bit)) for bit in [*bits, False])
    assert found.pop("right") == f"{int(eight, 2):02x}"             # a bit an image, filled with 0
    of_class = [[bit for bit, k in zip(bits, y.tolist(), strict=True) if k == c] for c in range(4)]
    mean_recall = 100 * sum(sum(own) / len(own) for own in of_class) / 4
    expected = {"accuracy": 100 * sum(bits) / 7, "mean_recall": mean_recall,
                "delta_lcd": lcd, "delta_mid": mid, "lcd_rms": rms,
                "lc_shared": shared, "lc_unequal": unequal, **collapses_by_hand(z, mean_g, y)}
    assert found == {name: pytest.approx(value, abs=2e-5) for name, value in expected.items()}


def dot(a, b):
    return sum(p * q for p, q in zip(a, b, strict=True))


def minus(a, b):
    return [p - q for p, q in zip(a, b, strict=True)]


def norm(a):
    return dot(a, a) ** .5


def unit(a):
    return [x / norm(a) for x in a]


def collapses_by_hand(z, g, y):
    """Sec. 3.2 for features z, texts g and labels y, in loops over numbers."""
    z, y, K, d = z.tolist(), y.tolist(), len(g), len(g[0])
    own = {k: [z[n] for n in range(len(z)) if y[n] == k] for k in range(K)}
    mean = {k: [sum(v[i] for v in own[k]) / len(own[k]) for i in range(d)] for k in range(K)}
    middle = [sum(mean[k][i] for k in range(K)) / K for i in range(d)]
    off = {k: minus(mean[k], middle) for k in range(K)}
    within = sum(sum(norm(minus(v, mean[k])) ** 2 for v in own[k]) / len(own[k])
                 for k in range(K)) / K
    between = sum(norm(off[k]) ** 2 for k in range(K)) / K
    cosines = [dot(unit(off[i]), unit(off[j])) + 1 / (K - 1)
               for i in range(K) for j in range(K) if i != j]
    apart = [norm(minus(unit(g[k]), unit(off[k]))) ** 2 for k in range(K)]
    return {"feature_collapse": within / between,
            "prototype_collapse": (sum(c * c for c in cosines) / len(cosines)) ** .5,
            "classifier_collapse": (sum(apart) / K) ** .5}


@pytest.mark.parametrize("method, times", [
    ("zeroshot", 1), ("coop", 1), ("maple", 1), ("cocoop", 4)])
def test_text_features_are_made_once_for_an_evaluation(
        small_clip, tmp_path, monkeypatch, method, times):
    """Of 350 images in batches of 100; only CoCoOp's depend on the image."""
    dataset = toy("ab", [(str(i), i % 2) for i in range(350)])
    learner = prompts.build(method, small_clip, ["c"])
    made, encode = [], prompts.encode_prompts
    monkeypatch.setattr(prompts, "encode_prompts", lambda *a: made.append(1) or encode(*a))
    evaluate.evaluate_classes(learner, dataset, [0, 1], [1, 1], tmp_path,
                              features.FrozenFeatures(dataset))
    zeroshot = method != "zeroshot"                 # which stands beside what was learned
    assert len(made) == times + zeroshot


def test_harmonic_mean_by_hand():
    assert evaluate.harmonic_mean(80.0, 40.0) == pytest.approx(160 / 3)
    assert evaluate.harmonic_mean(50.0, 0.0) == 0 == evaluate.harmonic_mean(0.0, 0.0)
    assert evaluate.harmonic_mean(30.0, 30.0) == 30


# ------------------------------------------------------------------------------- the embedded world

@pytest.fixture(scope="module")
def world_run(tmp_path_factory):
    """A finished run of MaPLe + NPT in the little world."""
    out = tmp_path_factory.mktemp("world") / "run"
    done("--method", "maple", "--npt", "--tau", "0.01", "--out", out)
    return out


def rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_files_agree_with_each_other_and_with_the_run(world_run, capsys):
    before = (world_run / "prompts.pt").read_bytes()
    assert evaluate.main([str(world_run)]) == 0
    result = json.loads((world_run / "result.json").read_text())
    for half in ("base", "novel"):
        folder = world_run / "evaluation" / half
        head, *predictions = rows(folder / "predictions.csv")
        assert head == ["picture", "class", "predicted", "probability"]
        assert len(predictions) == 12 * 50
        right = sum(k == p for _, k, p, _ in predictions)
        assert 100 * right / 600 == pytest.approx(result[half], abs=1e-4)
        assert all(0 <= float(q) <= 1 and name.split("/")[1] == k for name, k, _, q in predictions)
        head, *per_class = rows(folder / "per_class.csv")
        names, *confusion = rows(folder / "confusion.csv")
        for (name, *line), (same, _, _, n, recall, _) in zip(confusion, per_class, strict=True):
            hits = sum(k == name == p for _, k, p, _ in predictions)
            assert name == same and n == "50" and float(recall) == pytest.approx(2 * hits, abs=.01)
            assert int(line[names.index(name) - 1]) == hits and sum(map(int, line)) == 50
    groups = [row[2] for row in rows(world_run / "evaluation/base/per_class.csv")[1:]]
    assert groups == ["many"] * 2 + ["medium"] * 2 + ["few"] * 8    # 16 10 6 4 2 1 1 1 1 1 1 1
    novel = rows(world_run / "evaluation/novel/per_class.csv")[1:]
    assert {row[2] for row in novel} == {"unseen"}
    text = capsys.readouterr().out
    assert f"harmonic mean {result['harmonic_mean']:.2f}" in text
    assert "many " in text and "few " in text
    first = (world_run / "evaluation/base-to-novel.json").read_bytes()
    assert evaluate.main([str(world_run)]) == 0
    assert (world_run / "evaluation/base-to-novel.json").read_bytes() == first  # twice the same
    assert (world_run / "prompts.pt").read_bytes() == before        # and it trained nothing


def test_low_precision_agrees_on_the_embedded_world(world_run):
    """bfloat16: the same predictions on 98 % of the test images, accuracy within 1 point.

    lambda is 0.01 and the run's texts are close together (Delta_LCD near 1): hard for 8 bits.
    """
    dataset, predicted = data.load("world"), {}
    for dtype in (torch.float32, torch.bfloat16):
        learner, _ = evaluate.load_run(world_run, dtype=dtype, classnames=dataset.classnames[:12])
        result, probabilities = evaluate.score(learner, dataset, list(range(12)),
                                               features.FrozenFeatures(dataset))
        predicted[dtype] = probabilities.argmax(dim=1), result["accuracy"]
    (a, accuracy_a), (b, accuracy_b) = predicted.values()
    assert (a == b).float().mean() >= .98 and abs(accuracy_a - accuracy_b) <= 1
