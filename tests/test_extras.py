"""What is installed: the core works without the extras and says which one is missing; the wheel is whole."""

import configparser
import pathlib
import re
import subprocess
import sys

import pytest

from otbr_jax import InputError
from otbr_jax.extras import EXTRAS, needed

ROOT = pathlib.Path(__file__).resolve().parent.parent
SETUP = ROOT / "setup.cfg"

CORE_ONLY = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1:]:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
import otbr_jax.defenses.registry, otbr_jax.attacks.registry, otbr_jax.models.registry
import otbr_jax.data.sources, otbr_jax.interop.tensor_files, otbr_jax.runs.run
try:
    import otbr_jax.studies.repair
except otbr_jax.InputError as error:
    print(error)
"""


def test_the_extras_are_those_of_the_installation():
    setup = configparser.ConfigParser()
    setup.read(SETUP)
    for package, extra in EXTRAS.values():
        names = re.findall(r"^[\w.-]+", setup["options.extras_require"][extra], re.MULTILINE)
        assert package in names
        assert package not in re.findall(r"^[\w.-]+", setup["options"]["install_requires"], re.MULTILINE)


def test_a_missing_package_ends_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(InputError, match=r"^reading images needs the package pillow: pip install -e '.\[data\]'$"):
        needed("PIL.Image", what="reading images")


def test_the_core_needs_none_of_them():
    done = subprocess.run([sys.executable, "-c", CORE_ONLY, *EXTRAS], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "a report needs the package matplotlib: pip install -e '.[report]'\n"


def test_the_wheel_holds_every_folder_of_the_library_and_its_files():
    modules = [path for path in (ROOT / "otbr_jax").rglob("*.py") if "__pycache__" not in path.parts]
    assert all((path.parent / "__init__.py").is_file() for path in modules)
    setup = configparser.ConfigParser()
    setup.read(SETUP)
    assert setup["options.packages.find"]["include"] == "otbr_jax*"
    patterns = setup["options.package_data"]["otbr_jax"].split()
    listed = {path for pattern in patterns for path in (ROOT / "otbr_jax").glob(pattern)}
    files = {path for path in (ROOT / "otbr_jax").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert listed == files
