"""What holds on every laptop: other consoles, folder names with accents, workers started anew."""
import ast
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_runs import refused, write_classes

import data
import train

ROOT = Path(train.__file__).parent
SOURCES = [*ROOT.glob("*.py"), *(ROOT / "assets").glob("*.py")]


def untouched():
    """{file of the checkout: when it was last written}, without Python's own caches."""
    return {path: path.stat().st_mtime_ns for path in ROOT.rglob("*") if path.is_file()
            and not {"__pycache__", ".git", ".pytest_cache", ".ruff_cache"} & {*path.parts}}


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_console_without_some_letters_in_a_folder_with_accents(tmp_path, archive, encoding):
    """A whole run, in a process with the console of Windows; the checkout is only read."""
    here = tmp_path / "mes données (été)"
    write_classes(here / "Fotos ä", {"日本 neko": 8, "chien été": 8, "fox": 8})
    before = untouched()
    words = ["--dataset", "Fotos ä", "--backbone", archive, "--epochs", 1, "--shots", 2]
    process = subprocess.run([sys.executable, train.__file__, *map(str, words)], cwd=here,
                             capture_output=True, timeout=180,
                             env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"})
    assert process.returncode == 0, process.stderr
    assert rb"[u_1] [u_2] of a \u65e5\u672c neko." in process.stdout
    assert sorted(p.name for p in here.iterdir()) == ["Fotos ä", "runs"]
    run, = (p for p in (here / "runs").iterdir() if p.name != "features")
    assert run.name == "Fotos ä-maple-tau1-seed1"
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert any(prompt.endswith(" of a 日本 neko.") for prompt in facts["prompts"])
    assert untouched() == before


def test_where_runs_cannot_be_made_another_out_is_named(at):
    Path("runs").write_text("a file", encoding="utf-8")
    line = refused("--dataset", "world", "--method", "coop", "--epochs", 1, "--test-images", 1)
    assert "can't be made" in line and "give another --out" in line


def test_what_workers_get_can_be_sent_to_them(tmp_path):
    """Where workers are started anew (Windows, macOS, Linux from Python 3.14) it is pickled."""
    dataset = data.load(write_classes(tmp_path / "pets", {"cat": 8, "dög": 8}))
    for train_view, kind in ((False, data.Pictures), (True, data.TrainingPictures)):
        view = data.transform(32, train_view)
        images = kind(dataset, dataset.train, view, *([5] if train_view else []))
        sent = pickle.loads(pickle.dumps(images))
        index = (0, 3) if train_view else 3
        assert torch.equal(sent[index][0], images[index][0]) and len(sent) == len(dataset.train)


def test_picture_names_have_slashes_on_every_system(tmp_path):
    dataset = data.load(write_classes(tmp_path / "pets", {"big cat": 4, "dog": 4}))
    names = [name for name, _ in dataset.train + dataset.val + dataset.test]
    assert all(name.count("/") == 1 and "\\" not in name for name in names)
    assert dataset.path("dog/dog_1.png") == tmp_path / "pets" / "dog" / "dog_1.png"


def calls(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield node, getattr(node.func, "attr", getattr(node.func, "id", ""))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_every_text_file_is_opened_as_utf8(path):
    """Python up to 3.14 reads text in the system's encoding where none is named."""
    for node, name in calls(path):
        named = any(keyword.arg == "encoding" for keyword in node.keywords)
        if name in ("read_text", "write_text"):
            assert named, f"line {node.lineno}"
        if name == "open" and isinstance(node.func, ast.Name):
            modes = [part.value for argument in node.args[1:] for part in ast.walk(argument)
                     if isinstance(part, ast.Constant)]
            assert named or modes and all("b" in mode for mode in modes), f"line {node.lineno}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_nothing_that_only_linux_has(path):
    forbidden = {"fork", "getuid", "geteuid", "mkfifo", "killpg", "setsid", "SIGKILL", "SIGALRM",
                 "SIGHUP", "uname"}
    modules = {"resource", "fcntl", "pwd", "grp", "termios"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert getattr(node, "attr", "") not in forbidden
        if isinstance(node, ast.Import):
            assert not {alias.name for alias in node.names} & modules
        if isinstance(node, ast.ImportFrom):
            assert node.module not in modules
