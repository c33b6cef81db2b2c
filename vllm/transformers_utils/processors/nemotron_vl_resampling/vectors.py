# SPDX-License-Identifier: Apache-2.0
"""Vectors of bytes and floats for the compiled loops of resampling.

numba turns a loop into vector instructions only where it can prove that nothing
overlaps, and it never turns a transposition into shuffles. The functions below emit
LLVM's own vector operations instead, which LLVM lowers to what the processor has: SSE,
AVX2, AVX-512 or NEON. They can be called from compiled code alone.

A vector is `pixels_of` pixels of four bytes. As floats that is 256 bytes for single and
for double precision alike. All arrays are flat and contiguous; positions are in
elements. Nothing checks bounds.
"""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_BYTE, _INT, _INDEX = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_VECTOR_BYTES = 256
_CHANNELS = 4


def pixels_of(bytes_of_float: int) -> int:
    """Pixels of a vector: 16 in single precision, 8 in double precision."""
    return _VECTOR_BYTES // bytes_of_float // _CHANNELS


def _floats(kind: types.Array) -> tuple[ir.Type, int]:
    """LLVM's type of an array's floats, and how many are a vector."""
    size = kind.dtype.bitwidth // 8
    single = ir.FloatType() if size == 4 else ir.DoubleType()
    return single, _CHANNELS * pixels_of(size)


class _Code:
    """Emits the body of one function."""

    def __init__(self, context: Any, builder: ir.IRBuilder, signature: Any) -> None:
        self.context, self.builder, self.kinds = context, builder, signature.args

    def address(self, args: Sequence, number: int, index: ir.Value, element: ir.Type):
        """Where element ``index`` of the array among the arguments is."""
        make = self.context.make_array(self.kinds[number])
        data = make(self.context, self.builder, args[number]).data
        return self.builder.bitcast(
            self.builder.gep(data, [index]), element.as_pointer()
        )

    def load(self, args: Sequence, number: int, index: ir.Value, vector: ir.Type):
        loaded = self.builder.load(self.address(args, number, index, vector))
        loaded.align = 1
        return loaded

    def store(self, value: ir.Value, args: Sequence, number: int, index: ir.Value):
        address = self.address(args, number, index, value.type)
        self.builder.store(value, address).align = 1

    def shuffle(self, first: ir.Value, second: ir.Value, order: Sequence[int]):
        mask = ir.Constant(ir.VectorType(_INT, len(order)), [*order])
        return self.builder.shuffle_vector(first, second, mask)

    def repeat(self, value: ir.Value, lanes: int) -> ir.Value:
        nothing = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
        one = self.builder.insert_element(nothing, value, ir.Constant(_INT, 0))
        return self.shuffle(one, nothing, [0] * lanes)

    def to_floats(self, levels: ir.Value, single: ir.Type) -> ir.Value:
        lanes = levels.type.count
        wide = self.builder.zext(levels, ir.VectorType(_INT, lanes))
        return self.builder.sitofp(wide, ir.VectorType(single, lanes))

    def to_bytes(self, floats: ir.Value) -> ir.Value:
        """Floats clipped to 0..255, without their fraction."""
        kind, lanes = floats.type, floats.type.count
        for bound, wrong in ((0.0, "<"), (255.0, ">")):
            limit = ir.Constant(kind, [bound] * lanes)
            is_wrong = self.builder.fcmp_ordered(wrong, floats, limit)
            floats = self.builder.select(is_wrong, limit, floats)
        whole = self.builder.fptosi(floats, ir.VectorType(_INT, lanes))
        return self.builder.trunc(whole, ir.VectorType(_BYTE, lanes))

    def transposed(self, rows: list[ir.Value]) -> list[ir.Value]:
        """Eight rows of eight pixels, transposed.

        Each shuffle is one instruction of AVX2: two within groups of four pixels, one
        that exchanges groups.
        """
        for low in ([0, 8, 1, 9, 4, 12, 5, 13], [0, 1, 8, 9, 4, 5, 12, 13]):
            high = [lane + 2 for lane in low]
            apart = 1 if low[1] == 8 else 2
            pairs = [row for row in range(8) if not row & apart]
            for row in pairs:
                pair = rows[row], rows[row + apart]
                rows[row] = self.shuffle(*pair, low)
                rows[row + apart] = self.shuffle(*pair, high)
        # Rows 0, 2, 1 and 3 of a half now hold columns 0 to 3 and 4 to 7 of it.
        order = (0, 2, 1, 3)
        return [
            self.shuffle(rows[row], rows[row + 4], [*group, *(n + 8 for n in group)])
            for group in (range(4), range(4, 8))
            for row in order
        ]


def _emits(
    returns: Callable[..., Any], body: Callable[[_Code, Sequence], None]
) -> tuple[Any, Callable]:
    def codegen(context, builder, signature, args):
        body(_Code(context, builder, signature), args)
        return context.get_dummy_value()

    return returns, codegen


