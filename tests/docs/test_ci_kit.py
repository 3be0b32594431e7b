"""The files of the CI kit and the release: valid for what reads them, and their scripts are run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from check_jsonschema import main as check_jsonschema
from click.testing import CliRunner
from support.forge import HISTORY, Forge

from pytest_llmperf.commands.start.files import job_text
from pytest_llmperf.commands.start.surroundings import Model, Surroundings

ROOT = Path(__file__).parents[2]
KIT = ROOT / "docs" / "ci-kit"
ACTION = (ROOT / ".github" / "actions" / "llmperf" / "action.yml").read_text(encoding="utf-8")
RELEASE = (ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
COMPONENT = (KIT / "gitlab" / "llmperf.yml").read_text(encoding="utf-8")
MANIFEST = (KIT / "kubernetes.yaml").read_text(encoding="utf-8")
DOCKERFILE = (KIT / "Dockerfile").read_text(encoding="utf-8")
SLURM = (KIT / "slurm.sbatch").read_text(encoding="utf-8")
PAGE = (KIT / "README.md").read_text(encoding="utf-8")
RECIPES = dict(re.findall(r"<!-- recipe: (\S+) -->\n```yaml\n(.*?)```", PAGE, re.DOTALL))
PULL_REQUEST = {"GITHUB_EVENT_NAME": "pull_request", "PULL_REQUEST": "7"}
RUNNER = {
    "GITHUB_REPOSITORY": "team/service",
    "GITHUB_WORKFLOW_REF": "team/service/.github/workflows/performance.yml@refs/heads/a@b",
    "DEFAULT_BRANCH": "main",
}


@pytest.fixture
def forge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Forge:
    monkeypatch.setenv("LLMPERF_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    return Forge(tmp_path)


def component(**values: str) -> str:
    """Return the jobs of the GitLab component with its inputs filled in, as GitLab does."""
    header, _, jobs = COMPONENT.partition("\n---\n")
    inputs = yaml.safe_load(header)["spec"]["inputs"]
    for name, declared in inputs.items():
        value = values.get(name, declared["default"])
        shown = json.dumps(value) if isinstance(value, list) else value
        jobs = jobs.replace(f"$[[ inputs.{name} ]]", shown)
    assert "$[[" not in jobs  # an input that is not declared
    return jobs


def action_step(name: str) -> dict[str, Any]:
    (step,) = [step for step in yaml.safe_load(ACTION)["runs"]["steps"] if step["name"] == name]
    return step


def action_inputs(**values: str) -> dict[str, str]:
    """Return the variables that the steps of the action have from its inputs."""
    inputs = {
        name: declared["default"] for name, declared in yaml.safe_load(ACTION)["inputs"].items()
    } | values
    variables = {}
    for step in yaml.safe_load(ACTION)["runs"]["steps"]:
        for name, value in step.get("env", {}).items():
            if found := re.fullmatch(r"\$\{\{ inputs\.([\w-]+) \}\}", value):
                variables[name] = inputs[found[1]]
    return RUNNER | variables


VALID = {
    "release": ("vendor.github-workflows", RELEASE, "runs-on:", "run-on:"),
    "action": ("vendor.github-actions", ACTION, "using:", "use:"),
    "github": ("vendor.github-workflows", RECIPES["github-action"], "runs-on:", "run-on:"),
    "gitlab": ("vendor.gitlab-ci", component(), "script:", "scripts:"),
    "gitlab-inputs": ("vendor.gitlab-ci", COMPONENT.split("\n---\n")[0], "inputs:", "input:"),
    "gitlab-include": ("vendor.gitlab-ci", RECIPES["gitlab-component"], "local:", "locale:"),
}


@pytest.mark.parametrize(("schema", "text", "key", "misspelt"), VALID.values(), ids=VALID)
def test_a_file_is_valid_for_its_reader(schema, text, key, misspelt, tmp_path):
    """By its published schema, which refuses a key that does not exist."""
    path = tmp_path / "file.yml"
    for written, exit_code in ((text, 0), (text.replace(key, misspelt), 1)):
        path.write_text(written, encoding="utf-8")
        done = CliRunner().invoke(check_jsonschema, ["--builtin-schema", schema, str(path)])
        assert done.exit_code == exit_code, done.output


def test_the_manifest_is_valid_for_kubernetes():
    """By the strict schemas of its API; a misspelt key and a number as text are refused."""
    schemas = json.loads((Path(__file__).parent / "kubernetes-1.36.schema.json").read_text())
    for text, valid in (
        (MANIFEST, True),
        (MANIFEST.replace("claimName:", "claim:"), False),
        (MANIFEST.replace("backoffLimit: 0", 'backoffLimit: "0"'), False),
    ):
        errors = [
            error.message
            for document in yaml.safe_load_all(text)
            for error in jsonschema.Draft202012Validator(schemas[document["kind"]]).iter_errors(
                document
            )
        ]
        assert (errors == []) is valid, errors


def test_every_mount_of_the_manifest_has_its_volume():
    _, job = yaml.safe_load_all(MANIFEST)
    pod = job["spec"]["template"]["spec"]
    mounts = [
        mount["name"]
        for container in (*pod["initContainers"], *pod["containers"])
        for mount in container["volumeMounts"]
    ]
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}


INSTRUCTIONS = {
    *("ARG", "FROM", "RUN", "ENV", "VOLUME", "WORKDIR", "CMD"),
    *("ADD", "COPY", "ENTRYPOINT", "EXPOSE", "HEALTHCHECK", "LABEL", "SHELL", "USER"),
}


def instructions(text: str) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile; ValueError for a line that is none."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    pairs = [tuple(line.split(None, 1)) for line in joined.split("\n")]
    for pair in pairs:
        if len(pair) != 2 or pair[0] not in INSTRUCTIONS:
            raise ValueError(f"no instruction: {' '.join(pair)}")
    return pairs


def test_the_dockerfile_is_one():
    """An image, a shell's syntax in every RUN, a JSON list as CMD; a wrong word is seen."""
    written = instructions(DOCKERFILE)
    assert next(word for word, _ in written if word != "ARG") == "FROM"
    for word, rest in written:
        if word == "RUN":
            subprocess.run(["bash", "-n", "-c", rest], check=True)
    assert json.loads(dict(written)["CMD"])[0] == "pytest"
    with pytest.raises(ValueError, match="no instruction: RNU"):
        instructions(DOCKERFILE.replace("RUN pip", "RNU pip"))


