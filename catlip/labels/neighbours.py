"""What the words before and after a word say about whether it is a noun."""

import numpy as np

from catlip.labels.readings import Form, Kind

# What a neighbour says for (+) or against (-) a noun, by the word's other reading. Log-odds, by hand, checked on the
# gold set; columns: PLAIN, BASE_VERB, S_FORM, ING_FORM, PAST_FORM, ADJECTIVE, ADVERB.
BEFORE = {
    Kind.BREAK: (0, 0.0, 0.2, -0.5, 0.0, 0.2, -0.5),
    Kind.DETERMINER: (0, 2.0, 1.5, 1.5, 1.5, 0.5, 1.0),
    Kind.PREPOSITION: (0, 1.0, 1.2, 0.8, 1.0, 0.3, 0.5),
    Kind.CONJUNCTION: (0, -0.3, 0.0, -0.7, -0.5, 0.0, -0.5),
    Kind.PRONOUN: (0, -4.0, -3.0, -2.0, -3.0, -0.5, -1.0),
    Kind.AUXILIARY: (0, -1.5, -0.5, -2.5, -2.0, -0.7, -0.7),
    Kind.NUMBER: (0, 1.5, 2.5, 1.0, 1.0, 0.3, 0.0),
    Kind.ADVERB: (0, -0.7, -0.5, -1.0, -0.5, -0.3, 0.0),
    Kind.SINGULAR: (0, 0.7, -0.5, -0.3, -0.7, 0.0, -1.0),
    Kind.PLURAL: (0, -1.5, -0.5, -1.5, -1.0, -0.3, -1.0),
    Kind.VERB: (0, 0.8, 1.0, -0.5, 0.3, 0.3, -0.7),
    Kind.OTHER: (0, 0.8, 1.0, 0.5, 0.5, 0.3, 0.0),
    Kind.TO: (0, -3.0, 0.0, -0.5, -1.0, 0.0, -0.5),
    Kind.AGENT: (0, 0.0, -2.5, -2.0, -2.0, -0.3, -1.0),
    Kind.AGENTS: (0, -3.0, -1.5, -2.5, -2.0, -0.3, -1.0),
}
AFTER = {
    Kind.DETERMINER: (0, -1.0, -1.5, -2.0, -1.5, -0.5, 0.0),
    Kind.PREPOSITION: (0, -0.5, -0.3, -0.2, -0.3, 0.7, 0.0),
    Kind.PRONOUN: (0, -0.5, -1.0, -1.0, -1.0, 0.0, 0.0),
    Kind.ADVERB: (0, -0.5, -0.7, -0.7, -0.7, 0.0, 0.0),
    Kind.BREAK: (0, 0.3, 0.2, 0.0, 0.3, 0.7, 0.0),
    Kind.CONJUNCTION: (0, 0.2, 0.2, 0.0, 0.2, 0.5, 0.0),
    Kind.AUXILIARY: (0, 0.5, 0.5, 0.5, 0.5, 1.0, 0.0),
    Kind.SINGULAR: (0, 0.0, -0.3, -0.3, -0.3, -2.5, -0.5),
    Kind.PLURAL: (0, 0.0, -0.3, -0.3, -0.3, -2.5, -0.5),
    Kind.AGENT: (0, 0.0, -0.3, -0.3, -0.3, -2.5, -0.5),
    Kind.AGENTS: (0, 0.0, -0.3, -0.3, -0.3, -2.5, -0.5),
    Kind.VERB: (0, 0.5, 0.2, 0.2, 0.2, 0.7, 0.0),
    Kind.NUMBER: (0, -0.5, -1.0, -0.7, -0.7, 0.0, 0.0),
    Kind.TO: (0, -0.3, -0.5, -0.5, -0.5, 0.3, 0.0),
    Kind.OTHER: (0, 0.0, -0.3, -0.3, -0.3, -0.5, 0.0),
}


def table(rows: dict[Kind, tuple[float, ...]]) -> np.ndarray:
    table = np.zeros((len(Kind), len(Form)), np.float32)
    for kind, row in rows.items():
        table[kind] = row
    return table
