"""A data module that is no `UtteranceData`: the role alone is enough to be checked, planned, trained on and scored."""

from __future__ import annotations

from dataclasses import replace

from conftest import PARTS
from torch.utils.data import Dataset
from voxzoo.components.roles import DataModule
from voxzoo.configs import check, compose
from voxzoo.datamodules import BatchSampler, Collator, Utterance, check_data
from voxzoo.datamodules.loader import ResumableLoader
from voxzoo.datamodules.resume import follow_epoch, position, restore
from voxzoo.tasks import train
from voxzoo.tasks.planning.rehearsal import Rehearsal
from voxzoo.tasks.serving.evaluation import evaluate_run

NUMBERS = ("uno", "dos", "tres", "cuatro", "cinco")
ENGLISH = ("one", "two", "three", "four", "five")


class Listed(Dataset):
    def __init__(self, items) -> None:
        self.items = items

    def __getitem__(self, item):
        return self.items[item[1]]


class Pairs(DataModule):
    """Pairs of sentences that are made as they are asked for."""

    needs = frozenset({"source", "target"})
    longest_seconds = None
    tasks = ("t2tt",)

    def __init__(self, *, tokenizer=None, frontend=None, batch_size: int = 4) -> None:
        super().__init__()
        self.tokenizer, self.frontend, self.batch_size = tokenizer, frontend, batch_size
        self.dropped = {}

    def splits(self):
        return "train", "valid"

    def rows(self, split):
        count = 25 if split == "train" else 3
        return [
            Utterance(id=f"{split}{n}", src_text=f"{NUMBERS[n % 5]} {NUMBERS[n // 5]}", src_lang="spa",
                      tgt_text=f"{ENGLISH[n % 5]} {ENGLISH[n // 5]}", tgt_lang="eng")
            for n in range(count)
        ]  # fmt: skip

    def utterances(self, split, *, tasks, needs):
        return [replace(row, task=task) for task in tasks for row in self.rows(split)]

    def collator(self, needs=None):
        return Collator(None, self.tokenizer, self.needs if needs is None else needs)

    def plan(self, needs, world_size=1):
        items = self.utterances("train", tasks=self.tasks, needs=needs)
        return items, self.sampler(items, True, world_size).plan(0), []

    def sampler(self, items, shuffle, world_size=None):
        lengths = [len(item.src_text) for item in items]
        return BatchSampler(
            seconds=[0.0] * len(items),
            tokens=lengths,
            batch_size=self.batch_size,
            shuffle=shuffle,
            world_size=world_size,
        )

    def train_dataloader(self):
        items = self.utterances("train", tasks=self.tasks, needs=self.needs)
        sampler = self.sampler(items, True)
        loader = ResumableLoader(
            Listed(items),
            sampler=sampler,
            position=lambda: position(self.trainer),
            options={"collate_fn": self.collator()},
        )
        loader.restored = lambda state: restore(self.trainer, state, sampler)
        loader.begun = lambda: follow_epoch(self.trainer, sampler)
        return loader

    def val_dataloader(self):
        items = self.utterances("valid", tasks=self.tasks, needs=self.needs)
        options = {"collate_fn": self.collator()}
        return ResumableLoader(Listed(items), sampler=self.sampler(items, False), options=options)


def test_it_keeps_the_contract():
    outcomes = {outcome.name: outcome.note for outcome in check_data(Pairs)}
    assert {name for name, note in outcomes.items() if note} == {"audio", "lengths", "workers"}


def test_it_is_checked_planned_trained_on_and_scored(tmp_path, monkeypatch):
    monkeypatch.setenv("VOXZOO_ALLOW", __name__)
    config = compose([*PARTS, "task=text_to_text"])
    node = {"_target_": f"{__name__}.Pairs", "tokenizer": "${tokenizer}", "frontend": None}
    config.data = {**node, "batch_size": 4}
    config.tokenizer.vocab_size = 40
    assert check(config) == []
    data = Rehearsal(config).data
    assert (data.note, data.utterances, data.hours, data.steps) == ("Pairs", 25, 0, 7)
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "pairs.yaml").write_text(
        f"_target_: {__name__}.Pairs\ntokenizer: ${{tokenizer}}\nfrontend: null\nbatch_size: 4\n"
    )
    words = [*PARTS, "task=text_to_text", "data=pairs", "tokenizer.vocab_size=40", "logger=none", f"root={tmp_path}"]
    steps = ["trainer.max_steps=9", "trainer.val_check_interval=9"]
    search = "+task.search={_target_:voxzoo.components.search.SearchOptions,beam_size:1,max_length:4}"
    run = train([*words, *steps, search], config_dirs=[str(tmp_path)])
    scores = evaluate_run(run["run"], "valid", recogniser="none")
    assert (scores["num_utterances"], scores["dropped"]) == (3, [])
