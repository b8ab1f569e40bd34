"""M2M-100 / NLLB-200 folders: import, equal numbers, export, import again; random weights."""

import json

import pytest
import torch
from against import randomise
from voxzoo.components import SentencePieceTokenizer, TransformerSeq2Seq
from voxzoo.components.converters import describe, from_transformers, to_transformers
from voxzoo.components.converters.m2m_100 import FAMILY, _search
from voxzoo.components.converters.published import PublishedModel
from voxzoo.components.converters.tokenizers import export_tokenizer_files
from voxzoo.components.errors import UserError
from voxzoo.components.losses.cross_entropy import token_loss
from voxzoo.components.search import SearchOptions, generate
from voxzoo.components.tokenizer import train_sentencepiece
from voxzoo.components.types import Batch, Padded
from voxzoo.configs.build import build
from voxzoo.configs.compose import compose
from voxzoo.tasks.runs.published import export_run, write_run
from voxzoo.tasks.runs.run import load_run

transformers = pytest.importorskip("transformers")

PAD, EOS = 1, 2
SHAPES = {
    "deep": {"vocab_size": 41, "d_model": 24, "heads": 3, "ffn": 44, "encoder_layers": 2, "decoder_layers": 3},
    "wide": {"vocab_size": 67, "d_model": 40, "heads": 5, "ffn": 20, "encoder_layers": 3, "decoder_layers": 1},
    "gelu": {"vocab_size": 53, "d_model": 18, "heads": 1, "ffn": 33, "encoder_layers": 1, "decoder_layers": 2,
             "activation_function": "gelu", "scale_embedding": False},
}  # fmt: skip


def peer_of(vocab_size, d_model, heads, ffn, encoder_layers, decoder_layers, **changes):
    torch.manual_seed(0)
    config = transformers.M2M100Config(
        vocab_size=vocab_size,
        d_model=d_model,
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=ffn,
        decoder_ffn_dim=ffn,
        max_position_embeddings=16,
        init_std=0.3,
        **changes,
    )
    peer = transformers.M2M100ForConditionalGeneration(config).eval()
    randomise(peer)
    return peer


@pytest.fixture(params=SHAPES)
def peer(request):
    return peer_of(**SHAPES[request.param])


@pytest.fixture
def imported(peer, tmp_path):
    peer.save_pretrained(tmp_path / "published")
    return from_transformers(tmp_path / "published")


def batch(peer, *lengths):
    return Padded.from_list([torch.randint(4, peer.config.vocab_size, (n,)) for n in lengths], value=PAD)


def logits(peer, source, target):
    return peer(
        input_ids=source.data, attention_mask=source.mask.long(), decoder_input_ids=target.data, use_cache=False
    )


@torch.no_grad()
def test_states_and_logits(peer, imported):
    ours = imported.text_seq2seq
    # The second batch is longer than the peer's first table of positions; the third is a single row.
    for lengths, steps in (((7, 1, 12, 5), (3, 9, 1, 8)), ((41, 23), (17, 31)), ((6,), (5,))):
        source, target = batch(peer, *lengths), batch(peer, *steps)
        want = logits(peer, source, target)
        memory = ours.encode(source)
        got = ours(memory, target)
        torch.testing.assert_close(
            memory.data[memory.mask], want.encoder_last_hidden_state[memory.mask], atol=1e-5, rtol=1e-5
        )
        torch.testing.assert_close(got.data[target.mask], want.logits[target.mask], atol=2e-5, rtol=1e-5)


