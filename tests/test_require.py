"""A missing tool skips on a person's machine and fails under CI. What is tested: tests/require.py."""

import pytest

from tests import require as surroundings


@pytest.mark.parametrize(("in_ci", "outcome"), [(False, pytest.skip.Exception), (True, pytest.fail.Exception)])
def test_a_missing_tool(monkeypatch: pytest.MonkeyPatch, in_ci: bool, outcome: type[BaseException]) -> None:
    """The outcome depends on CI alone, and the reason names the tool."""
    monkeypatch.setattr(surroundings, "IN_CI", in_ci)
    with pytest.raises(outcome, match="no-such-tool"):
        surroundings.require("no-such-tool")


def test_xv6_is_nobodys_duty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without XV6 its tests are skipped even under CI; with a wrong one they fail."""
    monkeypatch.setattr(surroundings, "IN_CI", True)
    monkeypatch.delenv("XV6", raising=False)
    with pytest.raises(pytest.skip.Exception):
        surroundings.require_xv6("kernel")
    monkeypatch.setenv("XV6", "/nonexistent")
    with pytest.raises(pytest.fail.Exception):
        surroundings.require_xv6("kernel")
