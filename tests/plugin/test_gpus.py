"""Tests that need GPUs, with a made-up inventory.

Which run, what they hold, and what they hold together.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.workers

H200 = "2x141GB:NVIDIA H200:9.0"

PLAIN = """
import pytest

@pytest.mark.llmperf_gpus(2)
def test_two(llmperf_devices):
    assert [gpu.torch_name for gpu in llmperf_devices] == ["cuda:0", "cuda:1"]
    assert llmperf_devices[1].selector == "GPU-simulated-1"

@pytest.mark.llmperf_gpus(2, name="A100")
def test_other_name():
    raise AssertionError

def test_none():
    pass
"""


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """Two GPUs that do not exist, and leases that no other test sees."""
    monkeypatch.setenv("LLMPERF_SIMULATED_GPUS", H200)
    monkeypatch.setenv("LLMPERF_SIMULATED_USAGE", str(tmp_path / "usage.json"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    return tmp_path


def test_any_test_holds_the_gpus_that_its_marker_names(pytester, run):
    """And is skipped where the pool has no such GPU.

    The reason is one line that says what is there.
    """
    pytester.makepyfile(PLAIN)
    result = run("-rs")
    result.assert_outcomes(passed=2, skipped=1)
    result.stdout.fnmatch_lines(
        [
            "llmperf: SIMULATED GPUs (2x141GB:NVIDIA H200:9.0); no model can be loaded on them",
            (
                "SKIPPED * llmperf-gpus: needs 2 GPUs with name 'A100', the pool has 2, "
                "of which 0 would do (2 of another name) *"
            ),
        ],
    )


def test_the_pool_is_what_the_option_says(pytester, run):
    """On the command line or in the ini file; a smaller pool skips more."""
    pytester.makepyfile(PLAIN)
    pytester.makeini("[pytest]\nllmperf_gpus = 0\n")
    run().assert_outcomes(passed=1, skipped=2)
    run("--llmperf-gpus=all").assert_outcomes(passed=2, skipped=1)


def test_a_pool_that_is_not_there_is_the_error_of_the_tests_that_need_it(pytester, run):
    """Tests that need no GPU run."""
    pytester.makepyfile(PLAIN)
    result = run("--llmperf-gpus=3")
    result.assert_outcomes(passed=1, errors=2)
    result.stdout.fnmatch_lines(
        ["*--llmperf-gpus=3: 3 GPUs asked for, 2 seen here: cuda:0 NVIDIA H200, 141 GB; cuda:1*"]
    )


def test_under_strict_a_skip_for_want_of_gpus_is_a_failure(pytester, run_both):
    """Of a test that is no llmperf test too; and machines read the counts from the report."""
    pytester.makepyfile(PLAIN)
    result = run_both("--llmperf-gpus=1", "--llmperf-strict", "--junit-xml=out.xml")
    result.assert_outcomes(passed=1, errors=2)
    result.stdout.fnmatch_lines(
        [
            (
                "*selected but skipped, and --llmperf-strict is on: "
                "llmperf-gpus: needs 2 GPUs, the pool has 1*"
            )
        ],
    )
    assert (
        "&quot;needs&quot;: 2, &quot;pool&quot;: 1, &quot;eligible&quot;: 1"
        in (pytester.path / "out.xml").read_text()
    )


def test_a_marker_that_cannot_be_used_is_its_tests_error(pytester, run, project):
    """Of a plain test and of an llmperf test."""
    pytester.makepyfile(
        test_plain="import pytest\n@pytest.mark.llmperf_gpus(memry=1)\ndef test_a(): pass\n"
    )
    project("@pytest.mark.llmperf_gpus(0)\ndef test_b(llm): pass\n")
    result = run()
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(
        ["*n=0): a whole number of at least 1*", "*'memry' is not known. Did you mean 'memory'*"]
    )


def test_the_marker_is_documented_and_the_fixture_without_it_says_so(pytester, run):
    run("--markers").stdout.fnmatch_lines(["@pytest.mark.llmperf_gpus(n=1 | min=, max=,*"])
    pytester.makepyfile("def test_a(llmperf_devices): pass")
    result = run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*this test leases no GPU. Add @pytest.mark.llmperf_gpus(1)*"])


def test_a_models_worker_is_given_a_leased_gpu_and_the_record_says_which(project, run, lines):
    """And that it was none: `simulated_gpus`.

    The test with two models of one plan each holds one GPU.
    """
    project(
        "def test_a(llm): llm.run(WORK)\n"
        "@pytest.mark.llmperf_gpus(2)\ndef test_b(llm): llm.run(WORK)\n"
    )
    run("--llmperf-gpus=1,", "--llmperf-json=out.jsonl", "-rs").assert_outcomes(passed=1, skipped=1)
    (row,) = lines()
    facts = row["environment"]["facts"]
    assert (facts["leased_gpus"], facts["simulated_gpus"]) == ("cuda:1", H200)


def test_on_the_cpu_a_test_that_needs_gpus_is_skipped(project, run):
    project(
        "@pytest.mark.llmperf_gpus(2)\ndef test_a(llm): llm.run(WORK)\n"
        "def test_b(llm): llm.run(WORK)\n"
    )
    result = run("--llmperf-device=cpu", "-rs")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(
        [
            (
                "*llmperf-gpus: needs 2 GPUs, and --llmperf-device=cpu or device='cpu' "
                "keeps its models on the CPU*"
            )
        ],
    )


MEETING = """
import pytest, time
from pathlib import Path

