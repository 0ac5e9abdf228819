"""Fingerprints of code, by which a published layer is recognised.

A fingerprint is a hash of the syntax trees of a class's forward and of everything that it calls on ``self``, on
``super()`` and by name. Comments, docstrings, annotations and formatting do not count; what a global name stands for
does. The code that runs is compared with the source that was hashed. So a file that was edited after its import, or a
function behind a decorator, is never mistaken for the code in the file.
"""

from __future__ import annotations
import __future__ as future

import ast
import builtins
import functools
import hashlib
import inspect
import itertools
import math
import operator
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MethodDescriptorType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any

from torch.nn import functional

__all__ = ["Fingerprint", "Unreadable", "of"]


class Unreadable(Exception):
    """The code of a class cannot be identified: the message says which part of it, and why."""

    methods: tuple[tuple[type, str, object], ...] = ()
    names: tuple[tuple[object, str, object], ...] = ()
    """What was read before the failure, as in a :class:`Fingerprint`, including the part that failed."""


@dataclass(frozen=True)
class Fingerprint:
    """The code that decides what one class computes: its hash, and the objects that were hashed."""

    digest: str
    """16 hexadecimal digits; ``"torch"`` where every method is PyTorch's own."""
    methods: tuple[tuple[type, str, object], ...]
    """``(class, name, value)`` of every method and class attribute that was hashed; the class is its definer."""
    reads: frozenset[str]
    """Attributes of ``self`` that the code reads and the class does not define."""
    names: tuple[tuple[object, str, object], ...]
    """``(module or function, name, value)``: the globals that the code uses, the attributes that it reads from modules,
    and the compiled code of each function."""


def of(mro: tuple[type, ...], roots: tuple[str, ...] = ("forward",), within: tuple[object, ...] = ()) -> Fingerprint:
    """The fingerprint of the class whose method resolution order is ``mro``.

    ``within`` are the classes and functions whose code names this class and is being read.

    Raises:
        Unreadable: a part of the code has no source, is not a plain function, or uses an object that cannot be named.
    """
    reader = _Reader(mro, within)
    try:
        for root in roots:
            reader.follow(root, mro)
    except Unreadable as error:
        error.methods, error.names = tuple(reader.methods), tuple(reader.names)
        raise
    texts = sorted(f"{label} = {text}" for label, text in reader.texts.items())
    own = any(not text.startswith("torch:") for text in reader.texts.values())
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16] if own else "torch"
    return Fingerprint(digest, tuple(reader.methods), frozenset(reader.reads), tuple(reader.names))


