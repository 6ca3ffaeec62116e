"""The project about itself: what an import loads, what is exported, which rooms there are."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import gpufut

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "gpufut"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
GPU_FRAMEWORKS = {"torch", "cupy", "numba", "pynvml", "jax", "tensorflow"}


def modules_loaded_by(statement: str) -> set[str]:
    """What a fresh interpreter has loaded after *statement*, and had not before."""
    program = (
        f"import sys; before = set(sys.modules)\n{statement}\nprint(*(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return set(done.stdout.split())


def files_of_the_project() -> Iterator[Path]:
    """The files that are under version control or could be; all text."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout, so nothing says which files are the project's")
    for name in listed.stdout.split("\0"):
        path = ROOT / name
        if name and path.is_file() and path.suffix not in {".png", ".jpg", ".html", ".npz"}:
            yield path


def test_c7_import_gpufut_loads_no_framework_no_numpy_and_no_asyncio():
    loaded = modules_loaded_by("import gpufut")

    assert loaded & (GPU_FRAMEWORKS | {"numpy", "asyncio", "gpufut.sim"}) == set()


def test_c7_a_value_with_no_device_array_loads_no_framework():
    loaded = modules_loaded_by(
        "from gpufut import Future, collect_all\n"
        "future = Future()\n"
        "class Record: pass\n"
        "record = Record(); record.number = 3\n"
        "child = future.then(lambda f: [f.value(), record, {'text': b'', 'pair': (1, 2.5)}])\n"
        "future.set_result({'answer': 42})\n"
        "collect_all([future, child]).wait()"
    )

    assert loaded & (GPU_FRAMEWORKS | {"numpy"}) == set()


def test_sim_is_loaded_when_it_is_asked_for():
    loaded = modules_loaded_by("from gpufut import sim; sim.Machine")

    assert "gpufut.sim" in loaded
    assert loaded & GPU_FRAMEWORKS == set()


@pytest.mark.parametrize("name", sorted(gpufut.__all__))
def test_every_exported_name_exists_and_says_what_it_is(name):
    thing = getattr(gpufut, name)

    if inspect.isclass(thing) or inspect.isroutine(thing) or inspect.ismodule(thing):
        assert inspect.getdoc(thing)


def test_every_public_class_and_function_at_the_front_door_is_exported():
    offered = {
        name
        for name, thing in vars(gpufut).items()
        if not name.startswith("_")
        and (inspect.isclass(thing) or inspect.isfunction(thing))
        and thing.__module__.startswith("gpufut.")
    }

    assert offered <= set(gpufut.__all__)


def test_exported_names_are_sorted_and_unique():
    assert list(gpufut.__all__) == sorted(set(gpufut.__all__))


def rooms_of_the_contract() -> list[str]:
    contracts = PROJECT["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["id"] == "rooms")
    return [room.strip() for layer in layers for room in layer.split("|")]


@pytest.mark.parametrize("room", rooms_of_the_contract())
def test_every_room_of_the_import_contract_exists_and_says_what_it_is(room):
    assert importlib.import_module(room).__doc__


def test_every_module_is_in_a_room_of_the_import_contract():
    modules = {f"gpufut.{path.stem}" for path in PACKAGE.iterdir() if path.suffix in {".py", ""}}
    hidden = {name for name in modules if name.startswith("gpufut._")}  # __init__, __pycache__
    beside = {"gpufut.sim", "gpufut.trace"}  # know nothing of gpufut; they have their own contracts

    assert modules - hidden - beside == set(rooms_of_the_contract())


def imports_at_run_time(tree: ast.AST) -> Iterator[str]:
    """The modules that *tree* imports, at its top or inside functions; not those for types only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield from imports_at_run_time(node)


@pytest.mark.parametrize("path", sorted((PACKAGE / "sim").rglob("*.py")), ids=lambda p: p.name)
def test_sim_imports_numpy_the_standard_library_and_itself_only(path):
    # The import contract cannot say "nothing but": it would let any third package in.
    imported = set(imports_at_run_time(ast.parse(path.read_text(encoding="utf-8"))))

    inside = {name for name in imported if f"{name}.".startswith("gpufut.sim.")}
    roots = {name.partition(".")[0] for name in imported - inside}
    assert roots - sys.stdlib_module_names <= {"numpy"}


def test_the_package_is_typed_and_the_wheel_holds_nothing_else():
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]

    assert wheel == {"packages": ["gpufut"]}
    assert (PACKAGE / "py.typed").is_file()


def test_numpy_is_the_only_dependency():
    names = [re.split(r"[<>=~! ]", need)[0] for need in PROJECT["project"]["dependencies"]]

    assert names == ["numpy"]


def test_dev_is_all_extras_but_the_gpu_frameworks():
    extras = PROJECT["project"]["optional-dependencies"]
    (everything,) = extras["dev"]

    named = set(everything.removeprefix("gpufut[").removesuffix("]").split(","))
    assert named == set(extras) - {"dev", "torch", "cupy", "numba", "nvml"}


def test_files_name_no_machine_and_no_home():
    places = re.compile(r"/(?:home|root|work|Users|mnt)/\w")  # does not find itself

    found = {
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in files_of_the_project()
        for match in places.finditer(path.read_text(encoding="utf-8"))
    }

    assert found == set()


def test_the_tests_of_a_rule_carry_a_number_that_exists():
    numbers = {
        int(number)
        for path in (ROOT / "tests").rglob("test_*.py")
        for number in re.findall(r"def test_c(\d+)_", path.read_text(encoding="utf-8"))
    }

    assert numbers <= set(range(1, 24))


RULES = (ROOT / "docs" / "contract.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("rule", re.findall(r"^\| (C\d+) \|", RULES, re.MULTILINE))
def test_every_rule_of_the_contract_has_tests(rule):
    tests = [
        name
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]

    assert [name for name in tests if name.startswith(f"test_{rule.lower()}_")]


def test_the_rules_of_the_contract_are_all_there():
    rules = re.findall(r"^\| C(\d+) \|", RULES, re.MULTILINE)

    assert [int(rule) for rule in rules] == list(range(1, 24))
