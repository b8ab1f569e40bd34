"""Tiny random models in the published layouts, made by transformers, with the tokenizers that go with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from voxzoo.components import SentencePieceTokenizer
from voxzoo.components.converters.tokenizers import export_tokenizer_files
from voxzoo.components.tokenizer import train_sentencepiece

LANGUAGES = ["deu", "eng", "spa"]
NUM_UNITS = 23
TEXTS = ["two small trains stop here, near the old house.", "¿dónde está? no, no; ÿ 42!", "der Zug hält an."]
WHISPER_PIECES = 330
WHISPER_SPECIALS = [
    "endoftext", "startoftranscript", "en", "zh", "es", "fr", "yue", "translate", "transcribe", "notimestamps"
]  # fmt: skip


def write_whisper_tokenizer(path: Path, specials: list[str] = WHISPER_SPECIALS) -> Path:
    """A small tokenizer.json in the form of Whisper's: bytes, pieces, eos, start, languages, tasks, no timestamps."""
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    texts = ["the train leaves at nine", "el tren sale a las nueve, ¿verdad?", "le train part à neuf heures"] * 3
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    model.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=WHISPER_PIECES, initial_alphabet=alphabet, show_progress=False)
    )
    missing = WHISPER_PIECES - model.get_vocab_size()
    assert missing >= 0
    content = json.loads(model.to_str())
    content["model"]["vocab"].update({f"unused{n}": WHISPER_PIECES - missing + n for n in range(missing)})
    model = Tokenizer.from_str(json.dumps(content))
    model.add_special_tokens([AddedToken(f"<|{name}|>", normalized=False, special=True) for name in specials])
    model.save(str(path))
    return path