@intrinsic
def weigh(typing, lines, start, step, weights, place, count, out, at):
    """``out[at:]`` = the sum of ``count`` lines times their weights, as bytes.

    Line ``n`` is the vector ``lines[start + n * step:]``, its weight ``weights[place +
    n]``. The sums are rounded to whole numbers, halves up, and clipped to 0..255.
    """
    single, lanes = _floats(lines)
    vector = ir.VectorType(single, lanes)

    def body(code: _Code, args: Sequence) -> None:
        _, start, step, _, place, count, _, at = args
        builder = code.builder
        # One addition after the other, in the order of the lines: the same values on
        # every processor that fuses a product and its addition.
        before = builder.block
        loop = builder.append_basic_block("lines")
        after = builder.append_basic_block("rounding")
        line = code.address(args, 0, start, single)
        weight = code.address(args, 3, place, single)
        builder.branch(loop)
        builder.position_at_end(loop)
        number, total = builder.phi(_INDEX), builder.phi(vector)
        address = builder.gep(line, [builder.mul(number, step)])
        values = builder.load(builder.bitcast(address, vector.as_pointer()))
        values.align = single.get_abi_alignment(code.context.target_data)
        factor = code.repeat(builder.load(builder.gep(weight, [number])), lanes)
        fuse = ("contract",)
        product = builder.fmul(factor, values, flags=fuse)
        new_total = builder.fadd(total, product, flags=fuse)
        following = builder.add(number, ir.Constant(_INDEX, 1))
        number.add_incoming(ir.Constant(_INDEX, 0), before)
        number.add_incoming(following, loop)
        total.add_incoming(ir.Constant(vector, [0.5] * lanes), before)
        total.add_incoming(new_total, loop)
        builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
        builder.position_at_end(after)
        code.store(code.to_bytes(new_total), args, 6, at)

    index = types.intp
    return _emits(
        types.void(lines, index, index, weights, index, index, out, index), body
    )


@intrinsic
def widen(typing, pixels, start, lines, at):
    """``lines[at:]`` = the floats of one vector of bytes, ``pixels[start:]``."""
    single, lanes = _floats(lines)

    def body(code: _Code, args: Sequence) -> None:
        levels = code.load(args, 0, args[1], ir.VectorType(_BYTE, lanes))
        code.store(code.to_floats(levels, single), args, 2, args[3])

    return _emits(types.void(pixels, types.intp, lines, types.intp), body)


@intrinsic
def turn(typing, pixels, start, step, last, lines, at):
    """Turn eight columns of pixels, and make them floats.

    Pixel ``x`` of row ``y`` is element ``start + y * step + x`` of ``pixels`` (uint32);
    rows after ``last`` repeat it. Vector ``x`` of ``lines[at:]`` holds pixel ``x`` of
    all rows.
    """
    single, lanes = _floats(lines)
    eight = ir.VectorType(_INT, 8)

    def body(code: _Code, args: Sequence) -> None:
        _, start, step, last, _, at = args
        builder = code.builder
        for top in range(0, lanes // _CHANNELS, 8):
            rows = []
            for y in range(top, top + 8):
                number = ir.Constant(_INDEX, y)
                is_after = builder.icmp_signed(">", number, last)
                offset = builder.mul(builder.select(is_after, last, number), step)
                rows.append(code.load(args, 0, builder.add(start, offset), eight))
            for x, column in enumerate(code.transposed(rows)):
                levels = builder.bitcast(column, ir.VectorType(_BYTE, 32))
                offset = ir.Constant(_INDEX, x * lanes + _CHANNELS * top)
                to = builder.add(at, offset)
                code.store(code.to_floats(levels, single), args, 4, to)

    index = types.intp
    return _emits(types.void(pixels, index, index, index, lines, index), body)


@intrinsic
def turn_back(typing, pixels, start, planes, at, step, like):
    """Turn sixteen columns of pixels and separate their first three channels.

    The columns are one after the other in ``pixels[start:]`` (uint32), each of
    `pixels_of` the floats of ``like``. Channel ``c`` of row ``y`` goes to
    ``planes[at + (3 * y + c) * step:]`` (uint8).
    """
    height = _floats(like)[1] // _CHANNELS
    eight, row = ir.VectorType(_INT, 8), ir.VectorType(_INT, 16)

    def body(code: _Code, args: Sequence) -> None:
        _, start, _, at, step, _ = args
        builder = code.builder

        def block(left: int, top: int) -> list[ir.Value]:
            offsets = [(left + x) * height + top for x in range(8)]
            places = [builder.add(start, ir.Constant(_INDEX, n)) for n in offsets]
            return code.transposed([code.load(args, 0, n, eight) for n in places])

        for top in range(0, height, 8):
            for y, halves in enumerate(zip(block(0, top), block(8, top), strict=True)):
                whole = code.shuffle(*halves, range(16))
                for channel in range(3):
                    shift = ir.Constant(row, [8 * channel] * 16)
                    levels = builder.trunc(
                        builder.lshr(whole, shift), ir.VectorType(_BYTE, 16)
                    )
                    offset = ir.Constant(_INDEX, 3 * (top + y) + channel)
                    to = builder.add(at, builder.mul(step, offset))
                    code.store(levels, args, 2, to)

    index = types.intp
    return _emits(types.void(pixels, index, planes, index, index, like), body)
