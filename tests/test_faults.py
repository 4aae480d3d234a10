"""A few of the cases of tests/faults.py, in the same words: nothing may be other than well."""
import faults
import pytest
import torch


@pytest.fixture
def tally():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield faults.Tally()
    torch.set_num_threads(threads)


@pytest.mark.parametrize("part, cases", [("mutations", 60), ("commands", 50), ("writers", 0),
                                         ("downloads", 2)])
def test_what_is_used_badly_is_refused_or_right(part, cases, tally, tmp_path, capsys):
    faults.PARTS[part][0](tally, 2, cases, tmp_path)
    assert tally.bad == 0, capsys.readouterr().err
    assert sum(sum(count.values()) for count in tally.groups.values()) >= max(cases - 10, 10)
