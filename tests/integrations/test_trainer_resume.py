"""A trainer's checkpoint of another run: the sentence says what differs, and decisions fall once."""

from __future__ import annotations

import pytest
from peft import LoraConfig, get_peft_model
from tests.integrations.small_trainer import placed, resumable, trainer
from tests.tiny import tiny_model
from tests.training.small import adapted

from loratlas.errors import OutputError

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

OTHERS = {
    "policy": ({"policy": "energy"}, "belongs to another run: policy was 'random', now 'energy'"),
    "budget": ({"budget": 3000}, "belongs to another run: budget was none, now '3000'"),
    "placement": ({"placement": "q,v"}, "belongs to another run: placement was 'all', now 'q,v'"),
    "head": ({"head": 5}, "decides after steps 4, 6 of 12, this run after step 5 of 12"),
    "decide": ({"decide": "once"}, "decides after steps 4, 6 of 12, this run after step 4 of 12"),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Its folder."""
    return resumable(tmp_path_factory.mktemp("trainer"))


@pytest.mark.parametrize(("changes", "said"), OTHERS.values(), ids=OTHERS)
def test_a_checkpoint_of_another_placement_is_refused(tmp_path, checkpoint, changes, said):
    few = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])  # sites of the model may always move
    own = trainer(
        tmp_path, model=get_peft_model(tiny_model("llama"), few) if "placement" in changes else None
    )
    placed(own, **changes)
    with pytest.raises(OutputError, match=said):
        own.train(resume_from_checkpoint=checkpoint)


def test_another_model_is_named_before_its_budget(tmp_path, checkpoint):
    own = trainer(tmp_path, model=adapted("gpt2"))
    placed(own)
    with pytest.raises(OutputError, match=r"belongs to another run: model was 'llama .*now 'gpt2 "):
        own.train(resume_from_checkpoint=checkpoint)


def test_a_checkpoint_without_a_placement_is_refused(tmp_path):
    folder = resumable(tmp_path)
    (tmp_path / "checkpoint-5" / "placement.json").unlink()
    own = trainer(tmp_path)
    placed(own)
    with pytest.raises(OutputError, match=r"no placement\.json"):
        own.train(resume_from_checkpoint=folder)


def test_a_longer_run_does_not_decide_again(tmp_path):
    """A share of the steps is another step of a longer run; a count is the same one."""
    share = {"policy": "random", "head": "10%", "decide": "once"}
    own = trainer(tmp_path, max_steps=40, save_strategy="steps", save_steps=10)
    placed(own, **share)
    own.train()
    folder = str(tmp_path / "checkpoint-10")
    longer = trainer(tmp_path / "longer", max_steps=120)
    placed(longer, **share)
    with pytest.raises(OutputError, match="after step 4 of 40, this run after step 12 of 120") as caught:
        longer.train(resume_from_checkpoint=folder)
    assert caught.value.instead.startswith("head=4, or")
    again = trainer(tmp_path / "again", max_steps=60)
    placement = placed(again, **{**share, "head": 4})
    again.train(resume_from_checkpoint=folder)
    assert again.state.global_step == 60
    assert [decision.step for decision in placement.decisions] == [4]


def test_a_longer_run_with_later_decisions_is_sent_back_to_its_length(tmp_path, checkpoint):
    own = trainer(tmp_path, max_steps=24)
    placed(own)
    with pytest.raises(
        OutputError, match="steps 4, 6 of 12, this run after steps 4, 6, 8, 10, 12 of 24"
    ) as caught:
        own.train(resume_from_checkpoint=checkpoint)
    assert caught.value.instead.startswith("max_steps=12 with the same head and decide")
