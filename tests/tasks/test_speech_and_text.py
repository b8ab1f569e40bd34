"""Multi-task training against plain transformers and PyTorch, R-Drop against two passes by hand."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from published import publish_seamless
from rows import ragged
from torch import Tensor, nn
from voxzoo.components import TransformerSeq2Seq
from voxzoo.components.converters import PublishedModel, from_transformers
from voxzoo.components.converters.published import family_of, load_part
from voxzoo.components.types import Batch, Padded
from voxzoo.tasks import SpeechAndTextToText, SpeechToText, TextToText
from voxzoo.tasks.text import text_loss

transformers = pytest.importorskip("transformers")

SWITCHES: dict[str, dict[str, Any]] = {
    "as published": {},
    "teacher detached": {"detach_teacher": True},
    "cross entropy": {"kd_loss": "cross_entropy"},
    "cross entropy, detached": {"kd_loss": "cross_entropy", "detach_teacher": True},
    "text encoder learns": {"train_text_encoder": True},
    "its embeddings stay": {"tie_embeddings": False},
    "language token": {"loss_on_lang_token": True},
    "output layer of its own": {"tie_output": False, "tie_embeddings": False, "detach_teacher": True},
    "warmer": {"kd_temperature": 2.0, "train_text_encoder": True},
    "without smoothing, other weights": {"label_smoothing": 0.0, "mt_weight": 0.3, "kd_weight": 0.7},
    "distillation alone": {"mt_weight": 0.0, "detach_teacher": True},
    "translation alone": {"kd_weight": 0.0, "train_text_encoder": True},
}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, PublishedModel]:
    """A tiny-random SeamlessM4T v2 as a folder, in transformers, and in voxzoo's parts."""
    folder = publish_seamless(tmp_path_factory.mktemp("seamless") / "v2", 2)
    peer = transformers.SeamlessM4Tv2Model.from_pretrained(folder).eval()
    roles = ("speech_encoder", "adaptor", "text_seq2seq", "frontend", "tokenizer")
    return folder, peer, from_transformers(folder, roles=roles)


def batch_of(ours: PublishedModel) -> Batch:
    """Four rows of several lengths; the third has no transcript."""
    tokenizer, width = ours.tokenizer, ours.nodes["speech_encoder"]["input_dim"]
    texts = ["two small trains", "near the old house", "", "der Zug"]
    targets = ["¿dónde está?", "42!", "no, no", "der Zug hält an"]
    ids = {
        "transcript": [tokenizer.encode(text) for text in texts],
        "source": [tokenizer.source(text, "eng") for text in texts],
        "target": [tokenizer.target(text, "spa", "eng", "s2tt") for text in targets],
    }
    rows = {
        name: Padded.from_list([torch.tensor(row, dtype=torch.int64) for row in some]) for name, some in ids.items()
    }
    return Batch(
        ids=tuple("abcd"), task=("s2tt",) * 4, src_lang=("eng",) * 4, tgt_lang=("spa",) * 4,
        speech=ragged((44, 31, 12, 27), width, seed=3), **rows,
    )  # fmt: skip


def build(folder: Path, ours: PublishedModel, **switches: Any) -> SpeechAndTextToText:
    """As `text_seq2seq.pretrained` makes it, sharing fewer matrices than the folder where asked."""
    own = {key: switches.pop(key) for key in ("tie_embeddings", "tie_output") if key in switches}
    node = {key: value for key, value in ours.nodes["text_seq2seq"].items() if key != "_target_"}
    text = TransformerSeq2Seq(**{**node, **own})
    loaded = load_part(text, "text_seq2seq", folder)
    assert not loaded.missing
    settings = {"label_smoothing": 0.2, **switches}
    return SpeechAndTextToText(
        speech_encoder=deepcopy(ours.speech_encoder), adaptor=deepcopy(ours.adaptor), text_seq2seq=text,
        tokenizer=ours.tokenizer, frontend=ours.frontend, **settings,
    ).eval()  # fmt: skip


