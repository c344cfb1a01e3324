"""``python -m ecoflap`` is the ``ecoflap`` command."""

from ecoflap.core.cli.main import main

main()
