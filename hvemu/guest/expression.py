"""Constant expressions of an assembly source: what `.if` and `.rept` ask, and what an operand must have become."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from typing import Any

Lookup = Callable[[str], int | None]
"""The value of a name, or None."""

_TOKEN = re.compile(r"'(?:\\.|[^'\\])'|0[xX][0-9a-fA-F]+|0[bB][01]+|\d+|[A-Za-z_.$][\w.$]*|<<|>>|[=!<>]=|&&|\|\||\S")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0"}
_WORDS = {"&&": " and ", "||": " or ", "!": " not ", "/": "//"}
_BINARY: dict[type[ast.AST], Callable[[int, int], int]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod, ast.LShift: operator.lshift, ast.RShift: operator.rshift, ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_, ast.BitXor: operator.xor, ast.Eq: operator.eq, ast.NotEq: operator.ne,
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
}  # fmt: skip
_UNARY: dict[type[ast.AST], Callable[[int], int]] = {
    ast.Invert: operator.invert, ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Not: operator.not_,
}  # fmt: skip
_LONGEST_SHIFT = 64
_LONGEST_NUMBER = 70  # digits: 64 binary ones fit


class ExpressionError(ValueError):
    """The text is not a constant expression, or a name in it has no value yet."""


def names(text: str) -> list[str]:
    """Return the names in the expression *text*, in order."""
    return [token for token in _TOKEN.findall(text) if token[0].isalpha() or token[0] in "_.$"]


def evaluate(text: str, lookup: Lookup) -> int:
    """Return the value of *text*, with C's operators and precedence. Raises ExpressionError."""
    python = " ".join(_python(token, lookup) for token in _TOKEN.findall(text))
    try:
        return int(_value(ast.parse(python, mode="eval").body))
    except (SyntaxError, ZeroDivisionError, RecursionError) as error:
        raise ExpressionError(f"`{text}` is not a constant expression") from error


def _python(token: str, lookup: Lookup) -> str:
    if token[0] == "'" and len(token) > 1:
        char = _ESCAPES.get(token[2], token[2]) if token[1] == "\\" else token[1]
        return str(ord(char))
    if token[0].isdigit():
        if len(token) > _LONGEST_NUMBER:
            raise ExpressionError(f"`{token[:_LONGEST_NUMBER]}...` is too large")
        return str(int(token, 16 if token[:2] in {"0x", "0X"} else 2 if token[:2] in {"0b", "0B"} else 10))
    if token[0].isalpha() or token[0] in "_.$":
        value = lookup(token)
        if value is None:
            raise ExpressionError(f"`{token}` has no value here")
        return f"({value})"
    return _WORDS.get(token, token)


def _value(node: Any) -> int:
    """Return the value of *node*; nothing but operators and integers is accepted."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.UnaryOp):
        return _UNARY[type(node.op)](_value(node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _binary(_BINARY[type(node.op)], _value(node.left), _value(node.right))
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        return int(_BINARY[type(node.ops[0])](_value(node.left), _value(node.comparators[0])))
    if isinstance(node, ast.BoolOp):
        values = [bool(_value(part)) for part in node.values]
        return int(all(values) if isinstance(node.op, ast.And) else any(values))
    raise SyntaxError


def _binary(function: Callable[[int, int], int], left: int, right: int) -> int:
    if function in {operator.lshift, operator.rshift} and not 0 <= right <= _LONGEST_SHIFT:
        raise SyntaxError
    return function(left, right)
