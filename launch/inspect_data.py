"""Reports what is in a folder of recordings and lists the suspect ones.

    python launch/inspect_data.py --data_dir=speech_commands --suspects=suspects.tsv

It takes the same --data_dir as launch/pipeline.py, which need not decode again what was decoded
here. Undecodable, clipped, near-silent, very short, long and duplicate recordings are listed;
nothing is changed. Decoding 20,000 recordings takes 6 s once; after that the report takes 2 s.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from absl import app, flags  # noqa: E402

_DATA_DIR = flags.DEFINE_string(
    'data_dir',
    None,
    'Folder in the Speech Commands layout, or one that holds such a folder as train/ and a test '
    'folder as test/.',
    required=True,
)
_TEST_DIR = flags.DEFINE_string(
    'test_dir', None, 'Folder in the layout of the official test archive.'
)
_CACHE_DIR = flags.DEFINE_string(
    'cache_dir', None, 'Where decoded audio is kept; default ~/.cache/kws_jax.'
)
_SUSPECTS = flags.DEFINE_string(
    'suspects', None, 'File to write the suspects to, as tab-separated values.'
)
_CLIPPED = flags.DEFINE_integer(
    'clipped_samples', 32, 'Samples at full scale that make a recording suspect.', lower_bound=1
)
_SILENT = flags.DEFINE_float(
    'silent_dbfs', -50.0, 'Level of the loudest tenth of a second that is near silence.'
)
_SHORT = flags.DEFINE_float('short_seconds', 0.5, 'Duration below which a recording is suspect.')
_LONG = flags.DEFINE_float('long_seconds', 1.05, 'Duration above which a recording is suspect.')


def main(argv):
    """Prints the report; writes the suspects if asked to."""
    if len(argv) > 1:
        raise app.UsageError(
            f'unexpected arguments {argv[1:]}; folders are given by --data_dir and --test_dir'
        )
    from kws_jax import config
    from kws_jax.data import inspection
    from kws_jax.data.sources import find_folders

    cache = config.cache_folder(_CACHE_DIR.value)
    try:
        data_dir, test_dir = find_folders(_DATA_DIR.value, _TEST_DIR.value)
        report = inspection.inspect(
            data_dir=data_dir,
            test_dir=test_dir,
            cache_dir=cache / 'audio',
            clipped_samples=_CLIPPED.value,
            silent_dbfs=_SILENT.value,
            short_seconds=_SHORT.value,
            long_seconds=_LONG.value,
        )
    except (OSError, ValueError) as e:
        raise SystemExit(f'inspect_data: {e}') from None
    print(inspection.format_report(report))
    if _SUSPECTS.value:
        try:
            inspection.write_suspects(report, _SUSPECTS.value)
        except OSError as e:
            raise SystemExit(
                f'inspect_data: --suspects={_SUSPECTS.value} cannot be written: {e.strerror}'
            ) from None
        print(f'{len(report.suspects)} suspects in {_SUSPECTS.value}')


if __name__ == '__main__':
    app.run(main)
