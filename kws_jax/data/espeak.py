"""The espeak-ng synthesiser, called through ctypes, and what is known about its voices.

The library keeps state from one word to the next and seeds its noise by the clock: only an `Espeak`
that is the first and only one of its process, given a seed, says the same bytes again.
"""

import ctypes

import numpy as np

# The voice variants of espeak-ng 1.52, grouped by timbre: two share a group where they, or a chain
# of variants between them, differ by less than 3.5 in mean cepstral distance (c1..c19, 35 words,
# one accent). Left out are variants of whose words a nearest-template recogniser, made from the
# others, gets more than one in five wrong.
# fmt: off
TIMBRES = (
    ('Alex', 'Mike', 'Nguyen', 'croak', 'fast', 'grandpa', 'john',
     'm1', 'm3', 'm4', 'm5', 'm6', 'm7', 'max'),
    ('Andrea',), ('Andy',), ('anika', 'anikaRobot'), ('Annie',), ('announcer',), ('antonio',),
    ('AnxiousAndy',), ('aunty', 'f3', 'f4', 'linda'), ('belinda',), ('boris',), ('caleb',),
    ('david',), ('Denis', 'Diogo', 'Henrique', 'Hugo', 'michel', 'miguel'), ('ed',), ('f1',),
    ('f2', 'f5'), ('Gene', 'Gene2'), ('grandma',), ('gustave', 'marcelo'), ('ian',),
    ('iven', 'iven3', 'iven4'), ('Jacky',), ('klatt', 'klatt2'), ('m2',),
    ('m8', 'robosoft4', 'robosoft5', 'robosoft6', 'robosoft7'), ('Marco',),
    ('Mario', 'quincy', 'rob', 'robert'), ('Michael',), ('Mr serious',), ('norbert',),
    ('pablo',), ('paul',), ('pedro',),
    ('Reed', 'adam', 'benjamin', 'edward', 'edward2',
     'klatt3', 'klatt4', 'klatt5', 'klatt6', 'mike2'),
    ('RicishayMax',), ('robosoft',), ('robosoft2', 'robosoft3'), ('robosoft8',), ('sandro',),
    ('steph', 'steph2', 'steph3'), ('Storm',), ('travis',), ('Tweaky',), ('UniRobot',),
    ('victor',), ('whisper',),
)
# fmt: on

# Accents of English that are real accents, not alphabets: the package also has en-shaw.
ENGLISH_ACCENTS = (
    'en-us',
    'en',
    'en-us-nyc',
    'en-gb-x-rp',
    'en-gb-scotland',
    'en-gb-x-gbclan',
    'en-gb-x-gbcwmd',
    'en-029',
)

RATE_RANGE = (80, 450)  # words per minute that the library takes

_SYNCHRONOUS, _DO_NOT_EXIT, _UTF8 = 2, 0x8000, 1
_RATE, _PITCH, _PITCH_RANGE = 1, 3, 4
_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


def import_loader():
    """Returns the module `espeakng_loader`, which carries the library and its voices.

    Raises:
      ImportError: the package is not installed; the message says what to install.
    """
    try:
        import espeakng_loader
    except ImportError as error:
        raise ImportError(
            'synthetic speech needs the package espeakng-loader: pip install "kws_jax[synth]"'
        ) from error
    return espeakng_loader


class Espeak:
    """The synthesiser of this process; make one per process: the library's state is global.

    Args:
      seed: of the noise in fricatives and breath, 0 .. 2**31 - 1.

    Raises:
      ImportError: espeakng-loader is not installed.
      OSError: the library does not load, or does not find its data.

    `sample_rate` is in Hz (22050).
    """

    def __init__(self, *, seed):
        loader = import_loader()
        self._library = ctypes.CDLL(loader.get_library_path())
        data_path = loader.get_data_path()
        self.sample_rate = self._library.espeak_Initialize(
            _SYNCHRONOUS, 0, data_path.encode(), _DO_NOT_EXIT
        )
        if self.sample_rate <= 0:
            raise OSError(
                f'espeak-ng found no data in {data_path} ({len(data_path)} characters): it reads '
                'no path longer than 159; install the package under a shorter one'
            )
        self._library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
        self._library.espeak_ng_SetRandSeed(seed)
        self._chunks = []
        self._callback = _CALLBACK(self._receive)  # held here: the library keeps only the address
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples, count, _):
        if count > 0:
            self._chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    def set_voice(self, language, variant=''):
        """Chooses a language or accent ('en-us', 'de') and a voice variant ('': the plain voice).

        Raises:
          ValueError: the library knows no such language.
        """
        name = f'{language}+{variant}' if variant else language
        if self._library.espeak_SetVoiceByName(name.encode()) != 0:
            raise ValueError(
                'language must be one that espeak-ng speaks (`espeak-ng --voices` lists them), '
                f'got {language!r}'
            )

    def say(self, text, *, rate=175, pitch=50, pitch_range=50):
        """Speaks a text and returns its samples.

        Args:
          text: what to say.
          rate: words per minute, 80..450.
          pitch, pitch_range: height and liveliness of the melody, 0..99.

        Returns:
          int16 [samples] at `sample_rate`; the library adds about 0.1 s of silence at the end.
        """
        settings = (
            (_RATE, rate, *RATE_RANGE),
            (_PITCH, pitch, 0, 99),
            (_PITCH_RANGE, pitch_range, 0, 99),
        )
        for parameter, value, low, high in settings:
            self._library.espeak_SetParameter(parameter, int(min(max(round(value), low), high)), 0)
        self._chunks.clear()
        encoded = text.encode() + b'\0'
        status = self._library.espeak_Synth(
            encoded, ctypes.c_size_t(len(encoded)), 0, 1, 0, _UTF8, None, None
        )
        if status != 0:
            raise OSError(f'espeak-ng gave status {status} when asked to say {text!r}')
        return np.frombuffer(b''.join(self._chunks), '<i2')
