"""A tiny base in a folder, for the tests here."""

from fixtures.tiny_base import tiny_base
