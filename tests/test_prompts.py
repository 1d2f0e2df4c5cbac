"""What stands before an answer: templates, conversations, solved examples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import WORDS, make_decoder, make_tokenizer, save_model, write_jsonl
from test_causal_tasks import ANSWERS, CHOICES, LONGEST, make_model

from tapioca_export import RunConfig
from tapioca_export.artifacts import Prompting
from tapioca_export.errors import ConfigError, LoadError
from tapioca_export.models import LoadedModel, LoadOptions, load_model
from tapioca_export.samples import Row
from tapioca_export.tasks import TASKS, load_prompting

# A conversation as "[CLS] user w1 assistant", all of it words or special tokens of the tiny tokenizer.
CHAT = (
    "{{ '[CLS]' }}{% for message in messages %}"
    "{% if message.role == 'robot' %}{{ raise_exception('no robots') }}{% endif %}"
    " {{ {'system': 'w90', 'user': 'w88', 'assistant': 'w89'}[message.role] }} {{ message.content }}"
    "{% endfor %}{% if add_generation_prompt %} w89 {% endif %}"
)


def prompted(prompting: Prompting, task: str = ANSWERS, chat_template: str | None = CHAT) -> LoadedModel:
    model = make_model("llama", task)
    tokenizer = make_tokenizer("llama")
    tokenizer.chat_template = chat_template
    return replace(model, processor=replace(model.processor, prompting=prompting, tokenizer=tokenizer))


def read_rows(model: LoadedModel, records: Sequence[Mapping[str, Any]], **columns: str) -> list[Row]:
    read = model.task.rows(columns, model.processor)
    return [read(record, f"line {number}") for number, record in enumerate(records, start=1)]


def context_of(model: LoadedModel, record: Mapping[str, Any], **columns: str) -> str:
    (row,) = read_rows(model, [record], **columns)
    return " ".join(model.processor.tokenizer.convert_ids_to_tokens(row.features["context"]))


def shots(*records: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(json.dumps(record) for record in records)


# --- templates ------------------------------------------------------------------------------


def test_a_template_makes_the_prompt_of_any_columns() -> None:
    model = prompted(Prompting("w5 {{a}} {% for x in many %}{{x}} {% endfor %}w6"))
    record = {"a": "w1", "many": ["w2", "w3"], "answer": "w4"}
    assert context_of(model, record) == "[CLS] w5 w1 w2 w3 w6"


def test_a_template_makes_the_context_of_choices_too() -> None:
    model = prompted(Prompting("{{question}} w6"), CHOICES)
    record = {"question": "w1", "options": ["w2", "w3"], "label": 0}
    assert context_of(model, record, choices="options") == "[CLS] w1 w6"


def test_rows_are_those_that_the_rendered_text_alone_would_be() -> None:
    record = {"a": "w1", "answer": "w4"}
    (row,) = read_rows(prompted(Prompting("w5 {{a}}")), [record])
    (same,) = read_rows(prompted(Prompting()), [{"prompt": "w5 w1", "answer": "w4"}])
    assert row == same


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{b}}", "line 2: --prompt-template: 'b' is undefined"),
        ("{{a.b}}", "line 2: --prompt-template: 'str object' has no attribute 'b'"),
        ("{{a / 2}}", "line 2: --prompt-template fails: unsupported operand"),
        ("{{ ''.__class__.__mro__ }}", "line 2: --prompt-template fails: access to attribute '__class__'"),
        ("{{ a and '' }}", "line 2: prompt is empty"),
    ],
)
def test_a_template_that_fails_names_the_row(template: str, message: str) -> None:
    read = prompted(Prompting(template)).task.rows({}, prompted(Prompting(template)).processor)
    with pytest.raises(LoadError) as refused:
        read({"a": "w1", "answer": "w4"}, "line 2")
    assert refused.value.message.startswith(message)


def test_a_template_may_be_a_file_or_a_text(tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("Q: {{a}}\nA:\n")
    found = load_prompting(str(tmp_path / "t.jinja"), False, None, None, 0)
    assert found.template == "Q: {{a}}\nA:\n"
    assert load_prompting("{{a}}", False, None, None, 0) == Prompting("{{a}}")


@pytest.mark.parametrize(
    ("template", "error", "message"),
    [("absent.jinja", LoadError, "Cannot read --prompt-template absent.jinja"),
     ("{{a", ConfigError, "--prompt-template is malformed")],
)  # fmt: skip
def test_a_template_that_is_none_is_refused(template: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_prompting(template, False, None, None, 0)


# --- conversations --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "messages"),
    [
        ({"prompt": "w1 w2"}, [{"role": "user", "content": "w1 w2"}]),
        ({"messages": [{"role": "system", "content": "w7"}, {"role": "user", "content": "w1"}]}, None),
    ],
)
def test_the_context_is_what_the_tokenizers_own_template_encodes(
    record: dict[str, Any], messages: list[dict[str, str]] | None
) -> None:
    model = prompted(Prompting(chat=True))
    (row,) = read_rows(model, [{**record, "answer": "w3 w4"}])
    tokenizer = model.processor.tokenizer
    expected = tokenizer.apply_chat_template(
        messages or record["messages"], add_generation_prompt=True, return_dict=False
    )
    assert list(row.features["context"]) == expected
    assert expected.count(tokenizer.cls_token_id) == 1  # the template's, and none of the tokenizer's
    assert row.features["answers"] == (tuple(tokenizer.convert_tokens_to_ids(["w3", "w4"])),)


def test_a_template_fills_the_turn_of_the_user() -> None:
    model = prompted(Prompting("w5 {{a}}", chat=True), CHOICES)
    record = {"a": "w1", "choices": ["w2", "w3"], "label": 0}
    assert context_of(model, record) == "[CLS] w88 w5 w1 w89"


def test_messages_without_a_chat_template_are_no_prompt() -> None:
    with pytest.raises(LoadError, match="line 1 has no column 'prompt'"):
        read_rows(prompted(Prompting()), [{"messages": [{"role": "user", "content": "w1"}]}])
    with pytest.raises(LoadError, match="line 1: prompt is a conversation"):
        read_rows(prompted(Prompting()), [{"prompt": [{"role": "user", "content": "w1"}]}])


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages must end with what the assistant is to answer"),
        ([{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}], "messages must end"),
        ([{"role": "user"}], "messages holds what is no message"),
        (["w1"], "messages holds what is no message"),
        ([{"role": "user", "content": ""}], "a message's content is empty"),
        ([{"role": "user", "content": 3}], "a message's content is int"),
        ([{"role": "robot", "content": "w1"}], "the tokenizer's chat template fails: no robots"),
        (3, "messages is int, not a list"),
        ('[{"role": "user", "content": "w1"}]', "messages is str, not a list"),
    ],
)
def test_a_conversation_that_is_none_names_the_row(messages: Any, message: str) -> None:
    with pytest.raises(LoadError, match=f"line 1: {message}"):
        read_rows(prompted(Prompting(chat=True)), [{"messages": messages, "answer": "w2"}])


def test_a_tokenizer_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    make_decoder("llama").save_pretrained(tmp_path)
    make_tokenizer("llama").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has no chat template"):
        load_model(tmp_path, ANSWERS, LoadOptions(prompting=Prompting(chat=True)))


# --- solved examples ------------------------------------------------------------------------

SOLVED = shots({"prompt": "w10 w11", "answer": "w12"}, {"prompt": "w13", "answer": "w14"})


def test_solved_examples_stand_before_each_prompt_joined_by_blank_lines() -> None:
    model = prompted(Prompting(shots=SOLVED))
    seen: list[str] = []
    tokenizer = model.processor.tokenizer

    class Listening:
        def __call__(self, text: str, **options: Any) -> Any:
            seen.append(text)
            return tokenizer(text, **options)

    processor = replace(model.processor, tokenizer=Listening())
    read_rows(replace(model, processor=processor), [{"prompt": "w1", "answer": "w2"}])
    assert "w10 w11 w12\n\nw13 w14\n\nw1" in seen
    assert context_of(model, {"prompt": "w1", "answer": "w2"}) == "[CLS] w10 w11 w12 w13 w14 w1"


def test_solved_examples_of_choices_show_the_right_one_by_the_same_template() -> None:
    solved = shots({"q": "w10", "choices": ["w11", "w12 w13"], "label": 1})
    model = prompted(Prompting("{{q}} w6", shots=solved), CHOICES)
    record = {"q": "w1", "choices": ["w2", "w3"], "label": 0}
    assert context_of(model, record) == "[CLS] w10 w6 w12 w13 w1 w6"


def test_in_a_conversation_solved_examples_are_turns_behind_the_rows_system_message() -> None:
    solved = shots({"messages": [{"role": "system", "content": "w80"}, {"role": "user", "content": "w10"}],
                    "answer": "w12"})  # fmt: skip
    model = prompted(Prompting(chat=True, shots=solved))
    own = [{"role": "system", "content": "w81"}, {"role": "user", "content": "w1"}]
    assert context_of(model, {"messages": own, "answer": "w2"}) == (
        "[CLS] w90 w81 w88 w10 w89 w12 w88 w1 w89"
    )


def test_a_row_that_is_a_solved_example_is_refused() -> None:
    model = prompted(Prompting(shots=SOLVED))
    read_rows(model, [{"prompt": "w13", "answer": "w15"}])
    with pytest.raises(LoadError, match="line 2 is also a solved example of --few-shot"):
        read_rows(model, [{"prompt": "w1", "answer": "w2"}, {"prompt": "w13", "answer": "w14"}])


def test_solved_examples_that_do_not_fit_are_refused_and_never_cut() -> None:
    solved = shots({"prompt": " ".join(WORDS[:40]), "answer": "w12"})
    model = prompted(Prompting(shots=solved))
    record = {"prompt": " ".join(WORDS[:21]), "answer": "w2"}
    (row,) = read_rows(model, [record])
    assert len(row.features["context"]) == LONGEST - 1
    with pytest.raises(LoadError, match="line 1: the prompt with 1 solved examples has 64 tokens"):
        read_rows(model, [{**record, "prompt": " ".join(WORDS[:22])}])
    with pytest.raises(LoadError, match="line 1: the prompt with 0 solved examples"):
        read_rows(prompted(Prompting(chat=True)), [{"prompt": " ".join(WORDS), "answer": "w2"}])


def test_a_solved_example_needs_an_answer() -> None:
    for task, record in ((ANSWERS, {"prompt": "w1"}), (CHOICES, {"context": "w1", "choices": ["w2", "w3"]})):
        with pytest.raises(LoadError, match="Solved example 1 of --few-shot has no answer"):
            read_rows(prompted(Prompting(shots=shots(record)), task), [])


def test_solved_examples_are_drawn_by_the_seed_whole_rows_and_never_twice(tmp_path: Path) -> None:
    records = [{"prompt": f"w{i}", "answer": "w2"} for i in range(9)]
    path = write_jsonl(tmp_path / "solved.jsonl", records)
    assert len(set(load_prompting(None, False, path, 9, 0).shots)) == 9
    draws = [load_prompting(None, False, path, 4, seed).shots for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert len(draws[0]) == 4
    assert all(json.loads(shot) in records for shot in draws[0])
    with pytest.raises(LoadError, match="has 9 rows, --num-fewshot asks for 10"):
        load_prompting(None, False, path, 10, 0)


@pytest.mark.parametrize("options", [{"few_shot": Path("x.jsonl")}, {"num_fewshot": 3}])
def test_a_file_of_examples_and_their_number_go_together(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="--few-shot and --num-fewshot go together"):
        RunConfig(**options)


def test_a_text_that_is_scored_whole_takes_no_prompt(tmp_path: Path) -> None:
    model = prompted(Prompting(shots=SOLVED))
    model = replace(model, task=TASKS[ANSWERS].metrics()["perplexity"])
    with pytest.raises(ConfigError, match="line 1 is a text, which needs no prompt"):
        read_rows(model, [{"text": "w1 w2"}])
    (row,) = read_rows(model, [{"prompt": "w1", "answer": "w2 w3"}])
    assert len(row.features["context"]) == 7


def test_a_task_without_prompts_refuses_a_template(tmp_path: Path) -> None:
    save_model(tmp_path, "bert")
    with pytest.raises(ConfigError, match="Task text-classification has no prompts"):
        load_model(tmp_path, options=LoadOptions(prompting=Prompting("{{text}}")))
