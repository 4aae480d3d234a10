"""train.py: the schedule and the steps of the originals, what a run leaves, and what it refuses."""
import argparse
import csv
import io
import json
import math
import re
import subprocess
import sys
import urllib.error
from pathlib import Path

import pytest
import textbook
import torch
import torch.nn.functional as F
from conftest import colour_folder, hash_state, openai_archive

import clip_model
import data
import prompts
import train

EUROSAT = ["AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture", "PermanentCrop",
           "Residential", "River", "SeaLake"]


def rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def run(*argv):
    return train.main([str(a) for a in argv])


# ---------------------------------------------------------------------------------------------------------- optimisation

def test_learning_rate_by_hand():
    # E = 5, lr = 0.0035: 1e-5, then 0.00175 (1 + cos(0, 36, 72, 108 degrees))
    expected = [1e-5, .0035, .00175 * 1.809017, .00175 * 1.309017, .00175 * .690983]
    assert [train.learning_rate(e, 5, .0035) for e in range(5)] == pytest.approx(expected, rel=1e-5)


def test_defaults_are_the_papers_and_follow_the_method():
    def resolved(*argv):
        args = train.parse(list(argv))
        train.resolve(args, data.load("world"))
        return args.epochs, args.batch_size, args.lr, args.n_ctx, args.ctx_init, args.w1, args.w2

    assert resolved("--method", "maple", "--npt") == (5, 4, .0035, 2, "a photo of a", .3, .8)
    assert resolved("--method", "cocoop") == (5, 4, .0035, 4, "a photo of a", 0, 0)
    assert resolved("--method", "coop") == (50, 32, .002, 16, None, 0, 0)
    assert resolved("--method", "maple", "--npt", "--w1", "0")[5:] == (0, .8)


def test_imagenet_as_a_source_gets_maples_transfer_settings():
    args = train.parse(["--method", "maple", "--dataset", "imagenet", "--classes", "all"])
    train.resolve(args, data.Dataset("imagenet", ["a"], "{}", [], [], [], "", True, {}))
    assert (args.epochs, args.lr, args.prompt_depth) == (2, .0026, 3)


@pytest.mark.parametrize("method", ["coop", "cocoop", "maple"])
def test_training_equals_a_loop_in_the_textbook_form(small_clip, method):
    """Two epochs of SGD (momentum 0.9, weight decay 5e-4, written out) on the textbook form, Eq. (7) as printed sums of
    squares, on the same batches: the same learned tensors."""
    torch.manual_seed(3)
    names = ["cat", "river bridge", "oak"]
    dataset = data.load("world")
    items = dataset.train[:4] + dataset.train[40:43] + dataset.train[70:73]         # 10 pictures, 2 batches of 4
    items = [(name, i % 3) for i, (name, _) in enumerate(items)]
    args = argparse.Namespace(epochs=2, batch_size=4, lr=.01, w1=.3, w2=.8, ew=1.0, eh=1.0, reduction="mean")

    def learner():
        torch.manual_seed(5)
        return prompts.build(method, small_clip, names, n_ctx=2, prompt_depth=2 if method == "maple" else None)

    fast, slow = learner(), learner()
    torch.manual_seed(7)
    log = io.StringIO()
    train.train(fast, dataset, items, args, log)

    torch.manual_seed(7)
    view = data.transform(32, train=True, crop_scale=dataset.crop_scale)
    learned = prompts.trainable(slow)
    speed = {name: torch.zeros_like(p) for name, p in learned.items()}
    logged = []
    batches = torch.utils.data.DataLoader(data.Pictures(dataset, items, view), batch_size=4, shuffle=True, drop_last=True)
    for lr in (1e-5, .01):
        for images, y in batches:
            logits, z, g = textbook.forward(slow, images)
            sets = g if g.ndim == 3 else g[None].expand(len(z), -1, -1)
            l_clip = -sum(F.log_softmax(logits[n], 0)[y[n]] for n in range(4)) / 4
            l_lc = sum((s[i] @ s[j] + 1 / 2) ** 2 for s in sets for i in range(3) for j in range(3) if i != j) / (4 * 6)
            l_mi = sum((z[n] @ sets[n][y[n]] - 1) ** 2 for n in range(4)) / 4
            loss = l_clip + .3 * l_lc + .8 * l_mi
            logged.append((loss.item(), l_clip.item(), l_lc.item(), l_mi.item()))
            for (name, p), grad in zip(learned.items(), torch.autograd.grad(loss, list(learned.values()))):
                speed[name] = .9 * speed[name] + grad + 5e-4 * p.detach()
                p.data -= lr * speed[name]
    assert len(logged) == 4
    for name, p in prompts.trainable(fast).items():
        torch.testing.assert_close(p, learned[name], atol=2e-5, rtol=1e-3, msg=lambda m: f"{name}: {m}")
    log.seek(0)
    for row, expected in zip(csv.DictReader(log), logged, strict=True):
        assert [float(row[n]) for n in ("loss", "l_clip", "l_lc", "l_mi")] == pytest.approx(expected, rel=1e-3, abs=1e-4)


