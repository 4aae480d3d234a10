"""A few of the cases of tests/faults.py, in the same words: nothing may be other than well."""
import pytest
import torch
from small_runs import done
from test_runs import run_files

faults = pytest.importorskip("faults")          # it limits files by a module that Windows lacks


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("part, cases, at_least", [("mutations", 60, 55), ("commands", 60, 60),
                                                   ("writers", 0, 20)])
def test_what_is_used_badly_is_refused_or_right(part, cases, at_least, one_thread, tmp_path,
                                                capsys):
    tally = faults.Tally()
    faults.PARTS[part][0](tally, 2, cases, tmp_path)
    assert tally.bad.total() == 0, capsys.readouterr().err
    assert tally.cases.total() >= at_least


def test_threads_change_no_more_than_the_order_of_sums(one_thread, tmp_path):
    runs = faults.Subjects(tmp_path)                                    # made by one thread
    torch.set_num_threads(2)
    done(*runs.own_words, "--out", tmp_path / "two")
    one, two = run_files(runs.own), run_files(tmp_path / "two")
    assert one["drawn.csv"] == two["drawn.csv"]
    ctx = [torch.load(folder / "prompts.pt", weights_only=True)["learned"]["ctx"]
           for folder in (runs.own, tmp_path / "two")]
    torch.testing.assert_close(*ctx, atol=1e-6, rtol=0)
