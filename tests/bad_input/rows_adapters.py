"""Adapters: folders that hold none, or one of another base, and settings that a base or a folder does not take."""

import shutil

from table import Row, both, edited, removed, text

_SETTINGS = "adapter_config.json"
_FOREIGN = removed("adapter/instructrl.json")
_TAKES = "accepted is LoRA of linear layers without it"

ROWS = [
    Row(
        what="whole weights to merge",
        options="merge --model model --out merged",
        message="model model: found whole weights, accepted is the folder of an adapter",
    ),
    Row(
        what="no folder to merge",
        options="merge --model nowhere --out merged",
        message="model nowhere: found no such folder, accepted is the folder of an adapter",
    ),
    Row(
        what="run that trained adapters, to merge",
        options="merge --model run --out merged",
        make=lambda: shutil.copytree("adapter", "run/models/ppo"),
        message="model run: found a folder of models, accepted is one of them: run/models/ppo",
    ),
    Row(
        what="merged weights over something",
        options="merge --model adapter --out other",
        message="out: found other, which holds something, accepted is a new folder",
    ),
    Row(
        what="adapter of another base to merge",
        options="merge --model adapter --out merged",
        make=edited(f"adapter/{_SETTINGS}", base_model_name_or_path="other"),
        message="model adapter: found an adapter for other weights than those in other; accepted is the base that it "
        "was trained on",
    ),
    Row(
        what="adapter of another base",
        step="sft",
        options="--model adapter",
        make=edited(f"adapter/{_SETTINGS}", base_model_name_or_path="other"),
        message="model adapter: found an adapter for other weights than those in other; accepted is the base that it "
        "was trained on",
    ),
    Row(
        what="adapter of another architecture",
        step="ppo",
        options="--model adapter",
        make=both(_FOREIGN, edited(f"adapter/{_SETTINGS}", target_modules=["q_proj"])),
        message="model adapter: found an adapter for another base (…q_proj…), accepted is one whose layers are those "
        "of model",
    ),
    Row(
        what="adapter with weights for layers that it does not name",
        step="rm",
        options="--model adapter",
        make=edited(f"adapter/{_SETTINGS}", target_modules=["c_attn"]),
        message="model adapter: found an adapter for another base (transformer.h.0….lora_A.weight has no place and … "
        "more), accepted is one whose layers are those of model",
    ),
    Row(
        what="adapter without weights",
        step="sft",
        options="--model adapter",
        make=removed("adapter/adapter_model.safetensors"),
        message="model adapter: found no adapter_model.safetensors (…), accepted are safetensors",
    ),
    Row(
        what="adapter without its settings",
        step="ppo",
        options="--model adapter",
        make=removed(f"adapter/{_SETTINGS}"),
        message=f"model adapter: found an adapter without its {_SETTINGS}, accepted is a folder with both",
    ),
    Row(
        what="adapter with damaged settings",
        step="eval",
        options="--models adapter",
        make=text(f"adapter/{_SETTINGS}", "{"),
        message=f"adapter/{_SETTINGS}: found JSONDecodeError, accepted is the file as it was written",
    ),
    Row(
        what="adapter of another kind",
        step="eval",
        options="--models adapter",
        make=edited(f"adapter/{_SETTINGS}", peft_type="IA3"),
        message="model adapter: found an adapter of type IA3, accepted is LORA",
    ),
    Row(
        what="adapter with magnitudes",
        step="sft",
        options="--model adapter",
        make=edited(f"adapter/{_SETTINGS}", use_dora=True),
        message=f"model adapter: found an adapter with use_dora True, {_TAKES}",
    ),
    Row(
        what="adapter with an unembedding of its own",
        step="sft",
        options="--model adapter",
        make=edited(f"adapter/{_SETTINGS}", modules_to_save=["lm_head"]),
        message=f"model adapter: found an adapter with modules_to_save ['lm_head'], {_TAKES}",
    ),
    Row(
        what="adapter of the embeddings",
        step="sft",
        options="--model adapter",
        make=both(_FOREIGN, edited(f"adapter/{_SETTINGS}", target_modules=["wte"])),
        message="model adapter: found an adapter of transformer.wte (Embedding), accepted are linear layers below the "
        "output embedding",
    ),
    Row(
        what="adapter that names no base",
        step="sft",
        options="--model adapter",
        make=edited(f"adapter/{_SETTINGS}", base_model_name_or_path=None),
        message="model adapter: found an adapter that names no base, accepted is one with base_model_name_or_path in "
        "its adapter_config.json, or beside base weights",
    ),
    Row(
        what="adapter whose base is not there",
        step="sft",
        options="--model adapter",
        make=edited(f"adapter/{_SETTINGS}", base_model_name_or_path="./gone"),
        message="model ./gone: found no such folder, accepted is a transformers folder or name",
    ),
    Row(
        what="adapter on an adapter",
        step="sft",
        options="--model adapter",
        make=edited(f"adapter/{_SETTINGS}", base_model_name_or_path="adapter"),
        message="model adapter: found an adapter on the adapter adapter, accepted is one on whole weights, as "
        "`instructrl merge` makes them",
    ),
    Row(
        what="adapter of a reward model as a policy",
        step="sft",
        options="--model adapted_reward",
        message="model adapted_reward: found an adapter of a reward model, accepted is one of a language model",
    ),
    Row(
        what="adapter of a policy as a reward model",
        step="ppo",
        options="--reward-model adapter",
        message="model adapter: found an adapter of a language model, accepted is one of a reward model",
    ),
    Row(
        what="adapter with a bias that is no number",
        step="ppo",
        options="--reward-model adapted_reward",
        make=edited("adapted_reward/instructrl.json", score_bias="high"),
        message="adapted_reward/instructrl.json: score_bias: found 'high', accepted is the file as it was written",
    ),
    *(
        Row(
            what=f"adapter whose {name} is {value!r}",
            step="sft",
            options="--model adapter",
            make=edited(f"adapter/{file}", **{name: value}),
            message=f"adapter/{file}: {name}: found {value!r}, accepted is the file as it was written",
        )
        for file, name, value in (
            ("instructrl.json", "base", ["x"]),
            (_SETTINGS, "lora_alpha", 10**60),
            (_SETTINGS, "r", "2"),
            (_SETTINGS, "rank_pattern", {"c_attn": -1}),
            (_SETTINGS, "task_type", ["CAUSAL_LM"]),
            (_SETTINGS, "modules_to_save", 5),
            (_SETTINGS, "base_model_name_or_path", ["model"]),
            (_SETTINGS, "base_model_name_or_path", "./a\nb"),
        )
    ),
    Row(
        what="adapter whose pattern of names is none",
        step="sft",
        options="--model adapter",
        make=edited(f"adapter/{_SETTINGS}", target_modules="(["),
        message="model adapter: found an adapter for another base (…), accepted is one whose layers are those of model",
    ),
    Row(
        what="adapter of another rank than asked for",
        step="sft",
        options="--model adapter --adapter.rank 3",
        message="adapter.rank: found 3, accepted is the 2 of the adapter in adapter; `instructrl merge` makes whole "
        "weights of it, on which a new one can be trained",
    ),
    Row(
        what="adapter of other layers than asked for",
        step="sft",
        options="--model adapter --adapter.rank 2 --adapter.targets c_attn",
        message="adapter.targets: found c_attn, accepted is the c_attn, c_fc, c_proj of the adapter in adapter; "
        "`instructrl merge` makes whole weights of it, on which a new one can be trained",
    ),
    *(
        Row(
            what=f"base without the layers, {step}",
            step=step,
            options=f"--{prefix}adapter.rank 2 --{prefix}adapter.targets q_proj c_attn",
            message="adapter.targets: found q_proj, accepted are linear layers of model: c_attn, c_proj, c_fc",
        )
        for step, prefix in (("sft", ""), ("rm", ""), ("ppo", ""), ("files", "recipe."))
    ),
    Row(
        what="unembedding as a target",
        step="sft",
        options="--adapter.rank 2 --adapter.targets lm_head",
        message="adapter.targets: found lm_head, accepted are linear layers of model: c_attn, c_proj, c_fc",
    ),
    Row(
        what="adapter of rank 0",
        step="sft",
        options="--adapter.rank 0",
        message="adapter.rank: found 0, accepted are positive numbers",
    ),
    *(
        Row(
            what=f"{option} of no adapter",
            step=step,
            options=f"--{prefix}adapter.{option} {value}",
            message=f"{prefix}adapter.{option.replace('-', '_')}: found …, which nothing uses without "
            f"{prefix}adapter.rank; accepted is both, or neither",
        )
        for option, value, step, prefix in (
            ("alpha", "8", "sft", ""),
            ("targets", "c_attn", "rm", ""),
            ("base-dtype", "bfloat16", "ppo", ""),
            ("alpha", "8", "files", "recipe."),
        )
    ),
]
