"""The documents: both front pages say the same, links lead somewhere, and every option that is named exists."""

import re

import pytest

from tests.conftest import ROOT

PAGES = [*ROOT.glob("README*.md"), ROOT / "weights" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = ("train.py", "eval.py", "export.py", "predict.py", "app.py", "preprocess.py", "postprocess.py")


def blocks(text):
    """The code blocks without their comments; of the map of files only the names."""
    found = []
    for block in re.findall(r"```.*?\n(.*?)```", text, re.DOTALL):
        lines = [re.sub(r"\s*#.*", "", line) for line in block.splitlines()]
        if any(line.startswith("src/net.py") for line in lines):
            lines = [name for line in lines for name in re.findall(r"[\w/]+\.(?:py|sh|md|ckpt|cc|h|txt)\b", line)]
        elif any("<scene>_out" in line for line in lines):
            lines = [line.split("RGB")[0] for line in lines]
        found.append([line.rstrip() for line in lines if line.strip()])
    return found


def headings(text):
    return [
        len(line.split()[0])
        for line in re.sub(r"```.*?```", "", text, flags=re.DOTALL).splitlines()
        if line.startswith("#")
    ]


def table_figures(text):
    """The numbers of every table row, in order."""
    return [sorted(re.findall(r"\d[\d,.]*\d|\d", row)) for row in text.splitlines() if row.startswith("|")]


def targets(text):
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    return sorted(link for link in links if not link.startswith("#") and not link.startswith("README"))


def test_both_front_pages_say_the_same():
    english, chinese = ((ROOT / name).read_text() for name in ("README.md", "README_CN.md"))
    assert headings(english) == headings(chinese)
    assert blocks(english) == blocks(chinese)
    assert table_figures(english) == table_figures(chinese)
    assert targets(english) == targets(chinese)
    assert len(english.splitlines()) < 220


def anchors(page):
    """GitHub's names of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_within_the_repo_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


OPTION = r"(?<![\w-])--[a-z][a-z0-9_]+(?![\w-])"


def test_every_option_that_the_documents_name_exists(run, tmp_path):
    """The commands' help is asked for where OpenCV would refuse to be loaded: no command reads its variables."""
    tools = [f"tools/{path.name}" for path in (ROOT / "tools").glob("*.py") if "__main__" in path.read_text()]
    known = set()
    for program in (*COMMANDS, *tools):
        shown = run(f"{program} --help", cwd=tmp_path, OPENCV_IO_MAX_IMAGE_WIDTH="none")
        assert shown.returncode == 0, shown.stderr
        assert not re.search(r"default:\s+(None|False)", shown.stdout), program
        known |= set(re.findall(OPTION, shown.stdout))
    main = (ROOT / "ascend310_infer" / "src" / "main.cc").read_text()
    known |= {f"--{name}" for name in re.findall(r'\{"(\w+)", \[&\]', main)}
    for path in (*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "research").rglob("*.py"), ROOT / "tests/conftest.py"):
        known |= set(re.findall(r'add_?(?:argument|option)\(\s*"(--\w+)"', path.read_text()))
    for page in PAGES:
        assert not set(re.findall(OPTION, page.read_text())) - known, page.name


def test_the_map_names_every_file():
    text = (ROOT / "README.md").read_text()
    for path in [
        *ROOT.glob("*.py"),
        *(ROOT / "src").rglob("*.py"),
        *(ROOT / "web").glob("*.[jp]*[sy]"),
        *(ROOT / "scripts").glob("*.sh"),
        *(ROOT / "tools").glob("*.py"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "benchmarks").glob("*.py"),
    ]:
        assert path.name in text or path.name == "__init__.py", path