def plain(peer: Any, batch: Batch, switches: dict[str, Any]) -> dict[str, Tensor]:
    """What GMU's trainer computes (mct10/IWSLT2025_LowRes_ST, seamlessm4t/trainer.py), in sums over tokens: its
    smoothing in fairseq's form, and rows without a transcript left out of what reads it."""
    from transformers.models.seamless_m4t_v2.modeling_seamless_m4t_v2 import _compute_new_attention_mask as mask_of

    assert batch.speech is not None
    assert batch.source is not None
    assert batch.target is not None
    assert batch.transcript is not None
    given = batch.speech.mask.long()
    states = peer.speech_encoder(input_features=batch.speech.data, attention_mask=given).last_hidden_state
    lengths = peer._compute_sub_sample_lengths_from_attention_mask(given)
    reads = (states, mask_of(hidden_states=states, seq_lens=lengths))
    source = peer.text_encoder(input_ids=batch.source.data, attention_mask=batch.source.mask.long()).last_hidden_state
    tokens, labels = batch.target.data[:, :-1], batch.target.data[:, 1:]
    kept = (batch.target.mask[:, 1:]).clone()
    count = kept if switches.get("loss_on_lang_token") else kept.clone()
    if not switches.get("loss_on_lang_token"):
        count[:, :1] = False

    def logits(memory: Tensor, mask: Tensor) -> Tensor:
        found = peer.text_decoder(
            input_ids=tokens, attention_mask=kept.long(), encoder_hidden_states=memory, encoder_attention_mask=mask
        )
        return peer.lm_head(found.last_hidden_state)

    def smoothed(scores: Tensor, where: Tensor) -> Tensor:
        log_probs = scores.log_softmax(-1)
        size, smoothing = scores.shape[-1], switches.get("label_smoothing", 0.2)
        goal = torch.full_like(log_probs, smoothing / (size - 1)).scatter(2, labels[..., None], 1 - smoothing)
        return (-(goal * log_probs).sum(-1) * where).sum()

    speech, text = logits(*reads), logits(source, batch.source.mask.long())
    heard = count & (batch.transcript.lengths > 0)[:, None]
    found = {"text": smoothed(speech, count)}
    if switches.get("mt_weight", 1.0):
        found["mt"] = switches.get("mt_weight", 1.0) * smoothed(text, heard)
    if switches.get("kd_weight", 2.0):
        warm = switches.get("kd_temperature", 1.0)
        teacher = (text.detach() if switches.get("detach_teacher") else text).div(warm).softmax(-1)
        student = speech.div(warm).log_softmax(-1)
        apart = F.kl_div(student, teacher, reduction="none")
        if switches.get("kd_loss") == "cross_entropy":
            apart = -teacher * student
        found["kd"] = switches.get("kd_weight", 2.0) * warm**2 * (apart.sum(-1) * heard).sum()
    return found


def prepared(peer: Any, switches: dict[str, Any]) -> Any:
    """The peer as GMU's finetune.py prepares it."""
    peer = deepcopy(peer)
    if switches.get("tie_embeddings", True) is False:
        peer.text_encoder.embed_tokens.weight = nn.Parameter(peer.shared.weight.clone().detach())
    if switches.get("tie_output", True) is False:
        peer.lm_head.weight = nn.Parameter(peer.shared.weight.clone().detach())
    if not switches.get("train_text_encoder"):
        for name, parameter in peer.text_encoder.named_parameters():
            # Embeddings that the decoder shares learn through it, and then through the encoder too.
            if name != "embed_tokens.weight" or switches.get("tie_embeddings", True) is False:
                parameter.requires_grad = False
    return peer


@pytest.mark.parametrize("name", SWITCHES)
def test_a_step_is_that_of_plain_computation_in_loss_and_every_gradient(published, name: str):
    folder, peer, ours = published
    switches = SWITCHES[name]
    task, peer, batch = build(folder, ours, **switches), prepared(peer, switches), batch_of(ours)
    losses, _ = task.measure(batch)
    still = torch.no_grad if not switches.get("train_text_encoder") else None
    if still is not None:  # the encoder runs without gradients there
        forward = peer.text_encoder.forward
        peer.text_encoder.forward = lambda *args, **kwargs: still()(forward)(*args, **kwargs)
    wanted = plain(peer, batch, switches)
    assert losses.keys() == wanted.keys()
    total, count = task.weighted(losses), losses["text"].count
    for key, value in wanted.items():
        torch.testing.assert_close(task.loss_weights.get(key, 1.0) * losses[key].total, value, atol=1e-5, rtol=1e-5)
    (total / count).backward()
    (sum(wanted.values()) / count).backward()
    found = {key: value.grad for key, value in task.named_parameters() if value.grad is not None}
    nodes = {**ours.nodes, "text_seq2seq": {**ours.nodes["text_seq2seq"], **switches}}
    written = family_of(ours.model_type, "test").key_map(nodes).save(found)
    theirs = {key: value.grad for key, value in peer.named_parameters() if value.grad is not None}
    assert theirs.keys() <= written.keys()
    assert {key for key in written if not key.endswith("embed_tokens.weight")} == theirs.keys()
    for key, value in theirs.items():
        torch.testing.assert_close(
            written[key], value, atol=1e-5, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}"
        )
    encoder = [key for key in theirs if key.startswith("text_encoder.layers")]
    assert bool(encoder) == bool(switches.get("train_text_encoder"))


