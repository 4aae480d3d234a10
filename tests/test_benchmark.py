"""The benchmark's page, its rows and its refusals; nothing is measured here."""
import benchmark
import pytest
from small_runs import done, files, refused


@pytest.fixture
def own_csv(at, monkeypatch):
    """speed.csv and speed.md in an empty folder."""
    monkeypatch.setattr(benchmark, "CSV", at / "speed.csv")
    monkeypatch.setattr(benchmark, "PAGE", at / "speed.md")
    return at


def test_speed_md_is_what_the_script_writes_from_the_csv():
    rows = benchmark.read_rows()
    assert {row["case"] for row in rows} == {benchmark.title(case) for case in benchmark.ALL}
    assert benchmark.page(rows) == benchmark.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("words, reason", [
    ("--rounds 0", "--rounds must be at least 1"), ("--cases 12", "from 0 to 11, got 12"),
    ("--cases -1", "--cases"), ("--precisions float32 float32", "twice"), ("--page", "holds no")])
def test_refused_before_anything_is_measured(own_csv, words, reason):
    assert reason in refused(*words.split(), main=benchmark.main)
    assert not files(own_csv)


@pytest.mark.parametrize("words", ["--precisions half", "--device gpu", "--cases maple"])
def test_unknown_words_end_with_code_2(own_csv, words):
    assert words.split()[1] in refused(*words.split(), main=benchmark.main)
    assert not files(own_csv)


def test_a_case_replaces_its_rows_and_no_others(own_csv, monkeypatch):
    """Two rounds of made-up seconds: the mean, the floor by its rate, the ratios by hand."""
    seconds = iter([8.0, 2.0, 6.0, 1.0, 4.0, 3.0])
    monkeypatch.setattr(benchmark, "in_own_process", lambda *case: {
        "seconds": next(seconds), "megabytes": 300 if "textbook" in case else 100})
    monkeypatch.setattr(benchmark, "matrix_rate", lambda *_: 1e12)
    done("--device", "cpu", "--cases", 10, "--precisions", "float32", main=benchmark.main)
    line, = [x for x in benchmark.PAGE.read_text().splitlines() if "`python train.py` |" in x]
    assert line.split(" | ")[1:5] == ["7.00, 300", "1.50, 100", "4.7x", "3.0x"]
    assert line.split(" | ")[5:] == ["not run", "-", "-", "not run |"]
    monkeypatch.setattr(benchmark, "processor", lambda _: "an abacus")
    done("--device", "cpu", "--cases", 0, "--rounds", 1, "--precisions", "float32",
         main=benchmark.main)
    rows = benchmark.read_rows()
    assert [(row["case"], row["form"], row["seconds"]) for row in rows] == [
        ("step, maple, 5 classes, 4 images", "textbook", "4"),
        ("step, maple, 5 classes, 4 images", "fast", "3"),
        ("python train.py", "textbook", "7"), ("python train.py", "fast", "1.5")]
    text = " ".join(benchmark.PAGE.read_text().split())
    assert f"an abacus, torch {rows[0]['torch']} (step, maple, 5 classes, 4 images);" in text
    assert float(rows[1]["floor"]) == pytest.approx(
        benchmark.floor_operations("step", "maple", 5, 4) / 1e12, rel=1e-3)
