"""What the tests keep in Triton's interpreter (``interpreter.py``) is what the interpreter would form anew."""

import numpy as np
import pytest
import torch
from where import INTERPRETED

if INTERPRETED:
    from triton import language as tl
    from triton.language.semantic import TritonSemantic
    from triton.runtime import interpreter
    from triton.runtime.interpreter import TensorHandle, interpreter_builder

    def test_every_bfloat16_is_widened_as_torch_does():
        """And as the interpreter does, which has zeros in place of the subnormal ones."""
        bits = np.arange(2**16, dtype=np.uint16)
        found = interpreter_builder.cast_impl(TensorHandle(bits, tl.bfloat16), tl.float32).data
        exact = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float().numpy()
        assert found.dtype == np.float32 and np.array_equal(found, exact, equal_nan=True)
        theirs = interpreter._convert_float(bits, tl.bfloat16, tl.float32, None).view(np.float32)
        normal = ~(np.abs(exact) < torch.finfo(torch.bfloat16).tiny) | (exact == 0)
        assert np.array_equal(found[normal], theirs[normal], equal_nan=True)

    def test_fp32_is_cut_off_to_bfloat16_as_the_interpreter_does():
        """But for subnormal values, of which it makes others."""
        bits = np.random.default_rng(0).integers(2**32, size=2**16, dtype=np.uint32)
        exponent, significand = bits >> 23 & 0xFF, bits & 0x7FFFFF
        values = bits[(exponent > 0) | (significand == 0)].view(np.float32)
        special = np.array([[0.0, -0.0, np.inf], [-np.inf, np.nan, 1.0]], np.float32)
        for value in (values, special, special.T, special[0, 2]):
            found = interpreter_builder.cast_impl(TensorHandle(value, tl.float32), tl.bfloat16).data
            theirs = interpreter._convert_float(value, tl.float32, tl.bfloat16, None)
            assert found.dtype == theirs.dtype == np.uint16 and np.array_equal(found, theirs)

    def test_types_of_blocks_are_tritons_and_share_their_shape():
        element = tl.pointer_type(tl.bfloat16)
        kinds = [
            tl.block_type(kind, shape) for kind in (tl.float32, element) for shape in ([4, 8], (tl.constexpr(4), 8))
        ]
        kinds += [kinds[0].with_element_ty(element), tl.block_type(tl.float32, kinds[3].shape)]
        for kind in kinds:
            assert [*kind.shape] == [4, 8] and kind.numel == 32 and str(kind) == f"<{kind.shape}, {kind.element_ty}>"
            assert kind.shape is kinds[0].shape
        assert [kind.element_ty is element for kind in kinds] == [False, False, True, True, True, False]
        assert kinds[0] == kinds[1] != kinds[2] == kinds[4] and tl.block_type(tl.float32, [8, 4]) != kinds[0]
        for wrong, error in (([3], ValueError), ([2.0], TypeError), ([], TypeError)):
            with pytest.raises(error):
                tl.block_type(tl.float32, wrong)

    def test_tensors_have_the_shape_of_their_type():
        for sizes in ([4, 8], [8, 4], [32], []):
            kind = tl.block_type(tl.int32, sizes) if sizes else tl.int32
            for handle in (object(), object()):
                made = tl.tensor(handle, kind)
                assert made.handle is handle and made.type is kind and made.dtype is tl.int32
                assert [size.value for size in made.shape] == sizes and made.numel.value == np.prod(sizes, dtype=int)

    def test_only_equal_shapes_are_broadcast_to_nothing():
        semantic = TritonSemantic(interpreter_builder)

        def of(*sizes: int):
            return tl.tensor(TensorHandle(np.ones(sizes, np.int32), tl.int32), tl.block_type(tl.int32, [*sizes]))

        left, right = of(4, 8), of(4, 8)
        assert semantic.broadcast_impl_value(left, right) == (left, right)
        for left, right in ((of(4, 1), of(1, 8)), (of(1, 8), of(4, 1)), (of(8), of(4, 1))):
            for value in semantic.broadcast_impl_value(left, right):
                assert value.handle.data.shape == (4, 8) and [*value.type.shape] == [4, 8]
        with pytest.raises(ValueError, match="incompatible dimensions"):
            semantic.broadcast_impl_value(of(4), of(8))