def test_rows_without_a_transcript_learn_from_speech_alone(published):
    folder, _, ours = published
    task, batch = build(folder, ours), batch_of(ours)
    assert batch.transcript is not None
    none = replace(batch, transcript=Padded(batch.transcript.data, torch.zeros(4, dtype=torch.int64)))
    losses = task.measure(none)[0]
    assert float(losses["mt"].total) == float(losses["kd"].total) == 0
    assert losses["text"].total.equal(task.measure(batch)[0]["text"].total)


def test_what_it_serves(published):
    folder, _, ours = published
    task, batch = build(folder, ours), batch_of(ours)
    speech = {"speech_encoder": task.speech_encoder, "adaptor": task.adaptor, "frontend": task.frontend}
    text = {"text_seq2seq": task.text_seq2seq, "tokenizer": task.tokenizer}
    heard = SpeechToText(**speech, **text, ctc_weight=0.0).eval()
    read = TextToText(**text).eval()
    assert [p.text for p in task.predict(batch)] == [p.text for p in heard.predict(batch)]
    assert [p.text for p in task.predict(batch, task="t2tt")] == [p.text for p in read.predict(batch, task="t2tt")]
    assert task.modes == {"s2tt", "asr", "t2tt"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mt_weight": 0.0, "kd_weight": 0.0}, "take task=speech_to_text"),
        ({"kd_weight": -1.0}, "kd_weight=-1.0: expected at least 0"),
        ({"kd_temperature": 0.0}, "kd_temperature must be above 0; got 0"),
        ({"r_drop": -1.0}, "r_drop must be at least 0; got -1"),
    ],
)
def test_refuses(published, settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        build(published[0], published[2], **settings)


# R-Drop


def dropped(task: Any) -> Any:
    """In training mode, with more dropout than the folder has."""
    for module in task.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.2
    return task.train()


@pytest.mark.parametrize("kind", ["speech_to_text", "text_to_text", "speech_and_text_to_text"])
def test_r_drop_is_two_passes_that_are_to_agree(published, kind: str):
    """(CE1 + CE2 + a (KL(1||2) + KL(2||1)) / 2) / 2 of two passes by hand."""
    folder, _, ours = published
    both, batch, weight = build(folder, ours, r_drop=5.0), batch_of(ours), 5.0
    text = {"text_seq2seq": both.text_seq2seq, "tokenizer": both.tokenizer, "label_smoothing": 0.2, "r_drop": weight}
    if kind == "speech_to_text":
        speech = {"speech_encoder": both.speech_encoder, "adaptor": both.adaptor, "frontend": both.frontend}
        task: Any = SpeechToText(**speech, **text, ctc_weight=0.0)
    else:
        task = TextToText(**text) if kind == "text_to_text" else both
    dropped(task)
    torch.manual_seed(5)
    losses = task.measure(batch)[0]
    parameters = [p for p in task.parameters() if p.requires_grad]
    found = torch.autograd.grad(task.weighted(losses), parameters, allow_unused=True)
    assert batch.target is not None
    torch.manual_seed(5)
    passes = []
    for _ in range(2):
        speech_states = None if kind == "text_to_text" else task.text_pass(batch)[2]
        text_states = None
        if kind != "speech_to_text":
            text_states = task._states(batch) if kind == "text_to_text" else task.source_pass(batch)
        passes.append((speech_states, text_states))
    wanted, has_text = torch.zeros(()), torch.tensor([True, True, kind == "text_to_text", True])
    for place, rows in ((0, None), (1, has_text)):
        if passes[0][place] is None:
            continue
        first, second = passes[0][place], passes[1][place]
        mask = first.mask.clone()
        mask[:, :1] = False
        mask = mask if rows is None else mask & rows[:, None]
        p, q = (task.text_seq2seq.project(x.data)[mask].log_softmax(-1) for x in (first, second))
        apart = F.kl_div(p, q.exp(), reduction="sum") + F.kl_div(q, p.exp(), reduction="sum")
        wanted = wanted + 0.5 * weight * 0.5 * apart
        for states in (first, second):
            wanted = wanted + 0.5 * text_loss(task.text_seq2seq, states, batch.target, 0.2, False, rows=rows)[0].total
    if kind == "speech_and_text_to_text":
        for states, source in passes:
            p, q = (task.text_seq2seq.project(x.data)[mask].log_softmax(-1) for x in (states, source))
            wanted = wanted + 0.5 * 2.0 * F.kl_div(p, q.exp(), reduction="sum")
    torch.testing.assert_close(task.weighted(losses), wanted, atol=1e-4, rtol=1e-5)
    theirs = torch.autograd.grad(wanted, parameters, allow_unused=True)
    for one, other in zip(found, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-4)
    assert float(losses["r_drop"].total) > 0
    assert "r_drop" not in task.eval().measure(batch)[0]
