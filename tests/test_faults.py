"""A few of the cases of tests/faults.py, in the same words: nothing may be other than well."""
import pytest

faults = pytest.importorskip("faults")          # it limits files by a module that Windows lacks


@pytest.mark.parametrize("part, cases, at_least", [("mutations", 60, 55), ("commands", 60, 60),
                                                   ("writers", 0, 20)])
def test_what_is_used_badly_is_refused_or_right(part, cases, at_least, tmp_path, capsys):
    tally = faults.Tally()
    faults.PARTS[part][0](tally, 2, cases, tmp_path)
    assert tally.bad.total() == 0, capsys.readouterr().err
    assert tally.cases.total() >= at_least
