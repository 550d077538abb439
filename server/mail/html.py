"""HTML mail as plain text, for search and previews.

Owns leaving out tags, comments, scripts and styles, and resolving character
references, in linear time. It is no sanitiser: what it gives is text, never
markup, and nothing here may be used to make HTML safe to show.

HTML Living Standard 13.1 (syntax), as far as mail needs it.
"""

import re
from html import unescape

_TAG = re.compile(r"</?([A-Za-z][A-Za-z0-9]{0,20})|<[!?/]")
_UNSHOWN_END = re.compile(r"</(?:script|style|title)", re.IGNORECASE)
_UNSHOWN = frozenset(("script", "style", "title"))
_BLOCKS = frozenset(
    (
        "address", "article", "blockquote", "body", "br", "center", "dd", "div", "dl", "dt", "footer",
        "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "main", "nav", "ol", "p", "pre",
        "section", "table", "tbody", "thead", "tr", "ul",
    )
)  # fmt: skip
_CELLS = frozenset(("td", "th"))
# The standard library's reader of character references raises on endless numbers.
_ENDLESS_REFERENCE = re.compile(r"&#(?:[xX][0-9a-fA-F]{9,}|[0-9]{9,});?")
_UNSEEN = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u2060-\u2064\ufeff]"
)


def html_to_text(source: str) -> str:
    """What a reader would see, one line a block, white space collapsed."""
    text = "".join(_shown(source))
    if "&" in text:
        text = unescape(_ENDLESS_REFERENCE.sub("\ufffd", text))
    text = _UNSEEN.sub("", text)
    lines = (" ".join(line.split()) for line in text.split("\x00"))
    return "\n".join(line for line in lines if line)


def _shown(source: str) -> list[str]:
    """The text between tags; ends of blocks as NUL, which text cannot hold otherwise."""
    source = source.replace("\x00", " ")
    shown: list[str] = []
    position, end = 0, len(source)
    while position < end:
        bracket = source.find("<", position)
        if bracket < 0:
            shown.append(source[position:])
            break
        shown.append(source[position:bracket])
        tag = _TAG.match(source, bracket)
        if tag is None:
            shown.append("<")
            position = bracket + 1
            continue
        name = (tag.group(1) or "").lower()
        shown.append("\x00" if name in _BLOCKS else " " if name in _CELLS else "")
        position = _behind_tag(source, bracket, name)
    return shown


def _behind_tag(source: str, bracket: int, name: str) -> int:
    """Behind the tag or comment that begins at the bracket, and behind what is not shown with it."""
    if source.startswith("<!--", bracket):
        return _behind(source, "-->", bracket + 4)
    position = _behind(source, ">", bracket)
    if name in _UNSHOWN and source[bracket + 1] != "/":
        found = _UNSHOWN_END.search(source, position)
        return _behind(source, ">", found.end()) if found else len(source)
    return position


def _behind(source: str, mark: str, position: int) -> int:
    found = source.find(mark, position)
    return len(source) if found < 0 else found + len(mark)
