"""The recipes of docs/ci.md: valid for their forge, and run step by step.

They run in a project that got slower and in one that did not.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.forge import HISTORY, Forge
from support.postgresql_server import binaries, running
from support.stored_sessions import earlier

from pytest_llmperf.history.store import open_store

PAGE = (Path(__file__).parents[2] / "docs" / "ci.md").read_text(encoding="utf-8")
RECIPES = dict(re.findall(r"<!-- recipe: (\S+) -->\n```yaml\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture
def forge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Forge:
    monkeypatch.setenv("LLMPERF_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    return Forge(tmp_path)


def scripts(recipe: str, job: str) -> list[str]:
    """The shell scripts of a job, in order."""
    whole: dict[str, Any] = yaml.safe_load(RECIPES[recipe])
    if recipe.startswith("gitlab"):
        return ["\n".join(whole[job]["script"])]  # GitLab runs all lines in one shell
    return [step["run"] for step in whole["jobs"][job]["steps"] if "run" in step]


def job(forge: Forge, recipe: str, name: str, tpot: str, **environ: str) -> tuple[int, str]:
    """The job on a branch of that speed, from a clean checkout."""
    forge.fresh()
    forge.branch(tpot)
    return forge.steps(scripts(recipe, name), **environ)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_is_valid_for_its_forge(name, tmp_path):
    """By the published schema of GitHub's workflows and of .gitlab-ci.yml.

    One with a key that does not exist is refused.
    """
    schema = "vendor.gitlab-ci" if name.startswith("gitlab") else "vendor.github-workflows"
    broken = RECIPES[name].replace("script:", "scripts:").replace("runs-on:", "run-on:")
    for text, valid in ((RECIPES[name], True), (broken, False)):
        path = tmp_path / "recipe.yml"
        path.write_text(text, encoding="utf-8")
        command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(path)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert (done.returncode == 0) is valid, done.stdout


@pytest.mark.nightly
def test_main_records_from_nothing_and_goes_on_from_its_last_artifact(forge):
    for n in (1, 2):
        code, said = forge.steps(scripts("github-artifact", "record"))
        assert code == 0, said
        lines = (forge.repo.path / HISTORY).read_text(encoding="utf-8").splitlines()
        assert len(lines) == n
        shutil.copy(forge.repo.path / HISTORY, forge.artifact)
        forge.fresh()


@pytest.mark.nightly
def test_a_pull_request_is_gated_by_the_artifact_of_main(forge):
    forge.record()
    for tpot, expected in (("10ms", 0), ("12ms", 1)):
        code, said = job(forge, "github-artifact", "gate", tpot)
        assert code == expected, said
        assert ("Regression: throughput" in said) is bool(expected)


def test_a_gate_without_a_history_fails(forge):
    """The recipe's download fails; a gate that judges nothing would end with code 6."""
    code, said = forge.steps(scripts("github-artifact", "gate"))
    assert code != 0, said


@pytest.mark.nightly
def test_a_merge_request_is_gated_on_gitlab(forge):
    """A slower branch: gated in a merge request, only recorded otherwise."""
    forge.record()
    for gate, expected in (("--llmperf-gate=throughput:5%", 1), ("", 0)):
        code, said = job(forge, "gitlab-artifact", "performance", "12ms", GATE=gate)
        assert code == expected, said
        assert ("Regression: throughput" in said) is bool(expected)
        assert (forge.repo.path / "junit.xml").is_file()


@pytest.mark.nightly
@pytest.mark.skipif(
    binaries() is None, reason="PostgreSQL is not installed: apt-get install postgresql"
)
def test_a_pull_request_is_gated_by_postgresql(forge):
    with running(binaries()) as server:
        url = server.database()
        code, said = forge.steps([f"pytest --llmperf-store={url}"])
        assert code == 0, said
        with open_store(url, folder=forge.repo.path) as store:
            newest = next(iter(store.records()))
            for n in range(1, 11):
                store.add(earlier(newest, n, 1 + 0.002 * (n % 3)))
        forge.branch("12ms")
        code, said = forge.steps(scripts("github-postgresql", "gate"), LLMPERF_STORE=url)
        assert code == 1, said
        assert "Regression: throughput" in said


@pytest.mark.parametrize(("tpot", "code"), [("10ms", 0), ("12ms", 1)])
def test_a_pull_request_is_measured_side_by_side(forge, tpot, code):
    forge.branch(tpot)
    found, said = forge.steps(scripts("github-against", "side-by-side"))
    assert found == code, said
    assert ("Regression: throughput" in said) is bool(code)
