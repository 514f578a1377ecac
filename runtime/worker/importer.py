"""Imports a function's own modules from the sources that the host sent, not from the files on disk.

Called by `handler.py` before the handler runs. Every module of the function is known to Python by its full
name, `functions.<space>.<…>`; `import helper` gives the very module that `from . import helper` gives. How
names are resolved must agree with `runtime/snapshots.py`, which collected the sources.
"""

from __future__ import annotations

import io
import linecache
import os
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module, util
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    ModuleSpec,
    PathFinder,
    SourceFileLoader,
)
from itertools import takewhile
from types import ModuleType
from typing import Any

#: The newest module when this one is imported, in the base zygote, before anything that is not ours or Python's.
BEFORE = next(name for name in reversed(sys.modules) if name != __name__)


class LocalImporter:
    """Finder for the modules of one function, to be put into sys.meta_path once by `install`.

    `modules` are (full name, path, code, package, late), the entry first; code is bytes, or their Latin-1
    decoding. By its short name a module wins over an installed one of that name, unless it is `late`, or a
    folder without `__init__.py`; the standard library always wins. The entry is never imported by its short
    name: that is left to an installed package, as a function file often has the name of what it wraps.
    """

    def __init__(self, modules: Iterable[Sequence[Any]], *, space: str | None = None, name: str | None = None) -> None:
        self._sources: dict[str, Source] = {}
        self._late: set[str] = set()
        for full_name, path, code, package, late in modules:
            data = code.encode("latin-1") if isinstance(code, str) else bytes(code)
            self._sources[full_name] = Source(full_name, path, data, package)
            if late:
                self._late.add(full_name)
        self.entry = next(iter(self._sources))
        parts = self.entry.split(".")
        self.home = ".".join(parts[:2])
        self.label = f"{space or parts[1]}/{name or parts[2]}"
        self._own_package, _, self._own_stem = self.entry.rpartition(".")
        self._folders = self._bare_packages()
        self._search: tuple[str, ...] = ()

    def install(self, search: Sequence[str]) -> None:
        """Serve imports from now on, and put the folders in `search` at the end of sys.path."""
        self._search = tuple(search)
        self._forget_preloaded()
        sys.meta_path.insert(0, self)
        sys.path_hooks.insert(0, self._find_uncached)
        sys.path += [folder for folder in search if folder not in sys.path]

    def load_entry(self) -> ModuleType:
        """Run the handler file, as the module `functions.<space>.<name>`; raises what it raises."""
        return import_module(self.entry)

    def extras(self, below: Sequence[str]) -> dict[str, str]:
        """The files below these folders that were imported from disk: path → SHA-256 of its content now.

        Empty for a file that is gone. Installed packages there, as in a `.venv`, do not count.
        """
        sent = {source.path for source in self._sources.values()}
        found = {}
        for name in imported_since():
            module = sys.modules.get(name)
            path = getattr(module, "__file__", None)
            if isinstance(path, str) and path not in sent and any(_is_own(path, folder) for folder in below):
                found[path] = _digest(path)
        return found

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """What importlib asks every finder: how to import `name`; None leaves it to the others."""
        if name in self._sources:
            return self._sources[name].spec()
        if name in self._folders:
            return Bare(name, self._folders[name]).spec()
        parent, _, child = name.rpartition(".")
        if not parent:
            return self._find_short(name)
        full_parent = getattr(sys.modules.get(parent), "__name__", parent)
        if full_parent == parent or not f"{full_parent}.".startswith(f"{self.home}."):
            return None
        # Of a package that was imported by its short name.
        full_name = f"{full_parent}.{child}"
        return Alias(full_name).spec(name) if util.find_spec(full_name) is not None else None

    def _forget_preloaded(self) -> None:
        """What the function has under the name of an installed module is the function's, imported already or not."""
        places = (self._own_package, self.home)
        names = {name.rpartition(".")[2] for name in self._sources if name.rpartition(".")[0] in places}
        for name in names - sys.stdlib_module_names - {self._own_stem}:
            if name not in sys.modules:
                continue
            full_name = next(full for place in places if (full := f"{place}.{name}") in self._sources)
            if full_name not in self._late:
                for known in [known for known in sys.modules if f"{known}.".startswith(f"{name}.")]:
                    del sys.modules[known]

    def _find_uncached(self, folder: str) -> FileFinder:
        """What finds modules that were not sent in the function's folders: without bytecode.

        Bytecode is taken for current when the file is as long as it was and was saved in the same second.
        """
        if not any(_is_own(os.path.join(folder, ""), place) for place in self._search):
            raise ImportError
        return FileFinder(folder, (ExtensionFileLoader, EXTENSION_SUFFIXES), (Uncached, [".py"]))

    def _find_short(self, name: str) -> ModuleSpec | None:
        if name in sys.stdlib_module_names:
            return None
        if name == self._own_stem:
            return self._installed(name) or self._refuse(name)
        places = [f"{place}.{name}" for place in (self._own_package, self.home)]
        full_name = next((place for place in places if place in self._sources), None)
        bare = next((place for place in places if place in self._folders), None)
        if full_name in self._late or full_name is None:
            full_name = full_name or bare
            installed = self._installed(name) if full_name else None
            if installed is not None and installed.loader is not None:
                return installed
        return Alias(full_name).spec(name) if full_name else None

    def _installed(self, name: str) -> ModuleSpec | None:
        """How `name` would be imported if the function's folders were not on sys.path."""
        elsewhere = [entry for entry in sys.path if os.path.abspath(entry) not in self._search]
        for finder in sys.meta_path:
            if finder is self:
                continue
            spec = finder.find_spec(name, elsewhere if finder is PathFinder else None)
            if spec is not None:
                return spec
        return None

    def _refuse(self, name: str) -> ModuleSpec | None:
        raise ModuleNotFoundError(
            f"No module named {name!r}; the file of the function {self.label} has this name, "
            "but does not count as the module",
            name=name,
        )

    def _bare_packages(self) -> dict[str, str | None]:
        """The packages that are only folders: parents without a source of modules that have one."""
        folders: dict[str, str | None] = {}
        for source in self._sources.values():
            name, folder = source.name, source.path
            if source.package:
                folder = os.path.dirname(folder)
            while "." in name:
                name, folder = name.rpartition(".")[0], os.path.dirname(folder)
                if name not in self._sources:
                    folders[name] = folder if "." in name else None  # `functions` leads to no other space
        return folders


