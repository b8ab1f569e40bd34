"""Key rules and voices of SeamlessM4T's unit vocoder (code HiFi-GAN), the same in v1 and v2."""

from __future__ import annotations

from .character_t2u import DURATION_PREDICTOR
from .keymap import Rule, same, within

_GENERATOR = [
    same("pre.~", "conv_pre.~"),
    same("upsamplers.*.~", "upsampler.*.~"),
    same("blocks.*.convs1.*.~", "resblocks.*.convs1.*.~"),
    same("blocks.*.convs2.*.~", "resblocks.*.convs2.*.~"),
    same("post.~", "conv_post.~"),
]


def vocoder_rules(prefix: str) -> list[Rule]:
    """`vocoder` of a model whose published keys begin with `prefix`."""
    rules = [
        same("units.weight", "unit_embedding.weight"),
        same("langs.weight", "language_embedding.weight"),
        same("speakers.weight", "speaker_embedding.weight"),
        *within("durations.", "dur_predictor.", DURATION_PREDICTOR),
        *within("generator.", "hifi_gan.", _GENERATOR),
    ]
    return within("vocoder.", prefix, rules)


def _table(text: str) -> dict[str, list[int]]:
    rows = (row.split() for row in text.split(";"))
    return {lang: [int(number) for number in numbers.split(",")] for lang, numbers in rows}


SPEAKERS = {
    1: _table(
        "arb 0; ben 2,1; cat 3; ces 4; cmn 5; cym 6; dan 7,8; deu 9; eng 10; est 11,12,13; fin 14; fra 15; "
        "hin 16; ind 17,24,18,20,19,21,23,27,26,22,25; ita 29,28; jpn 30; kor 31; mlt 32,33,34; nld 35; pes "
        "36; pol 37; por 38; ron 39; rus 40; slk 41; spa 42; swe 43,45,44; swh 46,48,47; tel 49; tgl 50; tha "
        "51,54,55,52,53; tur 58,57,56; ukr 59; urd 60,61,62; uzn 63,64,65; vie 66,67,70,71,68,69"
    ),
    2: _table(
        "arb 0; ben 1; cat 2; ces 3; cmn 4,5; cym 6; dan 7,8; deu 9; eng 10; est 11,12,13; fin 14; fra 15; "
        "hin 16; ind 17,24,18,20,19,21,23,27,26,22,25; ita 29,28; jpn 30; kor 31; mlt 32,33,34; nld 35,37,36; "
        "pes 38; pol 39; por 40; ron 41; rus 43,42; slk 44; spa 45; swe 46,48,47; swh 49,51,50; tel 52; tgl "
        "53; tha 54,57,58,55,56; tur 61,60,59; ukr 62; urd 63,64,65; uzn 66,67,68; vie 69,70,73,74,71,72"
    ),
}
"""Version -> language, in the order of the language table -> its speakers. The first is the one that the original code
takes; transformers takes speaker 0, whatever the language."""
