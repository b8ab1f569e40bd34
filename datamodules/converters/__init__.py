"""Corpora in the layouts in which they are published, to a manifest: one module for each layout, named as it is.

Each has `rows(source, asked)`, which gives rows with the keys of a manifest one at a time, and says in its docstring
where the layout is written down; `TAKES` names what it takes of `asked.beside` and `asked.columns`.
`conversion.convert` does what is the same for all.
"""

from __future__ import annotations

KINDS = {
    "common_voice": "a language of Common Voice: clips/, train.tsv, validated.tsv ...",
    "fleurs": "a language of FLEURS: train.tsv ..., audio/; --with the language to translate into",
    "covost2": "TSVs of CoVoST 2; --with the language of Common Voice that they translate",
    "cvss": "a language of CVSS: train.tsv ..., train/; --with the language of Common Voice",
    "mustc": "a pair of MuST-C or mTEDx: data/SPLIT/{txt,wav}",
    "iwslt": "low-resource tracks of IWSLT: SPLIT/{txt,wav}, SPLIT/stm, or SPLIT.jsonl",
    "kaldi": "a data folder of Kaldi or ESPnet: wav.scp, segments, text, utt2spk",
    "audiofolder": "an audiofolder of Hugging Face: metadata.csv or .jsonl beside the audio",
    "saved_dataset": "a dataset of Hugging Face saved to disk, or its parquet files (extra: arrow)",
    "lhotse": "cuts of Lhotse: cuts.jsonl or cuts.jsonl.gz",
    "nemo": "a manifest of NeMo; tarred: --with the folder of its tar files",
    "seamless_m4t": "a fine-tuning manifest of SeamlessM4T",
    "webdataset": "tar files of WebDataset, read in place",
    "shar": "a folder of Lhotse Shar, read in place",
}
"""Name of a module -> what it reads."""