class Uncached(SourceFileLoader):
    """Runs a module from its file, and neither reads nor writes bytecode."""

    def path_stats(self, path: str) -> dict[str, Any]:
        raise OSError("no bytecode is kept of this file")


class Source(Uncached):
    """Runs one module from its source in memory; to all who ask it is that file.

    Fills linecache, so that tracebacks show the lines that run even after
    the file was changed.
    """

    def __init__(self, name: str, path: str, code: bytes, package: bool) -> None:
        super().__init__(name, path)
        self.package = package
        self._code = code

    def spec(self) -> ModuleSpec:
        spec = ModuleSpec(self.name, self, origin=self.path, is_package=self.package)
        spec.has_location = True
        if self.package:
            spec.submodule_search_locations = [os.path.dirname(self.path)]
        return spec

    # exec_module is the inherited one: its frames are importlib's, which are left out of tracebacks.

    def create_module(self, spec: ModuleSpec) -> None:
        try:
            text = self.get_source(self.name)
        except (SyntaxError, UnicodeError):  # running it will say so
            return
        lines = io.StringIO(text).readlines()
        linecache.cache[self.path] = (len(self._code), None, lines, self.path)

    def get_data(self, path: str) -> bytes:
        return self._code if path == self.path else super().get_data(path)

    def is_package(self, fullname: str) -> bool:
        return self.package


class Bare:
    """A package that is only a folder, as those without `__init__.py` are."""

    def __init__(self, name: str, folder: str | None) -> None:
        self.name = name
        self.folder = folder

    def spec(self) -> ModuleSpec:
        spec = ModuleSpec(self.name, self, is_package=True)  # type: ignore[arg-type]
        spec.submodule_search_locations = [] if self.folder is None else [self.folder]
        return spec

    def create_module(self, spec: ModuleSpec) -> None:
        """Leave that to importlib."""

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""

    def is_package(self, name: str) -> bool:
        return True

    def get_resource_reader(self, name: str) -> object:
        """For importlib.resources: the files in the folder."""
        from importlib.readers import FileReader

        return FileReader(SourceFileLoader(name, os.path.join(self.folder or "", "__init__.py")))


class Alias:
    """Gives the module `full_name` for another name."""

    def __init__(self, full_name: str) -> None:
        self.full_name = full_name
        self._spec: ModuleSpec | None = None

    def spec(self, name: str) -> ModuleSpec:
        return ModuleSpec(name, self)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(self.full_name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It has run already; importlib has only put the alias's spec into it."""
        module.__spec__ = self._spec


def _is_own(path: str, folder: str) -> bool:
    """Whether the file is in the folder and not in an environment that is there, too."""
    if not path.startswith(folder + os.sep):
        return False
    parts = path[len(folder) + 1 :].split(os.sep)
    return "site-packages" not in parts and not any(part.startswith(".") for part in parts)


def imported_since(before: str = BEFORE) -> list[str]:
    """The modules imported after this one, newest first; all where that is unknown. Those before are not touched."""
    try:
        return list(takewhile(lambda name: name != before, reversed(sys.modules)))
    except RuntimeError:  # a thread is importing something
        return list(sys.modules)


def _digest(path: str) -> str:
    try:
        with open(path, "rb") as file:
            import hashlib  # it brings in OpenSSL, which is large: most functions have no such files

            return hashlib.sha256(file.read()).hexdigest()
    except OSError:
        return ""
