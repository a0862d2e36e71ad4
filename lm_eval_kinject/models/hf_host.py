"""The host of transformers models: lm_eval's ``hf``, asked what retrieval needs to know.

What it is for: `HFHost` stands between `RagMixin` and ``HFLM``: it loads (the embedded reader where nothing is named,
an adapter by its name, a device that this machine has), counts tokens, renders chats and names the weights. What it
does not do: retrieval.

The one idea: ``hf`` loads and scores as ever; what it can't do without a traceback is said in one message.
"""

from __future__ import annotations

import errno
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lm_eval_kinject.context.compose import markers_of
from lm_eval_kinject.errors import ArgumentError, ModelError
from lm_eval_kinject.hub.registry import READER, ResolvedAdapter, check_base, resolve
from lm_eval_kinject.log import log
from lm_eval_kinject.models.arguments import WHERE, RagArguments
from lm_eval_kinject.models.results import loading, model_identity
from lm_eval_kinject.plugin import assets_dir

__all__ = ["HFHost"]

_COMPANIONS = ("peft", "delta", "tokenizer")
_REAL_MODEL = "Qwen/Qwen3-0.6B-Base"


class HFHost:
    """Mixed in before ``HFLM`` or a subclass; see `lm_eval_kinject.models.host.Host`."""

    gives_log_probs = True

    _padding_checked: Any = None
    """The model that was found to read padded prompts as each alone."""

    # what HFLM has after its __init__
    backend: str
    config: Any
    device: Any
    gather_object: Callable[..., Any]
    peft: str | None
    _model: Any
    max_gen_toks: int
    max_length: int
    _max_length: int | None
    pretrained: Any
    revision: str | None
    tok_encode: Callable[..., list[int]]
    tokenizer: Any

    # Loading --------------------------------------------------------------------------------------------------------

    def load(self, rag: RagArguments, arguments: dict[str, Any], usual: Mapping[str, Any]) -> None:
        """Fills in what is missing and loads."""
        import torch

        self._given, self._usual = dict(arguments), usual
        hf = self._complete(rag.adapter, arguments)
        if "device" not in hf and isinstance(hf["pretrained"], str) and not torch.cuda.is_available():
            hf["device"] = "mps" if torch.backends.mps.is_available() else "cpu"  # hf assumes CUDA
        self._name_parts(hf)
        self._load(hf)
        self._leave_room(hf.get("max_length"))
        commit = getattr(self.config, "_commit_hash", None)
        self._model_identity = model_identity(self.pretrained, commit=commit, revision=self.revision)

    def _complete(self, adapter: str | None, hf: dict[str, Any]) -> dict[str, Any]:
        """Fills in the embedded reader, and what an adapter's name stands for."""
        self._adapter: ResolvedAdapter | None = None
        if adapter is not None:
            self._put_on(hf, adapter)
        if hf.get("pretrained") is None:
            hf["pretrained"] = _embedded_reader()
        return hf

    def _name_parts(self, hf: Mapping[str, Any]) -> None:
        """Names what is loaded beside the model, now and once: on the Hub a name can mean another commit later."""
        self._loading = loading(hf, self._usual)
        revision = hf.get("revision", self._usual.get("revision"))
        self._companions = {
            part: model_identity(hf[part], commit=None, revision=revision) for part in _COMPANIONS if hf.get(part)
        }

    def exchange(self, *, peft: str | None = None, adapter: str | None = None) -> None:
        """Takes the adapter off and puts another one on, or none: the base stays loaded.

        Everything else is as if the model had been loaded with it; scores are the same to the bit.

        Args:
            peft: as ``hf`` takes it.
            adapter: a name of `kinject adapters list`.

        Raises:
            ArgumentError: an adapter is on that changes more than it adds, or the new one is for another base.
            ModelError: the new one can't be reached, or doesn't fit.
        """
        from peft import PeftModel

        given = {name: value for name, value in self._given.items() if name not in ("peft", "adapter")}
        hf = self._complete(adapter, {**given, **({"peft": peft} if peft else {})})
        if hf["pretrained"] != self.pretrained:
            raise ArgumentError(
                f"adapter={adapter} is for {hf['pretrained']}, and {self.pretrained} is loaded; load the model anew",
                WHERE,
            )
        if isinstance(self._model, PeftModel):
            if _virtual_tokens(self._model):  # the base below is untouched
                self._model = self._model.get_base_model()
            elif hasattr(self._model.base_model, "unload"):
                self._model = self._model.unload()
            else:
                raise ArgumentError("this kind of adapter can't be taken off its base; load the model anew", WHERE)
        if hf.get("peft"):
            with self._explained(hf):
                self._model = PeftModel.from_pretrained(self._model, hf["peft"], revision=self.revision)
            self._model.to(self.device)
        self._model.eval()
        self.peft = hf.get("peft")
        self._leave_room(hf.get("max_length"))
        self._name_parts(hf)

    def _leave_room(self, given: int | None) -> None:
        """Takes an adapter's virtual tokens, which stand before each prompt, off the model's own window."""
        self._max_length = given
        if given is None and (taken := _virtual_tokens(self._model)):
            self._max_length = self.max_length - taken

    def _put_on(self, hf: dict[str, Any], name: str) -> None:
        """Replaces ``adapter=`` by what ``hf`` understands: a checked folder, and its base where none is given."""
        found = self._adapter = resolve(name)
        if not found.adapter and hf.get("pretrained") is not None:
            raise ArgumentError(f"adapter={name} is a whole model, in the place of pretrained=; remove one", WHERE)
        if not found.adapter:
            hf["pretrained"] = str(found.path)
            return
        if hf.get("pretrained") is None and found.base != READER:
            hf["pretrained"] = found.base
        check_base(found, hf.get("pretrained"))
        if hf.get("pretrained") == found.base and found.base_revision and not Path(found.base).is_dir():
            _pin(hf, found)
        hf["peft"] = str(found.path)

    def _load(self, hf: dict[str, Any]) -> None:
        with self._explained(hf):
            super().__init__(**hf)

    @contextmanager
    def _explained(self, hf: dict[str, Any]) -> Iterator[None]:
        """Says in one message what goes wrong while weights are loaded."""
        name = hf["pretrained"]
        try:
            with _quiet_adapter(hf):
                yield
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise ModelError(
                    f"The disk is full, so {name} can't be downloaded. Make room, or set HF_HOME to a larger disk."
                ) from error
            raise ModelError(_unreachable(hf, str(error))) from error
        except RuntimeError as error:
            if hf.get("peft") and "size mismatch" in str(error):
                raise ModelError(_misfit(hf, "its matrices have other shapes than the base's modules")) from error
            raise
        except ValueError as error:
            if hf.get("peft") and "not found in the base model" in str(error):
                raise ModelError(_misfit(hf, str(error).split(". ")[0])) from error
            if "adapter_config.json" in str(error) or "Unrecognized model" in str(error):
                raise ModelError(_unreachable(hf, str(error))) from error
            raise

    # What retrieval asks --------------------------------------------------------------------------------------------

    def markers(self) -> tuple[str, ...]:
        """The tokenizer's control tokens."""
        return markers_of(self.tokenizer)

    def bos(self) -> str:
        """The tokenizer's BOS."""
        return str(getattr(self.tokenizer, "bos_token", None) or "")

    def count(self, text: str, *, bare: bool) -> int:
        """Tokens of a text; with ``bare``, without BOS and EOS."""
        return len(self.tok_encode(text, add_special_tokens=False if bare else None))

    def room(self, request_type: str, arguments: Sequence[Any]) -> int:
        """Tokens of the model's window that a request leaves free (an encoder's, where there is one)."""
        free = self.max_length - self.count(arguments[0], bare=False)
        if self.backend == "seq2seq":
            return free
        if request_type == "generate_until":
            from lm_eval.models.utils import normalize_gen_kwargs

            return free - int(normalize_gen_kwargs(arguments[1], self.max_gen_toks)["max_gen_toks"])
        return free - self.count(arguments[1], bare=True)

    def render(self, messages: list[dict[str, str]], generation_prompt: bool) -> str:
        """The prompt that the tokenizer's chat template makes of messages."""
        return super().apply_chat_template(messages, add_generation_prompt=generation_prompt)  # type: ignore[misc]

    def identity(self) -> dict[str, Any]:
        """Weights, what was put on them, and how they were read where that isn't as usual."""
        found: dict[str, Any] = {"model": self._model_identity, **self._companions}
        if self._loading:
            found["loading"] = self._loading
        if self._adapter is not None:
            found["adapter"] = self._adapter.name
            if self._adapter.identity is not None:  # the Hub's name and commit say more than a folder in its cache
                found["peft" if self._adapter.adapter else "model"] = self._adapter.identity
        return found

    def encoder_device(self) -> str:
        """The model's own device."""
        return str(self.device)

    def prefix_scorer(self) -> Any:
        """Exact for most decoders; what it can't prove exact it gives back to ``HFLM``."""
        from lm_eval_kinject.scoring import SharedPrefixScorer

        return SharedPrefixScorer(self)

    def gather(self, value: Any) -> list[Any] | None:
        """See ``HFLM.gather_object``."""
        return self.gather_object(value)

    # What a fusion asks that generates ------------------------------------------------------------------------------

    @property
    def decodes(self) -> bool:
        """Decoder-only models alone."""
        return self.backend == "causal"

    def prompt_ids(self, prompt: str, gen_kwargs: Mapping[str, Any]) -> list[int]:
        """See `hf_decode.prompt_ids`."""
        from lm_eval_kinject.models import hf_decode

        return hf_decode.prompt_ids(self, prompt, gen_kwargs)

    def continuations(
        self, rows: Sequence[Sequence[int]], gen_kwargs: Mapping[str, Any], prior: Sequence[float] | None = None
    ) -> list[list[int]]:
        """See `hf_decode.continuations`; the first unlike lengths show whether the model can read them so."""
        from lm_eval_kinject.models import hf_decode

        if len(set(map(len, rows))) > 1 and self._padding_checked is not self._model:
            hf_decode.check_padding(self, rows)
            self._padding_checked = self._model
        return hf_decode.continuations(self, rows, gen_kwargs, prior)

    def text_of(self, tokens: Sequence[int], gen_kwargs: Mapping[str, Any]) -> str:
        """See `hf_decode.text_of`."""
        from lm_eval_kinject.models import hf_decode

        return hf_decode.text_of(self, tokens, gen_kwargs)