def publish_whisper(folder: Path) -> Path:
    """Hears up to 8 s."""
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    ids = {name: WHISPER_PIECES + n for n, name in enumerate(WHISPER_SPECIALS)}
    special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), WHISPER_PIECES)
    config = transformers.WhisperConfig(
        vocab_size=WHISPER_PIECES + len(WHISPER_SPECIALS) + 3, d_model=12, encoder_layers=2, decoder_layers=1,
        encoder_attention_heads=3, decoder_attention_heads=3, encoder_ffn_dim=20, decoder_ffn_dim=20, num_mel_bins=9,
        max_source_positions=400, max_target_positions=90, decoder_start_token_id=ids["startoftranscript"],
        suppress_tokens=[], begin_suppress_tokens=[], **special,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.WhisperForConditionalGeneration(config)
    model.generation_config.update(max_length=40)
    model.save_pretrained(folder)
    write_whisper_tokenizer(folder / "tokenizer.json")
    _write(folder / "preprocessor_config.json", {"feature_size": 9, "chunk_length": 8})
    return folder


def _sentencepiece(folder: Path, layout: str, languages: list[str]) -> SentencePieceTokenizer:
    """A tokenizer's files in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    model = train_sentencepiece(TEXTS * 3, folder / "made.model", 70, len(languages))
    tokenizer = SentencePieceTokenizer(str(model), languages, 90, layout)  # pyright: ignore[reportArgumentType]
    export_tokenizer_files(tokenizer, folder)
    model.unlink()
    return tokenizer


def publish_nllb(folder: Path, languages: tuple[str, ...] = ("deu_Latn", "eng_Latn", "spa_Latn")) -> Path:
    """English, German and Spanish text."""
    import transformers

    names = [*languages, "<mask>"]
    tokenizer = _sentencepiece(folder, "nllb", names)
    config = transformers.M2M100Config(
        vocab_size=1 + tokenizer.num_pieces + len(names) + 3, d_model=12, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=20, decoder_ffn_dim=20,
        encoder_layerdrop=0.0, decoder_layerdrop=0.0, max_position_embeddings=60,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.M2M100ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def publish_m2m_100(folder: Path, languages: str = "m2m100") -> Path:
    """M2M-100 of 2020: ids in a vocab.json that knows fewer pieces than the SentencePiece model, in another order."""
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    made = train_sentencepiece(TEXTS * 3, folder / "made.model", 70, 0)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(made))
    names = [pieces.IdToPiece(number) for number in range(3, pieces.GetPieceSize())]
    kept = ["<s>", "<pad>", "</s>", "<unk>", *sorted(names, key=lambda name: (len(name) % 3, name))[:-6]]
    _write(folder / "made.json", {name: number for number, name in enumerate(kept)})
    tokenizer = transformers.M2M100Tokenizer(
        str(folder / "made.json"), str(made), src_lang="en", tgt_lang="de", language_codes=languages
    )
    tokenizer.save_pretrained(folder)
    made.unlink()
    (folder / "made.json").unlink()
    config = transformers.M2M100Config(
        vocab_size=len(kept) + len(tokenizer.lang_code_to_id) + 8, d_model=12, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=20, decoder_ffn_dim=20,
        encoder_layerdrop=0.0, decoder_layerdrop=0.0, max_position_embeddings=60, init_std=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.M2M100ForConditionalGeneration(config)
    model.generation_config.update(num_beams=3, max_length=30)
    model.save_pretrained(folder)
    return folder


def publish_hubert(folder: Path) -> Path:
    """A speech encoder of 50 states a second."""
    import transformers

    config = transformers.HubertConfig(
        hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20, conv_dim=[8, 8],
        conv_kernel=[20, 16], conv_stride=[20, 16], num_conv_pos_embeddings=6,
        num_conv_pos_embedding_groups=2, apply_spec_augment=False,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.HubertModel(config).save_pretrained(folder)
    _write(folder / "preprocessor_config.json", {"do_normalize": True, "return_attention_mask": False})
    return folder


def publish_xls_r(folder: Path, layers: int, dim: int) -> Path:
    """A speech encoder of 50 states a second that normalises before its layers."""
    import transformers

    config = transformers.Wav2Vec2Config(
        hidden_size=dim, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=20, conv_dim=[8] * 7,
        do_stable_layer_norm=True, feat_extract_norm="layer", conv_bias=True, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.Wav2Vec2Model(config).save_pretrained(folder)
    _write(folder / "preprocessor_config.json", {"do_normalize": True, "return_attention_mask": True})
    return folder


def publish_w2v_bert(folder: Path) -> Path:
    """A speech encoder with an adaptor behind it."""
    import transformers

    config = transformers.Wav2Vec2BertConfig(
        feature_projection_input_dim=18, hidden_size=12, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=20, conv_depthwise_kernel_size=5, add_adapter=True, apply_spec_augment=False,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.Wav2Vec2BertModel(config).save_pretrained(folder)
    _write(folder / "preprocessor_config.json", {"num_mel_bins": 9, "stride": 2})
    return folder


_SEAMLESS = {
    "hidden_size": 12,
    "feature_projection_input_dim": 18,
    "speech_encoder_layers": 1,
    "speech_encoder_attention_heads": 2,
    "speech_encoder_intermediate_size": 20,
    "conv_depthwise_kernel_size": 5,
    "adaptor_kernel_size": 4,
    "adaptor_stride": 4,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 20,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
    "speech_encoder_layerdrop": 0.0,
    "t2u_vocab_size": NUM_UNITS + 4 + len(LANGUAGES) + 5,
    "unit_hifi_gan_vocab_size": NUM_UNITS,
    "t2u_encoder_layers": 1,
    "t2u_decoder_layers": 1,
    "t2u_encoder_attention_heads": 2,
    "t2u_decoder_attention_heads": 2,
    "t2u_encoder_ffn_dim": 20,
    "t2u_decoder_ffn_dim": 20,
    "unit_embed_dim": 10,
    "lang_embed_dim": 6,
    "spkr_embed_dim": 4,
    "vocoder_num_langs": len(LANGUAGES),
    "vocoder_num_spkrs": 2,
    "upsample_initial_channel": 8,
    "upsample_rates": [5, 4],
    "upsample_kernel_sizes": [9, 8],
    "resblock_kernel_sizes": [3],
    "resblock_dilation_sizes": [[1, 3]],
    "max_position_embeddings": 60,
    "t2u_max_position_embeddings": 60,
    "t2u_max_new_tokens": 19,
}
_V2 = {
    "t2u_variance_predictor_embed_dim": 12,
    "t2u_variance_predictor_hidden_dim": 8,
    "t2u_variance_predictor_kernel_size": 3,
    "left_max_position_embeddings": 9,
    "right_max_position_embeddings": 2,
}


def publish_seamless(folder: Path, version: int) -> Path:
    """Text encoder, second pass and vocoder too."""
    import transformers

    tokenizer = _sentencepiece(folder, "seamless_m4t", LANGUAGES)
    characters = {"▁": 2, **{c: n for n, c in enumerate("abcdefghilmnoprstuyz.,;!?", start=3)}}
    more: dict[str, Any] = {**_V2, "char_vocab_size": len(characters) + 4} if version == 2 else {}
    suffix = "v2" if version == 2 else ""
    config = getattr(transformers, f"SeamlessM4T{suffix}Config")(
        vocab_size=1 + tokenizer.num_pieces + len(LANGUAGES) + 2, **_SEAMLESS, **more
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"SeamlessM4T{suffix}Model")(config)
    tables = {
        "text_decoder_lang_to_code_id": {lang: tokenizer.lang_id(lang) for lang in LANGUAGES},
        "t2u_lang_code_to_id": {lang: NUM_UNITS + 4 + n for n, lang in enumerate(LANGUAGES)},
        "vocoder_lang_code_to_id": {lang: n for n, lang in enumerate(LANGUAGES)},
    }
    if version == 2:
        tables["id_to_text"] = {str(n): piece for n, piece in enumerate(tokenizer.pieces()) if piece}
        tables["char_to_id"] = characters
    model.generation_config.update(pad_token_id=0, eos_token_id=3, max_new_tokens=17)
    for key, value in tables.items():
        setattr(model.generation_config, key, value)
    model.generation_config._from_model_config = False  # or the tables are forgotten
    model.save_pretrained(folder)
    _write(folder / "preprocessor_config.json", {"num_mel_bins": 9, "stride": 2})
    return folder


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content))
