"""A causal language model as this project sees it: token ids in; residual streams and next-token losses out.

Its weights are on one device, or spread by accelerate over GPUs, memory and disk. accelerate moves a module's inputs,
and its offloaded weights, to the module's execution device when it is called; the forward pass is otherwise the same.
What stands beside the forward pass has to ask where things are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from sae_match.errors import UserError
from sae_match.language_model.forward_pass import (
    SUPPORTED,
    StopForward,
    find_blocks,
    find_decoder,
    next_token_losses,
    output_maker,
    recording,
    resumed_after,
)

_NOT_CONTENT = ("transformers_version", "architectures", "use_cache", "torch_dtype", "dtype")
"""Config entries that do not change what the model computes (dtypes enter with the weights themselves)."""


class LanguageModel:
    """A transformers causal language model in evaluation mode, its tokenizer and its blocks.

    Layers are 0-based; layer L means the residual stream after block L. Windows are dense token ids without padding.
    Not thread-safe: hooks and replaced forwards are attached to the model while a call runs.

    Attributes:
        hf: the transformers model (evaluation mode, parameters without gradients).
        tokenizer: its tokenizer.
        name: short name used in records.
        n_layers: number of blocks.
        d_model: width of the residual stream.
        bos: whether windows of tokens begin with BOS (`text.load_windows`).
        sink_positions: positions at each window's start that are never counted.
    """

    def __init__(
        self,
        hf: PreTrainedModel,
        tokenizer: Any,
        name: str,
        bos: Literal["auto", "required", "none"] = "auto",
        sink_positions: int = 1,
    ) -> None:
        self.hf: PreTrainedModel = hf.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name, self.bos, self.sink_positions = name, bos, sink_positions
        self.blocks: nn.ModuleList = find_blocks(hf)
        self.decoder: nn.Module = find_decoder(hf)
        self.n_layers: int = len(self.blocks)
        self.d_model: int = int(hf.config.get_text_config().hidden_size)

    @property
    def device(self) -> torch.device:
        """Where token ids go; the blocks of a model that accelerate spread may compute elsewhere."""
        return execution_device(self.hf.get_input_embeddings())

    @cached_property
    def key(self) -> str:
        """Hash (hex, 32 digits) of config, attention implementation and every weight and buffer, dtype included.

        Names and paths do not enter: the same weights from the hub and from a local copy have the same key. Takes about
        a second per GB on first use.
        """
        digest = hashlib.sha256()
        config = {
            name: value
            for name, value in self.hf.config.to_dict().items()
            if not name.startswith("_") and name not in _NOT_CONTENT
        }
        config["attention"] = self.hf.config.get_text_config()._attn_implementation
        digest.update(json.dumps(config, sort_keys=True, default=str).encode())
        for name, tensor in _named_weights(self.hf):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()[:32]

    def check_layers(self, layers: Sequence[int]) -> None:
        """Raises UserError where a layer does not exist or none is given."""
        wrong = [layer for layer in layers if not 0 <= layer < self.n_layers]
        if wrong or not layers:
            raise UserError(
                f"{self.name} has blocks 0 to {self.n_layers - 1}; asked for the residual stream after "
                f"{', '.join(map(str, wrong)) or 'none'}"
            )

    def check_ids(self, ids: Int[Tensor, "windows tokens"]) -> None:
        """Raises UserError where a token has no embedding: its tokenizer knows more tokens than the model."""
        known = next(self.hf.get_input_embeddings().parameters()).shape[0]
        largest = int(ids.max())
        if largest >= known:
            raise UserError(
                f"the tokenizer of {self.name} gives the token id {largest}, but the model has {known} embeddings. "
                "Take the tokenizer that belongs to the model, or resize the model's embeddings and save it"
            )

    @torch.no_grad()
    def check_architecture(self) -> None:
        """Compare the losses of three tokens with those of passes that resume after two of the blocks.

        Raises:
            UserError: a block does not return one residual stream, or resuming from it gives other losses (as where
                blocks hand each other more than that); or the states are not finite.
        """
        ids, streams = torch.arange(3)[None], dict[int, Tensor]()
        layers = sorted({0, max(0, self.n_layers - 2)})
        try:
            whole = self.token_losses(ids)
            with recording(self.blocks, layers, streams.__setitem__), suppress(StopForward):
                self.decoder(input_ids=ids.to(self.device), use_cache=False)
            resumed = [self.token_losses_from(layer, streams[layer], ids) for layer in layers]
            shapes = {tuple(stream.shape) for stream in streams.values()}
            fine = all(torch.allclose(losses, whole, rtol=1e-2, atol=1e-2) for losses in resumed)
            problem = f"blocks return {shapes}" if shapes != {(1, 3, self.d_model)} else "" if fine else "other losses"
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
            problem = f"{type(error).__name__}: {error}"
        if problem:
            raise UserError(
                f"{self.name}: a forward pass of {type(self.hf).__name__} cannot be resumed from the residual stream "
                f"after a block ({problem}). {SUPPORTED} Choose another model, or evaluation=weights_only"
            )

    @torch.no_grad()
    def resid_post(self, ids: Int[Tensor, "B T"], layers: Sequence[int]) -> dict[int, Float[Tensor, "B T d"]]:
        """Residual streams after the blocks `layers`, in the model's dtype, each on its block's device.

        Blocks after the last of them, the final norm and the LM head are not computed.

        Raises:
            UserError: a layer does not exist, or a residual stream is not finite.
        """
        outputs: dict[int, Tensor] = {}
        self.stream_resid_post(ids, layers, outputs.__setitem__)
        return {layer: outputs[layer] for layer in layers}

    @torch.no_grad()
    def stream_resid_post(
        self, ids: Int[Tensor, "B T"], layers: Sequence[int], consume: Callable[[int, Float[Tensor, "B T d"]], object]
    ) -> None:
        """As `resid_post`, but each residual stream is handed to `consume(layer, residual)` as soon as it exists.

        Layers come in ascending order; memory does not grow with their number.
        """

        def checked(layer: int, residual: Float[Tensor, "B T d"]) -> None:
            self.require_finite(residual, f"the residual stream after block {layer}")
            consume(layer, residual)

        self.check_layers(layers)
        with recording(self.blocks, layers, checked), suppress(StopForward):
            self.decoder(input_ids=ids.to(self.device), use_cache=False)

    @torch.no_grad()
    def token_losses(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T-1"]:
        """Next-token cross-entropy in nats, float32: entry t is the loss on token t + 1.

        Raises:
            UserError: the hidden states are not finite.
            ValueError: fewer than two tokens per window.
        """
        ids = self._loss_ids(ids)
        output = self.decoder(input_ids=ids, use_cache=False)
        self.require_finite(output["last_hidden_state"], "the hidden state before the LM head")
        return next_token_losses(self.hf, self.decoder, output, ids)

    @torch.no_grad()
    def token_losses_from(
        self, layer: int, residual: Float[Tensor, "B T d"], ids: Int[Tensor, "B T"]
    ) -> Float[Tensor, "B T-1"]:
        """Next-token losses as in `token_losses` when `residual` replaces the residual stream after block `layer`.

        Blocks up to and including `layer` are not computed. With the model's own residual stream the losses equal those
        of `token_losses`.

        Args:
            layer: 0-based block whose output is replaced; the last block is allowed.
            residual: any float dtype and device; cast to the model's.
            ids: the token ids of the same windows; they are the targets.

        Raises:
            UserError: the layer does not exist.
            ValueError: the residual's shape does not fit the ids, or there are fewer than two tokens per window.
        """
        self.check_layers([layer])
        ids = self._loss_ids(ids)
        with self.resumed(layer, residual):
            output = self.decoder(input_ids=ids, use_cache=False)
        return next_token_losses(self.hf, self.decoder, output, ids)

    def resumed(self, layer: int, residual: Float[Tensor, "B T d"]) -> AbstractContextManager[None]:
        """Inside the block, forward passes take `residual`, in the model's dtype, as the output of block `layer`."""
        own = residual.to(execution_device(self.blocks[layer]), self.hf.dtype)
        return resumed_after(self.blocks, layer, own, self.as_output)

    @cached_property
    def as_output(self) -> Callable[[Tensor], Any]:
        """Puts a residual stream into what a block of this model returns."""
        return output_maker(self.decoder, self.blocks, self.device)

    def require_finite(self, values: Tensor, what: str) -> None:
        """Raises UserError where a value is NaN or infinite."""
        if bool(values.isfinite().all()):
            return
        dtype = str(values.dtype).removeprefix("torch.")
        advice = (
            "Is the checkpoint damaged?"
            if values.dtype is torch.float32
            else f"{dtype} overflows beyond {torch.finfo(values.dtype).max:.3g}: set model.dtype=float32"
            + (" or bfloat16." if values.dtype is torch.float16 else ".")
        )
        raise UserError(f"{self.name}: {what} holds NaN or infinity in {dtype}. {advice}")

    def _loss_ids(self, ids: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        if ids.ndim != 2 or ids.shape[1] < 2:
            raise ValueError(f"ids have shape {tuple(ids.shape)}; losses need [windows, at least 2 tokens]")
        return ids.to(self.device)


def execution_device(module: nn.Module) -> torch.device:
    """The device on which a module computes: accelerate's choice where there is one, else where its weights are."""
    hook = getattr(module, "_hf_hook", None)
    for one in getattr(hook, "hooks", [hook]):
        device = getattr(one, "execution_device", None)
        if device is not None:
            # accelerate numbers accelerators, and names everything else.
            return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    return next(module.parameters()).device


def _named_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every entry of the state dict by name, sorted, on a real device; offloaded ones are read one at a time."""
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.device.type != "meta":
            yield name, tensor
            continue
        from accelerate.utils import align_module_device  # it put the weight elsewhere, so it is installed

        parent, _, leaf = name.rpartition(".")
        module = model.get_submodule(parent)
        with align_module_device(module, "cpu"):
            yield name, getattr(module, leaf)
