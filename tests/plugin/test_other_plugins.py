"""Living with other plugins."""

from __future__ import annotations


def test_a_test_that_another_plugin_adds_late_is_declared_when_it_runs(project, pytester, run):
    """Items that appear after everybody's collection hooks (as rerun and repeat plugins make them) are measured too."""
    project("def test_speed(llm):\n    llm.run(WORK)\n")
    pytester.makeconftest("""
        import pytest

        @pytest.hookimpl(wrapper=True)
        def pytest_collection(session):
            result = yield
            item = session.items[0]
            session.items.append(type(item).from_parent(item.parent, name=item.name + "-again", callobj=item.obj))
            return result
    """)
    run("-v").assert_outcomes(passed=2)
