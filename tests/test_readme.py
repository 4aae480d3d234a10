"""The README and the pages beside it say what is there: their map, their commands, their files."""
import ast
import re
from pathlib import Path

import pytest
import torch

import data
import evaluate
import train

ROOT = Path(train.__file__).parent
PAGES = ["README.md", *(f"assets/{name}.md" for name in (
    "datasets", "photos", "reproducing", "print", "changing", "walk", "exercises", "install"))]
TEXT = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
README = TEXT["README.md"]
MODULES = ["clip_model.py", "prompts.py", "losses.py", "data.py", "train.py", "evaluate.py"]
FIGURES = {"1", "2", "4", "5", "history"}


def defined(file):
    """Names of all functions and classes of a file, methods too."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree)
            if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def words_of(cell):
    return re.findall(r"`([^`]+)`", cell)


def section(title):
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def commands(page):
    """The commands in a page's blocks, each on one line, and `python ...` in its text."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT[page], flags=re.M | re.S)
    lines = [" ".join(line.split()) for language, block in blocks if not language
             for line in block.replace("\\\n", " ").splitlines()]
    shown = [part for line in lines for part in line.split(" && ")]
    inline = [" ".join(code.split()) for code in re.findall(r"`(python [^`]+)`", TEXT[page])]
    return [c for c in shown + inline if c.startswith(("python ", "torchrun "))]


def arguments(script, page):
    """The words behind a script's name in each of a page's commands; "..." is left out."""
    found = [re.fullmatch(rf"(?:python|torchrun --nproc-per-node \w+) {script}(.*)", command)
             for command in commands(page)]
    return [[word for word in match[1].split() if word != "..."] for match in found if match]


# the map ------------------------------------------------------------------------------------------

def test_map_names_what_exists():
    rows = [line for line in section("Map").splitlines() if line.startswith("| ")][2:]
    assert " ".join(rows).count("`test_") >= 30
    for row in rows:
        _, code, test = row.strip("| ").split(" | ")
        module, *names = words_of(code)
        assert set(names) <= defined(module), row
        file, tests = f"test_{Path(module).name}", words_of(test)
        if tests[0].endswith(".py"):
            file, *tests = tests
        assert tests and set(tests) <= defined(f"tests/{file}"), row
        assert all(name.startswith("test_") for name in tests)


def test_every_equation_and_definition_has_a_row():
    places = [line.split(" | ")[0] for line in section("Map").splitlines()]
    for wanted in ("Eq. (1)", "Eq. (2)", "Eq. (3)", "Eq. (5)", "Eq. (6)", "Eq. (7)", "Def. 1",
                   "Def. 2", "Def. 3", "Sec. 3.2", "Sec. 4.3", "Sec. 5", "Table 1", "Table 3"):
        assert any(wanted in place for place in places), wanted


def test_the_objective_names_what_exists():
    rows = re.findall(r"^\S.*Eq\. \((\d)\)  (\w+\.py) (\w+)$", README, flags=re.M)
    assert [number for number, _, _ in rows] == ["1", "5", "6", "7"]
    for _, file, name in rows:
        assert name in defined(file)


def test_changing_it_names_what_exists():
    text = TEXT["assets/changing.md"]
    for file in re.findall(r"`((?:assets/|tests/)?\w+\.(?:py|md))`", text):
        assert (ROOT / file).is_file(), file
    for file, name in [("prompts.py", "Learner"), ("prompts.py", "text_features"),
                       ("prompts.py", "visual_prompts"), ("prompts.py", "build"),
                       ("losses.py", "npt_loss"), ("train.py", "fill_in"),
                       ("train.py", "Objective")]:
        assert f"`{name}`" in text and name in defined(file)
    for file, name in [("prompts.py", "METHODS"), ("prompts.py", "DEFAULTS"),
                       ("train.py", "OPTIMISER"), ("train.py", "TERMS"),
                       ("data.py", "READERS"),
                       ("assets/tables.py", "LEARNERS"), ("assets/tables.py", "NPT_ALONE"),
                       ("tests/test_prompts.py", "SETTINGS"), ("tests/test_data.py", "LAYOUTS")]:
        assert f"`{name}`" in text
        assert re.search(rf"^{name} = ", (ROOT / file).read_text(encoding="utf-8"), flags=re.M)


# commands and code --------------------------------------------------------------------------------

def test_the_two_commands_and_the_one_that_the_bare_one_stands_for():
    assert "pip install -r requirements.txt && python train.py\npython -m pytest\n" in README
    assert f"`python train.py {train.BARE}`" in README
    assert "\npython train.py --method maple --npt --tau 0.01 --dataset eurosat\n" in README


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_of_a_script_that_has_its_options(page):
    for command in commands(page):
        script = re.search(r"\S+\.py\b", command)
        assert script or command == "python -m pytest", command
        text = (ROOT / script[0]).read_text(encoding="utf-8") if script else ""
        for option in re.findall(r"(?<=\s)--[a-z-]+", command.partition(".py")[2]):
            shared = ("--data-root", "--device", "--precision", "--help")
            if script[0] not in ("train.py", "assets/history.py"):
                assert option in shared or f'"{option}"' in text, command


