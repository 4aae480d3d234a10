"""The benchmark's page, its rows and its refusals; nothing is measured here."""
import benchmark
import pytest
import textbook
import torch
from small_runs import done, files, refused

import prompts


@pytest.fixture
def own_csv(at, monkeypatch):
    """No speed.csv and a copy of speed.md, in a folder of their own."""
    (at / "speed.md").write_text(benchmark.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(benchmark, "CSV", at / "speed.csv")
    monkeypatch.setattr(benchmark, "PAGE", at / "speed.md")
    return at


def test_speed_md_is_what_the_script_writes_from_the_csv():
    rows = benchmark.read_rows()
    assert {row["case"] for row in rows} <= {benchmark.title(case) for case in benchmark.ALL}
    assert benchmark.page(rows) == benchmark.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("words, reason", [
    ("--rounds 0", "--rounds: must be from 1"), ("--cases 19", "must be from 0 to 18, got 19"),
    ("--cases -1", "--cases"), ("--precisions float32 float32", "twice"), ("--page", "holds no"),
    ("--precisions half", "half"), ("--device gpu", "gpu"), ("--cases maple", "maple")])
def test_refused_before_anything_is_measured(own_csv, words, reason):
    assert reason in refused(*words.split(), main=benchmark.main)
    assert list(files(own_csv)) == ["speed.md"]


def test_a_case_replaces_its_rows_and_no_others(own_csv, monkeypatch):
    """Two rounds of made-up seconds: the mean, the floor by its rate, the ratios by hand."""
    seconds = iter([8.0, 5.0, 2.0, 6.0, 4.0, 1.0, 4.0, 3.0, 2.5])
    monkeypatch.setattr(benchmark, "in_own_process", lambda *case: {
        "seconds": next(seconds), "megabytes": 300 if "textbook" in case else 100})
    monkeypatch.setattr(benchmark, "matrix_rate", lambda *_: 1e12)
    words = ["--device", "cpu", "--precisions", "float32"]
    done(*words, "--cases", 13, main=benchmark.main)
    line, = [x for x in benchmark.PAGE.read_text().splitlines() if "`python train.py` |" in x]
    assert line.split(" | ")[1:6] == ["7.00, 300", "4.50, 100", "1.50, 100", "4.7x", "3.0x"]
    assert line.split(" | ")[6:] == ["not run", "-", "- |"]
    monkeypatch.setattr(benchmark, "processor", lambda _: "an abacus")
    done(*words, "--cases", 0, "--rounds", 1, "--forms", "textbook", "fast", main=benchmark.main)
    done(*words, "--cases", 13, "--rounds", 1, "--forms", "cut", main=benchmark.main)
    rows = benchmark.read_rows()
    assert [(row["case"], row["form"], row["seconds"]) for row in rows] == [
        ("step, maple, 5 classes, 4 images", "textbook", "4"),
        ("step, maple, 5 classes, 4 images", "fast", "3"),
        ("python train.py", "textbook", "7"), ("python train.py", "cut", "2.5"),
        ("python train.py", "fast", "1.5")]
    text = " ".join(benchmark.PAGE.read_text().split())
    assert f"an abacus, torch {rows[0]['torch']} (step, maple, 5 classes, 4 images, python" in text
    assert float(rows[1]["floor"]) == pytest.approx(
        benchmark.floor_operations("step", "maple", 5, 4) / 1e12, rel=1e-3)


def test_prompts_cut_at_the_longest_end_have_the_same_features(small_clip, monkeypatch):
    learner = prompts.build("maple", small_clip, ["cat", "golden retriever"], n_ctx=2)
    images = torch.randn(1, 3, 32, 32)
    g = textbook.forward(learner, images)[2]
    W, names = dict(small_clip.named_parameters()), learner.classnames
    t, _ = benchmark.cut_prompts()(W, "X X {}.", names, learner.ctx)
    assert t.shape[1] == 1 + 2 + len(["golden", "retriever", ".", "end"])
    monkeypatch.setattr(textbook, "text_prompts", benchmark.cut_prompts())
    torch.testing.assert_close(textbook.forward(learner, images)[2], g, atol=1e-5, rtol=0)
