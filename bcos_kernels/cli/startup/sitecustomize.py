"""Read by every Python interpreter of a job at its start: ``bcos_kernels run`` puts this folder on PYTHONPATH.

Nothing heavy is imported here: a process that never imports torch only pays for one look at the environment. The
``sitecustomize`` that the interpreter would have read without this one is read as well. The syntax is valid in every
version of Python, because a job may start others.
"""

import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))
_PACKAGE = os.path.dirname(os.path.dirname(_HERE))


class _Watch:
    """Calls ``action`` once, after the import of torch, and after that of this package where it imports torch."""

    def __init__(self, action):
        self.action = action
        self.searched = set()
        self.executed = set()

    def find_spec(self, name, path=None, target=None):
        if name not in ("torch", "bcos_kernels") or name in self.searched or self.action is None:
            return None
        import importlib.util

        self.searched.add(name)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.searched.remove(name)
        if spec is not None and spec.loader is not None:
            self._wrap(spec.loader, name)
        return spec

    def _wrap(self, loader, name):
        def exec_module(module):
            del loader.exec_module
            self.executed.add(name)
            try:
                loader.exec_module(module)
            finally:
                self.executed.remove(name)
            if "torch" in sys.modules and not self.executed and self.action is not None:
                action, self.action = self.action, None
                action()

        loader.exec_module = exec_module


class _PackageFinder:
    """Finds this package in its folder, which the first process may have found through its working directory alone."""

    def find_spec(self, name, path=None, target=None):
        if name != "bcos_kernels":
            return None
        from importlib.machinery import PathFinder

        return PathFinder.find_spec(name, [os.path.dirname(_PACKAGE)])


def _join(job):
    """Joins a job; ``job`` is its first process, that process's ``sys.prefix``, and the folder of the tallies."""
    first, prefix, folder = job.split(os.pathsep, 2)

    def accelerate():
        try:
            from bcos_kernels.cli.job import join
        except ImportError as error:
            if error.name not in ("bcos_kernels", "bcos_kernels.cli", "bcos_kernels.cli.job"):
                raise
            return  # another environment, without this package or with another version of it
        join(folder)

    def tell():
        if str(os.getpid()) != first:  # a process that was forked from the first one
            return
        # In an interpreter of its own: so late an import in this one can turn a KeyboardInterrupt into exit status 1.
        command = [sys.executable, "-I", os.path.join(_PACKAGE, "tally.py"), folder, first]
        try:
            sys.stdout.flush()
            os.waitpid(os.posix_spawn(sys.executable, command, os.environ), 0)
        except (AttributeError, OSError, ValueError):
            return  # the script has closed its streams, or has waited for all of its children itself

    if prefix == sys.prefix:
        sys.meta_path.insert(0, _PackageFinder())
    sys.meta_path.insert(0, _Watch(accelerate))
    if str(os.getpid()) == first:
        import atexit

        atexit.register(tell)  # what is registered first runs last


def _read_the_next_sitecustomize():
    """Raises ImportError where there is no other, as the interpreter expects."""
    places = [i for i, path in enumerate(sys.path) if os.path.abspath(path) == _HERE]
    for i in reversed(places):
        del sys.path[i]
    sys.modules["bcos_kernels_startup"] = sys.modules.pop("sitecustomize")
    try:
        import sitecustomize  # noqa: F401
    finally:
        for i in places:
            sys.path.insert(i, _HERE)


if os.environ.get("BCOS_KERNELS_RUN") and sys.version_info >= (3, 10):
    _join(os.environ["BCOS_KERNELS_RUN"])
_read_the_next_sitecustomize()