@pytest.mark.parametrize("page", PAGES)
def test_commands_parse(page):
    for words in [*arguments(r"train\.py", page), *arguments(r"assets/history\.py", page)]:
        assert "--help" in words or train.parse(words), words
    for words in arguments(r"evaluate\.py", page):
        evaluate.parse(words)
    for words in arguments(r"data\.py", page):
        data.parse(words)
    for words in arguments(r"assets/figures\.py", page):
        assert words[0] in FIGURES and words[-2] == "--out" and len(words) >= 4, words


def test_there_are_commands_to_parse():
    count = {page: len(arguments(r"(?:train|evaluate)\.py", page)) for page in PAGES}
    assert count["README.md"] >= 5 and count["assets/reproducing.md"] >= 12


def test_every_tool_is_named_on_some_page():
    for script in (ROOT / "assets").glob("*.py"):
        if not script.name.startswith("make_") and "__main__" in script.read_text("utf-8"):
            assert any(script.name in text for text in TEXT.values()), script.name


def test_a_grid_has_as_many_runs_as_the_page_says():
    grids = {len(train.parse(words)) for words in arguments(r"train\.py", "assets/reproducing.md")}
    for number, words in ((396, "396 runs with three seeds"), (36, "36 runs, about")):
        assert number in grids and words in TEXT["assets/reproducing.md"]


def test_the_lines_of_import_run():
    """As they stand, but for the weights: the tiny CLIP's."""
    code, = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    assert len(code.splitlines()) == 5 and '"ViT-B/16"' in code
    names = {"images": torch.zeros(3, 3, 32, 32), "y": torch.tensor([0, 1, 1])}
    exec(code.replace("ViT-B/16", "tiny"), names)
    assert names["loss"].isfinite() and set(names["terms"]) == {"l_clip", "l_lc", "l_mi"}
    assert names["learner"].show_prompt("River") == "[u_1] [u_2] of a River."


def test_counts_of_learned_numbers_on_vit_b_16():
    """From the sizes of the two towers, written out."""
    w, w_v, d = 512, 768, 512
    maple = 9 * (2 * w + w * w_v + w_v)
    cocoop = 4 * w + d * (d // 16) + d // 16 + d // 16 * w + w
    text = " ".join(README.split())
    assert f"{maple:,} are learned" in text
    assert f"CoOp learns {16 * w:,}, CoCoOp {cocoop:,}" in text


# form ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("page", PAGES)
def test_lines_fit_into_100_columns(page):
    for line in TEXT[page].splitlines():
        assert len(line) <= 100 or line.startswith("| "), line


def test_the_readme_is_short():
    assert len(re.findall(r"\S+", README)) <= 1600


def test_the_readme_begins_with_the_paper_a_picture_and_h():
    top = README.split("\n## ")[0]
    assert "(https://arxiv.org/abs/2306.15955)" in top.split("\n\n")[1]
    assert "](assets/world.png)" in top and "**H** = 2 base novel / (base + novel)" in top


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\((?!https:|#)([^)]+)\)", TEXT[page])
    assert links or page != "README.md"
    for link in links:
        assert ((ROOT / page).parent / link).is_file(), link


# datasets, packages, weights ----------------------------------------------------------------------

def test_every_dataset_of_the_paper_stands_in_the_table():
    for name, row in data.ROWS.items():
        line, = [line for line in TEXT["assets/datasets.md"].splitlines()
                 if line.startswith(f"| {name} |")]
        assert f"| {row.classes} |" in line and f"`{row.template}`" in line
        assert ("fetched" in line) == bool(row.fetch)
        assert ("split by hand" in line) == bool(row.fetch and row.split)


def test_requirements_are_six_ordinary_packages():
    packages = (ROOT / "requirements.txt").read_text().split()
    assert packages == ["torch", "torchvision", "ftfy", "regex", "tqdm", "pytest"]


def test_matplotlib_is_imported_only_where_a_figure_is_drawn():
    for file in MODULES:
        for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
                assert not any(name.startswith("matplotlib") for name in names), file


def test_weights_are_never_unpickled():
    for file in [*MODULES, *(f"assets/{p.name}" for p in (ROOT / "assets").glob("*.py"))]:
        text = (ROOT / file).read_text(encoding="utf-8")
        loads = re.findall(r"torch\.load\([^\n]*", text)
        assert all("weights_only=True" in load for load in loads), file
        assert "import pickle" not in text or file == "clip_model.py"
        assert not re.search(r"pickle\.loads?\(", text), file
