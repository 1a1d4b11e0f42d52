"""Sixty-four entries at once: their flags are the bits of one word.

A compiler makes slow vector code of a loop over numbers of four bytes and flags of one, and never a word of
bits. So these few operations are written in LLVM's own vectors, which any processor has instructions for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from llvmlite import ir
from numba import extending
from numba.core import errors, types

LANES = 64

_intrinsic = cast(Callable[[Callable[..., Any]], Callable[..., Any]], extending.intrinsic)

_BIT, _BYTE, _WORD = (ir.IntType(bits) for bits in (1, 8, 64))
_BITS, _BYTES = ir.VectorType(_BIT, LANES), ir.VectorType(_BYTE, LANES)


@_intrinsic
def flags_at(typing: Any, flags: Any, first: Any) -> Any:
    """Return the bits of the flags at ``first`` and after, which are bytes."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        loaded = builder.load(_place(context, builder, signature, given, 0, 1, _BYTES), align=1)
        set_ = builder.icmp_unsigned("!=", loaded, ir.Constant(_BYTES, [0] * LANES))
        return builder.bitcast(set_, _WORD)

    return types.uint64(flags, first), generate


@_intrinsic
def put_flags(typing: Any, word: Any, flags: Any, first: Any) -> Any:
    """Write the bits of a word as flags, bytes of 0 or 1, at ``first`` and after."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        bytes_ = builder.zext(builder.bitcast(given[0], _BITS), _BYTES)
        builder.store(bytes_, _place(context, builder, signature, given, 1, 2, _BYTES), align=1)
        return context.get_dummy_value()

    return types.none(types.uint64, flags, first), generate


@_intrinsic
def compared(typing: Any, values: Any, first: Any, low: Any, high: Any, magnitudes: Any) -> Any:
    """Return the bits of the values, or magnitudes, above ``high``, and of those that are not below ``low``.

    ``low`` and ``high`` are of the values' type. A NaN is not above, and not below.
    """

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        _, _, low, high, magnitudes = given
        number = low.type
        vector = ir.VectorType(number, LANES)
        pointer = _place(context, builder, signature, given, 0, 1, vector)
        compare: Any
        if isinstance(number, ir.IntType):
            loaded = builder.load(pointer, align=number.width // 8)
            positive = builder.icmp_signed(">", loaded, ir.Constant(vector, [0] * LANES))
            positive = builder.or_(positive, _of_all(builder, builder.not_(magnitudes)))
            scores, compare = builder.select(positive, loaded, builder.neg(loaded)), builder.icmp_signed
        else:
            whole = ir.IntType(32 if isinstance(number, ir.FloatType) else 64)
            pointer = builder.bitcast(pointer, ir.VectorType(whole, LANES).as_pointer())
            bits = builder.load(pointer, align=whole.width // 8)
            without_sign = ir.Constant(whole, 2 ** (whole.width - 1) - 1)
            kept = builder.select(magnitudes, without_sign, ir.Constant(whole, -1))
            scores = builder.bitcast(builder.and_(bits, _of_all(builder, kept)), vector)
            compare = builder.fcmp_ordered
        above = builder.bitcast(compare(">", scores, _of_all(builder, high)), _WORD)
        below = builder.bitcast(compare("<", scores, _of_all(builder, low)), _WORD)
        return context.make_tuple(builder, signature.return_type, [above, builder.not_(below)])

    pair: Any = types.UniTuple(types.uint64, 2)  # type: ignore[no-untyped-call]
    return pair(values, first, low, high, types.boolean), generate


@_intrinsic
def num_set(typing: Any, word: Any) -> Any:
    """Return how many bits of a word are set, as a word."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.ctpop(given[0])

    return types.uint64(types.uint64), generate


@_intrinsic
def first_set(typing: Any, word: Any) -> Any:
    """Return the place of the lowest bit that is set, in a word that has one."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.cttz(given[0], ir.Constant(_BIT, 1))

    return types.int64(types.uint64), generate


def _place(
    context: Any, builder: Any, signature: Any, given: Any, array: int, first: int, vector: Any
) -> Any:
    """Return the address of ``LANES`` entries of an array argument, from an index argument on.

    Raises:
        LoweringError: entries do not lie one behind the other.
    """
    if signature.args[array].layout != "C":
        raise errors.LoweringError(f"{signature.args[array]}: must be contiguous")
    data = context.make_array(signature.args[array])(context, builder, given[array]).data
    return builder.bitcast(builder.gep(data, [given[first]]), vector.as_pointer())


def _of_all(builder: Any, number: Any) -> Any:
    """Return a vector of one number."""
    none = ir.Constant(ir.VectorType(number.type, LANES), ir.Undefined)
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    first = builder.insert_element(none, number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, none, zeros)