def test_extras_that_the_kit_installs_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = re.findall(r"pytest-llmperf\[(\w+)\]", ACTION + COMPONENT + DOCKERFILE + PAGE)
    assert len(named) >= 5
    assert set(named) <= set(project["optional-dependencies"])


def test_one_version_of_each_action_is_used_everywhere():
    """In the kit, the release, the recipes of docs/ci.md and the job that `llmperf init` writes."""
    written = job_text(
        Surroundings(
            model=Model(name="m", engine="transformers", url="", why=""),
            gpus=(),
            forge="github",
            is_package=True,
            lacking="",
        ),
        "tests",
    )
    recipes = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    used = re.findall(r"uses: (actions/\S+)@(v\d+)", ACTION + RELEASE + PAGE + recipes + written)
    versions: dict[str, set[str]] = {}
    for name, version in used:
        versions.setdefault(name, set()).add(version)
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}
    assert {"actions/checkout", "actions/setup-python", "actions/cache"} <= set(versions)


def test_the_page_names_every_input_of_the_action_with_its_default():
    for name, declared in yaml.safe_load(ACTION)["inputs"].items():
        (row,) = re.findall(rf"^\| `{name}` \| (.*?) \|", PAGE, re.MULTILINE)
        if row.startswith("`"):
            assert row == f"`{declared['default']}`"


@pytest.mark.parametrize(
    ("mode", "event", "words"),
    [
        ("history", "push", ""),
        ("history", "pull_request", "--llmperf-gate=throughput:5%"),
        ("side-by-side", "pull_request", "--llmperf-against=BASE --llmperf-against-limits="),
        ("side-by-side", "push", None),
        ("sides", "pull_request", None),
    ],
)
def test_the_action_asks_pytest_for_what_its_mode_says(forge, tmp_path, mode, event, words):
    """And ends with an error for a mode that is none, or that the event has no base for."""
    echo = tmp_path / "bin" / "pytest"
    echo.write_text('#!/bin/bash\necho "pytest $*"\n', encoding="utf-8")
    echo.chmod(0o755)
    base = forge.repo.git("rev-parse", "HEAD")
    forge.branch("10ms")
    code, said = forge.steps(
        [action_step("Measure")["run"]],
        **action_inputs(mode=mode, tests="test_it.py", options="--llmperf-gpus=2"),
        GITHUB_EVENT_NAME=event,
    )
    assert code == (2 if words is None else 0), said
    if words is None:
        assert "::error::" in said
    else:
        start = f"pytest test_it.py {words.replace('BASE', base)}"
        assert said.startswith(start), said
        assert "--llmperf-gpus=2 --junitxml=llmperf-results/junit.xml" in said