def test_loss_and_gradients(peer, imported, tmp_path):
    ours = imported.text_seq2seq
    source, target = batch(peer, 7, 3, 9), batch(peer, 6, 8, 2)
    labels = target.data[:, 1:].masked_fill(~target.mask[:, 1:], -100)
    want = peer(
        input_ids=source.data,
        attention_mask=source.mask.long(),
        decoder_input_ids=target.data[:, :-1],
        labels=labels,
    ).loss
    want.backward()
    states = ours.decode(ours.encode(source), Padded(target.data[:, :-1], target.lengths - 1))
    loss, _ = token_loss(ours.project, states, target.data[:, 1:], mask=states.mask, chunk_rows=5)
    loss.mean.backward()
    torch.testing.assert_close(loss.mean, want)
    # Gradients go the same way as weights: written as a checkpoint, they have the published names.
    with torch.no_grad():
        for weight in ours.parameters():
            assert weight.grad is not None
            weight.copy_(weight.grad)
    to_transformers(imported, tmp_path / "gradients")
    got = transformers.M2M100ForConditionalGeneration.from_pretrained(tmp_path / "gradients").state_dict()
    for name, weight in peer.named_parameters():
        torch.testing.assert_close(got[name], weight.grad, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


SEARCHES = {
    "greedy": ({"num_beams": 1}, {"method": "greedy"}),
    "beam": ({"num_beams": 5}, {"beam_size": 5, "early_stopping": False}),
    "early": (
        {"num_beams": 5, "early_stopping": True, "length_penalty": 1.7},
        {"beam_size": 5, "early_stopping": True, "length_penalty": 1.7},
    ),
}


@pytest.mark.parametrize("limit", [24, 5])  # the second cuts most rows
@pytest.mark.parametrize("search", SEARCHES)
def test_generated_ids_behind_a_forced_language(peer, imported, search, limit):
    theirs, options = SEARCHES[search]
    source = batch(peer, 7, 1, 12, 5, 9)
    lang = peer.config.vocab_size - 4
    limits = _search({"max_new_tokens": limit + 1}, None)  # the language counts
    config = transformers.GenerationConfig(
        pad_token_id=PAD, eos_token_id=EOS, bos_token_id=0, decoder_start_token_id=EOS, forced_bos_token_id=lang,
        max_new_tokens=limit + 1, suppress_tokens=[PAD], min_new_tokens=0, **theirs,
    )  # fmt: skip
    want = transformers.GenerationMixin.generate(
        peer,
        input_ids=source.data,
        attention_mask=source.mask.long(),
        generation_config=config,
    ).tolist()
    ours = imported.text_seq2seq
    named = {key: limits[key] for key in ("max_length", "max_length_a", "max_length_b", "force_eos")}
    choice = SearchOptions(**named, min_length=0, score="after_start", **options)
    with torch.no_grad():
        found = generate(ours, ours.encode(source), torch.tensor([[EOS, lang]] * 5), choice, EOS, PAD, 3)
    for row, hypotheses in zip(want, found, strict=True):
        assert row[:2] == [EOS, lang]
        end = row.index(EOS, 2) if EOS in row[2:] else len(row)
        assert hypotheses[0].tokens.tolist() == row[2:end]
    if limit < 24:
        assert any(EOS not in row[2:] for row in want)


def test_there_and_back_is_bit_equal(peer, imported, tmp_path):
    assert not imported.left
    to_transformers(imported, tmp_path / "exported")
    again, report = transformers.M2M100ForConditionalGeneration.from_pretrained(
        tmp_path / "exported", output_loading_info=True
    )
    assert not any(report.values()), report
    for name, value in peer.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    third = from_transformers(tmp_path / "exported")
    assert third.nodes == {**imported.nodes}
    for name, value in imported.state_dict().items():
        assert torch.equal(value, third.state_dict()[name]), name
    source = batch(peer, 7, 3)
    torch.testing.assert_close(
        logits(again.eval(), source, source).logits, logits(peer, source, source).logits, atol=0, rtol=0
    )
    before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("published", "exported"))
    assert before == after


