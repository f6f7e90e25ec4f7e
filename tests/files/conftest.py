"""Import the fixture for a tiny base."""

from fixtures.tiny_base import tiny_base
