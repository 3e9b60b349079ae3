"""Plans in other trainers' words: read by the tool's own class where it is installed, and proven; or refused."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
import yaml
from peft import LoraConfig
from tests import zoo
from tests.tiny import tiny_anatomy, tiny_config

from loratlas.adapters.peft_check import prove_on_meta
from loratlas.anatomy.read import read
from loratlas.errors import AttachError, PlacementError, RequestError
from loratlas.integrations.emit_plan import NAMES_OF_TOOLS, emit
from loratlas.placement.plan import place

PLANS = {
    "uniform": "attention:4",
    "layers": "q,v@top/2:3",
    "one name": "q:2",
    "single sites": '"model.layers.0.self_attn.q_proj","model.layers.2.mlp.up_proj":2',
}


def written(text, tool, model_type="llama", **options):
    plan = place(tiny_anatomy(model_type), text, **options)
    return plan, emit(plan, tiny_anatomy(model_type), tiny_config(model_type), tool, model="owner/base")


def as_tool_reads(tool: str, text: str) -> LoraConfig:
    """The LoraConfig that a tool makes of what was written, by its own class or by its documented rule."""
    if tool == "trl":
        from transformers import HfArgumentParser
        from trl import ModelConfig, get_peft_config

        (arguments,) = HfArgumentParser(ModelConfig).parse_dict(yaml.safe_load(text))
        return get_peft_config(arguments)
    if tool == "axolotl":
        fields = yaml.safe_load(text)
        assert fields["adapter"] == "lora"
        return LoraConfig(
            r=fields["lora_r"],
            lora_alpha=fields["lora_alpha"],
            target_modules=fields["lora_target_modules"],
            target_parameters=fields.get("lora_target_parameters"),
            use_rslora=fields["peft_use_rslora"],
            use_dora=fields.get("peft_use_dora", False),
        )
    if tool == "llama-factory":
        fields = yaml.safe_load(text)
        return LoraConfig(
            r=fields["lora_rank"],
            lora_alpha=fields["lora_alpha"],
            target_modules=[name.strip() for name in fields["lora_target"].split(",")],
            use_rslora=fields["use_rslora"],
            use_dora=fields.get("use_dora", False),
        )
    if tool == "swift":
        words = shlex.split(text.replace("\\\n", " "))
        given = dict(zip(words[2::2], words[3::2], strict=True))
        return LoraConfig(
            r=int(given["--lora_rank"]),
            lora_alpha=int(given["--lora_alpha"]),
            target_modules=given["--target_regex"],
            use_rslora=given["--use_rslora"] == "true",
            use_dora=given.get("--use_dora") == "true",
        )
    call = next(node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call) and node.keywords)
    given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    return LoraConfig(**given)


@pytest.mark.parametrize("text", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("tool", [name for name in NAMES_OF_TOOLS if name not in ("peft", "unsloth")])
def test_each_tool_adapts_exactly_these_sites(tool, text):
    plan, found = written(text, tool)
    prove_on_meta(plan.rows, as_tool_reads(tool, found.text), tiny_config("llama"))


@pytest.mark.parametrize("text", ["attention:4", "q,v@top/2:3", "all:2"])
def test_unsloth_by_its_flags(text):
    plan, found = written(text, "unsloth")
    prove_on_meta(plan.rows, as_tool_reads("unsloth", found.text), tiny_config("llama"))


@pytest.mark.parametrize("tool", [name for name in NAMES_OF_TOOLS if name not in ("peft", "unsloth")])
def test_dora_goes_with_the_tools_that_have_it(tool):
    plan, found = written("q,v:4", tool, dora=True)
    prove_on_meta(plan.rows, as_tool_reads(tool, found.text), tiny_config("llama"))
    plain, _ = written("q,v:4", tool)
    with pytest.raises(
        AttachError, match=r"DoRA at model\.layers\.0\.self_attn\.q_proj where the plan has LoRA"
    ):
        prove_on_meta(plain.rows, as_tool_reads(tool, found.text), tiny_config("llama"))


def test_dora_is_refused_for_unsloth_and_the_nearest_plan_has_no_more_parameters():
    with pytest.raises(PlacementError, match=r"no option for it.*DoRA becomes LoRA") as refused:
        written("q,v:4", "unsloth", dora=True)
    (text,) = refused.value.suggestions
    nearest, _ = written(text, "unsloth")
    assert nearest.trainable <= place(tiny_anatomy("llama"), "q,v:4", dora=True).trainable


def test_a_mixed_dora_plan_is_offered_the_nearest_one_with_dora():
    with pytest.raises(PlacementError, match="ranks from 2 to 8") as refused:
        written("q:8 + v:2", "llama-factory", dora=True)
    nearest, _ = written(refused.value.suggestions[0], "llama-factory", dora=True)
    assert nearest.trainable <= place(tiny_anatomy("llama"), "q:8 + v:2", dora=True).trainable


def test_rslora_and_experts_go_with_the_tools_that_know_them():
    plan, found = written("q,v:4", "trl", rslora=True)
    prove_on_meta(plan.rows, as_tool_reads("trl", found.text), tiny_config("llama"))
    config = zoo.small("mixtral")
    stacked = place(read(config), "q:2 + moe:2")
    for tool in ("trl", "axolotl"):
        text = emit(stacked, read(config), config, tool, model="owner/base").text
        prove_on_meta(stacked.rows, as_tool_reads(tool, text), config)


@pytest.mark.parametrize("tool", ["axolotl", "llama-factory", "swift", "unsloth"])
def test_ranks_that_differ_are_refused_with_the_nearest_plan(tool):
    with pytest.raises(PlacementError, match="ranks from 2 to 8") as caught:
        written("q,v:8 + ffn.down:2", tool)
    assert "everywhere" in caught.value.found
    (text,) = caught.value.suggestions
    assert f'"{text}"' in caught.value.instead
    nearest, found = written(text, tool)
    prove_on_meta(nearest.rows, as_tool_reads(tool, found.text), tiny_config("llama"))
    wanted = place(tiny_anatomy("llama"), "q,v:8 + ffn.down:2")
    assert set(nearest.ranks) == set(wanted.ranks)
    unit = sum(row.site.lora_parameters(1) for row in nearest.rows)
    assert nearest.trainable <= wanted.trainable < nearest.trainable + unit


def test_trl_takes_ranks_that_differ_in_python():
    plan, found = written("q,v:8 + ffn.down:2", "trl")
    scope: dict = {}
    exec(found.text, scope)
    scope["config"].base_model_name_or_path = None  # a base without a name, here
    prove_on_meta(plan.rows, scope["config"], tiny_config("llama"))
    assert "peft_config=config" in found.text


def test_what_a_tool_cannot_name_is_left_out_or_comes_in():
    with pytest.raises(PlacementError, match="other modules in one layer") as caught:
        written('"model.layers.0.self_attn.q_proj","model.layers.2.mlp.up_proj":2', "unsloth")
    assert "2 sites come in" in caught.value.found
    written(caught.value.suggestions[0], "unsloth")
    with pytest.raises(PlacementError, match="adapts q_proj") as caught:
        written("q,v,embed:2", "unsloth")
    assert "1 sites are left out" in caught.value.found
    config = zoo.small("mixtral")
    with pytest.raises(PlacementError, match="cannot name") as caught:
        emit(place(read(config), "q:2 + moe:2"), read(config), config, "llama-factory", model="owner/base")
    assert caught.value.suggestions
    with pytest.raises(PlacementError, match="adapts q_proj") as caught:
        written("attn.qkv:2", "unsloth", "gpt2")
    assert not caught.value.suggestions
    assert "--emit peft" in caught.value.instead


def test_an_alpha_that_is_no_whole_number():
    with pytest.raises(PlacementError, match="whole numbers") as caught:
        written("q,v:4", "axolotl", alpha=2.5)
    written(caught.value.suggestions[0], "axolotl")


def test_an_unknown_tool_names_the_nearest():
    with pytest.raises(RequestError, match="unsloth") as caught:
        written("q:2", "unslot")
    assert caught.value.instead == "unsloth"


GOLDEN = {
    "llama-factory": """\
