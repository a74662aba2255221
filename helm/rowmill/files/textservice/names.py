"""What the example service knows of place names: folding, words, abbreviations, kind, sound, and a key for look-alikes.

Everything is a pure function of its texts. The rules are those of a data-cleaning job, not of a demo: real airport
names abbreviate in many ways ("Intl", "Int'l", "Muni", "Cty"), put other names in parentheses or after a slash, and
spell one place differently from table to table.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final, NamedTuple

# What decomposition leaves whole.
_LETTERS: Final = str.maketrans(
    {"ß": "ss", "æ": "ae", "Æ": "AE", "ø": "o", "Ø": "O", "œ": "oe", "Œ": "OE", "ł": "l", "Ł": "L", "đ": "d", "ð": "d"}
)
_APOSTROPHES: Final = re.compile("['`\u2019\u02bb\u00b4]")
_WORD: Final = re.compile(r"[a-z0-9]+")
_ASIDE: Final = re.compile(r"\(([^()]*)\)|\"([^\"]*)\"")

_ABBREVIATIONS: Final = {
    "afb": "air force base", "airfld": "airfield", "airpt": "airport", "arpt": "airport", "apt": "airport",
    "arpk": "airpark", "co": "county", "cnty": "county", "cty": "county", "exec": "executive", "fld": "field",
    "ft": "fort", "gen": "general", "hosp": "hospital", "intl": "international", "intnl": "international",
    "is": "island", "jr": "junior", "lk": "lake", "mem": "memorial", "meml": "memorial", "metro": "metropolitan",
    "mt": "mount", "mtn": "mountain", "mun": "municipal", "muni": "municipal", "natl": "national",
    "ngb": "national guard base", "nas": "naval air station", "regl": "regional", "reg": "regional",
    "rgnl": "regional", "spb": "seaplane base", "sr": "senior", "univ": "university",
}  # fmt: skip
_NOT_FIRST: Final = frozenset({"co", "is", "reg", "apt", "mem", "mun"})  # first in a name they are names themselves

# In this order: the first that fits is the kind.
_KINDS: Final[tuple[tuple[str, frozenset[str]], ...]] = (
    ("heliport", frozenset({"heliport", "helistop"})),
    ("seaplane base", frozenset({"seaplane", "waterport"})),
    ("military", frozenset({"air force", "naval", "army", "national guard", "aaf", "military"})),
    ("international", frozenset({"international"})),
    ("regional", frozenset({"regional", "area", "tri"})),
    ("municipal", frozenset({"municipal", "city"})),
    ("county", frozenset({"county", "parish", "borough"})),
    ("airpark", frozenset({"airpark", "skypark", "flightpark"})),
)
# Words that tell one airport from another as little as "street" does an address.
_COMMON: Final = frozenset(
    (
        *("airport", "airfield", "airpark", "field", "base", "air", "force", "seaplane", "memorial", "executive"),
        *("international", "national", "regional", "metropolitan", "municipal", "county", "city", "state", "area"),
        *("the", "of", "and", "at"),
    )
)
_SOUNDEX: Final = {c: str(d) for d, cs in enumerate(("bfpv", "cgjkqsxz", "dt", "l", "mn", "r"), 1) for c in cs}


class Name(NamedTuple):
    """A name taken apart: its words, written out and folded, and the other names it mentions."""

    words: tuple[str, ...]
    also: tuple[str, ...]


def fold(text: str) -> str:
    """Lower case, without accents and compatibility forms: `Ａ Coruña` → `a coruna`."""
    plain = unicodedata.normalize("NFKD", text.translate(_LETTERS))
    return "".join(c for c in plain if not unicodedata.combining(c)).casefold()


def words_of(text: str) -> tuple[str, ...]:
    """Folded words; an apostrophe joins what it stands between: `O'Hare Int'l` → `ohare`, `intl`."""
    return tuple(_WORD.findall(_APOSTROPHES.sub("", fold(text))))


def written_out(words: tuple[str, ...]) -> tuple[str, ...]:
    """Abbreviations in full. `st` is Saint before a name and nothing we dare to guess behind one."""
    result: list[str] = []
    for i, word in enumerate(words):
        if word == "st" and i + 1 < len(words) and words[i + 1] not in _COMMON and words[i + 1] not in _ABBREVIATIONS:
            result.append("saint")
        elif word in _ABBREVIATIONS and not (i == 0 and word in _NOT_FIRST):
            result.extend(_ABBREVIATIONS[word].split())
        else:
            result.append(word)
    return tuple(result)


def take_apart(name: str) -> Name:
    """Words of the name itself; what stands in parentheses or quotes are other names."""
    asides = [a or b for a, b in _ASIDE.findall(name)]
    main = written_out(words_of(_ASIDE.sub(" ", name)))
    also = [written_out(words_of(aside)) for aside in asides]
    if not main and also:
        main = also.pop(0)
    return Name(main, tuple(" ".join(words) for words in also if words))


def kind_of(words: tuple[str, ...]) -> str:
    """What kind of airport its name says it is; `other` where it says nothing."""
    text = f" {' '.join(words)} "
    for kind, signs in _KINDS:
        if any(f" {sign} " in text for sign in signs):
            return kind
    return "other"


def distinctive(words: tuple[str, ...]) -> tuple[str, ...]:
    """Without the words that most names share; all of them where nothing else is left."""
    return tuple(word for word in words if word not in _COMMON) or words


def soundex(word: str) -> str:
    """American Soundex (`robert` and `rupert` → `R163`); digits stand as they are, an empty word for `0000`."""
    letters = [c for c in word if c.isalpha() and c.isascii()]
    if not letters:
        return (word[:4]).ljust(4, "0")
    code, last = letters[0].upper(), _SOUNDEX.get(letters[0], "")
    for letter in letters[1:]:
        digit = _SOUNDEX.get(letter, "")
        if digit and digit != last:
            code += digit
        if letter not in "hw":  # these two do not part equal sounds, vowels do
            last = digit
    return code[:4].ljust(4, "0")


def lookalike_key(words: tuple[str, ...], city: tuple[str, ...], state: str) -> str:
    """Alike for spellings of one place: the sounds of its distinctive words, without order, its city's left out."""
    own = [word for word in distinctive(words) if word not in city] or list(distinctive(words))
    return "-".join([state.lower(), *sorted({soundex(word) for word in own})])