class _Reader:
    """Follows the code of one class from method to method and keeps the text of each."""

    def __init__(self, mro: tuple[type, ...], within: tuple[object, ...]) -> None:
        self.mro = mro
        self.within = (*within, mro[0])
        self.texts: dict[str, str] = {}
        self.methods: list[tuple[type, str, object]] = []
        self.names: list[tuple[object, str, object]] = []
        self.reads: set[str] = set()

    def follow(self, name: str, mro: tuple[type, ...]) -> None:
        """Reads the attribute ``name`` of the class; behind ``super()``, ``mro`` is the rest of the whole order."""
        owner = next((c for c in mro if name in vars(c)), None)
        if owner is None:
            self.reads.add(name)
            return
        definers = [c for c in self.mro if name in vars(c)]
        label = f"{name}/{definers.index(owner)}"
        if label in self.texts:
            return
        value = vars(owner)[name]
        self.methods.append((owner, name, getattr(owner, name)))
        if _is_of_torch(owner):
            self.texts[label] = _torch_text(owner, name, value)
            self._within_torch(value)
            return
        self.texts[label] = ""  # ends the recursion of a method that calls itself
        self.texts[label] = self._text(f"{owner.__name__}.{name}", value, owner)

    def _within_torch(self, method) -> None:
        """Reads what a method of PyTorch calls, because a subclass may override it or a user may have replaced it."""
        if not isinstance(method, FunctionType):
            return
        self.names.append((method, "__code__", method.__code__))
        for name in method.__code__.co_names:
            owner = next((c for c in self.mro if name in vars(c)), None)
            if owner is None:
                if name in vars(functional):
                    self._take(functional, name)
            elif not _is_of_torch(owner):
                self.follow(name, self.mro)
            elif not any(entry[:2] == (owner, name) for entry in self.methods):
                self.methods.append((owner, name, getattr(owner, name)))
                _torch_text(owner, name, vars(owner)[name])
                self._within_torch(vars(owner)[name])

    def _take(self, module: ModuleType, name: str) -> object:
        """The value of a name in a module of PyTorch, NumPy or einops, which must be that package's own object."""
        value = vars(module)[name]
        self.names.append((module, name, value))
        own = isinstance(value, ModuleType) or _is_own_of(module.__name__.partition(".")[0], value)
        if not own and not (module is math and name == "pi" and value == 3.141592653589793):
            raise Unreadable(f"{module.__name__}.{name} was replaced")
        return value

    def _text(self, title: str, value, owner: type | None) -> str:
        if isinstance(value, property):
            value = value.fget
        elif isinstance(value, (staticmethod, classmethod)):
            value = value.__func__
        elif _is_constant(value):
            return repr(value)
        if not isinstance(value, FunctionType):
            raise Unreadable(f"{title} is of type {type(value).__name__}, not a plain function")
        self.names.append((value, "__code__", value.__code__))
        definition = _definition(title, value)
        if "__class__" in value.__code__.co_freevars and owner is not _class_cell(value):
            raise Unreadable(f"{title} belongs to another class, so its super() starts there")
        names = []
        for name, found in _globals(title, value, definition):
            self.names.append((_module(value), name, found))
            names.append(f"{name}={self._named(title, name, found)}")
        for node in _in_body(definition):
            if isinstance(node, ast.Attribute):
                self._of_module(node, value.__globals__)
        first = definition.args.args[0].arg if definition.args.args and owner is not None else None
        for node in ast.walk(definition):
            if isinstance(node, ast.Attribute) and owner is not None:
                if isinstance(node.value, ast.Name) and node.value.id == first:
                    self.follow(node.attr, self.mro)
                elif _is_super(node.value):
                    self.follow(node.attr, self.mro[self.mro.index(owner) + 1 :])
        return f"{_written(definition)} where {', '.join(names)}"

    def _of_module(self, node: ast.expr, names: dict[str, object]) -> object:
        """The object that a dotted name stands for, else None; attributes of modules are recorded on the way."""
        if isinstance(node, ast.Name):
            return names.get(node.id)
        if isinstance(node, ast.Attribute):
            base = self._of_module(node.value, names)
            if isinstance(base, ModuleType) and node.attr in vars(base):
                return self._take(base, node.attr)
        return None

    def _named(self, title: str, name: str, value) -> str:
        """What a global name stands for, as a text that is the same for every copy of the code."""
        if isinstance(value, ModuleType):
            if sys.modules.get(value.__name__) is not value:
                raise Unreadable(f"{title} uses {name}, which is not the imported module {value.__name__}")
            return value.__name__
        if _is_constant(value):
            return repr(value)
        module = getattr(value, "__module__", None) or ""
        home, known = module.partition(".")[0], isinstance(value, (type, FunctionType, BuiltinFunctionType))
        if known and home in ("torch", "numpy", "einops", "math", "builtins") and _is_own_of(home, value):
            return f"{module}.{value.__qualname__}"
        if any(value is other for other in self.within):  # as super(Name, self) does, in place of super()
            raise Unreadable(f"{title} names {name}, of which it is itself a part")
        if isinstance(value, FunctionType):
            outside, self.within = self.within, (*self.within, value)
            text = self._text(name, value, None)
            self.within = outside
            return f"({text})"
        if isinstance(value, type):
            mro = value.__mro__
            roots = tuple(r for r in _ROOTS if _is_own(mro, r))
            if not roots:
                raise Unreadable(f"{title} uses the class {value.__name__}, which has no forward that could be read")
            inner = of(mro, roots, self.within)
            self.methods += inner.methods
            self.names += inner.names
            return inner.digest
        raise Unreadable(f"{title} uses the global {name}, an object of type {type(value).__name__}")


_ROOTS = ("forward", "backward", "setup_context", "vjp", "jvp", "vmap", "apply")
"""The methods that decide what a class computes where the code uses it by name, as it does an autograd Function."""


class _Scope:
    """Holds the globals of a function as attributes where no imported module does."""


def _module(function: FunctionType) -> object:
    """The module whose attributes are the globals of a function, or a :class:`_Scope` in its place."""
    module = sys.modules.get(function.__module__)
    if module is not None and vars(module) is function.__globals__:
        return module
    scope = _Scope()
    scope.__dict__ = function.__globals__
    return scope


def _class_cell(function: FunctionType) -> type:
    """The class in whose body a method was written."""
    assert function.__closure__ is not None
    return function.__closure__[function.__code__.co_freevars.index("__class__")].cell_contents


def _is_own_of(home: str, value) -> bool:
    """Whether a function or class belongs to the package ``home``.

    Its globals decide, because a wrapper can take over the name of a function but not its globals.
    """
    if isinstance(value, FunctionType):
        return value.__globals__.get("__name__", "").partition(".")[0] == home
    return isinstance(value, (type, BuiltinFunctionType)) or type(value).__module__.partition(".")[0] == home


def _is_constant(value) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_constant, value))
    return value is None or type(value) in (bool, int, float, str)


