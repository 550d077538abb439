"""The grammar of conditions: a subset of CEL, read into a tree with positions.

Owns tokens, the tree and its canonical text. Refuses what the subset leaves out
(floats, maps, indexing, ternaries, nesting past a limit) with the position; names
and types are check's part. The library is given the canonical text, in which
every operation has its parentheses, so that both sides read the same tree.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

MAX_CHARACTERS = 4000
MAX_DEPTH = 24
MAX_NODES = 500
INT_MAX = (1 << 63) - 1


class ExpressionError(ValueError):
    """A condition that cannot be read. at: index of the first wrong character."""

    def __init__(self, message: str, at: int) -> None:
        super().__init__(message)
        self.message = message
        self.at = at


@dataclass(frozen=True, slots=True)
class Literal:
    """A text, a whole number, true or false."""

    value: str | int | bool
    at: int


@dataclass(frozen=True, slots=True)
class Name:
    """A fact, or the variable of the quantifier around it."""

    name: str
    at: int


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list of literals."""

    items: tuple[Literal, ...]
    at: int


@dataclass(frozen=True, slots=True)
class Unary:
    """`!` or `-` before an operand."""

    operator: str
    operand: Expression
    at: int


@dataclass(frozen=True, slots=True)
class Binary:
    """An operator between two operands; at: where the operator stands."""

    operator: str
    left: Expression
    right: Expression
    at: int


@dataclass(frozen=True, slots=True)
class Call:
    """`function(arguments)` or `target.function(arguments)`."""

    function: str
    target: Expression | None
    arguments: tuple[Expression, ...]
    at: int


Expression = Literal | Name | ListOf | Unary | Binary | Call


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    at: int


_TOKEN = re.compile(
    r"(?P<space>[ \t\r\n]+|//[^\n]*)"
    r"|(?P<text>\"(?:[^\"\\\n\r]|\\.)*\"|'(?:[^'\\\n\r]|\\.)*')"
    r"|(?P<number>[0-9]+(?:\.[0-9]+)?[A-Za-z0-9_]*)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<operator>&&|\|\||==|!=|<=|>=|[-+*/%<>!?:.,()\[\]{}])"
)
_ESCAPE = re.compile(
    r"\\(?:([\\\"'?`])|([abfnrtv])|[xX]([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|([0-3][0-7]{2})|(.?))"
)
_CONTROLS = dict(zip("abfnrtv", "\a\b\f\n\r\t\v", strict=True))

# CEL's own precedence; comparisons do not chain here.
_BINDING = {"||": 1, "&&": 2, "+": 4, "-": 4, "*": 5} | dict.fromkeys(
    ["==", "!=", "<", "<=", ">", ">=", "in"], 3
)
_COMPARISON = 3
_RESERVED = frozenset({"as", "break", "const", "continue", "else", "for", "function", "if", "import", "in"})
_RESERVED |= {"let", "loop", "namespace", "null", "package", "return", "var", "void", "while"}
_REFUSED = {
    "?": "the ternary ?: is not supported: use && and ||",
    "/": "division is not supported",
    "%": "remainders are not supported",
    "[": "indexing is not supported: use in, exists or all",
    "{": "maps are not supported",
}


def parse(text: str) -> Expression:
    """Return the tree of a condition; raises ExpressionError at the first mistake."""
    if len(text) > MAX_CHARACTERS:
        raise ExpressionError(f"the condition is over {MAX_CHARACTERS} characters", MAX_CHARACTERS)
    parser = _Parser(_tokens(text), len(text))
    tree = parser.expression(0)
    parser.end()
    return tree


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    place = 0
    while place < len(text):
        found = _TOKEN.match(text, place)
        if found is None:
            raise ExpressionError(_stray(text, place), place)
        kind = found.lastgroup or ""
        if kind != "space":
            tokens.append(_Token(kind, found[0], place))
        place = found.end()
    return tokens


def _stray(text: str, place: int) -> str:
    hints = {"&": "write && for and", "|": "write || for or", "=": "write == to compare"}
    character = text[place]
    if character in "\"'":
        return "the text is not closed on its line"
    return hints.get(character, f"{character!r} has no meaning here")


