"""Read by every Python interpreter of a job at its start: ``bcos_kernels run`` puts this folder on PYTHONPATH.

Nothing heavy is imported here. A process that never imports torch pays for one look at the environment, and the
``sitecustomize`` that the interpreter would have read without this one is read as well. The syntax is that of every
Python, because a job may start others.
"""

import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))
_PACKAGE = os.path.dirname(_HERE)


class _Watch:
    """Calls ``action`` once, when torch has been imported, and this package too if that was what imported it."""

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
    """Finds this package where it is: the first process may have found it by its working directory alone."""

    def find_spec(self, name, path=None, target=None):
        if name != "bcos_kernels":
            return None
        from importlib.machinery import PathFinder

        return PathFinder.find_spec(name, [os.path.dirname(_PACKAGE)])


def _join(job):
    """``job`` is the first process, its environment (``sys.prefix``) and the folder of the tallies."""
    first, prefix, folder = job.split(os.pathsep, 2)

    def accelerate():
        try:
            from bcos_kernels.job import join
        except ImportError as error:
            if error.name not in ("bcos_kernels", "bcos_kernels.job"):
                raise
            return  # another environment, without this package or with another version of it
        join(folder)

    def tell():
        if str(os.getpid()) != first:  # a fork of it
            return
        # In an interpreter of its own: an import in this one, so late, can make a KeyboardInterrupt exit with status 1.
        command = [sys.executable, "-I", os.path.join(_PACKAGE, "tally.py"), folder, first]
        try:
            sys.stdout.flush()
            os.waitpid(os.posix_spawn(sys.executable, command, os.environ), 0)
        except (AttributeError, OSError, ValueError):
            return  # the script has closed its streams, or waits for all of its children itself

    if prefix == sys.prefix:
        sys.meta_path.insert(0, _PackageFinder())
    sys.meta_path.insert(0, _Watch(accelerate))
    if str(os.getpid()) == first:
        import atexit

        atexit.register(tell)  # the first to be registered is the last to run


def _read_the_next_sitecustomize():
    """Raises the ImportError that the interpreter expects where there is no other."""
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