def _is_of_torch(owner: type) -> bool:
    return owner is object or owner.__module__.partition(".")[0] == "torch"


def _is_own(mro: tuple[type, ...], name: str) -> bool:
    owner = next((c for c in mro if name in vars(c)), None)
    return owner is not None and not _is_of_torch(owner)


def _torch_text(owner: type, name: str, value) -> str:
    """The name of a method of PyTorch. Raises Unreadable if the method was replaced by one from another module."""
    function = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
    own = isinstance(function, (property, BuiltinFunctionType, MethodDescriptorType, GetSetDescriptorType))
    if isinstance(function, FunctionType):
        own = function.__globals__.get("__name__") == owner.__module__
    if not own and not isinstance(function, WrapperDescriptorType) and not _is_constant(function):
        raise Unreadable(f"{owner.__name__}.{name} of torch was replaced")
    return f"torch:{owner.__qualname__}.{name}"


def _is_super(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"


def _definition(title: str, function: FunctionType) -> ast.FunctionDef:
    """The syntax tree of the code that ``function`` runs, without what does not count."""
    code = function.__code__
    try:
        lines, _ = inspect.findsource(code)
        tree, compiled = _compiled("".join(lines), code.co_filename, code.co_flags & _FUTURES)
    except (OSError, TypeError, IndexError, SyntaxError):
        raise Unreadable(f"the source of {title} cannot be read") from None
    if not any(_same_code(found, code) for found in _nested(compiled)):
        raise Unreadable(f"{title} runs other code than its source file holds")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and _first_line(node) == code.co_firstlineno:
            copy: Any = ast.parse(ast.unparse(node)).body[0]
            return _WithoutComments().visit(copy)
    raise Unreadable(f"{title} is not a plain function")


_FUTURES = functools.reduce(operator.or_, (getattr(future, n).compiler_flag for n in future.all_feature_names))


@functools.lru_cache(maxsize=16)
def _compiled(source: str, file: str, flags: int) -> tuple[ast.Module, CodeType]:
    """A file's syntax tree and its code; the whole file, because its other statements affect its functions' code."""
    return ast.parse(source), compile(source, file, "exec", flags, dont_inherit=True)


def _first_line(node: ast.FunctionDef) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def _nested(code: CodeType) -> Iterator[CodeType]:
    """The code objects within a code object, outer ones first."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _nested(constant)


def _same_code(a: CodeType, b: CodeType) -> bool:
    alike = ("co_firstlineno", "co_code", "co_names", "co_varnames", "co_freevars", "co_cellvars")
    if any(getattr(a, name) != getattr(b, name) for name in alike) or len(a.co_consts) != len(b.co_consts):
        return False
    return all(
        _same_code(x, y) if isinstance(x, CodeType) and isinstance(y, CodeType) else (type(x), x) == (type(y), y)
        for x, y in zip(a.co_consts, b.co_consts, strict=True)
    )


def _globals(title: str, function: FunctionType, definition: ast.FunctionDef) -> list[tuple[str, object]]:
    """The global names that a function uses, sorted, with their present values; builtins are left out."""
    foreign = set(function.__code__.co_freevars) - {"__class__"}
    if foreign:
        raise Unreadable(f"{title} uses {', '.join(sorted(foreign))} from an enclosing function")
    local = set(function.__code__.co_varnames).union(*(c.co_varnames for c in _nested(function.__code__)))
    used = {n.id for n in _in_body(definition) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)} - local
    found = []
    for name in sorted(used - {"super"}):
        if name in function.__globals__:
            found.append((name, function.__globals__[name]))
        elif not hasattr(builtins, name):
            raise Unreadable(f"{title} uses {name}, which is not defined")
    return found


def _in_body(definition: ast.FunctionDef) -> Iterator[ast.AST]:
    """The nodes of a function's body, without those of its signature."""
    return itertools.chain.from_iterable(map(ast.walk, definition.body))


class _WithoutComments(ast.NodeTransformer):
    """Removes what does not count: docstrings and annotations."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        first = node.body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            node.body = node.body[1:] or [ast.Pass()]
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.Assign | None:
        self.generic_visit(node)
        return ast.Assign(targets=[node.target], value=node.value, lineno=0) if node.value else None

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node


_LEFT_OUT = ("ctx", "kind", "returns", "type_comment", "type_params")


def _written(node: Any) -> str:
    """A syntax tree, or a value in one, as a text that does not depend on the version of Python."""
    if isinstance(node, ast.AST):
        fields = ((n, v) for n, v in ast.iter_fields(node) if n not in _LEFT_OUT and v is not None and v != [])
        return f"{type(node).__name__}({', '.join(f'{n}={_written(v)}' for n, v in fields)})"
    if isinstance(node, list):
        return f"[{', '.join(map(_written, node))}]"
    return repr(node)