@pytest.mark.parametrize(
    "ids",
    [{"bos_token_id": 6, "eos_token_id": 5, "decoder_start_token_id": 7}, {"pad_token_id": 0}, {"pad_token_id": 4}],
)
def test_special_ids_come_back_as_they_were(ids, tmp_path):
    """Also those of another tokenizer, which no part of voxzoo holds."""
    peer_of(**{**SHAPES["wide"], **ids}).save_pretrained(tmp_path / "published")
    to_transformers(from_transformers(tmp_path / "published"), tmp_path / "exported")
    for name in ("config.json", "generation_config.json"):
        before = json.loads((tmp_path / "published" / name).read_text())
        assert ids.items() <= before.items()
        assert json.loads((tmp_path / "exported" / name).read_text()) == before


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize(("key", "number"), [("eos_token_id", 5), ("decoder_start_token_id", 7), ("pad_token_id", 0)])
def test_special_ids_of_another_tokenizer_are_refused(tokenizer, tmp_path, name, key, number):
    peer_of(**{**SHAPES["deep"], "vocab_size": 98}).save_pretrained(tmp_path)
    export_tokenizer_files(tokenizer, tmp_path)
    describe(tmp_path)
    content = json.loads((tmp_path / name).read_text())
    (tmp_path / name).write_text(json.dumps({**content, key: number}))
    match = f"{name} has {key}={number}, but in the tokenizer of the nllb layout that is [12]: the files"
    with pytest.raises(UserError, match=match):
        describe(tmp_path)


