"""Character sets of mail: octets to text that can always be stored and shown.

Owns the table of charsets that are decoded and the fallbacks for what senders
write wrongly. Never raises: unknown names and bad octets come out as
replacement characters. Text from here holds no NUL and no lone surrogates.
Python's codecs that are no charsets, or cost quadratic time, are not reachable.

RFC 2978 (charset names), RFC 2046 4.1.2.
"""

import re
from encodings.aliases import aliases

_CODECS = """
ascii utf-8 utf-8-sig utf-7 utf-16 utf-16-be utf-16-le utf-32 utf-32-be utf-32-le big5 big5hkscs
cp037 cp424 cp437 cp500 cp720 cp737 cp775 cp850 cp852 cp855 cp856 cp857 cp858 cp860 cp861 cp862
cp863 cp864 cp865 cp866 cp869 cp874 cp875 cp932 cp949 cp950 cp1006 cp1026 cp1125 cp1140 cp1250
cp1251 cp1252 cp1253 cp1254 cp1255 cp1256 cp1257 cp1258 euc_jp euc_jis_2004 euc_jisx0213 euc_kr
gb2312 gbk gb18030 hz iso2022_jp iso2022_jp_1 iso2022_jp_2 iso2022_jp_2004 iso2022_jp_3
iso2022_jp_ext iso2022_kr iso8859-1 iso8859-2 iso8859-3 iso8859-4 iso8859-5 iso8859-6 iso8859-7
iso8859-8 iso8859-9 iso8859-10 iso8859-11 iso8859-13 iso8859-14 iso8859-15 iso8859-16 johab koi8-r
koi8-t koi8-u kz1048 mac-cyrillic mac-greek mac-iceland mac-latin2 mac-roman mac-turkish ptcp154
shift_jis shift_jis_2004 shift_jisx0213 tis-620
"""

# What senders say, and what they mean: supersets where the name is narrower than the octets.
_MEANT = {
    "iso8859-1": "cp1252",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "tis-620": "cp874",
    "iso8859-9": "cp1254",
    "iso2022_jp": "iso2022_jp_2",
}
_ALIASES = {
    "ks_c_5601-1987": "cp949",
    "ks_c_5601": "cp949",
    "ks-c-5601-1987": "cp949",
    "x-sjis": "cp932",
    "x-gbk": "gb18030",
    "x-big5": "big5hkscs",
    "x-euc-jp": "euc_jp",
    "unicode-1-1-utf-7": "utf-7",
    "unicode-1-1-utf-8": "utf-8",
    "x-unicode-2-0-utf-7": "utf-7",
    "iso-8859-8-i": "iso8859-8",
    "iso-8859-8-e": "iso8859-8",
    "iso-8859-6-i": "iso8859-6",
    "iso-8859-6-e": "iso8859-6",
    "x-mac-roman": "mac-roman",
    "x-mac-cyrillic": "mac-cyrillic",
    "macintosh": "mac-roman",
    "utf8mb4": "utf-8",
    "utf": "utf-8",
    "windows-874": "cp874",
    "windows-949": "cp949",
    "windows-31j": "cp932",
}
_SURROGATE = re.compile("[\ud800-\udfff]")


def decode_text(octets: bytes, charset: str = "") -> str:
    """Octets as text by a charset's name, or by guess where the name is missing or unknown."""
    codec = _codec(charset.strip()[:64]) if charset else None
    if codec is None or codec == "ascii":
        return storable(_guess(octets))
    try:
        return storable(octets.decode(codec, "replace"))
    except (UnicodeError, ValueError, LookupError):
        return storable(_guess(octets))


def storable(text: str) -> str:
    """The text with a replacement character for each NUL and lone surrogate."""
    if text.isascii():
        return text.replace("\x00", "\ufffd") if "\x00" in text else text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        text = _SURROGATE.sub("\ufffd", text)
    return text.replace("\x00", "\ufffd")


def _guess(octets: bytes) -> str:
    """UTF-8 if it is that, else the octets' commonest meaning in old mail."""
    try:
        return octets.decode("utf-8")
    except UnicodeDecodeError as error:
        cut_short = error.reason == "unexpected end of data" and error.start >= len(octets) - 3
        if cut_short and not octets[: error.start].isascii():
            return octets.decode("utf-8", "replace")
        return octets.decode("cp1252", "replace")


def _codec(name: str) -> str | None:
    """Python's codec for a charset's name; a stranger's name never reaches the codec registry."""
    return _NAMES.get(_spelling(name))


def _spelling(name: str) -> str:
    """One spelling for names that differ in their separators alone."""
    return name.lower().replace("-", "_").replace(" ", "_").replace(".", "_").replace(":", "_")


def _name_table() -> dict[str, str]:
    # The registry imports a module for each name it is asked and remembers every failure for
    # good, so names from mail are looked up in a table made once.
    codec_of_module = {_spelling(codec): codec for codec in _CODECS.split()}
    codec_of_module |= {"latin_1": "iso8859-1", "utf_8_sig": "utf-8-sig", "tis_620": "tis-620"}
    table = dict(codec_of_module)
    for alias, module in aliases.items():
        if module in codec_of_module:
            table[_spelling(alias)] = codec_of_module[module]
    meant = {alias: _MEANT.get(codec, codec) for alias, codec in table.items()}
    return meant | {_spelling(alias): codec for alias, codec in _ALIASES.items()}


_NAMES = _name_table()