def _virtual_tokens(model: Any) -> int:
    """Tokens that adapters (cartridges, prefixes, prompts) put in front of each prompt."""
    configs = getattr(model, "peft_config", {}).values() if hasattr(model, "get_base_model") else ()
    return sum(config.num_virtual_tokens for config in configs if config.is_prompt_learning)


@contextmanager
def _quiet_adapter(hf: Mapping[str, Any]) -> Iterator[None]:
    """Without the one warning that loading an adapter gives, about which nobody but PEFT can do anything."""
    with warnings.catch_warnings():
        if hf.get("peft"):
            # PEFT 0.21 asks a model of transformers 5.23 by the old name; to be dropped when it no longer does.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def _pin(hf: dict[str, Any], adapter: ResolvedAdapter) -> None:
    """Loads the base at the commit that an adapter was trained on, and no other."""
    given = hf.setdefault("revision", adapter.base_revision)
    if given != adapter.base_revision:
        raise ArgumentError(
            f"revision={given}: adapter={adapter.name} was trained on {adapter.base} at {adapter.base_revision}; "
            "remove revision=, or pass that one",
            WHERE,
        )


def _embedded_reader() -> str:
    folder = assets_dir() / "reader"
    if not (folder / "config.json").is_file():
        raise ModelError(
            "pretrained= was not given, and this installation carries no embedded reader. Pass a model, for example "
            f"pretrained={_REAL_MODEL}, or a folder with one."
        )
    log.info(
        "No pretrained= given: the embedded reader is scored, a small model that shows the method and nothing else. "
        "For a real one pass, for example, pretrained=%s.",
        _REAL_MODEL,
    )
    return str(folder)


def _misfit(hf: dict[str, Any], problem: str) -> str:
    return (
        f"The adapter peft={hf['peft']} doesn't fit the model pretrained={hf['pretrained']}: {problem}. Pass the base "
        "that it was trained on (base_model_name_or_path in its adapter_config.json)."
    )


def _unreachable(hf: dict[str, Any], problem: str) -> str:
    """Says which of the named models failed, and what works without a network."""
    given = {name: hf[name] for name in ("pretrained", *_COMPANIONS) if isinstance(hf.get(name), str)}
    named = {name: value for name, value in given.items() if value in problem}
    names = [f"{name}={value}" for name, value in (named or given).items()]
    reason = " ".join(problem.split()).split(". ")[0].rstrip(".")
    local = [name for name in ("pretrained", "peft") if hf.get(name) and Path(str(hf[name])).expanduser().is_dir()]
    advice = (
        "a folder there must hold config.json and weights (peft: adapter_config.json and weights)"
        if local
        else "check its spelling, and that HF_TOKEN is set if it is private"
    )
    return (
        f"The model can't be loaded ({', '.join(names)}): {reason}. What to do: {advice}. Without a network pass a "
        "folder on this disk or a model in the Hub's cache, or leave pretrained= out for the embedded reader."
    )
