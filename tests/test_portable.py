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
LINUX_ONLY = {"fork", "getuid", "geteuid", "mkfifo", "killpg", "setsid", "SIGKILL", "SIGALRM",
              "SIGHUP", "uname", "resource", "fcntl", "pwd", "grp", "termios"}


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
    words = ["--dataset=Fotos ä", f"--backbone={archive}", "--epochs=1", "--shots=2"]
    process = subprocess.run([sys.executable, train.__file__, *words], cwd=here,
                             capture_output=True, timeout=180,
                             env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"})
    assert process.returncode == 0, process.stderr
    assert rb"[u_1] [u_2] of a \u65e5\u672c neko." in process.stdout
    assert sorted(p.name for p in here.iterdir()) == ["Fotos ä", "runs"]
    run, = (p for p in (here / "runs").iterdir() if p.name != "features")
    assert run.name == "Fotos ä-maple-tau1-seed1-shots2-epochs1-backbonesmall"
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert any(prompt.endswith(" of a 日本 neko.") for prompt in facts["prompts"])
    assert untouched() == before


def test_where_runs_cannot_be_made_another_out_is_named(at):
    Path("runs").write_text("a file", encoding="utf-8")
    line = refused("--dataset", "world", "--method", "coop", "--epochs", 1, "--test-images", 1)
    assert "can't be made" in line and "give another --out" in line


def test_pictures_can_be_sent_to_workers_and_have_slashes_in_their_names(tmp_path):
    """Where workers are started anew (Windows, macOS, Linux from Python 3.14) all is pickled."""
    dataset = data.load(write_classes(tmp_path / "pets", {"big cat": 8, "dög": 8}))
    for train_view, kind in ((False, data.Pictures), (True, data.TrainingPictures)):
        view = data.transform(32, train_view)
        images = kind(dataset, dataset.train, view, *([5] if train_view else []))
        sent = pickle.loads(pickle.dumps(images))
        index = (0, 3) if train_view else 3
        assert torch.equal(sent[index][0], images[index][0]) and len(sent) == len(dataset.train)
    names = [name for name, _ in dataset.train + dataset.test]
    assert all(name.count("/") == 1 and "\\" not in name for name in names)
    assert dataset.path("dög/dög_1.png") == tmp_path / "pets" / "dög" / "dög_1.png"


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