def test_the_action_gates_a_pull_request_and_comments(forge):
    """The first comment is new, the next one replaces it."""
    forge.record()
    forge.fresh()
    forge.branch("12ms")
    steps = [action_step(name)["run"] for name in ("Install", "Fetch the history", "Measure")]
    environ = action_inputs() | PULL_REQUEST
    code, said = forge.steps(steps, **environ)
    assert code == 1, said
    assert "Regression: throughput" in said
    assert "pip install -e . pytest-llmperf[transformers]" in forge.calls
    for earlier, request in (
        ("", "POST repos/team/service/issues/7/comments"),
        ("11", "PATCH repos/team/service/issues/comments/11"),
    ):
        code, said = forge.steps([action_step("Comment")["run"]], **environ, COMMENTS=earlier)
        assert code == 0, said
        assert f"--method {request} " in forge.calls.splitlines()[-1]
    comment = (forge.repo.path / "llmperf-results" / "comment.md").read_text(encoding="utf-8")
    assert comment.startswith("<!-- llmperf -->")


@pytest.mark.nightly
def test_the_gitlab_component_gates_a_merge_request_and_comments(forge):
    """Its history, reports and comment are there after a red job too."""
    forge.record()
    forge.fresh()
    forge.branch("12ms")
    job = yaml.safe_load(component())["llmperf"]
    environ = {"GATE": "--llmperf-gate=throughput:5%", "CI_MERGE_REQUEST_IID": "7"}
    code, said = forge.steps(["\n".join(job["script"])], **environ)
    assert code == 1, said
    assert "Regression: throughput" in said
    for path in job["artifacts"]["reports"].values():
        assert (forge.repo.path / path).is_file()
    comments = [{"id": 4, "body": "no"}, {"id": 5, "body": "<!-- llmperf --> old"}]
    for token, notes, request in (
        ("", comments, None),
        ("t", [], "--request POST"),
        ("t", comments, "--request PUT"),
    ):
        before = forge.calls
        code, said = forge.steps(
            job["after_script"],
            **environ,
            LLMPERF_COMMENT_TOKEN=token,
            COMMENTS=json.dumps(notes),
        )
        assert code == 0, said
        new = forge.calls.removeprefix(before)
        assert (request in new) if request else (new == "")
    assert new.strip().endswith("/merge_requests/7/notes/5")


@pytest.mark.nightly
def test_the_slurm_job_gates_and_adds_to_the_history(forge, tmp_path):
    """Its exit code is pytest's, and the session is in the file though it was red."""
    forge.record()
    forge.fresh()
    shutil.copy(forge.artifact, forge.repo.path / HISTORY)
    forge.branch("12ms")
    activate = tmp_path / "venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.touch()
    script = forge.repo.path / "slurm.sbatch"
    script.write_text(SLURM, encoding="utf-8")
    before = forge.artifact.read_text(encoding="utf-8").splitlines()
    code, said = forge.steps(
        ["bash slurm.sbatch test_it.py"],
        LLMPERF_VENV=str(tmp_path / "venv"),
        SLURM_JOB_ID="42",
        TMPDIR=str(tmp_path),
    )
    assert code == 1, said
    assert "Regression: throughput" in said
    assert "srun --ntasks=1 pytest test_it.py --llmperf-gate=throughput:5%" in forge.calls
    after = (forge.repo.path / HISTORY).read_text(encoding="utf-8").splitlines()
    assert after[: len(before)] == before
    assert len(after) > len(before)


def test_the_slurm_job_asks_for_what_sbatch_knows():
    """Its directives stand before the first command, each an option with a value or a flag."""
    head = SLURM[: SLURM.index("\nset -euo")]
    known = {"job-name", "nodes", "ntasks", "gres", "exclusive", "time", "output"}
    directives = re.findall(r"^#SBATCH --([\w-]+)(?:=\S+)?$", head, re.MULTILINE)
    assert len(directives) == SLURM.count("#SBATCH")
    assert set(directives) == known


@pytest.mark.parametrize(
    ("tag", "changelog", "error"),
    [
        ("v1.2.3", "## [1.2.3] - 2026-12-01\n", None),
        ("v1.2.4", "## [1.2.3] - 2026-12-01\n", "the tag is v1.2.4, pyproject.toml says 1.2.3"),
        ("v1.2.3", "## [Unreleased]\n", "CHANGELOG.md has no section"),
    ],
)
def test_a_release_is_the_version_that_it_says(tmp_path, tag, changelog, error):
    """Another tag, or a changelog without the version, ends the job before anything is built."""
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n', encoding="utf-8")
    (tmp_path / "CHANGELOG.md").write_text(changelog, encoding="utf-8")
    steps = yaml.safe_load(RELEASE)["jobs"]["build"]["steps"]
    (script,) = [step["run"] for step in steps if step.get("name", "").startswith("Compare")]
    done = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", script],
        check=False,
        cwd=tmp_path,
        env={"GITHUB_REF_NAME": tag, "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == (1 if error else 0), done.stderr
    if error:
        assert error in done.stdout
