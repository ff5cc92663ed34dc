"""Names and credits of web captions: words that look like nouns and name somebody, or say where a picture comes from.

"Emma Stone arrives", "Bill Wood and a dog", "(AP Photo/John Smith)", "by Mike Jones on Unsplash", "SKU: CH-10293". Only
captions with two neighbouring capitalised words are looked at, one by one. A credit is taken out; the words of a name
get a mark at their end, so that they stay where they are and are read as nothing else.
"""

import re

from catlip.labels.cleaning import NAME
from catlip.labels.nouns.words import word_list

_GIVEN, _TITLES = word_list("name", "given"), word_list("name", "title")
_BRANDS = word_list("name", "brand")
_RUN = re.compile(r"(?<![\w'])[A-Z][a-z]+(?: (?:[A-Z]\.|[A-Z][a-z]*[A-Z]?[a-z'’-]+))+")
# In a title: what stands before a model's number is a name too, if the product follows (Galaxy S22 Ultra Soft Cover).
_MODEL = re.compile(r"\b([A-Z][a-z]+)(?= (?:[A-Z]+\d\w*|(?!19|20)\d{4,})(?: [A-Z][\w-]+){2})")
_WORD = re.compile(r"[A-Za-z-]+")
_HINT = re.compile(r"[/:|©(]|by [A-Z]|tock |FILE|File|oyalty|Images|Unsplash|hutterstock")  # one is in every credit
_CREDITS = re.compile(
    r"""
    \(?\b(?:AP|AFP|EPA|NASA|Reuters|REUTERS|Getty|Photo|Image)s?\b(?:\ (?:Photo|Images))?\ ?[/:|]\ ?[A-Z][^,.;|)]*\)?
    | \b(?i:photo(?:graph)?|image|picture|illustration|video)s?\ (?i:by|courtesy(?:\ of)?|credit:?)\ [A-Z][^,.;|)]*
    | \b(?i:credits?|photographer|source|copyright|sku|isbn|asin|acc\.\ no\.|item\ no\.)(?::|\ )\ ?[A-Z\d][^,.;|)]*
    | (?:©|\([cC]\))(?:\ ?[A-Z\d][\w.&-]*)+
    | \bby\ [A-Z][\w.'-]+(?:\ [A-Z][\w.'-]+)+(?:\ on\ [A-Z]\w+)?
    | \b(?i:royalty[\ -]free|getty\ images|shutterstock|istock(?:photo)?|adobe\ stock|dreamstime|alamy|unsplash)\b
    | \b(?i:stock)\ (?i:photo(?:graph(?:y)?)?|image|picture|vector|illustration|footage)s?\b
    | ^(?i:file)(?:\ photo)?(?::|\ [-–—])
    """,
    re.VERBOSE,
)  # fmt: skip


def mark_names(caption: str) -> str:
    """A caption without its credits, each word of a person's name with `NAME` at its end.

    Where every word has a capital, as in titles of products, none says that it is a name, but for a brand in front.
    """
    if _HINT.search(caption):
        caption = _CREDITS.sub(" , ", caption)
    if not _RUN.search(caption):
        return caption
    words = [word for word in caption.split() if word[0].isalpha()]
    capitals = sum(word[0].isupper() for word in words)
    if capitals * 2 <= len(words) + 1:
        return _RUN.sub(_mark, caption)
    caption = _MODEL.sub(rf"\1{NAME}", caption)
    first, _, rest = caption.partition(" ")
    return f"{first}{NAME} {rest}" if first.lower() in _BRANDS and len(words) > 2 else caption


def _mark(run: re.Match[str]) -> str:
    words = run[0].split(" ")
    for i, word in enumerate(words[:-1]):
        title = word.lower() in _TITLES
        if title or word.lower() in _GIVEN:
            rest = " ".join(words[i + title :])
            return " ".join([*words[: i + title], _WORD.sub(rf"\g<0>{NAME}", rest)])
    return run[0]
