"""The house: six files that import each other in one order, and of assets/ nothing but world.py."""
import ast
import os
import shutil
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SIX = ["clip_model", "losses", "data", "prompts", "evaluate", "train"]       # none imports a later
PACKAGES = {"torch", "torchvision", "ftfy", "regex", "tqdm", "PIL", "numpy", "filelock"}
NEEDED = ["world.py", "bpe_merges.txt.gz", "tiny_clip.pt", "imagenet.tsv", "datasets.csv"]
MODULES = {path.stem: path for path in [*ROOT.glob("*.py"), *ROOT.glob("tests/*.py")]}
MODULES |= {f"assets.{path.stem}": path for path in ROOT.glob("assets/*.py")}

AS_SCRIPT = """
import runpy, sys
def run(commands):
    for command in commands:
        sys.argv = command.split()
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
            print("no exit")
        except SystemExit as end:
            print("exit", end.code)
run("""


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


def test_the_six_run_alone_with_their_data_files_and_their_exit_codes_say_how_it_went(tmp_path):
    """As scripts, all in one process."""
    (tmp_path / "assets").mkdir()
    for file in [*(f"{module}.py" for module in SIX), *(f"assets/{name}" for name in NEEDED)]:
        shutil.copy(ROOT / file, tmp_path / file)
    weights = (ROOT / "assets/tiny_clip.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(weights[:len(weights) // 2])
    commands = ["train.py --backbone half.pt", "evaluate.py half.pt", "data.py wrold",
                "train.py --method=coop --epochs=1 --shots=1 --test-images=2 --out=run",
                "evaluate.py run", "data.py world"]
    process = subprocess.run([sys.executable, "-c", f"{AS_SCRIPT}{commands})"], cwd=tmp_path,
                             text=True, capture_output=True, env=os.environ | {"PYTHONPATH": ""})
    assert process.returncode == 0, process.stderr
    first, second, third, *bars = process.stderr.split("\n")
    assert first.startswith("error: half.pt: not a weights file, or a truncated one")
    assert second.startswith("error: half.pt is no finished run")
    assert third.startswith("error: unknown dataset 'wrold'") and "Error" not in "".join(bars)
    assert process.stdout.startswith("exit 2\n" * 3) and process.stdout.count("exit 0\n") == 3
    assert (tmp_path / "run/result.json").is_file()
    assert (tmp_path / "run/evaluation/base-to-novel.json").is_file()
