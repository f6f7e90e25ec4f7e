"""Import the fixtures for bases and adapters."""

from fixtures.bases import adapter_folder, bases, copied, loaded
