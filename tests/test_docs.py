"""What README and docs/ promise: every command, flag, setting, file, link and snippet in them exists or runs."""

import ast
import contextlib
import functools
import importlib
import importlib.util
import io
import json
import re
import shlex
import subprocess

import pytest
import yaml
from helpers import ROOT, docs_program, slow_but
from test_structure import ORDER, PROGRAMS

from jax_simcas.common.errors import UserError
from jax_simcas.data.records import read_row
from jax_simcas.data.rows import Fields
from jax_simcas.run.config import Settings, to_config
from jax_simcas.run.config_file import override, settings_of

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
EVERY_PROGRAM = {*PROGRAMS, "experiments", "benchmark", "compile_check"} - {"__main__"}
PARTS = {
    "benchmark.input",
    "benchmark.checkpoint",
    "benchmark.attention",
    "benchmark.gpu_check",
    "benchmark.summarize_speed",
    "benchmark.odd_input",
    "benchmark.damage",
    "benchmark.data_order",
    "benchmark.upgrades",
    "benchmark.faults",
}
PATH = re.compile(r"(?<![\w/.:-])(?:configs|launch|docs|tests|examples|findings|jax_simcas|\.ci|\.github)/[\w./-]*\w")
SETTING = re.compile(r"--config\.([\w.]+)=('[^']*'|[^\s`|;,)]+)")
PLACEHOLDER = re.compile(r"\b(NAME|FIELD|VALUE|FOLDER|LENGTH|DATA)\b")


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name, *languages):
    """The fenced blocks of a page in those languages."""
    found = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", text_of(name), re.DOTALL | re.MULTILINE)
    return [body for language, body in found if language in languages]


def prose(name):
    """A page without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", text_of(name), flags=re.DOTALL | re.MULTILINE)


def commands(name):
    """(words) of every line of the page's shell blocks; continued lines are joined, comments left out."""
    for block in blocks(name, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r" (?:&&|\|) ", line):
                if words := shlex.split(part, comments=True):
                    yield words


ALL_COMMANDS = [(name, words) for name in NAMES for words in commands(name)]


def setting(dotted):
    """The default of a setting or of a section, KeyError if there is none."""
    return functools.reduce(lambda place, part: place[part], dotted.split("."), to_config(Settings()).to_dict())


def parsed(name, words):
    """A program's own parser reads the flags; a config and changes of it make settings that pass their check.

    Raises:
      SystemExit: wrong flags; UserError: wrong settings.
    """
    inner = ".__main__" if (ROOT / "jax_simcas" / name).is_dir() else ""
    arguments = importlib.import_module(f"jax_simcas.{name}{inner}").parser().parse_args(words)
    changes = getattr(arguments, "changes", [])
    arguments.changes = [(field, value) for field, value in changes if field not in ("FIELD", "field")]
    if getattr(arguments, "config", None) and not PLACEHOLDER.search(arguments.config):
        settings_of(arguments)
    elif arguments.changes:
        override(to_config(Settings()), arguments.changes)
    return arguments


def check_program(words):
    """A `python -m jax_simcas.X` command."""
    name = words[0].removeprefix("jax_simcas.")
    if name == "NAME":
        return
    assert name in EVERY_PROGRAM | PARTS, name
    if "--help" not in words:
        parsed(name, words[1:])


@functools.cache
def help_of(script):
    """What a launch script prints for --help."""
    return subprocess.run(["bash", script, "--help"], capture_output=True, text=True, cwd=ROOT, check=True).stdout


def check_script(words):
    """A `bash launch/X.sh VERB --flags -- train's arguments` command."""
    script, rest = words[0], words[1:]
    assert (ROOT / script).is_file(), script
    ours, _, train = " ".join(rest).partition(" -- ")
    if script in ("launch/tpu.sh", "launch/gpu.sh"):
        known = help_of(script)
        assert re.search(rf"^ +{rest[0]} |{script.split('/')[1]} {rest[0]} ", known, re.MULTILINE), rest[0]
        for flag in re.findall(r"--[a-z][-a-z]*", ours):
            assert flag in known, f"{script}: no flag {flag}"
    if train:
        parsed("train", ["--workdir=DIR", *train.split()])


def extras():
    """The names of setup.py's extras."""
    (call,) = [node for node in ast.walk(ast.parse(text_of("setup.py"))) if isinstance(node, ast.Call) and node.keywords
               and any(keyword.arg == "extras_require" for keyword in node.keywords)]  # fmt: skip
    (value,) = [keyword.value for keyword in call.keywords if keyword.arg == "extras_require"]
    return {key.value for key in value.keys}


def test_there_are_pages_and_commands():
    assert {"README.md", "docs/training.md", "docs/config.md"} <= set(NAMES)
    assert len(ALL_COMMANDS) > 60


