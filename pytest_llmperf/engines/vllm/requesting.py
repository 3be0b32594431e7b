"""The requests of a loaded vLLM engine: made of a workload, handed over, stepped to their end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from vllm import LLMEngine, SamplingParams, TokensPrompt
from vllm.sampling_params import RequestOutputKind

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.loading.folder import ModelFolder
from pytest_llmperf.engines.outputs.decoding import CacheSeen, Decoded
from pytest_llmperf.engines.outputs.inputs import TokenBatch, Vocabulary, token_batch
from pytest_llmperf.engines.outputs.requests import batch_requests, matrix
from pytest_llmperf.engines.outputs.scorer import Scorer
from pytest_llmperf.engines.vllm import inspection
from pytest_llmperf.engines.vllm.adapters import Adapters
from pytest_llmperf.engines.vllm.logits import capture
from pytest_llmperf.engines.vllm.stepping import Ask, Stepped, require_no_cached, run
from pytest_llmperf.errors import UsageError
from pytest_llmperf.workloads import Batch, Workload

LOOP = "LLMEngine.step"
_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class LoadedEngine:
    """An engine that is ready, what it was made from, and how long that took."""

    engine: LLMEngine
    plan: LoadPlan
    source: ModelFolder
    device: torch.device
    load_s: float
    versions: dict[str, str]

    @property
    def config(self) -> Any:
        """The configuration of vLLM, as it ended up."""
        return self.engine.vllm_config

    @property
    def text_config(self) -> Any:
        """The configuration of the language model."""
        return self.config.model_config.hf_config.get_text_config()

    @property
    def vocab_size(self) -> int:
        """Rows of the output head."""
        return int(self.text_config.vocab_size)

    def runner(self) -> Any:
        """Return the model runner of this rank's worker."""
        return self.engine.collective_rpc(lambda worker: worker)[0].model_runner


class Requester:
    """Makes requests, hands them over and steps the engine until all are answered.

    All requests of a workload are handed over at once; vLLM batches them continuously. It is a
    `DecodeLoop` too.
    """

    name = LOOP

    def __init__(self, loaded: LoadedEngine) -> None:
        runner = loaded.runner()
        self.model = runner.get_model()
        self.cache = inspection.kv_cache(runner, loaded.config)
        self.adapters = Adapters.load(loaded.engine, runner, loaded.plan)
        self.vocabulary = Vocabulary.of(
            SimpleNamespace(config=loaded.config.model_config.hf_config), loaded.source.tokenizer
        )
        self._loaded = loaded

    def requests(self, workload: Workload, repetition: int) -> tuple[Tensor, list[Ask]]:
        """Return the prompts of a repetition: as a padded matrix, and as requests.

        They are those of the other engines.
        """
        tokenizer = self._loaded.source.tokenizer
        if isinstance(workload, Batch):
            return self._of_batch(workload, repetition)
        batch = token_batch(workload, repetition, self.vocabulary, tokenizer, _CPU)
        return batch.ids, self._of_rows(unpadded(batch), workload.new_tokens)

    def step(self, requests: Sequence[Ask]) -> Stepped:
        """Hand the requests over, and step until all are answered.

        Raises InvalidRun where a prefix cache that nobody asked for answers.
        """
        stepped = run(self._loaded.engine, self._submit, requests)
        if not self._loaded.plan.option("prefix_cache", default=False):
            require_no_cached(stepped, sum(len(request.ids) for request in requests))
        return stepped

    def decode(self, batch: TokenBatch, new_tokens: int) -> Decoded:
        """Return the greedy tokens of a padded batch, which goes in without its padding."""
        stepped = self.step(self._of_rows(unpadded(batch), new_tokens))
        cache = CacheSeen(
            self.cache.dtype, self.cache.bytes, self.cache.bytes_per_token, self.cache.layers
        )
        tokens = matrix([answer.tokens for answer in stepped.answers])
        return Decoded(tokens, stepped.start_ns, (), cache)

    def logits(self, ids: Sequence[int]) -> tuple[Tensor, torch.dtype]:
        """Return [positions, vocab] float32 logits after each token, and the dtype they had."""

        def submit(name: str, request: Ask) -> None:
            self._submit(name, request, prompt_logprobs=1)

        with capture(self.model) as captured:
            run(
                self._loaded.engine,
                submit,
                [self._of_row(0, ids, 1)],
                after_step=captured.end_of_step,
            )
        return captured.rows(len(ids), self._loaded.vocab_size), captured.dtype

    def observed_dtype(self) -> str:
        """Return the dtype of the output head's product over one token.

        For a stage without a head, return that of vLLM's configuration.
        """
        token = int(self.vocabulary.plain_ids()[0])
        with capture(self.model) as captured:
            run(self._loaded.engine, self._submit, [Ask([token], 1)])
        has_head = captured.sampled is not None
        dtype = captured.dtype if has_head else self._loaded.config.model_config.dtype
        return str(dtype).removeprefix("torch.")

    def _of_batch(self, workload: Batch, repetition: int) -> tuple[Tensor, list[Ask]]:
        if len(self.adapters.used) > 1:
            raise UsageError("a Batch is not divided among adapters. Take Decode, or one of them.")
        requests = batch_requests(
            workload, repetition, self.vocabulary, self._loaded.source.tokenizer
        )
        pairs = enumerate(zip(requests.rows, requests.new_tokens, strict=True))
        return matrix(requests.rows), [self._of_row(index, *pair) for index, pair in pairs]

    def _of_rows(self, rows: Sequence[Sequence[int]], new_tokens: int) -> list[Ask]:
        return [self._of_row(index, row, new_tokens) for index, row in enumerate(rows)]

    def _of_row(self, row: int, ids: Sequence[int], new_tokens: int) -> Ask:
        return Ask(ids, new_tokens, self.adapters.of_row(row))

    def _submit(self, name: str, request: Ask, **sampling: Any) -> None:
        params = SamplingParams(
            temperature=0.0,
            max_tokens=request.new_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            **sampling,
        )
        prompt = TokensPrompt(prompt_token_ids=list(request.ids))
        self._loaded.engine.add_request(name, prompt, params, lora_request=request.adapter)


@dataclass(frozen=True)
class VllmScorer(Scorer):
    """Teacher-forced logits of vLLM: each row is a prompt of its own, without padding."""

    requester: Requester | None = None

    def rounded_logits(self, batch: TokenBatch, continuation: Tensor) -> Tensor | None:  # noqa: ARG002
        """Return None: vLLM's kernels cannot be asked to round."""
        return None

    def forced_logits(self, batch: TokenBatch, continuation: Tensor) -> tuple[Tensor, torch.dtype]:
        """See `Scorer.forced_logits`."""
        assert self.requester is not None  # noqa: S101 - given by the one caller
        n_positions, dtype = continuation.shape[1], torch.float32
        rows: list[Tensor] = []
        for row, forced in zip(unpadded(batch), continuation.tolist(), strict=True):
            logits, dtype = self.requester.logits([*row, *forced[:-1]])
            rows.append(logits[-n_positions:])
        return torch.stack(rows), dtype


def unpadded(batch: TokenBatch) -> list[list[int]]:
    """Return the rows of a left-padded batch as they are without padding."""
    return [
        row[len(row) - length :]
        for row, length in zip(batch.ids.tolist(), batch.lengths, strict=True)
    ]
