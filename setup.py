"""Build the kernels where there is a compiler, and keep the build quiet; all else is named in pyproject.toml."""

import importlib.util
import warnings
from pathlib import Path
from types import ModuleType

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

# Setuptools says of every editable install whose folders have other names than its packages that a folder with the
# package's name may be imported in its stead. Here that is ecoflap/, whose links lead to the very same files.
warnings.filterwarnings("ignore", "Editable installation", UserWarning)

SOURCES = Path(__file__).parent / "ecoflap" / "kernels"  # the link, which an sdist has as a folder


def kernels() -> ModuleType:
    """Import kernels/build.py, which is a script and no part of the package."""
    spec = importlib.util.spec_from_file_location("ecoflap_build_kernels", SOURCES / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildKernels(build_ext):
    """Compiles the library of kernels. It is no module of Python's: ctypes opens it, whatever Python it is."""

    def get_ext_filename(self, fullname: str) -> str:
        """Give the library's own name, without that of a version of Python."""
        return str(Path(*fullname.split(".")[:-1]) / kernels().LIBRARY)

    def build_extension(self, ext: Extension) -> None:
        """Compile it; one that is optional is left out where that fails, with a warning."""
        build = kernels()
        try:
            build.build(Path(self.get_ext_fullpath(ext.name)).parent)
        except build.NotBuilt as error:
            raise CompileError(f"{error}\necoflap works without its kernels, but is not fast then") from error

    def get_outputs(self) -> list[str]:
        """Name what was built, if anything was."""
        return [name for name in super().get_outputs() if Path(name).is_file()]


class PlatformWheel(bdist_wheel):
    """Names the wheel after its platform and no version of Python's, or after none where there is no library in it."""

    def get_tag(self) -> tuple[str, str, str]:
        """Give the tag of any Python 3, and of the platform that the library is for."""
        built = [name for name in self.get_finalized_command("build_ext").get_outputs() if Path(name).is_file()]
        return "py3", "none", super().get_tag()[2] if built else "any"


setup(
    ext_modules=[Extension("ecoflap.core.kernel.kernels", sources=[], optional=True)],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": PlatformWheel},
)