@pytest.mark.parametrize("name", NAMES)
def test_every_shell_command_exists_with_its_flags(name):
    for words in commands(name):
        line = " ".join(words)
        if words[:2] == ["python", "-m"] and words[2].startswith("jax_simcas"):
            check_program(words[2:])
        elif words[0] == "simcas":
            check_program([f"jax_simcas.{words[1]}", *words[2:]])
        elif words[0] == "bash":
            check_script(words[1:])
        elif words[0] == "python" and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), line
            source = text_of(words[1])
            assert all(flag.split("=")[0] in source for flag in words[2:] if flag.startswith("--")), line
        else:
            assert re.match(r"(pip install|git clone|cd|python3? -m (venv|pip|pytest)|\. \.venv|pre-commit)\b", line), (
                line
            )


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_and_extra_that_is_mentioned_exists(name):
    text = text_of(name)
    for field, value in SETTING.findall(text):
        if field not in ("FIELD", "field") and not PLACEHOLDER.search(value):
            override(to_config(Settings()), [(field, value.strip("'"))])
    for names in re.findall(r"(?:jax_simcas|'?\.)\[([\w,]+)\]'", text):
        assert set(names.split(",")) <= extras(), names


@pytest.mark.parametrize("name", NAMES)
def test_every_dotted_setting_in_the_text_exists(name):
    """`simcas.capacity` in a text or table is a field or a section of the settings."""
    if name == "CHANGELOG.md":
        return  # names what was
    sections = "|".join(to_config(Settings()).to_dict())
    for section, rest in re.findall(rf"`({sections})(\.[\w.]+)(?:=[^`]*)?`", prose(name)):
        if not rest.endswith((".json", ".md", ".py", ".txt")):
            setting(section + rest)


@pytest.mark.parametrize("name", NAMES)
def test_every_file_that_is_named_exists(name):
    if name == "CHANGELOG.md":
        return  # names what was
    for path in PATH.findall(text_of(name)):
        if not re.search(r"\bNAME\b|[A-Z]{4,}", path):
            assert (ROOT / path).exists(), path