model_name_or_path: owner/base
finetuning_type: lora
lora_rank: 4
lora_alpha: 8
lora_dropout: 0.0
lora_target: q_proj,v_proj
use_rslora: false
""",
    "axolotl": """\
base_model: owner/base
adapter: lora
lora_r: 4
lora_alpha: 8
lora_dropout: 0.0
lora_target_modules:
- q_proj
- v_proj
peft_use_rslora: false
""",
    "swift": """\
swift sft \\
    --model owner/base \\
    --lora_rank 4 \\
    --lora_alpha 8 \\
    --lora_dropout 0 \\
    --use_rslora false \\
    --target_regex '^(?:model\\.layers\\.(?:0|1|2)\\.(?:self_attn\\.q_proj|self_attn\\.v_proj))$'
""",
    "unsloth": """\
from unsloth import FastLanguageModel

model, tokenizer = FastLanguageModel.from_pretrained('owner/base')
model = FastLanguageModel.get_peft_model(
    model,
    r=4,
    lora_alpha=8,
    lora_dropout=0,
    target_modules=["q_proj", "v_proj"],
    use_rslora=False,
)
""",
}


@pytest.mark.parametrize("tool", GOLDEN)
def test_golden_files(tool):
    assert written("q,v:4", tool)[1].text == GOLDEN[tool]


def test_on_the_command_line(capsys):
    from loratlas.cli import run

    assert run(["plan", "demo:llama-mini", "--placement", "q,v:4", "--emit", "llama-factory"]) == 0
    written = yaml.safe_load(capsys.readouterr().out)
    assert written["lora_target"] == "q_proj,v_proj"
    assert Path(written["model_name_or_path"], "config.json").is_file()  # no other tool knows demo:
    assert run(["plan", "demo:llama-mini", "--placement", "q:8 + v:2", "--emit", "swift"]) == 2
    assert re.search(r"ranks from 2 to\s+8", capsys.readouterr().err)
