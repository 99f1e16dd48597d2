"""Label sets: which words a network tells apart, and what becomes of all others."""

import dataclasses
from collections.abc import Sequence

KEYWORDS_10 = ('yes', 'no', 'up', 'down', 'left', 'right', 'on', 'off', 'stop', 'go')
WORDS_35 = (
    'backward',
    'bed',
    'bird',
    'cat',
    'dog',
    'down',
    'eight',
    'five',
    'follow',
    'forward',
    'four',
    'go',
    'happy',
    'house',
    'learn',
    'left',
    'marvin',
    'nine',
    'no',
    'off',
    'on',
    'one',
    'right',
    'seven',
    'sheila',
    'six',
    'stop',
    'three',
    'tree',
    'two',
    'up',
    'visual',
    'wow',
    'yes',
    'zero',
)
SILENCE = 'silence'
UNKNOWN = 'unknown'


@dataclasses.dataclass(frozen=True)
class LabelSet:
    """The classes of a classifier: `names[i]` is what output i stands for.

    `keywords` are the names that are words; `silence` and `unknown` are the indices of those two
    classes, or None where a label set does without.
    """

    names: tuple[str, ...]
    keywords: tuple[str, ...]
    silence: int | None
    unknown: int | None

    def __len__(self):
        """Returns the number of classes."""
        return len(self.names)

    def index(self, word):
        """Returns the class of a word or a folder name: its own, else unknown's, else None.

        >>> labels = label_set('12')
        >>> labels.index('stop'), labels.index('marvin'), labels.index('_silence_')
        (8, 11, 10)
        """
        word = word.strip('_') if word in (f'_{SILENCE}_', f'_{UNKNOWN}_') else word
        if word in self.names:
            return self.names.index(word)
        return None if word == SILENCE else self.unknown


def label_set(labels, *, other_words=True, noise=True):
    """Makes a label set of '12', '35' or words of one's own.

    '12' is yes, no, up, down, left, right, on, off, stop, go, silence, unknown; '35' is every word
    of Speech Commands v0.02, without silence and unknown. A list of words gets silence appended
    where there is `noise` to make it from, and unknown where there are `other_words`; a list that
    names one of the two itself decides its place.

    Args:
      labels: '12', '35', words separated by commas, or a sequence of words.
      other_words: whether the data holds words that are not in the list.
      noise: whether the data holds background noise.

    Raises:
      ValueError: no word, a word twice, or a single class.

    >>> label_set('lamp, heater').names
    ('lamp', 'heater', 'silence', 'unknown')
    >>> label_set(['lamp', 'heater'], other_words=False).names
    ('lamp', 'heater', 'silence')
    """
    if isinstance(labels, int):
        labels = str(labels)
    if labels == '12':
        names = (*KEYWORDS_10, SILENCE, UNKNOWN)
    elif labels == '35':
        names = WORDS_35
    else:
        names = _own_words(labels, other_words, noise)
    keywords = tuple(name for name in names if name not in (SILENCE, UNKNOWN))
    if not keywords or len(names) < 2:
        raise ValueError(
            f'labels must give at least one word and two classes, got {names}; add a word, or data '
            'with other words or background noise'
        )
    return LabelSet(
        names,
        keywords,
        names.index(SILENCE) if SILENCE in names else None,
        names.index(UNKNOWN) if UNKNOWN in names else None,
    )


def _own_words(labels, other_words, noise):
    if isinstance(labels, str):
        labels = labels.split(',')
    if not isinstance(labels, Sequence) or not all(isinstance(word, str) for word in labels):
        raise ValueError(
            "labels must be '12', '35', or words, in a sequence or separated by commas; "
            f'got {labels!r}'
        )
    words = [word.strip() for word in labels]
    words = [word.strip('_') if word.strip('_') in (SILENCE, UNKNOWN) else word for word in words]
    if not all(words):
        raise ValueError(f"labels holds an empty word: {labels!r}; give words like 'lamp,heater'")
    twice = sorted({word for word in words if words.count(word) > 1})
    if twice:
        raise ValueError(f'labels names {", ".join(twice)} more than once: {labels!r}')
    if noise and SILENCE not in words:
        words.append(SILENCE)
    if other_words and UNKNOWN not in words:
        words.append(UNKNOWN)
    return tuple(words)
