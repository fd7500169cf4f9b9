"""Words that this project does not use for programs, with what to write instead: the documents are read by strangers.

`offences` is for documents, `offences_in_code` for modules: their comments, strings and names. test_docs.py runs both.
`python -m tests.dialect FILE...` is for an author.
"""

from __future__ import annotations

import io
import keyword
import re
import sys
import tokenize
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ALLOWED", "BANNED", "offences", "offences_in_code"]

BANNED: Final[dict[str, str]] = {
    r"\b(hears?|heard|hearing)\b": "receives, received; is notified",
    r"\b(says?|said|saying)\b": "states, reports, names; for example",
    r"\b(tells?|told|telling)\b": "notifies, reports, states",
    r"\bdeaf(ness)?\b": "receives nothing",
    r"\bbehind\b": "after",
    r"\b(whoever|whomever|whosoever)\b": "a named part, or 'a caller that'",
    r"\b(nobody|somebody|anybody|everybody)('s)?\b": "no subscriber, another user",
    r"\bin secret\b": "without reporting it; implicitly",
    r"\bwithout a word\b": "without a report",
    r"\bone's own\b": "your own",
    r"\bby (oneself|ourselves|yourself)\b": "name the party that does it",
    r"\bought to\b": "should",
    r"\bhearers?\b": "subscriber",
    r"\bmust needs\b|\bif need be\b": "if needed",
    r"\bgives? up on\b": "ends, abandons",
    r"\bas it were\b|\bso to speak\b": "leave it out",
    r"\b(program|server|worker|broker|adapter|process|client|task|link|peer)s? who\b": "that",
    r"\bthose who\b|\bthe one who\b|\bhe who\b": "those that, the one that",
    r"[,;] for (it|they|there|then|else|he|we|nothing|none)\b": "because",
}
"""What is not written, as a pattern, and what to write in its place."""

ALLOWED: Final = (
    r"\bbehind (a|an|the|another|one|all|four|each|its|these|such|HAProxy|nginx)? ?"
    r"(\w+ )?(proxy|proxies|balancer|balancers|firewall|NAT|four|HAProxy|nginx)\b",
    r"\bBehind (a|the) (\w+ )?(proxy|proxies|load balancer|balancer)\b",
    r"\bproxies behind\b",
    r'"nobody"',
)
"""Where such a word is the field's own term."""

_CODE: Final = re.compile(r"^```.*?^```$|`[^`\n]+`|\]\([^)\s]+\)|<https?:[^>]*>", re.MULTILINE | re.DOTALL)
# From Python 3.12 on an f-string is several tokens.
_PROSE: Final = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
_BANNED: Final = {
    re.compile(pattern.replace(" ", r"\s+"), re.IGNORECASE): instead for pattern, instead in BANNED.items()
}
_ALLOWED: Final = re.compile("|".join(ALLOWED), re.IGNORECASE)


def offences(text: str) -> list[str]:
    """Return what `text` holds of the banned words: the line, the words, and what to write.

    Code, in blocks and between backticks, is not looked at, nor are the targets of links.
    """
    prose = _blank(_ALLOWED, _blank(_CODE, text))
    return sorted(_found(prose), key=lambda line: int(line.partition(":")[0]))


def offences_in_code(source: str) -> list[str]:
    """Return the same of a Python module: of its comments, its strings, and the words of which its names are made."""
    lines = [""] * (source.count("\n") + 1)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in _PROSE or (token.type == tokenize.NAME and not keyword.iskeyword(token.string)):
            for row, part in enumerate(token.string.split("\n"), token.start[0] - 1):
                lines[row] += f" {_words(part)}"
    return offences("\n".join(lines))


def _words(text: str) -> str:
    """Return `text` with the words of its names apart, without what delimits strings and comments."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|_|#|^[rbfuRBFU]*(\"{3}|'{3}|\"|')|(\"{3}|'{3}|\"|')$", " ", text)


def _found(prose: str) -> Iterator[str]:
    for pattern, instead in _BANNED.items():
        for match in pattern.finditer(prose):
            yield f"{prose.count(chr(10), 0, match.start()) + 1}: {' '.join(match[0].split())!r}: {instead}"


def _blank(pattern: re.Pattern[str], text: str) -> str:
    """Return `text` with what matches made blank, so that every line keeps its number."""
    return pattern.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        check = offences_in_code if name.endswith(".py") else offences
        for line in check(Path(name).read_text(encoding="utf-8")):
            sys.stdout.write(f"{name}:{line}\n")