def slug(heading):
    """The anchor that GitHub gives a heading."""
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def headings(name):
    return re.findall(r"^#+ (.+)$", prose(name), re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_prose_is_wrapped(name):
    """Tables, images and the targets of links may be longer."""
    lines = [re.sub(r"\]\([^)]*\)", "]", line) for line in prose(name).splitlines()]
    assert not [line for line in lines if len(line) > 120 and not line.lstrip().startswith(("|", "!["))]


@pytest.mark.parametrize("name", NAMES)
def test_every_relative_link_resolves(name):
    text = prose(name)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (ROOT / name).parent / path if path else ROOT / name
        assert there.exists(), target
        if anchor:
            other = str(there.resolve().relative_to(ROOT.resolve()))
            assert anchor in {slug(heading) for heading in headings(other)}, target
    used, defined = set(re.findall(r"\[\^(\w+)\](?!:)", text)), set(re.findall(r"^\[\^(\w+)\]:", text, re.MULTILINE))
    assert used == defined


def test_what_does_not_exist_is_found():
    assert slug("Decode and reward") in {slug(heading) for heading in headings("docs/method.md")}
    assert slug("Decode or reward") not in {slug(heading) for heading in headings("docs/method.md")}
    with pytest.raises(SystemExit):
        check_program(["jax_simcas.parity", "DIR", "--frob"])
    with pytest.raises(UserError, match="no such field"):
        check_program(["jax_simcas.evaluate", "--workdir=DIR", "--config.simcas.chunklength=3"])
    with pytest.raises(UserError, match="no such file"):
        check_program(["jax_simcas.train", "--workdir=DIR", "--config=configs/arxive.py"])


def test_readme_fits_two_screens_and_names_every_program_and_package():
    text = text_of("README.md")
    assert len(text.splitlines()) <= 120
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == EVERY_PROGRAM
    for page in ("README.md", "CONTRIBUTING.md"):
        assert all(f"{package}/" in text_of(page) for package in ORDER)
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert pages == set(re.findall(r"\(docs/(\w+\.md)\)", text)), "README links every page"


def test_the_list_of_settings_is_up_to_date_and_explains_every_one():
    page = docs_program("make_config").page()
    assert page == text_of("docs/config.md"), "run python docs/make_config.py"
    unexplained = re.findall(r"^\| `([\w.]+)` \|.*\|  \|$", page, re.MULTILINE)
    assert not unexplained


# Words that belong to no page: internal targets, idioms, and what the glossary calls otherwise.
BANNED = (
    r"\baims?\b",
    r"\b(nats|bytes|hours?|lines?|rows?|folders?) a (token|step|row|document|score|seed)\b",
    r"\byardstick",
    r"\bembedded task",
    r"\bgo(es)? on\b",
    r"\bsays so\b",
    r"\bis told\b",
    r"\bwants?\b",
    r"\bnobody\b",
    r"\bpassed over\b",
    r"\bthe authors' own\b",
    r"\btells? nothing\b",
    r"\bchosen\b",
    r"\bissue \d",
    r"/w[o]rk/",
    r"\b(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{7,40}\b",  # commit hashes
)


@pytest.mark.parametrize("name", NAMES)
def test_no_page_has_a_banned_word(name):
    text = re.sub(r"\"[^\"\n]*\"", "", text_of(name)) if name == "CONTRIBUTING.md" else text_of(name)
    for pattern in BANNED:
        found = re.search(pattern, text, re.IGNORECASE)
        assert not found, found


def test_no_help_text_or_message_has_a_forbidden_word():
    """Nor has any other text of the package; names such as `wanted` may be."""
    files = [ROOT / "setup.py", *(ROOT / "jax_simcas").rglob("*.py"), *(ROOT / "launch").glob("*.sh")]
    found = re.compile(r"\bwants?(?:_\w+)?\b|\bpassed over\b|\byardstick|\bembedded task", re.IGNORECASE)
    assert [(path.name, word[0]) for path in files for word in found.finditer(path.read_text(encoding="utf-8"))] == []


def test_every_section_that_docstrings_cite_is_in_the_method():
    known = set(headings("docs/method.md"))
    cited = [
        (path.name, section)
        for path in [*(ROOT / "jax_simcas").rglob("*.py"), *(ROOT / "tests").glob("test_*.py")]
        for section in re.findall(r'docs/method\.md,? "([^"]+)"', path.read_text(encoding="utf-8"))
    ]
    assert [item for item in cited if item[1] not in known] == []
    assert len(cited) >= 10


@pytest.mark.parametrize("name", [name for name in NAMES if blocks(name, "json")])
def test_example_rows_are_rows(name):
    for block in blocks(name, "json"):
        for number, line in enumerate(block.splitlines(), 1):
            row = read_row(json.loads(line), Fields(), name, number)
            assert row.document and row.summary


def prints_of(code):
    """What a snippet says that its lines print: `print(...)  # prints: TEXT`."""
    return re.findall(r"# prints: (.+)$", code, re.MULTILINE)


SNIPPETS = [name for name in NAMES if blocks(name, "python")]
COMPILES_BART = "docs/performance.md"  # for a million tokens


@pytest.mark.parametrize("name", slow_but(SNIPPETS, *(set(SNIPPETS) - {COMPILES_BART})))
def test_every_python_snippet_runs_as_printed(name, tmp_path, monkeypatch, workdir, document):
    """The snippets of a page run one after another, in one namespace, beside examples/ and the quickstart's model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    (tmp_path / "runs" / "quickstart" / "simcas").symlink_to(workdir)
    (tmp_path / "runs" / "quickstart" / "document.txt").symlink_to(document)
    space = {"__name__": name}
    for code in blocks(name, "python"):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(code, name, "exec"), space)
        printed = out.getvalue()
        for expected in prints_of(code):
            assert expected in printed.splitlines(), printed


@pytest.mark.parametrize("name", ["CITATION.cff", ".pre-commit-config.yaml", ".github/workflows/ci.yml"])
def test_yaml_files_are_readable(name):
    assert yaml.safe_load(text_of(name))


def test_ci_runs_what_developers_run_on_both_ends_of_the_versions():
    jobs = yaml.safe_load(text_of(".github/workflows/ci.yml"))["jobs"]
    steps = [step.get("run", "") for job in jobs.values() for step in job["steps"]]
    assert "bash .ci/run" in steps
    assert jobs["checks"]["strategy"]["matrix"]["python"] == ["3.11", "3.13"]
    (constraints,) = {name for step in steps for name in re.findall(r"--constraint (\S+)", step)}
    assert (ROOT / constraints).is_file()


def test_the_changelog_names_modules_that_exist():
    new = re.findall(r"^\| [^|]+ \| (`[^|]+) \|$", text_of("CHANGELOG.md"), re.MULTILINE)
    modules = re.findall(r"`([\w.]+)`", " ".join(new))
    assert len(modules) > 30
    assert [name for name in modules if importlib.util.find_spec(f"jax_simcas.{name}") is None] == []


def test_the_api_page_names_everything_that_is_public():
    import jax_simcas

    table = text_of("docs/api.md").split("## Public names")[1]
    first_cells = " ".join(re.findall(r"^\| (.+?) \|", table, re.MULTILINE))
    assert {*re.findall(r"`(\w+)`", first_cells), "__version__"} == set(jax_simcas.__all__)


def test_the_citation_names_the_paper_and_this_version():
    import jax_simcas

    citation = yaml.safe_load(text_of("CITATION.cff"))
    assert citation["version"] == jax_simcas.__version__
    authors = [author["family-names"] for author in citation["preferred-citation"]["authors"]]
    assert authors == ["Xie", "Cheng", "Liang", "Dai", "Du"]
    assert "2308.13191" in citation["preferred-citation"]["url"]
