"""Bases and adapters in folders, for the tests here."""

from fixtures.bases import adapter_folder, bases, copied, loaded
