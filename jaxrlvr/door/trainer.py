"""The step-wise trainer: RL by a loop of one's own, with the very steps of the stage rl."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxrlvr.base import named
from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import Problem
from jaxrlvr.door import own_code
from jaxrlvr.door.policy import Policy
from jaxrlvr.door.runs import Run
from jaxrlvr.stages import rollout, step_grades
from jaxrlvr.stages.rl import Sampled, open_trainer
from jaxrlvr.stages.rl import Trainer as StageTrainer


class Responses:
  """The responses of a step, G to each of P problems."""

  step: int
  problems: Sequence[Problem]  # P, each with id, messages, label, truth and extra

  def __init__(self, sampled: Sampled):
    self.sampled = sampled
    self.step = sampled.step
    self.problems = sampled.prompts.problems

  @property
  def prompts(self) -> list[str]:
    """Property: the prompt of each problem, as text."""
    return [rollout.transcript(problem.messages) for problem in self.problems]

  @property
  def texts(self) -> list[list[str]]:
    """Property: the text of each response, [P][G]."""
    return [[response.text for response in responses] for responses in self.sampled.drawn.answers.response_PG]

  @property
  def answers(self) -> list[list[str | None]]:
    """Property: the answer that each response gives, [P][G]; None: it gives none."""
    return self.sampled.drawn.answer_PG

  @property
  def lengths(self) -> np.ndarray:
    """Property: the number of tokens of each response, [P,G]."""
    return self.sampled.drawn.length_PG


class Grades:
  """The grades of a step's responses."""

  def __init__(self, responses: Responses, grades: step_grades.StepGrades):
    self.responses = responses
    self.grades = grades

  @property
  def rewards(self) -> np.ndarray:
    """Property: what each response is paid, float32 [P,G]; nan where it is unscored, and not trained on."""
    paid = self.grades.paid
    return np.where(paid.scored_PG, paid.value_PG, np.float32(np.nan))

  @property
  def true_rewards(self) -> np.ndarray:
    """Property: the grade of each response by the truth, which no reward sees, float32 [P,G]; nan: unscored."""
    true = self.grades.true
    return np.where(true.scored_PG, true.value_PG, np.float32(np.nan))

  def with_rewards(self, rewards: Any) -> Grades:
    """Returns these grades with other rewards, an array [P,G]; nan leaves a response unscored.

    The run's files record what was paid; its manifest knows nothing of how. Raises InputError for another shape.
    """
    return Grades(self.responses, step_grades.with_rewards(self.grades, np.asarray(rewards, np.float32)))


class Trainer:
  """A run of RL whose loop you write. Use it as a context manager, and go through its steps:

    with jr.Trainer(config, "runs/mine", reward=fn) as trainer:
      for step in trainer:
        responses = trainer.sample()
        grades = trainer.grade(responses)
        trainer.update(grades)

  This is the loop of `jr.train`: the same samples, updates, metrics, evaluations and checkpoints. After the last step
  the run is finished. A loop that is left by `break` saves a checkpoint; the same lines go on from there. A finished
  run has no steps left.
  """

  def __init__(
    self,
    config: ConfigDict,
    workdir: str | os.PathLike,
    *,
    reward: own_code.OwnRewards = None,
    verifier: own_code.OwnVerifier = None,
  ):
    """Keeps its arguments, which are those of `jr.train`; the block opens the run."""
    self._arguments = (config, os.fspath(workdir), reward, verifier)
    self._trainer: StageTrainer | None = None
    self._given: dict[
      str, Any
    ] = {}  # the functions that were passed, known while this trainer works: others may be open
    self._step: int | None = None  # the step that is under way
    self._awaits_update = False  # whether that step was not updated yet

  def __enter__(self) -> Trainer:
    """Opens the run and evaluates step 0. Raises InputError as `jr.train` does."""
    config, workdir, reward, verifier = self._arguments
    with own_code.configured(config, "rl", reward, verifier) as checked, contextlib.ExitStack() as stack:
      self._given = named.given_now()
      self._trainer = stack.enter_context(open_trainer(checked, workdir))
      self._stack = stack.pop_all()
    return self

  def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
    """Closes the run; saves the last step unless the block ends by an error."""
    try:
      if kind is None and not self._trainer.finished:
        with self._at_work():
          self._trainer.save_last_step()
    finally:
      self._trainer = None
      self._stack.__exit__(kind, *rest)

  @contextlib.contextmanager
  def _at_work(self) -> Iterator[None]:
    """Has the functions that this trainer was passed known, and its devices used, during the block."""
    with named.given(self._given), self._trainer.on_devices():
      yield

  @property
  def run(self) -> Run:
    """Property: the run as it is on disk. Metrics of a step are written when the next one was updated or evaluated."""
    return Run(self._arguments[1])

  @property
  def policy(self) -> Policy:
    """Property: the policy as it is now. It is of no use after the next update, which takes its weights."""
    self._check_is_open()
    return Policy(self._trainer.config, self._trainer.policy)

  def _check_is_open(self) -> None:
    """Raises InputError outside of the block."""
    if self._trainer is None:
      raise InputError("the trainer is not open; use it as `with jr.Trainer(config, workdir) as trainer:`")

  def __iter__(self) -> Iterator[int]:
    """Yields the number of each step that is left, from 1 to rl.steps, and finishes the run after the last.

    Ends early as `jr.train` does (rl.stop_when_memorising). Raises InputError where a step ends without its update.
    """
    self._check_is_open()
    if self._trainer.finished:
      return
    for step in self._trainer.steps():
      self._step, self._awaits_update = step, True
      yield step
      if self._awaits_update:
        raise InputError(f"step {step} ends without trainer.update(grades); call it in each step")
    self._step = None
    with self._at_work():
      self._trainer.finish()

  def sample(self) -> Responses:
    """Samples the step's problems and returns the responses; the same ones if it is called again."""
    self._check_is_open()
    if self._step is None or not self._awaits_update:
      raise InputError("trainer.sample() is for the loop `for step in trainer:`, before trainer.update(grades)")
    with self._at_work():
      return Responses(self._trainer.sample(self._step))

  def grade(self, responses: Responses) -> Grades:
    """Grades responses by the config's reward and, without effect on it, by the truth."""
    self._check_is_open()
    with self._at_work():
      return Grades(responses, self._trainer.grade(responses.sampled))

  def update(self, grades: Grades) -> dict[str, float]:
    """Trains on the step's graded responses; writes metrics and rollouts, evaluates and saves where the step is due.

    Returns the metrics that the host knows: reward, true_reward and the like; where the step was evaluated, all. Raises
    InputError for grades of another step, and what `jr.train` raises.
    """
    self._check_is_open()
    if grades.responses.step != self._step or not self._awaits_update:
      raise InputError(f"trainer.update: grades of step {grades.responses.step}; call it once a step, with its grades")
    with self._at_work():
      metrics = self._trainer.update(grades.responses.sampled, grades.grades)
    self._awaits_update = False
    return metrics
