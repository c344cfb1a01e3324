"""``python -m ecoflap`` is the ``ecoflap`` command."""

import os
import sys

# ``python -m`` looks for modules in the working directory first, which may be a folder of somebody else's.
if not sys.flags.safe_path and sys.path and os.path.abspath(sys.path[0]) == os.getcwd():
    del sys.path[0]

from ecoflap.core.cli.main import command

command()
