"""Fixtures shared by the tests of the stages."""

from tests.tasks.screening_workspace import screened  # noqa: F401
