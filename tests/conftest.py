"""What holds for all tests: how hypothesis runs here. Programs and guests that a test needs: tests/require.py."""

from hypothesis import settings

# A machine of two busy cores makes any one example slow now and then: time limits belong to pytest-timeout. The parent is the profile
# that hypothesis chose by itself, which under CI is deterministic.
settings.register_profile("vmm", parent=settings(), deadline=None)
settings.load_profile("vmm")
