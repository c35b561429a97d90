"""What ``import palimpsest`` offers."""

import pkgutil
import subprocess
import sys
from types import ModuleType

import palimpsest


def test_public_names_are_sorted_and_there() -> None:
    assert list(palimpsest.__all__) == sorted(palimpsest.__all__)
    assert len(set(palimpsest.__all__)) == len(palimpsest.__all__)
    for name in palimpsest.__all__:
        assert getattr(palimpsest, name, None) is not None, name


def test_nothing_else_is_public() -> None:
    public = {
        name
        for name, value in vars(palimpsest).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert public <= set(palimpsest.__all__)


def test_a_public_name_is_never_a_module() -> None:
    """``palimpsest.audit`` is the function, whatever is imported first: no file is called so."""
    assert not {module.name for module in pkgutil.iter_modules(palimpsest.__path__)} & set(palimpsest.__all__)
    assert not [name for name in palimpsest.__all__ if isinstance(getattr(palimpsest, name), ModuleType)]


def test_the_front_door_is_light() -> None:
    """``palimpsest --help``, ``list`` and ``report`` answer at once: they need neither torch nor diffusers."""
    heavy = ("torch", "diffusers", "transformers", "matplotlib", "scipy.stats")
    code = f"import sys, palimpsest.cli, palimpsest.report; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
