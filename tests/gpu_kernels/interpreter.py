"""Triton's interpreter, quick enough for the tests: what it forms anew for each operation, the same each time, is kept.

``where.py`` imports this module where ``TRITON_INTERPRET=1``.
"""

from dataclasses import replace

import numpy as np
from triton import language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder, TensorHandle, interpreter_builder

# the option forms every sum and product of integers once more, in 64 bits, for an assertion that is made in `debug`
# alone: half of the interpreter's time
options = interpreter_builder.options
interpreter_builder.options = replace(options, sanitize_overflow=options.debug)

types: dict[str, np.dtype] = {}
blocks: dict[tuple, dict] = {}
"""The identity of a type of elements, and a shape or the identity of one -> the attributes of their type of blocks."""
shapes: dict[tuple[int, ...], object] = {}
"""Sizes -> the shape of all blocks of them."""
tensors: dict[int, tuple[object, dict]] = {}
"""The identity of a shape -> that shape, and those attributes of a tensor which follow from it."""
prepared: set[str] = set()


def numpy_type(kind, usual=interpreter._get_np_dtype):
    """NumPy's type for one of Triton's; the interpreter makes a table of all of them for each call."""
    if kind.name not in types:
        types[kind.name] = usual(kind)
    return types[kind.name]


def make_block(self, element, shape, usual=tl.block_type.__init__):
    """Equal types of blocks share their shape, a tuple of Triton's own kind: it takes longest to make."""
    found = blocks.get((id(element), id(shape)))
    if found is None:
        sizes = tuple(size.value if type(size) is tl.constexpr else size for size in shape)
        if not all(type(size) is int for size in sizes):
            return usual(self, element, shape)
        found = blocks.get((id(element), sizes))
        if found is None:
            usual(self, element, shape)
            self.shape = shapes.setdefault(sizes, self.shape)
            found = dict(vars(self))  # holds the element, so that nothing else gets its identity
            blocks[id(element), sizes] = blocks[id(element), id(self.shape)] = found
    vars(self).update(found)


def make_tensor(self, handle, kind, usual=tl.tensor.__init__):
    shape = kind.shape if kind.is_block() else None
    found = tensors.get(id(shape))
    if found is None:
        usual(self, handle, kind)
        own = {name: value for name, value in vars(self).items() if name not in ("handle", "type", "dtype")}
        tensors[id(shape)] = shape, own
    else:
        vars(self).update(found[1], handle=handle, type=kind, dtype=kind.scalar)


def broadcast(self, left, right, usual=TritonSemantic.broadcast_impl_value):
    """Two operands of one shape: Triton compares shapes by its own tuples, and makes a type for the builder as well."""
    a, b = left.type, right.type
    if a.is_block() and not b.is_block():
        return left, filled(self.builder, a, right)
    if b.is_block() and not a.is_block():
        return filled(self.builder, b, left), right
    if not a.is_block() or a.shape is b.shape:
        return left, right
    sizes = list(zip(a.shape, b.shape, strict=False))
    if len(a.shape) != len(b.shape) or any(one != other and 1 not in (one, other) for one, other in sizes):
        return usual(self, left, right)
    common = [other if one == 1 else one for one, other in sizes]
    return grown(self.builder, left, common), grown(self.builder, right, common)


def filled(builder, like, scalar):
    """A block of the shape of the type ``like``."""
    kind = like.with_element_ty(scalar.type)
    return tl.tensor(builder.create_splat(kind, scalar.handle), kind)


def grown(builder, block, sizes):
    if [*block.type.shape] == sizes:
        return block
    return tl.tensor(builder.create_broadcast(block.handle, sizes), tl.block_type(block.type.scalar, sizes))


def halved(self, value, kind, usual=InterpreterBuilder.cast_impl):
    """A bfloat16 is the upper half of its fp32, of which the interpreter cuts off the lower half."""
    if value.dtype.scalar == tl.bfloat16 and kind.scalar == tl.float32:
        return TensorHandle((value.data.astype(np.uint32) << 16).view(np.float32), tl.float32)
    if value.dtype.scalar == tl.float32 and kind.scalar == tl.bfloat16:
        return TensorHandle((value.data.view(np.uint32) >> 16).astype(np.uint16), tl.bfloat16)
    return usual(self, value, kind)


def spread(self, kind, scalar, usual=InterpreterBuilder.create_splat):
    """A scalar in all of a block; a comparison becomes integers, which Triton 3.9 refuses as a mask."""
    if scalar.data.dtype == bool:
        scalar = TensorHandle(scalar.data, tl.int1)
    return usual(self, kind, scalar)


def called(function, *arguments, call=InterpretedFunction.__call__, **options):
    """A call of a function in a kernel; the interpreter prepares the language anew for each, once is enough."""
    if function.fn.__module__ in prepared:
        return function.rewrite()(*arguments, **options)
    prepared.add(function.fn.__module__)
    return call(function, *arguments, **options)


interpreter._get_np_dtype = numpy_type
tl.block_type.__init__, tl.tensor.__init__ = make_block, make_tensor
TritonSemantic.broadcast_impl_value = broadcast
InterpreterBuilder.cast_impl, InterpreterBuilder.create_splat = halved, spread
InterpretedFunction.__call__ = called