def test_tables_of_older_files_are_left(peer, tmp_path):
    from safetensors.torch import load_file, save_file

    peer.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.encoder.embed_positions.weights"] = torch.zeros(3, 4)
    for name in ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors["model.shared.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    assert from_transformers(tmp_path).left == ["model.encoder.embed_positions.weights"]
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"lm_head\.weight differs from model\.shared\.weight"):
        from_transformers(tmp_path)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model_type": "nllb-moe"}, "model_type 'nllb-moe' is none that voxzoo has"),
        ({"decoder_ffn_dim": 7}, "encoder_ffn_dim=44 and decoder_ffn_dim=7: expected to be equal"),
        ({"activation_function": "tanh"}, "activation_function='tanh': expected one of relu"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False: only True"),
        ({"d_model": None}, "has no d_model"),
        ({"pad_token_id": None}, "has no pad_token_id"),
    ],
)
def test_what_is_refused(tmp_path, changes, match):
    peer_of(**SHAPES["deep"]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(UserError, match=match):
        from_transformers(tmp_path)


def test_search_settings_of_the_folder(tmp_path):
    peer_of(**SHAPES["deep"]).save_pretrained(tmp_path)
    assert describe(tmp_path)["task"]["search"] == {
        "_target_": "voxzoo.components.search.SearchOptions", "method": "greedy", "beam_size": 1,
        "length_penalty": 1.0, "score": "after_start", "early_stopping": False, "no_repeat_ngram": 0,
        "min_length": 0, "max_length": 198, "max_length_a": 0.0, "max_length_b": 198, "force_eos": False,
    }  # fmt: skip
    generation = {"num_beams": 4, "early_stopping": True, "length_penalty": 0.5, "max_new_tokens": 30}
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    search = describe(tmp_path)["task"]["search"]
    assert (search["method"], search["beam_size"], search["early_stopping"]) == ("beam", 4, True)
    assert (search["length_penalty"], search["max_length"]) == (0.5, 29)


# With a tokenizer: from text to text.

LANGUAGES = ["eng_Latn", "spa_Latn", "zho_Hans", "zho_Hant", "<mask>"]
TEXTS = [f"the train to Perú leaves on may {day} at {hour} o'clock" for day in range(1, 8) for hour in range(1, 6)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = train_sentencepiece(TEXTS, tmp_path_factory.mktemp("spm") / "t.model", 96, num_languages=5)
    return SentencePieceTokenizer(str(path), LANGUAGES, 98, "nllb", "transformers")


def test_text_to_text_as_the_pipeline_gives_it(tokenizer, tmp_path):
    peer = peer_of(**{**SHAPES["deep"], "vocab_size": 98})
    peer.save_pretrained(tmp_path)
    export_tokenizer_files(tokenizer, tmp_path)
    model = from_transformers(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, src_lang="eng_Latn")
    texts = ["the train leaves at 5", "Perú", "to may 7 clock o'clock on"]
    inputs = theirs(texts, return_tensors="pt", padding=True)
    source = Padded.from_list(
        [torch.tensor(model.tokenizer.source(text, "eng")) for text in texts], model.tokenizer.pad_id
    )
    assert torch.equal(source.data, inputs.input_ids)
    assert torch.equal(source.mask.long(), inputs.attention_mask)
    rows = peer.generate(
        **inputs, forced_bos_token_id=theirs.convert_tokens_to_ids("zho_Hant"), num_beams=5, max_new_tokens=21,
        suppress_tokens=[PAD],
    )  # fmt: skip
    want = theirs.batch_decode(rows, skip_special_tokens=True)
    options = SearchOptions(max_length=20, min_length=0, score="after_start", early_stopping=False, force_eos=False)
    prefix = torch.tensor([model.tokenizer.prefix("zho_Hant", "eng", "t2tt")] * 3)
    with torch.no_grad():
        found = generate(
            model.text_seq2seq, model.text_seq2seq.encode(source), prefix, options, model.tokenizer.eos_id,
            model.tokenizer.pad_id, model.tokenizer.unk_id,
        )  # fmt: skip
    assert [model.tokenizer.decode(best[0].tokens.tolist()) for best in found] == want


def test_a_run_of_an_imported_model(tokenizer, tmp_path):
    """Import, serve without the folder, export: the same text, the same files."""
    published = tmp_path / "published"
    peer = peer_of(**{**SHAPES["deep"], "vocab_size": 98})
    peer.generation_config.update(num_beams=3, max_length=30)
    peer.save_pretrained(published)
    export_tokenizer_files(tokenizer, published)
    theirs = transformers.AutoTokenizer.from_pretrained(published, src_lang="eng_Latn")
    text = "the train leaves at 5"
    row = peer.generate(
        **theirs(text, return_tensors="pt"),
        forced_bos_token_id=theirs.convert_tokens_to_ids("spa_Latn"),
        suppress_tokens=[PAD],
    )[0]
    write_run(from_transformers(published), tmp_path / "run")
    published.rename(tmp_path / "gone")
    task = load_run(tmp_path / "run").task
    source = torch.tensor([task.tokenizer.source(text, "eng")])
    batch = Batch(
        ids=("1",),
        task=("t2tt",),
        src_lang=("eng",),
        tgt_lang=("spa",),
        source=Padded(source, torch.tensor([source.shape[1]])),
    )
    assert task.predict(batch)[0].text == theirs.decode(row, skip_special_tokens=True)
    assert export_run(tmp_path / "run", tmp_path / "out")[1] == "m2m_100"
    for path in sorted((tmp_path / "gone").iterdir()):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_folder_with_tokenizer_json_alone_takes_either_behaviour(tokenizer, tmp_path):
    peer_of(**{**SHAPES["deep"], "vocab_size": 98}).save_pretrained(tmp_path)
    export_tokenizer_files(tokenizer, tmp_path)
    transformers.AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    (tmp_path / "sentencepiece.bpe.model").unlink()
    ours, other = (from_transformers(tmp_path, compat=compat) for compat in ("transformers", "fairseq2"))
    assert other.tokenizer.source(TEXTS[3], "spa") == ours.tokenizer.source(TEXTS[3], "spa")
    assert (ours.nodes["task"]["search"]["force_eos"], other.nodes["task"]["search"]["force_eos"]) == (False, True)


def test_a_tokenizer_of_another_model_is_refused(tokenizer, tmp_path):
    peer_of(**{**SHAPES["deep"], "vocab_size": 90}).save_pretrained(tmp_path)
    export_tokenizer_files(tokenizer, tmp_path)
    with pytest.raises(UserError, match=r"the tokenizer has \d+ ids .* the model's vocab_size is 90"):
        from_transformers(tmp_path)


def test_a_model_that_was_not_imported_goes_out(tokenizer, tmp_path):
    torch.manual_seed(0)
    sizes = {"vocab_size": 98, "dim": 24, "num_heads": 3, "ffn_dim": 44, "num_encoder_layers": 2,
            "num_decoder_layers": 1, "pad_id": 1}  # fmt: skip
    node = {"_target_": "voxzoo.components.TransformerSeq2Seq", **sizes}
    model = PublishedModel("m2m_100", {"text_seq2seq": node}, {})
    model.add_module("text_seq2seq", TransformerSeq2Seq(**sizes).eval())
    model.tokenizer = tokenizer
    to_transformers(model, tmp_path / "out")
    peer, report = transformers.M2M100ForConditionalGeneration.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(report.values()), report
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", src_lang="spa_Latn")
    assert isinstance(theirs, transformers.NllbTokenizer)
    assert theirs(TEXTS[3]).input_ids == tokenizer.source(TEXTS[3], "spa")
    source = Padded.from_list([torch.tensor(tokenizer.source(text, "spa")) for text in TEXTS[:3]], 1)
    with torch.no_grad():
        got = model.text_seq2seq(model.text_seq2seq.encode(source), source).data[source.mask]
        torch.testing.assert_close(got, logits(peer.eval(), source, source).logits[source.mask], atol=2e-5, rtol=1e-5)
    assert (peer.config.bos_token_id, peer.config.eos_token_id, peer.config.decoder_start_token_id) == (0, 2, 2)
    # It generates as a fresh run of voxzoo does, language token included in the length.
    assert (peer.generation_config.decoder_start_token_id, peer.generation_config.num_beams) == (2, 5)
    call = theirs(TEXTS[3], return_tensors="pt")
    rows = peer.generate(
        **call,
        forced_bos_token_id=tokenizer.lang_id("eng"),
        max_new_tokens=16,
        suppress_tokens=[PAD],
    )
    memory = model.text_seq2seq.encode(Padded(call.input_ids, torch.tensor([call.input_ids.shape[1]])))
    options = SearchOptions(max_length=15, min_length=0, score="after_start", force_eos=False)
    found = generate(model.text_seq2seq, memory, torch.tensor([tokenizer.prefix("eng")]), options, EOS, PAD, 3)
    assert rows[0].tolist() == [
        *tokenizer.prefix("eng"),
        *found[0][0].tokens.tolist(),
        *([EOS] if found[0][0].ended else []),
    ]
    for change, match in (
        ({"num_encoder_layers": 0}, "text_seq2seq with an encoder"),
        ({"_target_": "voxzoo.components.ConvAdaptor"}, "has a TransformerSeq2Seq there; got ConvAdaptor"),
        ({"tie_output": False}, "tie_output=False"),
        ({"key_bias": False}, "key_bias=False"),
        ({"position_start": 1}, "position_start=1"),
    ):
        model.nodes = {"text_seq2seq": {**node, **change}}
        with pytest.raises(UserError, match=match):
            to_transformers(model, tmp_path / "other")
    model.nodes = {"text_seq2seq": node, "adaptor": {"_target_": "voxzoo.components.ConvAdaptor"}}
    with pytest.raises(UserError, match="no other part; this model has ConvAdaptor as adaptor"):
        to_transformers(model, tmp_path / "other")
    model.nodes = {}
    with pytest.raises(UserError, match="this model has no text_seq2seq"):
        to_transformers(model, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("size", "layers", "dim", "ffn"), [("600m", 12, 1024, 4096), ("1_3b", 24, 1024, 8192), ("3_3b", 24, 2048, 8192)]
)
def test_published_sizes(size, layers, dim, ffn):
    config = compose(["task=text_to_text", f"text_seq2seq=nllb_{size}", "tokenizer=nllb"])
    assert config.tokenizer.vocab_size == 256206
    with torch.device("meta"):
        ours = build(config.text_seq2seq)
        peer = transformers.M2M100ForConditionalGeneration(
            transformers.M2M100Config(
                vocab_size=256206, d_model=dim, encoder_layers=layers, decoder_layers=layers, encoder_ffn_dim=ffn,
                decoder_ffn_dim=ffn, encoder_attention_heads=16, decoder_attention_heads=16,
            )
        )  # fmt: skip
        peer.tie_weights()
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in peer.parameters())
    names = FAMILY.key_map({"text_seq2seq": dict(config.text_seq2seq)}).load(
        dict(peer.named_parameters()), {f"text_seq2seq.{key}": value.shape for key, value in ours.state_dict().items()}
    )
    assert not names.missing
    assert not names.unused
    assert not names.left