@pytest.mark.parametrize("me", range(4))
@pytest.mark.llmperf_gpus(1)
def test_meet(me, llmperf_devices):
    (gpu,) = llmperf_devices
    inside = Path("inside-" + gpu.uuid)
    inside.touch(exist_ok=False)
    Path(f"was-{{gpu.index}}").touch()
    end = time.monotonic() + 20
    while not {both} and time.monotonic() < end:
        time.sleep(0.01)
    met = {both}
    inside.unlink()
    assert met
"""


def test_two_processes_share_two_gpus_and_each_test_has_its_own(pytester, run):
    """`-n 2 --llmperf-gpus=2`: two tests of one GPU are at work at once."""
    pytester.makepyfile(MEETING.format(both="(Path('was-0').exists() and Path('was-1').exists())"))
    run("-n", "2", "--llmperf-gpus=2").assert_outcomes(passed=4)


def test_two_processes_with_one_gpu_take_turns(pytester, run):
    """The file that says "inside" is never there when the next one comes."""
    pytester.makepyfile(MEETING.format(both="True"))
    run("-n", "2", "--llmperf-gpus=1").assert_outcomes(passed=4)


@pytest.mark.nightly
def test_a_test_of_two_gpus_waits_for_both(pytester, run):
    """While tests of one GPU come and go."""
    both = (
        "@pytest.mark.llmperf_gpus(2)\ndef test_both(llmperf_devices):\n"
        "    assert not list(Path().glob('inside-*'))\n"
    )
    pytester.makepyfile(MEETING.format(both="True") + both)
    run("-n", "2", "--llmperf-gpus=2").assert_outcomes(passed=5)


SHARES = """
import pytest
from pathlib import Path
from pytest_llmperf.devices.leases import lease
from pytest_llmperf.units import GB


@pytest.mark.llmperf_gpus(1, memory=100 * GB)
def test_share(llmperf_devices):
    key = llmperf_devices[0].uuid
    with lease({key: 0.25}, timeout_s=0):
        pass
    with pytest.raises(Exception, match="in use"):
        lease({key: 0.5}, timeout_s=0)
"""


def test_a_test_that_says_what_memory_it_takes_shares_its_gpu(pytester, run):
    """100 of 141 GB: a quarter is left to others, a half is not."""
    pytester.makepyfile(SHARES)
    run().assert_outcomes(passed=1)


@pytest.fixture
def stranger():
    """A process that this session did not start...

    as far as the session can tell: it is not below it.
    """
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    yield process
    process.kill()
    process.wait()


def test_a_foreign_process_on_the_gpu_makes_the_run_invalid(project, run, machine, stranger):
    """It is named, and waiting for it to leave has a limit. The other GPU is free of it."""
    (machine / "usage.json").write_text(json.dumps({"GPU-simulated-0": {str(stranger.pid): 10**9}}))
    project("def test_a(llm): llm.run(WORK)\ndef test_b(llm): llm.run(WORK)\n")
    result = run("--llmperf-wait=1", "--llmperf-gpus=1")
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(
        [
            (
                f"E *cuda:0 is used by process {stranger.pid} (*, 1.0 GB): "
                "not of this session*within 1 s*"
            )
        ]
    )
    result.stdout.fnmatch_lines(["INVALID 2 tests: *"])
    run("--llmperf-wait=1", "--llmperf-gpus=1,").assert_outcomes(passed=2)


def test_the_memory_that_a_worker_leaves_on_a_gpu_is_its_tests_error_and_the_next_one_runs(
    project, run, machine, pytester
):
    """Named in bytes; the next test takes the device as it found it."""
    pytester.makeconftest(
        "import pytest_llmperf.workers.memory_check as r\nr.RETURN_LIMIT_S = 0.2\n"
    )
    project(
        "import json, os\n"
        "def test_a(llm):\n"
        "    llm.run(WORK)\n"
        "    usage = json.dumps({'GPU-simulated-0': {'4194305': 5 * 10**9}})\n"
        "    open(os.environ['LLMPERF_SIMULATED_USAGE'], 'w').write(usage)\n"
        "@pytest.mark.parametrize('llm', ['bf16'], indirect=True)\n"
        "def test_b(llm): llm.run(WORK)\n",
    )
    result = run("--llmperf-gpus=1")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_a*",
            "*cuda:0: 5.00 GB (5000000000 bytes) more than before it was used*",
        ],
    )


def test_the_plan_says_what_would_run_where_and_for_how_long(project, run, pytester):
    """As a table and as JSON.

    Nothing is loaded, no history is made, and later it has the minutes of the last run.
    """
    project(
        "def test_a(llm): llm.run(WORK)\n"
        "@pytest.mark.llmperf_gpus(2)\ndef test_b(llm): llm.run(WORK)\n"
    )
    pytester.makepyfile(test_plain=PLAIN)
    result = run("--llmperf-plan-json=plan.json")
    result.stdout.fnmatch_lines(
        ["3 tests would run, 1 model load, 40 s of sampling at most (1 not known), 60 s *"]
    )
    assert not (pytester.path / ".llmperf").exists()
    plan = json.loads((pytester.path / "plan.json").read_text())
    assert [
        (row["test"].partition("::")[2], row["status"], row["n_gpus"]) for row in plan["tests"]
    ] == [
        ("test_a", "run", 1),
        ("test_b", "run", 2),
        ("test_two", "run", 2),
        ("test_other_name", "skip", 0),
    ]
    assert plan["tests"][1]["device_s"] == 2 * plan["tests"][1]["planned_s"] == 40
    run("-k", "test_a").assert_outcomes(passed=1, deselected=4)
    run("--llmperf-plan-json=plan.json", "-k", "test_a")
    (row,) = json.loads((pytester.path / "plan.json").read_text())["tests"]
    assert 0 < row["expected_s"] == row["device_s"]
