"""Is a caption English? A sum over its words, so that a caption of three words can be judged too.

Function words of English speak against another language, those of other languages and letters of other scripts for it;
nouns of WordNet a little against, for they are borrowed and coincide (French court, plage); words that nothing knows a
little for, since names and brands are such, too. The weights are log-odds, rounded, from Multi30k's German and French
and Flickr30k's English. What only says "dog" or "adidas" says nothing of its language, and counts as English.
"""

from catlip.labels.readings import CLOSED

FOREIGN = 7  # sum from which on a caption is not English
_ENGLISH_WORD, _NOUN, _SHORT_NOUN, _UNKNOWN, _OF_NAMES, _FOREIGN_WORD, _MOST = -6, -2, -1, 2, 4, 6, 24

# Function words of English that another language has too.
_SHARED = frozenset("a am an as do en he her i in me no on per so us was will 's 'd 'm 't & n ii iii iv".split())
# The commonest words of captions that are neither nouns for WordNet nor function words.
COMMON = frozenset(
    """amazing asleep awesome bald barefoot beautiful beige big blonde blurry bright busy cheap closed colorful
    colourful crowded cute different dirty dressed eat eats empty fluffy fresh funny furry grassy grey happy
    hard healthy hot huge little lonely lovely low modern muddy narrow nearby nice old older outdoor pretty
    purple rainy rocky runs sad sandy shiny short sit sits small smaller smiling snowy stands striped sunny tall
    tasty teenage tiny ugly urban vintage wearing wet wide wild wooden young younger""".split()
)
_OTHERS = frozenset(
    """al alla au aus aux bei beim bij bir cette como con cuando da das dans de dei del della dem der des di dla dois du
    e een ein eine einem einen einer eines el elle entre er est et gli het il ile im ist je jest la las le les leur los
    lui mais mit na naar nach nao nel nella neben niet nicht och oder op os ou para pela pelo por pres que qui
    sa se ses seu sich sie sind sobre som sont su sua sul sulla sur trois tres um uma un una und une uno unos unter
    vom von vor wahrend wird y zijn zu zum zur zwei""".split()
) - frozenset(CLOSED)  # fmt: skip
_NAMES = frozenset("da de del di du el la las le los von".split())  # Rio de Janeiro, Los Angeles


def evidence(word: str, *, noun: bool) -> int:
    """What a lower-case word without accents says against the caption being English. noun: of WordNet."""
    if (word in CLOSED and word not in _SHARED) or word in COMMON:
        return _ENGLISH_WORD
    if word in CLOSED or not word[0].isalpha():
        return 0
    if word in _OTHERS:
        return _OF_NAMES if word in _NAMES else _FOREIGN_WORD
    letters = sum(character > "ɏ" for character in word)  # behind the last Latin block
    if letters:
        return min(letters, _MOST)
    if noun:
        return _NOUN if len(word) > 3 else _SHORT_NOUN
    return 0 if word.endswith(("ing", "ed", "ly")) or len(word) == 1 else _UNKNOWN
