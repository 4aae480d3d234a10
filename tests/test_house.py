"""The house: six files that import each other in one order, and of assets/ nothing but world.py.

And what holds on every laptop: other consoles, folder names with accents, workers started anew.
"""
import ast
import os
import pickle
import re
import shutil
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import torch
from small_runs import files, told, write_classes

import data

ROOT = Path(__file__).parents[1]
SIX = ["clip_model", "losses", "data", "prompts", "evaluate", "train"]       # none imports a later
PACKAGES = {"torch", "torchvision", "ftfy", "regex", "tqdm", "PIL", "numpy", "filelock"}
NEEDED = ["world.py", "bpe_merges.txt.gz", "tiny_clip.pt", "imagenet.tsv", "datasets.csv"]
MODULES = {path.stem: path for path in [*ROOT.glob("*.py"), *ROOT.glob("tests/*.py")]}
MODULES |= {f"assets.{path.stem}": path for path in ROOT.glob("assets/*.py")}
SOURCES = [module for module, path in MODULES.items() if path.parent.name != "tests"]
LINUX_ONLY = {"fork", "getuid", "geteuid", "mkfifo", "killpg", "setsid", "SIGKILL", "SIGALRM",
              "SIGHUP", "uname", "resource", "fcntl", "pwd", "grp", "termios"}

AS_SCRIPTS = """
import runpy, sys
for command in {}:
    sys.argv = command.split("|")
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        print("no exit")
    except SystemExit as end:
        print("exit", end.code)
"""


def imported(module):
    """Names of the modules that a module imports, anywhere in it: of assets/ with their folder."""
    names = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            whole = node.module == "assets"
            names |= {f"assets.{a.name}" for a in node.names} if whole else {node.module}
    return {name if name.startswith("assets.") else name.split(".")[0] for name in names}


@pytest.mark.parametrize("module", [*SIX, "assets.world"])
def test_the_six_import_each_other_in_order_and_no_tool(module):
    """And the standard library, the six packages, and what those bring."""
    allowed = {*sys.stdlib_module_names, *PACKAGES}
    if module in SIX:
        allowed |= {*SIX[:SIX.index(module)]}
    assert imported(module) - allowed == ({"assets.world"} if module == "data" else set())


def test_tools_import_no_test_and_nothing_imports_itself_by_way_of_others():
    """textbook.py, the formulas written slowly, is no test."""
    graph = {module: imported(module) & MODULES.keys() for module in MODULES}
    tests = {path.stem for path in ROOT.glob("tests/*.py")} - {"textbook"}
    tools = [module for module in graph if module not in tests]
    assert not [module for module in tools if graph[module] & tests]
    assert [*TopologicalSorter(graph).static_order()]           # CycleError names the circle


@pytest.mark.parametrize("module", SOURCES)
def test_a_source_unpickles_nothing_names_its_encodings_and_needs_no_linux(module):
    """Python up to 3.14 reads text in the system's encoding where none is named."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    names = {getattr(node, kind, "") for node in ast.walk(tree) for kind in (
        "attr", "name", "module")}
    assert not names & LINUX_ONLY and ("pickle" not in names or module == "clip_model")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called, whole = ast.unparse(node.func), ast.unparse(node)
            assert called not in ("pickle.load", "pickle.loads")
            if called == "torch.load":
                assert "weights_only=True" in whole
            if called == "open" or called.endswith((".read_text", ".write_text")):
                assert "encoding=" in whole or re.search(r"'[rwax]+b'", whole), whole


def test_the_six_run_alone_with_their_data_files_and_say_by_exit_codes_how_it_went(
        tmp_path, archive):
    """As scripts, all in one process, from a folder with accents, and only read where they lie.

    The console has fewer letters than Windows'.
    """
    copy, here = tmp_path / "copy", tmp_path / "mes données (été)"
    (copy / "assets").mkdir(parents=True)
    for file in [*(f"{module}.py" for module in SIX), *(f"assets/{name}" for name in NEEDED)]:
        shutil.copy(ROOT / file, copy / file)
    write_classes(here / "Fotos ä", {"日本 neko": 8, "chien été": 8, "fox": 8})
    (here / "half.pt").write_bytes((ROOT / "assets/tiny_clip.pt").read_bytes()[:9999])
    run = "runs/Fotos ä-maple-tau1-seed1-shots2-epochs1-backbonesmall"
    before, commands = files(copy), [f"{copy}/{command}" for command in (
        "train.py|--backbone=half.pt", "evaluate.py|half.pt", "data.py|wrold", "data.py|world",
        "train.py|--method=coop|--epochs=1|--shots=1|--test-images=2|--out=run",
        f"train.py|--dataset=Fotos ä|--backbone={archive}|--epochs=1|--shots=2",
        f"evaluate.py|{run}")]
    settings = {"PYTHONPATH": str(copy), "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0",
                "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.run([sys.executable, "-c", AS_SCRIPTS.format(commands)], cwd=here,
                             text=True, capture_output=True, env=os.environ | settings)
    assert process.returncode == 0, process.stderr
    first, second, third, *bars = process.stderr.split("\n")
    assert first.startswith("error: half.pt: not a weights file, or a truncated one")
    assert second.startswith("error: half.pt is no finished run")
    assert third.startswith("error: unknown dataset 'wrold'") and "Error" not in "".join(bars)
    assert process.stdout.startswith("exit 2\n" * 3) and process.stdout.count("exit 0\n") == 4
    assert r"[u_1] [u_2] of a \u65e5\u672c neko." in process.stdout
    shown = told(here / run / "run.json")["prompts"]
    assert any(text.endswith(" of a 日本 neko.") for text in shown)
    assert (here / "run/result.json").is_file()
    assert (here / run / "evaluation/base-to-novel.json").is_file()
    assert files(copy) == before


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
