"""Hints for config keys that don't exist: which key was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

# Our key for a setting of TRL or verl, or for another common name. A dotted path matches by its last parts.
OTHER_NAMES: Mapping[str, str] = {
  "num_generations": "rl.group_size",
  "rollout.n": "rl.group_size",
  "num_samples": "rl.group_size",
  "max_prompt_length": "rl.prompt_tokens",
  "max_completion_length": "rl.response_tokens",
  "max_response_length": "rl.response_tokens",
  "max_new_tokens": "rl.response_tokens",
  "max_tokens": "rl.response_tokens",
  "per_device_train_batch_size": "rl.problems_per_step",
  "train_batch_size": "rl.problems_per_step",
  "batch_size": "rl.problems_per_step",
  "ppo_mini_batch_size": "rl.minibatch_problems",
  "gradient_accumulation_steps": "rl.microbatches",
  "ppo_micro_batch_size_per_gpu": "rl.microbatches",
  "micro_batch_size": "rl.microbatches",
  "max_steps": "rl.steps",
  "total_training_steps": "rl.steps",
  "num_train_epochs": "rl.steps",
  "total_epochs": "rl.steps",
  "learning_rate": "rl.optim.lr",
  "lr": "rl.optim.lr",
  "lr_scheduler_type": "rl.optim.schedule",
  "warmup_ratio": "rl.optim.warmup",
  "weight_decay": "rl.optim.weight_decay",
  "max_grad_norm": "rl.optim.clip_norm",
  "grad_clip": "rl.optim.clip_norm",
  "adam_beta1": "rl.optim.b1",
  "adam_beta2": "rl.optim.b2",
  "beta": "rl.kl_beta",
  "kl_coef": "rl.kl_beta",
  "kl_loss_coef": "rl.kl_beta",
  "kl_loss_type": "rl.kl_estimator",
  "epsilon": "rl.clip_low",
  "clip_ratio": "rl.clip_low",
  "clip_ratio_low": "rl.clip_low",
  "epsilon_high": "rl.clip_high",
  "clip_ratio_high": "rl.clip_high",
  "clip_ratio_c": "rl.dual_clip",
  "delta": "rl.dual_clip",
  "loss_type": "rl.reduce",
  "loss_agg_mode": "rl.reduce",
  "scale_rewards": "rl.scale_std",
  "norm_adv_by_std_in_grpo": "rl.scale_std",
  "importance_sampling_level": "rl.ratio",
  "vllm_importance_sampling_cap": "rl.importance_cap",
  "tis_imp_ratio_cap": "rl.importance_cap",
  "reward_funcs": "rl.reward",
  "reward_fn": "rl.reward",
  "custom_reward_function": "rl.reward",
  "stop": "rl.stop_strings",
  "model_name_or_path": "model.path",
  "model.name": "model.path",
  "dataset_name": "problems.source",
  "dataset": "problems.source",
  "train_files": "problems.source",
  "data.train_files": "problems.source",
  "val_files": "heldout.source",
  "data.val_files": "heldout.source",
  "eval_dataset": "heldout.source",
  "eval_steps": "evaluate.every",
  "test_freq": "evaluate.every",
  "save_steps": "checkpoint.every",
  "save_freq": "checkpoint.every",
  "save_total_limit": "checkpoint.keep",
  "gradient_checkpointing": "model.remat",
  "enable_gradient_checkpointing": "model.remat",
  "attn_implementation": "model.attention",
  "report_to": "tensorboard",
}
# Present name of each key that was renamed.
RENAMED: Mapping[str, str] = {"study.jobs": "grid.jobs"}


def hint(names: Sequence[str], key: str) -> str:
  """Returns the end of an error message about the unknown `key`, as "; did you mean config.rl.steps?".

  names: all keys that there are. It says "; it is config.KEY now" of a key that was renamed, and names configs/base.py
  where no key is similar.
  """
  if key in RENAMED:
    return f"; it is config.{RENAMED[key]} now"
  likely = likely_keys(names, key)
  return f"; did you mean config.{' or config.'.join(likely)}?" if likely else "; configs/base.py lists all keys"


def renamed_in(line: str) -> str:
  """Returns the end of an error message about a line of a config file, as "; study.jobs is grid.jobs now".

  It names each key in the line that was renamed; it is "" where there is none.
  """
  return "".join(f"; {former} is {present} now" for former, present in RENAMED.items() if f".{former}" in line)


def likely_keys(names: Sequence[str], key: str) -> list[str]:
  """Returns up to three keys that a user who wrote the unknown `key` may have meant, the likeliest first; maybe none.

  names: all keys that there are. If `key` is a setting of TRL or verl, or another common name, the result is our key
  for it (`OTHER_NAMES`). Else it is the key with the most similar spelling, else keys that end with the same part.
  """
  parts = key.split(".")
  tails = [".".join(parts[start:]) for start in range(len(parts))]
  foreign = next((OTHER_NAMES[tail] for tail in tails if tail in OTHER_NAMES), "")
  if foreign and parts[-1] == "lr" and f"{parts[0]}.optim.lr" in names:
    foreign = f"{parts[0]}.optim.lr"  # sft.lr is sft.optim.lr
  if foreign:
    return [foreign]
  similar = difflib.get_close_matches(key, names, 1, 0.75)
  if similar:
    return similar
  same_last_part = [name for name in names if name.split(".")[-1] == parts[-1]]
  return same_last_part[:3] or difflib.get_close_matches(key, names, 1, 0.5)
