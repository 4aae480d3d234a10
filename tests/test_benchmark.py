"""The benchmark's page, its rows and its refusals; nothing is measured here."""
import benchmark
import pytest
import textbook
import torch
from small_runs import done, files, refused

import data
import prompts
from assets import estimate


@pytest.fixture
def own_csv(at, monkeypatch):
    """An empty speed.csv and a copy of speed.md, in a folder of their own."""
    (at / "speed.csv").write_text(",".join(benchmark.COLUMNS) + "\n")
    (at / "speed.md").write_text(benchmark.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(benchmark, "CSV", at / "speed.csv")
    monkeypatch.setattr(benchmark, "PAGE", at / "speed.md")
    return at


def test_speed_md_is_what_the_script_writes_from_the_csv():
    rows = data.read_csv(benchmark.CSV)
    assert {row["case"] for row in rows} <= {benchmark.title(case) for case in benchmark.ALL}
    assert benchmark.page(rows) == benchmark.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("words, reason", [
    ("--rounds 0", "--rounds: must be from 1"), ("--cases 20", "must be from 0 to 19, got 20"),
    ("--cases maple", "maple"), ("--precisions half", "half"), ("--device gpu", "gpu")])
def test_refused_before_anything_is_measured(own_csv, words, reason):
    before = files(own_csv)
    assert reason in refused(*words.split(), main=benchmark.main)
    assert files(own_csv) == before


def test_a_case_replaces_its_rows_and_no_others(own_csv, monkeypatch):
    """Two rounds of made-up seconds: the mean, the floor by its rate, the ratios by hand."""
    seconds = iter([8.0, 5.0, 2.0, 6.0, 4.0, 1.0, 4.0, 3.0, 2.5])
    monkeypatch.setattr(benchmark, "in_own_process", lambda *case: {
        "seconds": next(seconds), "megabytes": 300 if "textbook" in case else 100})
    monkeypatch.setattr(benchmark, "matrix_rate", lambda *_: 1e12)
    words = ["--device", "cpu", "--precisions", "float32"]
    done(*words, "--cases", 14, main=benchmark.main)
    line, = [x for x in benchmark.PAGE.read_text().splitlines() if "--epochs 5` |" in x]
    assert line.split(" | ")[1:6] == ["7.00, 300", "4.50, 100", "1.50, 100", "4.7x", "3.0x"]
    assert line.split(" | ")[6:] == ["not run", "-", "- |"]
    monkeypatch.setattr(benchmark, "processor", lambda _: "an abacus")
    done(*words, "--cases", 0, "--rounds", 1, "--forms", "textbook", "fast", main=benchmark.main)
    done(*words, "--cases", 14, "--rounds", 1, "--forms", "cut", main=benchmark.main)
    rows = data.read_csv(benchmark.CSV)
    assert [(row["case"], row["form"], row["seconds"]) for row in rows] == [
        ("step, maple, 5 classes, 4 images", "textbook", "4"),
        ("step, maple, 5 classes, 4 images", "fast", "3"),
        (benchmark.COMMANDS[0], "textbook", "7"), (benchmark.COMMANDS[0], "cut", "2.5"),
        (benchmark.COMMANDS[0], "fast", "1.5")]
    text = " ".join(benchmark.PAGE.read_text().split())
    assert f"an abacus, torch {rows[0]['torch']} (step, maple, 5 classes, 4 images, python" in text
    assert float(rows[1]["floor"]) == pytest.approx(
        benchmark.floor_operations("step", "maple", 5, 4) / 1e12, rel=1e-3)


def test_prompts_cut_at_the_longest_end_have_the_same_features(small_clip, monkeypatch):
    learner = prompts.build("maple", small_clip, ["cat", "golden retriever"], n_ctx=2)
    images = torch.randn(1, 3, 32, 32)
    g = textbook.forward(learner, images)[2]
    W, names = dict(small_clip.named_parameters()), learner.classnames
    t, _ = benchmark.cut_prompts(W, "X X {}.", names, learner.ctx)
    assert t.shape[1] == 1 + 2 + len(["golden", "retriever", ".", "end"])
    monkeypatch.setattr(textbook, "text_prompts", benchmark.cut_prompts)
    torch.testing.assert_close(textbook.forward(learner, images)[2], g, atol=1e-5, rtol=0)


def made_up():
    cases = {f"step, maple, {K} classes, 4 images": K / 1000 for K in (5, 50, 500, 1000)}
    cases |= {f"step, cocoop, {K} classes, 4 images": 2 * K / 1000 for K in (50, 500)}
    cases |= {"evaluation, cocoop, 50 classes, 80 images": 4.0,         # 0.05 s an image,
              "evaluation, cocoop, 500 classes, 8 images": 4.0,         # 0.5 s: 1 ms a class
              "image tower, 1000 images": 1.0, "decoding of one JPEG, 64 pixels": 0.0005,
              "decoding of one JPEG, 500 pixels": 0.004,
              "a run without its steps and images, of a process": 10.0,
              "a run without its steps and images, in a grid": 3.0}
    return [{"case": case, "form": "fast", "dtype": dtype, "processor": processor,
             "seconds": str(value)} for case, value in cases.items()
            for processor, dtype in (("GPU, x", "float16"), ("2 CPU cores", "float32"))]


@pytest.mark.parametrize("gpu, image, large", [(True, 0.001, 0.004), (False, 0.0015, 0.005)])
def test_an_estimate_adds_up_what_was_measured(gpu, image, large):
    machine = estimate.Machine(gpu, made_up())
    assert [machine.step("maple", K) for K in (5, 20, 700, 1200)] == pytest.approx(
        [0.005, 0.02, 0.7, 1.2])                                # a line through all made-up points
    run = estimate.run_of("maple", machine, "eurosat", 5, 60)
    assert [*run] == pytest.approx([60 * 0.005, 8100 * image, 0, 3])       # estimate.PARTS
    run = estimate.run_of("cocoop", machine, "dtd", 24, 100)    # 1,692 images, 47 classes halved
    assert [*run] == pytest.approx([4.8, 0, 1692 * 0.0235, 3])
    found = {what: dict(zip(estimate.PARTS, parts, strict=True))
             for what, parts in estimate.tables(machine).items()}
    n = 133_696 - 8100                                          # 18 passes of MaPLe, one before
    assert found["Table 1"]["images"] == pytest.approx(19 * (n * large + 8100 * image))
    assert found["Table 1"]["starts"] == 10 + 396 * 3
    assert found["Table 4"]["starts"] == 2 * 12 * 10 and found["Table 4"]["steps"] == 0
    assert sum(estimate.TESTS[name] for name in data.ALL) == 133_696


def test_what_was_not_measured_is_not_run():
    rows = [row for row in made_up() if "GPU" in row["processor"]]
    lines = estimate.page(rows).splitlines()
    assert all(line.endswith("| not run | - |") for line in lines[2:]) and len(lines) == 7


def test_reproducing_md_has_the_estimates_table():
    page = (benchmark.PAGE.parent / "reproducing.md").read_text(encoding="utf-8")
    assert done(main=estimate.main).strip() in page
    assert "unrecognized arguments: x" in refused("x", main=estimate.main)