class _Parser:
    def __init__(self, tokens: list[_Token], length: int) -> None:
        self.tokens = tokens
        self.length = length
        self.position = 0
        self.depth = 0
        self.nodes = 0

    def peek(self) -> str:
        token = self._token()
        return token.text if token and token.kind in {"operator", "name"} else ""

    def _token(self) -> _Token | None:
        return self.tokens[self.position] if self.position < len(self.tokens) else None

    def take(self) -> _Token:
        token = self._token()
        if token is None:
            raise ExpressionError("the condition ends too early", self.length)
        self.position += 1
        return token

    def expect(self, text: str) -> None:
        token = self._token()
        if token is None or token.text != text or token.kind == "text":
            at = token.at if token else self.length
            raise ExpressionError(f"{text!r} is expected here", at)
        self.position += 1

    def end(self) -> None:
        token = self._token()
        if token is not None:
            raise ExpressionError(_REFUSED.get(token.text, f"{token.text!r} is unexpected here"), token.at)

    def count(self, at: int) -> None:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise ExpressionError(f"the condition has over {MAX_NODES} parts", at)

    def expression(self, binding: int) -> Expression:
        left = self.unary()
        while _BINDING.get(self.peek(), 0) > binding:
            operator = self.take()
            strength = _BINDING[operator.text]
            right = self.expression(strength)
            self.count(operator.at)
            left = Binary(operator.text, left, right, operator.at)
            if strength == _COMPARISON and _BINDING.get(self.peek()) == _COMPARISON:
                token = self.take()
                raise ExpressionError("comparisons do not chain: use && between them", token.at)
        return left

    def unary(self) -> Expression:
        token = self._token()
        if token is None or token.text not in {"!", "-"} or token.kind != "operator":
            return self.postfix(self.primary())
        self.position += 1
        self.count(token.at)
        following = self._token()
        if token.text == "-" and following and following.kind == "number":
            self.position += 1
            return Literal(-_integer(following, negative=True), token.at)
        operand = self.nested(token.at, self.unary)
        return Unary(token.text, operand, token.at)

    def nested(self, at: int, rule: Callable[[], Expression]) -> Expression:
        """Go one level down, within the limit that spares both parsers' stacks."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ExpressionError(f"the condition is nested deeper than {MAX_DEPTH} levels", at)
        inner = rule()
        self.depth -= 1
        return inner

    def primary(self) -> Expression:
        token = self.take()
        self.count(token.at)
        if token.kind == "text":
            return Literal(_unescape(token), token.at)
        if token.kind == "number":
            return Literal(_integer(token), token.at)
        if token.kind == "name":
            return self.word(token)
        if token.text == "(":
            inner = self.nested(token.at, lambda: self.expression(0))
            self.expect(")")
            return inner
        if token.text == "[":
            return self.listed(token.at)
        raise ExpressionError(_REFUSED.get(token.text, f"{token.text!r} is unexpected here"), token.at)

    def word(self, token: _Token) -> Expression:
        if token.text in {"true", "false"}:
            return Literal(token.text == "true", token.at)
        following = self._token()
        if following and following.kind == "text" and token.text.lower() in {"r", "b", "br", "rb"}:
            raise ExpressionError("raw texts and bytes are not supported: write a plain text", token.at)
        if token.text in _RESERVED:
            raise ExpressionError(f"{token.text!r} is a word of CEL's own and no fact", token.at)
        if self.peek() == "(":
            return Call(token.text, None, self.arguments(token.at), token.at)
        return Name(token.text, token.at)

    def postfix(self, left: Expression) -> Expression:
        links = 0
        while self.peek() in {".", "["}:
            sign = self.take()
            if sign.text == "[":
                raise ExpressionError(_REFUSED["["], sign.at)
            token = self.take()
            if token.kind != "name":
                raise ExpressionError("a function's name is expected after the dot", token.at)
            if self.peek() != "(":
                raise ExpressionError(f"facts have no fields: .{token.text} needs parentheses", token.at)
            self.count(token.at)
            links += 1
            if links > MAX_DEPTH:
                raise ExpressionError(f"over {MAX_DEPTH} calls in a row", token.at)
            left = Call(token.text, left, self.arguments(token.at), token.at)
        return left

    def arguments(self, at: int) -> tuple[Expression, ...]:
        self.expect("(")
        found: list[Expression] = []
        while self.peek() != ")":
            found.append(self.nested(at, lambda: self.expression(0)))
            if self.peek() != ",":
                break
            self.take()
        self.expect(")")
        return tuple(found)

    def listed(self, at: int) -> Expression:
        items: list[Literal] = []
        while self.peek() != "]":
            item = self.nested(at, self.unary)
            if not isinstance(item, Literal):
                raise ExpressionError("a list holds texts or numbers only", item.at)
            items.append(item)
            if self.peek() != ",":
                break
            self.take()
        self.expect("]")
        return ListOf(tuple(items), at)


def _integer(token: _Token, *, negative: bool = False) -> int:
    if not token.text.isdigit():
        raise ExpressionError(f"{token.text} is no whole decimal number", token.at)
    value = int(token.text) if len(token.text) < 20 else INT_MAX + 2
    if value > INT_MAX + negative:
        raise ExpressionError(f"{token.text} does not fit into 64 bits", token.at)
    return value


def _unescape(token: _Token) -> str:
    def replace(found: re.Match[str]) -> str:
        plain, control, *codes, other = found.groups()
        if plain:
            return plain
        if control:
            return _CONTROLS[control]
        digits = codes[0] or codes[1] or codes[2]
        number = int(digits, 16) if digits else int(codes[3], 8) if codes[3] else -1
        if number < 0 or number > 0x10FFFF or 0xD800 <= number <= 0xDFFF:
            raise ExpressionError(f"\\{other} is no escape that CEL knows", token.at + 1 + found.start())
        return chr(number)

    return _ESCAPE.sub(replace, token.text[1:-1])


def canonical(tree: Expression) -> str:
    """Return the tree as CEL text in which operations of another strength stand in parentheses."""
    match tree:
        case Literal(value=bool() as value):
            return "true" if value else "false"
        case Literal(value=int() as value):
            return str(value)
        case Literal(value=value):
            return quoted(str(value))
        case Name(name=name):
            return name
        case ListOf(items=items):
            return f"[{', '.join(canonical(item) for item in items)}]"
        case Unary(operator=operator, operand=operand):
            return f"{operator}({canonical(operand)})"
        case Binary():
            return f"({_chain(tree)})"
        case Call(function=function, target=target, arguments=arguments):
            inner = ", ".join(canonical(argument) for argument in arguments)
            return f"{canonical(target)}.{function}({inner})" if target else f"{function}({inner})"


def _chain(tree: Binary) -> str:
    """A chain of equal strength stays flat: the library's parser allows few levels of parentheses."""
    left = tree.left
    flat = isinstance(left, Binary) and _BINDING[left.operator] == _BINDING[tree.operator] != _COMPARISON
    before = _chain(left) if flat and isinstance(left, Binary) else canonical(left)
    return f"{before} {tree.operator} {canonical(tree.right)}"


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def quoted(text: str) -> str:
    """Return a text as a CEL literal."""
    body = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", body) + '"'
