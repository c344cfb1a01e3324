"""Keep the build quiet; everything that is built is named in pyproject.toml."""

import warnings

from setuptools import setup

# Setuptools says of every editable install whose folders have other names than its packages that a folder with the
# package's name may be imported in its stead. Here that is ecoflap/, whose links lead to the very same files.
warnings.filterwarnings("ignore", "Editable installation", UserWarning)

setup()
