"""What holds on every laptop: other consoles, folder names with accents, workers started anew."""
import ast
import pickle
from pathlib import Path

import pytest
import torch
from small_runs import started, told, write_classes

import data
import train

ROOT = Path(train.__file__).parent
SOURCES = [*ROOT.glob("*.py"), *(ROOT / "assets").glob("*.py")]
LINUX_ONLY = {"fork", "getuid", "geteuid", "mkfifo", "killpg", "setsid", "SIGKILL", "SIGALRM",
              "SIGHUP", "uname", "resource", "fcntl", "pwd", "grp", "termios"}


def untouched():
    """{file of the checkout: when it was last written}, without Python's own caches."""
    return {path: path.stat().st_mtime_ns for path in ROOT.rglob("*") if path.is_file()
            and not {"__pycache__", ".git", ".pytest_cache", ".ruff_cache"} & {*path.parts}}


def test_a_console_without_some_letters_in_a_folder_with_accents(tmp_path, archive):
    """A whole run, in a process whose console has fewer letters than Windows'.

    The checkout is only read.
    """
    here = tmp_path / "mes données (été)"
    write_classes(here / "Fotos ä", {"日本 neko": 8, "chien été": 8, "fox": 8})
    before = untouched()
    words = ["--dataset=Fotos ä", f"--backbone={archive}", "--epochs=1", "--shots=2"]
    process = started(words, here, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    assert r"[u_1] [u_2] of a \u65e5\u672c neko." in out
    assert sorted(p.name for p in here.iterdir()) == ["Fotos ä", "runs"]
    run, = (p for p in (here / "runs").iterdir() if p.name != "features")
    assert run.name == "Fotos ä-maple-tau1-seed1-shots2-epochs1-backbonesmall"
    assert any(words.endswith(" of a 日本 neko.") for words in told(run / "run.json")["prompts"])
    assert untouched() == before


def test_pictures_are_the_same_in_any_worker_whatever_was_drawn_before(tmp_path):
    """Where workers are started anew (Windows, macOS, Linux from Python 3.14) all is pickled."""
    dataset = data.load(write_classes(tmp_path / "pets", {"big cat": 8, "dög": 8}))
    assert {name.split("/")[0] for name, _ in dataset.train} == {"big cat", "dög"}
    for batches in (data.batches(dataset, dataset.test, 32, "cpu", 4),
                    data.training_batches(dataset, dataset.train, 32, "cpu", 4, 2, seed=3)):
        loader = batches.loader
        others = torch.utils.data.DataLoader(pickle.loads(pickle.dumps(loader.dataset)),
                                             batch_sampler=loader.batch_sampler, num_workers=2)
        for (images, y), (same, labels) in zip(loader, others, strict=True):
            assert torch.equal(images, same) and torch.equal(y, labels)
            torch.rand(1)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_text_is_utf8_and_nothing_is_linuxs_alone(path):
    """Python up to 3.14 reads text in the system's encoding where none is named."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = {alias.name for alias in getattr(node, "names", []) if hasattr(alias, "name")}
        assert not {*names, getattr(node, "attr", ""), getattr(node, "module", "")} & LINUX_ONLY
        if not isinstance(node, ast.Call):
            continue
        called = getattr(node.func, "attr", getattr(node.func, "id", ""))
        modes = [part.value for argument in node.args[1:] for part in ast.walk(argument)
                 if isinstance(part, ast.Constant)]
        binary = modes and all("b" in str(mode) for mode in modes)
        if called in ("read_text", "write_text") or (
                called == "open" and isinstance(node.func, ast.Name) and not binary):
            named = any(keyword.arg == "encoding" for keyword in node.keywords)
            assert named, f"line {node.lineno}"
