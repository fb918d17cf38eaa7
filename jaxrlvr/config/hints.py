"""Hints for config keys that don't exist: which key was probably meant, or why there is none."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

# Names that TRL, verl and Tunix have for a setting, by our key: the table of docs/names.md, which says what differs. A
# name matches the last parts of a dotted path.
PEERS_NAMES: Mapping[str, Sequence[str]] = {
  # batches and lengths
  "rl.steps": ("max_steps", "num_train_epochs", "total_training_steps", "total_epochs"),
  "rl.problems_per_step": ("per_device_train_batch_size", "generation_batch_size", "train_batch_size", "batch_size"),
  "rl.group_size": ("num_generations", "rollout.n"),
  "rl.minibatch_problems": ("steps_per_generation", "ppo_mini_batch_size", "mini_batch_size"),
  "rl.microbatches": (
    "gradient_accumulation_steps",
    "ppo_micro_batch_size_per_gpu",
    "ppo_micro_batch_size",
    "train_micro_batch_size",
  ),
  "rl.sample_parts": ("rollout_micro_batch_size",),
  "rl.prompt_tokens": ("max_prompt_length", "prompt_length"),
  "rl.response_tokens": (
    "max_completion_length",
    "max_response_length",
    "response_length",
    "max_tokens_to_generate",
    "total_generation_steps",
  ),
  "problems.too_long": ("data.truncation", "filter_overlong_prompts"),
  "rl.pack": ("use_dynamic_bsz", "use_remove_padding", "max_seq_token_per_tpu"),
  "rl.branches": ("use_prefix_grouper",),
  # sampling
  "rl.temperature": ("temperature",),
  "rl.top_k": ("top_k",),
  "rl.top_p": ("top_p",),
  "rl.stop_strings": ("generation_kwargs",),
  "model.stop_tokens": ("eos_tokens",),
  "rl.sample_int8": ("rollout.quantization",),
  # reward, advantages and loss
  "rl.reward": (
    "reward_funcs",
    "reward_weights",
    "custom_reward_function",
    "custom_reward_function.path",
    "custom_reward_function.name",
    "reward_fns",
    "reward_functions",
  ),
  "rl.baseline": ("adv_estimator", "advantage_estimator"),
  "rl.scale_std": ("scale_rewards", "norm_adv_by_std_in_grpo", "advantage_estimator"),
  "rl.clip_low": ("epsilon", "clip_ratio", "clip_ratio_low", "epsilon_low"),
  "rl.clip_high": ("epsilon", "epsilon_high", "clip_ratio", "clip_ratio_high"),
  "rl.dual_clip": ("delta", "clip_ratio_c", "epsilon_c"),
  "rl.ratio": ("importance_sampling_level", "policy_loss.loss_mode", "loss_algo"),
  "rl.importance_cap": (
    "vllm_importance_sampling_correction",
    "vllm_importance_sampling_mode",
    "vllm_importance_sampling_clip_max",
    "vllm_importance_sampling_cap",
    "rollout_correction.rollout_is",
    "rollout_is_threshold",
    "tis_imp_ratio_cap",
    "sampler_is",
    "sampler_is_threshold",
  ),
  "rl.reduce": ("loss_type", "loss_agg_mode"),
  "rl.kl_beta": ("beta", "use_kl_loss", "kl_loss_coef", "kl_coef"),
  "rl.kl_estimator": ("kl_loss_type", "kl_penalty", "kl_loss_mode", "kl_method"),
  "rl.loss_terms": ("entropy_coef", "entropy_coeff"),
  "rl.mask_truncated": ("mask_truncated_completions", "overlong_filter"),
  # optimizer
  "rl.optim.lr": ("learning_rate", "lr", "peak_value"),
  "rl.optim.schedule": ("lr_scheduler_type", "schedule_type"),
  "rl.optim.warmup": ("warmup_ratio", "warmup_steps", "lr_warmup_steps_ratio", "lr_warmup_steps"),
  "rl.optim.floor": ("lr_scheduler_kwargs", "min_lr_ratio", "end_value"),
  "rl.optim.b1": ("adam_beta1", "optim.betas", "b1"),
  "rl.optim.b2": ("adam_beta2", "optim.betas", "b2"),
  "rl.optim.eps": ("adam_epsilon",),
  "rl.optim.weight_decay": ("weight_decay",),
  "rl.optim.clip_norm": ("max_grad_norm", "grad_clip", "clip_grad"),
  # model and devices
  "model.path": ("model_name_or_path", "actor_rollout_ref.model.path", "model_id", "model_name"),
  "tokenizer": ("processing_class", "tokenizer_path", "data.tokenizer"),
  "model.adapter": ("lora_adapter_path",),
  "lora.rank": ("use_peft", "lora_r", "peft_config.r", "lora_rank", "lora_config.rank", "peft_config", "lora_config"),
  "lora.alpha": ("lora_alpha", "lora_config.alpha"),
  "lora.targets": ("lora_target_modules", "target_modules", "lora_config.module_path"),
  "model.think": ("chat_template_kwargs", "apply_chat_template_kwargs"),
  "model.dtype": ("bf16", "fsdp_config.dtype"),
  "model.attention": ("attn_implementation", "use_flash_attention"),
  "model.remat": ("gradient_checkpointing", "enable_gradient_checkpointing"),
  "model.vocab_chunk": ("use_liger_kernel", "use_fused_kernels", "compute_logps_chunk_size"),
  "mesh.fsdp": ("fsdp_size", "n_gpus_per_node", "nnodes", "role_to_mesh"),
  "mesh.sample_tensor": ("vllm_tensor_parallel_size", "tensor_model_parallel_size", "tensor_parallel_size"),
  # data
  "problems.source": ("dataset_name", "train_dataset", "train_files", "data_source"),
  "problems.count": ("train_max_samples",),
  "problems.columns": ("prompt_key",),
  "problems.system": ("system_prompt",),
  "heldout.source": ("eval_dataset", "val_files"),
  "heldout.count": ("val_max_samples",),
  "seed": ("seed", "data_loader_seed", "data_shuffle_seed", "rng_seed"),
  # evaluation, checkpoints and logging
  "evaluate.every": ("eval_steps", "test_freq", "eval_every_n_steps"),
  "evaluate.samples": ("num_generations_eval", "val_kwargs.n"),
  "evaluate.temperature": ("val_kwargs.temperature", "val_kwargs.do_sample"),
  "evaluate.problems_per_batch": ("per_device_eval_batch_size", "val_batch_size"),
  "checkpoint.every": ("save_steps", "save_freq", "save_interval_steps"),
  "checkpoint.keep": ("save_total_limit", "max_actor_ckpt_to_keep", "max_to_keep"),
  "resume": ("resume_from_checkpoint", "resume_mode"),
  "tensorboard": ("report_to", "trainer.logger", "metrics_logging_options"),
}
# Further names that other libraries have, by our key; they match as those above.
COMMON_NAMES: Mapping[str, Sequence[str]] = {
  "rl.group_size": ("num_samples", "num_return_sequences"),
  "rl.microbatches": ("micro_batch_size",),
  "rl.response_tokens": ("max_new_tokens", "max_tokens"),
  "rl.stop_strings": ("stop",),
  "rl.reward": ("reward_fn",),
  "model.path": ("model.name",),
  "problems.source": ("dataset",),
  "sft.rows": ("sft.per_device_train_batch_size", "sft.train_batch_size", "sft.batch_size"),
  "sft.row_tokens": ("sft.max_length", "sft.max_seq_length"),
  "sft.epochs": ("sft.num_train_epochs", "sft.total_epochs"),
}
# Settings of TRL, verl and Tunix that nothing here is like, by what is done here instead: the second table of
# docs/names.md. A name matches wherever its parts follow each other in a dotted path.
ABSENT: Mapping[str, Sequence[str]] = {
  "the flag --workdir names the run directory": ("output_dir", "default_local_dir", "checkpoint_root_directory"),
  "the policy itself samples: there is no engine or server to choose": (
    "use_vllm",
    "vllm_mode",
    "vllm_gpu_memory_utilization",
    "use_transformers_continuous_batching",
    "rollout.name",
    "rollout.mode",
    "gpu_memory_utilization",
    "enforce_eager",
    "free_cache_engine",
    "rollout_engine",
    "rollout_vllm_hbm_utilization",
    "kv_cache_size",
    "offload_to_cpu",
  ),
  "there is no critic; rl.baseline compares a response with its group": (
    "critic",
    "algorithm.gamma",
    "algorithm.lam",
    "ppo_config.gamma",
    "gae_lambda",
    "critic_optimizer",
    "clip_range_value",
  ),
  "each response is trained on once": ("num_iterations", "ppo_epochs"),
  "steps follow each other: no step samples while another trains": (
    "trainer_mode",
    "off_policy_steps",
    "off_policy_mask_threshold",
    "max_concurrency",
  ),
  "groups that pay all alike are not sampled again; the stage filter leaves out such problems before training": (
    "filter_groups",
    "dynamic_sampling",
  ),
  "an entropy term of the loss has a fixed weight (rl.loss_terms), and all tokens are trained on": (
    "use_adaptive_entropy",
    "entropy_target",
    "top_entropy_quantile",
  ),
  "the KL term is in the loss (rl.kl_beta), not in the reward": ("use_kl_in_reward", "target_kl", "kl_ctrl.type"),
  "the reference model stays the policy that RL began with": (
    "sync_ref_model",
    "ref_model_mixup_alpha",
    "ref_model_sync_steps",
  ),
  "a penalty of long responses is a reward function of your own, in rl.reward": (
    "overlong_buffer",
    "overlong_buffer_cfg",
  ),
  "there is no reward model; rl.reward names what is paid": ("reward_model", "reward_manager"),
  "adapters have no dropout, as the sampler and the loss must compute the same policy": ("lora_dropout",),
  "adapters are those of LoRA, of linear maps of the layers alone": (
    "lora_modules_to_save",
    "lora_target_parameters",
    "lora_task_type",
    "use_dora",
    "use_rslora",
    "exclude_modules",
  ),
  "frozen weights are kept in lora.base_dtype, bfloat16 or float32: there is no quantised training": (
    "load_in_4bit",
    "load_in_8bit",
    "weight_qtype",
  ),
  "a response has one turn, without tools": (
    "tools",
    "environment_factory",
    "max_tool_calling_iterations",
    "multi_turn",
    "rollout.agent",
    "default_agent_loop",
    "episode_timeout",
  ),
  "sampling has rl.temperature, rl.top_k and rl.top_p": ("min_p", "repetition_penalty", "rollout.do_sample"),
  "the order of problems is always random, by the key seed": ("shuffle_dataset", "data.shuffle"),
  "every step is logged, with all of its responses": (
    "logging_steps",
    "log_completions",
    "rollout_data_dir",
    "validation_data_dir",
    "log_val_generations",
  ),
  "the policy is always evaluated before training": ("eval_on_start", "val_before_train"),
  "nothing is uploaded; the stage export writes a Hugging Face directory": ("push_to_hub", "hub_model_id"),
}
# Present name of each key that was renamed.
RENAMED: Mapping[str, str] = {"study.jobs": "grid.jobs"}


def hint(names: Sequence[str], key: str) -> str:
  """Returns the end of an error message about the unknown `key`, as "; did you mean config.rl.steps?".

  names: all keys that there are. It says "; it is config.KEY now" of a key that was renamed, what is done instead where
  nothing here is like a setting of TRL, verl or Tunix, and names configs/base.py where no key is similar.
  """
  if key in RENAMED:
    return f"; it is config.{RENAMED[key]} now"
  reason = why_absent(key)
  if reason:
    return f"; {reason} (docs/names.md)"
  likely = likely_keys(names, key)
  return f"; did you mean config.{' or config.'.join(likely)}?" if likely else "; configs/base.py lists all keys"


def renamed_in(line: str) -> str:
  """Returns the end of an error message about a line of a config file, as "; study.jobs is grid.jobs now".

  It names each key in the line that was renamed; it is "" where there is none.
  """
  return "".join(f"; {former} is {present} now" for former, present in RENAMED.items() if f".{former}" in line)


def why_absent(key: str) -> str:
  """Returns what is done here instead of `key`, a setting of TRL, verl or Tunix without a counterpart (`ABSENT`).

  It is "" of any other key.
  """
  for reason, absent in ABSENT.items():
    if any(f".{name}." in f".{key}." for name in absent):
      return reason
  return ""


def likely_keys(names: Sequence[str], key: str) -> list[str]:
  """Returns the keys that a user who wrote the unknown `key` may have meant, the likeliest first; maybe none.

  names: all keys that there are. If `key` is a setting of TRL, verl or Tunix, or another common name, the result is our
  keys for it (`PEERS_NAMES`, `COMMON_NAMES`). Else it is the key with the most similar spelling, else up to three keys
  that end with the same part.
  """
  counterparts = _counterparts(names, key)
  if counterparts:
    return counterparts
  similar = difflib.get_close_matches(key, names, 1, 0.75)
  if similar:
    return similar
  last_part = key.split(".")[-1]
  same_last_part = [name for name in names if name.split(".")[-1] == last_part]
  return same_last_part[:3] or difflib.get_close_matches(key, names, 1, 0.5)


def _counterparts(names: Sequence[str], key: str) -> list[str]:
  """Returns our keys for a setting of another library; none if `key` is no such.

  The longest name that `key` ends with counts. Where a key of `key`'s own group has the same last parts as a key of rl,
  it takes its place: sft.learning_rate is sft.optim.lr, not rl.optim.lr.
  """
  parts = key.split(".")
  for start in range(len(parts)):
    tail = ".".join(parts[start:])
    counterparts = []
    for table in (PEERS_NAMES, COMMON_NAMES):
      counterparts += [ours for ours, foreign in table.items() if tail in foreign]
    if counterparts:
      return [_in_group(names, ours, parts[0]) for ours in counterparts]
  return []


def _in_group(names: Sequence[str], key: str, group: str) -> str:
  """Returns the key of this group with the same parts behind the first as `key`, or `key` if the group has none."""
  sibling = ".".join([group, *key.split(".")[1:]])
  return sibling if sibling in names else key