# ------------------------------------------------------------------------------------------------------------ whole runs

def test_bare_command_in_a_process_of_its_own(at):
    done = subprocess.run([sys.executable, Path(train.__file__)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads((at / "runs/world-maple-npt-tau0.01-seed1/result.json").read_text())
    assert (result["dataset"], result["method"], result["npt"], result["tau"], result["seed"]) == \
        ("world", "maple", True, .01, 1)
    assert result["class_counts"] == [16, 11, 7, 5, 3, 2, 1, 1, 1, 1, 1, 1]
    b, n = result["base"], result["novel"]
    assert 100 / 12 < n < 100 and result["harmonic_mean"] == pytest.approx(2 * b * n / (b + n), abs=1e-4)
    assert result["delta_lcd"] > 0 > result["delta_mid"]
    for words in ("[u_1] [u_2] of a ", "images    50: 16 11 7", "min/max = 0.0625 where tau = 0.01", "zero-shot  ", "maple + NPT"):
        assert words in done.stdout
    assert f"{b:.2f}" in done.stdout.splitlines()[-2]


def test_what_a_run_leaves(at):
    assert run("--method", "cocoop", "--tau", "0.01", "--epochs", "2", "--out", "r") == 0
    assert {p.name for p in at.iterdir()} == {"r"}
    assert {p.name for p in (at / "r").iterdir()} == {"prompts.pt", "log.csv", "drawn.csv", "run.json", "result.json"}
    saved = torch.load("r/prompts.pt", weights_only=True)
    assert set(saved["learned"]) == {"ctx", *(f"meta_net.linear{i}.{p}" for i in (1, 2) for p in ("weight", "bias"))}
    assert saved["settings"]["method"] == "cocoop" and saved["settings"]["backbone"] == "tiny"
    assert saved["settings"]["trained_classes"] == data.load("world").classnames[:12]
    drawn = rows("r/drawn.csv")
    assert len(drawn) == 50 and all(row["picture"].split("/")[1] == row["class"] for row in drawn)
    log = rows("r/log.csv")
    assert len(log) == 2 * (50 // 4)                                # the last, incomplete batch is dropped
    assert all(row["loss"] == row["l_clip"] for row in log)         # without --npt
    facts = json.loads(Path("r/run.json").read_text())
    assert facts["versions"]["torch"] == torch.__version__ and "CenterCrop" in facts["test_transform"]
    assert facts["lr"] == .0035 and facts["prompts"][0].startswith("[u_1] [u_2] [u_3] [u_4] ")


def test_one_seed_one_result_and_another_seed_another_draw(at):
    common = ("--method", "maple", "--npt", "--tau", "0.01", "--epochs", "2")
    for out, seed in (("a", ("--seed", 1)), ("b", ("--seed", 1)), ("c", ("--seed", 2)), ("d", ("--seed", 2, "--draw-seed", 1))):
        assert run(*common, *seed, "--out", out) == 0
    read = lambda run, file: Path(run, file).read_bytes()
    assert read("a", "result.json") == read("b", "result.json") and read("a", "log.csv") == read("b", "log.csv")
    assert read("a", "drawn.csv") != read("c", "drawn.csv")
    assert read("a", "drawn.csv") == read("d", "drawn.csv") and read("a", "log.csv") != read("d", "log.csv")


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "ViT.pt"
    openai_archive(hash_state(), path)
    return path


@pytest.mark.parametrize("with_split", [True, False])
def test_the_eurosat_command(at, archive, capsys, with_split):
    folder = colour_folder(at / "data/eurosat/2750", EUROSAT, 40)
    if with_split:
        split = {"train": [], "val": [], "test": []}
        for k, name in enumerate(EUROSAT):
            for i in range(40):
                part = "train" if i < 20 else "val" if i < 28 else "test"
                split[part].append([f"{name}/{name}_{i + 1}.jpg", k, data.EUROSAT[name]])
        (folder.parent / "split_zhou_EuroSAT.json").write_text(json.dumps(split))
    assert run("--method", "maple", "--npt", "--tau", "0.01", "--dataset", "eurosat", "--backbone", archive) == 0
    result = json.loads(Path("runs/eurosat-maple-npt-tau0.01-seed1/result.json").read_text())
    assert result["official_split"] == with_split and result["class_counts"] == [16, 5, 2, 1, 1]
    assert ("CoOp's split_zhou_EuroSAT.json" if with_split else "not CoOp's") in result["split"]
    assert None not in (result["base"], result["novel"], result["harmonic_mean"])
    text = capsys.readouterr().out
    assert "[u_1] [u_2] of a Annual Crop Land." in text and "16 5 2 1 1; min/max = 0.0625" in text


def test_eurosat_without_data_or_weights_is_one_line(at, archive, capsys, monkeypatch):
    def no_network(*_, **__):
        raise urllib.error.URLError("no network")

    import torchvision
    monkeypatch.setattr(torchvision.datasets, "EuroSAT", no_network)
    monkeypatch.setattr(clip_model, "CACHE", at / "cache")
    monkeypatch.setattr(clip_model, "URL", "http://127.0.0.1:9")
    command = ("--method", "maple", "--npt", "--tau", "0.01", "--dataset", "eurosat")
    assert run(*command) == 2
    error = capsys.readouterr().err.strip()
    assert "EuroSAT.zip" in error and "eurosat/2750" in error and "\n" not in error
    colour_folder(at / "data/eurosat/2750", EUROSAT, 40)
    assert run(*command) == 2
    error = capsys.readouterr().err.strip()
    assert "could not download ViT-B-16.pt" in error and str(at / "cache") in error and "\n" not in error


def test_a_folder_of_ones_own_and_few_images(at, capsys, monkeypatch):
    colour_folder(at / "mine", ["bär", "red fox", "owl"], 10)
    assert run("--method", "maple", "--dataset", "mine", "--backbone", "tiny", "--epochs", "2") == 0
    text = capsys.readouterr().out
    assert "3 classes have fewer images than asked for and give all they have: bär, owl, red fox" in text
    assert "images    15: 5 5 5" in text and "near chance" in text
    result = json.loads(Path("runs/mine-maple-tau1-seed1/result.json").read_text())
    assert result["classes"] == "all" and result["base"] is None and 0 <= result["all"] <= 100
    assert run("--method", "maple", "--dataset", "mine", "--backbone", "tiny", "--epochs", "2") == 0
    assert Path("runs/mine-maple-tau1-seed1-2/result.json").exists()        # the first run is not overwritten


def test_zero_shot_is_a_run_too(at):
    assert run("--method", "zeroshot", "--out", "z") == 0
    result = json.loads(Path("z/result.json").read_text())
    assert result["base"] == result["zeroshot"]["base"] and result["novel"] == result["zeroshot"]["novel"]


def test_a_collapsed_run_is_flagged(at, capsys):
    assert run("--method", "coop", "--tau", "0.01", "--epochs", "2", "--lr", "0", "--n-ctx", "40", "--out", "r") == 0
    last = sum(float(row["l_clip"]) for row in rows("r/log.csv")[-1:])
    assert ("this run has collapsed" in capsys.readouterr().out) == (last > .95 * math.log(12))


# ------------------------------------------------------------------------------------------------------------- bad input

BAD = [
    (["--dataset", "eurosta"], "unknown dataset 'eurosta'; did you mean eurosat"),
    (["--dataset", "no/such/folder"], "no such folder"),
    (["--tau", "0"], "tau"), (["--tau", "-1"], "tau"), (["--tau", "2"], "tau"), (["--tau", "nan"], "tau"),
    (["--shots", "0"], "at least 1"),
    (["--method", "maple", "--prompt-depth", "5"], "prompt depth must be from 1 to 3"),
    (["--method", "coop", "--prompt-depth", "2"], "--prompt-depth is no setting of coop"),
    (["--method", "cocoop", "--n-ctx", "2", "--ctx-init", "a photo of a"], "leave one of them out"),
    (["--w1", "1"], "add --npt"), (["--method", "zeroshot", "--npt"], "trains nothing"),
    (["--epochs", "0"], "at least 1"), (["--lr", "nan"], "--lr must be a finite number"),
    (["--npt", "--w1", "-1"], "--w1 must be"), (["--npt", "--ew", "0"], "--ew must be"),
    (["--backbone", "RN50"], "is a ResNet"), (["--backbone", "nothing.pt"], "no CLIP model or file 'nothing.pt'"),
    (["--backbone", "garbage.pt"], "not a weights file"), (["--backbone", "short.pt"], "unreadable|not a weights file"),
    (["--dataset", "corrupt", "--backbone", "tiny"], "owl_2.jpg: not a readable picture"),
    (["--dataset", "hollow", "--backbone", "tiny"], "class folder without a picture"),
    (["--dataset", "world", "--classnames", "names.txt"], "for a folder of one's own"),
    (["--out", "finished"], "holds a finished run"),
    (["--npt", "--lr", "1e30"], "(loss|l_clip|l_lc|l_mi) became (nan|inf) at step"),
]


@pytest.mark.parametrize("argv, message", BAD, ids=[" ".join(argv) for argv, _ in BAD])
def test_bad_input_is_one_clear_line_and_code_2(at, archive, capsys, argv, message):
    Path("garbage.pt").write_text("no weights")
    Path("short.pt").write_bytes(archive.read_bytes()[:-3000])
    colour_folder(at / "corrupt", ["cat", "owl"], 6)
    (at / "corrupt/owl/owl_2.jpg").write_bytes(b"\xff\xd8 no jpeg")
    colour_folder(at / "hollow", ["cat", "owl"], 6)
    (at / "hollow/empty").mkdir()
    Path("finished").mkdir()
    Path("finished/result.json").write_text("{}")
    assert run(*argv) == 2
    error = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert re.search(message, error[0]), error[0]
    assert Path("finished/result.json").read_text() == "{}"
    assert not list(Path(".").glob("runs/*/result.json"))


def test_no_traceback_from_the_script(at):
    done = subprocess.run([sys.executable, Path(train.__file__), "--tau", "7"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: tau") and done.stderr.count("\n") == 1


def test_an_interrupted_run_leaves_no_finished_folder(at, monkeypatch, capsys):
    monkeypatch.setattr(train, "train", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run("--method", "maple", "--out", "r") == 130
    assert [p.name for p in at.iterdir()] == ["r.part"] and "interrupted" in capsys.readouterr().err
